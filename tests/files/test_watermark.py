"""The watermark and the file together: no record is lost or doubled, however a run ends."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from pathlib import Path

import pytest
from support.watermarks import KEY, SCOPE, ids, killed, killed_before, upto

from airflow_provider_onebox._airflow.variables import MAX_KEY
from airflow_provider_onebox.api.pagination import Batch
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError
from airflow_provider_onebox.files import watermark as module
from airflow_provider_onebox.files.changes import ByChanges, Changes
from airflow_provider_onebox.files.ids import ById
from airflow_provider_onebox.files.watermark import KEPT_RUNS, Done, Watermark


def test_runs_follow_each_other(airflow, run):
    """Each run begins where the one before has ended, the first at its start; nothing is pending at the end."""
    assert run("r1", 20, start=5) == list(range(6, 21))
    assert run("r2", 20) == []
    assert run("r3", 22) == [21, 22]
    stored = airflow.watermark(KEY)
    assert stored["known"] == {"last": 22}
    assert {run_id: done[:4] for run_id, done in stored["runs"].items()} == {
        "r1": [15, 6, 20, 5],
        "r2": [0, None, 20, 20],
        "r3": [2, 21, 22, 20],
    }
    assert "pending" not in stored


def test_nothing_new(result_of):
    """Without new records, the last id is the one where the listing began, so that a sensor can go on from it."""
    result = result_of("r1", ById(upto(7), 7))
    assert (result["count"], result["first_id"], result["last_id"]) == (0, None, "7")


def test_repeated_run_writes_the_same_range(airflow, run, caplog):
    """A cleared run neither leaves out nor adds a record, does not move the watermark back, and says where it is."""
    run("r1", 10)
    run("r2", 30)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert run("r1", 35) == list(range(1, 11))
    assert caplog.messages[0] == f"The watermark {KEY}: written up to Id 30."
    assert airflow.watermark(KEY)["known"] == {"last": 30}
    assert run("r2", 35) == list(range(11, 31))
    assert run("r3", 35) == list(range(31, 36))


def test_repeated_run_lists_no_further(run, result_of):
    """A cleared run does not list what comes after its range; one without records asks for none."""
    run("r1", 10)
    run("r2", 10)

    def listing(after, most):
        yield from upto(12)(after, most)
        raise AssertionError("it has listed on")

    result = result_of("r1", ById(listing))
    assert (result["count"], result["last_id"]) == (10, "10")
    result = result_of("r2", ById(lambda *_: pytest.fail("it has listed")))
    assert (result["count"], result["first_id"], result["last_id"]) == (0, None, "10")


@pytest.mark.parametrize("again", ["r1", "r2"])
@pytest.mark.parametrize(("step", "nth", "first"), [("write", 1, 0), ("write", 2, 10)])
def test_killed(airflow, run, again, step, nth, first):
    """After a kill before or after the file got there, a retry writes what was prepared, another run what is left."""
    with killed(airflow, step, nth):
        run("r1", 10)
    if again == "r1":
        # What was prepared is final: an older process that still lives can't do harm then.
        assert run("r1", 12) == list(range(1, 13 if nth == 1 else 11))
    else:
        assert run("r2", 12) == list(range(first + 1, 13))
        assert list(airflow.watermark(KEY)["runs"]) == (["r2"] if nth == 1 else ["r1", "r2"])
    assert "pending" not in airflow.watermark(KEY)


def test_killed_before_the_file_got_there(airflow, run, monkeypatch):
    """A file that was prepared and is not there is not counted; the next run lists its range."""
    with killed_before("publish", monkeypatch):
        run("r1", 10)
    assert airflow.watermark(KEY)["pending"]["run_id"] == "r1"
    assert run("r2", 12) == list(range(1, 13))
    assert list(airflow.watermark(KEY)["runs"]) == ["r2"]


def test_pending_file_that_cannot_be_read(airflow, run):
    """If the file of a run that died can't be read, the error names the watermark, the path and the remedy."""
    with killed(airflow, "write", 2):
        run("r1", 10)
    stored = airflow.watermark(KEY)
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


def test_path_taken_meanwhile(result_of, tmp_path):
    """A file that turns up while a run lists is not replaced either."""
    path = tmp_path / "r1.jsonl"

    def listing(after, most):
        path.write_text("other")
        return upto(3)(after, most)

    with pytest.raises(OneboxConfigError, match="was not replaced"):
        result_of("r1", ById(listing))
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


@pytest.mark.parametrize(("nth", "message"), [(2, "nothing was written"), (3, "written, but not counted")])
def test_changed_meanwhile(airflow, run, nth, message):
    """A process stops if another one moves its watermark, which stays where the other put it."""
    reads = []

    def before(step):
        reads.append(step)
        if reads.count("read") == nth:
            airflow.variables[KEY] = '{"known": {"last": 40}}'

    airflow.before = before
    with pytest.raises(OneboxError, match=message) as caught:
        run("r1", 10)
    assert caught.value.retryable
    assert airflow.watermark(KEY) == {"known": {"last": 40}}


@pytest.mark.parametrize("counted", [True, False])
def test_two_at_once(airflow, run, monkeypatch, counted):
    """An export waits a minute for another run of its task to end, and then fails before it lists anything.

    Also one that Airflow does not count as running: that of `airflow tasks test`. A sibling is none of another run.
    """
    ours, other = ("d", "t", "r1", -1), ("d", "t", "r2", -1)
    airflow.running = {other, ("d", "t", "r1", 0), ("d", "u", "r2", -1)} | ({ours} if counted else set())
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


def test_mapped_instances(airflow, run):
    """Instances whose sites differ have a watermark each, whatever order they are expanded in."""
    one, two = ("crm", "169", "ticketrz"), ("crm", "170", "ticketrz")
    assert run("r1", 4, map_index=0, scope=one) == run("r1", 4, map_index=1, scope=two) == [1, 2, 3, 4]
    assert run("r2", 5, map_index=0, scope=two) == [5]
    assert run("r2", 6, map_index=1, scope=one) == [5, 6]
    assert sorted(airflow.variables) == [KEY, KEY.replace("169", "170")]


@pytest.mark.parametrize("is_killed", [False, True])
def test_instances_with_one_watermark(airflow, run, is_killed):
    """A mapped instance that nothing distinguishes from another is rejected before it lists anything."""
    with killed(airflow, "write", 2) if is_killed else nullcontext():
        run("r1", 4, map_index=0)
    reason = r"^The mapped instances 0 and 1 of this task use one watermark, .* nothing was listed\. Give each its own"
    with pytest.raises(OneboxConfigError, match=reason):
        run("r1", 4, map_index=1)
    # Expanded in another order, it is the same file.
    path = Path(airflow.watermark(KEY).get("path") or airflow.watermark(KEY)["pending"]["path"])
    assert run("r1", 4, map_index=1, path=path) == [1, 2, 3, 4]
    # The same instance may write elsewhere.
    assert run("r1", 4, map_index=1, path=path.with_name("other.jsonl")) == [1, 2, 3, 4]


def test_key(airflow):
    """The key is as documented, no two tasks have the same, and it fits into a Variable."""

    def key(scope=SCOPE, **names):
        return Watermark(airflow.ti(**names), scope, ById(upto(0))).key

    assert key() == key(map_index=3) == KEY
    assert key((*SCOPE, "3")) == f"{KEY}@3"
    assert key(dag_id="crm", task_id="sites.export") != key(dag_id="crm.sites", task_id="export")
    assert len(key(task_id="x" * 250)) == MAX_KEY


@pytest.mark.parametrize("text", ["12", "[]", "{}", '{"known": {"last": "x"}}', "soon", '{"last": 1, "runs": {}}'])
def test_watermark_of_somebody_else(airflow, run, text):
    """A watermark that can't be read is rejected, and the remedy works."""
    airflow.variables[KEY] = text
    with pytest.raises(
        OneboxConfigError, match=r'Set it to {"known": {"last": <id>}} to begin after that id'
    ) as caught:
        run("r1", 3)
    assert repr(KEY) in str(caught.value)
    airflow.variables[KEY] = '{"known": {"last": 1}}'
    assert run("r1", 3, overlap=5) == [2, 3]


def test_round_trips(airflow, run):
    """An export reads the Variable three times and writes it twice, however many runs it knows."""
    runs = {f"scheduled__2026-11-24T20:{n:03}:00+00:00": [1, n + 1, n + 1] for n in range(KEPT_RUNS)}
    airflow.variables[KEY] = json.dumps({"known": {"last": KEPT_RUNS}, "runs": runs})
    steps = []
    airflow.before = steps.append
    run("r1", KEPT_RUNS + 1)
    assert steps == ["read", "count", "count", "read", "write", "read", "write"]
    assert len(airflow.watermark(KEY)["runs"]) == KEPT_RUNS


CHANGES_KEY = "onebox_changes@d@t@crm@169@ticketrz"


class Found(ByChanges):
    """Finds some ids."""

    def __init__(self, found):
        super().__init__(lambda *_: (), "ticketrz")
        self._found = found

    def batches(self, known, again, late_elsewhere):
        """Find them."""
        assert (again, late_elsewhere) == (None, set())
        self._known = known
        return [Batch([{"Id": str(row)} for row in self._found], self._found[-1], None)] if self._found else []

    def result(self):
        """Know one x more."""
        first, last = (self._found[0], self._found[-1]) if self._found else (None, None)
        return Done(len(self._found), first, last), Changes(until=f"{self._known.until}x")


@pytest.fixture
def run_changes(result_of):
    """Run an export of changes that finds some ids; return its result."""
    return lambda run_id, found, **options: result_of(run_id, Found(found), **options)


def test_cleared_run_keeps_its_changes(airflow, run_changes, tmp_path):
    """A cleared run lists nothing, keeps its file and returns what it returned; an empty one too."""
    first = run_changes("r1", [3, 5])
    second = run_changes("r2", [])
    path = str(tmp_path / "r1.jsonl")
    assert first == {"path": path, "uri": f"file://{path}", "count": 2, "first_id": "3", "last_id": "5"}
    assert (second["count"], second["first_id"], second["last_id"]) == (0, None, None)
    stored = airflow.watermark(CHANGES_KEY)
    assert stored["known"] == {"until": "xx"}
    assert run_changes("r1", [3], try_number=2) == first
    assert run_changes("r2", [9], try_number=2) == second
    assert ids(tmp_path / "r1.jsonl") == [3, 5]
    assert airflow.watermark(CHANGES_KEY) == stored


def test_cleared_run_without_changes(airflow, run_changes, tmp_path):
    """A cleared run that found no changes has a file or none, as its task wants it now; an unwanted one is removed."""
    first = run_changes("r1", [], keep_empty=False)
    for number, keep_empty in enumerate((False, True, True, False), 2):
        assert run_changes("r1", [], keep_empty=keep_empty, try_number=number) == first
        assert (tmp_path / "r1.jsonl").exists() is keep_empty
    assert airflow.watermark(CHANGES_KEY)["known"] == {"until": "x"}


def test_empty_run_that_is_killed(result_of, tmp_path, monkeypatch):
    """A run that is killed before it removes its empty file removes it when it is retried."""
    with killed_before("remove", monkeypatch):
        result_of("r1", ById(upto(0)), keep_empty=False)
    assert (tmp_path / "r1.jsonl").exists()
    result_of("r1", ById(upto(0)), keep_empty=False)
    assert list(tmp_path.iterdir()) == []


def test_cleared_run_without_its_changes(run_changes, tmp_path):
    """If the file of a cleared run is gone, its changes can't be listed again: it is rejected with the remedy."""
    run_changes("r1", [3, 5])
    (tmp_path / "r1.jsonl").unlink()
    with pytest.raises(OneboxConfigError, match=r"has written 2 records, but .*r1\.jsonl no longer exists"):
        run_changes("r1", [3, 5], try_number=2)
    assert not (tmp_path / "r1.jsonl").exists()


@pytest.mark.parametrize("try_number", [1, 2])
@pytest.mark.parametrize("existing", [None, "other content"])
def test_prepared_changes_that_are_not_published(airflow, run_changes, tmp_path, monkeypatch, existing, try_number):
    """A retry of a run that died before it published its file lists anew, also if the path has another file.

    So does a run that was deleted and created again, whose tries are counted from 1.
    """
    with killed_before("publish", monkeypatch):
        run_changes("r1", [1, 2])
    if existing:
        (tmp_path / "r1.jsonl").write_text(existing)
    assert run_changes("r1", [2, 3], try_number=try_number)["count"] == 2
    assert ids(tmp_path / "r1.jsonl") == [2, 3]
    assert airflow.watermark(CHANGES_KEY)["known"] == {"until": "x"}


def test_prepared_changes_that_are_published(airflow, run_changes):
    """A retry of a run that died after it published its file keeps the file, and counts it."""
    with killed(airflow, "write", 2):
        run_changes("r1", [1, 2])
    assert "pending" in airflow.watermark(CHANGES_KEY)
    assert run_changes("r1", [2, 3], try_number=2)["last_id"] == "2"
    assert "pending" not in airflow.watermark(CHANGES_KEY)
    assert run_changes("r2", [4])["count"] == 1
    assert airflow.watermark(CHANGES_KEY)["known"] == {"until": "xx"}


def test_try_that_begins_too_late(airflow, run_changes, monkeypatch):
    """A superseded try stops if a later one has prepared its file; take the number out, and it may go on."""
    with killed_before("publish", monkeypatch):
        run_changes("r1", [1], try_number=2)
    before = airflow.variables[CHANGES_KEY]
    with pytest.raises(OneboxError, match=r"^Try 2 of this run .* this is try 1, .* nothing was listed\.") as caught:
        run_changes("r1", [1, 2])
    assert caught.value.retryable
    assert airflow.variables[CHANGES_KEY] == before
    stored = json.loads(before)
    del stored["pending"]["try_number"]
    airflow.variables[CHANGES_KEY] = json.dumps(stored)
    assert run_changes("r1", [1, 2])["count"] == 2


def test_changes_that_cannot_be_read(airflow, run_changes):
    """A Variable that somebody has spoilt is rejected, with what to set it to."""
    airflow.variables[CHANGES_KEY] = "spoilt"
    with pytest.raises(OneboxConfigError, match=r'\{"known": \{"begin": "[^"]+"\}\} to begin at such a time'):
        run_changes("r1", [1])
    airflow.variables[CHANGES_KEY] = '{"known": {"begin": "2026-11-24 08:30:00", "until": "a"}}'
    run_changes("r1", [1])
    assert airflow.watermark(CHANGES_KEY)["known"] == {"until": "ax"}
