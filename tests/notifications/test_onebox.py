"""The notifier: a failed task opens a ticket."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_onebox.exceptions import OneboxConfigError
from airflow_provider_onebox.notifications.onebox import OneboxTicketNotifier

WHO = {"full_name": "Airflow", "contact": "ops@example.com", "category": "Pipelines"}


@pytest.fixture
def context():
    """The context of a failed task, as far as templates need it."""
    ti = SimpleNamespace(
        dag_id="d", task_id="t", map_index=3, run_id="r", try_number=2, log_url="http://airflow.example/log?x=1&y=2"
    )
    return {"dag": DAG("d", schedule=None), "ti": ti, "exception": RuntimeError("a secret of somebody else")}


def test_ticket(connected, context):
    """The ticket names the run and its log, and not the error's text."""
    OneboxTicketNotifier(**WHO)(context)
    (ticket,) = connected.state.tickets
    assert ticket["subject"] == "Airflow: d.t failed"
    assert (ticket["fullName"], ticket["contact"], ticket["category"]) == tuple(WHO.values())
    for fact in ("DAG: d", "Task: t", "Map index: 3", "Run: r", "Try: 2", "Log: http://airflow.example/log?x=1&y=2"):
        assert fact in ticket["content"]
    assert "secret" not in str(ticket)


def test_own_words(connected, context):
    """Every field can be a template."""
    OneboxTicketNotifier(**WHO, subject="{{ ti.run_id }}", content="{{ exception }}", site_id="{{ 170 }}")(context)
    (ticket,) = connected.state.tickets
    assert (ticket["subject"], ticket["siteId"]) == ("r", "170")
    assert "somebody else" in ticket["content"]


def test_missing_field(connected, context):
    """A ticket that can't be opened is not tried."""
    with pytest.raises(OneboxConfigError, match="contact"):
        OneboxTicketNotifier(**{**WHO, "contact": ""}).notify(context)
    assert not connected.state.requests
