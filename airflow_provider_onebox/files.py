"""A file of records: written beside its target and put in place as a whole, or not at all."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, sanitize
from airflow_provider_onebox.lineage import report_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Self

GZIP_LEVEL = 6
TABLES = (".csv", ".csv.gz", ".parquet")
"""Suffixes of files with columns; every other file is JSON Lines."""

ROW_GROUP_BYTES = 16 * 1024 * 1024
"""The most bytes in a row group of a Parquet file, before compression; a single record can be larger."""

log = logging.getLogger(__name__)


class WholeFile:
    """Writes a file beside its target and puts it in place at the end; a context manager.

    The bytes go to a temporary file: in the target's own folder for a local target, where the last step is
    an atomic rename; else in this machine's temporary folder, where it is one upload. If the block ends
    with an error, or the process dies, the target stays as it was.

    What a process that died has left is removed by the next one that writes the same target. A temporary file is
    locked (``flock``) for as long as it is in use: the kernel gives the lock up with the process, however it ends, and
    tells other containers on the same volume, and on NFS other machines, unless it is mounted with ``local_lock``
    or ``nolock``. Where there are no locks, nothing is removed.

    :param path: the target, as for ``ObjectStoragePath``.
    :param argument: what the path is called where the user has given it.
    :raises OneboxConfigError: if it can't be a file's path, or this Airflow can't reach it.
    """

    def __init__(self, path: Any, argument: str) -> None:
        self.name = str(path)
        if self.name.strip() in ("", "None"):
            raise OneboxConfigError(f"{argument}={self.name!r} names no file: a template in it found nothing.")
        try:
            self.path = storage_path(self.name)
            self._fs = self.path.fs
        except Exception as error:
            raise OneboxConfigError(
                f"{argument}={self.name!r} can't be reached: {sanitize(error)}. Is the Airflow provider for "
                f"{self.name.partition(':')[0]} installed, and does the connection in the path exist?"
            ) from error
        self._local = self.path.protocol in ("", "file")
        self._target = Path(self.path.path)
        if self.name.endswith("/") or (self._local and self._target.is_dir()):
            raise OneboxConfigError(f"{argument}={self.name!r} is a folder: add the name of a file.")
        self._folder = self._target.parent if self._local else Path(tempfile.gettempdir())

    def exists(self) -> bool:
        """Look whether the target is there.

        :return: whether it is.
        :raises OneboxError: if that can't be told.
        """
        with self._explain("could not be looked at"):
            return bool(self._fs.exists(self.path.path))

    def __enter__(self) -> Self:
        """Remove what others have left, and open the temporary file.

        :return: the file itself.
        :raises OneboxError: if the folder can't be written to.
        """
        same = hashlib.blake2b(self.name.encode(), digest_size=4).hexdigest()
        start = f".{self.path.name[:40]}.{same}."
        with self._explain():
            self._folder.mkdir(parents=True, exist_ok=True)
            for left in self._folder.glob(f"{escape(start)}*.tmp"):
                _remove_if_left(left)
            self._temporary = self._folder / f"{start}{secrets.token_hex(4)}.tmp"
            self._raw = _create_locked(self._temporary, 0o666 if self._local else 0o600)
            # The target will be as readable as its predecessor, if it has one.
            with suppress(FileNotFoundError):
                if self._local:
                    shutil.copymode(self._target, self._temporary)
        return self

    def write_bytes(self, content: bytes) -> None:
        """Append bytes as they are.

        :param content: the bytes.
        :raises OneboxError: if there is no room for them.
        """
        with self._explain():
            self._raw.write(content)

    def finish(self) -> None:
        """Write out what is buffered. The target is still as it was.

        :raises OneboxError: if there is no room for it.
        """
        with self._explain():
            self._raw.flush()
            os.fsync(self._raw.fileno())

    def put_in_place(self) -> None:
        """Make the finished file the target.

        :raises OneboxError: if that fails.
        """
        with self._explain():
            if self._local:
                self._temporary.replace(self._target)
                sync_folder(self._folder)
            else:
                self._fs.put_file(str(self._temporary), self.path.path)

    def __exit__(self, *_: object) -> None:
        """Remove the temporary file, if it has not become the target."""
        with suppress(OSError):  # A full disk says so again.
            self._raw.close()
        self._temporary.unlink(missing_ok=True)

    @property
    def _progress(self) -> str:
        return ""

    @contextmanager
    def _explain(self, what: str = "was not written") -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise OneboxError(
                f"{self.name} {what}: {sanitize(getattr(error, 'strerror', None) or error)} ({self._progress}an "
                f"existing file is unchanged). It is written to {self._folder} first: make sure that there is room for "
                "the whole file, and that both places are writable.",
                retryable=True,
            ) from error


class RecordFile(WholeFile):
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

    def put_in_place(self) -> None:
        """Make the finished file the target.

        :raises OneboxError: if that fails.
        """
        super().put_in_place()
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
        rows = [{name: _text(value) for name, value in record.items()} for record in records]
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


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()


def _cell(value: Any) -> str:
    text = _text(value)
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


def sync_folder(folder: Path) -> None:
    """Have the disk know which files are in a folder.

    :param folder: the folder.
    """
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _create_locked(path: Path, mode: int) -> IO[bytes]:
    while True:
        file = os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb")
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # Between the two lines another process took it for one that was left.


def _remove_if_left(path: Path) -> None:
    # For writing, because a lock over NFS needs it.
    with suppress(OSError), path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        log.info("Removed %s, left behind by a process that died.", path)


def storage_path(name: str) -> ObjectStoragePath:
    """Find a file by the path that the user has given.

    :param name: as for ``ObjectStoragePath``.
    :return: the path. A relative one is in the working directory; Airflow 2.11 to 3.1 would look in ``/``.
    """
    return ObjectStoragePath(name if "://" in name else os.path.abspath(name))  # noqa: PTH100


def digest_at(path: str) -> str | None:
    """Read what is at a path now.

    :param path: as for ``ObjectStoragePath``.
    :return: its digest, ``None`` if nothing is there.
    """
    there = storage_path(path)
    try:
        # Not there.open(), which tells lineage that the task has read an input.
        with there.fs.open(there.path, "rb") as file:
            return _digest(file)
    except FileNotFoundError:
        return None


def _digest(file: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    read: Callable[[int], bytes] = file.read
    while chunk := read(2**20):
        digest.update(chunk)
    return digest.hexdigest()
