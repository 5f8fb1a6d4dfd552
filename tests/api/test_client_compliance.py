"""The promises that hold for every way to make a call, for those that need no Airflow."""

from __future__ import annotations

import pytest
from support.compliance import Compliance, SessionWay, Way
from support.wire import PATIENCE, client_of


def of_client(url):
    """A client."""
    return Way(client_of(url, token=None).request)


def of_upstream_token(url):
    """A client that begins with an upstream token."""
    return Way(client_of(url).request, logins=0)


def of_time_limit(url):
    """A client with a time limit, which makes its calls in a separate thread and retries none."""
    return Way(client_of(url, token=None, time_limit=PATIENCE).request, tries=1)


def of_session(url):
    """A client's session."""
    return SessionWay(client_of(url, token=None).session, url)


class TestClient(Compliance):
    """A client in each way."""

    @pytest.fixture(params=[of_client, of_upstream_token, of_time_limit, of_session], ids=lambda way: way.__name__)
    def make_way(self, request):
        """Make a way to a URL."""
        return request.param
