"""The export: the file and the watermark together, which neither lose nor double a record."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AssetAlias, ObjectStoragePath
from sqlalchemy import Column, Integer, String, create_engine
from sqlalchemy.orm import Session, declarative_base
from support.watermarks import Deployment, StateStore

from airflow_provider_onebox._airflow.variables import MAX_KEY
from airflow_provider_onebox.api.pagination import Batch
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError
from airflow_provider_onebox.files import export as export_module
from airflow_provider_onebox.files import watermark as module
from airflow_provider_onebox.files.atomic import digest_at
from airflow_provider_onebox.files.changes import Changes
from airflow_provider_onebox.files.export import export, with_progress
from airflow_provider_onebox.files.records import RecordFile
from airflow_provider_onebox.files.watermark import KEPT_RUNS, Watermark

KEY = "onebox_watermark@d@t@crm@169@ticketrz"
OLD_KEY = "onebox_mark.d.t.crm.169.ticketrz"
SCOPE = ("crm", "169", "ticketrz")


def pages(last, size=3):
    """List records 1 to a last one."""

    def listing(after, upto):
        for first in range(after + 1, last + 1, size):
            ids = range(first, min(first + size, last + 1))
            yield Batch([{"Id": str(row)} for row in ids], ids[-1], None)

    return listing


def ids(path):
    """Read the ids in a file."""
    return [int(json.loads(line)["Id"]) for line in Path(path).read_text().splitlines()]


# --- the transaction


@pytest.mark.parametrize("kind", [str, Path, ObjectStoragePath])
def test_kinds_of_path(tmp_path, kind):
    """A path may be text, a Path or an ObjectStoragePath; the result names it as text."""
    result = export(RecordFile(kind(f"{tmp_path}/a.jsonl")), pages(5), 0)
    assert result == {"path": f"{tmp_path}/a.jsonl", "count": 5, "first_id": "1", "last_id": "5"}
    assert ids(result["path"]) == [1, 2, 3, 4, 5]


def test_no_permission(tmp_path):
    """A folder that is none is found out before anything is listed, with its path."""
    (tmp_path / "file").write_text("")
    asked = []
    with pytest.raises(OneboxError, match=f"{tmp_path}/file/a.jsonl was not written"):
        export(RecordFile(tmp_path / "file" / "a.jsonl"), lambda *_: asked, 0)
    assert asked == []


def test_progress(monkeypatch, caplog):
    """The log tells how far it is every now and then, and at the end."""
    now = iter(range(1000, 2000, 4))
    monkeypatch.setattr(export_module.time, "monotonic", lambda: float(next(now)))
    batches = [Batch([{}, {}], 2 * n, 100 if n < 4 else None) for n in range(1, 7)]
    with caplog.at_level(logging.INFO):
        assert list(with_progress(batches, "ticketrz")) == batches
    assert [record.getMessage() for record in caplog.records] == [
        "Listed 6 of 100 ticketrz records (0/s).",
        "Listed 12 of an unknown number of ticketrz records (0/s).",
        "Listed 12 ticketrz records in 28.0 s.",
    ]


# --- the watermark


@pytest.fixture
def airflow(monkeypatch):
    """An Airflow whose Variables all runs of a test share."""
    return Deployment(monkeypatch)


@pytest.fixture
def run(airflow, tmp_path):
    """Run an incremental export of records 1 to a last one; return the ids in its file."""

    def execute(run_id, last, *, path=None, assets=("asset",), start=0, **names):
        path = path or tmp_path / f"{run_id}{names.get('map_index', '')}.jsonl"
        watermark = Watermark(airflow.context(run_id, **names), list(assets), SCOPE)
        export(RecordFile(path), pages(last), start, watermark)
        return ids(path)

    return execute


class Killed(BaseException):
    """The process is gone."""


def die_at(airflow, step, nth=1):
    """Let the next process die before a step of its work with the Variable."""
    seen = []

    def before(name):
        seen.append(name)
        if seen.count(step) == nth:
            airflow.before = lambda name: None
            raise Killed

    airflow.before = before


def test_runs_follow_each_other(airflow, run):
    """Each run begins where the one before has ended, the first where it is told; nothing is pending at the end."""
    assert run("r1", 20, start=5) == list(range(6, 21))
    assert run("r2", 20) == []
    assert run("r3", 22) == [21, 22]
    stored = airflow.watermark(KEY)
    assert stored["last"] == 22
    assert stored["runs"] == {"r1": [5, 20], "r2": [20, 20], "r3": [20, 22]}
    assert "pending" not in stored


def test_nothing_new(airflow, tmp_path):
    """Without new records, the last id is the one where the listing began, so that a sensor can go on from it."""
    watermark = Watermark(airflow.context(), [], SCOPE)
    result = export(RecordFile(tmp_path / "a.jsonl"), pages(7), 7, watermark)
    assert (result["count"], result["first_id"], result["last_id"]) == (0, None, "7")


def test_repeated_run_writes_the_same_range(airflow, run, caplog):
    """A cleared run neither leaves out nor adds a record, does not move the watermark back, and says where it is."""
    run("r1", 10)
    run("r2", 30)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert run("r1", 35) == list(range(1, 11))
    assert caplog.messages == [f"The watermark {KEY} is at Id 30; this run begins after Id 0."]
    assert airflow.watermark(KEY)["last"] == 30
    assert run("r2", 35) == list(range(11, 31))
    assert run("r3", 35) == list(range(31, 36))


def test_repeated_run_lists_no_further(airflow, run, tmp_path):
    """A cleared run does not list what comes after its range."""
    run("r1", 10)

    def listing(after, upto):
        yield from pages(12)(after, upto)
        raise AssertionError("it has listed on")

    result = export(RecordFile(tmp_path / "r1.jsonl"), listing, 0, Watermark(airflow.context("r1"), [], SCOPE))
    assert (result["count"], result["last_id"]) == (10, "10")


@pytest.mark.parametrize("again", ["r1", "r2"])
@pytest.mark.parametrize(("step", "nth", "first"), [("write", 1, 0), ("write", 2, 10)])
def test_killed(airflow, run, again, step, nth, first):
    """After a kill before or after the file got there, a retry writes what was announced, another run what is left."""
    die_at(airflow, step, nth)
    with pytest.raises(Killed):
        run("r1", 10)
    if again == "r1":
        # What was announced is final: an older process that still lives can't do harm then.
        assert run("r1", 12) == list(range(1, 13 if nth == 1 else 11))
    else:
        assert run("r2", 12) == list(range(first + 1, 13))
        assert "r1" in airflow.watermark(KEY)["runs"] or nth == 1
    assert "pending" not in airflow.watermark(KEY)


@contextmanager
def dies_before_the_file_is_there(monkeypatch):
    """Kill a run that has announced its file."""

    def die(file):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RecordFile, "publish", die)
        with pytest.raises(Killed):
            yield


def test_killed_before_the_file_got_there(airflow, run, tmp_path, monkeypatch):
    """A file that was announced and is not there is not counted; the next run lists its range."""
    with dies_before_the_file_is_there(monkeypatch):
        run("r1", 10)
    assert airflow.watermark(KEY)["pending"]["run_id"] == "r1"
    assert run("r2", 12) == list(range(1, 13))
    assert airflow.watermark(KEY)["runs"] == {"r2": [0, 12]}


def test_pending_file_that_cannot_be_read(airflow, run, tmp_path, monkeypatch):
    """If the file of a run that died can't be read, the error names the watermark, the path and the remedy."""
    die_at(airflow, "write", 2)
    with pytest.raises(Killed):
        run("r1", 10)
    stored = json.loads(airflow.variables[KEY])
    stored["pending"]["path"] = "gone://bucket/r1.jsonl"
    airflow.variables[KEY] = json.dumps(stored)
    with pytest.raises(OneboxError, match=r"gone://bucket/r1\.jsonl, and that can't be read") as caught:
        run("r2", 12)
    assert f"remove \"pending\" from the Variable '{KEY}'" in str(caught.value)
    assert caught.value.retryable
    del stored["pending"]
    airflow.variables[KEY] = json.dumps(stored)
    assert run("r2", 12) == list(range(1, 13))


def test_constant_path(airflow, run, tmp_path):
    """A path that another run has used is rejected before anything is listed, also if the file was taken away."""
    path = tmp_path / "always.jsonl"
    run("r1", 20, path=path)
    with pytest.raises(OneboxConfigError, match=r"Use a different path for each run, for example with {{ run_id }}"):
        run("r2", 22, path=path)
    assert len(ids(path)) == 20
    path.unlink()
    with pytest.raises(OneboxConfigError, match="was written by another run"):
        run("r2", 22, path=path)
    assert run("r1", 22, path=path) == list(range(1, 21))


def test_path_taken_meanwhile(airflow, tmp_path):
    """A file that turns up while a run lists is not replaced either."""
    path = tmp_path / "a.jsonl"

    def listing(after, upto):
        path.write_text("other")
        return pages(3)(after, upto)

    with pytest.raises(OneboxConfigError, match="was not replaced"):
        export(RecordFile(path), listing, 0, Watermark(airflow.context(), [], SCOPE))
    assert path.read_text() == "other"


def test_run_that_is_not_known_any_more(airflow, run, tmp_path, monkeypatch):
    """A cleared run that is older than those known does not replace its file by an empty one; moved away, it may."""
    monkeypatch.setattr(module, "KEPT_RUNS", 3)
    for n in range(1, 6):
        run(f"r{n}", n * 10)
    assert list(airflow.watermark(KEY)["runs"]) == ["r3", "r4", "r5"]
    with pytest.raises(OneboxConfigError, match="so long ago"):
        run("r1", 60)
    assert ids(tmp_path / "r1.jsonl") == list(range(1, 11))
    assert KEPT_RUNS == 500


@pytest.mark.parametrize(("nth", "words"), [(2, "nothing was written"), (3, "written, but not counted")])
def test_changed_meanwhile(airflow, run, tmp_path, nth, words):
    """A process whose watermark was moved on under its hands stops, and the watermark stays where the other put it."""
    reads = []

    def before(step):
        reads.append(step)
        if reads.count("read") == nth + 1:  # The first two are the new and the old home.
            airflow.variables[KEY] = '{"last": 40, "runs": {"other": [0, 40]}}'

    airflow.before = before
    with pytest.raises(OneboxError, match=words) as caught:
        run("r1", 10)
    assert caught.value.retryable
    assert airflow.watermark(KEY) == {"last": 40, "runs": {"other": [0, 40]}}


@pytest.mark.parametrize("counted", [True, False])
def test_two_at_once(airflow, run, monkeypatch, counted):
    """An export waits a minute for another instance of its task to end, and then gives up before it lists anything.

    Also one that Airflow does not count as running: that of `airflow tasks test`.
    """
    ours, other = ("d", "t", "r1", -1), ("d", "t", "r2", -1)
    airflow.running = {other, ("d", "t", "r3", 0), ("d", "u", "r2", -1)} | ({ours} if counted else set())
    pauses = []
    monkeypatch.setattr(module.time, "monotonic", lambda: 1000 + sum(pauses))
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    monkeypatch.setattr(module.random, "uniform", max)
    with pytest.raises(OneboxError, match=f"uses the watermark '{KEY}': nothing was listed") as caught:
        run("r1", 10)
    assert caught.value.retryable
    assert pauses == [2] * 30
    monkeypatch.setattr(module.time, "sleep", lambda seconds: airflow.running.discard(other))
    assert len(run("r1", 10)) == 10


@pytest.mark.parametrize("state", ["running", "restarting"])
def test_others_on_airflow_2(airflow, monkeypatch, state):
    """Airflow 2 has no call for it, but lets a task ask the database."""
    base = declarative_base()

    class TaskInstance(base):
        __tablename__ = "task_instance"
        id = Column(Integer, primary_key=True)
        dag_id, task_id, run_id, map_index, state = (Column(kind) for kind in (String, String, String, Integer, String))

    engine = create_engine("sqlite://")
    base.metadata.create_all(engine)
    other = {"dag_id": "d", "task_id": "t", "run_id": "r2", "map_index": -1, "state": "running"}
    harmless = [{"run_id": "r1"}, {"state": "success"}, {"map_index": 0}, {"task_id": "u"}, {"dag_id": "e"}]
    with Session(engine) as session:
        session.add_all([TaskInstance(**{**other, **one}) for one in harmless])
        session.commit()
        monkeypatch.setitem(sys.modules, "airflow.models", SimpleNamespace(TaskInstance=TaskInstance))
        fake = SimpleNamespace(create_session=lambda: Session(engine))
        monkeypatch.setitem(sys.modules, "airflow.utils.session", fake)
        context = airflow.context()
        del context["ti"].get_ti_count
        watermark = Watermark(context, [], SCOPE)
        assert not watermark._others_run()
        session.add(TaskInstance(**{**other, "state": state}))
        session.commit()
        assert watermark._others_run()
    engine.dispose()


def test_mapped_instances(airflow, run):
    """Each map index has a watermark of its own."""
    assert run("r1", 4, map_index=0) == run("r1", 4, map_index=1) == [1, 2, 3, 4]
    assert run("r2", 5, map_index=0) == [5]
    assert run("r2", 6, map_index=1) == [5, 6]
    assert sorted(airflow.variables) == [f"{KEY}@0", f"{KEY}@1"]


def test_key(airflow):
    """The key is as documented, no two tasks have the same, and it is as long as a Variable's may be."""

    def key(scope=SCOPE, **names):
        return Watermark(airflow.context(**names), [], scope).key

    assert key() == KEY
    assert key(map_index=3) == f"{KEY}@3"
    assert key(dag_id="crm", task_id="sites.export") != key(dag_id="crm.sites", task_id="export")
    long, other = key(task_id="x" * 250), key(task_id="x" * 249 + "y")
    assert len(long) == MAX_KEY
    assert long != other
    longest = key(task_id="x" * (MAX_KEY + 1 - len(KEY)))
    assert len(longest) == MAX_KEY
    assert longest.endswith("x@crm@169@ticketrz")


def write_old(folder):
    """Write the file of a run of the first version; return its digest."""
    export(RecordFile(folder / "old.jsonl"), pages(2), 0)
    return digest_at(str(folder / "old.jsonl"))


OLD = {"last": 10, "runs": {"r0": [4, 10]}}


@pytest.mark.parametrize("stores", ["none", "alias", "asset"])
def test_variable_of_the_first_version(airflow, run, stores):
    """The watermark that the first version kept in a Variable is found, whatever the outlets are now, with its runs."""
    airflow.variables[OLD_KEY] = json.dumps(OLD)
    if stores == "none":
        airflow.stores = None
    assets = {"none": ["asset"], "alias": [AssetAlias("alias")], "asset": ["asset", "other"]}[stores]
    assert run("r1", 12, assets=assets) == [11, 12]
    assert run("r0", 12, assets=assets) == list(range(5, 11))
    assert airflow.watermark(KEY)["runs"] == {"r0": [4, 10], "r1": [10, 12]}


def test_state_store_of_the_first_version(airflow, run):
    """The watermark that the first version kept with an asset is found, also when outlets come and go later."""
    airflow.stores = {"first": StateStore(), "asset": StateStore({OLD_KEY: json.dumps(OLD)})}
    assert run("r1", 12, assets=["first", "asset"]) == [11, 12]
    airflow.stores = {"new": StateStore()}
    assert run("r2", 13, assets=["new"]) == [13]
    airflow.stores = None
    assert run("r3", 14, assets=[]) == [14]


@pytest.mark.parametrize("further", ["variable", "store"])
def test_both_homes_of_the_first_version(airflow, run, further):
    """Of two, the one that came further counts, and the runs of both are known."""
    behind = json.dumps({"last": 3, "runs": {"r9": [1, 3]}})
    texts = [json.dumps(OLD), behind] if further == "variable" else [behind, json.dumps(OLD)]
    airflow.variables[OLD_KEY] = texts[0]
    airflow.stores = {"asset": StateStore({OLD_KEY: texts[1]})}
    assert run("r1", 12) == [11, 12]
    assert run("r9", 12) == [2, 3]


@pytest.mark.parametrize("in_place", [True, False])
def test_pending_of_the_first_version(airflow, run, tmp_path, in_place):
    """A run of the first version that died is looked into as one of ours."""
    digest = write_old(tmp_path)
    pending = {"run_id": "r0", "path": str(tmp_path / "old.jsonl"), "digest": digest, "after": 0, "last": 2}
    pending |= {} if in_place else {"digest": "other"}
    airflow.variables[OLD_KEY] = json.dumps({"last": 0, "runs": {}, "pending": pending})
    assert run("r1", 4) == ([3, 4] if in_place else [1, 2, 3, 4])


@pytest.mark.parametrize("in_place", [True, False])
def test_mapped_instances_of_the_first_version(airflow, run, tmp_path, in_place):
    """All indexes had one watermark: each goes on behind it, and none writes what a run of theirs wrote then."""
    digest = write_old(tmp_path) if in_place else "other"
    pending = {"run_id": "r1", "path": str(tmp_path / "old.jsonl"), "digest": digest, "after": 10, "last": 11}
    airflow.variables[OLD_KEY] = json.dumps({**OLD, "pending": pending})
    first = 12 if in_place else 11
    for index in (0, 1):
        assert run("r1", 13, map_index=index) == list(range(first, 14))
    assert run("r2", 14, map_index=0) == [14]
    airflow.variables[OLD_KEY] = json.dumps(OLD)
    assert run("r1", 13, map_index=2) == [11, 12, 13]


@pytest.mark.parametrize("text", ["12", "[]", "{}", '{"last": "x", "runs": {}}', "soon", '{"last": 1, "runs": 5}'])
@pytest.mark.parametrize("key", [KEY, OLD_KEY])
def test_watermark_of_somebody_else(airflow, run, key, text):
    """A watermark that makes no sense is not guessed at, and the remedy works."""
    airflow.variables[key] = text
    with pytest.raises(OneboxConfigError, match=r'Set it to {"last": <id>, "runs": {}}') as caught:
        run("r1", 3)
    assert repr(key) in str(caught.value)
    airflow.variables[KEY] = '{"last": 1, "runs": {}}'
    assert run("r1", 3) == [2, 3]


def test_round_trips(airflow, run):
    """An export reads the Variable three times and writes it twice, however many runs it knows."""
    runs = {f"scheduled__2026-11-24T20:{n:03}:00+00:00": [n, n + 1] for n in range(KEPT_RUNS)}
    airflow.variables[KEY] = json.dumps({"last": KEPT_RUNS, "runs": runs})
    steps = []
    airflow.before = steps.append
    run("r1", KEPT_RUNS + 1)
    assert steps == ["read", "count", "count", "read", "write", "read", "write"]
    assert len(airflow.watermark(KEY)["runs"]) == KEPT_RUNS


# --- changes

CHANGES_KEY = "onebox_changes@d@t@crm@169@ticketrz"


@pytest.fixture
def run_changes(airflow, tmp_path):
    """Run an export of changes that finds some ids; return its result."""

    def execute(run_id, found, **names):
        watermark = Watermark(airflow.context(run_id, **names), [], SCOPE, Changes())

        def listing(after, upto):
            watermark.changes = Changes(f"{watermark.changes.until}x")
            return [Batch([{"Id": str(row)} for row in found], found[-1], None)] if found else []

        return export(RecordFile(tmp_path / f"{run_id}.jsonl"), listing, 0, watermark)

    return execute


def test_cleared_run_keeps_its_changes(airflow, run_changes, tmp_path):
    """A cleared run lists nothing, keeps its file and returns what it returned; an empty one too."""
    first = run_changes("r1", [3, 5])
    second = run_changes("r2", [])
    assert first == {"path": str(tmp_path / "r1.jsonl"), "count": 2, "first_id": "3", "last_id": "5"}
    assert (second["count"], second["first_id"], second["last_id"]) == (0, None, None)
    stored = airflow.watermark(CHANGES_KEY)
    assert stored["changes"] == {"until": "xx"}
    assert run_changes("r1", [3], try_number=2) == first
    assert run_changes("r2", [9], try_number=2) == second
    assert ids(tmp_path / "r1.jsonl") == [3, 5]
    assert airflow.watermark(CHANGES_KEY) == stored


def test_cleared_run_without_its_changes(run_changes, tmp_path):
    """If the file of a cleared run is gone, its changes can't be listed again: it is rejected with the remedy."""
    run_changes("r1", [3, 5])
    (tmp_path / "r1.jsonl").unlink()
    with pytest.raises(OneboxConfigError, match=r"has written 2 records, but .*r1\.jsonl no longer exists"):
        run_changes("r1", [3, 5], try_number=2)
    assert not (tmp_path / "r1.jsonl").exists()


@pytest.mark.parametrize("try_number", [1, 2])
@pytest.mark.parametrize("there", ["nothing", "other content"])
def test_announced_changes_that_are_not_in_place(airflow, run_changes, tmp_path, monkeypatch, there, try_number):
    """A retry of a run that died before its file got there lists anew, also if something else stands in that place.

    So does a run that was deleted and made anew, whose tries are counted from 1 again.
    """

    def die(file):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RecordFile, "publish", die)
        with pytest.raises(Killed):
            run_changes("r1", [1, 2])
    if there != "nothing":
        (tmp_path / "r1.jsonl").write_text(there)
    assert run_changes("r1", [2, 3], try_number=try_number)["count"] == 2
    assert ids(tmp_path / "r1.jsonl") == [2, 3]
    assert airflow.watermark(CHANGES_KEY)["changes"] == {"until": "x", "count": 2}


def test_announced_changes_that_are_in_place(airflow, run_changes):
    """A retry of a run that died after its file got there keeps the file, and counts it."""
    die_at(airflow, "write", 2)
    with pytest.raises(Killed):
        run_changes("r1", [1, 2])
    assert "pending" in airflow.watermark(CHANGES_KEY)
    assert run_changes("r1", [2, 3], try_number=2)["last_id"] == "2"
    assert "pending" not in airflow.watermark(CHANGES_KEY)
    assert run_changes("r2", [4])["count"] == 1
    assert airflow.watermark(CHANGES_KEY)["changes"] == {"until": "xx", "count": 1}


def test_try_that_begins_too_late(airflow, run_changes, monkeypatch, tmp_path):
    """A try that Airflow has given up stops if a later one has announced its file; take the number out, and it may."""
    with dies_before_the_file_is_there(monkeypatch):
        run_changes("r1", [1], try_number=2)
    before = airflow.variables[CHANGES_KEY]
    with pytest.raises(OneboxError, match=r"^Try 2 of this run .* this is try 1, .* nothing was listed\.") as caught:
        run_changes("r1", [1, 2], try_number=1)
    assert caught.value.retryable
    assert airflow.variables[CHANGES_KEY] == before
    stored = json.loads(before)
    del stored["pending"]["try_number"]
    airflow.variables[CHANGES_KEY] = json.dumps(stored)
    assert run_changes("r1", [1, 2], try_number=1)["count"] == 2


def test_pending_with_the_number_of_a_process(airflow, run, tmp_path):
    """What an earlier version has announced, with a number drawn at random, is taken up as it was meant."""
    pending = {"run_id": "r1", "path": str(tmp_path / "r1.jsonl"), "digest": "x", "after": 0, "last": 4}
    airflow.variables[KEY] = json.dumps({"last": 0, "runs": {}, "pending": {**pending, "process": "0badcafe"}})
    assert run("r1", 9) == [1, 2, 3, 4]


def test_changes_that_cannot_be_read(airflow, run_changes):
    """A Variable that somebody has spoilt is rejected, with what to set it to."""
    airflow.variables[CHANGES_KEY] = "spoilt"
    with pytest.raises(OneboxConfigError, match=r'"changes": \{"until": "[^"]+"\}\} to begin at such a time'):
        run_changes("r1", [1])
    airflow.variables[CHANGES_KEY] = '{"last": 0, "runs": {}, "changes": {"until": "a"}}'
    run_changes("r1", [1])
    assert airflow.watermark(CHANGES_KEY)["changes"] == {"until": "ax", "count": 1}
