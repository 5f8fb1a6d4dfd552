"""The mark: where an incremental listing begins, whatever became of the runs before."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AssetAlias, Variable

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError
from airflow_provider_onebox.incremental import KEPT_RUNS, MAX_KEY, Mark
from airflow_provider_onebox.output import digest_at


class Store(dict):
    """The state store of an outlet asset, as Airflow 3.3 has it."""

    def set(self, key, value):
        self[key] = value


@pytest.fixture
def mark():
    """Make the mark of a run; all runs share a store."""
    store = Store()

    def make(run_id, task_id="t"):
        ti = SimpleNamespace(dag_id="d", task_id=task_id, run_id=run_id)
        return Mark({"ti": ti, "asset_state_store": {"asset": store}}, ["asset"], ("crm", "169", "ticketrz"))

    make.store = store
    return make


def test_runs_follow_each_other(mark):
    """Each run begins where the one before has ended; the first where it is told."""
    assert mark("r1").begin(5) == (5, None)
    first = mark("r1")
    first.begin(5)
    first.move(5, 20)
    second = mark("r2")
    assert second.begin(5) == (20, None)
    second.move(20, 20)
    assert mark("r3").begin(5) == (20, None)


def test_repeated_run_writes_the_same_range(mark):
    """A cleared run neither leaves out nor adds a record, and does not move the mark back."""
    for run, after, last in (("r1", 0, 10), ("r2", 10, 30)):
        one = mark(run)
        assert one.begin(0) == (after, None)
        one.move(after, last)
    again = mark("r1")
    assert again.begin(0) == (0, 10)
    again.move(0, 10)
    assert mark("r2").begin(0) == (10, 30)
    assert mark("r3").begin(0) == (30, None)


@pytest.mark.parametrize("in_place", [True, False])
def test_death_before_the_mark_is_moved(mark, tmp_path, in_place):
    """The next run learns from the file itself whether it got there; a retry writes its own range again."""
    target = tmp_path / "out.jsonl"
    target.write_text("new")
    one = mark("r1")
    one.begin(0)
    one.announce(str(target), digest_at(str(target)), 0, 10)
    if not in_place:
        target.write_text("old")
    assert mark("r1").begin(0) == (0, None)
    assert mark("r2").begin(0) == ((10 if in_place else 0), None)
    if in_place:
        later = mark("r2")
        later.begin(0)
        later.move(10, 12)
        assert mark("r1").begin(0) == (0, 10)
    assert mark("r1").begin(0)[0] == 0


def test_outlet_without_a_store(mark, monkeypatch):
    """Where the outlet is an alias, which has no store, the mark is kept in a Variable."""
    variables = {}
    monkeypatch.setattr(Variable, "get", lambda key, default: variables.get(key, default))
    monkeypatch.setattr(Variable, "set", lambda key, value: variables.update({key: value}))
    one = mark("r1")
    one.outlets = [AssetAlias("alias")]
    assert one.begin(0) == (0, None)
    one.move(0, 10)
    assert list(variables) == [one.key]
    assert not mark.store


def test_two_runs_at_once(mark, tmp_path):
    """The run that comes second writes nothing, and finds its own range when it is tried again."""
    one, two = mark("r1"), mark("r2")
    assert one.begin(0) == two.begin(0) == (0, None)
    one.announce(str(tmp_path / "absent"), "d", 0, 10)
    with pytest.raises(OneboxError, match="max_active_runs=1"):
        two.announce("p", "d", 0, 10)
    one.move(0, 10)
    with pytest.raises(OneboxError, match="max_active_runs=1"):
        two.announce("p", "d", 0, 10)
    again = mark("r2")
    assert again.begin(0) == (10, None)
    again.announce("p", "d", 10, 12)


def test_kept_runs_are_bounded(mark):
    """The mark does not grow for ever."""
    for n in range(KEPT_RUNS + 10):
        one = mark(f"r{n}")
        one.begin(0)
        one.move(n, n + 1)
    (text,) = mark.store.values()
    assert list(json.loads(text)["runs"]) == [f"r{n}" for n in range(10, KEPT_RUNS + 10)]


def test_key(mark):
    """The key is as documented, and as long as a Variable's may be."""
    assert mark("r").key == "onebox_mark.d.t.crm.169.ticketrz"
    long, other = mark("r", "x" * 250).key, mark("r", "x" * 249 + "y").key
    assert len(long) == MAX_KEY
    assert long != other


@pytest.mark.parametrize("text", ["12", "[]", "{}", '{"last": "x", "runs": {}}', "soon", '{"last": 1, "runs": 5}'])
def test_mark_of_somebody_else(mark, text):
    """A mark that makes no sense is not guessed at."""
    mark.store[mark("r").key] = text
    with pytest.raises(OneboxConfigError, match="Delete it to begin anew"):
        mark("r").begin(0)
