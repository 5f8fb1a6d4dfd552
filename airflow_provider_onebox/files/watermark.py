"""Records into a file, whole or not at all; in incremental runs none is lost and none comes twice.

:func:`export` is the whole transaction. What makes an incremental one safe:

1. No two runs work at once. Airflow itself starts one at a time (``max_active_tis_per_dag=1``, set by the operator);
   where that does not bind, :meth:`Watermark.begin` reads the watermark and then counts the running instances of the
   task in Airflow's database. A task is running there before its first line is executed, so of two, at least one sees
   the other, and waits or fails; and what one that still runs has announced is never taken for what a dead one left.
2. Before the file is put in place, the watermark announces it: its path, its digest and its range. Whoever finds the
   announcement of a run that died looks at the file itself to learn whether it got there, so the range is
   counted if and only if the file holds it.
3. An announced range is final: every later try of that run writes the same range, as does a run that is cleared. So
   neither a retry nor an older process that still lives can replace the file by another range. Changes can't be listed
   again as they were: there the file that is in place is kept, and one that is not is listed anew (:mod:`.changes`).
4. Each write of the watermark follows a look that finds it as this process left it; no two tries announce alike.
   One that Airflow has given up finds it changed by its successor and stops, so the watermark never moves back.
5. A run that the watermark does not know replaces no file, and uses no path of another run: it is rejected before
   anything is listed.

Airflow has no compare-and-set, so one case is left: a process that Airflow has given up and that goes on, if its look
and write fall between those of another (milliseconds), or if its upload hangs until another run has taken over its
range and its own run was tried again (by changes, as soon as its own run was tried again). Airflow's supervisor ends
such a process at its next heartbeat.
"""

from __future__ import annotations

import logging
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from airflow.providers.common.compat.sdk import Variable

from airflow_provider_onebox._airflow.compat import is_running_elsewhere
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, sanitize
from airflow_provider_onebox.files.atomic import digest_at
from airflow_provider_onebox.files.changes import Changes  # noqa: TC001 - msgspec looks at it

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_onebox.files.records import RecordFile
from airflow_provider_onebox._airflow.variables import shorten_key

KEPT_RUNS = 500
"""Runs whose range is remembered, for when one of them is repeated."""


PATIENCE = 60.0
"""The most seconds to wait for another instance of the task to end."""


POLL_SECONDS = 2.0


log = logging.getLogger(__name__)


class Pending(msgspec.Struct, omit_defaults=True):
    """A file that is about to be put in place.

    :param run_id: the DAG run that writes it.
    :param path: where.
    :param digest: what.
    :param after: where its range begins; where it goes by changes, its first id.
    :param last: where its range ends.
    :param try_number: which try of that run.
    :param changes: what is written with it, where it goes by changes.
    """

    run_id: str
    path: str
    digest: str
    after: int
    last: int
    try_number: int = 0
    changes: Changes | None = None


class State(msgspec.Struct, omit_defaults=True):
    """What a watermark holds.

    :param last: the last id that was written.
    :param runs: for each of the latest runs, where its range begins and ends; where it goes by changes, its first and
        last id and how many records there are.
    :param path: where the latest run has written.
    :param pending: what was announced and is not yet known to be in place.
    :param changes: what was written, where it goes by changes.
    """

    last: int
    runs: dict[str, tuple[int, ...]]
    path: str | None = None
    pending: Pending | None = None
    changes: Changes | None = None

    def committed(self, done: Pending) -> State:
        """Count a file that is in place.

        :param done: the file.
        :return: the new state.
        """
        count = (done.changes.count,) if done.changes else ()
        runs = {**self.runs, done.run_id: (done.after, done.last, *count)}
        latest = dict(list(runs.items())[-KEPT_RUNS:])
        return State(max(self.last, done.last), latest, done.path, changes=done.changes)


class Watermark:
    """Where an incremental export begins; kept in an Airflow Variable, which every Airflow has.

    There is one for each task, map index, connection, site and resource, named :attr:`key`. What the first
    version kept elsewhere is read where it is missing: its Variable, and on Airflow 3.3 the entries in the
    state store of the task's assets; the one that came furthest counts.

    :param context: the task's context.
    :param assets: the task's inlets and outlets.
    :param scope: connection, site and resource.
    :param changes: where to begin if nothing was ever written, for an export of what is new *or changed*; such a one
        never writes a range again, because records change on: a file that is in place is kept.
    """

    kept: dict[str, Any] | None = None
    """What this run has written before, where it goes by changes."""

    # Set by begin, the next state by announce.
    _state: State
    _next: State
    _repeats: bool

    def __init__(
        self, context: Context, assets: list[Any], scope: tuple[str, str, str], changes: Changes | None = None
    ) -> None:
        ti: Any = context["ti"]
        self._ti = ti
        self._stores: Any = context.get("asset_state_store")
        self._assets = assets
        self._scope = scope
        self._mapped = ti.map_index is not None and ti.map_index >= 0
        self._text: str | None = None
        self.changes = changes

    @property
    def key(self) -> str:
        """``onebox_watermark@<dag>@<task>@<connection>@<site>@<resource>``, ``@<map index>`` behind it if mapped.

        It begins with ``onebox_changes`` if it goes by changes.
        """
        # No id of Airflow's can hold an @, so no two tasks have the same key.
        index = [str(self._ti.map_index)] if self._mapped else []
        kind = "onebox_changes" if self.changes else "onebox_watermark"
        return shorten_key("@".join((kind, self._ti.dag_id, self._ti.task_id, *self._scope, *index)))

    def begin(self, start: int, file: RecordFile) -> tuple[int, int | None]:
        """Find out what this run has to list.

        :param start: where to begin if nothing was ever written.
        :param file: where it will write.
        :return: records with ids greater than the first, up to the second; ``None`` for all there are.
        :raises OneboxConfigError: if the watermark can't be read, or the run may not write that file.
        :raises OneboxError: if another instance of the task is running, or the file of one that died can't be read.
        """
        self._read_alone()
        found = self._older() if self._text is None else _decode(self.key, self._text)
        self._state = found or State(start, {})
        run_id, pending = self._ti.run_id, self._state.pending
        self._repeats = bool(pending and pending.run_id == run_id)
        if pending and self._repeats and not self.changes:
            after, upto = pending.after, pending.last
        else:
            if pending:
                if self._repeats and pending.try_number > self._ti.try_number:
                    raise OneboxError(
                        f"Try {pending.try_number} of this run has announced its file already in the watermark "
                        f"{self.key!r}, and this is try {self._ti.try_number}, which Airflow has given up: nothing was "
                        'listed. If the run was deleted and created again, remove "try_number" from that Variable.',
                        retryable=True,
                    )
                self._state = self._resolved(pending)
            known = self._state.runs.get(run_id)
            if not known:
                self._reject_path_of_others(file)
                after, upto = self._state.last, None
            elif self.changes:
                self.kept = self._keep(file, *known)
                return self._state.last, None
            else:
                after, upto = known
        if self.changes:
            self.changes = self._state.changes or self.changes
            log.info("The watermark %s: everything changed until %r has been written.", self.key, self.changes.until)
            return after, upto
        log.info("The watermark %s is at Id %s; this run begins after Id %s.", self.key, self._state.last, after)
        return after, upto

    def prepare(self, file: RecordFile, after: int, last: int) -> None:
        """Write down what is about to be put in place.

        :param file: the finished file.
        :param after: where its range begins.
        :param last: where its range ends.
        :raises OneboxConfigError: if the run may not write that file.
        :raises OneboxError: if another process has changed the watermark since :meth:`begin`.
        """
        run_id = self._ti.run_id
        if run_id not in self._state.runs:
            self._reject_path_of_others(file)
        if self.changes:
            self.changes.count = file.count
        new = Pending(run_id, file.name, file.digest(), after, last, self._ti.try_number, self.changes)
        self._next = self._state.committed(new)
        self._write(msgspec.structs.replace(self._state, pending=new), "nothing was written")

    def commit(self) -> None:
        """Move the watermark, now that the announced file is in place.

        :raises OneboxError: if another process has changed the watermark since :meth:`announce`.
        """
        self._write(self._next, "the file was written, but not counted")

    def _read_alone(self) -> None:
        # At random, so that of two which wait for each other one gives up first and the other goes on.
        give_up = time.monotonic() + random.uniform(0, PATIENCE)  # noqa: S311
        while True:
            # Before it is looked who runs: what one that runs has announced is never taken for what one that died left.
            self._text = Variable.get(self.key, None)
            if not self._others_run():
                return
            if time.monotonic() >= give_up:
                raise OneboxError(
                    f"Another instance of this task is running and uses the watermark {self.key!r}: nothing was "
                    "listed. Retry when it has ended, and set max_active_tis_per_dag=1 to prevent this.",
                    retryable=True,
                )
            time.sleep(POLL_SECONDS)

    def _others_run(self) -> bool:
        return is_running_elsewhere(self._ti)

    def _resolved(self, pending: Pending) -> State:
        """Find out whether the file of a run that died got into place."""
        try:
            there = digest_at(pending.path)
        except Exception as error:
            raise OneboxError(
                f"The run {pending.run_id!r} died while it wrote {pending.path}, and that can't be read now, so it is "
                f"not known where to resume: {sanitize(error)}. Make the file readable; or, if it is gone for good, "
                f'remove "pending" from the Variable {self.key!r}.',
                retryable=True,
            ) from error
        state = msgspec.structs.replace(self._state, pending=None)
        return state.committed(pending) if there == pending.digest else state

    def _keep(self, file: RecordFile, first: int, last: int, count: int) -> dict[str, Any]:
        if not file.exists():
            raise OneboxConfigError(
                f"This run has written {count:,} records, but {file.name} no longer exists. They may have changed "
                "since, so they can't be listed as they were: restore the file, or list them in a separate run with "
                "last_update and without incremental."
            )
        self._write(self._state, "it is in place already")  # It may have been announced only.
        log.info("%s is already in place, with %s records, and is kept.", file.name, f"{count:,}")
        return result_of(file, count, *((first, last) if count else (None, None)))

    def _reject_path_of_others(self, file: RecordFile) -> None:
        if self._repeats:
            return
        if file.name == self._state.path or file.exists():
            raise OneboxConfigError(
                f"{file.name} was written by another run, or by this one so long ago that the watermark {self.key!r} "
                f"no longer knows it (it knows {KEPT_RUNS} runs); it was not replaced. Use a different path "
                "for each run, for example with {{ run_id }}; to repeat this run, move the file away first."
            )

    def _older(self) -> State | None:
        """Find the watermark of the first version, in both of its homes; it knew no changes."""
        if self.changes:
            return None
        key = shorten_key(".".join(("onebox_mark", self._ti.dag_id, self._ti.task_id, *self._scope)))
        texts = [Variable.get(key, None)]
        for asset in self._assets if self._stores is not None else ():
            with suppress(KeyError, TypeError):  # An alias has no store.
                texts.append(self._stores[asset].get(key))
        found = sorted((_decode(key, text) for text in texts if text is not None), key=lambda state: state.last)
        if not found:
            return None
        state = found[-1]
        if not self._mapped:
            return msgspec.structs.replace(state, runs={run: ids for one in found for run, ids in one.runs.items()})
        # All indexes had this one together: each goes on behind what they wrote, and which run it was is not known.
        pending = state.pending and msgspec.structs.replace(state.pending, run_id="an earlier version")
        return State(state.last, {}, pending=pending)

    def _write(self, state: State, consequence: str) -> None:
        if Variable.get(self.key, None) != self._text:
            raise OneboxError(
                f"The watermark {self.key!r} was changed meanwhile, by another process of this task or by hand: "
                f"{consequence}. A retry uses its new value.",
                retryable=True,
            )
        self._text, self._state = msgspec.json.encode(state).decode(), state
        Variable.set(self.key, self._text)


def _decode(key: str, text: Any) -> State:
    try:
        return msgspec.json.decode(str(text), type=State)
    except msgspec.MsgspecError:
        begin = '{"last": <id>, "runs": {}} to begin after that id, 0 to start from the beginning'
        if key.startswith("onebox_changes"):
            begin = '{"last": 0, "runs": {}, "changes": {"until": "2026-11-24 08:30:00"}} to begin at such a time'
        raise OneboxConfigError(
            f"The watermark {key!r} is {sanitize(text)!r}, which this provider did not write. Set it to {begin}."
        ) from None


def result_of(file: RecordFile, count: int, first: int | None, last: int | None) -> dict[str, Any]:
    """Describe a file that was written.

    :param file: the file.
    :param count: how many records it has.
    :param first: the id of the first; ``None`` without records.
    :param last: where its range ends.
    :return: the result of the task.
    """
    first_id, last_id = (None if row_id is None else str(row_id) for row_id in (first, last))
    return {"path": file.name, "count": count, "first_id": first_id, "last_id": last_id}
