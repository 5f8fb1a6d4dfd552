"""Reply in the private conversation of one ticket. This sends a message to a customer: choose the ticket with care."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.messages import OneboxSendMessageOperator

with DAG(
    "example_onebox_answer",
    schedule=None,
    catchup=False,
    # No defaults: whoever starts a run names the ticket, and the `connection` record to send through.
    params={
        "ticket_id": Param(type="string", pattern="^[0-9]+$"),
        "connection_id": Param(type="string", pattern="^[0-9]+$"),
    },
    tags=["onebox"],
    doc_md=__doc__,
):

    @task
    def find_conversation(ticket_id: str) -> str:
        messages = OneboxHook().list_conversations(ticket_id)
        return str(messages[-1]["ConversationId"])

    OneboxSendMessageOperator(
        task_id="answer",
        connection_id="{{ params.connection_id }}",
        conversation_id=find_conversation("{{ params.ticket_id }}"),
        body="Thank you for your message. We are looking into it.",
    )
