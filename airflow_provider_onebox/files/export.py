"""Records into a file, whole or not at all."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from airflow_provider_onebox.files.watermark import result_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from airflow_provider_onebox.api.pagination import Batch
    from airflow_provider_onebox.files.records import RecordFile
    from airflow_provider_onebox.files.watermark import Watermark

PROGRESS_SECONDS = 10.0
"""Seconds between two lines of progress in the log."""


log = logging.getLogger(__name__)


def export(
    file: RecordFile,
    listing: Callable[[int, int | None], Iterable[Batch]],
    after: int,
    watermark: Watermark | None = None,
) -> dict[str, Any]:
    """Write the records of a listing to a file.

    :param file: the file, not yet entered.
    :param listing: lists the records with greater ids than its first argument, up to the second or, if that is
        ``None``, as many as it likes; more do no harm.
    :param after: where to begin; in an incremental export, where the first run begins.
    :param watermark: what makes the export incremental.
    :return: ``{"path", "count", "first_id", "last_id"}``. Without records, ``first_id`` is ``None`` and ``last_id``
        the id where the listing began, ``None`` if it goes by changes.
    :raises OneboxConfigError: if the watermark does not allow it; nothing was listed then.
    :raises OneboxError: if the file can't be written, or another process has changed the watermark meanwhile.
    """
    upto = None
    if watermark:
        after, upto = watermark.begin(after, file)
        if watermark.kept:
            return watermark.kept
    first, last = None, after
    with file:
        for batch in listing(after, upto):
            rows = batch.rows
            if upto is not None and batch.last_id > upto:
                rows = [row for row in rows if int(row["Id"]) <= upto]
            if rows:
                file.write(rows)
                first = first or int(rows[0]["Id"])
                last = int(rows[-1]["Id"])
            if len(rows) < len(batch.rows):
                break
        file.finish()
        last = last if upto is None else upto
        if watermark:
            watermark.prepare(file, (first or last) if watermark.changes else after, last)
        file.publish()
        if watermark:
            watermark.commit()
    return result_of(file, file.count, first, None if watermark and watermark.changes and not file.count else last)


def with_progress(batches: Iterable[Batch], resource: str) -> Iterator[Batch]:
    """Pass batches through and tell the log how far they are, at a pace that can be read.

    :param batches: where they come from.
    :param resource: what is listed, for the log.
    :return: the same batches.
    """
    start = told = time.monotonic()
    count = 0
    for batch in batches:
        count += len(batch.rows)
        now = time.monotonic()
        if now - told >= PROGRESS_SECONDS:
            told = now
            total = "an unknown number of" if batch.total is None else f"{batch.total:,}"
            rate = f"{count / (now - start):,.0f}"
            log.info("Listed %s of %s %s records (%s/s).", f"{count:,}", total, resource, rate)
        yield batch
    seconds = time.monotonic() - start
    log.info("Listed %s %s records in %.1f s.", f"{count:,}", resource, seconds)
