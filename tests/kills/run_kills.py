"""A real scheduler runs tasks that write, and most tries are killed: nothing is written twice, nothing is lost.

Not part of the suite: ``make kills``. ``KILLS`` is the number of writes, ``KILLS_DATABASE`` is ``sqlite`` or
``postgresql``.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster.services import postgresql
from hostile.faults import FAULTS
from support.airflow_home import AIRFLOW_VERSION, TASKS, AirflowHome

from airflow_provider_onebox.sandbox import Sandbox

KILLS = int(os.environ.get("KILLS", "60"))
SINGLE = -(-KILLS // 10)
ROWS = 20
PARALLEL = 6
BULKS = -(-(KILLS - 3 * SINGLE) // ROWS)
SEED = os.environ.get("KILLS_SEED") or secrets.token_hex(4)
WRITE_FAULTS = (
    *FAULTS,
    {"kind": "status", "status": 503, "processed": True},
    {"kind": "envelope", "status": 500},
    {"kind": "envelope", "status": 422, "message": "not today"},
)
FIELDS = {"ticket": "subject", "message": "Subject", "request": "Name", "bulk": "Name"}
PROBLEMS = (
    "written twice",
    "green without a write",
    "another result",
    "failed and written, and does not say so",
    "uncertain, unexplained",
)


def test_kills(tmp_path: Path) -> None:
    """The books of Onebox and the states of the tasks agree."""
    tmp_path.chmod(0o755)
    tally: Counter[str] = Counter()
    with ExitStack() as stack:
        crm = stack.enter_context(Sandbox(records=1, token_life=7200))
        connection = {"conn_type": "onebox", "host": crm.url, "login": crm.email, "password": crm.password}
        connection["extra"] = {"site_id": crm.state.sites[0], "timeout": 5, "max_retries": 1}
        config: dict[tuple[str, str], Any] = {("core", "parallelism"): PARALLEL}
        if os.environ.get("KILLS_DATABASE") == "postgresql":
            database = stack.enter_context(postgresql(tmp_path))
            config["database", "sql_alchemy_conn"] = f"postgresql+psycopg2://airflow@{database}"
        home = stack.enter_context(
            AirflowHome(
                tmp_path / "home",
                [Path(__file__).parent / "dags" / "kills.py"],
                connections={"onebox_default": json.dumps(connection)},
                config=config,
                env={
                    "KILLS_FOLDER": str(tmp_path),
                    "KILLS_COUNTS": f"{SINGLE} {BULKS} {ROWS}",
                    "KILLS_SEED": SEED,
                },
            )
        )
        home.migrate()
        crm.state.configure(latency=0.3, fault_rate=0.1, fault_kinds=WRITE_FAULTS)
        start = time.monotonic()
        home.start("api-server", "scheduler", "dag-processor")
        run_id = home.trigger("kills")
        home.wait("kills", run_id, timeout=7200)
        seconds = time.monotonic() - start
        books = crm.state.books()
        rows = tasks_of(home, run_id)
        xcoms = home.xcoms("kills", run_id)
        left = variables(home)
        logs = home.home / "logs" / "dag_id=kills" / f"run_id={run_id}"
        for row in rows:
            task_id, index = row["task_id"], row["map_index"]
            assert row["state"] in ("success", "failed"), row
            folder = logs / f"task_id={task_id}" / f"map_index={index}"
            log = "".join(file.read_text() for file in sorted(folder.glob("*.log")))
            fates = [file.read_text().split()[0] for file in tmp_path.glob(f"{task_id}.{index}.*.fate")]
            tally.update(f"{fate} of a try" for fate in fates if fate != "none")
            tally["tries"] += row["try_number"]
            check = check_bulk if task_id == "bulk" else check_single
            check(row, books, fates, log, xcoms.get((task_id, index, "return_value")), tmp_path, tally)
        (tmp_path / "calm").touch()  # A first try can have failed for good: the next one would be killed too.
        clear(home, run_id, crm, rows, tally)
        cleared = variables(home)
    failed = {f"{row['task_id']}.{row['map_index']}" for row in rows if row["state"] == "failed"}
    tally["Variables left"] = len(left)
    print(  # noqa: T201 - the figures that the release notes quote
        f"\nAirflow {AIRFLOW_VERSION}, {os.environ.get('KILLS_DATABASE', 'sqlite')}, seed {SEED}: "
        f"{3 * SINGLE + BULKS * ROWS} writes, {len(rows)} tasks, {seconds:.0f} s\n{dict(sorted(tally.items()))}"
    )
    assert {name: tally[name] for name in PROBLEMS} == dict.fromkeys(PROBLEMS, 0)
    assert tally["tries"] > len(rows)
    assert tally["done"] > 0
    # A process can be killed between its success and its callback, which removes the Variable.
    killed = {
        file.name.rpartition(".")[0].rpartition(".")[0] for file in tmp_path.glob("*.fate") if "SIG" in file.read_text()
    }
    if AIRFLOW_VERSION < (3, 0):
        # A task's next write removes them: what is left succeeded after the last one began to look.
        assert len(set(left) - failed) <= 3 * PARALLEL
    else:
        assert set(left) <= failed | killed
        assert set(cleared) <= killed


def tasks_of(home: AirflowHome, run_id: str) -> list[dict[str, Any]]:
    """Return the tasks of the run, with state and try."""
    query = f"SELECT task_id, map_index, state, try_number FROM {TASKS} WHERE run_id = :run"  # noqa: S608
    return home.database(query, run=run_id)


def variables(home: AirflowHome) -> list[str]:
    """Return the tasks whose journal is in a Variable."""
    keys = [row["key"].split("@") for row in home.database("SELECT key FROM variable")]
    return [f"{task_id}.{index}" for _, _, task_id, _, index in keys]


def clear(home: AirflowHome, run_id: str, crm: Sandbox, before: list[dict[str, Any]], tally: Counter[str]) -> None:
    """Clear the single writes that failed, as a person does: each is made anew, and once."""
    failed = [
        (row["task_id"], row["map_index"]) for row in before if row["state"] == "failed" and row["task_id"] != "bulk"
    ]
    if not failed:
        return
    crm.state.calm()
    names = [f"{task_id}-{index}" for task_id, index in failed]
    old = len(crm.state.books())
    body = {"dag_run_id": run_id, "dry_run": False, "only_failed": True, "reset_dag_runs": True}
    home.api("POST", "/dags/kills/clearTaskInstances", {**body, "task_ids": ["ticket", "message", "request"]})
    home.wait("kills", run_id, timeout=7200)
    states = home.task_states("kills", run_id)
    assert {states[task] for task in failed} == {"success"}
    new = crm.state.books()[old:]
    written = [
        (entry["body"] or {}).get(field) for entry in new for field in ("subject", "Subject", "Name") if entry["id"]
    ]
    assert sorted(name for name in written if name in names) == sorted(names)
    tally["cleared, and written anew"] = len(failed)


def judge(entries: list[dict[str, Any]], fates: list[str], result: str, value: Any, tally: Counter[str]) -> None:
    """Compare what became of one write with the books."""
    ids = [entry["id"] for entry in entries if entry["id"]]
    tally["written twice"] += len(ids) > 1
    if result == "done":
        tally["done"] += 1
        tally["green without a write"] += not ids
        tally["another result"] += value is not None and ids[:1] != [value]
    elif result == "uncertain":
        is_explained = set(fates) != {"none"} or any(entry["fault"] for entry in entries)
        tally["uncertain, and written" if ids else "uncertain, and not written"] += 1
        tally["uncertain, unexplained"] += not is_explained
    else:
        tally["rejected or not reached"] += 1
        tally["failed and written, and does not say so"] += bool(ids)


def check_single(
    row: dict[str, Any], books: Any, fates: list[str], log: str, value: Any, _: Path, tally: Counter[str]
) -> None:
    """Check the write of a task."""
    name = f"{row['task_id']}-{row['map_index']}"
    entries = [entry for entry in books if (entry["body"] or {}).get(FIELDS[row["task_id"]]) == name]
    result = "done" if row["state"] == "success" else "rejected"
    if result != "done" and "OneboxUncertainWriteError" in log:
        result = "uncertain"
    judge(entries, fates, result, value["Id"] if isinstance(value, dict) else value, tally)


def check_bulk(
    row: dict[str, Any], books: Any, fates: list[str], log: str, value: Any, folder: Path, tally: Counter[str]
) -> None:
    """Check each row of a bulk."""
    lines = [json.loads(line) for line in (folder / f"bulk.{row['map_index']}.jsonl").read_text().splitlines()]
    results = {line["row"]: line for line in lines if line["row"] is not None}
    for number in range(ROWS):
        name = f"bulk-{row['map_index']}-{number}"
        entries = [entry for entry in books if (entry["body"] or {}).get("Name") == name]
        line = results.get(number, {"result": "not_sent"})
        judge(entries, fates, line["result"].replace("begun", "uncertain"), line.get("id"), tally)
        tally["green without a write"] += row["state"] == "success" and line["result"] != "done"
