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
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, sanitize
from airflow_provider_onebox.lineage import report_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GZIP_LEVEL = 6

log = logging.getLogger(__name__)


class RecordFile:
    """Writes records next to their target and puts them in place at the end; a context manager.

    The records go to a temporary file: in the target's own folder for a local target, where the last step is
    an atomic rename; else in this machine's temporary folder, where it is one upload. If the block ends
    with an error, or the process dies, the target stays as it was.

    What a process that died has left is removed by the next one that writes the same target. A temporary file is
    locked (``flock``) for as long as it is in use: the kernel gives the lock up with the process, however it ends, and
    tells other containers on the same volume, and on NFS other machines, unless it is mounted with ``local_lock``
    or ``nolock``. Where there are no locks, nothing is removed.

    :param path: the target, as for ``ObjectStoragePath``; gzip if it ends in ``.gz``.
    :param argument: what the path is called where the user has given it.
    :raises OneboxConfigError: if it can't be a file's path, or this Airflow can't reach it.
    """

    def __init__(self, path: Any, argument: str = "output_path") -> None:
        self.name = str(path)
        self.count = 0
        if self.name.strip() in ("", "None"):
            raise OneboxConfigError(f"{argument}={self.name!r} names no file: a template in it found nothing.")
        try:
            self.path = ObjectStoragePath(self.name)
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
        self._encode = msgspec.json.Encoder().encode_lines

    def exists(self) -> bool:
        """Look whether the target is there.

        :return: whether it is.
        :raises OneboxError: if that can't be told.
        """
        with self._explain("could not be looked at"):
            return bool(self._fs.exists(self.path.path))

    def __enter__(self) -> RecordFile:
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
        is_gzip = self.path.name.endswith(".gz")
        # No name and no time in the header: the same records give the same bytes.
        self._file: Any = gzip.GzipFile("", "wb", GZIP_LEVEL, self._raw, mtime=0) if is_gzip else self._raw
        return self

    def write(self, records: list[dict[str, Any]]) -> None:
        """Append records.

        :param records: one line each.
        :raises OneboxError: if there is no room for them.
        """
        with self._explain():
            self._file.write(self._encode(records))
        self.count += len(records)

    def finish(self) -> None:
        """Write out what is buffered. The target is still as it was.

        :raises OneboxError: if there is no room for it.
        """
        with self._explain():
            if self._file is not self._raw:
                self._file.close()
            self._raw.flush()
            os.fsync(self._raw.fileno())

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
        with self._explain():
            if self._local:
                self._temporary.replace(self._target)
                sync_folder(self._folder)
            else:
                self._fs.put_file(str(self._temporary), self.path.path)
        report_file(self.path, is_output=True, count=self.count)

    def __exit__(self, *_: object) -> None:
        """Remove the temporary file, if it has not become the target."""
        for file in (self._file, self._raw):
            with suppress(OSError):  # A full disk says so again.
                file.close()
        self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _explain(self, what: str = "was not written") -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise OneboxError(
                f"{self.name} {what}: {sanitize(getattr(error, 'strerror', None) or error)} (after {self.count:,} "
                f"records; what was there before is as it was). Records go to {self._folder} first: see to it that "
                "there is room for the whole file, and that both places may be written to.",
                retryable=True,
            ) from error


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
        log.info("Removed %s, which a process that died had left.", path)


def digest_at(path: str) -> str | None:
    """Read what is at a path now.

    :param path: as for ``ObjectStoragePath``.
    :return: its digest, ``None`` if nothing is there.
    """
    there = ObjectStoragePath(path)
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
