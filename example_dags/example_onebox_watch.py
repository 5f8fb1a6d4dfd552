"""Run whenever there are new tickets, and list only those. Requires Airflow 3."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Asset, task

from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.triggers.onebox import OneboxNewRecordsTrigger

try:
    from airflow.sdk import AssetWatcher
except ImportError:  # Airflow 2.11: this file holds no DAG then.
    AssetWatcher = None

if AssetWatcher:
    trigger = OneboxNewRecordsTrigger("ticketrz", poll_interval=10)
    # Host and site of the connection.
    uri = "onebox://cloud.onebox.co.id/169/ticketrz"
    tickets = Asset(uri, watchers=[AssetWatcher(name="onebox_tickets", trigger=trigger)])

    with DAG("example_onebox_watch", schedule=[tickets], catchup=False, tags=["onebox"], doc_md=__doc__):

        @task
        def list_new(triggering_asset_events: Any = None) -> list[str]:
            # One run can stand for several events; a run started by hand has none.
            ranges = [event.extra["payload"] for event in triggering_asset_events[tickets]]
            if not ranges:
                return []
            since_id = min(int(new["since_id"]) for new in ranges)
            last_id = max(int(new["last_id"]) for new in ranges)
            records = OneboxHook().list_records("ticketrz", since_id=since_id)
            return [record["Id"] for record in takewhile(lambda record: int(record["Id"]) <= last_id, records)]

        list_new()
