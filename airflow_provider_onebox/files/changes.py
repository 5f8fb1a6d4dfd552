"""New and changed records, by the time of their last change: which of them a run writes.

Onebox filters by ``lastUpdate``, to the minute, and sorts by id. Why no change is missed and none is written twice:

1. Before a run lists, it finds the latest minute after which more than :data:`STRAYS` records were changed. That minute
   is over, so whatever was changed before it is listed by this run, however long it takes, and the next one goes on
   from it.
2. The next run asks for the minutes before it again, because the minute may not have been complete, and because a
   transaction that commits late shows an older time. Of each record that will be listed again then, the watermark
   keeps a fingerprint. A record that is listed again unchanged is left out; one without a fingerprint is written,
   whatever its time.
3. Times that mean nothing (null, ``0000-00-00``, ``3000-01-01``, or a clock that is wrong) don't move the watermark, so
   they hide no other record's change. A record with such a time is written when its fingerprint is new.

A record that changes twice between two runs is written once, in its later state. A deleted record is not listed.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from airflow_provider_onebox.api.pagination import Batch
from airflow_provider_onebox.exceptions import OneboxConfigError, sanitize
from airflow_provider_onebox.files.watermark import Done, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


DEFAULT_OVERLAP = 10
"""Minutes before the watermark that each run lists again."""


MAX_OVERLAP = 7 * 24 * 60


STRAYS = 10
"""Records with a time ahead of Onebox's clock that are tolerated within the day by which zones can differ."""


MAX_SEEN = 200_000
"""The most fingerprints that a watermark holds: about 6 MB."""


MINUTE = timedelta(minutes=1)


BEGINNING = datetime(1970, 1, 1)


_encode = msgspec.json.Encoder(order="sorted").encode


class Changes(msgspec.Struct, omit_defaults=True):
    """What was written of a resource whose records change.

    :param begin: nothing that was changed before this time is wanted; empty for everything.
    :param until: all that was changed before this time was listed; empty if nothing was.
    :param floor: the time from which on the next run lists; empty for everything.
    :param seen: of each record that the next run will list again, a fingerprint by its id.
    """

    begin: str = ""
    until: str = ""
    floor: str = ""
    seen: dict[str, str] = {}


class ByChanges:
    """Writes the records that were added or changed.

    :param list_since: lists the records changed after a time, no more than so many.
    :param resource: what is listed, for messages.
    :param begin: the time from which on the first run lists, ``YYYY-MM-DD HH:MM:SS``; empty for everything.
    :param overlap: how many minutes before the watermark to list again.
    """

    kind: ClassVar[str] = "onebox_changes"
    example: ClassVar[str] = '{"known": {"begin": "2026-11-24 08:30:00"}} to begin at such a time'
    repeats: ClassVar[bool] = False
    state_type: ClassVar[Any] = State[Changes]

    def __init__(
        self,
        list_since: Callable[[datetime | None, int | None], Iterable[Batch]],
        resource: str,
        begin: str = "",
        overlap: int = DEFAULT_OVERLAP,
    ) -> None:
        self._list_since = list_since
        self._resource = resource
        self._begin = begin
        self._overlap = overlap

    def start(self) -> Changes:
        """Return what is known before the first run.

        :return: nothing, but the time where it begins.
        """
        return Changes(self._begin)

    def describe(self, known: Changes) -> str:
        """Describe what is known, for the log.

        :param known: what was written.
        :return: part of a sentence.
        """
        if known.until:
            return f"everything changed before {known.until} was written"
        return f"nothing was written yet; this run lists all changes{f' since {known.begin}' if known.begin else ''}"

    def batches(self, known: Changes, again: Done | None, late_elsewhere: set[int]) -> Iterator[Batch]:  # noqa: ARG002
        """List the records to write.

        :param known: what was written before this run.
        :param again: always ``None``: changes can't be listed again as they were.
        :param late_elsewhere: always empty.
        :return: an iterator over batches of records, ascending by id.
        :raises OneboxConfigError: if the server ignores ``lastUpdate``, or a record has no ``ModifyDate``.
        """
        # This machine's clock bounds the search and decides nothing else. No zone is a day ahead of UTC.
        tomorrow = _minute(str(datetime.now(timezone.utc).replace(tzinfo=None) + timedelta(days=1)))
        always = self._always_listed(tomorrow)
        until = self._find_until(known, tomorrow, len(always))
        asked = _floor(known, known.until, self._overlap)
        floor = _floor(known, until, self._overlap)
        first = last = None
        count = 0
        seen: dict[str, str] = {}
        # A server that leaves out what was changed in the very minute that it is asked for.
        after = _minute(asked) - (MINUTE if asked == known.begin else timedelta()) if asked else None
        for batch in self._list_since(after, None):
            rows = []
            for row in batch.rows:
                date, row_id = self._date(row), str(row["Id"])
                if date and date < known.begin:
                    continue
                # By its time, or because the filter does not apply to it.
                is_listed_again = date >= floor or date < asked or row_id in always
                if is_listed_again or row_id in known.seen:
                    fingerprint = hashlib.blake2b(_encode(row), digest_size=6).hexdigest()
                    if is_listed_again:
                        seen[row_id] = fingerprint
                    if known.seen.get(row_id) == fingerprint:
                        continue
                rows.append(row)
            if len(seen) > MAX_SEEN:
                raise OneboxConfigError(
                    f"{self._resource}: more than {MAX_SEEN:,} records would be listed again by the next run, and the "
                    f"watermark would have to know each. Lower overlap={self._overlap}, or list them without "
                    "incremental."
                )
            if rows:
                count, first, last = count + len(rows), first or int(rows[0]["Id"]), int(rows[-1]["Id"])
            yield Batch(rows, batch.last_id, batch.total)
        self._result = Done(count, first, last), Changes(known.begin, until, floor, seen)

    def result(self) -> tuple[Done, Changes]:
        """Return what was listed.

        :return: what this run has written, and what is known then.
        """
        return self._result

    def _always_listed(self, tomorrow: datetime) -> set[str]:
        """Return the ids that are listed whatever time is asked for."""
        ids = set()
        for batch in self._list_since(tomorrow, None):
            for row in batch.rows:
                date = self._date(row)
                if date and date <= str(tomorrow):
                    raise OneboxConfigError(
                        f"{self._resource}: asked for records changed after {tomorrow}, Onebox returned one changed at "
                        f'{date}. If it ignores lastUpdate for this resource, incremental="changes" can\'t work: use '
                        "incremental=True, which selects by id. If not, this machine's clock is wrong."
                    )
                ids.add(str(row["Id"]))
        return ids

    def _find_until(self, known: Changes, tomorrow: datetime, always: int) -> str:
        """Find the latest minute after which more records were changed than could be strays."""
        enough = STRAYS + 1
        low, high = _minute(known.until), tomorrow

        def is_before(minute: datetime) -> bool:
            most = enough + always
            return sum(len(batch.rows) for batch in self._list_since(minute, most)) >= most

        if not is_before(low):
            return known.until
        while high - low > MINUTE:
            middle = low + (high - low) // MINUTE // 2 * MINUTE
            if is_before(middle):
                low = middle
            else:
                high = middle
        return str(low)

    def _date(self, row: dict[str, Any]) -> str:
        if "ModifyDate" not in row:
            raise OneboxConfigError(
                f"{self._resource}: record {sanitize(row['Id'])} has no ModifyDate, so its last change is unknown. Use "
                "incremental=True, which selects by id."
            )
        # As text, in whichever form, times compare well enough. A database's zero time is none.
        date = str(row["ModifyDate"] or "")
        return "" if date.startswith("0000") else date


def _floor(known: Changes, until: str, overlap: int) -> str:
    """Return the time from which on to list, if all before another time is known; empty for everything."""
    begin = max(known.begin, known.floor)
    if not until:
        return begin
    return max(begin, str(_minute(until) - overlap * MINUTE - MINUTE))


def _minute(date: str) -> datetime:
    return datetime.fromisoformat(date).replace(second=0, microsecond=0) if date else BEGINNING
