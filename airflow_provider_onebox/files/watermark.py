"""The watermark of an incremental export: what was written, kept so that no record is lost and none is written twice.

:func:`~airflow_provider_onebox.files.export.export_incremental` is the whole transaction. What makes it safe:

1. Two runs never work at once. Airflow itself starts one at a time (``max_active_tis_per_dag=1``, set by the operator);
   where that has no effect, :meth:`Watermark.begin` reads the watermark and then counts the running instances of the
   task in Airflow's database. A task is running there before its first line is executed, so of two runs, at least one
   sees the other, and waits or fails; and what a live run has prepared is never taken for what a dead one left.
2. Before the file is published, the watermark names it: its path, its digest and its records. Whoever finds that entry
   of a run that died compares the file's digest to learn whether it was published, so the records are counted if and
   only if the file holds them.
3. What a run has prepared is final: every later try of that run writes the same records, as does a run that is cleared
   (:mod:`.ids`). So neither a retry nor a superseded process can replace the file by other records. Changes can't be
   listed again as they were: a published file is kept, and one that was only prepared is listed anew (:mod:`.changes`).
4. Each write of the watermark follows a read that finds it as this process left it; no two tries prepare alike. A
   superseded process finds it changed by its successor and stops, so the watermark never moves back.
5. A run that the watermark does not know replaces no file, and uses no path of another run: it is rejected before
   anything is listed.

Airflow has no compare-and-set, so one case remains: a superseded process that goes on, if its read and write fall
between those of another (milliseconds), or if its upload hangs until another run has taken over its range and its own
run was tried again (by changes, as soon as its own run was tried again). Airflow's supervisor ends such a process at
its next heartbeat.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import msgspec
from airflow.providers.common.compat.sdk import Variable

from airflow_provider_onebox._airflow.compat import is_running_elsewhere
from airflow_provider_onebox._airflow.variables import shorten_key
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, sanitize
from airflow_provider_onebox.files.atomic import digest_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_onebox.api.pagination import Batch
    from airflow_provider_onebox.files.records import RecordFile

KEPT_RUNS = 500
"""Runs whose records are remembered, for when one of them is repeated."""


PATIENCE = 60.0
"""The most seconds to wait for another instance of the task to end."""


POLL_SECONDS = 2.0


log = logging.getLogger(__name__)


class Done(msgspec.Struct, array_like=True, omit_defaults=True):
    """What a run has written.

    :param count: how many records.
    :param first: the id of the first; ``None`` without records.
    :param last: where its range ends; ``None`` without records, by changes.
    :param after: where its range begins, by id.
    :param late: ids before its range that became visible only after their own range was written, by id.
    :param map_index: the map index of the task instance.
    :param place: a digest of the file's path.
    """

    count: int
    first: int | None
    last: int | None
    after: int = 0
    late: list[int] = []
    map_index: int = -1
    place: str = ""


K = TypeVar("K")
"""What a policy has to know of all that was written."""


class Pending(msgspec.Struct, Generic[K], omit_defaults=True):
    """A file that is about to be published.

    :param run_id: the DAG run that writes it.
    :param path: its path.
    :param digest: its digest.
    :param done: its records.
    :param known: what is known once it is published.
    :param try_number: which try of that run.
    """

    run_id: str
    path: str
    digest: str
    done: Done
    known: K
    try_number: int = 0


class State(msgspec.Struct, Generic[K], omit_defaults=True):
    """What a watermark holds.

    :param known: what was written.
    :param runs: what each of the latest runs has written.
    :param path: the path of the latest run.
    :param pending: what was prepared and may or may not have been published.
    """

    known: K
    runs: dict[str, Done] = {}
    path: str | None = None
    pending: Pending[K] | None = None

    def committed(self, pending: Pending[K]) -> State[K]:
        """Count a file that is published.

        :param pending: the file.
        :return: the new state.
        """
        runs = {**self.runs, pending.run_id: pending.done}
        return State(pending.known, dict(list(runs.items())[-KEPT_RUNS:]), pending.path)


class Policy(Protocol[K]):
    """Decides which records a run writes: :class:`~.ids.ById` or :class:`~.changes.ByChanges`."""

    kind: ClassVar[str]
    """What the watermark's key begins with."""

    example: ClassVar[str]
    """What to set the watermark to by hand, for messages."""

    repeats: ClassVar[bool]
    """Whether the records of a run can be listed again."""

    state_type: ClassVar[Any]
    """The type of the state, for its decoder."""

    def start(self) -> K:
        """Return what is known before the first run.

        :return: nothing, or where to begin.
        """

    def describe(self, known: K) -> str:
        """Describe what is known, for the log.

        :param known: what was written.
        :return: part of a sentence.
        """

    def batches(self, known: K, again: Done | None, late_elsewhere: set[int]) -> Iterator[Batch]:
        """List the records to write.

        :param known: what was written before this run; of a repeated one, what is known once it is written.
        :param again: what this run has written or prepared before, where :attr:`repeats`.
        :param late_elsewhere: late ids that other runs have written.
        :return: an iterator over batches of records, ascending by id.
        """

    def result(self) -> tuple[Done, K]:
        """Return what :meth:`batches` has listed, once it has ended.

        :return: what this run has written, and what is known then.
        """


class Watermark(Generic[K]):
    """What one task has written of one resource, kept in an Airflow Variable between runs.

    :param ti: the task instance.
    :param scope: what distinguishes the task's watermarks: connection, site, resource and perhaps a key of the user.
    :param policy: which records a run writes.
    """

    def __init__(self, ti: Any, scope: tuple[str, ...], policy: Policy[K]) -> None:
        self.key = shorten_key("@".join((policy.kind, ti.dag_id, ti.task_id, *scope)))
        self._ti = ti
        self._policy = policy
        self._decode = msgspec.json.Decoder(policy.state_type).decode

    def begin(self, file: RecordFile) -> Done | None:
        """Find out what this run has to list.

        :param file: where it will write.
        :return: what it has written, if it keeps its file and has nothing to list; without records, there may be none.
        :raises OneboxConfigError: if the watermark can't be read, or the run may not write that file.
        :raises OneboxError: if another run of the task is in flight, or the file of one that died can't be read.
        """
        self._read_alone()
        self._state = State(self._policy.start()) if self._text is None else self._parse(self._text)
        run_id, pending = self._ti.run_id, self._state.pending
        self._repeats = bool(pending and pending.run_id == run_id)
        if pending and self._repeats:
            self._reject_sibling(file, pending.done)
        if pending and self._repeats and self._policy.repeats:
            again: Done | None = pending.done
            known = pending.known
        else:
            if pending:
                self._resolve(pending)
            again, known = self._state.runs.get(run_id), self._state.known
            if again is None:
                self._reject_path_of_others(file)
            else:
                self._reject_sibling(file, again)
                if not self._policy.repeats:
                    return self._keep(file, again)
        self._again, self._known = again, known
        log.info("The watermark %s: %s.", self.key, self._policy.describe(known))
        return None

    def batches(self) -> Iterator[Batch]:
        """List the records of this run.

        :return: an iterator over batches of records, ascending by id.
        :raises OneboxError: if a page can't be fetched.
        """
        others = (done for run_id, done in self._state.runs.items() if run_id != self._ti.run_id)
        return self._policy.batches(self._known, self._again, {row_id for done in others for row_id in done.late})

    def prepare(self, file: RecordFile) -> None:
        """Store what is about to be published.

        :param file: the finished file.
        :raises OneboxConfigError: if the run may not write that file.
        :raises OneboxError: if another process has changed the watermark since :meth:`begin`.
        """
        if self._ti.run_id not in self._state.runs:
            self._reject_path_of_others(file)
        done, known = self._policy.result()
        done.map_index, done.place = self._ti.map_index, _place(file)
        self._pending = Pending(self._ti.run_id, file.name, file.digest(), done, known, self._ti.try_number)
        self._next = self._state.committed(self._pending)
        self._write(msgspec.structs.replace(self._state, pending=self._pending), "nothing was written")

    def commit(self) -> Done:
        """Move the watermark, now that the file is published.

        :return: what was written.
        :raises OneboxError: if another process has changed the watermark since :meth:`prepare`.
        """
        self._write(self._next, "the file was written, but not counted")
        return self._pending.done

    def _read_alone(self) -> None:
        # At random, so that of two which wait for each other one fails first and the other goes on.
        deadline = time.monotonic() + random.uniform(0, PATIENCE)  # noqa: S311
        while True:
            # Read first: what a live run has prepared is never taken for what a dead one left.
            self._text = Variable.get(self.key, None)
            if not is_running_elsewhere(self._ti):
                return
            if time.monotonic() >= deadline:
                raise OneboxError(
                    f"Another run of this task is in flight and uses the watermark {self.key!r}: nothing was "
                    "listed. Retry when it has ended, and set max_active_tis_per_dag=1 to prevent this.",
                    retryable=True,
                )
            time.sleep(POLL_SECONDS)

    def _resolve(self, pending: Pending[K]) -> None:
        """Find out whether the file of a run that died was published."""
        if pending.run_id == self._ti.run_id and pending.try_number > self._ti.try_number:
            raise OneboxError(
                f"Try {pending.try_number} of this run has prepared its file already in the watermark {self.key!r}, "
                f"and this is try {self._ti.try_number}, which is superseded: nothing was listed. If the run was "
                'deleted and created again, remove "try_number" from that Variable.',
                retryable=True,
            )
        try:
            digest = digest_at(pending.path)
        except Exception as error:
            raise OneboxError(
                f"The run {pending.run_id!r} died while it wrote {pending.path}, and that can't be read now, so it is "
                f"not known where to resume: {sanitize(error)}. Make the file readable; or, if it is gone for good, "
                f'remove "pending" from the Variable {self.key!r}.',
                retryable=True,
            ) from error
        state = msgspec.structs.replace(self._state, pending=None)
        self._state = state.committed(pending) if digest == pending.digest else state

    def _keep(self, file: RecordFile, done: Done) -> Done:
        if done.count and not file.exists():
            raise OneboxConfigError(
                f"This run has written {done.count:,} records, but {file.name} no longer exists. They may have changed "
                "since, so they can't be listed as they were: restore the file, or list them in a separate run with "
                "last_update and without incremental."
            )
        self._write(self._state, "the file is published already")  # It may have been prepared only.
        log.info("%s is published already, with %s records, and is kept.", file.name, f"{done.count:,}")
        return done

    def _reject_path_of_others(self, file: RecordFile) -> None:
        if self._repeats:
            return
        if file.name == self._state.path or file.exists():
            raise OneboxConfigError(
                f"{file.name} was written by another run, or by this one so long ago that the watermark {self.key!r} "
                f"no longer knows it (it knows {KEPT_RUNS} runs); it was not replaced. Use a different path "
                "for each run, for example with {{ run_id }}; to repeat this run, move the file away first."
            )

    def _reject_sibling(self, file: RecordFile, done: Done) -> None:
        if done.map_index != self._ti.map_index and done.place != _place(file):
            raise OneboxConfigError(
                f"The mapped instances {done.map_index} and {self._ti.map_index} of this task use one watermark, "
                f"{self.key!r}, because they have the same connection, site and resource: nothing was listed. Give "
                "each its own state_key, such as {{ ti.map_index }}."
            )

    def _parse(self, text: Any) -> State[K]:
        try:
            state: State[K] = self._decode(str(text))
        except msgspec.MsgspecError:
            raise OneboxConfigError(
                f"The watermark {self.key!r} is {sanitize(text)!r}, which this provider did not write. Set it to "
                f"{self._policy.example}."
            ) from None
        return state

    def _write(self, state: State[K], consequence: str) -> None:
        if Variable.get(self.key, None) != self._text:
            raise OneboxError(
                f"The watermark {self.key!r} was changed meanwhile, by another process of this task or by hand: "
                f"{consequence}. A retry uses its new value.",
                retryable=True,
            )
        self._text, self._state = msgspec.json.encode(state).decode(), state
        Variable.set(self.key, self._text)


def _place(file: RecordFile) -> str:
    return hashlib.blake2b(file.name.encode(), digest_size=4).hexdigest()
