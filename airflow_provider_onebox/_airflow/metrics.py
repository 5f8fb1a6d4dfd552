"""Counts for Airflow's metrics."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


def count_metric(name: str, number: int = 1) -> None:
    """Add to a counter. Raises nothing: what is counted has been done.

    :param name: its name, without ``onebox.`` before it.
    :param number: what to add.
    """
    try:
        # Airflow has it in another place in each version; in a task, it is imported already.
        from airflow.providers.common.compat.sdk import Stats

        Stats.incr(f"onebox.{name}", number)
    except Exception as error:  # noqa: BLE001 - each backend has its own errors
        log.debug("The metric onebox.%s was not counted (%s).", name, type(error).__name__)
