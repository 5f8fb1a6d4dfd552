"""The operator: a token out, and beside it what a reader needs to know of it."""

from __future__ import annotations

from datetime import datetime, timezone
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator
from support.polling import Log

from airflow_provider_onebox.exceptions import OneboxAuthError, OneboxConfigError, OneboxUnavailableError
from airflow_provider_onebox.operators.onebox import OneboxAuthenticateOperator, OneboxListOperator


class TaskInstance(SimpleNamespace):
    """What the operator uses of a task instance."""

    def __init__(self):
        super().__init__(pushed={})

    def xcom_push(self, key, value):
        """Keep what is pushed."""
        self.pushed[key] = value


@pytest.fixture
def run():
    """Render and execute an operator as a worker does; return its result and what it pushed."""

    def execute(context=None, **options):
        operator = OneboxAuthenticateOperator(task_id="authenticate", **options)
        ti = TaskInstance()
        context = {"ti": ti, **(context or {})}
        operator.render_template_fields(context)
        return operator.execute(context), ti.pushed

    return execute


def test_signature():
    """It is an operator with templated connection and site, and nothing is looked up when it is made."""
    operator = OneboxAuthenticateOperator(task_id="t", onebox_conn_id="no_such_connection", site_id="{{ x }}")
    assert isinstance(operator, BaseOperator)
    assert set(operator.template_fields) == {"onebox_conn_id", "site_id"}
    assert OneboxAuthenticateOperator(task_id="t").onebox_conn_id == "onebox_default"


def test_token_and_what_is_known_of_it(connected, run, caplog):
    """The token is returned as text; when it expires and for which site is pushed; the log shows no token."""
    caplog.set_level("DEBUG")
    token, pushed = run()
    assert connected.state.tokens[token].site == "169"
    assert type(token) is str
    assert set(pushed) == {"expires_at", "site_id"}
    assert pushed["site_id"] == "169"
    expires_at = datetime.fromisoformat(pushed["expires_at"])
    assert expires_at.utcoffset() == timezone.utc.utcoffset(None)
    assert 890 < (expires_at - datetime.now(timezone.utc)).total_seconds() <= 900
    assert connected.state.logins == 1
    assert token not in caplog.text
    assert connected.password not in caplog.text


@pytest.mark.parametrize("site", ["170", 170, "{{ params.site }}"])
def test_site(connected, run, site):
    """A site of the task wins over the connection's, as text, number or template."""
    token, pushed = run({"params": {"site": "170"}}, site_id=site)
    assert connected.state.tokens[token].site == pushed["site_id"] == "170"
    assert connected.state.logins_by_site == {"170": 1}


def test_templated_connection(connected, connect, run):
    """The connection's id may come from a template."""
    connect(connected.url, "onebox_second", login=connected.email, password=connected.password, site_id="170")
    assert run({"which": "second"}, onebox_conn_id="onebox_{{ which }}")[1]["site_id"] == "170"


def test_opaque_token(connected, run):
    """A token that does not tell its end is published all the same."""
    connected.state.configure(opaque_tokens=True)
    token, pushed = run()
    assert token in connected.state.tokens
    assert pushed == {"expires_at": None, "site_id": "169"}


@pytest.mark.parametrize("opaque", [False, True])
def test_log_line(connected, run, monkeypatch, opaque):
    """One line of the log says where, as whom and for which site the task is logged in, and until when."""
    log = Log()
    monkeypatch.setattr(OneboxAuthenticateOperator, "log", log)
    connected.state.configure(opaque_tokens=opaque)
    _, pushed = run()
    expires_at = "an unknown time" if opaque else pushed["expires_at"]
    line = f"Logged in to {connected.url} as {connected.email} for site 169; the token expires at {expires_at}."
    assert log.lines[-1:] == [("info", line)]


def test_each_run_signs_in(connected, run):
    """A token is never an older one, which may be about to end."""
    assert run()[0] != run()[0]
    assert connected.state.logins == 2


def test_refused_credentials(connected, connect, run):
    """A rejected password fails the task for good, after one try."""
    connect(connected.url, login=connected.email, password="wrong password")
    with pytest.raises(OneboxAuthError, match="Check Email, Password and Site ID") as caught:
        run()
    assert isinstance(caught.value, AirflowFailException)
    assert connected.state.failed_logins == 1


def test_bad_site(connected, run):
    """A template that renders to no site is refused before anything is sent."""
    with pytest.raises(OneboxConfigError, match="is not a Onebox site"):
        run({"params": {}}, site_id="{{ params.site }}")
    assert not connected.state.requests


def test_unavailable(connected, connect, run):
    """A fault that passes leaves the task to Airflow's retries."""
    connect(connected.url, login=connected.email, password=connected.password, max_retries=0)
    connected.state.fail("drop_before", path="authenticate")
    with pytest.raises(OneboxUnavailableError) as caught:
        run()
    assert not isinstance(caught.value, AirflowFailException)


def test_template_fields():
    """Airflow finds each field that it renders."""
    operator = OneboxListOperator(task_id="t", resource="ticketrz")
    assert [name for name in operator.template_fields if not hasattr(operator, name)] == []
