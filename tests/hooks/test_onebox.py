"""The hook: a connection in, calls out, one token per task run."""

from __future__ import annotations

import copy
import html
import json
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_onebox.exceptions import OneboxAuthError, OneboxConfigError
from airflow_provider_onebox.hooks import onebox
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.provider_info import CONN_FIELDS


@contextmanager
def task_run(**changes):
    """Pretend to be inside a task run, as Airflow tells it to the code of a task."""
    try:
        from airflow.sdk.execution_time.context import set_current_context
    except ImportError:
        from airflow.models.taskinstance import set_current_context
    facts = {"dag_id": "d", "task_id": "t", "run_id": "r", "map_index": -1, "try_number": 1}
    with set_current_context({"ti": SimpleNamespace(**{**facts, **changes})}):
        yield


@pytest.fixture(autouse=True)
def _no_earlier_task_run(monkeypatch):
    """Keep the pretended task runs of other tests out."""
    monkeypatch.setattr(onebox, "_runs", {})


@pytest.fixture
def masked(monkeypatch):
    """Collect what Airflow is told to mask."""
    told = []
    monkeypatch.setattr(onebox, "_mask", told.append)
    return told


def test_nothing_happens_at_the_start():
    """Making a hook looks nothing up, and a hook that is not used can be copied into a task."""
    hook = OneboxHook("no_such_connection", site_id="{{ x }}", token="not a token")
    assert copy.deepcopy(hook).onebox_conn_id == "no_such_connection"
    assert "not a token" not in repr(hook)
    assert isinstance(hook, BaseHook)


def test_class_attributes():
    """Airflow finds the hook by these."""
    assert OneboxHook.conn_name_attr == "onebox_conn_id"
    assert OneboxHook.default_conn_name == "onebox_default"
    assert OneboxHook.conn_type == "onebox"
    assert OneboxHook.hook_name == "Onebox"
    assert OneboxHook().onebox_conn_id == "onebox_default"


def test_get_hook(connected):
    """A connection gives its hook, as generic code of Airflow asks for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Airflow 2 loads its page's libraries here, which warn of each other
        hook = OneboxHook.get_connection("onebox_default").get_hook()
    assert hook.get_token()


def test_one_token_per_task_run(connected):
    """All hooks of a task run share a login; another try, index, task or DAG run has its own."""
    tokens = []
    for n, run in enumerate(({}, {"try_number": 2}, {"map_index": 3}, {"task_id": "u"}, {"run_id": "s"}, {"id": "x"})):
        with task_run(**run):
            here = {OneboxHook().get_token() for _ in range(3)}
        assert len(here) == 1
        assert connected.state.logins == n + 1
        tokens += here
    assert len(set(tokens)) == 6
    with task_run():
        assert OneboxHook().get_token() not in tokens


def test_one_token_per_connection_and_site(connected, connect):
    """Another site or another connection is another login."""
    connect(connected.url, "other", login=connected.email, password=connected.password)
    with task_run():
        for hook in (OneboxHook(), OneboxHook(site_id="170"), OneboxHook("other"), OneboxHook(site_id=170)):
            assert hook.get_token()
    assert connected.state.logins_by_site == {"169": 2, "170": 1}


def test_hook_that_outlives_a_task_run(connected):
    """A hook made at module level does not carry a token from one task run to the next."""
    hook = OneboxHook()
    with task_run(task_id="a"):
        first = hook.get_token()
        assert hook.get_token() == first
    with task_run(task_id="b"):
        assert hook.get_token() != first
    assert hook.get_token() != first
    assert connected.state.logins == 3


def test_one_login_for_many_threads_and_hooks(connected):
    """32 threads that each make a hook in one task run sign in once."""
    gate = threading.Barrier(32)

    def ask(_):
        gate.wait()
        return OneboxHook().get_token()

    with task_run(), ThreadPoolExecutor(32) as pool:
        assert len(set(pool.map(ask, range(32)))) == 1
    assert connected.state.logins == 1


def test_outside_a_task_run_the_hook_is_the_cache(connected):
    """Two hooks outside of a task sign in twice, one hook once."""
    hook = OneboxHook()
    assert hook.get_token() == hook.get_token()
    assert OneboxHook().get_token() != hook.get_token()
    assert connected.state.logins == 2


def test_token_from_upstream_is_used_while_it_lives(connected):
    """A handed-in token saves the login; when it is refused the hook signs in by itself."""
    token = OneboxHook().get_token()
    with task_run():
        hook = OneboxHook(token=token)
        assert hook.get_token() == token
        assert hook.request("GET", "ticketrz")["count"]
        assert connected.state.logins == 1
        connected.state.revoke()
        assert hook.request("GET", "ticketrz")["count"]
        assert OneboxHook(token=token).request("GET", "ticketrz")["count"]
        assert OneboxHook().get_token() == hook.get_token() != token
    assert connected.state.logins == 2


def test_expired_token_from_upstream_is_not_used(connected, make_token):
    """A token that has ended by the clock is not even tried."""
    assert OneboxHook(token=make_token(age=3600)).request("GET", "ticketrz")["count"]
    assert connected.state.requests["GET list"] == 1


def test_token_from_upstream_brings_its_site(connected):
    """Afterwards the hook signs in to the token's own site, not to the connection's."""
    token = OneboxHook(site_id=170).get_token()
    connected.state.revoke()
    hook = OneboxHook(token=token)
    assert hook.request("GET", "ticketrz")["data"][0]["SiteId"] == "170"
    assert OneboxHook(token=token, site_id=" 170 ").client.settings.site_id == "170"
    with pytest.raises(OneboxConfigError, match="token is for site 170, but site_id is '169'"):
        OneboxHook(token=token, site_id="169").get_token()


@pytest.mark.parametrize(
    ("token", "words"), [("", "is empty"), ("None", "is empty"), ("Bearer ey", "as it is"), ("a\nb", "as it is")]
)
def test_bad_token_from_upstream(connected, token, words):
    """A template that found nothing, or something else than a token, is told and not repeated."""
    with pytest.raises(OneboxConfigError, match=words) as caught:
        OneboxHook(token=token).get_token()
    assert len(token) < 5 or token not in str(caught.value)
    assert not connected.state.requests


def test_secrets_are_masked_as_they_arrive(connected, connect, masked, make_token):
    """Password, proxy password, and every token, a handed-in one too."""
    handed_in = make_token()
    proxies = {"https": "http://me:proxypass@127.0.0.1:1"}
    connect(connected.url, login=connected.email, password=connected.password, proxies=proxies)
    token = OneboxHook().get_token()
    assert masked == [connected.password, "proxypass", token]
    OneboxHook(token=handed_in).client.tokens.get()
    assert handed_in in masked


def test_mask_reaches_airflow():
    """What is masked here does not reach a log of Airflow."""
    onebox._mask("")
    onebox._mask("correct-horse-battery")
    try:
        from airflow.sdk._shared.secrets_masker import redact
    except ImportError:
        from airflow.providers.common.compat.sdk import redact
    assert "correct-horse-battery" not in str(redact("a correct-horse-battery staple"))


def test_mask_of_airflow_2(on_another_airflow):
    """Airflow 2 keeps its masker elsewhere, and would mask what is too short to be a secret."""
    told = []
    masker = {"airflow.utils.log.secrets_masker": {"mask_secret": told.append}}
    older = on_another_airflow(onebox, without=["airflow.sdk.log"], instead=masker)
    older._mask("correct-horse-battery")
    older._mask("abcd")
    assert told == ["correct-horse-battery"]


def test_get_conn(connected):
    """The session signs in by itself, renews a dead token, and keeps to its host."""
    hook = OneboxHook()
    session = hook.get_conn()
    url = hook.url_for("ticketrz")
    assert session.get(url, params={"limit": 1}).json()["count"] == 1
    connected.state.revoke()
    response = session.get(url, params={"limit": 1})
    assert response.json()["count"] == 1
    assert [old.status_code for old in response.history] == [401]
    connected.state.revoke()
    assert session.post(hook.url_for("message"), data=iter([b"{}"])).status_code == 401
    for _ in ("renewing the token", "with a token that lives"):
        with session.get(url, stream=True) as stream:
            assert stream.status_code == 200
            assert stream.raw.read(1)
    with pytest.raises(OneboxConfigError, match="alone"):
        session.get("http://127.0.0.1:1/")


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
    """The Test button tells where, as whom, for which site and for how long; or what to change."""
    ok, message = OneboxHook().test_connection()
    assert ok
    assert message == f"Signed in to {connected.url} as {connected.email} for site 169; tokens live 15 minutes."
    with task_run():
        token = OneboxHook().get_token()
        assert OneboxHook().test_connection()[0]
        assert OneboxHook().get_token() == token
    assert connected.state.logins == 3
    connected.state.configure(opaque_tokens=True)
    assert "do not tell" in OneboxHook().test_connection()[1]
    connect(connected.url, login=connected.email, password="wrong password")
    ok, message = OneboxHook().test_connection()
    assert not ok
    assert "Check Email, Password and Site ID" in message
    connect(connected.url, login="")
    ok, message = OneboxHook().test_connection()
    assert not ok
    assert message.startswith("This connection can't work: the connection's login is empty: enter the e-mail")


def test_wrong_password_is_tried_once(connected, connect):
    """One task run asks once with a refused password, however many hooks and calls there are."""
    connect(connected.url, login=connected.email, password="wrong password")
    with task_run():
        for _ in range(3):
            with pytest.raises(OneboxAuthError):
                OneboxHook().get_token()
    assert connected.state.failed_logins == 1


def test_json_connection_with_an_integer_site(connected, monkeypatch):
    """JSON may hold the site as a number."""
    fields = {"conn_type": "onebox", "host": connected.url, "login": connected.email, "password": connected.password}
    monkeypatch.setenv("AIRFLOW_CONN_ONEBOX_DEFAULT", json.dumps({**fields, "extra": {"site_id": 169}}))
    assert OneboxHook().get_token()


class Unbound:
    """Stands in for a form field where Airflow has no form library: it remembers what it was made of."""

    def __init__(self, *args, **kwargs):
        self.field_class, self.args, self.kwargs = type(self), args, kwargs


@pytest.fixture
def _form_library(monkeypatch):
    """Provide what the form of older Airflow is made of: the real thing on Airflow 2, stand-ins elsewhere."""
    if find_spec("wtforms") and find_spec("flask_appbuilder"):
        return
    stand_in_for_form_library(monkeypatch)


def stand_in_for_form_library(monkeypatch):
    """Put stand-ins in the place of what the form of older Airflow is made of."""
    fields = {name: type(name, (Unbound,), {}) for name in ("BooleanField", "IntegerField", "StringField")}
    modules = {
        "wtforms": fields,
        "wtforms.validators": {"Optional": type("Optional", (), {})},
        "flask_appbuilder": {},
        "flask_appbuilder.fieldwidgets": {
            "BS3TextFieldWidget": type("BS3TextFieldWidget", (), {"__call__": lambda _, field, **shown: shown})
        },
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("_form_library")
def test_form_of_older_airflow():
    """The widgets of Airflow 2.11 to 3.1 are made of the same declaration as the form of later ones."""
    behaviour = OneboxHook.get_ui_field_behaviour()
    assert behaviour["hidden_fields"] == ["schema", "port"]
    assert behaviour["relabeling"]["login"] == "Email"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries of Airflow 2's page warn of each other
        widgets = OneboxHook.get_connection_form_widgets()
    assert {name: (w.args[0], w.kwargs["description"]) for name, w in widgets.items()} == {
        name: (declared["label"], declared["description"]) for name, declared in CONN_FIELDS.items()
    }
    assert {name: w.field_class.__name__ for name, w in widgets.items()} == {
        "site_id": "IntegerField",
        "timeout": "StringField",
        "max_retries": "IntegerField",
        "verify": "StringField",
        "proxies": "StringField",
        "allow_http": "BooleanField",
    }
    # One form serves all connection types on Airflow 2: what one requires, all would.
    assert all(type(validator).__name__ == "Optional" for w in widgets.values() for validator in w.kwargs["validators"])


def test_stored_values_in_the_form_of_airflow_2():
    """What a connection made from JSON holds is shown as JSON, and the text "false" as off."""
    pytest.importorskip("flask_appbuilder", reason="part of Airflow 2 alone")
    from wtforms import Form

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        form = type("ConnectionForm", (Form,), OneboxHook.get_connection_form_widgets())()
    assert 'value=""' in form.proxies()
    form.proxies.data = {"https": "http://proxy.example:3128"}
    assert html.unescape(form.proxies()).count('value="{"https": "http://proxy.example:3128"}"') == 1
    for stored, shown in ((True, "true"), ("/etc/ca.pem", "/etc/ca.pem")):
        form.verify.data = stored
        assert f'value="{shown}"' in form.verify()
    form.site_id.data = "169"
    assert 'value="169"' in form.site_id()
    for stored, on in ((True, True), ("true", True), ("false", False), (False, False), (None, False)):
        form.allow_http.data = stored
        assert ("checked" in form.allow_http()) is on


def test_stored_values_wherever_the_form_is_made(monkeypatch):
    """The same with stand-ins, for where Airflow has no form library."""
    stand_in_for_form_library(monkeypatch)
    widgets = OneboxHook.get_connection_form_widgets()
    show = widgets["proxies"].kwargs["widget"]
    assert show(SimpleNamespace(data={"https": "x"}), id="proxies") == {"id": "proxies", "value": '{"https": "x"}'}
    assert show(SimpleNamespace(data=None)) == show(SimpleNamespace(data="text")) == {}
    switch = type("Switch", (), {"widget": staticmethod(lambda field: field.data), "data": None})()
    for stored, on in ((True, True), ("true", True), ("false", False), (None, False)):
        switch.data = stored
        assert widgets["allow_http"].kwargs["widget"](switch) is on
