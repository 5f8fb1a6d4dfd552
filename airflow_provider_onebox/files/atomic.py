"""A file that is written beside its target and published as a whole, or not at all."""

from __future__ import annotations

import fcntl
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

from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, reason_of, sanitize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self


log = logging.getLogger(__name__)


class AtomicFile:
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

    def publish(self) -> None:
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
                f"{self.name} {what}: {reason_of(error)} ({self._progress}an "
                f"existing file is unchanged). It is written to {self._folder} first: make sure that there is room for "
                "the whole file, and that both places are writable.",
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
