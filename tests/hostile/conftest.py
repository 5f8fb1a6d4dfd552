"""Clients that wait for nothing."""

from __future__ import annotations

import pytest

from airflow_provider_onebox.api.client import OneboxClient
from airflow_provider_onebox.files.attachments import Attachments
from airflow_provider_onebox.hooks.onebox import OneboxHook


@pytest.fixture
def impatient(monkeypatch):
    """Let no hook and no download wait between tries."""

    def make(settings, time_limit=None):
        return OneboxClient(settings, time_limit=time_limit, pause=lambda abandoned, seconds: None)

    monkeypatch.setattr(OneboxHook, "_new_client", staticmethod(make))
    monkeypatch.setitem(Attachments.__init__.__kwdefaults__, "pause", lambda seconds: None)
