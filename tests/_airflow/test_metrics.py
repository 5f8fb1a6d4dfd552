"""Counts reach Airflow's metrics, and can do no harm."""

from __future__ import annotations

import logging

import pytest
from airflow.providers.common.compat import sdk

from airflow_provider_onebox._airflow.metrics import count_metric
from airflow_provider_onebox.exceptions import OneboxError, OneboxUncertainWriteError
from airflow_provider_onebox.hooks.onebox import OneboxHook


@pytest.fixture
def counted(monkeypatch):
    """Return what is counted."""
    found = []

    class Stats:
        @staticmethod
        def incr(name, count):
            found.append((name, count))

    monkeypatch.setattr(sdk, "Stats", Stats, raising=False)
    return found


def test_count(counted):
    """A count has the provider's name before its own."""
    count_metric("logins")
    count_metric("records_listed", 7)
    assert counted == [("onebox.logins", 1), ("onebox.records_listed", 7)]


def test_installed_airflow(caplog):
    """The installed Airflow takes a count, and logs nothing about it."""
    with caplog.at_level(logging.DEBUG):
        count_metric("logins")
    assert "onebox" not in caplog.text


def test_backend_that_fails(monkeypatch, caplog):
    """A write that was made does not fail because it can't be counted."""
    monkeypatch.setattr(sdk, "Stats", None, raising=False)
    with caplog.at_level(logging.DEBUG):
        count_metric("writes.done")
    assert caplog.messages == ["The metric onebox.writes.done was not counted (AttributeError)."]


def test_what_is_counted(connected, counted):
    """Logins, retries, listed records, and writes by their results are counted, and reads are not."""
    hook = OneboxHook()
    connected.state.fail("status", path="ticketrz", headers={"Retry-After": "0"})
    assert len(list(hook.list_records("ticketrz", max_records=3, page_size=3))) == 3
    assert counted == [("onebox.logins", 1), ("onebox.retries", 1), ("onebox.records_listed", 3)]
    counted.clear()
    assert list(hook.list_records("ticketrz", since_id=connected.state.ids()[-1])) == []
    hook.request("GET", f"ticketrz/{connected.state.ids()[0]}")
    assert counted == []
    hook.create_contact(name="A")
    connected.state.fail("envelope", path="contactrz", status=422)
    with pytest.raises(OneboxError):
        hook.create_contact(name="A")
    connected.state.fail("drop_after", path="contactrz")
    with pytest.raises(OneboxUncertainWriteError):
        hook.create_contact(name="A")
    assert counted == [
        ("onebox.writes.done", 1),
        ("onebox.writes.rejected", 1),
        ("onebox.writes.uncertain", 1),
    ]


def test_listing_that_is_abandoned(connected, counted):
    """Of an abandoned listing, the records that arrived are counted."""
    records = OneboxHook().list_records("ticketrz", page_size=10)
    next(records)
    records.close()
    assert counted[-1] == ("onebox.records_listed", 10)
