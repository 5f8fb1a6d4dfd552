"""Records that become visible late are written once, by the next run."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
from support.watermarks import KEY, ids, killed_before, pages

from airflow_provider_onebox.files.ids import ById, Ids


def test_late_record(airflow, run):
    """A record that becomes visible after newer ones is written by the next run, and only by it."""
    early = [*range(1, 9), 10]
    assert run("r1", early, overlap=5) == early
    assert run("r2", range(1, 12), overlap=5) == [9, 11]
    assert run("r3", range(1, 12), overlap=5) == []
    for _ in range(2):
        assert run("r1", range(1, 12), overlap=5) == early
        assert run("r2", range(1, 12), overlap=5) == [9, 11]
    assert run("r4", range(1, 13), overlap=5) == [12]
    assert airflow.watermark(KEY)["known"] == {"last": 12, "width": 5, "seen": "1f"}


def test_late_record_alone(airflow, result_of):
    """A late record without newer ones is written, and the watermark stays; the result says where it is."""

    def export_of(run_id, *records):
        return result_of(run_id, ById(pages(*records), 0, 5))

    export_of("r1", 1, 2, 4)
    result = export_of("r2", 1, 2, 3, 4)
    assert (result["count"], result["first_id"], result["last_id"]) == (1, "3", "4")
    assert export_of("r2", 1, 2, 3, 4, 5) == result
    assert airflow.watermark(KEY)["runs"]["r2"][:5] == [1, 3, 4, 4, [3]]


@pytest.mark.parametrize("is_killed", [False, True])
def test_late_record_of_a_repeated_run(run, monkeypatch, is_killed):
    """A record that becomes visible between two tries of a run belongs to the next run, so the file stays the same.

    What a run has prepared is final too: a superseded process of it may still publish it.
    """
    with killed_before("publish", monkeypatch) if is_killed else nullcontext():
        run("r1", [1, 3], overlap=5)
    assert run("r1", [1, 2, 3, 4], overlap=5) == [1, 3]
    assert run("r2", [1, 2, 3, 4], overlap=5) == [2, 4]


def test_window(airflow, run):
    """Only so many ids before the watermark are listed again, none before the start, and none by a width of 0."""
    assert run("r1", [4, 10], start=3, overlap=5) == [4, 10]
    assert run("r2", [*range(1, 11)], overlap=5) == [6, 7, 8, 9]
    assert run("r3", [*range(1, 11)], overlap=50) == []
    assert run("r4", [*range(1, 21)], overlap=0) == [*range(11, 21)]
    assert airflow.watermark(KEY)["known"] == {"last": 20}
    assert run("r5", [21, 23], overlap=50) == [21, 23]
    assert airflow.watermark(KEY)["known"] == {"last": 23, "width": 3, "seen": "5"}
    assert run("r6", [*range(1, 24)], overlap=2) == [22]
    assert airflow.watermark(KEY)["known"] == {"last": 23, "width": 2, "seen": "3"}


def test_far_jump(airflow, run):
    """An id far away moves the window with it."""
    run("r1", [1, 2, 10**19], overlap=3)
    assert airflow.watermark(KEY)["known"] == {"last": 10**19, "width": 3, "seen": "1"}


def test_max_records_and_late_ones(run, result_of):
    """The most records of a run include late ones; what is listed again does not count."""
    asked = []

    def listing(after, most):
        asked.append((after, most))
        return pages(*range(1, 10))(after, most)

    run("r1", [1, 2, 4, 6], overlap=5)
    for run_id, found in (("r2", [3, 5]), ("r3", [7, 8]), ("r4", [9])):
        assert ids(result_of(run_id, ById(listing, 0, 5, 2))["path"]) == found
    assert asked == [(1, 5), (1, 7), (3, 7)]


def test_gaps_cost_nothing(airflow, run):
    """The state stays as small after thousands of gaps that never fill as after the first."""
    sizes = []
    for n in (1, 2, 29):
        run(f"r{n}", range(2, n * 200, 2), overlap=100)
        sizes.append(len(json.dumps(airflow.watermark(KEY)["known"])))
    assert max(sizes) < 80


def test_ids():
    """What is missing in the window, and how it moves."""
    known = Ids(10).advance(14, [11, 14], 100)
    assert known == Ids(14, 4, "9")
    assert known.missing() == known.missing(9) == {12, 13}
    assert known.missing(2) == {13}
    assert known.missing(0) == Ids(10).missing() == set()
    assert known.advance(14, [12], 100) == Ids(14, 4, "d")
    assert known.advance(15, [15], 3) == Ids(15, 3, "3")
