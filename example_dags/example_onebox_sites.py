"""Write the new tickets of several sites, each to its own file, by mapping one task."""

from __future__ import annotations

import tempfile

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_onebox.operators.onebox import OneboxListOperator

with DAG(
    "example_onebox_sites",
    schedule=None,
    catchup=False,
    params={"folder": f"{tempfile.gettempdir()}/onebox"},
    tags=["onebox"],
    doc_md=__doc__,
):
    OneboxListOperator.partial(
        task_id="list_tickets",
        resource="ticketrz",
        incremental=True,
        # The path varies by site and by run, so that no task writes where another does.
        output_path="{{ params.folder }}/tickets_of_site_{{ task.site_id }}_{{ run_id }}.jsonl.gz",
    ).expand(site_id=["169", "170"])
