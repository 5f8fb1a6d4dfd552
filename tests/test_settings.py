"""A connection, checked: what works, what is refused, and what the refusal says."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import BaseHook, Connection

from airflow_provider_onebox.exceptions import OneboxConfigError
from airflow_provider_onebox.settings import is_plain_path, is_site_id, settings_from_connection

PASSWORD = " pä$$ w/o:rd@%? "
KEEP = object()


def connection(extra=None, **fields):
    """A complete connection, with the given fields in place of its own."""
    values = {"host": None, "login": "demo@example.com", "password": PASSWORD, **fields}
    if not isinstance(extra, str):
        extra = json.dumps({"site_id": "169", **(extra or {})})
    return Connection(conn_id="crm", conn_type="onebox", extra=extra, **values)


def refusal(*args, site_id=None, **fields):
    """The message with which a connection is refused."""
    with pytest.raises(OneboxConfigError) as caught:
        settings_from_connection(connection(*args, **fields), site_id)
    message = str(caught.value)
    assert PASSWORD not in message
    assert "crm" in message
    return message


def test_defaults():
    """E-mail, password and site are enough."""
    settings = settings_from_connection(connection())
    assert settings.base_url == "https://cloud.onebox.co.id"
    assert (settings.email, settings.password, settings.site_id) == ("demo@example.com", PASSWORD, "169")
    assert (settings.timeout, settings.max_retries, settings.verify, settings.proxies) == (30.0, 3, True, ())


def test_repr_holds_no_secret():
    """Settings in a traceback or a log tell neither the password nor a proxy's."""
    settings = settings_from_connection(connection({"proxies": {"https": "http://me:proxypass@proxy.example:3128"}}))
    assert PASSWORD.strip() not in repr(settings)
    assert "proxypass" not in repr(settings)


@pytest.mark.parametrize(
    ("host", "port", "schema", "expected"),
    [
        ("", None, None, "https://cloud.onebox.co.id"),
        ("  https://dev.example/feature/voc/ ", None, None, "https://dev.example/feature/voc"),
        ("dev.example", None, None, "https://dev.example"),
        ("dev.example:8443/voc", None, None, "https://dev.example:8443/voc"),
        ("dev.example", 8443, None, "https://dev.example:8443"),
        ("https://dev.example:8443", 8443, None, "https://dev.example:8443"),
        ("dev.example", 8443, "feature/voc", "https://dev.example:8443/feature/voc"),
        ("https://dev.example/feature", None, "voc", "https://dev.example/feature/voc"),
        ("HTTPS://Dev.Example", None, None, "https://dev.example"),
        ("127.0.0.1:8080", None, "http", "http://127.0.0.1:8080"),
        ("http://localhost:8080/x", None, None, "http://localhost:8080/x"),
        ("http://[::1]:8080", None, None, "http://[::1]:8080"),
    ],
)
def test_host(host, port, schema, expected):
    """The address may lack a scheme, and carry a port and a base path."""
    assert settings_from_connection(connection(host=host, port=port, schema=schema)).base_url == expected


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("ftp://dev.example", "scheme 'ftp'"),
        ("https://me:secret@dev.example", "user info"),
        ("https://dev.example?x=1", "query"),
        ("https://dev.example/#top", "fragment"),
        ("https://dev.example:port", "not an address"),
        ("https://[::1", "not an address"),
        ("https://", "not an address"),
        ("https://dev .example", "not an address"),
        ("https://dev.example\\.evil.example", "not an address"),
        ("https://dev.example/a/../b", "base path"),
        ("https://dev.example/a//b", "base path"),
        ("https://dev.example/%2e%2e", "base path"),
        ("https://cloud.onebox.co.id/api", "leave that part out"),
        ("https://dev.example/voc/api/authenticate", "leave that part out"),
        ("http://dev.example", "in the clear"),
        ("http://10.0.0.1", "in the clear"),
    ],
)
def test_host_refused(host, words):
    """An address that can't work is refused, and not repeated where it may hold a password."""
    message = refusal(host=host)
    assert "host" in message
    assert words in message
    assert "secret" not in message


def test_port_refused():
    """Two ports that differ, or a port out of range, are refused."""
    assert "8443" in refusal(host="https://dev.example:443", port=8443)
    assert "65535" in refusal(host="https://dev.example", port=70000)


def test_allow_http():
    """Plain HTTP beyond this machine takes a decision of its own."""
    settings = settings_from_connection(connection({"allow_http": "true"}, host="http://dev.example"))
    assert settings.base_url == "http://dev.example"
    assert "true or false" in refusal({"allow_http": "yes"}, host="http://dev.example")


@pytest.mark.parametrize("field", ["login", "password"])
@pytest.mark.parametrize("value", [None, ""])
def test_credentials_refused(field, value):
    """E-mail and password must be there."""
    assert field in refusal(**{field: value})


@pytest.mark.parametrize("field", ["login", "password"])
def test_credentials_that_no_form_can_hold(field):
    """Half a character is refused here, not met later as a UnicodeEncodeError."""
    # Airflow 2 can't even store one, so a stand-in has to carry it.
    fields = {"conn_id": "crm", "extra_dejson": {}, "login": "e", "password": "p", field: "\ud800"}
    with pytest.raises(OneboxConfigError, match=f"{field} holds a character"):
        settings_from_connection(SimpleNamespace(**fields))


def test_blank_email_refused_but_blank_password_kept():
    """White space around an e-mail is a slip; in a password it is the password."""
    assert "login" in refusal(login="   ")
    assert settings_from_connection(connection(password="   ")).password == "   "
    assert settings_from_connection(connection(login=" demo@example.com\n")).email == "demo@example.com"


@pytest.mark.parametrize("value", ["169", 169, " 169 "])
def test_site_id(value):
    """A site is digits, as text or as a number."""
    assert settings_from_connection(connection({"site_id": value})).site_id == "169"
    assert settings_from_connection(connection({"site_id": "1"}), value).site_id == "169"


@pytest.mark.parametrize("value", ["abc", "12a", "-1", "1.5", 1.5, True, [169], "١٦٩"])
def test_site_id_refused(value):
    """Anything else is refused, in the connection and as an argument."""
    assert "site_id" in refusal({"site_id": value})
    assert "site_id" in refusal(site_id=value)


@pytest.mark.parametrize("extra", ["{}", '{"site_id": null}', '{"site_id": ""}', ""])
def test_site_id_missing(extra):
    """A connection without a site says which field to fill in."""
    assert "Site ID" in refusal(extra)


def test_extra_must_be_an_object():
    """A list in extra is refused, not met later as an AttributeError."""
    # A stand-in again: Airflow 2 warns of it, and Airflow 3 raises an error of its own for most ways to it.
    with pytest.raises(OneboxConfigError, match="JSON object"):
        settings_from_connection(SimpleNamespace(conn_id="crm", extra_dejson=[1]))


@pytest.mark.parametrize(("value", "expected"), [(5, 5.0), ("2.5", 2.5), (None, 30.0), ("", 30.0)])
def test_timeout(value, expected):
    """Seconds, as a number or as text, as URIs have it."""
    assert settings_from_connection(connection({"timeout": value})).timeout == expected


@pytest.mark.parametrize("value", [0, -1, "soon", True, [], "nan", "inf", 10**400])
def test_timeout_refused(value):
    """A time-out that is no positive number is refused."""
    assert "timeout" in refusal({"timeout": value})


@pytest.mark.parametrize(("value", "expected"), [(0, 0), ("5", 5), (2.0, 2), (None, 3)])
def test_max_retries(value, expected):
    """A whole number; 0 is one."""
    assert settings_from_connection(connection({"max_retries": value})).max_retries == expected


@pytest.mark.parametrize("value", [-1, 1.5, "many", True, "inf"])
def test_max_retries_refused(value):
    """Anything else is refused."""
    assert "max_retries" in refusal({"max_retries": value})


def test_verify(tmp_path, caplog):
    """TLS verification is on, points at a CA file, or is off with a warning."""
    ca = tmp_path / "ca.pem"
    ca.touch()
    for value, expected in (("true", True), (True, True), ("False", False), (False, False), (str(ca), str(ca))):
        caplog.clear()
        assert settings_from_connection(connection({"verify": value})).verify == expected
        assert ("verification switched off" in caplog.text) is (expected is False)


@pytest.mark.parametrize("value", [0, "no", "/does/not/exist.pem", []])
def test_verify_refused(value):
    """Verification is not switched off by accident."""
    assert "verify" in refusal({"verify": value})


@pytest.mark.parametrize("value", [{"https": "http://proxy.example:3128"}, '{"https": "http://proxy.example:3128"}'])
def test_proxies(value):
    """Proxies come as an object or as its JSON text."""
    settings = settings_from_connection(connection({"proxies": value}))
    assert settings.proxies == (("https", "http://proxy.example:3128"),)


@pytest.mark.parametrize("value", ["http://proxy.example", "[1]", {"https": 1}, {"https": ""}, 5])
def test_proxies_refused(value):
    """Anything else is refused."""
    assert "proxies" in refusal({"proxies": value})


def test_unknown_extras_are_named(caplog):
    """A misspelt field is told, without its value."""
    with caplog.at_level(logging.WARNING):
        settings_from_connection(connection({"siteid": "secret-value"}))
    assert "siteid" in caplog.text
    assert "secret-value" not in caplog.text


@pytest.mark.parametrize(
    "host", ["https://dev.example:8443/feature/voc/", "dev.example/feature/voc", "https://dev.example", None]
)
def test_uri_round_trip(host, monkeypatch):
    """The Test button hands the connection over as a URI: nothing may change on the way."""
    extra = {"timeout": 5, "verify": False, "proxies": {"https": "http://u:p@proxy.example"}}
    before = connection(extra, host=host)
    monkeypatch.setenv("AIRFLOW_CONN_CRM", before.get_uri())
    assert settings_from_connection(BaseHook.get_connection("crm")) == settings_from_connection(before)


def test_uri_as_people_write_it(monkeypatch):
    """A base path in a URI lands in schema, and every extra is text or a number."""
    uri = "onebox://demo%40example.com:p%40ss@dev.example:8443/feature/voc?site_id=169&timeout=5&verify=true"
    monkeypatch.setenv("AIRFLOW_CONN_CRM", uri)
    settings = settings_from_connection(BaseHook.get_connection("crm"))
    assert settings.base_url == "https://dev.example:8443/feature/voc"
    assert (settings.email, settings.password, settings.site_id) == ("demo@example.com", "p@ss", "169")
    assert (settings.timeout, settings.verify) == (5.0, True)


def test_is_site_id():
    """Digits alone."""
    assert is_site_id("169")
    assert is_site_id(169)
    assert not is_site_id(True)
    assert not is_site_id(None)


def test_is_plain_path():
    """A path that could be read as something else is not plain."""
    assert is_plain_path("ticketrz/12250")
    for path in ("", "/x", "x/", "//x", "a/../b", "..", "a?b", "a#b", "a%2fb", "a b", "a\\b", "a:b", "a\n", "é"):
        assert not is_plain_path(path), path
