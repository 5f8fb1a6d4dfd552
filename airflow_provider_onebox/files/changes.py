"""Records that are new or changed since an earlier listing, by the time of their last change.

Onebox filters by ``lastUpdate``, to the minute, and sorts by id. Why a listing misses no change and gives none twice:

1. Before it begins, the greatest ``ModifyDate`` so far is looked for. Whatever was changed before that time has been
   changed before the first page is read, so the next listing may begin at it, however long this one takes.
2. That minute is asked for again next time, because it may not have been over. Of each record in it, and of each that
   is changed while the listing runs, a fingerprint is kept: a record that comes again as it was is left out.

A record that changes twice comes in its later state. One that is deleted just does not come.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_provider_onebox.api.pagination import Batch
from airflow_provider_onebox.exceptions import OneboxConfigError, sanitize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


MINUTE = timedelta(minutes=1)


BEGINNING = datetime(1970, 1, 1)


_encode = msgspec.json.Encoder(order="sorted").encode


class Changes(msgspec.Struct, omit_defaults=True):
    """What was written of a resource whose records change.

    :param until: a ``ModifyDate``; all that was changed before its minute was written. Empty for nothing at all.
    :param seen: of each record written that was changed in that minute or later, a fingerprint by its id.
    :param count: how many records the latest run has written.
    """

    until: str = ""
    seen: dict[str, str] = {}
    count: int = 0


def list_changes(
    list_since: Callable[[datetime | None, int | None], Iterable[Batch]], known: Changes, new: Changes, resource: str
) -> Iterator[Batch]:
    """List the records that were added or changed after what is known.

    :param list_since: lists the records changed after a time, no more than so many.
    :param known: what was written before.
    :param new: takes up what is written then; whole when the iterator has ended.
    :param resource: what is listed, for messages.
    :return: an iterator over batches of records, ascending by id.
    :raises OneboxConfigError: if the server does not heed ``lastUpdate`` or a record does not tell when it was changed.
    :raises OneboxError: if a page can't be fetched.
    """
    begin, dates = _minute(known.until), [known.until]

    def has_later(minute: datetime) -> bool:
        rows = [row for batch in list_since(minute, 1) for row in batch.rows]
        dates.extend(_date(row, resource) for row in rows)
        return bool(rows)

    # The clock of this machine bounds the search and decides nothing else. No zone is more than a day off.
    tomorrow = _minute(str(datetime.now(timezone.utc).replace(tzinfo=None) + timedelta(days=1)))
    if has_later(tomorrow):
        raise OneboxConfigError(
            f"{resource}: asked for records changed after {tomorrow}, Onebox returned one changed at {dates[-1]}. If "
            'it ignores lastUpdate for this resource, incremental="changes" can\'t work: use incremental=True, which '
            "goes by id. If not, that record's date or this machine's clock is wrong."
        )
    if has_later(begin - MINUTE):
        bisect_left(range((tomorrow - begin) // MINUTE), True, key=lambda at: not has_later(begin + at * MINUTE))
    new.until = max(dates)
    floor, new_floor = known.until and str(begin), new.until and str(_minute(new.until))
    for batch in list_since(begin - MINUTE if known.until else None, None):
        rows = []
        for row in batch.rows:
            date, row_id = _date(row, resource), str(row["Id"])
            if date < floor:
                continue
            if date >= new_floor or row_id in known.seen:
                fingerprint = hashlib.blake2b(_encode(row), digest_size=6).hexdigest()
                if date >= new_floor:
                    new.seen[row_id] = fingerprint
                if known.seen.get(row_id) == fingerprint:
                    continue
            rows.append(row)
        yield Batch(rows, batch.last_id, None)


def _minute(date: str) -> datetime:
    return datetime.fromisoformat(date).replace(second=0, microsecond=0) if date else BEGINNING


def _date(row: dict[str, Any], resource: str) -> str:
    date = row.get("ModifyDate")
    with suppress(TypeError, ValueError):
        if str(datetime.fromisoformat(date)) == date:  # type: ignore[arg-type]  # what is no text raises
            return str(date)
    raise OneboxConfigError(
        f"{resource}: record {sanitize(row['Id'])} has the ModifyDate {sanitize(date)!r}, not a time such as "
        "'2026-11-24 08:30:00', so its last change is unknown. Use incremental=True, which goes by id."
    )
