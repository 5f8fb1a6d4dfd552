"""Records that a task reads: rows and ids from lists, files and templates."""

from __future__ import annotations

import ast
import codecs
import csv
import gzip
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_onebox._airflow.lineage import report_file
from airflow_provider_onebox.api.arguments import parse_id
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, reason_of, sanitize
from airflow_provider_onebox.files.atomic import storage_path
from airflow_provider_onebox.files.records import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BEYOND_HEADER = "cells beyond the header"
"""The column of a CSV file that holds what a row has more than the header."""


def read_rows(source: Any, check_header: Callable[[list[str]], None] | None = None) -> Iterator[Any]:
    """Read rows, one at a time.

    :param source: a list, or a list of lists as mapped tasks return them; the path of a JSON Lines or CSV file, gzip if
        it ends in ``.gz``; the result of ``OneboxListOperator``, records or ``{"path": ...}``; or what a template makes
        of any of these.
    :param check_header: called with the header of a CSV file, before its first row.
    :return: an iterator over the rows; those of a CSV file are dictionaries of text, without the cells that are empty.
    :raises OneboxConfigError: if it is none of these, or a line is not JSON or CSV; at once for the name of a Parquet
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
            "There are no rows: the template found nothing. Pass a list, the path of a JSON Lines or CSV file, or the "
            "result of a list operator."
        )
    name = str(source).lower()
    if name.endswith(".parquet"):
        raise OneboxConfigError(
            f"{source} is Parquet, and rows are read from JSON Lines or CSV: write it as .jsonl, or read it in your "
            "own task and return a list."
        )
    return _read_file(str(source), partial(_parse_csv, check_header) if name.endswith(TABLES) else _parse_json_lines)


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


def _read_file(name: str, parse: Callable[[str, Any], Iterator[Any]]) -> Iterator[Any]:
    count = 0
    try:
        path = storage_path(name)
        # Not path.open(): on Airflow 2, its result can't be read by lines.
        with path.fs.open(path.path, "rb") as raw:
            report_file(path, is_output=False)
            for row in parse(name, gzip.GzipFile(fileobj=raw) if name.lower().endswith(".gz") else raw):
                yield row
                count += 1
    except OneboxConfigError:
        raise
    except Exception as error:
        problem = reason_of(error)
        raise OneboxError(f"{name} can't be read (after {count:,} rows): {problem}.", retryable=True) from error


def _parse_json_lines(name: str, file: Any) -> Iterator[Any]:
    decode = msgspec.json.Decoder().decode
    for number, line in enumerate(file, 1):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if text.strip():
            try:
                row = decode(text)
            except msgspec.DecodeError as error:
                raise OneboxConfigError(f"{name}, line {number}, is not JSON: {sanitize(error)}.") from None
            yield row


def _parse_csv(check_header: Callable[[list[str]], None] | None, name: str, file: Any) -> Iterator[Any]:
    text = codecs.iterdecode(file, "utf-8-sig")
    number = 0
    try:
        first = next(text, "")
        # Excel separates by semicolons where the comma is the decimal separator, as in Indonesia.
        lines = csv.reader(
            chain([first], text), delimiter=";" if ";" in first and "," not in first else ",", strict=True
        )
        header = [column.strip() for column in next(lines, [])]
        if check_header:
            check_header(header)
        for cells in lines:
            number = lines.line_num
            # Of a cell that is empty, the argument has its default.
            row: dict[str, Any] = {column: cell for column, cell in zip(header, cells, strict=False) if cell}
            more = [cell for cell in cells[len(header) :] if cell]
            if more:
                row[BEYOND_HEADER] = more
            if row:
                yield row
    except csv.Error as error:
        raise OneboxConfigError(f"{name}, after line {number}, is not CSV: {sanitize(error)}.") from None
    except UnicodeDecodeError:
        raise OneboxConfigError(f"{name} is not UTF-8: save it as UTF-8, which Excel calls CSV UTF-8.") from None


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
