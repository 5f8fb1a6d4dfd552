"""Operators, sensor, triggers and notifier through a real Airflow; its processes are started once.

Most runs begin before the first test, and go on side by side until a test needs what they leave. The order matters:
before ``test_triggerer_restart``, no triggerer runs.

At the end all that they have logged and stored is searched for secrets. The package, requests and urllib3 log at level
DEBUG in the DAG for that; Airflow itself does not: at that level the supervisor of Airflow 3 writes whole XComs to its
console.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import sqlite3
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import psutil
import pytest
from cryptography.fernet import Fernet
from support.airflow_home import AIRFLOW_3, AIRFLOW_VERSION, TASKS, AirflowHome, AirflowHomeError, free_port

from airflow_provider_onebox._airflow.encryption import PREFIX
from airflow_provider_onebox.sandbox import Sandbox
from airflow_provider_onebox.sandbox.app import QUOTA

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.airflow_home import Run

pytestmark = pytest.mark.processes
HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "example_dags"
EXAMPLE_NAMES = ("list", "notifier", "sensor", "watch")
HAS_STORE = AIRFLOW_VERSION >= (3, 3)
SITES = [str(site) for site in range(169, 176)]
OTHER = "other@example.com"
PASSWORD = "s3cret & pa/ss+w:rd%21"
WRONG = "wr0ng & pa/ss+w:rd%22"
FAILING = {
    "fail_with_the_hook",
    "log_the_password",
    "wrong_password",
    "unreachable",
    "server_error",
    "slow",
    "wait_in_vain",
    "conversations_gone",
}
# Airflow 3.0 writes to its console what its parts send each other: XComs, and the order to mask a secret.
CHATTER = re.compile(r"\[debug *\]" if AIRFLOW_VERSION == (3, 0) else "(?!)")


class World:
    """A sandbox, an Airflow that knows it, and the files that its tasks write."""

    def __init__(self, folder: Path, sandbox: Sandbox, home: AirflowHome) -> None:
        self.folder, self.home, self.state = folder, home, sandbox.state
        self.password = sandbox.password
        self.begun: dict[str, str] = {}
        self.deferred = 0.0
        self.triggers: list[dict[str, Any]] = []

    def begin(self, dag_id: str, conf: dict[str, Any] | None = None) -> None:
        """Start a run that a test waits for later."""
        self.begun[dag_id] = self.home.trigger(dag_id, conf)

    def last(self, site: str = "169") -> dict[str, Any]:
        """Return the conf of a run that waits for newer tickets."""
        return {"since_id": self.state.ids("ticketrz", site)[-1]}

    def file(self, run: Run | str, task_id: str) -> list[str]:
        """Return the ids in the file of a task try."""
        run_id = run if isinstance(run, str) else run.run_id
        text = gzip.decompress((self.folder / f"{task_id}_{run_id}.jsonl.gz").read_bytes())
        return [json.loads(line)["Id"] for line in text.splitlines()]

    def finish(self, dag_id: str, run_id: str | None = None) -> Run:
        """Wait for the end of a run, by default of the one that has begun, and return what it left."""
        run_id = run_id or self.begun[dag_id]
        self.home.wait(dag_id, run_id)
        return self.home.result(dag_id, run_id)

    def ticket(self, run_id: str) -> dict[str, Any]:
        """Wait for the ticket of a run, the only one, and return it."""

        def opened() -> list[dict[str, Any]]:
            return [ticket for ticket in self.state.tickets if f"Run: {run_id}\n" in ticket["content"]]

        (ticket,) = self.home.until(opened, "the ticket is opened")
        return ticket

    def tries(self, dag_id: str, run_id: str) -> list[int]:
        """Return how often each task of a run was tried."""
        query = f"SELECT try_number FROM {TASKS} WHERE dag_id = :dag AND run_id = :run"  # noqa: S608
        return [row["try_number"] for row in self.home.database(query, dag=dag_id, run=run_id)]

    def watched(self) -> list[str]:
        """Return the ids that the runs of the watching DAG have listed so far."""
        query = "SELECT run_id FROM dag_run WHERE dag_id = 'example_onebox_watch' AND state = 'success' ORDER BY id"
        runs = [row["run_id"] for row in self.home.database(query)]
        found = [self.home.xcoms("example_onebox_watch", run)["list_new", -1, "return_value"] for run in runs]
        return [row_id for ids in found for row_id in ids]


@pytest.fixture(scope="module")
def secretive() -> Iterator[Sandbox]:
    """A Onebox of the DAG that is searched for secrets."""
    with Sandbox(records=50, password=PASSWORD) as sandbox:
        # What a server that is broken, or hostile, could do: repeat what it was sent.
        text = f"you sent {PASSWORD} | {quote_plus(PASSWORD)} | {base64.b64encode(PASSWORD.encode()).decode()}"
        sandbox.state.fail("status", path="echo500", times=99, status=500, body=text)
        sandbox.state.fail("delay", path="slow", times=99, pause=3)
        first = sandbox.state.ids()[0]
        elsewhere = f"{sandbox.url.replace('127.0.0.1', 'localhost')}/public/{first}/0.txt"
        sandbox.state.fail("status", path=f"/files/{first}/", status=302, headers={"Location": elsewhere})
        yield sandbox


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory, secretive: Sandbox) -> Iterator[World]:
    """An Airflow without processes yet."""
    folder = tmp_path_factory.mktemp("real")
    files = folder / "files"
    with Sandbox(records=250, sites=SITES) as sandbox:
        sandbox.state.accounts[OTHER] = "sesame"
        fields = {"conn_type": "onebox", "host": sandbox.url, "extra": {"site_id": 169}}
        own = fields | {"login": sandbox.email, "password": sandbox.password}
        other = fields | {"login": OTHER, "password": "sesame"}
        wrong = {name: own | {"password": "wrong password"} for name in ("number", "text")}
        wrong["text"]["extra"] = {"site_id": "169"}
        secret = {**own, "host": secretive.url, "login": secretive.email, "password": PASSWORD}
        quick = {"extra": {"site_id": "169", "timeout": 1, "max_retries": 1}}
        connections = {"default": own, "other": other, **wrong, "secret": secret, "slow": secret | quick}
        connections["wrong"] = secret | {"password": WRONG}
        connections["gone"] = secret | quick | {"host": f"http://127.0.0.1:{free_port()}"}
        dags = [HERE / "dags" / "real.py", HERE / "dags" / "leaks.py"]
        for name in EXAMPLE_NAMES:
            dags.append(folder / f"example_onebox_{name}.py")
            # No run of its schedule may come between those of a test.
            text = (EXAMPLES / dags[-1].name).read_text().replace('"@hourly"', "None")
            dags[-1].write_text(text.replace("interval=10", "interval=2"))
        with AirflowHome(
            folder / "home",
            dags,
            connections={f"onebox_{name}": json.dumps(fields) for name, fields in connections.items()},
            env={
                "REAL_FOLDER": str(files),
                "AIRFLOW_VAR_EXPIRED": secretive.state.issue("169", secretive.email, life=-100),
                "AIRFLOW_VAR_TICKETS": json.dumps(secretive.state.ids()[:4]),
                "AIRFLOW_VAR_FOLDER": str(folder / "secretive"),
            },
            config={
                ("core", "parallelism"): 6,
                # Before Airflow 3.3, a watcher starts when its file is parsed for the second time.
                ("dag_processor", "min_file_process_interval"): 300 if HAS_STORE else 5,
                ("triggerer", "triggerer_health_check_threshold"): 5,
                ("scheduler", "trigger_timeout_check_interval"): 1,
            },
        ) as home:
            home.migrate()
            yield World(files, sandbox, home)


@pytest.fixture(scope="module")
def world(idle: World) -> World:
    """The same Airflow with all its processes but the triggerer, which was killed while it polled."""
    world, home = idle, idle.home
    home.start("api-server", "scheduler", "dag-processor", "triggerer")
    world.begin("example_onebox_sensor", {**world.last(), "folder": str(world.folder)})
    if AIRFLOW_3:
        marked = "SELECT 1 FROM asset_state_store WHERE key LIKE 'onebox_watcher.onebox_default..ticketrz'"
        there = marked if HAS_STORE else "SELECT 1 FROM trigger WHERE classpath LIKE '%OneboxNewRecordsTrigger'"
        home.until(lambda: home.database(there), "the watcher watches")
    home.until_state("example_onebox_sensor", world.begun["example_onebox_sensor"], "deferred")
    waiting = "SELECT 1 FROM trigger WHERE classpath LIKE '%OneboxRecordTrigger' AND triggerer_id IS NOT NULL"
    home.until(lambda: home.database(waiting), "the triggerer has the wait")
    assert home.kill("triggerer")
    for dag_id in ("late", "backstop"):
        world.begin(dag_id, world.last("175"))
    world.begin("rescheduled", world.last("174"))
    for dag_id in ("example_onebox_notifier", "failing", "failing_twice", "rejected", "leaks"):
        world.begin(dag_id)
    home.until_state("late", world.begun["late"], "deferred")
    world.deferred = time.time()
    return world


def check_ticket(world: World, ticket: dict[str, Any], dag_id: str, run_id: str, task_id: str) -> None:
    """Compare a ticket with the task try that has failed."""
    assert ticket["subject"] == f"Airflow: {dag_id}.{task_id} failed"
    details = dict(line.split(": ", 1) for line in ticket["content"].splitlines())
    assert (details["DAG"], details["Run"], details["Task"], details["Try"]) == (dag_id, run_id, task_id, "1")
    quoted = run_id.replace(":", "%3A").replace("+", "%2B")
    if AIRFLOW_VERSION == (3, 0):
        # It leaves out a slash, and has no link at all under `dags test`.
        assert details["Log"] == "None" or details["Log"].endswith(f"/tasks/{task_id}?try_number=1")
    elif AIRFLOW_3:
        assert details["Log"] == f"{world.home.url}/dags/{dag_id}/runs/{quoted}/tasks/{task_id}?try_number=1"
    else:
        assert details["Log"].startswith(f"{world.home.url}/dags/{dag_id}/grid?dag_run_id={quoted}&task_id={task_id}&")


def test_component_that_ends(idle: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A component that ends at once is reported with the end of its log, and nothing is left."""
    monkeypatch.setitem(idle.home.env, "AIRFLOW__CORE__EXECUTOR", "NoSuchExecutor")
    with pytest.raises(AirflowHomeError, match=r"(?s)scheduler ended\n--- scheduler\n.*NoSuchExecutor"):
        idle.home.start("scheduler")
    assert idle.home.stop() == []
    assert idle.home.alive() == []


def test_incremental(world: World) -> None:
    """A run goes on after those before, gives the same when it is repeated, and none is lost or doubled."""
    old = world.state.ids("ticketrz", "171")
    first = world.finish("incremental", world.home.trigger("incremental"))
    new = world.state.add(30, site="171")
    run = world.finish("incremental", world.home.trigger("incremental"))
    assert (first.state, run.state) == ("success", "success")
    newest = world.state.add(5, site="171")
    body = {"dag_run_id": run.run_id, "dry_run": False, "only_failed": False, "reset_dag_runs": True}
    for path in (found := list(world.folder.glob(f"*{run.run_id}*"))):
        path.unlink()
    world.home.api("POST", "/dags/incremental/clearTaskInstances", body)
    assert world.finish("incremental", run.run_id).state == "success"
    after = world.finish("incremental", world.home.trigger("incremental"))
    assert len(found) == 2
    for task_id in ("with_alias", "with_asset"):
        assert world.file(first, task_id) == old
        assert world.file(run, task_id) == new
        assert world.file(after, task_id) == newest
        assert after.xcoms[task_id, -1, "return_value"]["last_id"] == newest[-1]
    key = "onebox_watermark@incremental@{}@onebox_default@171@ticketrz"
    variables = {
        row["key"] for row in world.home.database("SELECT key FROM variable WHERE key LIKE 'onebox_watermark%'")
    }
    assert variables == {key.format("with_alias"), key.format("with_asset")}


def test_runs_at_once(world: World) -> None:
    """Airflow starts one instance of an incremental task at a time; of mapped ones, the second waits for the first."""
    new = world.state.add(3, site="171")
    runs = [(dag, world.home.trigger(dag)) for dag in ("incremental", "incremental", "mapped", "mapped")]
    plain, mapped = [], {"172": [], "173": []}
    for dag_id, run_id in runs:
        assert world.finish(dag_id, run_id).state == "success"
        if dag_id == "incremental":
            plain += world.file(run_id, "with_asset")
            continue
        for index, site in enumerate(mapped):
            mapped[site] += world.file(run_id, f"sites_{index}")
    assert sorted(plain) == sorted(new)
    for site, found in mapped.items():
        assert sorted(found) == sorted(world.state.ids("prospectrz", site))


def test_outlet_event(world: World, tmp_path: Path) -> None:
    """A DAG that the asset schedules finds the file in the event; an empty run is skipped and makes no event."""
    events = "SELECT e.id FROM asset_event AS e JOIN asset AS a ON a.id = e.asset_id WHERE a.uri = 'onebox_tickets'"
    events = events if AIRFLOW_3 else events.replace("asset", "dataset")
    listed = world.finish("example_onebox_list", world.home.trigger("example_onebox_list", {"folder": str(tmp_path)}))
    count = listed.xcoms["list_tickets", -1, "return_value"]["count"]
    assert count == len(world.state.ids())
    query = "SELECT run_id FROM dag_run WHERE dag_id = 'example_onebox_list_done'"
    (row,) = world.home.until(lambda: world.home.database(query), "the asset has scheduled a run")
    run = world.finish("example_onebox_list_done", row["run_id"])
    assert run.xcoms["count_tickets", -1, "return_value"] == count
    before = len(world.home.database(events))
    empty = world.finish("example_onebox_list", world.home.trigger("example_onebox_list", {"folder": str(tmp_path)}))
    assert empty.tasks == {("list_tickets", -1): "skipped"}
    assert len(world.home.database(events)) == before == 1


def test_killed_while_writing(world: World) -> None:
    """A task that is killed in the middle leaves no file; its next try and its next run lose and double none."""
    world.state.fail("hang", path="GET /api/contactrz", after=4, times=99)
    run_id = world.home.trigger("killed")

    def writers() -> list[tuple[psutil.Process, str]]:
        found = []
        for process in world.home.alive("scheduler"):
            with suppress(psutil.Error):
                files = [file.path for file in process.open_files() if file.path.startswith(str(world.folder))]
                found += [(process, file) for file in files if Path(file).name.startswith(".list_")]
        return found

    ((task, _),) = world.home.until(writers, "a task writes")
    assert not list(world.folder.glob("list_*"))
    task.kill()
    world.state.calm()
    old = world.state.ids("contactrz", "172")
    # Airflow 3.0 does not try a killed task again: the next run has to catch up then.
    lost = AIRFLOW_VERSION == (3, 0)
    assert world.finish("killed", run_id).state == ("failed" if lost else "success")
    new = world.state.add(7, "contactrz", "172")
    after = world.finish("killed", world.home.trigger("killed"))
    assert world.tries("killed", run_id) == [1 if lost else 2]
    assert lost or world.file(run_id, "list") == old
    assert world.file(after, "list") == (old + new if lost else new)


def test_failing_task_opens_a_ticket(world: World) -> None:
    """The notifier opens one ticket, with the link to the log."""
    run = world.finish("example_onebox_notifier")
    assert run.state == "failed"
    check_ticket(world, world.ticket(run.run_id), "example_onebox_notifier", run.run_id, "load")


def test_failing_dag_names_its_tasks(world: World) -> None:
    """As callback of a DAG the notifier opens one ticket that names every failed task."""
    run = world.finish("failing")
    assert run.state == "failed"
    ticket = world.ticket(run.run_id)
    assert ticket["subject"] == "Airflow: failing failed"
    named = {(2, 11): "check[0], check[2], single", (3, 0): "see the run"}.get(
        AIRFLOW_VERSION, "check_0, check_2, single"
    )
    assert ticket["content"] == f"DAG: failing\nRun: {run.run_id}\nFailed tasks: {named}\n"


def test_one_ticket_per_run(world: World) -> None:
    """Two failed tasks of a run open one ticket, and so does the run when it is cleared and fails again."""
    run_id = world.begun["failing_twice"]
    assert world.finish("failing_twice").state == "failed"
    body = {"dag_run_id": run_id, "dry_run": False, "only_failed": False, "reset_dag_runs": True}
    world.home.api("POST", "/dags/failing_twice/clearTaskInstances", body)
    assert world.finish("failing_twice").state == "failed"
    ticket = world.ticket(run_id)
    check_ticket(world, ticket, "failing_twice", run_id, "first")
    line = f"Opened no Onebox ticket: {run_id} has ticket {ticket['ticketId']}."
    # Airflow 2 stores the state before it calls back. There, the scheduler and the first task can both schedule the
    # second one, which counts as two tries.
    query = f"SELECT task_id, try_number FROM {TASKS} WHERE run_id = :run"  # noqa: S608
    for task_id, number in [(row["task_id"], row["try_number"]) for row in world.home.database(query, run=run_id)]:
        log = partial(world.home.task_log, "failing_twice", run_id, task_id, number)
        world.home.until(lambda log=log: line in log(), f"{task_id} has logged that there is a ticket")
    assert line not in world.home.task_log("failing_twice", run_id, "first", 1)
    assert world.ticket(run_id) == ticket


def test_rejected_password(world: World) -> None:
    """The log ends with the message and few frames, none of a library; nothing warns of a Site ID that is a number."""
    run = world.finish("rejected")
    assert run.tasks == {("number", -1): "failed", ("text", -1): "failed"}
    logs = {name: world.home.task_log("rejected", run.run_id, name) for name in ("number", "text")}
    for name, log in logs.items():
        message = f"Connection 'onebox_{name}', site 169: POST authenticate: Onebox rejected the login"
        if AIRFLOW_3:
            lines = [json.loads(line) for line in log.splitlines()]
            # The page shows no line of a group before it is opened.
            (failed,) = (line for line in lines if line["level"] == "error")
            after = {line["event"] for line in lines[lines.index(failed) + 1 :]}
            assert after <= {"::group::Post Execute", "::endgroup::"}
            (error,) = failed["error_detail"]
            assert (error["exc_type"], error["exc_value"].startswith(message)) == ("OneboxAuthError", True)
            frames = [frame["filename"] for frame in error["frames"]]
        else:
            # Airflow's own lines follow, and in a group that is closed the same once more.
            traceback = log.split("Task failed with exception\n")[1].split("\n[")[0]
            assert traceback.splitlines()[-1].startswith(
                f"airflow_provider_onebox.exceptions.OneboxAuthError: {message}"
            )
            frames = re.findall('File "(.+)", line', traceback)
        assert 0 < len([file for file in frames if "airflow_provider_onebox" in file]) < 10
        assert [file for file in frames if re.search("/(requests|urllib3|http)/", file)] == []
    # From 3.1 on Airflow warns of text by itself, once in a process and those forked from it.
    warning = "Skipping masking for a secret as it's too short"
    assert [name for name, log in logs.items() if warning in log] in ([], ["text"])


def test_reschedule(world: World) -> None:
    """Between polls the task is gone; new tickets end the wait, time does too, without another try."""
    run_id = world.begun["rescheduled"]
    world.home.until_state("rescheduled", run_id, "failed", "late")
    world.home.until_state("rescheduled", run_id, "up_for_reschedule", "found")
    (new,) = world.state.add(1, site="174")
    run = world.finish("rescheduled")
    assert run.tasks == {("found", -1): "success", ("late", -1): "failed"}
    assert run.xcoms["found", -1, "return_value"] == {"count": 1, "last_id": new}
    assert world.tries("rescheduled", run_id) == [1, 1]
    assert "AirflowSensorTimeout" in world.home.task_log("rescheduled", run_id, "late")


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 3), reason="Airflow before 3.3 has no retry policies")
def test_quota(world: World) -> None:
    """The retry policy waits for the service hours, which uses up no retry from Airflow 3.4 on, but not for ever."""
    for resource, times in (("prospectrz", 1), ("contactrz", 2)):
        world.state.fail("envelope", path=f"GET /api/{resource}", times=times, status=401, message=QUOTA)
    run_id = world.home.trigger("quota")
    run = world.finish("quota", run_id)
    world.state.calm()
    assert run.tasks == {("patient", -1): "success", ("bounded", -1): "failed"}
    reschedules = AIRFLOW_VERSION >= (3, 4)
    assert sorted(world.tries("quota", run_id)) == ([1, 1] if reschedules else [1, 2])
    logs = [world.home.task_log("quota", run_id, task_id) for task_id in ("patient", "bounded")]
    assert ["Retry policy rescheduled the task" in log for log in logs] == [reschedules] * 2
    assert ["Reschedule limit reached" in log for log in logs] == [False, reschedules]


def test_triggerer_restart(world: World) -> None:
    """A wait and a watcher go on after the triggerer was killed; a time that ran out meanwhile is a failure."""
    home, late, backstop = world.home, world.begun["late"], world.begun["backstop"]
    # Airflow itself ends this one, and would try it again if the scheduler had not heard yet that the task waits. A
    # busy machine may need longer for that than any time limit of a test.
    home.until_state("backstop", backstop, "deferred")
    home.database("UPDATE task_instance SET trigger_timeout = datetime('now') WHERE dag_id = 'backstop' RETURNING 1")
    assert world.finish("backstop").state == "failed"
    home.until(lambda: time.time() > world.deferred + 20, "the time is out")
    assert home.task_states("late", late) == {("trigger", -1): "deferred"}
    world.state.add(6)
    # The notifiers have opened some, too.
    new = world.state.ids()[250:]

    # The DAG that is searched for secrets waits, too.
    home.until_state("leaks", world.begun["leaks"], "deferred", "wait")
    world.triggers = home.database("SELECT * FROM trigger")
    home.start("triggerer")
    run = world.finish("example_onebox_sensor")
    assert run.state == "success"
    assert run.xcoms["wait_for_tickets", -1, "return_value"] == {"count": len(new), "last_id": new[-1]}
    assert run.xcoms["list_tickets", -1, "return_value"]["count"] == len(new)
    assert world.finish("late").state == "failed"
    for dag_id, failed, task_id in (("late", late, "trigger"), ("backstop", backstop, "wait")):
        assert world.tries(dag_id, failed) == [1], home.task_log(dag_id, failed, task_id)
        assert "AirflowSensorTimeout" in home.task_log(dag_id, failed, task_id)
    if HAS_STORE:
        home.until(lambda: set(new) <= set(world.watched()), "the new tickets are listed")


def test_refused_in_the_trigger(world: World) -> None:
    """A password that is refused while the task is deferred fails it at once, and its row holds no secret."""
    run_id = world.home.trigger("refused", world.last())
    world.home.until_state("refused", run_id, "deferred")
    query = f"SELECT kwargs FROM {TASKS} JOIN trigger ON trigger_id = trigger.id WHERE dag_id = 'refused'"  # noqa: S608
    (row,) = world.home.database(query)
    kwargs = row["kwargs"]
    if not kwargs.startswith("{"):
        kwargs = Fernet(world.home.config["core", "fernet_key"]).decrypt(kwargs.encode()).decode()
    assert "onebox_other" in kwargs
    assert not [secret for secret in ["sesame", world.password, OTHER, *world.state.tokens] if secret in kwargs]
    tries = world.tries("refused", run_id)
    world.state.accounts[OTHER] = "changed"
    world.state.revoke()
    assert world.finish("refused", run_id).state == "failed"
    assert world.tries("refused", run_id) == tries
    log = world.home.task_log("refused", run_id, "wait", *tries)
    assert "OneboxAuthError" in log
    assert "sesame" not in log


@pytest.mark.skipif(not AIRFLOW_3, reason="Airflow 2.11 has no asset watchers")
def test_watcher(world: World) -> None:
    """New tickets start a run that lists them."""
    new = world.state.add(3)
    world.home.until(lambda: set(new) <= set(world.watched()), "the new tickets are listed")
    if HAS_STORE:
        watched = world.watched()
        assert len(watched) == len(set(watched))


def forms(secret: str) -> set[str]:
    """List the forms in which a secret could travel: as it is, url-encoded, as JSON text, base64 at any offset."""
    raw = secret.encode()
    # A secret within a longer text is cut differently; what does not depend on its neighbours is compared.
    inner = {base64.b64encode(b"\0" * pad + raw)[pad and 4 : -4].decode() for pad in range(3)}
    return {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1], *inner}


def test_no_secret_leaves(world: World, secretive: Sandbox) -> None:
    """Logs, rendered fields, trigger rows, events and import errors hold no secret; one XCom does, in plain mode."""
    home, onebox, run_id = world.home, secretive.state, world.begun["leaks"]
    onebox.add(1, "prospectrz")
    home.wait("leaks", run_id)
    home.kill(*home.processes)
    assert home.alive() == []
    files = [path for path in (world.folder.parent / "secretive").rglob("*") if path.is_file()]
    states = {task: state for (task, _), state in home.task_states("leaks", run_id).items()}
    assert {task for task, state in states.items() if state == "failed"} == FAILING, states
    assert {state for task, state in states.items() if task not in FAILING} == {"success"}, states
    assert home.import_errors() == {}
    xcoms = home.xcoms("leaks", run_id)
    token = xcoms["plain", -1, "return_value"]
    assert token in onebox.tokens
    assert xcoms["encrypted", -1, "return_value"].startswith(PREFIX)
    assert len(onebox.tokens) > 8
    # Another host rejects an attachment's request that carries a token.
    assert xcoms["conversations", -1, "return_value"]["attachments_failed"] == 0
    assert len(files) == xcoms["conversations", -1, "return_value"]["attachments"] + 2

    texts = {str(path): path.read_text(errors="replace") for path in home.log_files()}
    assert len(texts) > len(states)
    logged = "".join(texts.values())
    assert "user code logs ***" in logged
    assert "printed request" in logged
    assert "Bearer ***" in logged
    for error in ("OneboxAuthError", "OneboxUnavailableError", "OneboxUncertainWriteError"):
        assert re.search(rf"locals.*{error}:", logged, re.DOTALL)
    assert "/api/ticketrz?limit=2 HTTP/1.1" in logged
    # The supervisor of Airflow 3 copies task logs to the scheduler's console and does not mask that copy; what
    # user code itself says there is out of a provider's reach.
    texts = {
        place: "\n".join(line for line in text.splitlines() if "user code" not in line and not CHATTER.search(line))
        if "processes" in place
        else text
        for place, text in texts.items()
    }
    assert world.triggers
    texts["trigger rows"] = str(world.triggers)
    texts |= {str(path): path.read_text() for path in files}
    # From Airflow 3.4 on, an XCom names its task by the id of the try.
    tries = home.database("SELECT * FROM task_instance WHERE task_id = 'plain'")
    owners = {"plain", *(row["id"] for row in tries if "id" in row)}
    with closing(sqlite3.connect(home.home / "airflow.db")) as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            rows = database.execute(f'SELECT * FROM "{table}"').fetchall()  # noqa: S608 - names from the database
            if table in ("xcom", "xcom_v2"):
                rows = [row for row in rows if not ("return_value" in row and owners & set(map(str, row)))]
            texts[f"table {table}"] = "\n".join(
                " ".join(cell.decode(errors="replace") if isinstance(cell, bytes) else str(cell) for cell in row)
                for row in rows
            )
    secrets = {"password": PASSWORD, "wrong password": WRONG}
    secrets |= {f"token {n}": token for n, token in enumerate(onebox.tokens)}
    leaks = [
        f"{name} in {place}: ...{text[max(0, text.index(form) - 80) : text.index(form)]}"
        for name, secret in secrets.items()
        for form in forms(secret)
        for place, text in texts.items()
        if form in text
    ]
    assert leaks == []
