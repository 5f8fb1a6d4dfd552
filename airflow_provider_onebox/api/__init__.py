"""Onebox's REST API: calls, tokens, lists and errors. Knows nothing of Airflow but the base class of the errors."""
