"""A single write is made at most once, however the task try ends; a person who clears the task writes anew."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AirflowSkipException
from support.airflow_home import AIRFLOW_VERSION
from support.bulk import TICKET
from support.watermarks import Deployment

from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxError,
    OneboxUnavailableError,
    OneboxUncertainWriteError,
    OneboxUnusableResultError,
)
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.messages import OneboxSendMessageOperator
from airflow_provider_onebox.operators.onebox import OneboxCreateTicketOperator, OneboxRequestOperator
from airflow_provider_onebox.writes import journal

WRITES = {
    "ticket": (OneboxCreateTicketOperator, TICKET),
    "message": (OneboxSendMessageOperator, {"connection_id": "3", "body": "x"}),
    "request": (OneboxRequestOperator, {"endpoint": "contactrz", "method": "post", "json": {"Name": "x"}}),
}
CALLS = {"ticket": "POST ticket/create", "message": "POST message", "request": "post contactrz"}
VARIABLE = "onebox_write@d@t@r1"


class Died(BaseException):
    """Ends a try as a kill does."""


class TaskStore(dict):
    """The state store of a task, as Airflow 3.3 has it."""

    def set(self, key, value, *, retention):
        """Keep a value for good."""
        from airflow.sdk import NEVER_EXPIRE

        assert retention is NEVER_EXPIRE
        assert isinstance(value, str)
        self[key] = value

    def delete(self, key):
        """Remove a value."""
        del self[key]


@pytest.fixture
def airflow(monkeypatch):
    """Make an Airflow with Variables and, if asked, state stores."""
    deployment = Deployment(monkeypatch)
    deployment.task_store = None
    # Of Airflow 2, whose database these tests don't have.
    monkeypatch.setattr(journal, "remove_variables_of_succeeded", lambda *_: None)
    return deployment


@pytest.fixture(
    params=[
        "variable",
        pytest.param(
            "store",
            marks=pytest.mark.skipif(AIRFLOW_VERSION < (3, 3), reason="Airflow before 3.3 has no state store of tasks"),
        ),
    ]
)
def stores(request, airflow):
    """Return what the journal holds, in each of its stores."""
    if request.param == "store":
        airflow.task_store = TaskStore()
        return airflow.task_store
    return airflow.variables


@pytest.fixture
def run(connected, airflow):
    """Execute a write as a task try does."""

    def execute(kind="ticket", try_number=1, *, max_tries=2, map_index=-1, store=True, **options):
        operator, fields = WRITES[kind]
        task = operator(task_id="t", **{**fields, **options})
        context = airflow.context(try_number=try_number, max_tries=max_tries, map_index=map_index)
        if store and airflow.task_store is not None:
            context["task_state_store"] = airflow.task_store
        execute.context = context
        execute.task = task
        return task.execute(context)

    return execute


def written(sandbox):
    """Count what Onebox has written."""
    return len([entry for entry in sandbox.state.books() if entry["id"]])


def die(run, *args, **options):
    """Run a write in a process that dies when it has sent it, before it has noted the result."""
    request = OneboxHook.request

    def dying(self, *args, **options):
        request(self, *args, **options)
        raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OneboxHook, "request", dying)
        with pytest.raises(Died):
            run(*args, **options)


def fail_at(airflow, step, nth=1):
    """Let the store fail at a step."""
    steps = []

    def before(now):
        steps.append(now)
        if steps.count(step) >= nth and now == step:
            raise RuntimeError("somebody's secret")

    airflow.before = before


@pytest.mark.parametrize("kind", WRITES)
def test_result_is_returned_again(connected, run, stores, kind, caplog, capsys):
    """A try that follows one whose XCom could not be stored returns the same result and sends nothing."""
    caplog.set_level("INFO")
    result = run(kind)
    sent = len(connected.state.books())
    assert json.loads(stores[next(iter(stores))]) == {
        "call": CALLS[kind],
        "try_number": 1,
        "max_tries": 2,
        "result": "done",
        "value": result,
    }
    connected.state.requests.clear()
    assert run(kind, 2) == result
    assert not connected.state.requests
    assert len(connected.state.books()) == sent == written(connected) == 1
    line = f"{CALLS[kind]}: try 1 of this task made this write; returning its result."
    assert line in caplog.text + capsys.readouterr().out


@pytest.mark.parametrize("kind", WRITES)
def test_process_that_died(connected, run, stores, kind):
    """A try that follows one that died after it sent fails at once, sends nothing, and says what to do."""
    die(run, kind)
    (text,) = stores.values()
    assert json.loads(text) == {"call": CALLS[kind], "try_number": 1, "max_tries": 2}
    for try_number in (2, 3):
        with pytest.raises(OneboxUncertainWriteError) as caught:
            run(kind, try_number)
        assert isinstance(caught.value, AirflowFailException)
        assert str(caught.value) == (
            f"{CALLS[kind]}: try 1 of this task ended after it began to send and before it noted a result. It may have "
            "been done: look in Onebox before you clear the task, which makes the write anew."
        )
    assert len(connected.state.books()) == 1


@pytest.mark.parametrize("died", [False, True])
def test_cleared(connected, run, stores, died):
    """A person who clears the task has the write made anew; Airflow raises max_tries for that."""
    if died:
        die(run)
    else:
        run()
    second = run(try_number=2, max_tries=3)
    assert written(connected) == 2
    assert run(try_number=3, max_tries=3) == second
    assert len(stores) == 1


def test_first_try(connected, run, stores):
    """The first try finds no earlier one, because a deleted run that is created again has the same id.

    On Airflow 3.4, a retry policy can run the first try again, so for a task that has one the journal is read.
    """
    first = run()
    context = {**run.context, "task": SimpleNamespace(retry_policy=object())}
    assert OneboxCreateTicketOperator(task_id="t", **TICKET).execute(context) == first
    context["task"].retry_policy = None
    assert OneboxCreateTicketOperator(task_id="t", **TICKET).execute(context) != first
    assert written(connected) == 2


def test_write_that_was_not_made(connected, connect, run, stores):
    """After an error that leaves no doubt, nothing is in the journal, and a retry sends."""
    connect(connected.url, login=connected.email, password=connected.password, max_retries=0)
    connected.state.fail("status", path="create", status=429)
    with pytest.raises(OneboxUnavailableError):
        run()
    assert stores == {}
    assert run(try_number=2)
    assert written(connected) == 1


def test_response_that_was_lost(connected, run, stores):
    """After an uncertain error, the entry stays: should Airflow retry all the same, nothing is sent."""
    connected.state.fail("drop_after", path="create")
    for try_number in (1, 2):
        with pytest.raises(OneboxUncertainWriteError):
            run(try_number=try_number)
    assert len(connected.state.books()) == 1


def test_nothing_to_note(connected, connect, run, stores):
    """Arguments that are rejected and a login that fails need no journal."""
    with pytest.raises(OneboxConfigError, match="but empty: content"):
        run(content="")
    connect(connected.url, login=connected.email, password="wrong")
    with pytest.raises(OneboxAuthError):
        run()
    assert stores == {}
    assert not connected.state.books()


@pytest.mark.parametrize("step", ["write", "read", None])
def test_journal_that_cannot_be_written(connected, run, airflow, monkeypatch, step):
    """Where the journal can't be written, nothing is sent, and a retry can help.

    Airflow 3.0 and 3.1 only log that a Variable could not be set, so it is read back.
    """
    if step:
        fail_at(airflow, step)
    else:
        monkeypatch.setattr(journal.Variable, "set", lambda *_: None)
    with pytest.raises(OneboxError) as caught:
        run()
    assert type(caught.value) is OneboxError
    assert (caught.value.retryable, caught.value.uncertain) == (True, False)
    assert str(caught.value) == (
        f"The journal entry in the Variable {VARIABLE!r} can't be written (RuntimeError): nothing was sent. A retry "
        "can help; journal=False makes the write without a journal."
    )
    assert not connected.state.books()


def test_journal_that_cannot_be_read(connected, run, airflow):
    """Where a later try can't read the journal, or did not write what it reads, nothing is sent."""
    airflow.variables[VARIABLE] = "7"
    with pytest.raises(OneboxConfigError) as caught:
        run(try_number=2)
    assert str(caught.value) == (
        f"The journal entry in the Variable {VARIABLE!r} is '7', which this provider did not write: nothing was sent. "
        "Remove it."
    )
    fail_at(airflow, "read")
    with pytest.raises(OneboxError, match=r"can't be read \(RuntimeError\): nothing was sent") as caught:
        run(try_number=2)
    assert caught.value.retryable
    assert not connected.state.requests


def test_result_that_cannot_be_noted(connected, run, airflow, caplog):
    """The write was made, so its result is returned; a retry would fail as uncertain."""
    fail_at(airflow, "write", 2)
    assert run()
    assert "The result of this write can't be noted in the journal (RuntimeError): should this task be" in caplog.text
    with pytest.raises(OneboxUncertainWriteError):
        run(try_number=2)
    assert written(connected) == 1


def test_entry_that_cannot_be_removed(connected, connect, run, airflow, caplog):
    """The error of the write is raised, and the log says what a retry will do."""
    connect(connected.url, login=connected.email, password=connected.password, max_retries=0)
    fail_at(airflow, "delete")
    connected.state.fail("status", path="create", status=429)
    with pytest.raises(OneboxUnavailableError):
        run()
    assert (
        "The entry of a write that was not made can't be removed from the journal (RuntimeError): shou" in caplog.text
    )


def large(length):
    """Return what makes a result of that many bytes of JSON."""
    return lambda _: "x" * (length - 2)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, True),
        ({"response_filter": large(4096)}, True),
        ({"response_filter": large(4097)}, False),
        ({"response_filter": lambda _: None}, True),
        ({"response_filter": lambda _: {1, 2}}, True),
        ({"response_filter": lambda _: object(), "do_xcom_push": False}, False),
        ({"include_secrets": True}, False),
    ],
)
def test_what_is_kept(connected, run, stores, options, kept):
    """A result that is large or secret is not kept: a later try knows that the write was made, and fails."""
    run("request", **options)
    (text,) = stores.values()
    assert ("value" in json.loads(text)) is kept
    assert json.loads(text)["result"] == "done"
    if not kept:
        with pytest.raises(OneboxUnusableResultError) as caught:
            run("request", 2, **options)
        assert caught.value.uncertain
        assert str(caught.value) == (
            "post contactrz: try 1 of this task made this write, and its result was not kept, because it is secret or "
            "larger than 4,096 bytes. Nothing was sent again."
        )
    assert written(connected) == 1


def test_reads_have_none(connected, run, stores):
    """A read is in no journal, in no case."""
    row = connected.state.ids()[0]
    for method in ("GET", "get", "OPTIONS"):
        connected.state.fail("wrong_type", path="OPTIONS", value={})
        run("request", method=method, endpoint=f"ticketrz/{row}", json=None)
    assert stores == {}


def test_without(connected, run, stores):
    """Who wants no journal has none: a retry writes again."""
    for try_number in (1, 2):
        run(try_number=try_number, journal=False)
    assert stores == {}
    assert run.task.on_success_callback in (None, [], ())
    assert written(connected) == 2


def test_mapped(connected, run, airflow):
    """Each mapped instance has its own entry."""
    first, second = (run(map_index=index) for index in (0, 1))
    assert list(airflow.variables) == [f"{VARIABLE}@0", f"{VARIABLE}@1"]
    assert [run(try_number=2, map_index=index) for index in (0, 1)] == [first, second]
    assert run(map_index=None)
    assert list(airflow.variables)[2:] == [VARIABLE]


@pytest.mark.parametrize("context", [{}, {"ti": SimpleNamespace(task_id="another", try_number=2, max_tries=2)}])
def test_executed_by_hand(connected, airflow, context):
    """An operator that is executed in somebody's own task has no journal: it may be one of several there."""
    for _ in range(2):
        OneboxCreateTicketOperator(task_id="t", **TICKET).execute(context)
    assert airflow.variables == {}
    assert written(connected) == 2


def test_hook_after_the_write(connected, run, airflow):
    """What a subclass sends with the same hook afterwards does not touch the entry of its write."""
    run()
    before = dict(airflow.variables)
    run.task.hook.create_contact(name="A")
    assert airflow.variables == before
    connected.state.fail("envelope", path="create", status=422)
    with pytest.raises(OneboxError):
        run(map_index=1)
    run.task.hook.create_contact(name="A")
    assert airflow.variables == before


@pytest.mark.parametrize("name", ["on_success_callback", "on_skipped_callback"])
def test_variable_is_removed(connected, run, airflow, monkeypatch, name):
    """Once Airflow has recorded the success, the Variable is gone; the user's own callbacks are called as well."""
    monkeypatch.setattr(journal, "AIRFLOW_3", True)
    called = []
    run(**{name: called.append})
    assert list(airflow.variables) == [VARIABLE]
    for callback in getattr(run.task, name):
        callback(run.context)
    assert called == [run.context]
    assert airflow.variables == {}
    for callback in getattr(run.task, name):  # another task's entry is not looked for
        airflow.before = pytest.fail
        callback(run.context)


@pytest.mark.parametrize("is_airflow_2", [True, False])
def test_next_write_on_airflow_2(connected, run, airflow, monkeypatch, is_airflow_2):
    """On Airflow 2, the next write of a task removes the Variables of those whose success is recorded by then.

    It calls back before it records the success; a kill between the two must find the entry.
    """
    asked = []
    monkeypatch.setattr(journal, "AIRFLOW_3", not is_airflow_2)
    monkeypatch.setattr(
        journal, "remove_variables_of_succeeded", lambda ti, prefix, key_of: asked.append((prefix, key_of(ti)))
    )
    first = run(map_index=3)
    expected = [("onebox_write@d@t@", f"{VARIABLE}@3")] if is_airflow_2 else []
    assert asked == expected
    if is_airflow_2:
        run.task.on_success_callback[-1](run.context)
    assert json.loads(airflow.variables[f"{VARIABLE}@3"])["result"] == "done"
    assert run(map_index=3, try_number=2) == first
    assert asked == expected
    assert written(connected) == 1


def test_next_write_that_cannot_remove(run, airflow, monkeypatch, caplog):
    """That Variables can't be removed does not fail a write that was made."""
    monkeypatch.setattr(journal, "AIRFLOW_3", False)
    monkeypatch.setattr(journal, "remove_variables_of_succeeded", lambda *_: 1 / 0)
    assert run()
    warnings = [record.getMessage() for record in caplog.records if record.name == journal.log.name]
    assert warnings == ["Journal entries of tasks that succeeded can't be removed (ZeroDivisionError)."]


def test_success_of_a_later_try(run, stores, monkeypatch):
    """The try that returns an earlier try's result removes its Variable; a state store is left to Airflow."""
    monkeypatch.setattr(journal, "AIRFLOW_3", True)
    run(on_success_callback=[lambda _: None])
    journal._variables.clear()  # another process
    before = dict(stores)
    run(try_number=2)
    run.task.on_success_callback[-1](run.context)
    assert stores == ({} if VARIABLE in before else before)


def test_mapped_operator(airflow):
    """Each operator that is made of a mapped one has the callback."""
    with DAG("d", schedule=None):
        mapped = OneboxCreateTicketOperator.partial(
            task_id="t", **{**TICKET, "on_success_callback": print, "journal": True}
        ).expand(coordinate=["1,2"])
    task = mapped.unmap({"coordinate": "1,2"})
    assert len(task.on_success_callback) == 2
    assert task.on_success_callback[0] is print


@pytest.mark.parametrize("error", [OneboxConfigError("x"), OneboxUnavailableError("x"), AirflowSkipException("x")])
def test_error_after_the_write(connected, run, stores, error):
    """What a filter raises, also of its own call to Onebox, does not make the write one that was not made."""

    def response_filter(_):
        raise error

    is_skip = isinstance(error, AirflowSkipException)
    reason = "^x$" if is_skip else f"response_filter failed: {type(error).__name__}: x"
    with pytest.raises(AirflowSkipException if is_skip else OneboxUnusableResultError, match=reason):
        run("request", response_filter=response_filter)
    with pytest.raises(OneboxUncertainWriteError):
        run("request", 2, response_filter=response_filter)
    assert written(connected) == 1


def test_hook_that_is_a_stand_in(airflow):
    """A test of a DAG that replaces the hook needs no journal."""
    task = OneboxCreateTicketOperator(task_id="t", **TICKET)
    task.hook = SimpleNamespace(create_ticket=lambda **_: "7")
    assert task.execute(airflow.context()) == "7"
    assert airflow.variables == {}
