"""Tasks of every class that writes, each of which meets its own fate: mostly its process does not live long."""

from __future__ import annotations

import os
import random
import signal
import threading
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG

try:
    from airflow.sdk.execution_time.timeout import timeout
except ImportError:
    from airflow.utils.timeout import timeout

from airflow_provider_onebox.operators.bulk import OneboxBulkWriteOperator
from airflow_provider_onebox.operators.messages import OneboxSendMessageOperator
from airflow_provider_onebox.operators.onebox import OneboxCreateTicketOperator, OneboxRequestOperator

FOLDER = Path(os.environ.get("KILLS_FOLDER", "."))
SINGLE, BULKS, ROWS = (int(number) for number in os.environ.get("KILLS_COUNTS", "1 1 1").split())
RETRIES = 4
DEADLY_TRIES = 2
FATES = {"none": 2, "SIGKILL": 4, "SIGTERM": 2, "timeout": 2, "xcom": 2}


def live(execute, context, lifetime=1.5):
    """Do what an operator does, until the fate that is drawn for this try; write that down first."""
    ti = context["ti"]
    is_deadly = ti.try_number <= DEADLY_TRIES and not (FOLDER / "calm").exists()
    chance = random.Random(f"{os.environ['KILLS_SEED']}/{ti.task_id}/{ti.map_index}/{ti.try_number}")  # noqa: S311
    fate = chance.choices(list(FATES), list(FATES.values()))[0] if is_deadly else "none"
    delay = chance.uniform(0.01, lifetime)
    (FOLDER / f"{ti.task_id}.{ti.map_index}.{ti.try_number}.fate").write_text(f"{fate} {delay:.2f}")
    if fate.startswith("SIG"):
        timer = threading.Timer(delay, os.kill, (os.getpid(), getattr(signal, fate)))
        timer.daemon = True
        timer.start()
    with timeout(delay) if fate == "timeout" else nullcontext():
        result = execute(context)
    return object() if fate == "xcom" else result


# Each has its own execute: Airflow 2 rejects one that a class inherits from something else than an operator.
class Ticket(OneboxCreateTicketOperator):
    """Opens a ticket."""

    def execute(self, context):
        """Open it, for as long as the process lives."""
        return live(super().execute, context)


class Message(OneboxSendMessageOperator):
    """Sends a message."""

    def execute(self, context):
        """Send it, for as long as the process lives."""
        return live(super().execute, context)


class Request(OneboxRequestOperator):
    """Creates a contact by a plain call."""

    def execute(self, context):
        """Create it, for as long as the process lives."""
        return live(super().execute, context)


class Bulk(OneboxBulkWriteOperator):
    """Creates contacts."""

    def execute(self, context):
        """Create them, for as long as the process lives."""
        return live(super().execute, context, lifetime=4)


def names(kind, count):
    """Name what a kind of task writes, so that the books tell it."""
    return [f"{kind}-{number}" for number in range(count)]


with DAG(
    "kills", schedule=None, max_active_tasks=64, default_args={"retries": RETRIES, "retry_delay": timedelta(seconds=1)}
):
    Ticket.partial(
        task_id="ticket", full_name="A", contact="a@example.com", category="c", content="try {{ ti.try_number }}"
    ).expand(subject=names("ticket", SINGLE))
    Message.partial(task_id="message", connection_id="1", body="x").expand(subject=names("message", SINGLE))
    Request.partial(task_id="request", endpoint="contactrz", method="POST").expand(
        json=[{"Name": name} for name in names("request", SINGLE)]
    )
    Bulk.partial(
        task_id="bulk", kind="contact", results_path=f"{FOLDER}/bulk.{{{{ ti.map_index }}}}.jsonl", parallelism=2
    ).expand(rows=[[{"name": f"{name}-{row}"} for row in range(ROWS)] for name in names("bulk", BULKS)])
