"""The results file: the journal of many writes, with a result for each.

It names a row, on disk, before the row is sent, and its result after the response. So after a crash, a row without a
result is uncertain, and a row that is not in the file was not sent. (A machine that fails can lose the newest results,
but never the record that a row was sent.) A row is recognized by its content, not its position: two equal rows are the
first and the second of their kind. When all rows are done, the file is replaced by one line per row, in their order.

While a process works on the file, it holds a lock (``flock``), so no second process can.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_provider_onebox.exceptions import (
    OneboxConfigError,
    OneboxError,
    reason_of,
)
from airflow_provider_onebox.files.atomic import sync_folder
from airflow_provider_onebox.files.records import RecordFile
from airflow_provider_onebox.writes import BEGUN, CUT_OFF, DONE, NOT_SENT, UNCERTAIN

if TYPE_CHECKING:
    from collections.abc import Iterable

START = b'{"row":'

MAX_LOGGED = 20
"""The most rows that the log gives a reason for; the file has all."""

log = logging.getLogger(__name__)


class RowResult(msgspec.Struct, omit_defaults=True):
    """What became of a row: a line of the results file.

    :param row: its position, from 0; ``None`` if it is no longer among the rows.
    :param result: ``done``, ``rejected`` or ``uncertain``; while the task runs, ``begun`` and ``not_sent`` too.
    :param key: the run and what the row holds, to recognize it by.
    :param id: the id of what was created, if Onebox returned one.
    :param message: why it is rejected or uncertain.
    """

    row: int | None
    result: str
    key: str
    id: str | None = None
    message: str | None = None


class ResultsFile:
    """The results of a run's rows; a context manager, in which the file is locked.

    :param path: a local path.
    :param run: what distinguishes this run of the task from all others.
    :raises OneboxConfigError: if it is no path that can hold results.
    """

    def __init__(self, path: Any, run: Iterable[Any]) -> None:
        self.name = str(path)
        if "://" in self.name.removeprefix("file://") or self.name.endswith(".gz"):
            raise OneboxConfigError(
                f"results_path={self.name!r} can't be appended to, and each result is written down at once: use a "
                "plain file on a volume that all workers share, and copy it in a later task."
            )
        self._file = RecordFile(path, "results_path")
        self._path = Path(self._file.path.path)
        self._run = digest(list(run))
        self._results: dict[str, RowResult] = {}
        self._appending = threading.Lock()

    def __enter__(self) -> ResultsFile:
        """Lock the file and read it.

        :return: the file itself.
        :raises OneboxConfigError: if it holds something else than results of this run, or can't be locked.
        :raises OneboxError: if another process works on it, or it can't be read.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._number = self._open()
            try:
                sync_folder(self._path.parent)
                self._read()
            except BaseException:
                os.close(self._number)
                raise
        except OSError as error:
            raise self._error("can't be opened", error) from error
        return self

    def __exit__(self, *_: object) -> None:
        """Unlock the file."""
        os.close(self._number)

    def key(self, row: Any, count: int) -> str:
        """Make a row recognizable.

        :param row: its digest.
        :param count: how many rows before it are equal.
        :return: its key.
        """
        return f"{self._run}.{row}.{count}"

    def find(self, key: str, row: int) -> RowResult | None:
        """Look a row's result up, and note the row's position.

        :param key: the row's key.
        :param row: its position.
        :return: its result, ``None`` if the row has not been sent.
        """
        result = self._results.get(key)
        if result:
            result.row = row
        return result

    def note(self, result: RowResult, *, sync: bool = False) -> None:
        """Append a result; safe in several threads.

        :param result: the result.
        :param sync: whether to return only when the disk has it.
        :raises OneboxError: if there is no room for it.
        """
        line = msgspec.json.encode(result) + b"\n"
        try:
            with self._appending:
                end = os.fstat(self._number).st_size
                if os.write(self._number, line) < len(line):
                    os.ftruncate(self._number, end)
                    raise OSError("no room left")
            if sync:
                os.fsync(self._number)
        except OSError as error:
            raise self._error("can't be written", error) from error
        self._results[result.key] = result

    def finish(self) -> tuple[Counter[str], str]:
        """Replace the file by one line a row, and log why the first rows are not done.

        :return: how many rows have each result, and why the first that is not done is not; rows that are no longer
            among the rows are not counted.
        :raises OneboxError: if that fails; the longer file stays then.
        """
        results: list[Any] = sorted(self._results.values(), key=lambda result: (result.row is None, result.row))
        with self._file as file:
            for start in range(0, len(results), 1000):
                file.write(results[start : start + 1000])
            file.finish()
            file.publish()
        present = [result for result in results if result.row is not None]
        failed = [
            f"Row {result.row} is {result.result.replace('_', ' ')}: {result.message}"
            for result in present
            if result.result != DONE
        ]
        for line in failed[:MAX_LOGGED]:
            log.warning("%s", line)
        return Counter(result.result for result in present), failed[0] if failed else ""

    def _open(self) -> int:
        while True:
            number = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(number)
                if isinstance(error, BlockingIOError):
                    raise OneboxError(
                        f"{self.name} is in use by another process of this task: nothing was sent. Retry when it has "
                        "ended.",
                        retryable=True,
                    ) from None
                raise OneboxConfigError(
                    f"{self.name} can't be locked ({reason_of(error)}), so two processes could write the same "
                    "rows: choose a volume that has locks."
                ) from None
            if os.fstat(number).st_nlink:
                return number
            os.close(number)  # Between the two lines another process put a new file in its place.

    def _read(self) -> None:
        decode = msgspec.json.Decoder(RowResult).decode
        end = 0
        with open(self._number, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and (number > 1 or line.startswith(START[: len(line)])):
                    # What was being written when the machine failed; nothing was sent on the strength of it.
                    os.ftruncate(self._number, end)
                    break
                end += len(line)
                try:
                    result = decode(line)
                except msgspec.MsgspecError:
                    raise OneboxConfigError(
                        f"{self.name}, line {number}, is not a result: nothing was sent. Use a separate file "
                        "as results_path."
                    ) from None
                if not result.key.startswith(f"{self._run}."):
                    raise OneboxConfigError(
                        f"{self.name} holds the results of another run or task: nothing was sent. Use a different "
                        "path for each run, with {{ run_id }}, and for each mapped task, with {{ ti.map_index }}."
                    )
                result.row = None
                self._results[result.key] = result
        for key, result in list(self._results.items()):
            if result.result == BEGUN:
                self._results[key] = RowResult(
                    None, UNCERTAIN, key, message=f"A try of this task {CUT_OFF}: check in Onebox."
                )
            elif result.result == NOT_SENT:
                del self._results[key]

    def _error(self, what: str, error: OSError) -> OneboxError:
        return OneboxError(
            f"{self.name} {what}: {reason_of(error)}. Make sure that there is room and that it is "
            "writable; a retry goes on after what is done.",
            retryable=True,
        )


def digest(value: Any) -> str:
    """Make a short text that is equal for equal values.

    :param value: what a run is recognized by, or a row.
    :return: the digest.
    """
    try:
        encoded = msgspec.json.encode(value, order="deterministic", enc_hook=repr)
    except (TypeError, ValueError):  # Keys that are no text, or half an emoji.
        encoded = repr(value).encode()
    return hashlib.blake2b(encoded, digest_size=10).hexdigest()
