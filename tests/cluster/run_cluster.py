"""Two Celery workers, one of the edge executor, Redis, PostgreSQL, two hundred sites; a worker is killed half-way.

Not part of the suite: ``make cluster``. It fails where Redis or PostgreSQL are missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from cluster.services import postgresql, redis
from support.airflow_home import AirflowHome

if TYPE_CHECKING:
    from collections.abc import Iterator

SITES = int(os.environ.get("CLUSTER_SITES", "200"))
WAITS = SITES // 2
ROWS = 120
SECONDS = 5400
"""The longest that the run may take."""

WORKERS = [f"celery worker --celery-hostname {name}@%h --concurrency 4 --skip-serve-logs" for name in ("one", "two")]
EDGE = "edge worker --edge-hostname edge --queues edge --concurrency 1"
CONFIG = {
    ("core", "executor"): "CeleryExecutor,airflow.providers.edge3.executors.EdgeExecutor",
    ("edge", "api_enabled"): True,
    # How long a request of the edge worker is valid; it is too short for a busy machine.
    ("api_auth", "jwt_leeway"): 600,
    ("core", "parallelism"): 16,
    # A worker that dies takes the messages along that it has not acknowledged. Redis gives them to another after the
    # visibility timeout, which has to be longer than any task: a day by default.
    ("celery_broker_transport_options", "visibility_timeout"): 60,
    # A task that ran in the dead worker is missed after this time, and one that was about to run after that.
    ("scheduler", "task_instance_heartbeat_timeout"): 30,
    ("scheduler", "task_instance_heartbeat_timeout_detection_interval"): 5,
    ("scheduler", "task_queued_timeout"): 90,
    ("scheduler", "task_queued_timeout_check_interval"): 10,
    ("celery", "task_acks_late"): True,
    ("celery", "worker_prefetch_multiplier"): 1,
    ("celery", "sync_parallelism"): 1,
}


class Onebox:
    """The sandbox in a separate process, as the whole cluster sees it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(self, name: str, **arguments: Any) -> Any:
        """Run a method of the sandbox's state."""
        body = json.dumps(arguments).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/sandbox/{name}", body, headers)  # noqa: S310
        with self.opener.open(request, timeout=60) as reply:
            return json.load(reply)


@contextmanager
def onebox() -> Iterator[Onebox]:
    """Run the sandbox with all the sites; tokens outlive the run on a slow machine."""
    command = [sys.executable, "-m", "airflow_provider_onebox.sandbox", "--password", "open sesame"]
    command += ["--sites", ",".join(map(str, range(1, SITES + 2))), "--records", str(ROWS), "--token-life", "7200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield Onebox(process.stdout.readline().strip())
        finally:
            process.terminate()


class Memory(threading.Thread):
    """Measure the workers' memory, shared pages divided among their users, until the block ends."""

    def __init__(self, home: AirflowHome) -> None:
        super().__init__(daemon=True)
        self.home, self.most, self.over = home, dict.fromkeys(WORKERS, 0), threading.Event()

    def run(self) -> None:
        """Keep the most of each worker with its children."""
        while not self.over.wait(5):
            for worker in WORKERS:
                total = 0
                for process in self.home.alive(worker):
                    with suppress(psutil.Error):
                        total += process.memory_full_info().pss
                self.most[worker] = max(self.most[worker], total)


def test_cluster(tmp_path: Path) -> None:
    """Nothing is lost, nothing is doubled, and each task try logs in once."""
    output = tmp_path / "output"
    output.mkdir()
    with ExitStack() as stack:
        crm = stack.enter_context(onebox())
        broker, database = stack.enter_context(redis(tmp_path)), stack.enter_context(postgresql(tmp_path))
        home = stack.enter_context(cluster(tmp_path / "home", crm, broker, database))
        home.migrate()
        home.start("api-server", "scheduler", "dag-processor", "triggerer", *WORKERS)
        home.start(EDGE)
        memory = Memory(home)
        memory.start()
        last = [crm.call("ids", resource="message", site=str(site))[-1] for site in range(1, WAITS + 1)]
        idle = len(home.alive(WORKERS[1]))
        # So slow that sites are left to list once half of them are seen to be, and tasks are in the midst of it.
        crm.call("configure", latency=2)
        start = time.monotonic()
        run_id = home.trigger("cluster", {"folder": str(output), "last": last})

        def count(task: str, state: str) -> int:
            states = home.task_states("cluster", run_id)
            return sum(found == state for (name, _), found in states.items() if name == task)

        home.until(lambda: count("list", "success") >= SITES // 2, "half of the sites are listed", SECONDS)
        # Each task is a separate process.
        home.until(lambda: len(home.alive(WORKERS[1])) > idle, "the second worker runs a task")
        killed = home.kill(WORKERS[1])
        crm.call("configure", latency=0)
        print(f"\n{time.monotonic() - start:.0f} s: killed a worker, and with it {len(killed) - idle} running tasks")
        home.until(lambda: count("list", "success") == SITES, "all sites are listed", SECONDS)
        home.until(lambda: count("wait", "deferred") == WAITS, "all sensors wait in the triggerer", SECONDS)
        print(f"{time.monotonic() - start:.0f} s: all sites are listed, all sensors wait")
        for site in range(1, WAITS + 1):
            crm.call("add", count=1, resource="message", site=str(site))
        assert home.wait("cluster", run_id, SECONDS) == "success"
        seconds = time.monotonic() - start
        memory.over.set()
        memory.join()
        counters, tries = crm.call("snapshot"), tries_of(home, run_id)
        xcoms = home.xcoms("cluster", run_id)
        tickets = [crm.call("ids", resource="ticketrz", site=str(site)) for site in range(1, SITES + 2)]
        # Celery's executor can take longer to end than the others.
        assert home.stop(grace=120) == []
        assert home.alive() == []

    rows = check_rows(output, tickets)
    for index in range(WAITS):
        found = xcoms["wait", index, "return_value"]
        assert found["count"] == 1
        assert int(found["last_id"]) > int(last[index])
    extra = check_logins(counters, tries)
    assert extra > 0, "no task was tried again: the run has shown nothing"
    print(
        f"task runs {sum(tries.values())} of {len(tries)} tasks, {extra} of them again; logins {counters['logins']}; "
        f"rows {rows}; seconds {seconds:.0f}; "
        f"a worker at most {max(memory.most.values()) / 2**20:.0f} MiB (4 processes, PSS)"
    )


@contextmanager
def cluster(folder: Path, crm: Onebox, broker: str, database: str) -> Iterator[AirflowHome]:
    """Give an Airflow with Celery's executor and the edge executor."""
    config = {
        **CONFIG,
        ("celery", "broker_url"): broker,
        ("celery", "result_backend"): f"db+postgresql+psycopg2://airflow@{database}",
        ("database", "sql_alchemy_conn"): f"postgresql+psycopg2://airflow@{database}",
    }
    connection = {"conn_type": "onebox", "host": crm.url, "login": "care@example.com", "password": "open sesame"}
    crm_connection = json.dumps({**connection, "extra": {"site_id": 1}})
    with AirflowHome(
        folder,
        [Path(__file__).parent / "dags" / "cluster.py"],
        config=config,
        connections={"crm": crm_connection},
        env={"CLUSTER_SITES": str(SITES)},
    ) as home:
        home.env["AIRFLOW__EDGE__API_URL"] = f"{home.url}/edge_worker/v1/rpcapi"
        yield home


def tries_of(home: AirflowHome, run_id: str) -> dict[tuple[str, int], int]:
    """Return how often each task was tried."""
    query = "SELECT task_id, map_index, try_number FROM task_instance WHERE run_id = :run"
    return {(row["task_id"], row["map_index"]): row["try_number"] for row in home.database(query, run=run_id)}


def check_rows(output: Path, tickets: list[list[str]]) -> int:
    """See that each site's file holds its tickets, each once, and that nothing else lies there."""
    # What a killed task was writing is removed by its next try. A mapped task leaves its claim to the path.
    names = [file.name for file in output.iterdir() if not file.name.endswith(".claim")]
    assert sorted(names) == sorted(f"{n}.jsonl" for n in range(len(tickets)))
    rows = 0
    for index, ids in enumerate(tickets):
        written = [str(json.loads(line)["Id"]) for line in (output / f"{index}.jsonl").read_text().splitlines()]
        assert written == ids, f"site {index + 1}"
        rows += len(written)
    assert rows == len(tickets) * ROWS
    return rows


def check_logins(counters: dict[str, Any], tries: dict[tuple[str, int], int]) -> int:
    """See that each task try has logged in once, and return how many were tried again.

    A task that lists has an upstream token; one that waits logs in, and so does its trigger. A try that
    was killed may have logged in or not.
    """
    extra = 0
    assert counters["failed_logins"] == 0
    for index in range(SITES):
        again = tries["authenticate", index] - 1
        least = 1
        if index < WAITS:
            again += tries["wait", index] - 1
            least = 3
        logins = counters["logins_by_site"][str(index + 1)]
        assert least <= logins <= least + again, f"site {index + 1}: {logins} logins, {again} tasks tried again"
        extra += again + tries["list", index] - 1
    return extra
