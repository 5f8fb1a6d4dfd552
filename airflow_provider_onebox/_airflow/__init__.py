"""What differs between Airflow versions, and what only Airflow needs."""
