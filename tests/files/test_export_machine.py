"""Incremental exports under everything that can happen to them, against a model that knows what each file must hold.

A history is up to 50 events: new records, runs, retries, clears, kills, processes that Airflow has given up and that go
on, several at once, each stopped at any of its steps; mapped instances, changed outlets and asset stores, and what
the first version has left. ``EXPORT_HISTORIES`` says how many histories, half of them by id and half by changes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from greenlet import getcurrent, greenlet
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.watermarks import Deployment, StateStore

from airflow_provider_onebox.api.pagination import Batch
from airflow_provider_onebox.exceptions import OneboxError
from airflow_provider_onebox.files import atomic, changes
from airflow_provider_onebox.files import export as export_module
from airflow_provider_onebox.files import watermark as module
from airflow_provider_onebox.files.changes import list_changes
from airflow_provider_onebox.files.export import export
from airflow_provider_onebox.files.records import RecordFile
from airflow_provider_onebox.files.watermark import Watermark

SCOPE = ("crm", "169", "ticketrz")
INDEXES = [-1, 0, 1]
KEPT = 3
STEPS = st.integers(0, 15) | st.just(99)
"""Steps that a process takes at once: about as many as an export has, or all."""

OLD_KEY = "onebox_mark.d.t.crm.169.ticketrz"


class Killed(BaseException):
    """Ends a process where it stands."""


class Process:
    """A task's process, taken from step to step."""

    def __init__(self, run: Any, work: Any) -> None:
        self.run = run
        self.lost = False  # Airflow has given it up
        self.step = "start"
        self.outcome: Any = None
        self._kill = False
        self._greenlet = greenlet(self._main)
        self._greenlet.process = self
        self._work = work

    def _main(self) -> None:
        try:
            if not self._kill:
                self.outcome = self._work()
        except BaseException as error:  # noqa: BLE001 - the machine judges it
            self.outcome = error
        self.step = "end"

    @classmethod
    def pause(cls, step: str) -> None:
        """Wait here until the machine lets this process go on."""
        process = getattr(getcurrent(), "process", None)
        if process is None:
            return
        process.step = step
        process._greenlet.parent.switch()
        if process._kill:
            raise Killed

    def go_on(self, *, kill: bool = False) -> None:
        """Take the process to its next step."""
        assert not self._greenlet.dead
        self._kill = kill
        self._greenlet.switch()


class Run:
    """What the model knows of one DAG run of one instance."""

    def __init__(self, number: int, index: int, path: Path) -> None:
        self.id, self.index, self.path = f"r{number}", index, path
        self.succeeded = False
        self.placed = False  # its file got there, before Airflow had given it up
        self.range: tuple[int, int] | None = None  # once it is counted
        self.process: Process | None = None
        self.tries = 0
        self.ghosts: list[Process] = []


class Exports(RuleBasedStateMachine):
    """Runs, and what becomes of them."""

    kind = "onebox_watermark"
    after_look: tuple[str, ...] = ("write",)  # steps that follow a look at the watermark, and take milliseconds

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="exports-"))
        self.patch = pytest.MonkeyPatch()
        self.airflow = Deployment(self.patch)
        self.airflow.before = Process.pause
        self.patch.setattr(module, "KEPT_RUNS", KEPT)
        self.patch.setattr(module, "PATIENCE", 0)
        self.patch.setattr(export_module.log, "disabled", True)
        self.patch.setattr(atomic.os, "fsync", lambda file: None)
        for name in ("publish", "exists"):
            self.patch.setattr(RecordFile, name, self._paused(name, getattr(RecordFile, name)))
        self.patch.setattr(RecordFile, "__exit__", self._exit(RecordFile.__exit__))
        self.rows = 0
        self.runs: list[Run] = []
        self.counted: list[Run] = []  # in this order
        self.start = dict.fromkeys(INDEXES, 0)  # where the first run of this version begins
        self.last = dict.fromkeys(INDEXES, 0)
        self.assets: list[str] = []
        self.old_home = ""

    @staticmethod
    def _paused(name: str, method: Any) -> Any:
        def paused(file: RecordFile) -> Any:
            Process.pause(name)
            return method(file)

        return paused

    @staticmethod
    def _exit(leave: Any) -> Any:
        def exit_(file: RecordFile, kind: Any, *rest: Any) -> None:
            if kind is Killed:
                file._raw.close()  # All that the kernel does for a process that is killed.
            else:
                leave(file, kind, *rest)

        return exit_

    @initialize(
        home=st.sampled_from(["", "", "variable", "store", "both"]), last=st.integers(1, 9), more=st.integers(0, 4)
    )
    def begin(self, home: str, last: int, more: int) -> None:
        """Begin with nothing, or with what the first version has left."""
        self.rows = last + more
        self.old_home = home
        if not home:
            return
        old = Run(len(self.runs), -1, self.folder / "old")
        old.range, old.succeeded = (0, last), True
        self.runs.append(old)
        old.path.write_text("".join(json.dumps({"Id": str(i)}) + "\n" for i in range(1, last + 1)))
        text = json.dumps({"last": last, "runs": {old.id: [0, last]}})
        behind = json.dumps({"last": last // 2, "runs": {}})
        if home in ("variable", "both"):
            self.airflow.variables[OLD_KEY] = text
        if home in ("store", "both"):
            assert self.airflow.stores is not None
            self.airflow.stores["asset"][OLD_KEY] = text if home == "store" else behind
            self.assets = ["asset"]
        self.start = {index: last if index >= 0 else 0 for index in INDEXES}
        self.last = dict.fromkeys(INDEXES, last)

    # --- events

    @rule(more=st.integers(1, 4))
    def add_records(self, more: int) -> None:
        """Onebox gets new records, perhaps while they are listed."""
        self.rows += more

    @rule(index=st.sampled_from([-1, *INDEXES]), steps=STEPS)
    def start_run(self, index: int, steps: int) -> None:
        """A new run begins, with a path of its own."""
        self._new_run(index, steps)

    def _new_run(self, index: int, steps: int) -> Run:
        run = Run(len(self.runs), index, self.folder / f"r{len(self.runs)}.jsonl")
        self.runs.append(run)
        self._start(run, steps)
        return run

    @rule(index=st.sampled_from([-1, *INDEXES]), steps=st.integers(5, 14))
    def run_and_kill(self, index: int, steps: int) -> None:
        """A run is killed near its end."""
        process = self._new_run(index, steps).process
        if process:
            self._step(process, kill=True)

    @rule(index=st.sampled_from([-1, *INDEXES]), turns=st.lists(st.booleans(), min_size=10, max_size=40))
    def race(self, index: int, turns: list[bool]) -> None:
        """Two runs begin together and take their steps by turns."""
        pair = [self._new_run(index, 0).process, self._new_run(index, 0).process]
        for turn in turns:
            process = pair[turn]
            if process and process.step != "end":
                self._step(process)

    def _idle(self, *, succeeded: bool) -> list[Run]:
        return [run for run in self.runs if not run.process and run.succeeded is succeeded and self._may_start(run)]

    def _may_start(self, run: Run) -> bool:
        # Airflow's supervisor ends a process that was given up before another run has taken over what it announced.
        late = any(process.step == "publish" for process in run.ghosts)
        return not late or self._announced(run.index) == run.id

    @rule(data=st.data(), steps=STEPS)
    def try_again(self, data: st.DataObject, steps: int) -> None:
        """A run that has failed is tried again."""
        if runs := self._idle(succeeded=False):
            self._start(data.draw(st.sampled_from(runs)), steps)

    @rule(data=st.data(), steps=STEPS)
    def clear(self, data: st.DataObject, steps: int) -> None:
        """A run that has succeeded, perhaps long ago, is cleared."""
        if runs := self._idle(succeeded=True):
            self._start(data.draw(st.sampled_from(runs)), steps)

    def _start(self, run: Run, steps: int) -> None:
        self.airflow.running.add(("d", "t", run.id, run.index))
        run.tries += 1
        context: Any = self.airflow.context(run.id, map_index=run.index, try_number=run.tries)
        process = run.process = Process(run, self._work(run, context, list(self.assets)))
        self._take(process, steps)

    def _work(self, run: Run, context: Any, assets: list[str]) -> Any:
        def listing(after: int, upto: int | None) -> Any:
            while after < self.rows:
                ids = range(after + 1, min(after + 3, self.rows) + 1)
                Process.pause("page")
                yield Batch([{"Id": str(row)} for row in ids], ids[-1], None)
                after = ids[-1]

        def work() -> Any:
            return export(RecordFile(run.path), listing, 0, Watermark(context, assets, SCOPE))

        return work

    def _take(self, process: Process, steps: int) -> None:
        for _ in range(steps):
            if process.step != "end":
                self._step(process)

    def _processes(self) -> list[Process]:
        return [process for run in self.runs for process in [run.process, *run.ghosts] if process]

    @rule(data=st.data(), steps=STEPS)
    def go_on(self, data: st.DataObject, steps: int) -> None:
        """One of the processes takes some steps."""
        if found := self._processes():
            self._take(data.draw(st.sampled_from(found)), steps)

    @rule(data=st.data(), steps=STEPS)
    def kill(self, data: st.DataObject, steps: int) -> None:
        """A process is killed, some steps on."""
        if found := self._processes():
            process = data.draw(st.sampled_from(found))
            self._take(process, steps % 20)
            if process.step != "end":
                self._step(process, kill=True)

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """Airflow gives a process up, and it goes on all the same."""
        # The promise leaves out one that hangs between its look at the watermark and its write, so this does too.
        if found := [run for run in self.runs if run.process and run.process.step not in self.after_look]:
            self._lose(data.draw(st.sampled_from(found)))

    def _lose(self, run: Run) -> Process:
        process = run.process
        assert process
        process.lost = True
        run.ghosts.append(process)
        self._leave(run)
        return process

    def _leave(self, run: Run) -> None:
        run.process = None
        self.airflow.running.discard(("d", "t", run.id, run.index))

    @rule(assets=st.sampled_from([[], ["asset"], ["asset", "other"], ["renamed"]]), version_33=st.booleans())
    @precondition(
        lambda self: self.old_home != "store" or all(self._key(index) in self.airflow.variables for index in INDEXES)
    )
    def change_dag(self, assets: list[str], version_33: bool) -> None:
        """Outlets come and go, and Airflow is another one."""
        self.assets = assets
        if not version_33:
            self.airflow.stores = None
        elif self.airflow.stores is None:
            self.airflow.stores = {"asset": StateStore()}

    def _step(self, process: Process, *, kill: bool = False) -> None:
        run = process.run
        if process.lost:
            # Nor may it act between such a look and write of another.
            for other in self._processes():
                if other.step == "write" and other.run.index == run.index and not other.lost:
                    self._step(other)
        before = self._read(run.path)
        run.placed |= process.step == "publish" and not process.lost and not kill
        process.go_on(kill=kill)
        while process.lost and process.step in self.after_look and not kill:
            process.go_on()
        if process.step == "end":
            outcome = process.outcome
            if process.lost:
                run.ghosts.remove(process)
            else:
                self._leave(run)
            if isinstance(outcome, dict):
                run.succeeded = run.succeeded or not process.lost
                self._check_result(run, outcome)
            elif outcome is not None and not isinstance(outcome, (Killed, OneboxError)):
                raise outcome
        after = self._read(run.path)
        if run.range and before is not None:
            assert after is not None
            assert set(before) <= set(after), f"{run.id} holds less than it held"

    def _check_result(self, run: Run, outcome: dict[str, Any]) -> None:
        self._count()
        assert run.range, f"{run.id} succeeded and is not counted"
        ids = self._read(run.path) or []
        assert outcome["count"] == len(ids)
        assert outcome["last_id"] == str(run.range[1])
        assert outcome["first_id"] == (str(ids[0]) if ids else None)

    # --- what must hold

    def _key(self, index: int) -> str:
        return "@".join((self.kind, "d", "t", *SCOPE, *([str(index)] if index >= 0 else [])))

    def _stored(self, index: int) -> dict[str, Any]:
        return json.loads(self.airflow.variables.get(self._key(index), '{"last": 0, "runs": {}}'))

    def _announced(self, index: int) -> str | None:
        pending = self._stored(index).get("pending")
        return pending and str(pending["run_id"])

    @staticmethod
    def _read(path: Path) -> list[int] | None:
        with suppress(FileNotFoundError):
            return [int(json.loads(line)["Id"]) for line in path.read_text().splitlines()]
        return None

    def _count(self) -> None:
        # In the order of the watermark: one step can count what a run that died has left, and then its own.
        for run in sorted(self.runs, key=lambda run: [*self._stored(run.index)["runs"], run.id].index(run.id)):
            stored = self._stored(run.index)["runs"].get(run.id)
            if stored is not None:
                found = (int(stored[0]), int(stored[1]))
                assert run.range in (None, found), f"{run.id} has changed its range"
                if not run.range:
                    self.counted.append(run)
                run.range = found

    @invariant()
    def no_watermark_moves_back(self) -> None:
        """The watermark only grows."""
        for index in INDEXES:
            if self._key(index) in self.airflow.variables:
                last = self._stored(index)["last"]
                assert last >= self.last[index]
                self.last[index] = last

    @invariant()
    def none_lost_none_twice(self) -> None:
        """The counted runs' ranges follow each other without gaps, and each file holds its range."""
        self._count()
        for index in INDEXES:
            counted = [run for run in self.runs if run.index == index and run.range]
            reached = self.start[index]
            for run in sorted(counted, key=lambda run: (run.range, run.id)):
                assert run.range
                after, last = run.range
                assert after == reached, f"{run.id} begins at {after}, and the one before ends at {reached}"
                reached = last
                assert self._read(run.path) == list(range(after + 1, last + 1))
            if self._key(index) in self.airflow.variables:
                assert reached == self.last[index]

    def _check_last(self, run: Run) -> None:
        assert run.range
        assert run.range[1] == self.rows

    def teardown(self) -> None:
        """Let the dust settle: the next run of each instance works, and then nothing is missing."""
        try:
            for process in self._processes():
                # A step of one can be the last of another.
                if process.step != "end":
                    self._step(process, kill=True)
            for index in INDEXES:
                run = self._new_run(index, 99)
                assert run.succeeded
                assert run.range
                self._check_last(run)
            self.no_watermark_moves_back()
            self.none_lost_none_twice()
            assert not [run.id for run in self.runs if run.placed and not run.range]
        finally:
            self.patch.undo()
            shutil.rmtree(self.folder)


class Changes(Exports):
    """The same for records that change: a version of a record is written at most once, and the last one at the end."""

    kind = "onebox_changes"
    # The file can be written anew with other content, so a process must not hang there either.
    after_look = ("write", "publish")

    @initialize(rows=st.integers(0, 9))
    def begin(self, rows: int) -> None:
        """Begin with some records."""
        self.now = datetime(2026, 1, 1)
        self.records: dict[int, list[Any]] = {}  # ModifyDate and version
        self.held: dict[str, Any] = {}
        self.until = dict.fromkeys(INDEXES, "")
        self._add(rows)

    def _add(self, more: int) -> None:
        for _ in range(more):
            self.rows += 1
            self.records[self.rows] = [self.now, 0]

    @rule(more=st.integers(1, 4))
    def add_records(self, more: int) -> None:
        """Onebox gets new records, perhaps while they are listed."""
        self._add(more)

    @rule(ids=st.lists(st.integers(1, 15), max_size=6), seconds=st.sampled_from([0, 0, 1, 20, 59, 60, 300]))
    def change(self, ids: list[int], seconds: int) -> None:
        """Records change, perhaps while they are listed, in the same second as others or later."""
        self.now += timedelta(seconds=seconds)
        for row in ids:
            if row in self.records:
                self.records[row] = [self.now, self.records[row][1] + 1]

    def _work(self, run: Run, context: Any, assets: list[str]) -> Any:
        def list_since(time: datetime | None, most: int | None) -> Any:
            after = 0
            while True:
                if not most:
                    Process.pause("page")
                found = [row for row, (date, _) in self.records.items() if row > after and (not time or date > time)]
                rows = [
                    {"Id": str(row), "ModifyDate": str(self.records[row][0]), "V": self.records[row][1]}
                    for row in found[: most or 3]
                ]
                if rows:
                    after = found[len(rows) - 1]
                    yield Batch(rows, after, None)
                if most or not rows:
                    return

        def work() -> Any:
            watermark = Watermark(context, assets, SCOPE, changes.Changes())

            def listing(after: int, upto: int | None) -> Any:
                known, watermark.changes = watermark.changes, changes.Changes()
                assert known
                return list_changes(list_since, known, watermark.changes, "ticketrz")

            return export(RecordFile(run.path), listing, 0, watermark)

        return work

    @staticmethod
    def _read(path: Path) -> Any:
        with suppress(FileNotFoundError):
            return [(row["Id"], row["V"]) for row in map(json.loads, path.read_text().splitlines())]
        return None

    def _check_result(self, run: Run, outcome: dict[str, Any]) -> None:
        self._count()
        assert run.range, f"{run.id} succeeded and is not counted"
        rows = self._read(run.path)
        assert outcome["count"] == len(rows)
        assert (outcome["first_id"], outcome["last_id"]) == ((rows[0][0], rows[-1][0]) if rows else (None, None))

    @invariant()
    def no_watermark_moves_back(self) -> None:
        """The watermark only grows."""
        for index in INDEXES:
            until = self._stored(index).get("changes", {}).get("until", "")
            assert until >= self.until[index]
            self.until[index] = until

    @invariant()
    def none_lost_none_twice(self) -> None:
        """No version of a record is written twice, none after a later one, and a counted file never changes."""
        self._count()
        versions: dict[Any, int] = {}
        for run in self.counted:
            rows = self._read(run.path)
            assert self.held.setdefault(run.id, rows) == rows, f"{run.id} is not what it was"
            for row, version in rows:
                assert version > versions.get((run.index, row), -1), f"{run.id} has {row} again"
                versions[run.index, row] = version
        self.versions = versions

    def _check_last(self, run: Run) -> None:
        self.none_lost_none_twice()
        wanted = {(run.index, str(row)): version for row, (_, version) in self.records.items()}
        assert {key: version for key, version in self.versions.items() if key[0] == run.index} == wanted


HISTORIES = settings(
    max_examples=int(os.environ.get("EXPORT_HISTORIES", "200")) // 2,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestExports = Exports.TestCase
TestChanges = Changes.TestCase
TestExports.settings = TestChanges.settings = HISTORIES


@pytest.fixture
def machine() -> Any:
    """Take the steps of a history one by one; at its end everything holds that holds after any other."""
    machine = Exports()
    yield machine
    machine.teardown()


@pytest.mark.parametrize("lost", range(12))
def test_given_up(machine: Exports, lost: int) -> None:
    """A process given up at any of its steps harms no run that begins then, whatever the step it finds that one at."""
    for at in range(12):
        machine.rows += 1
        cleared = machine._new_run(-1, 99)
        machine.rows += 1
        machine._start(cleared, lost)
        if not cleared.process or cleared.process.step == "write":
            continue
        ghost = machine._lose(cleared)
        run = machine._new_run(-1, at)
        machine._take(ghost, 99)
        if run.process:
            machine._take(run.process, 99)
        assert run.succeeded or ghost.outcome is not None, (lost, at)
        assert run.succeeded or not run.placed


def test_given_up_before_a_retry(machine: Exports) -> None:
    """A process given up after it has seen what another run left does not undo what a retry of that one announces."""
    machine.rows = 1
    cleared, run = machine._new_run(-1, 99), machine._new_run(-1, 0)

    def take(run: Run, step: str) -> None:
        assert run.process
        while run.process.step != step:
            machine._step(run.process)

    take(run, "publish")
    assert run.process
    machine._step(run.process, kill=True)
    machine._start(cleared, 0)
    take(cleared, "page")
    ghost = machine._lose(cleared)
    machine._start(run, 0)
    take(run, "publish")
    machine._take(ghost, 99)
    assert isinstance(ghost.outcome, OneboxError)
    machine._take(run.process, 99)
    assert run.succeeded
