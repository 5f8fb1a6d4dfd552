"""Many writes at once, with a verdict for each: none is made twice, and none is forgotten.

The verdict file also records the progress. It names a row, on disk, before the row is sent, and its verdict after the
answer. So after a crash, a row without a verdict is in doubt, and a row that is not in the file has not been sent.
(A machine that fails can lose the newest verdicts, but never the record that a row was sent.) A row is recognized by
its content, not its position: two equal rows are the first and the second of their kind. When all rows are done, the
file is replaced by one line per row, in their order.

While a process works on the file, it holds a lock (``flock``), so no second process can.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import logging
import os
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_provider_onebox.exceptions import (
    OneboxConfigError,
    OneboxError,
    OneboxRequestError,
    sanitize,
)
from airflow_provider_onebox.files import RecordFile, sync_folder
from airflow_provider_onebox.rows import in_parallel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

BEGUN, DONE, REJECTED, IN_DOUBT, NOT_SENT = "begun", "done", "rejected", "in_doubt", "not_sent"
START = b'{"row":'
MAX_TOLD = 20
"""The most rows that the log gives a reason for; the file has all."""

CUT_OFF = "The task ended after the row was sent and before there was an answer: check in Onebox."

log = logging.getLogger(__name__)


class Verdict(msgspec.Struct, omit_defaults=True):
    """What became of a row: a line of the verdict file.

    :param row: where it stands, from 0; ``None`` if it is no longer among the rows.
    :param verdict: ``done``, ``rejected`` or ``in_doubt``; while the task runs, ``begun`` and ``not_sent`` too.
    :param key: the run and what the row holds, to recognize it by.
    :param id: the id of what was created, if Onebox has told it.
    :param message: why it is rejected or in doubt.
    """

    row: int | None
    verdict: str
    key: str
    id: str | None = None
    message: str | None = None


class VerdictFile:
    """The verdicts of a run's rows; a context manager, in which the file is locked.

    :param path: a local path.
    :param run: what tells this run of the task from all others.
    :raises OneboxConfigError: if it is no path that can hold verdicts.
    """

    def __init__(self, path: Any, run: Iterable[Any]) -> None:
        self.name = str(path)
        if "://" in self.name.removeprefix("file://") or self.name.endswith(".gz"):
            raise OneboxConfigError(
                f"verdict_path={self.name!r} can't be appended to, and each verdict is written down at once: use a "
                "plain file on a volume that all workers share, and copy it in a later task."
            )
        self._file = RecordFile(path, "verdict_path")
        self._path = Path(self._file.path.path)
        self._run = _digest(list(run))
        self._verdicts: dict[str, Verdict] = {}
        self._appending = threading.Lock()

    def __enter__(self) -> VerdictFile:
        """Lock the file and read it.

        :return: the file itself.
        :raises OneboxConfigError: if it holds something else than verdicts of this run, or can't be locked.
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

    def find(self, key: str, row: int) -> Verdict | None:
        """Look a row's verdict up, and note where the row stands now.

        :param key: the row's key.
        :param row: where it stands.
        :return: its verdict, ``None`` if the row has not been sent.
        """
        verdict = self._verdicts.get(key)
        if verdict:
            verdict.row = row
        return verdict

    def note(self, verdict: Verdict, *, sync: bool = False) -> None:
        """Append a verdict; safe in several threads.

        :param verdict: the verdict.
        :param sync: whether to return only when the disk has it.
        :raises OneboxError: if there is no room for it.
        """
        line = msgspec.json.encode(verdict) + b"\n"
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
        self._verdicts[verdict.key] = verdict

    def finish(self) -> Counter[str]:
        """Replace the file by one line a row, and tell the log why the first ones are not done.

        :return: how many rows have each verdict; those that are no longer among the rows are not counted.
        :raises OneboxError: if that fails; the longer file stays then.
        """
        verdicts: list[Any] = sorted(self._verdicts.values(), key=lambda verdict: (verdict.row is None, verdict.row))
        with self._file as file:
            for start in range(0, len(verdicts), 1000):
                file.write(verdicts[start : start + 1000])
            file.finish()
            file.put_in_place()
        present = [verdict for verdict in verdicts if verdict.row is not None]
        for verdict in [verdict for verdict in present if verdict.verdict != DONE][:MAX_TOLD]:
            log.warning("Row %s is %s: %s", verdict.row, verdict.verdict.replace("_", " "), verdict.message)
        return Counter(verdict.verdict for verdict in present)

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
                    f"{self.name} can't be locked ({sanitize(error.strerror)}), so two processes could write the same "
                    "rows: choose a volume that has locks."
                ) from None
            if os.fstat(number).st_nlink:
                return number
            os.close(number)  # Between the two lines another process put a new file in its place.

    def _read(self) -> None:
        decode = msgspec.json.Decoder(Verdict).decode
        end = 0
        with open(self._number, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and (number > 1 or line.startswith(START[: len(line)])):
                    # What was being written when the machine failed; nothing was sent on the strength of it.
                    os.ftruncate(self._number, end)
                    break
                end += len(line)
                try:
                    verdict = decode(line)
                except msgspec.MsgspecError:
                    raise OneboxConfigError(
                        f"{self.name}, line {number}, is not a verdict: nothing was sent. Use a separate file "
                        "as verdict_path."
                    ) from None
                if not verdict.key.startswith(f"{self._run}."):
                    raise OneboxConfigError(
                        f"{self.name} holds the verdicts of another run or task: nothing was sent. Use a different "
                        "path for each run, with {{ run_id }}, and for each mapped task, with {{ ti.map_index }}."
                    )
                verdict.row = None
                self._verdicts[verdict.key] = verdict
        for key, verdict in list(self._verdicts.items()):
            if verdict.verdict == BEGUN:
                self._verdicts[key] = Verdict(None, IN_DOUBT, key, message=CUT_OFF)
            elif verdict.verdict == NOT_SENT:
                del self._verdicts[key]

    def _error(self, what: str, error: OSError) -> OneboxError:
        return OneboxError(
            f"{self.name} {what}: {sanitize(error.strerror or error)}. Make sure that there is room and that it is "
            "writable; a retry goes on after what is done.",
            retryable=True,
        )


def write_rows(
    rows: Iterable[Any],
    write: Callable[..., str | None],
    target: Iterable[Any],
    file: VerdictFile,
    *,
    parallelism: int,
    repeat_in_doubt: bool,
) -> Counter[str]:
    """Write each row that is not done yet, and record its verdict.

    What is no row's fault, such as a rejected password or a server that is down, stops the whole: rows under way are
    waited for and noted, and the error is raised.

    :param rows: dictionaries with the arguments of ``write``.
    :param write: writes one, and returns its id; in several threads.
    :param target: where and what it writes, so that the same row elsewhere is another one.
    :param file: the entered verdict file.
    :param parallelism: the most writes in flight, 1 to 32.
    :param repeat_in_doubt: whether to send rows again that may have been written before.
    :return: how many rows have each verdict.
    :raises OneboxConfigError: at once, if the parallelism is invalid.
    :raises OneboxError: if the rows can't be read, a verdict can't be noted, or Onebox can't be used.
    """
    stopped = threading.Event()
    signature = inspect.signature(write)
    kept = {DONE} if repeat_in_doubt else {DONE, IN_DOUBT}
    where = _digest(list(target))

    def left() -> Iterator[tuple[int, str, Any]]:
        equal: Counter[str] = Counter()
        for number, row in enumerate(rows):
            digest = _digest([where, row])
            key = file.key(digest, equal[digest])
            equal[digest] += 1
            known = file.find(key, number)
            if known is None or known.verdict not in kept:
                yield number, key, row

    def write_one(item: tuple[int, str, Any]) -> None:
        number, key, row = item
        if stopped.is_set():
            return
        try:
            signature.bind(**row)
        except TypeError as error:
            words = f"The row does not hold what {write.__name__} of the hook takes: {sanitize(error)}."
            file.note(Verdict(number, REJECTED, key, message=words))
            return
        try:
            file.note(Verdict(number, BEGUN, key), sync=True)
            verdict = Verdict(number, DONE, key, id=write(**row))
        except OneboxError as error:
            if not (error.may_have_acted or _is_of_the_row(error)):
                stopped.set()
                with suppress(OneboxError):  # The first error tells more.
                    file.note(Verdict(number, NOT_SENT, key))
                raise
            words = sanitize(error.server_message or error, 500)
            verdict = Verdict(number, IN_DOUBT if error.may_have_acted else REJECTED, key, message=words)
        except BaseException:
            stopped.set()
            raise
        file.note(verdict)

    for _ in in_parallel(write_one, left(), parallelism):
        pass
    return file.finish()


def _is_of_the_row(error: OneboxError) -> bool:
    """Tell whether Onebox, or this provider, rejected what the row holds, or a file that it names is not there."""
    is_argument = isinstance(error, OneboxConfigError) and error.status is None
    is_file = isinstance(error.__cause__, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
    return is_argument or is_file or (isinstance(error, OneboxRequestError) and not error.retryable)


def _digest(value: Any) -> str:
    try:
        encoded = msgspec.json.encode(value, order="deterministic", enc_hook=repr)
    except (TypeError, ValueError):  # Keys that are no text, or half an emoji.
        encoded = repr(value).encode()
    return hashlib.blake2b(encoded, digest_size=10).hexdigest()
