"""Write the conversations of some tickets to one file, and their attachments to a folder."""

from __future__ import annotations

import tempfile

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_onebox.operators.messages import OneboxListConversationsOperator
from airflow_provider_onebox.operators.onebox import OneboxListOperator

with DAG(
    "example_onebox_conversations",
    schedule=None,
    catchup=False,
    params={"folder": f"{tempfile.gettempdir()}/onebox"},
    tags=["onebox"],
    doc_md=__doc__,
):
    tickets = OneboxListOperator(
        task_id="list_tickets",
        resource="ticketrz",
        max_records=5,
        output_path="{{ params.folder }}/tickets_of_conversations_{{ run_id }}.jsonl.gz",
    )
    OneboxListConversationsOperator(
        task_id="list_conversations",
        tickets=tickets.output,
        output_path="{{ params.folder }}/conversations_{{ run_id }}.jsonl.gz",
        attachments_path="{{ params.folder }}/attachments_{{ run_id }}",
        # Another host that Onebox names; it gets no token. With the sandbox it is this one.
        attachment_hosts=["localhost"],
        parallelism=4,
    )
