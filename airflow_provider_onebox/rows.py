"""Records in: what a task is given to work on, and the threads that work on it."""

from __future__ import annotations

import ast
import gzip
import logging
import re
import time
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, sanitize
from airflow_provider_onebox.files import TABLES, storage_path
from airflow_provider_onebox.lineage import report_file
from airflow_provider_onebox.settings import MAX_CONNECTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")

PROGRESS_SECONDS = 10.0
"""Seconds between two lines of progress in the log."""

log = logging.getLogger(__name__)


def read_rows(source: Any) -> Iterator[Any]:
    """Read what a task is given, one row at a time.

    :param source: a list; the path of a JSON Lines file, gzip if it ends in ``.gz``; what ``OneboxListOperator`` has
        returned, records or ``{"path": ...}``; or what a template makes of any of these.
    :return: an iterator over the rows.
    :raises OneboxConfigError: if it is none of these, or a line is not JSON; at once for the name of a CSV or Parquet
        file.
    :raises OneboxError: if the file can't be read.
    """
    if isinstance(source, str) and source.strip()[:1] in ("[", "{"):
        source = _parse(source.strip())
    if isinstance(source, Mapping):
        source = source.get("path")
    if isinstance(source, Iterable) and not isinstance(source, (str, ObjectStoragePath)):
        return iter(source)
    if source is None or str(source).strip() in ("", "None"):
        raise OneboxConfigError(
            "No rows were handed in: the template found nothing. Pass a list, the path of a JSON Lines file, or the "
            "result of a list operator."
        )
    if str(source).endswith(TABLES):
        raise OneboxConfigError(
            f"{source} is a table, and rows are read from JSON Lines: write it as .jsonl, or read it in your own task "
            "and return a list."
        )
    return _read_lines(str(source))


def _parse(text: str) -> Any:
    """Read a list or a dictionary that a template has made text of: JSON, or Python's own form."""
    for parse in (msgspec.json.decode, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, msgspec.DecodeError, RecursionError):
            pass
    raise OneboxConfigError(
        f"The rows {sanitize(text, 60)!r} are neither JSON nor a list: set render_template_as_native_obj=True."
    )


def _read_lines(name: str) -> Iterator[Any]:
    decode = msgspec.json.Decoder().decode
    number = 0
    try:
        path = storage_path(name)
        # Not path.open(): what that gives can't be read by lines on Airflow 2.
        with path.fs.open(path.path, "rb") as raw:
            report_file(path, is_output=False)
            lines = gzip.GzipFile(fileobj=raw) if name.endswith(".gz") else raw
            for number, line in enumerate(lines, 1):  # noqa: B007 - the handlers below tell it
                if line.strip():
                    yield decode(line)
    except msgspec.DecodeError as error:
        raise OneboxConfigError(f"{name}, line {number}, is not JSON: {sanitize(error)}.") from None
    except Exception as error:
        problem = sanitize(getattr(error, "strerror", None) or error)
        raise OneboxError(f"{name} can't be read (after {number:,} lines): {problem}.", retryable=True) from error


def read_ids(source: Any) -> Iterator[str]:
    """Read the ids of records, one at a time.

    :param source: ids, or records that have an ``Id``, as for :func:`read_rows`.
    :return: an iterator over the ids.
    :raises OneboxConfigError: if a row is no id and has none.
    :raises OneboxError: if the file can't be read.
    """
    for row in read_rows(source):
        value = row.get("Id") if isinstance(row, Mapping) else row
        if not re.fullmatch("[0-9]{1,18}", str(value).strip()):
            raise OneboxConfigError(
                f"{sanitize(row, 60)!r} is not an id and has none: pass digits, or records with an 'Id'."
            )
        yield str(value).strip()


def in_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], parallelism: Any, what: str = "rows"
) -> Iterator[Result]:
    """Call a function for each item, several at a time, and give the results in the order of the items.

    No more than twice as many items as there are threads are in memory. When a call raises, those that have not begun
    are dropped and those under way are waited for; then the error is raised.

    :param function: what to call; in several threads.
    :param items: read in the caller's own thread, a few ahead.
    :param parallelism: calls under way at once, 1 to 32.
    :param what: what the items are, for the lines of progress in the log.
    :return: an iterator over the results.
    :raises OneboxConfigError: at once, if the parallelism is invalid.
    """
    if type(parallelism) is not int or not 1 <= parallelism <= MAX_CONNECTIONS:
        raise OneboxConfigError(
            f"parallelism={sanitize(parallelism)!r} is not a whole number from 1 to {MAX_CONNECTIONS}."
        )

    def results() -> Iterator[Result]:
        under_way: deque[Future[Result]] = deque()
        pool = ThreadPoolExecutor(parallelism, thread_name_prefix="onebox-row")
        count, told = 0, time.monotonic()

        def take() -> Result:
            nonlocal count, told
            result = under_way.popleft().result()
            count += 1
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                log.info("Done with %s %s so far.", f"{count:,}", what)
            return result

        try:
            for item in items:
                under_way.append(pool.submit(function, item))
                if len(under_way) == 2 * parallelism:
                    yield take()
            while under_way:
                yield take()
        finally:
            pool.shutdown(cancel_futures=True)

    return results()
