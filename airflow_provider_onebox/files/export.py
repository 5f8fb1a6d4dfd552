"""Writes the records of a listing to a file, whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_onebox.api.arguments import as_id
from airflow_provider_onebox.api.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_onebox.api.pagination import Batch
    from airflow_provider_onebox.files.records import RecordFile
    from airflow_provider_onebox.files.watermark import Watermark


def export(
    file: RecordFile, batches: Iterable[Batch], after: int | str | None, resource: str, *, keep_empty: bool = True
) -> dict[str, Any]:
    """Write the records of a listing to a file.

    :param file: the file, not yet entered.
    :param batches: the records.
    :param after: the id where the listing begins, ``None`` for the beginning.
    :param resource: what is listed, for the log.
    :param keep_empty: whether there is a file if there are no records.
    :return: ``{"path", "uri", "count", "first_id", "last_id"}``. Without records, ``first_id`` is ``None`` and
        ``last_id`` the id where the listing began.
    :raises OneboxError: if the file can't be written.
    """
    with file:
        first, last = _write(file, batches, resource)
        file.finish()
        if file.count or keep_empty:
            file.publish()
        else:
            file.remove()
    return result_of(file, file.count, first, as_id("since_id", after) if last is None else last)


def export_incremental(
    file: RecordFile, watermark: Watermark[Any], resource: str, *, keep_empty: bool = True
) -> dict[str, Any]:
    """Write what is new to a file, and move the watermark.

    :param file: the file, not yet entered.
    :param watermark: what was written before, and how to list what was not.
    :param resource: what is listed, for the log.
    :param keep_empty: whether there is a file if there are no records.
    :return: as for :func:`export`. ``last_id`` is where the range of this run ends; without records, of a run that
        selects by changes, it is ``None``.
    :raises OneboxConfigError: if the watermark does not allow it; nothing was listed then.
    :raises OneboxError: if the file can't be written, or another process has changed the watermark meanwhile.
    """
    done = watermark.begin(file)
    if done is None:
        with file:
            _write(file, watermark.batches(), resource)
            file.finish()
            watermark.prepare(file)
            file.publish()
            done = watermark.commit()
            if not (done.count or keep_empty):
                file.remove()
    elif not done.count:
        # An earlier try may have had another keep_empty, or died before it removed the file.
        export(file, (), None, resource, keep_empty=keep_empty)
    return result_of(file, done.count, done.first, done.last)


def _write(file: RecordFile, batches: Iterable[Batch], resource: str) -> tuple[int | None, int | None]:
    first = last = None
    progress = Progress(f"{resource} records")
    for batch in batches:
        if batch.rows:
            file.write(batch.rows)
            first, last = first or int(batch.rows[0]["Id"]), int(batch.rows[-1]["Id"])
        progress.add(len(batch.rows), batch.total)
    progress.finish()
    return first, last


def result_of(file: RecordFile, count: int, first: int | None, last: int | None) -> dict[str, Any]:
    """Describe a file that was written.

    :param file: the file.
    :param count: how many records it has.
    :param first: the id of the first; ``None`` without records.
    :param last: where its range ends.
    :return: the result of the task.
    """
    first_id, last_id = (None if row_id is None else str(row_id) for row_id in (first, last))
    return {"path": file.name, "uri": file.uri, "count": count, "first_id": first_id, "last_id": last_id}
