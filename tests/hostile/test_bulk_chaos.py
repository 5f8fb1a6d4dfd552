"""Faults on a fifth of all calls while many rows are written, and processes that die: all results match the books.

CHAOS_BULKS sets the number of runs; the release check runs 500.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from random import Random
from types import SimpleNamespace

import pytest
from hostile.faults import FAULTS

from airflow_provider_onebox.exceptions import OneboxError, OneboxUncertainWriteError
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.bulk import OneboxBulkWriteOperator

RUNS = int(os.environ.get("CHAOS_BULKS", "24"))
ROWS = 8
TRIES = 4
WRITE_FAULTS = (
    *FAULTS,
    {"kind": "status", "status": 503, "processed": True},
    {"kind": "envelope", "status": 500},
    *({"kind": "envelope", "status": 422, "message": "not today"},) * 4,  # Often, because tries repeat what it rejects.
    "html",
)
KINDS = {
    "ticket": lambda name: {"full_name": name, "contact": "a@b.c", "subject": "s", "category": "c", "content": "x"},
    "contact": lambda name: {"name": name},
    "message": lambda name: {"connection_id": "1", "body": "x", "subject": name},
}
NAME = {"ticket": "fullName", "contact": "Name", "message": "Subject"}


class Died(BaseException):
    """Ends a try as a kill does: nothing is noted after it."""


@pytest.fixture
def died(monkeypatch):
    """Let a write now and then be the last thing that its process does; return those rows."""
    names, chance, request = set(), Random(1), OneboxHook.request  # noqa: S311 - no secret

    def dying(self, method, endpoint, **body):
        response = request(self, method, endpoint, **body)
        if chance.random() < 0.02:
            names.update(body["json"].values() if endpoint != "message" else [body["json"]["Subject"]])
            raise Died
        return response

    monkeypatch.setattr(OneboxHook, "request", dying)
    return names


@pytest.mark.usefixtures("impatient")
def test_bulk_chaos(sandbox, connect, capsys, tmp_path, died):
    """No row is written twice, none that is done is missing, and what is uncertain the books can explain."""
    connect(sandbox.url, login=sandbox.email, password=sandbox.password, timeout=2)
    tally: Counter[str] = Counter()
    for seed in range(RUNS):
        chance = Random(seed)  # noqa: S311 - no secret
        sandbox.state.seed = seed
        sandbox.state.reset()
        sandbox.state.configure(fault_rate=0.2, fault_kinds=WRITE_FAULTS)
        kind = chance.choice(list(KINDS))
        names = [f"{seed}-{n}" for n in range(ROWS)]
        path = tmp_path / f"{seed}.jsonl"
        died.clear()
        parallelism = chance.choice([1, 2, 4])
        rows = [KINDS[kind](name) for name in names]
        # Rejected rows are tried again by the next try, so that the last one has some.
        for _ in range(chance.randint(1, TRIES)):
            task = OneboxBulkWriteOperator(
                task_id="t", kind=kind, rows=rows, results_path=path, parallelism=parallelism
            )
            try:
                task.execute({"ti": SimpleNamespace(dag_id="d", task_id="t", run_id=str(seed), map_index=-1)})
                tally["runs finished"] += 1
                break
            except Died:
                tally["tries that died"] += 1
            except OneboxUncertainWriteError:
                tally["tries with uncertain rows"] += 1
            except OneboxError:
                tally["tries cut short"] += 1
        check(sandbox.state.books(), path, names, NAME[kind], died, tally)
    with capsys.disabled():
        print(f"\n{dict(tally)}")  # noqa: T201 - the figures that the release notes quote
    assert all(
        tally[name] > 0 for name in ("done", "rejected", "uncertain, explained", "tries cut short", "tries that died")
    )
    problems = (
        "written twice",
        "lost",
        "another id",
        "rejected, but written",
        "uncertain, unexplained",
        "not sent, but written",
    )
    assert {name: tally[name] for name in problems} == dict.fromkeys(problems, 0)


def check(books, path, names, field, died, tally):
    """Compare the results of a run with the books."""
    results = {}
    for line in map(json.loads, path.read_text().splitlines()):
        results[line["key"]] = line
    by_name = {names[line["row"]]: line for line in results.values() if line["row"] is not None}
    for name in names:
        entries = [entry for entry in books if (entry["body"] or {}).get(field) == name]
        ids = [entry["id"] for entry in entries if entry["id"]]
        tally["written twice"] += len(ids) > 1
        line = by_name.get(name, {"result": "not_sent"})
        match line["result"]:
            case "done":
                tally["done"] += 1
                tally["lost"] += not ids
                tally["another id"] += ids[:1] != [line["id"]]
            case "rejected":
                tally["rejected"] += 1
                tally["rejected, but written"] += bool(ids)
            case "uncertain":
                is_explained = not entries or name in died or any(entry["fault"] for entry in entries)
                tally["uncertain, explained" if is_explained else "uncertain, unexplained"] += 1
            case "begun":
                # The next try, which this run does not have, would find it uncertain.
                tally["uncertain, explained" if name in died else "uncertain, unexplained"] += 1
            case "not_sent":
                tally["not sent"] += 1
                tally["not sent, but written"] += bool(ids)
