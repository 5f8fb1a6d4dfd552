"""A real Airflow in a temporary folder, for the tests, the demo and the browser: 2.11 and every 3.x.

Everything is set by environment variables, listens on loopback alone and ends with the ``with`` block::

    with AirflowHome(tmp_path, [dag_file]) as home:
        result = home.test_dag("my_dag")             # one process, no scheduler
        home.migrate()                               # or the real thing
        home.start("api-server", "scheduler")
        run_id = home.trigger("my_dag")
        assert home.wait("my_dag", run_id) == "success"
"""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import psutil
import requests
from cryptography.fernet import Fernet
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from support import run_commands
from support.processes import PATIENCE, run, unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

AIRFLOW_VERSION = tuple(int(part) for part in version("apache-airflow").split(".")[:2])
AIRFLOW_3 = AIRFLOW_VERSION >= (3, 0)

# Short intervals and few processes, for a small machine. SQLite waits 5 s for a lock by default, and several
# processes write to it here; a task waits 5 s for the API server.
_SETTINGS = """
core executor=LocalExecutor parallelism=4 load_examples=False dags_are_paused_at_creation=False fernet_key={fernet}
database sql_alchemy_conn=sqlite:///{home}/airflow.db?timeout=300
logging colored_console_log=False
scheduler job_heartbeat_sec=1 scheduler_heartbeat_sec=1 scheduler_idle_sleep_time=0.2
triggerer job_heartbeat_sec=1
"""
_SETTINGS_2 = """
api auth_backends=airflow.api.auth.backend.default
database load_default_connections=False
metrics timer_unit_consistency=True
scheduler parsing_processes=1
webserver base_url=http://127.0.0.1:{port} web_server_host=127.0.0.1 web_server_port={port}
webserver workers=1 secret_key={secret} web_server_master_timeout=0
"""
_SETTINGS_3 = """
api base_url=http://127.0.0.1:{port} host=127.0.0.1 port={port} workers=1 secret_key={secret}
api_auth jwt_secret={secret} jwt_issuer=airflow-home
core simple_auth_manager_all_admins=True
dag_processor parsing_processes=1
workers execution_api_timeout=300
"""
# Airflow 3.4 keeps every try of a task as a row, and XComs by task instance.
TASKS, _XCOMS = "task_instance", "xcom"
if AIRFLOW_VERSION >= (3, 4):
    TASKS = "(SELECT *, region_index AS map_index FROM task_instance WHERE working_set) AS task"
    _XCOMS = f"(SELECT task.*, key, value FROM xcom_v2 JOIN {TASKS} ON task.id = task_instance_id) AS xcom"  # noqa: S608
_TAG = "AIRFLOW_HOME_COMPONENT"
# Seconds between the first two signals to end; each further pause is ten times as long. Airflow's handler raises
# SystemExit, which Python drops in a callback of a weak reference: the component goes on then. A scheduler that has
# begun to end waits for its tasks and gets no more signals: another one would be the order not to wait, and before the
# executor has stopped its workers they would never end. The triggerer of Airflow 3 waits 10 s for a runner that has
# ended, until another signal; but each signal makes it begin anew to end the runner, which takes up to 15 s.
_SIGNALS = {"scheduler": 60, "triggerer": 3, "dag-processor": 10}
_ENDING = "Shutting down LocalExecutor"
_JOBS = {"scheduler": "SchedulerJob", "triggerer": "TriggererJob", "dag-processor": "DagProcessorJob"}


class AirflowHomeError(Exception):
    """Airflow did not do what was asked; the message has the end of its output."""


@dataclass(frozen=True)
class Run:
    """What one run left behind: states as Airflow spells them, XComs decoded from JSON."""

    run_id: str
    state: str
    tasks: dict[tuple[str, int], str | None]
    xcoms: dict[tuple[str, int, str], Any]
    output: str = ""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now, outside the range of ephemeral ports."""
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", 20000 + secrets.randbelow(12000))) as server:
            return int(server.getsockname()[1])


def copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database, with what is still in its write-ahead log."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
        new.execute("PRAGMA journal_mode=WAL")


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-40:])


def _settings(home: Path, port: int) -> dict[tuple[str, str], str]:
    """Return the configuration of a home."""
    fernet, secret = Fernet.generate_key().decode(), secrets.token_urlsafe(64)
    settings = {}
    lines = (_SETTINGS + (_SETTINGS_3 if AIRFLOW_3 else _SETTINGS_2)).splitlines()
    for section, *options in map(str.split, filter(None, lines)):
        for option in options:
            key, _, value = option.partition("=")
            settings[section, key] = value.format(home=home, port=port, fernet=fernet, secret=secret)
    return settings


class AirflowHome(AbstractContextManager["AirflowHome"]):
    """One Airflow installation: folder, configuration, database and the processes started in it.

    :param home: the folder, new or empty.
    :param dags: files of DAGs; they are copied.
    :param connections: connection id to URI or JSON, for ``AIRFLOW_CONN_*``.
    :param env: more environment variables.
    :param config: ``(section, key)`` to value, on top of the settings of this module.
    :param password: the password of the user ``admin``, on Airflow 3; if ``None``, nobody has to log in.
    """

    def __init__(
        self,
        home: Path,
        dags: Iterable[Path] = (),
        *,
        connections: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        config: Mapping[tuple[str, str], Any] | None = None,
        password: str | None = None,
    ) -> None:
        self.home = home.resolve()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._begun: dict[str, int] = {}
        (self.home / "processes").mkdir(parents=True, exist_ok=True)
        (self.home / "dags").mkdir()
        for file in dags:
            shutil.copy(file, self.home / "dags")
        # A page without login, for the browser; Airflow 3 has a setting for it.
        (self.home / "webserver_config.py").write_text("AUTH_ROLE_PUBLIC = 'Admin'\n")
        self.config = _settings(self.home, self.port) | dict(config or {})
        self._login = {"username": "admin", "password": password} if password else None
        if password:
            self.config["core", "simple_auth_manager_all_admins"] = "False"
            (self.home / "simple_auth_manager_passwords.json.generated").write_text(json.dumps({"admin": password}))
        self.env = {key: value for key, value in unmeasured().items() if not key.startswith("AIRFLOW_")}
        self.env |= {f"AIRFLOW__{s}__{k}".upper(): str(value) for (s, k), value in self.config.items()}
        self.env |= {f"AIRFLOW_CONN_{name.upper()}": uri for name, uri in (connections or {}).items()}
        self.env |= {
            "AIRFLOW_HOME": str(self.home),
            "NO_COLOR": "1",
            "no_proxy": "127.0.0.1,localhost",
            "PYTHONUNBUFFERED": "1",
            # Keeps the environment of renamed processes readable, so that orphans can be found.
            "SPT_NOENV": "1",
            # Airflow 2 rejects SQLite under any executor that runs two tasks at once.
            "_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK": "1",
            **(env or {}),
        }

    def __exit__(self, *_: object) -> None:
        """End every process that was started, at once where one has not ended after a while."""
        self.stop(grace=20)

    def run(self, *args: str) -> str:
        """Run ``airflow`` with these arguments and return its output, stderr included."""
        return self.python("-m", "airflow", *args)

    def run_all(self, *commands: list[str]) -> list[str]:
        """Run several commands of ``airflow`` in one process and return the output of each."""
        output = self.python(run_commands.__file__, *map(json.dumps, commands))
        return output.split(run_commands.MARK)[1:]

    def python(self, *args: str) -> str:
        """Run Python with these arguments and return its output, stderr included."""
        done = run(sys.executable, *args, env=self.env, cwd=self.home, stderr=subprocess.STDOUT)
        if done.returncode:
            raise AirflowHomeError(f"{shlex.join(args)} ended with {done.returncode}:\n{_tail(done.stdout)}")
        return done.stdout

    # --- database

    def migrate(self) -> None:
        """Bring the database to this Airflow's schema."""
        self.run("db", "migrate")
        if (file := self.home / "airflow.db").exists():
            with closing(sqlite3.connect(file)) as database:
                # Without it, two tasks of Airflow 2 wait for each other's lock for minutes; Airflow 3 sets it itself.
                database.execute("PRAGMA journal_mode=WAL")

    def database(self, query: str, **params: Any) -> list[dict[str, Any]]:
        """Return the rows of an SQL statement (``:name`` parameters) on the metadata database."""
        engine = create_engine(self.config["database", "sql_alchemy_conn"], poolclass=NullPool)
        with engine.begin() as connection:
            return [dict(row) for row in connection.execute(text(query), params).mappings()]

    def task_states(self, dag_id: str, run_id: str) -> dict[tuple[str, int], str | None]:
        """Return the state of every task instance of a run, by task id and map index."""
        query = f"SELECT task_id, map_index, state FROM {TASKS} WHERE dag_id = :dag AND run_id = :run"  # noqa: S608
        rows = self.database(query, dag=dag_id, run=run_id)
        return {(row["task_id"], row["map_index"]): row["state"] for row in rows}

    def xcoms(self, dag_id: str, run_id: str) -> dict[tuple[str, int, str], Any]:
        """Return every XCom of a run as its reader gets it, by task id, map index and key."""
        # JSON text in bytes on Airflow 2 (read from SQLite alone), of the database's JSON type since.
        query = f"SELECT task_id, map_index, key, CAST(value AS TEXT) AS value FROM {_XCOMS}"  # noqa: S608
        rows = self.database(f"{query} WHERE dag_id = :dag AND run_id = :run", dag=dag_id, run=run_id)
        return {(row["task_id"], row["map_index"], row["key"]): json.loads(row["value"]) for row in rows}

    def import_errors(self) -> dict[str, str]:
        """Return the traceback of every DAG file that could not be imported."""
        rows = self.database("SELECT filename, stacktrace FROM import_error")
        return {row["filename"]: row["stacktrace"] for row in rows}

    def result(self, dag_id: str, run_id: str, output: str = "") -> Run:
        """Return states and XComs of a run."""
        query = "SELECT state FROM dag_run WHERE dag_id = :dag AND run_id = :run"
        state = self.database(query, dag=dag_id, run=run_id)[0]["state"]
        return Run(run_id, state, self.task_states(dag_id, run_id), self.xcoms(dag_id, run_id), output)

    # --- one process

    def test_dag(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> Run:
        """Run one DAG as ``airflow dags test`` does."""
        return self.test_dags([dag_id], {dag_id: conf or {}})[dag_id]

    def test_dags(self, dag_ids: Iterable[str], confs: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Run]:
        """Migrate the database, and run several DAGs one after the other in one process."""
        # In a separate process, because it disables all loggers on Airflow 2.
        self.migrate()
        ids, last = list(dag_ids), self.database("SELECT coalesce(max(id), 0) AS id FROM dag_run")[0]["id"]
        tests = [["dags", "test", dag_id, "--conf", json.dumps((confs or {}).get(dag_id, {}))] for dag_id in ids]
        # Airflow 3.0 tests no DAG with assets that was not serialised before.
        serialized, *printed = self.run_all(["dags", "reserialize"], *tests)
        query = "SELECT run_id FROM dag_run WHERE dag_id = :dag AND id > :last ORDER BY id DESC"
        runs = {}
        for dag_id, output in zip(ids, printed, strict=True):
            rows = self.database(query, dag=dag_id, last=last)
            if not rows:
                raise AirflowHomeError(f"No run of {dag_id} was made:\n{_tail(serialized + output)}")
            runs[dag_id] = self.result(dag_id, rows[0]["run_id"], output)
        return runs

    # --- real processes

    def start(self, *components: str) -> None:
        """Start components and wait until each is healthy.

        A component is one of ``api-server`` (the webserver on Airflow 2), ``scheduler``, ``triggerer`` and
        ``dag-processor`` (part of the scheduler on Airflow 2), or the command line of another one, such as
        ``celery worker``, which counts as healthy once it runs. ``processes`` lists each under its name here.
        """
        last = self.database("SELECT coalesce(max(id), 0) AS id FROM job")[0]["id"]
        started = [name for name in components if AIRFLOW_3 or name != "dag-processor"]
        for name in started:
            command = shlex.split(name if AIRFLOW_3 else name.replace("api-server", "webserver"))
            if name in ("scheduler", "triggerer"):
                command.append("--skip-serve-logs")
            self._begun[name] = self._log(name).stat().st_size if self._log(name).exists() else 0
            with self._log(name).open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, "-m", "airflow", *command],
                    env=self.env | {_TAG: f"{self.home} {name}"},
                    cwd=self.home,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        for name in started:
            self.until(partial(self._healthy, name, last), f"{name} is healthy")

    def _log(self, name: str) -> Path:
        return self.home / "processes" / f"{name}.log"

    def _read_log(self, name: str) -> str:
        """Return what a component has logged since its last start."""
        return self._log(name).read_bytes()[self._begun[name] :].decode(errors="replace")

    def _healthy(self, name: str, last: int) -> bool:
        if name == "api-server":
            with suppress(OSError, AirflowHomeError):
                return bool(self.api("GET", "/version"))
            return False
        query = "SELECT id FROM job WHERE id > :last AND job_type = :type AND state = 'running'"
        return name not in _JOBS or bool(self.database(query, last=last, type=_JOBS[name]))

    def until(self, done: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
        """Wait until ``done()`` is true and return it; a process that ends meanwhile ends the wait."""
        deadline = time.monotonic() + timeout
        while not (found := done()):
            ended = [name for name, process in self.processes.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                why = f"{', '.join(ended)} ended" if ended else f"not within {timeout} s"
                logs = [f"--- {n}\n{_tail(self._log(n).read_text())}" for n in ended or self.processes]
                raise AirflowHomeError("\n".join([f"Waited until {what}: {why}", *logs]))
            time.sleep(0.1)
        return found

    def alive(self, *components: str) -> list[psutil.Process]:
        """Return the processes of components (all that were started by default), orphans included."""
        tags = tuple(f"{self.home} {name}" for name in components) or f"{self.home} "
        found = psutil.process_iter(["environ", "cmdline"])
        return [process for process in found if (process.info["environ"] or {}).get(_TAG, "").startswith(tags)]

    def stop(self, grace: float = PATIENCE) -> list[str]:
        """End all components; return the command lines of what had to be killed because it had not ended by itself."""
        killed = []
        # Tasks that end still talk to the API server: it goes last.
        last = [name for name in self.processes if name == "api-server"]
        for group in filter(None, ([name for name in self.processes if name not in last], last)):
            # When each component gets its next signal.
            deadline, due, pauses = time.monotonic() + grace, dict.fromkeys(group, 0.0), dict(_SIGNALS)
            while (left := self.alive(*group)) and (now := time.monotonic()) < deadline:
                for name in [name for name in group if due[name] <= now]:
                    self.processes[name].terminate()
                    due[name] = now + pauses.get(name, PATIENCE)
                    pauses[name] = 10 * pauses.get(name, PATIENCE)
                if "scheduler" in due and _ENDING in self._read_log("scheduler"):
                    due["scheduler"] = deadline
                psutil.wait_procs(left, 1)
            killed += self.kill(*group)
        return killed

    def kill(self, *components: str) -> list[str]:
        """Kill components with their children at once; return their command lines."""
        family = self.alive(*components)
        killed = [" ".join(process.info["cmdline"] or ()) for process in family]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, PATIENCE)
        for name in components:
            self.processes.pop(name).wait()
        return killed

    # --- runs

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Call the public REST API, logged in; ``path`` follows ``/api/v2`` (``/api/v1`` on Airflow 2)."""
        with requests.Session() as session:
            session.trust_env = False  # no proxy
            if AIRFLOW_3:
                how = "POST" if self._login else "GET"
                login = session.request(how, f"{self.url}/auth/token", json=self._login, timeout=PATIENCE)
                login.raise_for_status()
                session.headers["Authorization"] = f"Bearer {login.json()['access_token']}"
            url = f"{self.url}/api/v{2 if AIRFLOW_3 else 1}{path}"
            response = session.request(method, url, json=body, timeout=PATIENCE)
        if not response.ok:
            raise AirflowHomeError(f"{method} {path}: {response.status_code} {response.text}")
        return response.json()

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run as soon as the DAG is parsed and return its run id."""
        self.until(lambda: self._parsed(dag_id), f"{dag_id} is parsed")
        run_id = f"run_{secrets.token_hex(6)}"
        date = {"logical_date": None} if AIRFLOW_3 else {}
        self.api("POST", f"/dags/{dag_id}/dagRuns", {"dag_run_id": run_id, "conf": dict(conf or {}), **date})
        return run_id

    def _parsed(self, dag_id: str) -> bool:
        if errors := self.import_errors():
            raise AirflowHomeError("\n".join(f"{file}:\n{text}" for file, text in errors.items()))
        return bool(self.database("SELECT 1 FROM serialized_dag WHERE dag_id = :dag", dag=dag_id))

    def wait(self, dag_id: str, run_id: str, timeout: float = PATIENCE) -> str:
        """Wait until the run is over and return its state."""
        query = "SELECT state FROM dag_run WHERE dag_id = :dag AND run_id = :run AND state IN ('success', 'failed')"
        what = f"run {run_id} of {dag_id} is over"
        rows = self.until(lambda: self.database(query, dag=dag_id, run=run_id), what, timeout)
        return str(rows[0]["state"])

    def until_state(self, dag_id: str, run_id: str, state: str, task_id: str | None = None) -> None:
        """Wait until a task of a run is in a state and the scheduler has heard that its process has ended.

        A task that waits elsewhere and is woken before the scheduler has heard of that counts as failed, on every
        Airflow: its old process ended while it is queued again.

        :param task_id: the task; any one if ``None``.
        """

        def there() -> bool:
            states = self.task_states(dag_id, run_id)
            tasks = {task for (task, _), now in states.items() if now == state and task_id in (None, task)}
            if state not in ("deferred", "up_for_reschedule"):
                return bool(tasks)
            log = self._log("scheduler").read_text(errors="replace").splitlines()
            ended = [line for line in log if "executor event with state success for task instance" in line]
            # Airflow 3.4 names the task try by its id, and puts the key behind that.
            keys = [f"TaskInstanceKey(dag_id='{dag_id}', task_id='{task}', run_id='{run_id}'" for task in tasks]
            return any(key in line for key in keys for line in ended)

        self.until(there, f"{task_id or 'a task'} of {dag_id} is {state}")

    # --- logs

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1) -> str:
        """Return the log of one try and of its triggers as it lies on the disk (JSON lines on Airflow 3)."""
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        return "".join(file.read_text() for file in sorted(folder.glob(f"attempt={try_number}.log*")))

    def log_files(self) -> list[Path]:
        """Return every log file of the home: tasks, DAG parsing and the components."""
        return sorted(f for d in ("logs", "processes") for f in (self.home / d).rglob("*") if f.is_file())
