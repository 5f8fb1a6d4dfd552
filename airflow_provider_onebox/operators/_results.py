"""Results are checked while the task can still say what is wrong: Airflow stores them after ``execute``."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

from airflow_provider_onebox.exceptions import OneboxUnusableResultError, sanitize

MAX_XCOM_BYTES = 1024 * 1024
"""The most bytes of JSON that an operator returns; XComs are in Airflow's database."""


def check_result(call: str, result: Any, *, is_write: bool, remedy: str) -> None:
    """Check that Airflow can store a result as an XCom, in each of its databases.

    :param call: what was called, for the message.
    :param result: what the task returns.
    :param is_write: whether the call was a write.
    :param remedy: what to do.
    :raises OneboxUnusableResultError: if Airflow can't store it; the call was made.
    """
    from airflow_provider_onebox._airflow.xcom import as_stored

    try:
        stored = as_stored(result)
        problem = _problem_in(stored)
        if problem is None:
            size = len(json.dumps(stored, ensure_ascii=False, separators=(",", ":")).encode())
            if size > MAX_XCOM_BYTES:
                problem = f"it is {size:,} bytes of JSON, and an XCom holds at most {MAX_XCOM_BYTES:,} here"
    except Exception as error:  # noqa: BLE001 - a serializer of Airflow's can raise anything
        problem = f"{type(error).__name__}: {sanitize(error)}"
    if problem:
        done = "The write was made, so do not clear the task before you have checked in Onebox. " if is_write else ""
        raise OneboxUnusableResultError(
            f"{call} succeeded, but Airflow can't store its result as an XCom: {problem}. {done}{remedy}",
            uncertain=is_write,
        )


def _problem_in(stored: Any) -> str | None:
    """Find what a metadata database or Airflow's own protocol rejects in JSON."""
    left = [("the result", stored)]
    while left:
        place, value = left.pop()
        if isinstance(value, dict):
            left += [(f"a key of {place}", key) for key in value]
            left += [(f"{place}[{sanitize(key, 60)!r}]", part) for key, part in value.items()]
        elif isinstance(value, list):
            left += [(f"{place}[{number}]", part) for number, part in enumerate(value)]
        elif isinstance(value, str):
            if "\0" in value:
                return f"{place} holds U+0000, which PostgreSQL rejects"
            if any("\ud800" <= character <= "\udfff" for character in value):
                return f"{place} holds half of a surrogate pair, which is no Unicode text"
        elif isinstance(value, float) and not isfinite(value):
            return f"{place} is {value}, which JSON does not have"
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            return f"{place} is a number of more than 64 bits"
    return None
