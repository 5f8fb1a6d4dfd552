"""Redaction: every form in which a secret travels is known, and none is left in a message."""

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
        html.escape,
        lambda s: repr([s]),
        lambda s: json.dumps(json.dumps({"password": s})),
    ],
)
def test_forms(write, secret):
    """However Python writes a secret, all of it is replaced, and nothing else."""
    frame = write("SECRET")
    assert redact(f"<{write(secret)}>", [secret]).replace('"', "'") == f"<{frame.replace('SECRET', '***')}>".replace(
        '"', "'"
    )


NASTY = """ it's <b>"ö&/\\~€ @%"""


@pytest.mark.parametrize(
    "printed",
    [
        # Each as PHP 8.3 prints it.
        pytest.param("+it%27s+%3Cb%3E%22%C3%B6%26%2F%5C%7E%E2%82%AC+%40%25", id="urlencode"),
        pytest.param("%20it%27s%20%3Cb%3E%22%C3%B6%26%2F%5C~%E2%82%AC%20%40%25", id="rawurlencode"),
        pytest.param("+it%27s+%3cb%3e%22%c3%b6%26%2f%5c%7e%e2%82%ac+%40%25", id="urlencode, lower case"),
        pytest.param("%20it%27s%20%3cb%3e%22%c3%b6%26%2f%5c~%e2%82%ac%20%40%25", id="rawurlencode, lower case"),
        pytest.param(
            "%2Bit%2527s%2B%253Cb%253E%2522%25C3%25B6%2526%252F%255C%257E%25E2%2582%25AC%2B%2540%2525", id="x2"
        ),
        pytest.param(" it's <b>\\\"\\u00f6&\\/\\\\~\\u20ac @%", id="json_encode"),
        pytest.param(" it's <b>\\\"ö&\\/\\\\~€ @%", id="json_encode, JSON_UNESCAPED_UNICODE"),
        pytest.param(" it's <b>\\\"ö&/\\\\~€ @%", id="json_encode, JSON_UNESCAPED_UNICODE and _SLASHES"),
        pytest.param(
            " it\\u0027s \\u003Cb\\u003E\\u0022\\u00f6\\u0026\\/\\\\~\\u20ac @%", id="json_encode, JSON_HEX_*"
        ),
        pytest.param(" it&#039;s &lt;b&gt;&quot;ö&amp;/\\~€ @%", id="htmlspecialchars"),
        pytest.param(" it's &lt;b&gt;&quot;ö&amp;/\\~€ @%", id="htmlspecialchars, ENT_COMPAT"),
        pytest.param(" it&apos;s &lt;b&gt;&quot;ö&amp;/\\~€ @%", id="htmlspecialchars, ENT_HTML5"),
        pytest.param(" it&#039;s &lt;b&gt;&quot;&ouml;&amp;/\\~&euro; @%", id="htmlentities"),
        pytest.param(" it&#039;s &lt;b&gt;&quot;&#246;&amp;/\\~&#8364; @%", id="mb_encode_numericentity"),
        pytest.param(
            " it&amp;#039;s &amp;lt;b&amp;gt;&amp;quot;ö&amp;amp;/\\~€ @%", id="htmlspecialchars of htmlspecialchars"
        ),
        pytest.param(
            " it&#039;s &lt;b&gt;\\&quot;\\u00f6&amp;\\/\\\\~\\u20ac @%", id="htmlspecialchars of json_encode"
        ),
        pytest.param(" it\\'s <b>\\\"ö&/\\\\~€ @%", id="addslashes"),
        pytest.param("""it's <b>"ö&/\\~€ @%""", id="trim"),
        pytest.param("it&#039;s &lt;b&gt;&quot;ö&amp;/\\~€ @%", id="htmlspecialchars of trim"),
    ],
)
def test_forms_of_a_php_server(printed):
    """Onebox is written in PHP: each of its ways to print a value is known."""
    assert redact(f"<{printed}>", [NASTY]) == "<***>"


def test_folded_white_space():
    """A page that folds white space shows a password that has some in another form."""
    assert redact("<a b c>", [" a\t\tb\n c "]) == "<***>"
    assert redact("<a &amp; b>", ["a  &  b\n"]) == "<***>"


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("secret", [secret for secret in PASSWORDS if len(secret) > 3])
def test_whole_body_in_base64(secret, before):
    """A body in base64 contains the secret at an unknown place; at most two characters of its edges are left."""
    for sent in (secret, requests.models.RequestEncodingMixin._encode_params({"p": secret})[2:]):
        body = f"{'x' * before}{sent}&siteId=169".encode()
        shown = redact(b64encode(body).decode(), [secret])
        assert "***" in shown
        assert len(shown) <= len(b64encode(body)) - (len(sent.encode()) * 8 // 6 - 2) + 3


@pytest.mark.parametrize(("secret", "is_found"), [("abcd", False), ("abcde", True)])
def test_short_secrets_in_base64(secret, is_found):
    """Within base64, a very short secret would be found by chance."""
    for before in range(3):
        assert ("***" in redact(b64encode(b"x" * before + secret.encode() + b"xx").decode(), [secret])) is is_found


def test_base64():
    """A secret is known in base64, as basic authentication writes one."""
    for secret in PASSWORDS:
        assert redact(f"<{b64encode(secret.encode()).decode()}>", [secret]) == "<***>"


@pytest.mark.parametrize("secret", PASSWORDS)
def test_forms_are_few(secret):
    """They are registered with Airflow's masker, which never forgets one; most passwords have five."""
    assert secret in forms_of(secret)
    assert len(forms_of(secret)) <= 45
    assert forms_of(secret) == forms_of(secret)
    assert "" not in forms_of(secret)
    assert len(forms_of("Tr0ub4dor")) == 4
    assert len(forms_of("Tr0ub4dor3")) == 5


def test_nothing_to_hide():
    """An empty secret is none, and a text without one stays as it is."""
    assert forms_of("") == frozenset()
    assert redact("text", ["", "token"]) == "text"
    assert redact("text", []) == "text"


def test_longest_first():
    """A short secret that is a part of a long one does not leave the rest of it."""
    assert redact("the word password1 and word", ["word", "password1"]) == "the *** *** and ***"


def test_it_is_cheap_to_import():
    """The hook reads it when a DAG file is parsed: it imports no library."""
    code = "import sys, airflow_provider_onebox.api.redaction; print({'requests', 'airflow', 'ssl'} & set(sys.modules))"
    assert run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
