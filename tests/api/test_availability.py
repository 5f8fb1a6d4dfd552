"""A service that is down, distinguished from one that only rejects a call."""

from __future__ import annotations

import pytest

from airflow_provider_onebox.api.availability import check_available
from airflow_provider_onebox.exceptions import OneboxRequestError, OneboxResponseError
from airflow_provider_onebox.hooks.onebox import OneboxHook


def test_available(connected):
    """One small call is made, and none again; an expired token is renewed by it."""
    client = OneboxHook().client
    check_available(client)
    connected.state.revoke()
    check_available(client)
    assert [seen.query for seen in connected.state.seen if seen.path == "/api/ticketrz"] == ["limit=1"] * 3
    assert connected.state.logins == 2


def test_not_allowed_to_list(connected):
    """A user who may not list tickets can use Onebox."""
    connected.state.fail("envelope", path="ticketrz", status=403)
    check_available(OneboxHook().client)


@pytest.mark.parametrize(
    ("fault", "error"),
    [({"kind": "envelope", "status": 500}, OneboxRequestError), ({"kind": "html"}, OneboxResponseError)],
)
def test_not_available(connected, fault, error):
    """Anything else is Onebox's failure."""
    connected.state.fail(**fault, path="ticketrz")
    with pytest.raises(error, match="GET ticketrz"):
        check_available(OneboxHook().client)
