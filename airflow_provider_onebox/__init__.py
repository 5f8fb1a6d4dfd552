"""Apache Airflow provider for Onebox, the omnichannel CRM cloud."""

__version__ = "0.1.0"
