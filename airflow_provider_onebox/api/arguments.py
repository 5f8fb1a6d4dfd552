"""Ids, whole numbers and times, as arguments, records and responses hold them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow_provider_onebox.exceptions import OneboxConfigError, sanitize

MAX_ID = 2**64 - 1
"""The greatest id: that of a database's largest whole number, 20 digits."""

UNDATED = ("contactrz", "prospectrz")
"""Resources whose records have no dates."""


def parse_id(value: Any) -> int | None:
    """Read an id.

    :param value: ASCII digits as text, or an integer.
    :return: the id; ``None`` for anything else: ``1.9``, ``True``, ``1_000``, other alphabets' digits, or more than
        :data:`MAX_ID`.
    """
    text = str(value) if type(value) is int else value
    if type(text) is not str or not (text.isascii() and text.isdigit()) or len(text) > 20:
        return None
    number = int(text)
    return number if number <= MAX_ID else None


def as_id(name: str, value: Any) -> int:
    """Read an id that a template may have rendered.

    :param name: the argument, for the message.
    :param value: digits, a number, or ``None`` for the beginning.
    :return: the id; 0 for the beginning.
    :raises OneboxConfigError: if it is not an id.
    """
    if value is None:
        return 0
    number = parse_id(value.strip() if isinstance(value, str) else value)
    if number is None:
        raise OneboxConfigError(f"{name}={sanitize(value, 60)!r} is not an id: pass up to 20 digits, such as '12250'.")
    return number


def as_list(value: Any) -> list[Any] | None:
    """Read a list in a response. PHP writes a list with gaps as an object whose keys are digits.

    :param value: a list, or an object such as ``{"0": "a", "2": "b"}``.
    :return: the list; ``None`` for anything else.
    """
    if isinstance(value, dict) and all(parse_id(key) is not None for key in value):
        return list(value.values())
    return value if isinstance(value, list) else None


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Read a whole number that a template may have rendered.

    :param name: the argument, for the message.
    :param value: an integer, or digits as text.
    :param least: the least that it may be.
    :param most: the most that it may be; ``None`` for any.
    :return: the number.
    :raises OneboxConfigError: if it is not a whole number within the bounds.
    """
    number = parse_id(value.strip() if isinstance(value, str) else value)
    if number is None or not least <= number <= (number if most is None else most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise OneboxConfigError(f"{name}={sanitize(value, 60)!r} is not a whole number {bounds}.")
    return number


def parse_time(name: str, value: datetime | str | None) -> datetime | None:
    """Read a time that a template may have rendered.

    :param name: the argument, for the message.
    :param value: a ``datetime``, or text such as ``2026-11-24 08:30`` or ``2026-11-24T01:30:00+00:00``.
    :return: the time, with its zone if it has one; ``None`` for ``None``.
    :raises OneboxConfigError: if it is not a time.
    """
    if value is None or isinstance(value, datetime):
        return value
    try:
        # Before Python 3.11, fromisoformat does not know Z.
        return datetime.fromisoformat(str(value).strip().replace("Z", "+00:00"))
    except ValueError:
        raise OneboxConfigError(
            f"{name}={sanitize(value)!r} is not a time: write it like '2026-11-24 08:30'."
        ) from None


def format_time(moment: datetime | None) -> str | None:
    """Write a time as Onebox reads it, which is to the minute.

    :param moment: a time, usually in Onebox's own zone and without saying so, or ``None``.
    :return: ``YYYY-MM-DD HH:MM``, followed by the offset if there is one, or ``None`` for ``None``.
    """
    return None if moment is None else moment.isoformat(" ", "minutes")
