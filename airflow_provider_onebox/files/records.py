"""A file of records: JSON Lines, CSV or Parquet."""

from __future__ import annotations

import gzip
import io
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_provider_onebox.exceptions import OneboxConfigError, sanitize
from airflow_provider_onebox.files.atomic import AtomicFile, digest_of
from airflow_provider_onebox.files.columns import Columns, as_text, check_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from zoneinfo import ZoneInfo

    from typing_extensions import Self

GZIP_LEVEL = 6


TABLES = (".csv", ".csv.gz", ".parquet")
"""Suffixes of files with columns, in lower case; every other file is JSON Lines."""


OTHER_FORMATS = (
    *("7z", "arrow", "avro", "br", "bz2", "feather", "html", "lz4", "lzma", "ods", "orc", "sqlite", "sz", "tab", "tar"),
    *("tgz", "tsv", "xls", "xlsx", "xml", "xz", "yaml", "yml", "z", "zip", "zst", "zstd"),
)
"""Suffixes that readers take for formats which this package does not write."""


ROW_GROUP_BYTES = 16 * 1024 * 1024
"""The most bytes in a row group of a Parquet file, before compression; a single record can be larger."""


MAX_NAMES = 1000
"""The most characters of the names of fields that the log shows."""


_encode_lines = msgspec.json.Encoder().encode_lines


log = logging.getLogger(__name__)


class RecordFile(AtomicFile):
    """A whole file of records.

    :param path: the target, as for ``ObjectStoragePath``: CSV if it ends in ``.csv`` or ``.csv.gz``, Parquet if it ends
        in ``.parquet``, otherwise JSON Lines; gzip if it ends in ``.gz``. Upper and lower case are the same.
    :param argument: the name of the argument that has the path, for messages.
    :param fields: the fields to write, in this order; CSV and Parquet need them. For Parquet, they can have types, as
        for :func:`.columns.check_fields`.
    :param ti: the task instance that writes the file; ``None`` to claim nothing.
    :param keep_nul: whether text keeps U+0000, which PostgreSQL rejects in text and in jsonb.
    :param zone: Onebox's own zone, as for :class:`.columns.Columns`.
    :param on_misfit: what happens to a value that is not of its field's type, as for :class:`.columns.Columns`.
    :raises OneboxConfigError: if it can't be a file's path, or this Airflow can't reach it; if its suffix is that of
        another format; if the fields are missing or invalid, or pyarrow is not installed.
    """

    def __init__(
        self,
        path: Any,
        argument: str = "output_path",
        fields: Sequence[str] | Mapping[str, str] | None = None,
        *,
        ti: Any = None,
        keep_nul: bool = False,
        zone: ZoneInfo | None = None,
        on_misfit: str = "fail",
    ) -> None:
        super().__init__(path, argument, ti)
        self.count = 0
        self._columns: Columns | None = None
        self._keep_nul = keep_nul
        self._with_nul = 0
        self._first_with_nul: Any = None
        self._present: set[str] = set()
        self._make_form: Callable[[Any, Any], _JsonLines | _Parquet] = _JsonLines
        name = self.path.name.lower()
        self._fields = check_fields(fields, can_have_types=name.endswith(".parquet"))
        self._absent = list(self._fields or ())
        self._is_gzip = name.endswith(".gz")
        _, dot, suffix = name.removesuffix(".gz").rpartition(".")
        if dot and suffix in OTHER_FORMATS:
            raise OneboxConfigError(
                f"{argument}={self.name!r}: .{suffix} is not a format that is written here: use .jsonl, .csv or "
                ".parquet; the first two can be followed by .gz."
            )
        if name.endswith(".parquet.gz"):
            raise OneboxConfigError(f"{argument}={self.name!r}: Parquet is compressed in itself, leave .gz out.")
        if name.endswith(TABLES):
            self._make_form = _Csv
            if not self._fields:
                raise OneboxConfigError(
                    f"{argument}={self.name!r} is a table and needs columns: name them in fields=[...], or, where "
                    "there is no such argument, write .jsonl."
                )
        if name.endswith(".parquet"):
            try:
                import pyarrow.parquet  # noqa: F401 - found missing before anything is listed
            except ImportError as error:
                raise OneboxConfigError(
                    f"{argument}={self.name!r} needs pyarrow ({sanitize(error)}): "
                    "pip install 'airflow-provider-onebox[parquet]'"
                ) from None
            self._make_form, self._columns = _Parquet, Columns(self._fields or {}, zone, on_misfit)

    def __enter__(self) -> Self:
        """Claim the target, remove what dead processes left, and open the temporary file.

        :return: the file itself.
        :raises OneboxConfigError: if another task of the same run writes, or has written, the target.
        :raises OneboxError: if another task is writing the target, or it can't be written to.
        """
        super().__enter__()
        # No name and no time in the header: the same records give the same bytes.
        self._file: Any = gzip.GzipFile("", "wb", GZIP_LEVEL, self._raw, mtime=0) if self._is_gzip else self._raw
        self._form = self._make_form(self._file, self._columns or self._fields)
        return self

    def write(self, records: list[dict[str, Any]]) -> None:
        """Append records.

        :param records: one line or row each.
        :raises OneboxError: if there is no room for them.
        """
        # Columns pick their fields themselves.
        rows = records if self._columns else project(records, self._fields)
        lines = b"" if self._keep_nul else _encode_lines(rows)
        rows, found = remove_nul(rows, lines)
        if found and self._columns:  # Perhaps in other fields.
            rows = project(records, ["Id", *self._columns.names])
            rows, found = remove_nul(rows, _encode_lines(rows))
        if found:
            lines = b""
            if not self._with_nul:
                self._first_with_nul = records[found[0]].get("Id")
            self._with_nul += len(found)
        with self._explain():
            self._form.write(rows, lines)
        self.count += len(records)
        if self._absent:
            self._present.update(*records)
            self._absent = [name for name in self._absent if name not in self._present]

    def finish(self) -> None:
        """Write out what is buffered, and log fields that no record has. The target is still as it was.

        :raises OneboxError: if there is no room for it.
        """
        if self.count and self._absent:
            log.warning(
                "No record has %s: null in every row of %s. Records have %s.",
                ", ".join(self._absent),
                self.name,
                sanitize(", ".join(sorted(self._present)), MAX_NAMES),
            )
        log_nul(self._with_nul, self._first_with_nul)
        if self._columns:
            self._columns.report()
        with self._explain():
            self._form.close()
            if self._file is not self._raw:
                self._file.close()
        super().finish()

    def digest(self) -> str:
        """Read the finished file.

        :return: its digest, by which to recognize it later.
        """
        with self._explain(), self._temporary.open("rb") as file:
            return digest_of(file)

    def __exit__(self, *_: object) -> None:
        """Remove the temporary file, if it has not become the target."""
        self._form.abandon()
        if self._is_gzip and not self._file.closed:
            # What it still buffers goes nowhere. On a full disk, Python 3.14 would write it when the file is finalized.
            self._file.fileobj = io.BytesIO()
            self._file.close()
        super().__exit__()

    @property
    def _progress(self) -> str:
        return f"after {self.count:,} records; "


class _JsonLines:
    def __init__(self, file: Any, _: Any) -> None:
        self._file = file

    def write(self, rows: list[dict[str, Any]], lines: bytes = b"") -> None:
        """Append records.

        :param rows: the records.
        :param lines: the same as JSON Lines, if they are encoded already.
        """
        self._file.write(lines or _encode_lines(rows))

    def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class _Csv(_JsonLines):
    def __init__(self, file: Any, fields: Iterable[str]) -> None:
        super().__init__(file, fields)
        self._header: list[dict[str, Any]] = [{name: name for name in fields}]

    def write(self, rows: list[dict[str, Any]], lines: bytes = b"") -> None:  # noqa: ARG002 - JSON Lines need it
        # Not the csv module: before Python 3.12 it writes None and "" alike.
        rows, self._header = self._header + rows, []
        texts = (",".join(map(_cell, row.values())) or '""' for row in rows)
        self._file.write("".join(f"{text}\n" for text in texts).encode())

    def close(self) -> None:
        self.write([])


class _Parquet:
    def __init__(self, file: Any, columns: Columns) -> None:
        import pyarrow.parquet

        self._arrow = pyarrow
        self._columns = columns
        self._writer = pyarrow.parquet.ParquetWriter(file, columns.schema)
        self._batches: list[Any] = []
        self._size = 0

    def write(self, rows: list[dict[str, Any]], lines: bytes) -> None:  # noqa: ARG002 - JSON Lines need it
        self._add(self._columns.batch(rows))

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
        if self._batches:  # Otherwise there would be a row group without rows.
            self._writer.write_table(self._arrow.Table.from_batches(self._batches, self._columns.schema))
        self._batches, self._size = [], 0

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        # Otherwise the garbage collector closes it, after the file below it is closed.
        self._writer.is_open = False


def _cell(value: Any) -> str:
    text = as_text(value)
    return "" if text is None else '"' + text.replace('"', '""') + '"'


def project(records: list[dict[str, Any]], fields: Iterable[str] | None) -> list[dict[str, Any]]:
    """Select fields of records.

    :param records: the records.
    :param fields: the names, in order; ``None`` for the records as they are.
    :return: records with these fields only; a field that a record lacks is ``None``.
    """
    if fields is None:
        return records
    return [{name: record.get(name) for name in fields} for record in records]


def remove_nul(records: list[dict[str, Any]], encoded: bytes) -> tuple[list[dict[str, Any]], list[int]]:
    """Remove U+0000 from all text in records, at any depth.

    :param records: the records; they are not changed.
    :param encoded: the same as JSON.
    :return: the records without it, and the positions of those that had it.
    """
    # One search of the whole page: hardly any has it.
    if b"\\u0000" not in encoded:
        return records, []
    cleaned = [_remove_nul(record) for record in records]
    return cleaned, [index for index, record in enumerate(records) if cleaned[index] != record]


def _remove_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, list):
        return [_remove_nul(item) for item in value]
    if isinstance(value, dict):
        return {_remove_nul(name): _remove_nul(item) for name, item in value.items()}
    return value


def log_nul(count: int, first_id: Any) -> None:
    """Log from how many records U+0000 was removed, if from any.

    :param count: how many records.
    :param first_id: the first one's id.
    """
    if count:
        log.warning(
            "Removed U+0000 from the text of %s records, the first with Id %s.",
            f"{count:,}",
            sanitize(first_id),
        )
