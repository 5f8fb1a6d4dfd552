"""The promises that hold for every way to make a call, for those of the hook."""

from __future__ import annotations

import pytest
from support.compliance import Compliance, SessionWay, Way
from support.wire import PASSWORD, PATIENCE, TOKEN

from airflow_provider_onebox.hooks.onebox import OneboxHook


def of_hook(url):
    """A hook."""
    return Way(OneboxHook().request)


def of_upstream_token(url):
    """A hook that begins with an upstream token."""
    return Way(OneboxHook(token=TOKEN).request, logins=0)


def of_time_limit(url):
    """A hook with a time limit."""
    return Way(OneboxHook(time_limit=PATIENCE).request, tries=1)


def of_session(url):
    """The session of a hook."""
    return SessionWay(OneboxHook().get_conn(), url)


class TestHook(Compliance):
    """A hook in each way."""

    @pytest.fixture(params=[of_hook, of_upstream_token, of_time_limit, of_session], ids=lambda way: way.__name__)
    def make_way(self, request, connect):
        """Make a way to a URL."""

        def make(url):
            connect(url, password=PASSWORD)
            return request.param(url)

        return make
