"""JSON Lines files that appear whole or not at all, wherever ``ObjectStoragePath`` leads."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_onebox.paging import Batch

PROGRESS_SECONDS = 10.0
"""Seconds between two lines of progress in the log."""

GZIP_LEVEL = 6
SECRET_FIELDS = ("password", "token")
"""Fields of a ``connection`` record that hold secrets of the customer's own channels, in lower case."""

log = logging.getLogger(__name__)


def without_secrets(record: dict[str, Any]) -> dict[str, Any]:
    """Copy a ``connection`` record without its secrets.

    :param record: the record as Onebox gave it.
    :return: the record without ``Password`` and ``Token``.
    """
    return {name: value for name, value in record.items() if name.lower() not in SECRET_FIELDS}


def with_progress(batches: Iterable[Batch], resource: str) -> Iterable[Batch]:
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


class JsonLinesFile:
    """Writes records next to their target and puts them in place at the end; a context manager.

    The records go to a temporary file: in the target's own folder for a local target, where the last step is
    an atomic rename; else in this machine's temporary folder, where it is one upload. If the block ends
    with an error, or the process dies, the target stays as it was.

    :param path: the target, as for ``ObjectStoragePath``; gzip if it ends in ``.gz``.
    """

    def __init__(self, path: str) -> None:
        from airflow.providers.common.compat.sdk import ObjectStoragePath

        self.path: ObjectStoragePath = ObjectStoragePath(path)
        self._local = self.path.protocol in ("", "file")
        self._encode = msgspec.json.Encoder().encode_lines

    def __enter__(self) -> JsonLinesFile:
        """Open the temporary file.

        :return: the file itself.
        """
        folder = None
        if self._local:
            folder = Path(self.path.path).parent
            folder.mkdir(parents=True, exist_ok=True)
        # Closed by __exit__ or replace; deleted by hand, since in the end it is the target.
        raw = tempfile.NamedTemporaryFile(dir=folder, prefix=f".{self.path.name}.", suffix=".tmp", delete=False)
        self._raw: IO[bytes] = raw
        self._temporary = Path(raw.name)
        is_gzip = self.path.name.endswith(".gz")
        # No name and no time in the header: the same records give the same bytes.
        self._file = gzip.GzipFile("", "wb", GZIP_LEVEL, raw, mtime=0) if is_gzip else raw
        return self

    def write(self, records: list[dict[str, Any]]) -> None:
        """Append records.

        :param records: one line each.
        """
        self._file.write(self._encode(records))

    def finish(self) -> None:
        """Write out what is buffered. The target is still as it was."""
        self._file.close()
        self._raw.close()
        with self._temporary.open("rb") as file:
            os.fsync(file.fileno())

    def digest(self) -> str:
        """Read the finished file.

        :return: its digest, to recognise it by later.
        """
        with self._temporary.open("rb") as file:
            return _digest(file)

    def put_in_place(self) -> None:
        """Make the finished file the target."""
        if not self._local:
            self.path.fs.put_file(str(self._temporary), self.path.path)
            return
        target = Path(self.path.path)
        # A temporary file is private; the target is as readable as its predecessor, or as the umask says.
        with suppress(FileNotFoundError):
            shutil.copymode(target, self._temporary)
        if not target.exists():
            mask = os.umask(0)
            os.umask(mask)
            self._temporary.chmod(0o666 & ~mask)
        self._temporary.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def __exit__(self, *_: object) -> None:
        """Remove the temporary file, if it has not become the target."""
        with suppress(OSError):
            self._file.close()
        self._raw.close()
        self._temporary.unlink(missing_ok=True)


def digest_at(path: str) -> str | None:
    """Read what is at a path now.

    :param path: as for ``ObjectStoragePath``.
    :return: its digest, ``None`` if nothing is there.
    """
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    try:
        with ObjectStoragePath(path).open("rb") as file:
            return _digest(file)
    except FileNotFoundError:
        return None


def _digest(file: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    read: Callable[[int], bytes] = file.read
    while chunk := read(2**20):
        digest.update(chunk)
    return digest.hexdigest()
