"""New records, by id: which of them a run writes.

A transaction that commits late makes an older id visible after newer ones were listed. So each run lists the last ids
before the watermark again, and writes those that no run has written. One bit for each of these ids says whether it was:
a gap that never fills costs its bit, and only while it is that close to the watermark.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from airflow_provider_onebox.api.pagination import Batch
from airflow_provider_onebox.files.watermark import Done, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

DEFAULT_OVERLAP = 1000
"""Ids before the watermark that each run lists again."""


MAX_OVERLAP = 100_000


class Ids(msgspec.Struct, omit_defaults=True):
    """Which ids were written.

    :param last: the watermark: no greater id was.
    :param width: for how many ids, up to the watermark, :attr:`seen` says whether they were written; smaller ones count
        as written.
    :param seen: a bit for each of them, in hexadecimal digits; the watermark's is the lowest.
    """

    last: int
    width: int = 0
    seen: str = "0"

    def missing(self, width: int | None = None) -> set[int]:
        """Return the ids that were not written.

        :param width: for how many ids up to the watermark; all that are known if ``None``.
        :return: the ids.
        """
        bits = f"{int(self.seen, 16):0{self.width}b}"[::-1][:width]
        return {self.last - offset for offset, bit in enumerate(bits) if bit == "0"} if self.width else set()

    def advance(self, last: int, written: Iterable[int], width: int) -> Ids:
        """Return what is known once more ids were written.

        :param last: the new watermark.
        :param written: the ids, at least those of the last so many.
        :param width: for how many ids to know whether they were written.
        :return: the new knowledge.
        """
        width = min(width, last - self.last + self.width)
        shift = last - self.last
        seen = int(self.seen, 16) << shift if shift < width else 0
        for row_id in written:
            if last - row_id < width:
                seen |= 1 << (last - row_id)
        return Ids(last, width, f"{seen & ((1 << width) - 1):x}")


class ById:
    """Writes the records with new ids, and late ones.

    :param list_after: lists the records with greater ids, no more than so many if that is not ``None``.
    :param start: the id after which the first run begins.
    :param overlap: how many ids before the watermark to list again.
    :param max_records: the most records a run writes; ``None`` for all.
    """

    kind: ClassVar[str] = "onebox_watermark"
    example: ClassVar[str] = '{"known": {"last": <id>}} to begin after that id, 0 to start from the beginning'
    repeats: ClassVar[bool] = True
    state_type: ClassVar[Any] = State[Ids]

    def __init__(
        self,
        list_after: Callable[[int, int | None], Iterable[Batch]],
        start: int = 0,
        overlap: int = DEFAULT_OVERLAP,
        max_records: int | None = None,
    ) -> None:
        self._list_after = list_after
        self._start = start
        self._overlap = overlap
        self._max_records = max_records

    def start(self) -> Ids:
        """Return what is known before the first run.

        :return: nothing beyond the id where it begins.
        """
        return Ids(self._start)

    def describe(self, known: Ids) -> str:
        """Describe what is known, for the log.

        :param known: what was written.
        :return: part of a sentence.
        """
        return f"written up to Id {known.last}"

    def batches(self, known: Ids, again: Done | None, late_elsewhere: set[int]) -> Iterator[Batch]:
        """List the records to write.

        :param known: what was written before this run; of a repeated one, what is known once it is written.
        :param again: what this run has written or prepared before.
        :param late_elsewhere: late ids that other runs have written.
        :return: an iterator over batches of records, ascending by id.
        """
        end: int | None = None
        most = self._max_records
        if again is None:
            missing = known.missing(self._overlap)
            width = min(known.width, self._overlap)
            after, begin, late = known.last, known.last - width, missing
            limit = None if most is None else most + width - len(missing)
        else:
            # Also a record that has become visible since: it belongs to the next run.
            missing = known.missing() | late_elsewhere
            after, late = again.after, set(again.late)
            end = again.last
            begin, most, limit = min([after, *(row_id - 1 for row_id in late)]), None, None
        count, first, last = 0, None, after
        late_written: list[int] = []
        recent: deque[int] = deque(maxlen=self._overlap)
        listing = self._list_after(begin, limit) if end is None or begin < end else ()
        for batch in listing:
            rows: list[dict[str, Any]] = []
            ids: list[int] = []
            for row in batch.rows:
                row_id = int(row["Id"])
                is_new = row_id > after and (end is None or (row_id <= end and row_id not in missing))
                if (is_new or row_id in late) and (most is None or count + len(rows) < most):
                    rows.append(row)
                    ids.append(row_id)
            count += len(rows)
            first = first or (ids[0] if ids else None)
            last = max([last, *ids[-1:]])
            late_written += [row_id for row_id in ids if row_id <= after]
            recent.extend(ids)
            yield Batch(rows, batch.last_id, batch.total)
            if count == most or (end is not None and batch.last_id >= end):
                break
        if again is None:
            known = known.advance(last, [*late_written, *recent], self._overlap)
            again = Done(count, first, last, after, late_written)
        self._result = msgspec.structs.replace(again, count=count, first=first), known

    def result(self) -> tuple[Done, Ids]:
        """Return what was listed.

        :return: what this run has written, and which ids were written then.
        """
        return self._result
