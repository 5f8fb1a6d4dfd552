"""The operator that logs in: it returns a token, and pushes what a reader needs to know of it."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from inspect import get_annotations
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from support.polling import Log

from airflow_provider_onebox.exceptions import OneboxAuthError, OneboxConfigError, OneboxUnavailableError
from airflow_provider_onebox.operators.bulk import OneboxBulkWriteOperator
from airflow_provider_onebox.operators.messages import OneboxListConversationsOperator, OneboxSendMessageOperator
from airflow_provider_onebox.operators.onebox import (
    OneboxAuthenticateOperator,
    OneboxCreateTicketOperator,
    OneboxListOperator,
    OneboxRequestOperator,
)
from airflow_provider_onebox.sensors.onebox import OneboxRecordSensor


@pytest.fixture
def run():
    """Render and execute an operator as a worker does; return its result and what it pushed."""

    def execute(context=None, **options):
        operator = OneboxAuthenticateOperator(task_id="authenticate", **options)
        pushed = {}
        ti = SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))
        context = {"ti": ti, **(context or {})}
        operator.render_template_fields(context)
        return operator.execute(context), pushed

    return execute


@pytest.mark.parametrize("opaque", [False, True])
def test_token(connected, run, monkeypatch, opaque):
    """Each run logs in; when the token expires, if it says so, and its site are pushed, and logged without it."""
    logged = Log.of(monkeypatch, OneboxAuthenticateOperator)
    connected.state.configure(opaque_tokens=opaque)
    first, _ = run()
    token, pushed = run()
    assert type(token) is str
    assert token != first
    assert connected.state.tokens[token].site == "169"
    expires_at = pushed["expires_at"]
    assert pushed == {"expires_at": expires_at, "site_id": "169"}
    if opaque:
        assert expires_at is None
    else:
        life = datetime.fromisoformat(expires_at) - datetime.now(timezone.utc)
        assert timedelta(seconds=890) < life <= timedelta(seconds=900)
        assert expires_at.endswith("+00:00")
    end = expires_at or "an unknown time"
    line = f"Logged in to {connected.url} as {connected.email} for site 169; the token expires at {end}."
    assert logged[-1:] == [("info", line)]
    assert not any(token in line or connected.password in line for _, line in logged)


@pytest.mark.parametrize("site", [170, "{{ params.site }}"])
def test_site(connected, reconnect, run, site):
    """A site of the task wins over the connection's, as number or template; the connection can be a template too."""
    reconnect("onebox_second")
    values = {"params": {"site": "170"}, "which": "second"}
    token, pushed = run(values, site_id=site, onebox_conn_id="onebox_{{ which }}")
    assert connected.state.tokens[token].site == pushed["site_id"] == "170"
    assert connected.state.logins_by_site == {"170": 1}


def test_errors(connected, reconnect, run):
    """A site that is none or a rejected password fails the task for good; a fault that passes is left to a retry."""
    with pytest.raises(OneboxConfigError, match="is not a Onebox site"):
        run({"params": {}}, site_id="{{ params.site }}")
    assert not connected.state.requests
    reconnect(max_retries=0)
    connected.state.fail("drop_before", path="authenticate")
    with pytest.raises(OneboxUnavailableError) as caught:
        run()
    assert not isinstance(caught.value, AirflowFailException)
    reconnect(password="wrong password")
    with pytest.raises(OneboxAuthError, match="Check Email, Password and Site ID"):
        run()
    assert connected.state.failed_logins == 1


@pytest.mark.parametrize(
    ("operator", "renderers"),
    [
        (OneboxAuthenticateOperator, {}),
        (OneboxListOperator, {"fields": "json"}),
        (OneboxRequestOperator, {"query": "json", "json": "json", "data": "json"}),
        (OneboxCreateTicketOperator, {"attachment": "json", "file": "json"}),
        (OneboxListConversationsOperator, {"tickets": "json", "attachment_hosts": "json"}),
        (OneboxSendMessageOperator, {"attachments": "json", "users": "json"}),
        (OneboxBulkWriteOperator, {"rows": "json"}),
        (OneboxRecordSensor, {}),
    ],
)
def test_renderers(operator, renderers):
    """Airflow's page shows each templated field that can be a list or a dictionary as JSON."""
    assert operator.template_fields_renderers == renderers
    assert set(renderers) <= set(operator.template_fields)
    assert re.fullmatch("#[0-9a-f]{6}", operator.ui_color)
    assert "incremental" not in operator.template_fields
    assert {"onebox_conn_id", "site_id"} <= set(operator.template_fields)
    assert ("token" in operator.template_fields) is (operator is not OneboxAuthenticateOperator)
    hints = get_annotations(operator.__init__)
    structured = {
        name for name in operator.template_fields if re.search(r"\b(Sequence|list|dict|Any)\b", hints.get(name, ""))
    }
    assert structured - {"output_path", "results_path", "attachments_path", "attachments_root"} == set(renderers)


def test_template_fields():
    """Airflow finds each field that it renders, and nothing is looked up when an operator is made."""
    operator = OneboxListOperator(task_id="t", resource="ticketrz", onebox_conn_id="no_such_connection")
    assert [name for name in operator.template_fields if not hasattr(operator, name)] == []
    assert OneboxAuthenticateOperator.template_fields == ("onebox_conn_id", "site_id")
