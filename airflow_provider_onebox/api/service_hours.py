"""The service hours that Onebox names when it rejects a call outside them. Imports nothing of Airflow's."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

TIMEZONE = "Asia/Jakarta"
"""The time zone of the service hours: that of Onebox's home, because its messages name none."""


MARGIN = 60.0
"""Seconds to wait after service hours begin, because a clock ahead of Onebox's would otherwise cost a whole day."""


_OPENING = re.compile(r"\b([01]?[0-9]|2[0-3]):([0-5][0-9])\s*-")


def seconds_until_opening(message: str | None, timezone: str = TIMEZONE, now: float | None = None) -> float | None:
    """Compute how long to wait until service hours begin.

    :param message: Onebox's message, such as ``time limit reached please try again tomorrow at 18:00 - 06:00``.
    :param timezone: the time zone of the service hours.
    :param now: Unix time in seconds; this machine's clock if ``None``.
    :return: seconds until :data:`MARGIN` after they next begin, always more than 0; ``None`` if the message names no
        hours.
    :raises KeyError: if there is no such time zone.
    """
    found = _OPENING.search(message or "")
    if not found:
        return None
    now = time.time() if now is None else now
    today = datetime.fromtimestamp(now, ZoneInfo(timezone)).replace(
        hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0
    )
    # Days are added in local time and the wait is computed in real time: they differ when the clocks change.
    waits = ((today + timedelta(days=days)).timestamp() + MARGIN - now for days in (0, 1))
    return next(wait for wait in waits if wait > 0)
