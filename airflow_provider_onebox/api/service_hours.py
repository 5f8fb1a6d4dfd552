"""The hours in which Onebox answers an account, read from its words. Imports nothing of Airflow's."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

TIMEZONE = "Asia/Jakarta"
"""The time zone of the hours that Onebox names: its home's, for it names none."""


MARGIN = 60.0
"""Seconds after the opening at which Onebox is asked again, lest a clock ahead of its own costs a whole day."""


_OPENING = re.compile(r"\b([01]?[0-9]|2[0-3]):([0-5][0-9])\s*-")


def seconds_until_opening(words: str | None, timezone: str = TIMEZONE, now: float | None = None) -> float | None:
    """Tell how long to wait until the hours begin in which Onebox answers.

    :param words: what Onebox said, as in ``time limit reached please try again tomorrow at 18:00 - 06:00``.
    :param timezone: the time zone of the hours.
    :param now: POSIX seconds; this machine's clock if ``None``.
    :return: seconds until :data:`MARGIN` after the next opening, always more than 0; ``None`` if the words name no
        hours.
    :raises KeyError: if there is no such time zone.
    """
    found = _OPENING.search(words or "")
    if not found:
        return None
    now = time.time() if now is None else now
    today = datetime.fromtimestamp(now, ZoneInfo(timezone)).replace(
        hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0
    )
    # Days are added by the wall clock and the wait is counted by the real one: they differ when clocks change.
    waits = ((today + timedelta(days=days)).timestamp() + MARGIN - now for days in (0, 1))
    return next(wait for wait in waits if wait > 0)
