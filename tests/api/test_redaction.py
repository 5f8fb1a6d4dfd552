"""Redaction: every form in which a secret travels is known, and none is left in words that others see."""

from __future__ import annotations

import html
import json
import sys
from base64 import b64encode
from subprocess import run
from urllib.parse import quote, urlencode

import pytest
import requests

from airflow_provider_onebox.api.redaction import forms_of, redact

PASSWORDS = ["p@ss word", " pä$$ w/o:rd@%? ", 'it\'s "so"', "back\\slash\ttab", "пароль", 'ä"\\', "plain"]


@pytest.mark.parametrize("secret", PASSWORDS)
@pytest.mark.parametrize(
    "write",
    [
        str,
        repr,
        lambda s: repr(s.encode()),
        lambda s: repr({"password": s}),
        json.dumps,
        lambda s: json.dumps(s, ensure_ascii=False),
        quote,
        lambda s: quote(s, safe=""),
        lambda s: urlencode({"password": s}),
        # What the provider itself sends to log in, and how http.client prints it.
        lambda s: requests.Request("POST", "http://x", data={"password": s}).prepare().body,
        lambda s: repr(requests.Request("POST", "http://x", data={"password": s}).prepare().body.encode()),
        lambda s: requests.Request("GET", "http://x", params={"password": s}).prepare().url,
        # PHP, and a page that repeats what it was sent.
        lambda s: json.dumps(s).replace("/", "\\/"),
        html.escape,
    ],
)
def test_forms(write, secret):
    """However a secret is written, all of it is replaced, and nothing else."""
    frame = write("SECRET")
    assert redact(f"<{write(secret)}>", [secret]).replace('"', "'") == f"<{frame.replace('SECRET', '***')}>".replace(
        '"', "'"
    )


def test_base64():
    """A secret is known in base64, as basic authentication writes one."""
    for secret in PASSWORDS:
        assert redact(f"<{b64encode(secret.encode()).decode()}>", [secret]) == "<***>"


@pytest.mark.parametrize("secret", PASSWORDS)
def test_forms_are_few(secret):
    """They are registered with Airflow's masker, which never forgets one."""
    assert secret in forms_of(secret)
    assert len(forms_of(secret)) <= 9
    assert forms_of(secret) == forms_of(secret)
    assert "" not in forms_of(secret)


def test_nothing_to_hide():
    """An empty secret is none, and words without one stay as they are."""
    assert forms_of("") == frozenset()
    assert redact("words", ["", "token"]) == "words"
    assert redact("words", []) == "words"


def test_longest_first():
    """A short secret that is a part of a long one does not leave the rest of it."""
    assert redact("the word password1 and word", ["word", "password1"]) == "the *** *** and ***"


def test_it_is_cheap_to_import():
    """The hook reads it when a DAG file is parsed: no library comes along."""
    code = "import sys, airflow_provider_onebox.api.redaction; print({'requests', 'airflow', 'ssl'} & set(sys.modules))"
    assert run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
