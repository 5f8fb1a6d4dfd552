"""A task that makes the same write in turns with its journal and without, where Airflow runs tasks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, get_current_context, task


@task
def write(rounds: int) -> None:
    """Time the writes, and leave the samples where the benchmark looks for them."""
    from airflow_provider_onebox.hooks.onebox import OneboxHook
    from airflow_provider_onebox.writes.journal import write_once
    from benchmarks.child import interleaved

    context, hook = get_current_context(), OneboxHook()

    def once() -> Any:
        return hook.request("POST", "contactrz", json={"Name": "bench"})

    ways = {"ours": lambda: write_once(context, hook, once, keep_result=True), "bare": once}
    interleaved(1, ways)
    # A rename, so that the file is whole once it is there.
    file = Path(os.environ["ONEBOX_BENCH_JOURNAL"])
    file.with_suffix(".new").write_text(json.dumps(interleaved(rounds, ways)))
    file.with_suffix(".new").rename(file)


with DAG("journal", schedule=None, catchup=False):
    write(int(os.environ["ONEBOX_BENCH_ROUNDS"]))
