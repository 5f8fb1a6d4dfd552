"""Run the soak on this Python's Airflow, or write the page of what was measured on several.

Usage: python -m benchmarks.soak [--short] [--core NUMBER] [--results FILE]
       python -m benchmarks.soak --report FILE...

Twenty connections, a thousand waiting triggers and, on Airflow 3, twenty watchers in one triggerer; and a sensor that
pokes in a task. Their tokens live 2 s (1 s for the task's), so that each is renewed about once a second. What is a
poll and what is a renewal is taken from the sandbox's own books: a poll is a request for a list. Half of the triggers
ask what no other does, so each of their polls is such a request; one that serves several triggers counts once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.report import progress
from benchmarks.setting import ROOT, Onebox, describe, onebox
from benchmarks.soak.report import SAMPLE, check, picture, write

sys.path.insert(0, str(ROOT / "tests"))

from support.airflow_home import AIRFLOW_3, AirflowHome

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
NEVER = 10**12  # no record has an id like that
TOKEN_LIVES = {"triggerer": 2, "task": 1}
PACKAGES = ("airflow-provider-onebox", "apache-airflow", "requests", "urllib3", "msgspec")
CONFIG = {
    ("triggerer", "capacity"): 2000,
    ("triggerer", "default_capacity"): 2000,
    ("triggerer", "max_trigger_to_select_per_loop"): 2000,
    # A line for each time that another process had the core would count as the provider's.
    ("triggerer", "blocked_main_thread_warning_threshold"): 5,
    # Only one task runs. What idles shall leave the cores alone.
    ("core", "parallelism"): 2,
    ("scheduler", "scheduler_idle_sleep_time"): 1,
    ("scheduler", "task_instance_heartbeat_timeout"): 3600,
    ("dag_processor", "refresh_interval"): 60,
    ("scheduler", "min_file_process_interval"): 3600,
    ("dag_processor", "min_file_process_interval"): 3600,
}


@dataclass(frozen=True)
class Size:
    """How long the soak is.

    :param renewals: of tokens in the triggerer, at the least.
    :param polls: of the triggerer, at the least.
    :param pokes: renewals in the task, at the least.
    :param seconds: that it lasts at the least, and in which these are made at the most.
    :param triggers: that wait.
    :param interval: seconds between the polls of each, about.
    :param every: seconds between two samples.
    :param connections: that they spread over.
    """

    renewals: int
    polls: int
    pokes: int
    seconds: tuple[float, float]
    triggers: int
    interval: float
    every: float
    connections: int = 20


WHOLE = Size(10_000, 50_000, 1000, seconds=(300, 840), triggers=1000, interval=5, every=2)
SHORT = Size(400, 2000, 40, seconds=(40, 75), triggers=200, interval=1, every=0.5)


class Lines:
    """Counts the lines of files that grow.

    :param folder: where they lie.
    :param pattern: of their paths.
    """

    def __init__(self, folder: Path, pattern: str) -> None:
        self.folder, self.pattern, self.count = folder, pattern, 0
        self.last: deque[str] = deque(maxlen=5)
        self._read: dict[Path, int] = {}

    def now(self) -> int:
        """Return how many there are by now."""
        for path in self.folder.glob(self.pattern):
            if path.stat().st_size > (start := self._read.get(path, 0)):
                with path.open("rb") as file:
                    file.seek(start)
                    new = file.read()
                self._read[path] = start + len(new)
                self.count += new.count(b"\n")
                lines = new.decode(errors="replace").splitlines()
                self.last += (line for line in lines[-5:] if "starting" not in line)
        return self.count


class Watched:
    """One process, as seen from outside.

    :param pid: its id.
    :param books: who counts its polls.
    :param lines: its log, if its lines are counted.
    :param probe: the folder where processes write how many strings they mask.
    """

    def __init__(self, pid: int, books: str, lines: list[Lines], probe: Path) -> None:
        self.process, self.books, self.lines, self._masked = psutil.Process(pid), books, lines, probe / str(pid)

    def sample(self, counted: dict[str, dict[str, int]]) -> dict[str, float]:
        """Measure it.

        :param counted: what the sandboxes have counted.
        :return: a value for each name of ``SAMPLE``.
        """
        with self.process.oneshot():
            cpu = self.process.cpu_times()
            found = {
                "memory": self.process.memory_info().rss / 2**20,
                "cpu": 1000 * (cpu.user + cpu.system),
                "threads": self.process.num_threads(),
                "files": self.process.num_fds(),
                "masked": int(self._masked.read_text()),
                "lines": sum(lines.now() for lines in self.lines),
                "polls": counted[self.books]["polls"],
            }
        assert set(found) == set(SAMPLE)  # noqa: S101 - the two lists are one
        return found


def yardstick() -> float:
    """Return the milliseconds of CPU that the same piece of work takes now.

    They depend on what else the machine does, as those of the watched processes do.
    """
    start = time.process_time()
    for _ in range(20):
        json.loads(json.dumps([{"Id": str(n), "Subject": "yardstick"} for n in range(500)]))
    return 1000 * (time.process_time() - start)


def count(books: Onebox) -> dict[str, int]:
    """Ask a sandbox what it has counted: polls, renewals and logins that failed."""
    snapshot = books.control("snapshot")
    polls = snapshot["requests"].get("GET list", 0)
    return {"polls": polls, "renewals": snapshot["logins"], "failed": snapshot["failed_logins"]}


class Soak:
    """The soak.

    :param size: how long it is.
    :param folder: an empty one.
    :param stack: ends what is started.
    """

    def __init__(self, size: Size, folder: Path, stack: ExitStack) -> None:
        self.size, self.folder = size, folder
        self.probe = folder / "probe"
        self.probe.mkdir()
        sites = ",".join(map(str, range(size.connections)))
        self.books = {
            "triggerer": stack.enter_context(onebox(10, "--sites", sites)),
            "task": stack.enter_context(onebox(10, "--sites", "0")),
        }
        url = self.books["triggerer"].url
        connections = {f"crm_{n}": describe(url, str(n)) for n in range(size.connections)}
        connections["poked"] = describe(self.books["task"].url, "0")
        settings = {
            "folder": str(folder),
            "triggers": size.triggers,
            "connections": size.connections,
            "interval": size.interval,
            "since_id": NEVER,
            # A little more than half of the life, at which the token is no longer used: each poke renews.
            "poke_interval": 0.52,
        }
        env = {
            "ONEBOX_SOAK": json.dumps(settings),
            "ONEBOX_SOAK_PROBE": str(self.probe),
            "PYTHONPATH": str(HERE / "probe"),
        }
        dags = [HERE / "dags/soak.py"]
        self.home = stack.enter_context(
            AirflowHome(folder / "home", dags, connections=connections, env=env, config=CONFIG)
        )

    def start(self) -> dict[str, Watched]:
        """Start everything and wait until all of it polls.

        :return: the processes to watch, by name.
        """
        home, size = self.home, self.size
        home.migrate()
        home.run("pools", "set", "none", "0", "no slots")
        home.start("api-server", "scheduler", "dag-processor")
        run = home.trigger("waits")
        home.trigger("pokes")

        def made() -> bool:
            states = list(home.task_states("waits", run).values())
            return len(states) == size.triggers and set(states) == {"scheduled"}

        home.until(made, "the task instances are made", 120)
        subprocess.run([sys.executable, HERE / "rows.py"], env=home.env, cwd=home.home, check=True, timeout=120)
        home.start("triggerer")
        watchers = size.connections if AIRFLOW_3 else 0
        self.expected = size.triggers + watchers
        home.until(lambda: self.waiting() == self.expected, f"{self.expected} triggers are assigned", 180)
        home.until((self.folder / "task").exists, "the task runs", 180)
        watched = dict(self.watched())
        home.until(lambda: count(self.books["triggerer"])["polls"] > size.triggers, "all triggers poll", 180)
        self.fill_pools()
        # Not before: what renews tokens without end may be too busy with that to begin.
        for name, life in TOKEN_LIVES.items():
            self.books[name].control("configure", token_life=life)
            self.books[name].control("revoke")
        return watched

    def fill_pools(self) -> None:
        """Respond slowly for a while, so that the triggerer has all threads and sockets that it may ever have.

        They are made as they are needed; by chance alone, filling the pools takes hours.
        """
        for latency in (1.5, 0):
            self.books["triggerer"].control("configure", latency=latency)
            time.sleep(max(6, 3 * self.size.interval))

    def waiting(self) -> int:
        """Return how many triggers the triggerer has."""
        return int(self.home.database("SELECT count(*) AS n FROM trigger WHERE triggerer_id IS NOT NULL")[0]["n"])

    def watched(self) -> Iterator[tuple[str, Watched]]:
        """Find the processes."""
        main = psutil.Process(self.home.processes["triggerer"].pid)
        logs = [Lines(self.home.home, "processes/triggerer.log"), Lines(self.home.home, "logs/dag_id=waits/*/*/*/*")]
        runner = main
        if AIRFLOW_3:
            # The triggers run in a child, the log is its parent's.
            runner = main.children()[0]
            yield "triggerer's supervisor", Watched(main.pid, "triggerer", [], self.probe)
        yield "triggerer", Watched(runner.pid, "triggerer", logs, self.probe)
        task, supervisor = json.loads((self.folder / "task").read_text())
        yield "task's supervisor", Watched(supervisor, "task", [], self.probe)
        log = Lines(self.home.home, "logs/dag_id=pokes/*/*/*")
        yield "task", Watched(task, "task", [log], self.probe)

    def run(self) -> dict[str, Any]:
        """Soak until there are enough polls and renewals, or time is up, or memory has no bounds.

        :return: what was measured, ready for JSON.
        """
        watched, size = self.start(), self.size
        begun, start = {name: count(books) for name, books in self.books.items()}, time.monotonic()
        times: list[float] = []
        yardsticks: list[float] = []
        samples: dict[str, dict[str, list[float]]] = {name: {key: [] for key in SAMPLE} for name in watched}
        logged, ended = 0.0, ""
        while not ended:
            counted = {name: count(books) for name, books in self.books.items()}
            now = time.monotonic() - start
            times.append(now)
            yardsticks.append(yardstick())
            try:
                for name, process in watched.items():
                    for key, value in process.sample(counted).items():
                        samples[name][key].append(value)
            except (psutil.Error, OSError) as problem:
                ended = f"{name} is gone: {problem}"
                break
            done = {
                "renewals": counted["triggerer"]["renewals"] - begun["triggerer"]["renewals"],
                "polls": counted["triggerer"]["polls"] - begun["triggerer"]["polls"],
                "pokes": counted["task"]["renewals"] - begun["task"]["renewals"],
            }
            if now - logged >= 10:
                logged = now
                memory = ", ".join(f"{name} {samples[name]['memory'][-1]:.0f} MB" for name in samples)
                progress(f"{now:4.0f} s  {done}  {memory}")
            if now >= size.seconds[0] and all(number >= getattr(size, name) for name, number in done.items()):
                ended = "enough"
            elif now >= size.seconds[1]:
                ended = f"not enough within {size.seconds[1]} s"
            elif any(of["memory"][-1] > 3 * of["memory"][0] for of in samples.values()):
                ended = "memory has grown to three times what it was"
            else:
                time.sleep(max(0.0, start + len(times) * size.every - time.monotonic()))
        progress(f"{times[-1]:4.0f} s  {done}  {ended}")
        least = {name: getattr(size, name) for name in done}
        failed = sum(of["failed"] for of in counted.values())
        return {
            "airflow": ".".join(version("apache-airflow").split(".")[:2]),
            "versions": [f"CPython {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)],
            "short": size is SHORT,
            "ended": ended,
            "done": done,
            "least": least,
            "failed": failed,
            "waiting": [self.waiting(), self.expected],
            "times": times,
            "yardstick": yardsticks,
            "samples": samples,
            "logged": [line[:400] for process in watched.values() for lines in process.lines for line in lines.last],
        }


def main() -> int:
    """Run the soak, or report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Does anything grow?")
    parser.add_argument("--short", action="store_true", help="a minute of it")
    parser.add_argument("--results", type=Path, help="where the figures go; they are judged by --report then")
    parser.add_argument("--report", nargs="+", type=Path, metavar="FILE", help="write the page and the chart of these")
    parser.add_argument("--core", type=int, help="keep all of it on this core of the machine")
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core % (os.cpu_count() or 1)})
    if options.report:
        results = [json.loads(file.read_text()) for file in options.report]
        (ROOT / "benchmarks/soak.md").write_text(write(results))
        (ROOT / "docs/images/soak.svg").write_text(picture(results))
    else:
        with tempfile.TemporaryDirectory(prefix="onebox-soak-", ignore_cleanup_errors=True) as folder, ExitStack() as s:
            results = [Soak(SHORT if options.short else WHOLE, Path(folder), s).run()]
        if options.results:
            options.results.parent.mkdir(parents=True, exist_ok=True)
            options.results.write_text(json.dumps(results[0]))
    sys.stdout.write(write(results))
    short = [
        f"Airflow {result['airflow']}: {row.what}" for result in results for row in check(result) if not row.reached
    ]
    for what in short:
        sys.stdout.write(f"Falls short: {what}\n")
    if short:
        progress("\n".join(["Logged last:", *(line for result in results for line in result["logged"])]))
    return 1 if short and not options.results else 0


if __name__ == "__main__":
    sys.exit(main())
