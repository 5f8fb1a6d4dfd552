"""What waits during the soak: sensors in the triggerer, watchers of assets, and one sensor in a task."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Asset

from airflow_provider_onebox.sensors.onebox import OneboxRecordSensor
from airflow_provider_onebox.triggers.onebox import OneboxNewRecordsTrigger

try:
    from airflow.sdk import AssetWatcher
except ImportError:  # Airflow 2.11 has no watchers.
    AssetWatcher = None  # type: ignore[assignment, misc]

SOAK = json.loads(os.environ["ONEBOX_SOAK"])


def report(context: Any) -> None:
    """Write down the processes of the task: its own, and the supervisor's, which is its parent."""
    file = Path(SOAK["folder"]) / "task.new"
    file.write_text(json.dumps([os.getpid(), os.getppid()]))
    file.rename(file.with_suffix(""))


# The pool has no slots: the scheduler makes the task instances, and `rows.py` defers them.
with DAG("waits", schedule=None, catchup=False):
    OneboxRecordSensor.partial(task_id="wait", resource="ticketrz", deferrable=True, pool="none").expand(
        since_id=list(range(SOAK["triggers"]))
    )

with DAG("pokes", schedule=None, catchup=False):
    OneboxRecordSensor(
        task_id="poke",
        resource="ticketrz",
        since_id=SOAK["since_id"],
        poke_interval=SOAK["poke_interval"],
        timeout=timedelta(days=7).total_seconds(),
        onebox_conn_id="poked",
        on_execute_callback=report,
    )

if AssetWatcher is not None:
    watched = []
    for number in range(SOAK["connections"]):
        trigger = OneboxNewRecordsTrigger("ticketrz", poll_interval=1, onebox_conn_id=f"crm_{number}")
        watched.append(Asset(f"new_{number}", watchers=[AssetWatcher(name=f"watcher_{number}", trigger=trigger)]))

    with DAG("watches", schedule=watched, catchup=False):
        pass
