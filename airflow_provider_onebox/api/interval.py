"""Intervals of time: which records of a list were created in one."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any

from airflow_provider_onebox.api.arguments import UNDATED
from airflow_provider_onebox.exceptions import OneboxConfigError, sanitize

log = logging.getLogger(__name__)


class Interval:
    """Selects the records that were created in a half-open interval: ``since <= CreateDate < until``.

    Onebox reads ``since`` to the minute, without saying whether it includes that minute, and has no end of a range. So
    it is asked for a little more, and each record's own date decides.

    :param resource: what is listed.
    :param since: where the interval begins, in Onebox's own zone; ``None`` for everything before ``until``.
    :param until: where it ends; ``None`` for never.
    :param zone: Onebox's own zone, if it is known.
    :raises OneboxConfigError: if the interval is empty, or the resource's records have no dates.
    """

    def __init__(self, resource: str, since: datetime | None, until: datetime | None, zone: tzinfo | None) -> None:
        self._resource, self._since, self._until, self._zone = resource, since, until, zone
        self._earlier = self._later = self._undated = self._kept = 0
        self._first_undated: tuple[Any, Any] | None = None
        if until and str(resource).lower() in UNDATED:
            raise OneboxConfigError(f"until can't be applied to {resource}, whose records have no dates.")
        self._start = self._instant(since) if since else None
        self._end = self._instant(until) if until else None
        if self._start and self._end and self._start >= self._end:
            raise OneboxConfigError(
                f"The interval from since={since} until={until} (in Onebox's zone) is empty. On Airflow 3, runs of a "
                "cron schedule such as '@daily' have empty intervals: use "
                "schedule=CronDataIntervalTimetable('@daily', timezone='UTC')."
            )

    def _instant(self, moment: datetime) -> datetime:
        # Clocks that are set back repeat an hour. Each date in it counts as the first, so it is in one interval.
        if self._zone is None:
            return moment
        return (moment if moment.tzinfo else moment.replace(tzinfo=self._zone)).astimezone(timezone.utc)

    @property
    def asked(self) -> datetime | None:
        """The time to ask Onebox for, so that it leaves out no record of the interval."""
        return self._since and max(self._since, datetime(1, 1, 2)) - timedelta(minutes=1)

    @property
    def left_out(self) -> int:
        """How many records were left out so far."""
        return self._earlier + self._later + self._undated

    def select(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Select the records of the interval.

        :param rows: records as they were listed.
        :return: those created in it. Without ``until``, records without a date are kept, as Onebox has selected them.
        :raises OneboxConfigError: if ``until`` can't be applied, because a record has no ``CreateDate``.
        """
        selected = []
        for row in rows:
            created = self._created(row)
            if created is None:
                if self._until:
                    self._undated += 1
                    self._first_undated = self._first_undated or (row["Id"], row["CreateDate"])
                    continue
            elif self._start and created < self._start:
                self._earlier += 1
                continue
            elif self._end and created >= self._end:
                self._later += 1
                continue
            selected.append(row)
        self._kept += len(selected)
        return selected

    def _created(self, row: dict[str, Any]) -> datetime | None:
        try:
            return self._instant(datetime.fromisoformat(row["CreateDate"]))
        except (TypeError, ValueError, OverflowError):  # null, 0000-00-00 and the like
            return None
        except KeyError:
            if self._until is None:
                return None
            raise OneboxConfigError(
                f"{self._resource}: record {sanitize(row['Id'])} has no CreateDate, so until can't be applied."
            ) from None

    def report(self) -> None:
        """Log how many records were read, and how many of them were left out."""
        if self._first_undated:
            log.warning(
                "Left out %s %s records whose CreateDate is not a time, the first with Id %s: %r.",
                f"{self._undated:,}",
                self._resource,
                *map(sanitize, self._first_undated),
            )
        if self._until or self.left_out:
            log.info(
                "Of %s %s records read, %s were created in the interval from %s until %s; left out: %s earlier, "
                "%s later.",
                f"{self._kept + self.left_out:,}",
                self._resource,
                f"{self._kept:,}",
                self._since or "the beginning",
                self._until or "now",
                f"{self._earlier:,}",
                f"{self._later:,}",
            )
