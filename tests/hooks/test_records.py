"""The hook's lists of records, its `with` block, and what agents' tools read of it."""

from __future__ import annotations

import inspect
import time
import typing
from datetime import datetime
from urllib.parse import parse_qs

import pytest

from airflow_provider_onebox.api.listing import Listing
from airflow_provider_onebox.api.settings import Settings
from airflow_provider_onebox.exceptions import OneboxConfigError
from airflow_provider_onebox.hooks.onebox import OneboxHook


def ids(records):
    """Return the ids of records."""
    return [record["Id"] for record in records]


def test_first(connected):
    """The first records come as a list, at most as many as wanted."""
    assert ids(OneboxHook().get_records("ticketrz", max_records=7)) == connected.state.ids()[:7]
    assert ids(OneboxHook().get_records("ticketrz")) == connected.state.ids()
    assert OneboxHook().get_records("ticketrz", max_records=0) == []


@pytest.mark.parametrize("number", [1, 2, 249, 250, 251])
def test_newest(connected, number):
    """The newest records come in the order of their ids."""
    assert ids(OneboxHook().get_records("ticketrz", newest=number)) == connected.state.ids()[-number:]


def test_newest_is_cheap(connected):
    """The newest cost two small requests before their list, which is short."""
    OneboxHook().get_records("ticketrz", newest=2)
    limits = [parse_qs(seen.query)["limit"] for seen in connected.state.seen if seen.path == "/api/ticketrz"]
    assert (len(limits), limits[:2]) == (3, [["1"], ["1"]])


def test_newest_of_filtered(connected):
    """Filters apply to the newest too, and so does the bound."""
    after = connected.state.ids()[100]
    hook = OneboxHook()
    assert ids(hook.get_records("ticketrz", since_id=after, newest=3)) == connected.state.ids()[-3:]
    assert ids(hook.get_records("ticketrz", since_id=after, newest=500)) == connected.state.ids()[101:]
    assert ids(hook.get_records("ticketrz", max_records=2, newest=3)) == connected.state.ids()[-2:]


@pytest.mark.parametrize("settings", [{"offset_ignored": True}, {"page_overflow": 1}, {"total_ignores_since_id": True}])
def test_newest_of_an_odd_server(connected, settings):
    """The newest are right where Onebox ignores offset, counts too many, or gives more than was asked for."""
    connected.state.configure(**settings)
    after = connected.state.ids()[50]
    assert ids(OneboxHook().get_records("ticketrz", since_id=after, newest=3)) == connected.state.ids()[-3:]


def test_newest_without_total():
    """Where Onebox does not say how many there are, the whole list is read."""
    settings = Settings("crm", "https://onebox.example", "agent@example.com", "open sesame", "169")
    listing = Listing(lambda *_, **__: {"data": [{"Id": "7"}]}, lambda *call: " ".join(call), settings)
    assert listing.id_before_newest("ticketrz", 3, since_id=5) == 5


@pytest.mark.parametrize("arguments", [{"newest": 0}, {"newest": "many"}, {"max_records": -1}])
def test_refused(connected, arguments):
    """Numbers that make no sense are rejected before anything is sent."""
    with pytest.raises(OneboxConfigError, match="is not a whole number of at least"):
        OneboxHook().get_records("ticketrz", **arguments)
    assert connected.state.logins == 0


def test_with_block(connected):
    """At the end of the block no connection is open; one that was never used has none to close."""
    with OneboxHook() as hook:
        hook.get_records("ticketrz", max_records=1)
        assert connected.state.transports
    while connected.state.transports:
        time.sleep(0.01)
    assert ids(hook.get_records("ticketrz", max_records=1)) == connected.state.ids()[:1]
    with OneboxHook() as unused:
        assert unused._client is None


READS = ("get_records", "count_records", "list_conversations", "request", "create_ticket", "list_records")


@pytest.mark.parametrize("name", READS)
def test_types_at_run_time(name):
    """Tools of agents read the types of a method's arguments, which therefore can be resolved at run time."""
    method = getattr(OneboxHook, name)
    hints = typing.get_type_hints(method)
    assert set(inspect.signature(method).parameters) - {"self"} <= set(hints)


def test_newest_of_an_interval(connected):
    """The newest of an interval are found by listing it, also where Onebox's own total counts later ones."""
    table = connected.state.table("ticketrz")
    days = [datetime(2090, 11, day) for day in (24, 24, 24, 25)]
    new = [table.add(1, day)[0] for day in days]
    hook = OneboxHook()
    assert ids(hook.get_records("ticketrz", until="2090-11-25", newest=2)) == new[1:3]
    assert ids(hook.get_records("ticketrz", since="2090-11-24", newest=2)) == new[2:]
    assert ids(hook.get_records("ticketrz", since="2090-11-24", until="2090-11-25")) == new[:3]
    assert hook.count_records("ticketrz", since="2090-11-24", until="2090-11-25") == (3, int(new[2]))
