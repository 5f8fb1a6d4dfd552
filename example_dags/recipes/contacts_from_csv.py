"""Create a contact for each row of a CSV file that somebody else has written. This writes to Onebox."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_onebox.operators.bulk import OneboxBulkWriteOperator

with DAG(
    "recipe_contacts_from_csv",
    schedule=None,
    catchup=False,
    default_args={"retries": 3},
    # No default: whoever starts a run names the file.
    params={
        "file": Param(type="string", pattern=r"\.csv(\.gz)?$"),
        # On a volume that all workers share, because a retry reads what is done already.
        "results": "/data/onebox/results",
    },
    tags=["onebox"],
    doc_md=__doc__,
):
    OneboxBulkWriteOperator(
        task_id="create_contacts",
        kind="contact",
        rows="{{ params.file }}",
        # "Name", "Phone" or "Mobile" need no entry: any spelling of an argument is found.
        columns={"Customer": "name", "E-Mail (private)": "email", "Segment": None},
        results_path="{{ params.results }}/contacts_{{ run_id }}.jsonl",
        # Somebody's file has bad rows: the results file names them.
        max_failed_share=0.1,
    )
