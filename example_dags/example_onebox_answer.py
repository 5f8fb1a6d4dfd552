"""Reply to the newest message of a ticket, in its private conversation."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.messages import OneboxSendMessageOperator

with DAG(
    "example_onebox_answer",
    schedule=None,
    catchup=False,
    # The channel to answer by: the id of one of your site's `connection` records.
    params={"connection_id": "1"},
    tags=["onebox"],
    doc_md=__doc__,
):

    @task
    def find_conversation() -> str:
        hook = OneboxHook()
        (ticket,) = hook.list_records("ticketrz", max_records=1)
        messages = hook.list_conversations(ticket["Id"])
        return str(messages[-1]["ConversationId"])

    OneboxSendMessageOperator(
        task_id="answer",
        connection_id="{{ params.connection_id }}",
        conversation_id=find_conversation(),
        body="Thank you for your message. We are looking into it.",
    )
