"""DAGs whose lineage is tested; nothing in them is for lineage."""

from __future__ import annotations

import json
import os

from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, task

from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.messages import OneboxListConversationsOperator
from airflow_provider_onebox.operators.onebox import OneboxListOperator

FOLDER = os.environ.get("LINEAGE_FOLDER", "")

with DAG("lineage", schedule=None):
    listing = OneboxListOperator(
        task_id="listing",
        resource="ticketrz",
        max_records=3,
        page_size=2,
        incremental=True,
        output_path=f"{FOLDER}/tickets_{{{{ run_id }}}}.jsonl",
    )
    conversations = OneboxListConversationsOperator(
        task_id="conversations", tickets=listing.output, output_path=f"{FOLDER}/conversations.jsonl"
    )

    @task
    def own_code():
        """List with the hook, and write as anybody would."""
        with ObjectStoragePath(f"file://{FOLDER}/own.json").open("w") as file:
            file.write(json.dumps(list(OneboxHook().list_records("contactrz", max_records=5))))

    conversations >> own_code()
