"""Defer the task instances of ``waits`` as their sensor would, without a process for each.

Runs in the Airflow's own environment.
"""

from __future__ import annotations

import json
import os
from typing import Any

from airflow.models import TaskInstance, Trigger
from airflow.utils.session import create_session

from airflow_provider_onebox.triggers.onebox import OneboxRecordTrigger


def trigger(number: int, connections: int, interval: float, since_id: int) -> OneboxRecordTrigger:
    """Make one; they spread over the connections, and every second one polls for itself.

    :param number: of the trigger, from 0.
    :param connections: how many there are.
    :param interval: seconds between two polls, about.
    :param since_id: no record has a greater id.
    :return: one that shares its polls with others, or one that nobody else has a question in common with.
    """
    site, turn = number % connections, number // connections
    common: dict[str, Any] = {"since_id": since_id, "onebox_conn_id": f"crm_{site}"}
    if turn % 2:
        return OneboxRecordTrigger("ticketrz", poke_interval=interval, **common)
    own = f"20{turn // 12:02d}-{turn % 12 + 1:02d}-01 00:00"
    # Of various lengths, so that not all ask at once.
    return OneboxRecordTrigger("ticketrz", poke_interval=interval * (0.8 + number % 21 / 50), last_update=own, **common)


def main() -> None:
    """Write the rows."""
    soak = json.loads(os.environ["ONEBOX_SOAK"])
    sizes = [soak[name] for name in ("connections", "interval", "since_id")]
    # Before the session: on Airflow 2 making one closes it, and what was read in it is written no more.
    rows = [Trigger.from_object(trigger(number, *sizes)) for number in range(soak["triggers"])]
    with create_session() as session:
        session.add_all(rows)
        session.flush()
        for waiting in session.query(TaskInstance).filter(TaskInstance.dag_id == "waits").all():
            waiting.state, waiting.trigger_id = "deferred", rows[waiting.map_index].id
            waiting.next_method = "execute_complete"


if __name__ == "__main__":
    main()
