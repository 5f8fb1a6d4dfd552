"""Records that a task reads: rows and ids from lists, files and templates."""

from __future__ import annotations

import ast
import gzip
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_onebox._airflow.lineage import report_file
from airflow_provider_onebox.api.arguments import parse_id
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, reason_of, sanitize
from airflow_provider_onebox.files.atomic import storage_path
from airflow_provider_onebox.files.records import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator


def read_rows(source: Any) -> Iterator[Any]:
    """Read rows, one at a time.

    :param source: a list, or a list of lists as mapped tasks return them; the path of a JSON Lines file, gzip if it
        ends in ``.gz``; the result of ``OneboxListOperator``, records or ``{"path": ...}``; or what a template makes of
        any of these.
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
        return _flat(source)
    if source is None or str(source).strip() in ("", "None"):
        raise OneboxConfigError(
            "There are no rows: the template found nothing. Pass a list, the path of a JSON Lines file, or the result "
            "of a list operator."
        )
    if str(source).lower().endswith(TABLES):
        raise OneboxConfigError(
            f"{source} is a table, and rows are read from JSON Lines: write it as .jsonl, or read it in your own task "
            "and return a list."
        )
    return _read_lines(str(source))


def _flat(rows: Iterable[Any]) -> Iterator[Any]:
    """Flatten the lists of mapped tasks, ``[[...], [...]]``."""
    for row in rows:
        if isinstance(row, (list, tuple)):
            yield from row
        else:
            yield row


def _parse(text: str) -> Any:
    """Read a list or a dictionary that a template turned into text: JSON, or Python's own form."""
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
        # Not path.open(): on Airflow 2, its result can't be read by lines.
        with path.fs.open(path.path, "rb") as raw:
            report_file(path, is_output=False)
            lines = gzip.GzipFile(fileobj=raw) if name.lower().endswith(".gz") else raw
            for number, line in enumerate(lines, 1):  # noqa: B007 - for the handlers below
                if line.strip():
                    yield decode(line)
    except msgspec.DecodeError as error:
        raise OneboxConfigError(f"{name}, line {number}, is not JSON: {sanitize(error)}.") from None
    except Exception as error:
        problem = reason_of(error)
        raise OneboxError(f"{name} can't be read (after {number:,} lines): {problem}.", retryable=True) from error


def read_ids(source: Any) -> Iterator[str]:
    """Read the ids of records, one at a time.

    :param source: ids, or records that have an ``Id``: one of them, or several as for :func:`read_rows`.
    :return: an iterator over the ids.
    :raises OneboxConfigError: if a row is no id and has none.
    :raises OneboxError: if the file can't be read.
    """
    for row in [source] if _id_of(source) is not None else read_rows(source):
        number = _id_of(row)
        if number is None:
            raise OneboxConfigError(
                f"{sanitize(row, 60)!r} is not an id and has none: pass digits, or records with an 'Id'."
            )
        yield str(number)


def _id_of(row: Any) -> int | None:
    value = row.get("Id") if isinstance(row, Mapping) else row
    return parse_id(value.strip() if isinstance(value, str) else value)
