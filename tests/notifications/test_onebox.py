"""The notifier: a failed task opens a ticket."""

from __future__ import annotations

import asyncio
import json
import threading
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG, BaseNotifier
from support.airflow_home import AIRFLOW_VERSION
from support.polling import Log, deaf_server
from support.watermarks import Deployment

from airflow_provider_onebox._airflow import compat
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.notifications import onebox
from airflow_provider_onebox.notifications.onebox import NOTIFY_SECONDS, OneboxTicketNotifier

WHO = {"full_name": "Airflow", "contact": "ops@example.com", "category": "Pipelines"}
ALERT = {
    "dag_run": {"dag_id": "d", "dag_run_id": "r"},
    "deadline": {"id": "7", "deadline_time": "2026-11-24T08:30:00Z"},
}
"""What Airflow says about a missed deadline."""


def notifier(**options):
    """Make a notifier."""
    return OneboxTicketNotifier(**{**WHO, **options})


@pytest.fixture
def logged(monkeypatch):
    """Collect what the notifier logs: level and line."""
    return Log.of(monkeypatch, OneboxTicketNotifier)


def context(**changes):
    """Make the context of a failed task, where templates need it."""
    details = {"dag_id": "d", "task_id": "t", "map_index": 3, "run_id": "r", "try_number": 2}
    ti = SimpleNamespace(**{**details, "log_url": "http://airflow.example/log?x=1&y=2", **changes})
    error = RuntimeError("somebody's secret")
    return {"dag": DAG(ti.dag_id, schedule=None), "ti": ti, "run_id": ti.run_id, "exception": error}


def test_ticket(connected, logged):
    """The ticket names the run and its log, and not the error's text; the task's log names the ticket."""
    notifier()(context())
    (ticket,) = connected.state.tickets
    assert ticket["subject"] == "Airflow: d.t failed"
    assert (ticket["fullName"], ticket["contact"], ticket["category"]) == tuple(WHO.values())
    assert ticket["content"] == (
        "DAG: d\nTask: t\nMap index: 3\nRun: r\nTry: 2\nLog: http://airflow.example/log?x=1&y=2\n"
    )
    assert logged == [("info", f"Opened Onebox ticket {ticket['ticketId']}.")]
    for map_index in (0, -1):
        notifier()(context(map_index=map_index))
    assert ["Map index: " in ticket["content"] for ticket in connected.state.tickets] == [True, True, False]


def test_templates(connected):
    """Every field can be a template, and what a native one renders as a number is sent as text."""
    values = {**context(), "dag": DAG("d", schedule=None, render_template_as_native_obj=True)}
    notifier(subject="{{ 7 }}", content="{{ ti.run_id }}: {{ exception }}", site_id="{{ 170 }}")(values)
    (ticket,) = connected.state.tickets
    assert (ticket["subject"], ticket["content"], ticket["siteId"]) == ("7", "r: somebody's secret", "170")


def test_two_failures_in_one_process(connected):
    """The second failed task is described by a text for it, not by that of the first."""
    notify = notifier(subject="{{ ti.task_id }}")
    for task_id in ("one", "two"):
        notify(context(task_id=task_id))
    assert [ticket["subject"] for ticket in connected.state.tickets] == ["one", "two"]
    assert ["Task: one" in ticket["content"] for ticket in connected.state.tickets] == [True, False]


def test_onebox_that_never_responds(connect, logged, monkeypatch):
    """It ends long before Airflow ends the task's process, whatever the connection allows, and says so."""
    assert NOTIFY_SECONDS == 5
    monkeypatch.setattr(onebox, "NOTIFY_SECONDS", 0.2)
    with deaf_server() as server:
        connect(server.url, timeout=3600, max_retries=9)
        notifier()(context())
    ((level, line),) = logged
    assert level == "error"
    assert "\n" not in line


def test_failure_is_tried_once(connected, logged):
    """A ticket is not retried, as the task's process has no time for it; one line of the log says why there is none."""
    connected.state.fail("status", path="ticket/create", status=503, times=9)
    notifier()(context())
    assert connected.state.requests == {"POST authenticate": 1, "POST create": 1}
    ((level, line),) = logged
    assert level == "error"
    assert line.startswith("No Onebox ticket was opened: Connection 'onebox_default', site 169: POST ticket/create: ")


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 1), reason="Airflow has deadline alerts from 3.1 on")
def test_missed_deadline(connected, monkeypatch):
    """For a deadline alert the notifier is awaited with what Airflow says about it, and blocks no event loop."""
    threads, create = [], OneboxHook.create_ticket

    def create_ticket(*args, **fields):
        threads.append(threading.current_thread())
        return create(*args, **fields)

    monkeypatch.setattr(OneboxHook, "create_ticket", create_ticket)

    async def scenario():
        await notifier(context=ALERT)

    asyncio.run(scenario())
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()
    (ticket,) = connected.state.tickets
    assert ticket["subject"] == "Airflow: d missed its deadline"
    assert ticket["content"] == "DAG: d\nRun: r\nDeadline: 2026-11-24T08:30:00Z\n"


def dag_context(**ti):
    """Make the context of a DAG's callback, which has one of the run's tasks and a reason."""
    return {**context(**ti), "reason": "task_failure", "dag_run": SimpleNamespace(run_id="r")}


def test_dag_callback(connected, monkeypatch):
    """As callback of a DAG it names every failed task, and says that the DAG failed."""
    monkeypatch.setattr(compat, "AIRFLOW_VERSION", (3, 1))
    states = {"good": "success", "bad_one": "failed", "worse_3": "failed", "after": "upstream_failed"}
    asked = []

    def get_task_states(**question):
        asked.append(question)
        return {"r": states}

    notifier()(dag_context(get_task_states=get_task_states))
    (ticket,) = connected.state.tickets
    assert asked == [{"dag_id": "d", "run_ids": ["r"]}]
    assert ticket["subject"] == "Airflow: d failed"
    assert ticket["content"] == "DAG: d\nRun: r\nFailed tasks: bad_one, worse_3\n"


def test_dag_callback_without_the_names(connected, monkeypatch, caplog):
    """Where the failed tasks can't be listed, the ticket is opened all the same: after an error, and without a task."""

    def get_task_states(**question):
        raise RuntimeError("API_SERVER_ERROR")

    monkeypatch.setattr(compat, "AIRFLOW_VERSION", (3, 1))
    failed = dag_context(get_task_states=get_task_states)
    notifier()(failed)
    assert "The failed tasks of run r can't be listed: RuntimeError" in caplog.text
    notifier()({"dag": failed["dag"], "run_id": "r", "reason": "timed_out"})
    content = "DAG: d\nRun: r\nFailed tasks: see the run\n"
    assert [ticket["content"] for ticket in connected.state.tickets] == [content] * 2


ONCE = "onebox_tickets@d@onebox_default@"


@pytest.mark.parametrize(("once_per", "opened"), [(None, 6), ("task", 5), ("run", 3)])
def test_once_per(connected, monkeypatch, logged, caplog, once_per, opened):
    """However often a run or a task fails, it has one ticket, which later failures name; another DAG has its own."""
    airflow = Deployment(monkeypatch)
    notify = notifier(once_per=once_per)
    for changes in (
        {"task_id": "a"},
        {"task_id": "a", "map_index": 4},
        {"task_id": "b"},
        {"run_id": "later", "task_id": "a"},
        {"dag_id": "other", "task_id": "a"},
    ):
        notify(context(**changes))
    notify(dag_context(task_id="a"))
    tickets = connected.state.tickets
    assert len(tickets) == opened
    assert "The Variable" not in caplog.text
    left_out = [line for _, line in logged if line.startswith("Opened no Onebox ticket: ")]
    assert len(left_out) == 6 - opened
    first = tickets[0]["ticketId"]
    if once_per == "run":
        assert left_out == [f"Opened no Onebox ticket: r has ticket {first}."] * 3
        assert json.loads(airflow.variables[ONCE]) == {"r": first, "later": tickets[1]["ticketId"]}
    elif once_per == "task":
        assert left_out == [f"Opened no Onebox ticket: r@a has ticket {first}."]
        assert list(json.loads(airflow.variables[ONCE])) == ["r@a", "r@b", "later@a", "r"]
    else:
        assert airflow.variables == {}


def test_once_per_of_another_connection(connected, reconnect, monkeypatch):
    """A ticket at one connection or site is none at another."""
    airflow = Deployment(monkeypatch)
    reconnect("onebox_other")
    for options in ({}, {"site_id": "170"}, {"onebox_conn_id": "{{ 'onebox_other' }}"}):
        notifier(once_per="run", **options)(context())
    assert len(connected.state.tickets) == 3
    assert list(airflow.variables) == [ONCE, f"{ONCE}170", "onebox_tickets@d@onebox_other@"]


def test_once_per_with_a_failed_ticket(connected, monkeypatch, logged):
    """A ticket that could not be opened is opened at the next failure."""
    airflow = Deployment(monkeypatch)
    connected.state.fail("status", path="ticket/create", status=503, times=1)
    for _ in range(3):
        notifier(once_per="run")(context())
    assert len(connected.state.tickets) == 1
    assert [level for level, _ in logged] == ["error", "info", "info"]
    assert len(json.loads(airflow.variables[ONCE])) == 1


def test_once_per_remembers_few(connected, monkeypatch):
    """The Variable of a DAG that fails for months stays small, and keeps the latest."""
    airflow = Deployment(monkeypatch)
    airflow.variables[ONCE] = json.dumps({f"run {n}": "1" for n in range(100)})
    notifier(once_per="run")(context())
    tickets = list(json.loads(airflow.variables[ONCE]))
    assert (len(tickets), tickets[0], tickets[-1]) == (100, "run 1", "r")


def test_once_per_at_once(connected, monkeypatch):
    """What another task has noted meanwhile is kept."""
    airflow = Deployment(monkeypatch)
    steps = []

    def before(step):
        steps.append(step)
        if steps == ["read", "read"]:
            airflow.variables[ONCE] = json.dumps({"another": "7"})

    airflow.before = before
    notifier(once_per="run")(context())
    assert list(json.loads(airflow.variables[ONCE])) == ["another", "r"]


@pytest.mark.parametrize(("broken", "warned"), [("read", "read"), ("write", "set"), ("content", "read")])
def test_once_per_without_variables(connected, monkeypatch, caplog, broken, warned):
    """Where the Variable can't be used, the ticket is opened all the same, and the log says what is wrong."""
    airflow = Deployment(monkeypatch)
    airflow.variables[ONCE] = "no JSON" if broken == "content" else "{}"

    def before(step):
        if step == broken:
            raise RuntimeError("API_SERVER_ERROR")

    airflow.before = before
    notifier(once_per="run")(context())
    assert len(connected.state.tickets) == 1
    assert f"The Variable {ONCE!r}, which holds the open tickets, can't be {warned}: " in caplog.text


def test_once_per_and_a_deadline(connected, monkeypatch):
    """A missed deadline is reported even if a failed task of the run has a ticket."""
    Deployment(monkeypatch)
    for failure in (context(), ALERT):
        notifier(once_per="run").notify(failure)
    assert len(connected.state.tickets) == 2


def test_once_per_something_else():
    """Another word is refused when the DAG is parsed."""
    with pytest.raises(ValueError, match=r"^once_per='dag' is none of 'run', 'task' and None\."):
        notifier(once_per="dag")


def test_arguments_of_airflow():
    """What Airflow passes by itself goes to the base class."""
    if AIRFLOW_VERSION >= (3, 1):
        assert notifier(context={"x": 1}).context == {"x": 1}
    assert issubclass(OneboxTicketNotifier, BaseNotifier)
    assert onebox.log.name == onebox.__name__


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ oops"])
@pytest.mark.parametrize("field", ["subject", "content"])
def test_text_whose_template_fails(connected, logged, field, template):
    """The ticket is opened with its default text, the other text is as it should be, and the log says why."""
    notifier(**{"subject": "own", "content": "own", field: template})(context())
    (ticket,) = connected.state.tickets
    assert ticket["subject"] == ("Airflow: d.t failed" if field == "subject" else "own")
    assert ticket["content"].startswith("DAG: d\nTask: t\n") is (field == "content")
    (level, line), opened = logged
    assert level == "error"
    assert line.startswith(f"The Onebox ticket has its default {field}: the template of {field} failed: ")
    assert "\n" not in line
    assert opened == ("info", f"Opened Onebox ticket {ticket['ticketId']}.")


def test_other_fields_whose_template_fails(connected, logged):
    """Without a reporter, a category or a connection there is no ticket: one line says so, and nothing is sent."""
    notify = notifier(contact="{{ nope.x }}", category="{{ oops")
    for _ in range(2):
        notify(context())
    assert [level for level, _ in logged] == ["error"] * 2
    assert logged[0][1].startswith(
        "No Onebox ticket was opened: the template of contact failed: UndefinedError: 'nope' is undefined; the "
        "template of category failed: TemplateSyntaxError: "
    )
    assert not connected.state.requests


def test_dag_without_templates(connected, logged):
    """`airflow dags test` calls back with a DAG that can't render; the templates are rendered all the same."""
    values = {**context(), "dag": SimpleNamespace(dag_id="d")}
    notifier(subject="{{ ti.task_id }} {{ run_id }}")(values)
    (ticket,) = connected.state.tickets
    assert (ticket["subject"], ticket["fullName"]) == ("t r", "Airflow")
    assert [level for level, _ in logged] == ["info"]


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"state": "success"}, "d.t succeeded"),
        ({"state": "skipped"}, "d.t was skipped"),
        ({"state": "up_for_retry"}, "d.t will be retried"),
        ({"state": "running"}, "d.t failed"),
        ({"state": "running", "exception": None}, "d.t has begun"),
        ({"state": "failed"}, "d.t failed"),
        ({"state": None}, "d.t failed"),
        ({"reason": "success"}, "d succeeded"),
    ],
)
def test_what_happened(connected, changes, subject):
    """The subject says what happened; Airflow 3.0 calls a task that has failed running."""
    notifier()({**context(state=changes.get("state")), **changes})
    (ticket,) = connected.state.tickets
    assert ticket["subject"] == f"Airflow: {subject}"
    assert (ticket["content"] == "DAG: d\nRun: r\n") is ("reason" in changes)


def test_deadline_in_a_sync_callback(monkeypatch, logged):
    """Where Airflow gives no access to connections, the line says what to use instead."""

    def refuse(cls, conn_id):
        raise RuntimeError

    monkeypatch.setattr(OneboxHook, "get_connection", classmethod(refuse))
    advice = " In a SyncCallback, Airflow gives no access to connections: use an AsyncCallback."
    notifier()(ALERT)
    asyncio.run(notifier().async_notify(ALERT))
    notifier()(context())
    lines = [line for _, line in logged]
    assert all(line.startswith("No Onebox ticket was opened: Connection 'onebox_default' can't be") for line in lines)
    assert [advice in line for line in lines] == [True, False, False]
