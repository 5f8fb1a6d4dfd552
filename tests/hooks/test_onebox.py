"""The hook: a connection in, calls out, one token per task try."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import re
import socket
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_onebox._airflow import masking
from airflow_provider_onebox.api.redaction import forms_of
from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxRequestError,
    OneboxUnavailableError,
)
from airflow_provider_onebox.hooks import onebox
from airflow_provider_onebox.hooks.onebox import OneboxHook


@contextmanager
def task_try(**changes):
    """Pretend to be inside a task try, as a task's code gets it from Airflow."""
    try:
        from airflow.sdk.execution_time.context import set_current_context
    except ImportError:
        from airflow.models.taskinstance import set_current_context
    ti = {"dag_id": "d", "task_id": "t", "run_id": "r", "map_index": -1, "try_number": 1, **changes}
    with set_current_context({"ti": SimpleNamespace(**ti)}):
        yield


@pytest.fixture(autouse=True)
def _no_earlier_task_try(monkeypatch):
    """Keep the pretended tasks of other tests out."""
    monkeypatch.setattr(onebox, "_runs", {})


@pytest.fixture
def masked(monkeypatch):
    """Collect what the hook has Airflow mask."""
    secrets = []
    monkeypatch.setattr(masking, "secret_masker", lambda local_only: secrets.append)
    monkeypatch.setattr(masking, "_masked", set())
    monkeypatch.setattr(masking, "_unmasked", set())
    monkeypatch.setattr(masking, "_masked_tokens", 0)
    return secrets


@pytest.fixture
def maskers(masked, monkeypatch):
    """Collect what is masked in this process alone, and what its supervisor knows too."""
    secrets = {True: [], False: []}
    monkeypatch.setattr(masking, "secret_masker", lambda local_only: secrets[local_only].append)
    return secrets


def test_class_attributes():
    """Airflow finds the hook by these, and its log among those of the other hooks."""
    assert OneboxHook.conn_name_attr == "onebox_conn_id"
    assert OneboxHook.default_conn_name == OneboxHook().onebox_conn_id == "onebox_default"
    assert (OneboxHook.conn_type, OneboxHook.hook_name) == ("onebox", "Onebox")
    assert OneboxHook().log.name.startswith("airflow.task.hooks.airflow_provider_onebox.")


def test_nothing_happens_at_the_start():
    """Making a hook looks nothing up, and a hook that is not used can be copied into a task."""
    hook = OneboxHook("no_such_connection", site_id="{{ x }}", token="not a token")
    assert copy.deepcopy(hook).onebox_conn_id == "no_such_connection"
    assert "not a token" not in repr(hook)
    assert isinstance(hook, BaseHook)


def test_get_hook(connected):
    """A connection gives its hook, as generic code of Airflow asks for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Airflow 2 loads its page's libraries here, which warn of each other
        assert OneboxHook.get_connection("onebox_default").get_hook().get_token()


def test_one_token_per_task_try(connected):
    """All hooks of a task try share a login; another try, index, task or DAG run has its own."""
    tokens = []
    for n, run in enumerate(({}, {"try_number": 2}, {"map_index": 3}, {"task_id": "u"}, {"run_id": "s"}, {"id": "x"})):
        with task_try(**run):
            here = {OneboxHook().get_token() for _ in range(3)}
        assert len(here) == 1
        assert connected.state.logins == n + 1
        tokens += here
    assert len(set(tokens)) == 6
    with task_try():
        assert OneboxHook().get_token() not in tokens


def test_one_token_per_connection_and_site(connected, connect):
    """Another site or another connection is another login."""
    connect(connected.url, "other", login=connected.email, password=connected.password)
    with task_try():
        for hook in (OneboxHook(), OneboxHook(site_id="170"), OneboxHook("other"), OneboxHook(site_id=170)):
            assert hook.get_token()
    assert connected.state.logins_by_site == {"169": 2, "170": 1}


def test_hook_that_outlives_a_task_try(connected):
    """A hook made at module level does not carry a token from one task try to the next."""
    hook = OneboxHook()
    with task_try(task_id="a"):
        first = hook.get_token()
        assert hook.get_token() == first
    with task_try(task_id="b"):
        assert hook.get_token() != first
    assert hook.get_token() != first
    assert connected.state.logins == 3


def test_outside_a_task_try_the_hook_is_the_cache(connected):
    """Two hooks outside of a task log in twice, one hook and its copies once."""
    hook = OneboxHook()
    unused = copy.deepcopy(hook)
    assert hook.get_token() == hook.get_token() == copy.deepcopy(hook).get_token() == unused.get_token()
    assert copy.deepcopy({"tasks": [hook]})["tasks"][0].get_token() == hook.get_token()
    assert OneboxHook().get_token() != hook.get_token()
    assert connected.state.logins == 2


def at_once(function, threads=24):
    """Call a function in many threads at the same moment; return what each got or raised."""
    gate = threading.Barrier(threads)

    def call(_):
        gate.wait()
        try:
            return function()
        except Exception as error:  # noqa: BLE001 - the outcome is what is looked at
            return error

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(call, range(threads)))


def new_hooks():
    """Give each caller a new hook."""
    return OneboxHook


def one_hook(**options):
    """Give each caller the same hook."""
    hook = OneboxHook(**options)
    return lambda: hook


def copies():
    """Give each caller a copy of a hook."""
    hook = OneboxHook()
    return lambda: copy.deepcopy(hook)


@pytest.mark.parametrize(
    ("hooks", "context"),
    [
        (new_hooks, task_try),
        (one_hook, nullcontext),
        (copies, nullcontext),
        (partial(one_hook, time_limit=30), nullcontext),
    ],
)
def test_one_login_for_many_threads(connected, connect, monkeypatch, hooks, context):
    """24 threads log in once, and are rejected once: with the hooks of a task try, and with one hook or its copies."""
    look_up = OneboxHook.look_up
    # So slow that all threads find the hook without a client.
    monkeypatch.setattr(OneboxHook, "look_up", lambda hook: time.sleep(0.05) or look_up(hook))
    with context():
        get = hooks()
        assert len(set(at_once(lambda: get().get_token()))) == 1
    assert connected.state.logins == 1
    connect(connected.url, login=connected.email, password="wrong password")
    with context(try_number=2) if context is task_try else context():
        get = hooks()
        assert {type(error) for error in at_once(lambda: get().get_token())} == {OneboxAuthError}
    assert connected.state.failed_logins == 1


def in_child(function):
    """Return the exit status of a forked process that calls a function: 0 if it returns something true."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
        pid = os.fork()
    if not pid:
        status = 1
        try:
            status = 0 if function() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_one_hook_for_forks(connected, connect):
    """Forked processes go on with the login or rejection of a hook that was used before, and don't hang in its lock."""
    hook = OneboxHook()
    token = hook.get_token()
    with onebox._lock:
        assert [in_child(lambda: hook.get_token() == token) for _ in range(3)] == [0, 0, 0]
        assert at_once(lambda: in_child(lambda: OneboxHook().get_token()), threads=1) == [0]
    assert connected.state.logins == 2
    connect(connected.url, login=connected.email, password="wrong password")
    wrong = OneboxHook()

    def is_rejected():
        with pytest.raises(OneboxAuthError):
            wrong.get_token()
        return True

    assert is_rejected()
    assert [in_child(is_rejected) for _ in range(3)] == [0, 0, 0]
    assert connected.state.failed_logins == 1


@pytest.mark.parametrize("token", ["a secret token", None])
def test_hook_is_not_pickled(token):
    """A hook could carry a token or a password to where nobody expects it."""
    with pytest.raises(TypeError, match="make one from the same onebox_conn_id"):
        pickle.dumps(OneboxHook(token=token))


def test_upstream_token_is_used_until_it_expires(connected):
    """An upstream token saves the login; when it is rejected the hook logs in by itself."""
    token = OneboxHook().get_token()
    with task_try():
        hook = OneboxHook(token=token)
        assert hook.get_token() == token
        assert hook.request("GET", "ticketrz")["count"]
        assert connected.state.logins == 1
        connected.state.revoke()
        assert hook.request("GET", "ticketrz")["count"]
        assert OneboxHook(token=token).request("GET", "ticketrz")["count"]
        assert OneboxHook().get_token() == hook.get_token() != token
    assert connected.state.logins == 2


def test_expired_upstream_token_is_not_used(connected, make_token):
    """A token that has expired by the clock is not sent."""
    assert OneboxHook(token=make_token(age=3600)).request("GET", "ticketrz")["count"]
    assert connected.state.requests["GET list"] == 1


def test_site_of_an_upstream_token(connected):
    """Once it is rejected, the hook logs in to the token's site, not to the connection's."""
    token = OneboxHook(site_id=170).get_token()
    connected.state.revoke()
    assert OneboxHook(token=token).request("GET", "ticketrz")["data"][0]["SiteId"] == "170"
    for same in (" 170 ", 170):
        assert OneboxHook(token=token, site_id=same).settings.site_id == "170"
    for other in (169, "169"):
        with pytest.raises(OneboxConfigError, match=f"token is for site 170, but site_id is {other!r}"):
            OneboxHook(token=token, site_id=other).get_token()


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "a template does not create a dependency"),
        ("None", "is empty"),
        ("Bearer ey", "unchanged"),
        ("a\nb", "unchanged"),
        (["a", "b"], "is a list"),
        (True, "is a bool"),
    ],
)
def test_bad_upstream_token(connected, token, message):
    """A template that found nothing, or something else than a token, is reported, and its value is not shown."""
    with pytest.raises(OneboxConfigError, match=message) as caught:
        OneboxHook(token=token).get_token()
    assert len(str(token)) < 5 or str(token) not in str(caught.value)
    assert not connected.state.requests


def test_what_is_masked(connected, connect, masked, make_token):
    """Password and proxy password in all forms, and the tokens that leave the hook; none that stays within it."""
    proxies = {"https": "http://me:proxy%20pass@127.0.0.1:1"}
    connect(connected.url, login=connected.email, password=connected.password, proxies=proxies)
    hook = OneboxHook()
    hook.request("GET", "ticketrz")
    forms = {form for secret in hook.settings.secrets for form in forms_of(secret) if len(form) >= 5}
    assert {connected.password, "proxy%20pass", "proxy pass"} <= forms
    assert set(masked) == forms
    token = hook.get_token()
    assert set(masked) == {*forms, token}
    upstream = make_token()
    OneboxHook(token=upstream).request("GET", "ticketrz")
    assert set(masked) == {*forms, token, upstream}
    assert len(masked) == len(set(masked))


def test_masked_strings_do_not_grow(connected, masked, monkeypatch, caplog):
    """However often a token is renewed, what Airflow masks is bounded; within the hook's own calls it is constant."""
    monkeypatch.setattr(masking, "MAX_MASKED_TOKENS", 3)
    hook = OneboxHook()
    hook.request("GET", "ticketrz")
    before = list(masked)
    tokens = []
    for number in range(6):
        connected.state.revoke()
        hook.request("GET", "ticketrz")
        assert masked == before + tokens[:3]
        tokens += dict.fromkeys([hook.get_token(), hook.get_token()])
        assert caplog.text.count("which return none") == (number >= 3)
    assert len(tokens) == 6


async def in_event_loop(function):
    """Call a function within a running event loop."""
    return function()


def in_thread(function):
    """Call a function in another thread than the task's main one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.mark.parametrize(
    ("call", "is_thread_safe", "is_late"),
    [
        (in_thread, False, True),
        (in_thread, True, False),
        # The call could block the loop for ever.
        (lambda function: asyncio.run(in_event_loop(function)), True, True),
    ],
)
def test_supervisor_masks_where_it_can_be_called(connected, maskers, monkeypatch, call, is_thread_safe, is_late):
    """A secret is masked here at once; the supervisor's call is made later where it could block or go wrong."""
    monkeypatch.setattr(masking, "SUPERVISOR_IS_THREAD_SAFE", is_thread_safe)
    token = call(OneboxHook().get_token)
    assert {token, connected.password} <= set(maskers[is_late])
    assert not maskers[not is_late]
    OneboxHook().get_conn()
    assert {token, connected.password} <= set(maskers[False])


def test_list_and_request(connected):
    """The hook passes everything on to its client."""
    hook = OneboxHook()
    ids = connected.state.ids()
    rows = hook.list_records("ticketrz", since_id=ids[4], page_size=3, max_records=5, parallelism=1)
    assert [row["Id"] for row in rows] == ids[5:10]
    assert hook.request("GET", f"ticketrz/{ids[0]}")["Id"] == ids[0]
    assert hook.request("DELETE", f"ticketrz/{ids[0]}") == {}
    assert hook.request("POST", "message", json={"Subject": "s"})
    ticket = {"fullName": "A", "contact": "a@example.com", "subject": "s", "category": "c", "content": "x"}
    assert hook.request("POST", "ticket/create", data=ticket)["ticketId"]
    assert connected.state.tickets[-1]["subject"] == "s"


def test_test_connection(connected, connect):
    """The Test button says where, as whom, for which site and for how long; or what to change."""
    message = f"Logged in to {connected.url} as {connected.email} for site 169; tokens live 15 minutes."
    with task_try():
        token = OneboxHook().get_token()
        assert OneboxHook().test_connection() == (True, message)
        assert OneboxHook().get_token() == token
    assert connected.state.logins == 2
    connected.state.configure(opaque_tokens=True)
    assert "for an unknown time" in OneboxHook().test_connection()[1]
    connect(connected.url, login="")
    ok, message = OneboxHook().test_connection()
    assert not ok
    assert message.startswith("This connection is invalid: the connection's login is empty: enter the e-mail")


def test_test_connection_takes_one_short_try(connect, monkeypatch):
    """The Test button does not wait for a Onebox that accepts and never responds, whatever the connection allows."""
    assert onebox.TEST_SECONDS == 10  # as the documentation says
    monkeypatch.setattr(onebox, "TEST_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        connect(f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout=60, max_retries=1)
        ok, message = OneboxHook().test_connection()
    assert not ok
    assert message.startswith("This connection, site 169: ")
    assert re.search(r"'timeout' is 0\.2 s.* 1 of 1\.$|within the 0\.5 s that the call may take", message)


def test_missing_connection(monkeypatch):
    """A connection that does not exist is an error of ours wherever it is met, and the Test button returns it."""
    monkeypatch.delenv("AIRFLOW_CONN_NO_SUCH", raising=False)
    hook = OneboxHook("no_such", token="an-upstream-token")
    for use in (hook.get_token, hook.get_conn, lambda: hook.url_for("x"), lambda: hook.request("GET", "ticketrz")):
        with pytest.raises(OneboxConfigError, match="Connection 'no_such' can't be found") as caught:
            use()
        assert str(caught.value).endswith("In a URI, percent-encode / # ? @ : and % in user and password. " + JSON_HINT)
    ok, message = hook.test_connection()
    assert not ok
    assert message.startswith("This connection can't be found")


JSON_HINT = (
    "In JSON and YAML, write login and password in quotes and extra as an object, put no comma after the last field, "
    "and use only the names conn_type, description, host, login, password, schema, port and extra."
)


@pytest.mark.parametrize("copied", [False, True])
def test_connection_and_site_set_after_the_first_use(connected, connect, copied):
    """A hook asks the connection and the site that it names now, also as a copy, as HookToolset makes one."""
    connect(connected.url, "other", login=connected.email, password=connected.password, site_id="170", timeout=7)
    with task_try() if copied else nullcontext():
        first = OneboxHook()
        assert first.settings.conn_id == "onebox_default"
        assert first.get_token_details().site_id == "169"
        hook = copy.copy(first) if copied else first
        hook.onebox_conn_id = "other"
        assert (hook.settings.conn_id, hook.settings.timeout) == ("other", 7)
        assert hook.get_token_details().site_id == "170"
        hook.site_id = 169
        assert hook.get_token_details().site_id == "169"
        assert hook.client is hook.client
        hook.onebox_conn_id, hook.site_id = "onebox_default", None
        assert hook.settings == first.settings
        assert hook.get_token_details().site_id == "169"
    assert connected.state.logins == 3


def test_rejected_login_says_what_is_odd_about_the_password(connected, connect):
    """After a rejected login the message describes the password if it is unusual, and shows none of it."""
    advice = "does not get locked."
    for password, problem in (
        ("S3crZq9\n", r" The stored password ends with a space or line break"),
        ("***", r" The stored password consists of asterisks, as exports and the form show it\.$"),
        ("S3crZq9", "$"),
    ):
        connect(connected.url, login=connected.email, password=password)
        with pytest.raises(OneboxAuthError, match=advice + problem) as caught:
            OneboxHook().get_token()
        assert "S3crZq9" not in str(caught.value)
        ok, message = OneboxHook().test_connection()
        assert (ok, message) == (False, str(caught.value).replace("Connection 'onebox_default'", "This connection"))


def test_secrets_of_the_environment_are_masked(connected, masked, monkeypatch):
    """What Airflow masks includes the passwords of the environment's proxies."""
    monkeypatch.setenv("HTTPS_PROXY", "http://me:S3cr%2FZq9@proxy.example:3128")
    OneboxHook().get_conn()
    assert {"S3cr%2FZq9", "S3cr/Zq9", "bWU6UzNjci9acTk="} <= set(masked)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (AirflowNotFoundException("x"), OneboxConfigError),
        (PermissionError("denied"), OneboxConfigError),
        (RuntimeError("API_SERVER_ERROR: s3cret"), OneboxUnavailableError),
        (ConnectionRefusedError("s3cret"), OneboxUnavailableError),
    ],
)
def test_failed_look_up(monkeypatch, failure, expected):
    """What Airflow raises instead of a connection becomes an error of ours, retryable if a retry can help."""

    def fail(conn_id):
        raise failure

    monkeypatch.setattr(OneboxHook, "get_connection", staticmethod(fail))
    with pytest.raises(expected, match="Connection 'onebox_default' can't be") as caught:
        OneboxHook().get_token()
    assert caught.value.retryable is (expected is OneboxUnavailableError)
    assert "s3cret" not in str(caught.value)


def test_token_of_digits(connect):
    """Native rendering makes a number of a token of digits; it is sent as the text that it was."""
    connect("https://dev.example")
    assert OneboxHook(token=123456789).get_token() == "123456789"


def test_times_reach_the_server(connected):
    """A filter by time is sent."""
    hook = OneboxHook()
    assert hook.count_records("ticketrz", since="2000-01-01 00:00")[0] == 250
    for late in ({"since": "2099-01-01 00:00"}, {"last_update": "2099-01-01 00:00"}):
        assert hook.count_records("ticketrz", **late) == (0, None)
        assert list(hook.list_records("ticketrz", **late)) == []


def test_secrets_are_left_out(connected):
    """Responses are without the customer's own secrets, unless they are asked for."""
    hook = OneboxHook()
    record = next(hook.list_records("connection", max_records=1))
    assert record["Id"]
    assert not {"Password", "Token"} & set(record)
    assert next(hook.list_batches("connection", max_records=3)).rows[0] == record
    assert hook.request("GET", "connection", params={"limit": 1})["data"] == [record]
    assert {"Password", "Token"} <= set(next(hook.list_records("connection", max_records=1, include_secrets=True)))
    page = hook.request("GET", "connection", params={"limit": 1}, include_secrets=True)
    assert {"Password", "Token"} <= set(page["data"][0])
    login = hook.request("POST", "authenticate", data=connected.credentials)
    assert login == {"response_code": "200", "response_status": "Success"}


@pytest.mark.parametrize(
    "ask",
    [lambda hook, resource: list(hook.list_records(resource)), lambda hook, resource: hook.count_records(resource)],
)
def test_unknown_resource(connected, ask):
    """The error of a misspelt resource names those that exist, and no retry can help it."""
    ones = r"documented ones are ticketrz, contactrz, prospectrz, message, connection\.$"
    with pytest.raises(OneboxRequestError, match=ones) as caught:
        ask(OneboxHook(), "tickets")
    assert (caught.value.status, caught.value.retryable) == (404, False)
    connected.state.fail("status", path="ticketrz", status=404)
    with pytest.raises(OneboxRequestError) as caught:
        ask(OneboxHook(), "ticketrz")
    assert "documented ones" not in str(caught.value)
