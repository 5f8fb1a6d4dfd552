"""Open a ticket, read it back and delete it, with one call each."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_onebox.operators.onebox import OneboxCreateTicketOperator, OneboxRequestOperator

with DAG("example_onebox_ticket", schedule=None, catchup=False, tags=["onebox"], doc_md=__doc__):
    create = OneboxCreateTicketOperator(
        task_id="create_ticket",
        full_name="Siti Rahma",
        contact="siti@example.com",
        subject="Order 1042 has not arrived",
        category="Delivery",
        content="Seen by run {{ run_id }}.",
    )
    read = OneboxRequestOperator(task_id="read_ticket", endpoint="ticketrz/{{ ti.xcom_pull('create_ticket') }}")
    delete = OneboxRequestOperator(
        task_id="delete_ticket", method="DELETE", endpoint="ticketrz/{{ ti.xcom_pull('create_ticket') }}"
    )
    create >> read >> delete
