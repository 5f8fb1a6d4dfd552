"""A file that is written beside its target and published as a whole or not at all."""

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

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, ObjectStoragePath

from airflow_provider_onebox._airflow.lineage import plain_uri
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, reason_of, sanitize
from airflow_provider_onebox.files.claim import Claim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self


log = logging.getLogger(__name__)


class AtomicFile:
    """Writes a file beside its target and publishes it at the end; a context manager.

    The bytes go to a temporary file: in the target's own folder for a local target, where the last step is
    an atomic rename; else in this machine's temporary folder, where it is one upload. If the block ends
    with an error, or the process dies, the target stays as it was. A symbolic link is followed, and stays.

    The temporary file of a process that died is removed by the next one that writes the same target. It is locked
    (``flock``) while it is in use: the kernel releases the lock when the process ends, and other containers on the same
    volume see the lock, as do other machines over NFS, unless it is mounted with ``local_lock`` or ``nolock``. Where
    there are no locks, nothing is removed.

    With ``ti``, the target is claimed while the block runs (:class:`~airflow_provider_onebox.files.claim.Claim`): of
    two task instances that write one path at once, at most one succeeds. Writing the claim also shows, before anything
    is listed, whether the target can be written.

    :param path: the target, as for ``ObjectStoragePath``.
    :param argument: the name of the argument that has the path, for messages.
    :param ti: the task instance that writes the file; ``None`` to claim nothing.
    :raises OneboxConfigError: if it can't be a file's path, or this Airflow can't reach it.
    """

    def __init__(self, path: Any, argument: str, ti: Any = None) -> None:
        self.name = str(path)
        where = f"{argument}={sanitize(self.name)!r}"
        if self.name.strip() in ("", "None"):
            raise OneboxConfigError(f"{where} names no file: a template in it found nothing.")
        _check_name(self.name, where)
        try:
            self.path = storage_path(self.name)
            self._fs = self.path.fs
        except Exception as error:
            raise OneboxConfigError(
                f"{where} can't be reached: {sanitize(error)}. Is the Airflow provider for "
                f"{self.name.partition(':')[0]} installed, and does the connection in the path exist?"
            ) from error
        # Airflow 2 has it among the options, Airflow 3 as an attribute.
        conn_id = getattr(self.path, "conn_id", None) or self.path.storage_options.get("conn_id")
        if conn_id:
            _check_connection(conn_id, where)
        self._local = self.path.protocol in ("", "file")
        self._target = Path(os.path.realpath(self.path.path))
        if self.name.endswith("/") or (self._local and self._target.is_dir()):
            raise OneboxConfigError(f"{where} is a folder: add the name of a file.")
        if not self._local and "://" in self.name and "/" not in self.name.partition("://")[2]:
            raise OneboxConfigError(f"{where} names a bucket and no file in it: add the name of a file.")
        if self._local and self._target.exists() and not self._target.is_file():
            raise OneboxConfigError(f"{where} is a device or a pipe, which can't be replaced: write a file.")
        self._folder = self._target.parent if self._local else Path(tempfile.gettempdir())
        self._claim = ti and Claim(self._fs, str(self._target) if self._local else self.path.path, self.name, ti)

    @property
    def uri(self) -> str:
        """The file's plain URI, without a connection in it, as readers outside of Airflow take it."""
        return plain_uri(self.path)

    def exists(self) -> bool:
        """Look whether the target exists.

        :return: whether it does.
        :raises OneboxError: if that can't be found out.
        """
        with self._explain("could not be looked at"):
            return bool(self._fs.exists(self.path.path))

    def __enter__(self) -> Self:
        """Claim the target, remove what dead processes left, and open the temporary file.

        :return: the file itself.
        :raises OneboxConfigError: if another task of the same run writes, or has written, the target.
        :raises OneboxError: if another task is writing the target, or it can't be written to.
        """
        same = hashlib.blake2b(self.name.encode(), digest_size=4).hexdigest()
        start = f".{self.path.name[:40]}.{same}."
        with self._explain():
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._claim:
                self._claim.take()
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

        :raises OneboxConfigError: if another task has claimed the target meanwhile.
        :raises OneboxError: if it fails.
        """
        with self._explain():
            if self._claim:
                self._claim.check()
            if self._local:
                self._temporary.replace(self._target)
                sync_folder(self._folder)
            else:
                self._fs.put_file(str(self._temporary), self.path.path)

    def remove(self) -> None:
        """Remove the target, if it exists.

        :raises OneboxConfigError: if another task has claimed the target meanwhile.
        :raises OneboxError: if it fails.
        """
        with self._explain("was not removed"):
            if self._claim:
                self._claim.check(publishes=False)
            with suppress(FileNotFoundError):
                self._fs.rm_file(str(self._target) if self._local else self.path.path)

    def __exit__(self, *_: object) -> None:
        """Remove the temporary file, if it has not become the target, and release the claim."""
        with suppress(OSError):  # A full disk says so again.
            self._raw.close()
        self._temporary.unlink(missing_ok=True)
        if self._claim:
            self._claim.release()

    @property
    def _progress(self) -> str:
        return ""

    @contextmanager
    def _explain(self, what: str = "was not written") -> Iterator[None]:
        try:
            yield
        except OneboxError:
            raise
        except Exception as error:
            raise OneboxError(
                f"{self.name} {what}: {reason_of(error)} ({self._progress}an "
                f"existing file is unchanged). It is written to {self._folder} first: make sure that there is room for "
                "the whole file, and that both places are writable.",
                retryable=True,
            ) from error


def _check_name(name: str, where: str) -> None:
    if name != name.strip() or any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise OneboxConfigError(
            f"{where} has white space at an end, or a line break: end a template with -}}}} or |trim."
        )
    if name.startswith("~"):
        raise OneboxConfigError(f"{where}: ~ has no meaning on a worker, so write the whole path.")
    if name.startswith("file://") and name[7:8] != "/":
        raise OneboxConfigError(
            f"{where} names a host: write file:// and then the whole path, which begins with a slash."
        )


def _check_connection(conn_id: str, where: str) -> None:
    # Some hooks, such as Amazon's, use the machine's own credentials where there is no connection.
    failure: OneboxError
    try:
        BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        failure = OneboxConfigError(f"{where}: there is no connection {conn_id!r}: create it, or correct the path.")
    except Exception as error:  # noqa: BLE001 - each secrets backend has its own errors, whose text can hold secrets
        failure = OneboxError(
            f"{where}: the connection {conn_id!r} can't be looked up ({type(error).__name__}).", retryable=True
        )
    else:
        return
    # Out here it does not hold on to what was raised there.
    raise failure


def sync_folder(folder: Path) -> None:
    """Have the disk record which files are in a folder.

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
        file.close()  # Before the lock, another process took it for one of a dead process.


def _remove_if_left(path: Path) -> None:
    # For writing, because a lock over NFS needs it.
    with suppress(OSError), path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        log.info("Removed %s, left by a process that died.", path)


def storage_path(name: str) -> ObjectStoragePath:
    """Return the path that a user's text names.

    :param name: as for ``ObjectStoragePath``.
    :return: the path. A relative one is in the working directory; Airflow 2.11 to 3.1 would look in ``/``.
    """
    return ObjectStoragePath(name if "://" in name else os.path.abspath(name))  # noqa: PTH100


def digest_at(path: str) -> str | None:
    """Read the file at a path.

    :param path: as for ``ObjectStoragePath``.
    :return: its digest, ``None`` if there is no file.
    """
    found = storage_path(path)
    try:
        # Not found.open(), which reports an input of the task to lineage.
        with found.fs.open(found.path, "rb") as file:
            return digest_of(file)
    except FileNotFoundError:
        return None


def digest_of(file: Any) -> str:
    """Read an open file to its end.

    :param file: the file.
    :return: its digest, by which to recognize it later.
    """
    digest = hashlib.blake2b(digest_size=16)
    read: Callable[[int], bytes] = file.read
    while chunk := read(2**20):
        digest.update(chunk)
    return digest.hexdigest()
