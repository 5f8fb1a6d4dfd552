"""A file of records: JSON Lines, CSV or Parquet."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_provider_onebox._airflow.lineage import report_file
from airflow_provider_onebox.exceptions import OneboxConfigError, sanitize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self
from airflow_provider_onebox.files.atomic import AtomicFile, _digest

GZIP_LEVEL = 6


TABLES = (".csv", ".csv.gz", ".parquet")
"""Suffixes of files with columns; every other file is JSON Lines."""


ROW_GROUP_BYTES = 16 * 1024 * 1024
"""The most bytes in a row group of a Parquet file, before compression; a single record can be larger."""


log = logging.getLogger(__name__)


class RecordFile(AtomicFile):
    """A whole file of records.

    :param path: the target, as for ``ObjectStoragePath``: CSV if it ends in ``.csv`` or ``.csv.gz``, Parquet if in
        ``.parquet``, else JSON Lines; gzip if it ends in ``.gz``.
    :param argument: what the path is called where the user has given it.
    :param fields: the fields to write, as for :func:`project`; CSV and Parquet need them.
    :raises OneboxConfigError: if it can't be a file's path, or this Airflow can't reach it; if the fields are missing
        or none, or pyarrow is not installed.
    """

    def __init__(self, path: Any, argument: str = "output_path", fields: Sequence[str] | None = None) -> None:
        super().__init__(path, argument)
        self.count = 0
        self._fields = check_fields(fields)
        self._absent = list(self._fields or ())
        self._make_form: type[_JsonLines | _Parquet] = _JsonLines
        if self.path.name.endswith(".parquet.gz"):
            raise OneboxConfigError(f"{argument}={self.name!r}: Parquet is compressed in itself, leave .gz out.")
        if self.path.name.endswith(TABLES):
            self._make_form = _Csv
            if not self._fields:
                raise OneboxConfigError(
                    f"{argument}={self.name!r} is a table and needs columns: name them in fields=[...], or, where "
                    "there is no such argument, write .jsonl."
                )
        if self.path.name.endswith(".parquet"):
            self._make_form = _Parquet
            try:
                import pyarrow.parquet  # noqa: F401 - found missing before anything is listed
            except ImportError as error:
                raise OneboxConfigError(
                    f"{argument}={self.name!r} needs pyarrow ({sanitize(error)}): "
                    "pip install 'airflow-provider-onebox[parquet]'"
                ) from None

    def __enter__(self) -> Self:
        """Remove what others have left, and open the temporary file.

        :return: the file itself.
        :raises OneboxError: if the folder can't be written to.
        """
        super().__enter__()
        is_gzip = self.path.name.endswith(".gz")
        # No name and no time in the header: the same records give the same bytes.
        self._file: Any = gzip.GzipFile("", "wb", GZIP_LEVEL, self._raw, mtime=0) if is_gzip else self._raw
        self._form = self._make_form(self._file, self._fields or [])
        return self

    def write(self, records: list[dict[str, Any]]) -> None:
        """Append records.

        :param records: one line or row each.
        :raises OneboxError: if there is no room for them.
        """
        with self._explain():
            self._form.write(project(records, self._fields))
        self.count += len(records)
        self._absent = [name for name in self._absent if not any(name in record for record in records)]

    def finish(self) -> None:
        """Write out what is buffered, and tell the log of fields that no record has. The target is still as it was.

        :raises OneboxError: if there is no room for it.
        """
        if self.count and self._absent:
            log.warning("No record has %s: null in every row of %s.", ", ".join(self._absent), self.name)
        with self._explain():
            self._form.close()
            if self._file is not self._raw:
                self._file.close()
        super().finish()

    def digest(self) -> str:
        """Read the finished file.

        :return: its digest, to recognise it by later.
        """
        with self._explain(), self._temporary.open("rb") as file:
            return _digest(file)

    def publish(self) -> None:
        """Make the finished file the target.

        :raises OneboxError: if that fails.
        """
        super().publish()
        report_file(self.path, is_output=True, count=self.count)

    def __exit__(self, *_: object) -> None:
        """Remove the temporary file, if it has not become the target."""
        self._form.abandon()
        with suppress(OSError):
            self._file.close()
        super().__exit__()

    @property
    def _progress(self) -> str:
        return f"after {self.count:,} records; "


class _JsonLines:
    def __init__(self, file: Any, _: list[str]) -> None:
        self._file = file
        self._encode = msgspec.json.Encoder().encode_lines

    def write(self, records: list[dict[str, Any]]) -> None:
        self._file.write(self._encode(records))

    def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class _Csv(_JsonLines):
    def __init__(self, file: Any, fields: list[str]) -> None:
        super().__init__(file, fields)
        self._header: list[dict[str, Any]] = [{name: name for name in fields}]

    def write(self, records: list[dict[str, Any]]) -> None:
        # Not the csv module: only from Python 3.12 on it can tell None and "" apart.
        records, self._header = self._header + records, []
        lines = (",".join(map(_cell, record.values())) or '""' for record in records)
        self._file.write("".join(f"{line}\n" for line in lines).encode())

    def close(self) -> None:
        self.write([])


class _Parquet:
    def __init__(self, file: Any, fields: list[str]) -> None:
        import pyarrow.parquet

        self._arrow = pyarrow
        self._schema = pyarrow.schema([(name, pyarrow.string()) for name in fields])
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)
        self._batches: list[Any] = []
        self._size = 0

    def write(self, records: list[dict[str, Any]]) -> None:
        rows = [{name: as_text(value) for name, value in record.items()} for record in records]
        self._add(self._arrow.RecordBatch.from_pylist(rows, self._schema))

    def _add(self, batch: Any) -> None:
        if batch.nbytes > ROW_GROUP_BYTES and len(batch) > 1:
            self._add(batch[: len(batch) // 2])
            self._add(batch[len(batch) // 2 :])
            return
        if self._size + batch.nbytes > ROW_GROUP_BYTES:
            self._flush()
        self._batches.append(batch)
        self._size += batch.nbytes

    def _flush(self) -> None:
        if self._batches:  # Else it would be a row group without rows.
            self._writer.write_table(self._arrow.Table.from_batches(self._batches, self._schema))
        self._batches, self._size = [], 0

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        # Else it would be closed by the garbage collector, on a file that is closed by then.
        self._writer.is_open = False


def as_text(value: Any) -> str | None:
    """Write a value as the text that a column of text holds.

    :param value: a value of a record.
    :return: text as it is, ``None`` for null, and JSON for anything else.
    """
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()


def _cell(value: Any) -> str:
    text = as_text(value)
    return "" if text is None else '"' + text.replace('"', '""') + '"'


def check_fields(fields: Any) -> list[str] | None:
    """See that the names of fields can be columns.

    :param fields: the names, or ``None`` for all fields there are.
    :return: the same.
    :raises OneboxConfigError: if it is no list of different names.
    """
    if fields is None:
        return None
    names = list(fields) if isinstance(fields, Iterable) and not isinstance(fields, str) else []
    if not names or not all(isinstance(name, str) and name.strip() for name in names) or len({*names}) < len(names):
        raise OneboxConfigError(
            f"fields={sanitize(fields, 60)!r} is not a list of different names: pass, for example, ['Id', 'Subject']. "
            "A template that makes the whole list needs render_template_as_native_obj."
        )
    return names


def project(records: list[dict[str, Any]], fields: list[str] | None) -> list[dict[str, Any]]:
    """Take the wanted fields out of records.

    :param records: the records.
    :param fields: the names, in order; ``None`` for the records as they are.
    :return: records with these fields only; one that a record does not have is ``None``.
    """
    if fields is None:
        return records
    return [{name: record.get(name) for name in fields} for record in records]
