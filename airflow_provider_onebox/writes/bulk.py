"""Many writes at once, with a result for each: none is made twice, and none is forgotten."""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow_provider_onebox.api.parallel import in_parallel
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, OneboxRequestError, sanitize
from airflow_provider_onebox.files.uploads import UnreadableFileError, resolve_below
from airflow_provider_onebox.writes import BEGUN, DONE, NOT_SENT, REJECTED, UNCERTAIN
from airflow_provider_onebox.writes.results import ResultsFile, RowResult, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

FILE_FIELDS = ("attachment", "file", "attachments")
"""The arguments that name files of the worker."""


def write_rows(
    rows: Iterable[Any],
    write: Callable[..., str | None],
    target: Iterable[Any],
    file: ResultsFile,
    *,
    parallelism: int | str,
    repeat_uncertain: bool,
    attachments_root: Any = None,
) -> tuple[Counter[str], str]:
    """Write each row that is not done yet, and record its result.

    An error that no row caused, such as a rejected password or a server that is down, stops the task: rows in flight
    are waited for and noted, and the error is raised.

    :param rows: dictionaries with the arguments of ``write``.
    :param write: writes one, and returns its id; in several threads.
    :param target: where and what it writes, so that the same row elsewhere is another one.
    :param file: the entered results file.
    :param parallelism: the most writes in flight, 1 to 32.
    :param repeat_uncertain: whether to send rows again that may have been written before.
    :param attachments_root: the folder whose files a row may name; ``None`` for no files.
    :return: how many rows have each result, and why the first that is not done is not.
    :raises OneboxConfigError: at once, if the parallelism is invalid.
    :raises OneboxError: if the rows can't be read, a result can't be noted, or Onebox can't be used.
    """
    stopped = threading.Event()
    signature = inspect.signature(write)
    kept = {DONE} if repeat_uncertain else {DONE, UNCERTAIN}
    where = digest(list(target))

    def left() -> Iterator[tuple[int, str, Any]]:
        equal: Counter[str] = Counter()
        for number, row in enumerate(rows):
            same = digest([where, row])
            key = file.key(same, equal[same])
            equal[same] += 1
            known = file.find(key, number)
            if known is None or known.result not in kept:
                yield number, key, row

    def write_one(item: tuple[int, str, Any]) -> None:
        number, key, row = item
        if stopped.is_set():
            return
        try:
            signature.bind(**row)
        except TypeError as error:
            message = (
                f"The row is not a dictionary with the arguments of the hook's {write.__name__} "
                f"({', '.join(signature.parameters)}): {sanitize(error)}."
            )
            file.note(RowResult(number, REJECTED, key, message=message))
            return
        try:
            row = _with_resolved_files(row, attachments_root)
            file.note(RowResult(number, BEGUN, key), sync=True)
            result = RowResult(number, DONE, key, id=write(**row))
        except OneboxError as error:
            if not (error.uncertain or _is_of_the_row(error)):
                stopped.set()
                with suppress(OneboxError):  # The first error says more.
                    file.note(RowResult(number, NOT_SENT, key))
                raise
            message = sanitize(error.server_message or error, 500)
            result = RowResult(number, UNCERTAIN if error.uncertain else REJECTED, key, message=message)
        except BaseException:
            stopped.set()
            raise
        file.note(result)

    for _ in in_parallel(write_one, left(), parallelism):
        pass
    return file.finish()


def _with_resolved_files(row: dict[str, Any], root: Any) -> dict[str, Any]:
    """Resolve the files that a row names: outsiders may have written the row, so it must not name any file."""
    return {**row, **{name: resolve_below(root, row[name]) for name in FILE_FIELDS if row.get(name)}}


def _is_of_the_row(error: OneboxError) -> bool:
    """Return whether Onebox, or this provider, rejected what the row holds, or a file that the row names."""
    is_argument = isinstance(error, OneboxConfigError) and error.status is None
    is_file = isinstance(error, UnreadableFileError)
    return is_argument or is_file or (isinstance(error, OneboxRequestError) and not error.retryable)
