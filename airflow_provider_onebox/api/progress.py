"""Log lines that say how far a long task is."""

from __future__ import annotations

import logging
import time

LOG_SECONDS = 10.0
"""Seconds between two lines."""


log = logging.getLogger(__name__)


class Progress:
    """Counts what is done, and logs the count every :data:`LOG_SECONDS`.

    :param what: what is counted, such as ``ticketrz records``.
    """

    def __init__(self, what: str) -> None:
        self.count = 0
        self._what = what
        self._start = self._logged = time.monotonic()

    def add(self, count: int = 1, total: int | None = None) -> None:
        """Count some more, and log how far it is if it is time to.

        :param count: how many more are done.
        :param total: how many there will be in the end, ``None`` if that is not known.
        """
        self.count += count
        now = time.monotonic()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            of_all = "" if total is None else f" of {total:,}"
            log.info("%s%s %s so far (%.0f/s).", f"{self.count:,}", of_all, self._what, self.count / self._seconds)

    def finish(self) -> None:
        """Log how many there were, and how long they took."""
        log.info("%s %s in %.1f s.", f"{self.count:,}", self._what, self._seconds)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._start
