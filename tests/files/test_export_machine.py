"""Incremental exports under everything that can happen to them, against a model that knows each record's one place.

A history is up to 50 events: new records, some of which become visible late; runs, retries, clears, kills, superseded
processes that go on, several at once, each stopped at any of its steps; pages that can't be fetched; instances of a
mapped task, expanded in any order, with one path or one each; by changes, times that mean nothing.
``EXPORT_HISTORIES`` says how many histories, half of them by id and half by changes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from greenlet import getcurrent, greenlet
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.watermarks import Deployment

from airflow_provider_onebox.api.pagination import Batch
from airflow_provider_onebox.exceptions import OneboxError, OneboxResponseError
from airflow_provider_onebox.files import atomic, changes
from airflow_provider_onebox.files import watermark as module
from airflow_provider_onebox.files.changes import ByChanges
from airflow_provider_onebox.files.export import export_incremental
from airflow_provider_onebox.files.ids import ById
from airflow_provider_onebox.files.records import RecordFile
from airflow_provider_onebox.files.watermark import Watermark

SITES = ["alone", "a", "b"]
"""The site of a task that is not mapped, and the two of a mapped one."""

KEPT = 3
OVERLAP = 6
STEPS = st.integers(0, 15) | st.just(99)
"""Steps that a process takes at once: about as many as an export has, or all."""


class Killed(BaseException):
    """Ends a process at its step."""


class Process:
    """A task's process, taken from step to step."""

    def __init__(self, run: Any, work: Any) -> None:
        self.run = run
        self.lost = False  # superseded
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


@dataclass(eq=False)
class Run:
    """What the model knows of one DAG run of one instance."""

    number: int
    site: str
    path: Path
    index: int
    succeeded: bool = False
    published: bool = False  # before it was superseded
    counted: bool = False
    process: Process | None = None
    tries: int = 0
    ghosts: list[Process] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Return its id."""
        return f"r{self.number}"

    @property
    def instance(self) -> tuple[str, str, str, int]:
        """Return what Airflow knows it by."""
        return ("d", "t" if self.index < 0 else "m", self.id, self.index)


class Exports(RuleBasedStateMachine):
    """Runs, and what becomes of them."""

    kind = "onebox_watermark"
    after_look: tuple[str, ...] = ("write",)  # steps that follow a read of the watermark, and take milliseconds

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="exports-"))
        self.patch = pytest.MonkeyPatch()
        self.airflow = Deployment(self.patch)
        self.airflow.before = Process.pause
        self.patch.setattr(module, "KEPT_RUNS", KEPT)
        self.patch.setattr(module, "PATIENCE", 0)
        self.patch.setattr(changes, "STRAYS", 1)
        self.patch.setattr(atomic.os, "fsync", lambda file: None)
        for name in ("publish", "exists"):
            self.patch.setattr(RecordFile, name, self._paused(name, getattr(RecordFile, name)))
        self.patch.setattr(RecordFile, "__exit__", self._exit(RecordFile.__exit__))
        self.rows = 0
        self.hidden: dict[Any, Any] = {}  # what becomes visible late
        self.failing = 0  # pages until one can't be fetched
        self.runs: list[Run] = []
        self.counted: list[Run] = []  # in this order
        self.held: dict[Any, Any] = {}
        self.last: dict[str, Any] = {}

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

    # --- events

    @rule(more=st.integers(1, 4), late=st.lists(st.integers(1, 4), max_size=2))
    def add_records(self, more: int, late: list[int]) -> None:
        """Onebox gets new records, perhaps while they are listed; some can't be seen yet."""
        self.hidden.update(dict.fromkeys(self.rows + one for one in late if one <= more))
        self.rows += more

    @rule(data=st.data())
    def appear(self, data: st.DataObject) -> None:
        """A late one becomes visible."""
        if self.hidden:
            del self.hidden[data.draw(st.sampled_from(sorted(self.hidden)))]

    @rule(pages=st.integers(1, 3))
    def fail(self, pages: int) -> None:
        """A page can't be fetched, however often it is asked for."""
        self.failing = pages

    @rule(site=st.sampled_from(["alone", *SITES]), index=st.integers(0, 1), steps=STEPS)
    def start_run(self, site: str, index: int, steps: int) -> None:
        """A new run begins, with a separate path; the order of a mapped task's instances is any."""
        self._new_run(site, steps, index)

    def _new_run(self, site: str, steps: int, index: int = 0) -> Run:
        index = -1 if site == "alone" else index
        run = Run(len(self.runs), site, self.folder / f"r{len(self.runs)}.jsonl", index)
        self.runs.append(run)
        self._start(run, steps)
        return run

    @rule(one_path=st.booleans(), swap=st.booleans(), turns=st.lists(st.booleans(), max_size=60))
    def expand(self, one_path: bool, swap: bool, turns: list[bool]) -> None:
        """The instances of a mapped task begin together, in either order, perhaps with one path."""
        number, pair = len(self.runs), []
        for index, site in enumerate(SITES[:0:-1] if swap else SITES[1:]):
            name = f"r{number}.jsonl" if one_path else f"r{number}{site}.jsonl"
            pair.append(Run(number, site, self.folder / name, index))
        self.runs += pair
        processes = [self._start(run, 0) for run in pair]
        for turn in turns:
            if processes[turn].step != "end":
                self._step(processes[turn])

    @rule(site=st.sampled_from(["alone", *SITES]), steps=st.integers(5, 14))
    def run_and_kill(self, site: str, steps: int) -> None:
        """A run is killed near its end."""
        process = self._new_run(site, steps).process
        if process:
            self._step(process, kill=True)

    @rule(site=st.sampled_from(["alone", *SITES]), turns=st.lists(st.booleans(), min_size=10, max_size=40))
    def race(self, site: str, turns: list[bool]) -> None:
        """Two runs begin together and take their steps by turns."""
        pair = [self._new_run(site, 0).process, self._new_run(site, 0).process]
        for turn in turns:
            process = pair[turn]
            if process and process.step != "end":
                self._step(process)

    def _idle(self, *, succeeded: bool) -> list[Run]:
        return [run for run in self.runs if not run.process and run.succeeded is succeeded and self._may_start(run)]

    def _may_start(self, run: Run) -> bool:
        # Airflow's supervisor ends a superseded process before another run has taken over what it prepared.
        late = any(process.step == "publish" for process in run.ghosts)
        return not late or self._prepared(run.site) == run.id

    @rule(data=st.data(), steps=STEPS)
    def try_again(self, data: st.DataObject, steps: int) -> None:
        """A run that has failed is tried again."""
        if runs := self._idle(succeeded=False):
            self._start(data.draw(st.sampled_from(runs)), steps)

    @rule(data=st.data(), steps=STEPS, reorder=st.booleans())
    def clear(self, data: st.DataObject, steps: int, reorder: bool) -> None:
        """A run that has succeeded, perhaps long ago, is cleared; it may be expanded in another order then."""
        if runs := self._idle(succeeded=True):
            run = data.draw(st.sampled_from(runs))
            self.airflow.succeeded.discard(run.instance)
            if reorder and run.index >= 0 and not [one for one in self.runs if one.id == run.id and one is not run]:
                run.index = 1 - run.index
            self._start(run, steps)

    def _start(self, run: Run, steps: int) -> Process:
        self.airflow.running.add(run.instance)
        run.tries += 1
        ti = self.airflow.ti(run.id, run.instance[1], map_index=run.index, try_number=run.tries)
        watermark = Watermark(ti, (run.site,), self._policy(run.site))
        process = run.process = Process(
            run, lambda: export_incremental(RecordFile(run.path, ti=ti), watermark, "ticketrz")
        )
        self._take(process, steps)
        return process

    def _page(self) -> None:
        Process.pause("page")
        self.failing -= 1
        if self.failing == 0:
            raise OneboxResponseError("The page is empty.")

    def _policy(self, site: str) -> Any:
        def list_after(after: int, most: int | None) -> Any:
            assert most is None
            while True:
                self._page()
                ids = [row for row in range(after + 1, self.rows + 1) if row not in self.hidden][:3]
                if not ids:
                    return
                yield Batch([{"Id": str(row), "Site": site} for row in ids], ids[-1], None)
                after = ids[-1]

        return ById(list_after, overlap=OVERLAP)

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
        """A process is superseded, and goes on all the same."""
        # The promise leaves out one that hangs between its read of the watermark and its write, so this does too.
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
        self.airflow.running.discard(run.instance)

    def _step(self, process: Process, *, kill: bool = False) -> None:
        run = process.run
        if process.lost:
            # Nor may it act between such a read and write of another.
            for other in self._processes():
                if other.step == "write" and other.run.site == run.site and not other.lost:
                    self._step(other)
        at_publish = process.step == "publish" and not process.lost and not kill
        process.go_on(kill=kill)
        run.published |= at_publish and process.step != "end"
        while process.lost and process.step in self.after_look and not kill:
            process.go_on()
        if process.step == "end":
            outcome = process.outcome
            if process.lost:
                run.ghosts.remove(process)
            else:
                self._leave(run)
            if isinstance(outcome, dict):
                if not process.lost:
                    run.succeeded = True
                    self.airflow.succeeded.add(run.instance)
                self._check_result(run, outcome)
            elif outcome is not None and not isinstance(outcome, (Killed, OneboxError)):
                raise outcome

    def _check_result(self, run: Run, outcome: dict[str, Any]) -> None:
        self._count()
        assert run.counted, f"{run.id} succeeded and is not counted"
        rows = self._read(run.path) or []
        ends = (outcome["first_id"], outcome["last_id"])
        assert (outcome["count"], ends) == (len(rows), self._ends(run, rows))

    def _ends(self, run: Run, rows: list[Any]) -> tuple[Any, Any]:
        return str(rows[0]) if rows else None, str(self._stored(run.site)["runs"][run.id][2])

    # --- what must hold

    def _stored(self, site: str) -> dict[str, Any]:
        key = "@".join((self.kind, "d", "t" if site == "alone" else "m", site))
        return dict(json.loads(self.airflow.variables.get(key, '{"known": {}}')))

    def _prepared(self, site: str) -> str | None:
        pending = self._stored(site).get("pending")
        return pending and str(pending["run_id"])

    @staticmethod
    def _read(path: Path) -> Any:
        with suppress(FileNotFoundError):
            return [int(json.loads(line)["Id"]) for line in path.read_text().splitlines()]
        return None

    def _count(self) -> None:
        # In the order of the watermark: one step can count what a run that died has left, and then its own.
        for run in sorted(self.runs, key=lambda run: [*self._stored(run.site).get("runs", {}), run.id].index(run.id)):
            if run.id in self._stored(run.site).get("runs", {}) and not run.counted:
                self.counted.append(run)
                run.counted = True

    @invariant()
    def no_watermark_moves_back(self) -> None:
        """The watermark only grows."""
        for site in SITES:
            last = self._position(site)
            assert last >= self.last.get(site, last)
            self.last[site] = last

    def _position(self, site: str) -> Any:
        return self._stored(site)["known"].get("last", 0)

    @invariant()
    def each_in_one_place(self) -> None:
        """No record is in two counted files, and none is ever taken out of one; what is added is too late."""
        self._count()
        places: dict[Any, str] = {}
        for run in self.counted:
            ids = self._read(run.path)
            assert ids == sorted(set(ids))
            assert {json.loads(line)["Site"] for line in run.path.read_text().splitlines()} <= {run.site}
            before = self.held.setdefault((run.id, run.site), ids)
            assert set(before) <= set(ids), f"{run.id} holds less than it held"
            assert all(row <= self.last[run.site] - OVERLAP for row in {*ids} - {*before}), f"{run.id} holds more"
            self.held[run.id, run.site] = ids
            for row in ids:
                assert (run.site, row) not in places, f"{row} is in {places[run.site, row]} and in {run.id}"
                places[run.site, row] = run.id
        self.places = places

    def _check_last(self, site: str) -> None:
        self.each_in_one_place()
        visible = {row for row in range(1, self.rows + 1) if row not in self.hidden}
        lost = {row for row in visible if (site, row) not in self.places}
        assert all(row <= self.last[site] - OVERLAP for row in lost), lost

    def teardown(self) -> None:
        """Let everything end: the next run of each site works, and then nothing is missing."""
        try:
            self.failing = 0
            for process in self._processes():
                # A step of one can be the last of another.
                if process.step != "end":
                    self._step(process, kill=True)
            for site in SITES:
                run = self._new_run(site, 99)
                assert run.succeeded, run.id
                self.no_watermark_moves_back()
                self._check_last(site)
            for run in self.runs:
                shared = any(one.path == run.path for one in self.counted if one is not run)
                assert run.counted or shared or not run.published, f"{run.id} was published and is not counted"
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
        self._add(rows)

    def _add(self, more: int) -> None:
        for _ in range(more):
            self.rows += 1
            self.records[self.rows] = [str(self.now), 0]

    @rule(more=st.integers(1, 4))
    def add_records(self, more: int) -> None:
        """Onebox gets new records, perhaps while they are listed."""
        self._add(more)

    @rule(
        ids=st.lists(st.integers(1, 15), max_size=6),
        seconds=st.sampled_from([0, 0, 1, 20, 59, 60, 300, 900]),
        late=st.booleans(),
    )
    def change(self, ids: list[int], seconds: int, late: bool) -> None:
        """Records change, perhaps while they are listed, in the same second as others or later; or it shows later."""
        self.now += timedelta(seconds=seconds)
        for row in ids:
            if row in self.records and row not in self.hidden:
                change = [str(self.now), self.records[row][1] + 1]
                (self.hidden if late else self.records)[row] = change

    @rule(data=st.data())
    def appear(self, data: st.DataObject) -> None:
        """A late one becomes visible, under the time of its change."""
        if self.hidden:
            row = data.draw(st.sampled_from(sorted(self.hidden)))
            self.records[row] = self.hidden.pop(row)

    @rule(row=st.integers(2, 15), date=st.sampled_from(["3000-01-01 00:00:00", "0000-00-00 00:00:00", None, ""]))
    def odd(self, row: int, date: Any) -> None:
        """A record gets a time that means nothing."""
        if row in self.records and row not in self.hidden:
            self.records[row] = [date, self.records[row][1] + 1]

    @rule()
    def stray(self) -> None:
        """A clock that is wrong gives a record a time ahead of all others."""
        if 1 in self.records and 1 not in self.hidden:
            self.records[1] = ["2026-06-01 10:00:00", self.records[1][1] + 1]

    def _policy(self, site: str) -> Any:
        def list_since(time: datetime | None, most: int | None) -> Any:
            after = 0
            while True:
                if not most and (not time or time.year < 2026 or time < self.now + timedelta(days=100)):
                    self._page()
                found = [
                    row
                    for row, (date, _) in self.records.items()
                    if row > after and (not time or (date and date > str(time)))
                ]
                rows = [
                    {"Id": str(row), "ModifyDate": self.records[row][0], "V": self.records[row][1], "Site": site}
                    for row in found[: most or 3]
                ]
                if rows:
                    after = found[len(rows) - 1]
                    yield Batch(rows, after, None)
                if most or not rows:
                    return

        return ByChanges(list_since, "ticketrz", overlap=OVERLAP)

    @staticmethod
    def _read(path: Path) -> Any:
        with suppress(FileNotFoundError):
            return [(row["Id"], row["V"]) for row in map(json.loads, path.read_text().splitlines())]
        return None

    def _ends(self, run: Run, rows: list[Any]) -> tuple[Any, Any]:
        return (rows[0][0], rows[-1][0]) if rows else (None, None)

    def _position(self, site: str) -> Any:
        return self._stored(site)["known"].get("until", "")

    @invariant()
    def each_in_one_place(self) -> None:
        """No version of a record is written twice, none after a later one, and a counted file never changes."""
        self._count()
        versions: dict[Any, int] = {}
        for run in self.counted:
            rows = self._read(run.path)
            assert self.held.setdefault((run.id, run.site), rows) == rows, f"{run.id} is not what it was"
            for row, version in rows:
                assert version > versions.get((run.site, row), -1), f"{run.id} has {row} again"
                versions[run.site, row] = version
        self.versions = versions

    def _check_last(self, site: str) -> None:
        self.each_in_one_place()
        until = self._position(site)
        # No time that a record names ahead of Onebox's clock may hide a later change.
        floor = str(min(datetime.fromisoformat(until), self.now) - timedelta(minutes=OVERLAP)) if until else ""
        for row, (date, version) in self.records.items():
            is_readable = date and not date.startswith("0000")
            is_written = self.versions.get((site, str(row))) == version
            # Onebox itself does not show a record without a time as changed.
            assert is_written or not is_readable or date < floor, (row, date, until)


HISTORIES = settings(
    max_examples=int(os.environ.get("EXPORT_HISTORIES", "60")) // 2,
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
def test_superseded(machine: Exports, lost: int) -> None:
    """A process superseded at any of its steps harms no run that begins then, at whichever step it finds that one."""
    for at in range(12):
        machine.rows += 1
        cleared = machine._new_run("alone", 99)
        machine.rows += 1
        machine._start(cleared, lost)
        if not cleared.process or cleared.process.step == "write":
            continue
        ghost = machine._lose(cleared)
        run = machine._new_run("alone", at)
        machine._take(ghost, 99)
        if run.process:
            machine._take(run.process, 99)
        assert run.succeeded or ghost.outcome is not None, (lost, at)
        assert run.succeeded or not run.published


def test_superseded_before_a_retry(machine: Exports) -> None:
    """A process superseded after it has seen what another run left does not undo what a retry of that one prepares."""
    machine.rows = 1
    cleared, run = machine._new_run("alone", 99), machine._new_run("alone", 0)

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
