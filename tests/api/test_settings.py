"""A connection, checked: what works, what is refused, and what the refusal says."""

from __future__ import annotations

import json
import logging
import socket
from dataclasses import replace
from datetime import datetime, timezone
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
import trustme
from airflow.providers.common.compat.sdk import BaseHook, Connection

from airflow_provider_onebox.api import settings as settings_module
from airflow_provider_onebox.api.client import OneboxClient
from airflow_provider_onebox.api.redaction import forms_of
from airflow_provider_onebox.api.settings import (
    Settings,
    environment_proxies,
    is_plain_path,
    settings_from_connection,
)
from airflow_provider_onebox.exceptions import OneboxConfigError
from airflow_provider_onebox.hooks.onebox import OneboxHook

PASSWORD = " pä$$ w/o:rd@%? "
LONGEST_HOST = ".".join(["a" * 63] * 3 + ["a" * 61])


def connection(extra=None, **fields):
    """A complete connection, with the given fields in place of the usual ones."""
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
    assert settings == Settings("crm", "https://cloud.onebox.co.id", "demo@example.com", PASSWORD, "169")
    assert (settings.timeout, settings.max_retries, settings.verify) == (30.0, 3, True)
    assert (settings.proxies, settings.timezone) == ((), None)


def test_repr_holds_no_secret():
    """Settings in a traceback or a log show neither the password nor a proxy's."""
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
        ("dev.example", None, "HTTPS", "https://dev.example"),
        ("dev.example/_/", None, "/_v_/", "https://dev.example/_/_v_"),
        ("127.0.0.1:8080", None, "http", "http://127.0.0.1:8080"),
        ("http://localhost:8080/x", None, None, "http://localhost:8080/x"),
        ("http://[::1]:8080", None, None, "http://[::1]:8080"),
        ("https://[2001:DB8::0:1]", None, None, "https://[2001:db8::1]"),
        ("2001:DB8::1", None, None, "https://[2001:db8::1]"),
        ("2001:db8::1", 8443, "voc", "https://[2001:db8::1]:8443/voc"),
        ("https://2001:db8::1/voc", None, None, "https://[2001:db8::1]/voc"),
        ("::1", "8080", "http", "http://[::1]:8080"),
        ("dev.example", " 8443 ", None, "https://dev.example:8443"),
        ("dev.example", " ", None, "https://dev.example"),
        ("dev.example", 443, None, "https://dev.example"),
        ("https://dev.example:443", None, None, "https://dev.example"),
        ("http://localhost:80", None, None, "http://localhost"),
        ("http://localhost:443", None, None, "http://localhost:443"),
        ("dev.example", 80, None, "https://dev.example:80"),
        ("httpsdev.example", None, None, "https://httpsdev.example"),
        ("dev.example", 1, None, "https://dev.example:1"),
        ("dev.example:65535", None, None, "https://dev.example:65535"),
        ("dev.example.", None, None, "https://dev.example."),
        ("my_onebox-1", None, None, "https://my_onebox-1"),
        ("a" * 63 + ".example", None, None, "https://" + "a" * 63 + ".example"),
        (LONGEST_HOST, None, None, "https://" + LONGEST_HOST),
        ("https://dev.example/api/onebox", None, None, "https://dev.example/api/onebox"),
        ("https://dev.example/myapi", None, None, "https://dev.example/myapi"),
        # As it is looked up and sent, whatever the spelling.
        ("München.example", None, None, "https://xn--mnchen-3ya.example"),
        ("https://xn--mnchen-3ya.example", None, None, "https://xn--mnchen-3ya.example"),
        ("straße.example", None, None, "https://xn--strae-oqa.example"),
        ("mu\N{COMBINING DIAERESIS}nchen.example", None, None, "https://xn--mnchen-3ya.example"),
    ],
)
def test_host(host, port, schema, expected):
    """The address may lack a scheme, and carry a port and a base path."""
    assert settings_from_connection(connection(host=host, port=port, schema=schema)).base_url == expected


NO_ADDRESSES = [
    *("https://", "https:///dev.example", "https://dev .example", "https://dev.example\\.evil.example"),
    # Labels of a name that are empty, too long, or begin or end with a hyphen; a name that is too long.
    *("https://cloud..onebox.co.id", "https://.onebox.co.id", "https://onebox..", "https://" + "a" * 64 + ".example"),
    *("https://-onebox.co.id", "https://onebox-.co.id", f"https://{LONGEST_HOST}a"),
    # Names in Unicode that have no form in ASCII.
    *("https://m\N{SNOWMAN}nchen..example", "https://xn--\N{LATIN SMALL LETTER U WITH DIAERESIS}.example"),
    *("https://mün chen.example", "https://münchen\N{FULLWIDTH EXCLAMATION MARK}.example"),
    *("https://[::1", "https://[::1::2]", "https://[fe80::1%25eth0]"),
]
NO_PORTS = ["port", "0", "65536", "secret/x"]


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        ("ftp://dev.example", "scheme 'ftp'"),
        ("https://me:secret@dev.example", "user info"),
        ("https://dev.example?x=1", "query"),
        ("https://dev.example/#top", "fragment"),
        *((host, "is not an address") for host in NO_ADDRESSES),
        *((f"https://dev.example:{port}", "has a port that is not a number from 1 to 65535") for port in NO_PORTS),
        ("2001:db8:::1", "has a port that is not a number"),
        *((f"https://dev.example/{path}", "base path") for path in ("a/../b", "a//b", "%2e%2e")),
        *(
            (f"https://dev.example/{path}", f"ends in /{path.strip('/')}: leave that part out")
            for path in ("api", "api/v1", "API/V1/", "api/authenticate")
        ),
        ("https://dev.example/voc/api/v1/authenticate", "ends in /api/v1/authenticate: leave that part out"),
        *(
            (host, "starts with http or https, but has no :// after it")
            for host in ("https:/dev.example", "HTTPS:dev.example", "http//dev.example")
        ),
        *((host, "in the clear") for host in ("http://dev.example", "http://10.0.0.1")),
    ],
)
def test_host_refused(host, problem):
    """An address that can't work is refused, and not repeated where it may hold a password."""
    message = refusal(host=host)
    assert "the connection's host " in message
    assert problem in message
    assert "secret" not in message


HTTP_PROXY = (("http", "http://proxy.example"),)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        *(("timezone", zone, ZoneInfo("Asia/Jakarta")) for zone in ("Asia/Jakarta", " Asia/Jakarta ")),
        *(("site_id", site, "169") for site in ("169", 169, " 169 ")),
        *(("timeout", timeout, 30.0) for timeout in (None, "")),
        *(("timeout", timeout, float(timeout)) for timeout in (5, "2.5", 0.01, 86400)),
        *(("max_retries", *retries) for retries in ((0, 0), ("5", 5), (2.0, 2), (None, 3))),
        *(("proxies", proxies, HTTP_PROXY) for proxies in ({"http": "proxy.example"}, '{"http": "proxy.example"}')),
        *(
            ("proxies", {key: "proxy.example"}, ((key, "http://proxy.example"),))
            for key in ("https", "all", "https://dev.example", "all://dev.example")
        ),
    ],
)
def test_field(field, value, expected):
    """An extra field can be a number, JSON or text, as URIs have it; without one, the default is used."""
    assert getattr(settings_from_connection(connection({field: value})), field) == expected


NO_ZONES = ["WIB", "+07:00", " ", "Asia", "../Asia/Jakarta", "/etc/localtime", "a\0b", 7, True]
NO_SITES = ["abc", "12a", "-1", "1.5", 1.5, True, [169], "١٦٩"]


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        *(("timezone", v, ", which is not a time zone: enter a name such as Asia/Jakarta.") for v in NO_ZONES),
        *(("site_id", v, ": it must be digits, such as 169.") for v in NO_SITES),
        *(
            ("timeout", v, "must be a number of seconds greater than 0, at most 86400.")
            for v in (0, -1, "soon", True, [], "nan", "inf", 10**400, 1e10, 86401)
        ),
        *(("max_retries", v, "must be a whole number, 0 or greater.") for v in (-1, 1.5, "many", True, "inf")),
        *(
            ("proxies", v, 'must be JSON such as {"https": "http://proxy.example:3128"}.')
            for v in ("http://proxy.example", "[1]", {"https": 1}, {"https": None}, 5, [], '{"https"')
        ),
        # A key that requests does not read would send past the proxy in silence.
        *(
            ("proxies", {key: "proxy.example"}, f"has the key {key!r}: use https, http or all.")
            for key in ("", "htps", "HTTPS", "socks5", "no_proxy", "https://", "https:")
        ),
    ],
)
def test_field_refused(field, value, problem):
    """What an extra field can't be is refused by the field's name."""
    message = refusal({field: value})
    assert f"the connection's extra field {field!r} " in message
    assert message.endswith(problem)


def test_local_time():
    """A time with an offset is converted to Onebox's zone; one without is in it already."""
    settings = settings_from_connection(connection({"timezone": "Asia/Jakarta"}))
    assert settings.local_time("since", None) is None
    assert settings.local_time("since", "2026-11-24 08:30") == datetime(2026, 11, 24, 8, 30)
    for value in ("2026-11-24T08:30:15+00:00", datetime(2026, 11, 24, 8, 30, 15, tzinfo=timezone.utc)):
        assert settings.local_time("since", value) == datetime(2026, 11, 24, 15, 30, 15)


def test_local_time_without_zone():
    """Where Onebox's zone is not known, a time with an offset is refused, with what to change where."""
    settings = settings_from_connection(connection())
    assert settings.local_time("since", "2026-11-24 08:30") == datetime(2026, 11, 24, 8, 30)
    with pytest.raises(OneboxConfigError) as caught:
        settings.local_time("until", "2026-11-24T08:30:15Z")
    assert str(caught.value) == (
        "until='2026-11-24T08:30:15Z' has a time zone, and Onebox's times have none: enter the zone of this Onebox, "
        "such as Asia/Jakarta, as Time zone of connection 'crm' (extra field 'timezone'), or pass a time in that zone, "
        "without offset."
    )


def test_allow_http():
    """Plain HTTP beyond this machine takes an explicit decision."""
    for value in (True, "true", " True "):
        settings = settings_from_connection(connection({"allow_http": value}, host="http://dev.example"))
        assert settings.base_url == "http://dev.example"
    message = refusal({"allow_http": "yes"}, host="http://dev.example")
    assert "the connection's extra field 'allow_http' must be true or false" in message


def stand_in(**fields):
    """A connection with values that Airflow's own class may reject."""
    values = {"conn_id": "crm", "conn_type": "onebox", "host": None, "schema": None, "port": None}
    return SimpleNamespace(**{**values, "login": "e", "password": "p", "extra": {"site_id": 169}, **fields})


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        *(("login", value, "is empty: enter the e-mail of") for value in (None, "", "   ")),
        *(("password", value, "is empty: enter the password of") for value in (None, "")),
        # Half a character, which could not be encoded later.
        ("password", "\ud800", "holds a character that can't be sent: enter it again"),
    ],
)
def test_credentials_refused(field, value, problem):
    """E-mail and password are needed, and have to be text that can be sent."""
    with pytest.raises(OneboxConfigError, match=f"the connection's {field} {problem}"):
        settings_from_connection(stand_in(**{field: value}))


@pytest.mark.parametrize("field", ["host", "login", "password", "schema"])
@pytest.mark.parametrize("value", [5, 1234567.5, True, ["hunter22"], {"hunter22": 1}, b"hunter22"])
def test_fields_that_are_not_text(field, value):
    """Secrets backends return what is stored: another type is an error that names field and type, never the value."""
    with pytest.raises(OneboxConfigError) as caught:
        settings_from_connection(stand_in(**{field: value}))
    assert str(caught.value) == (
        f"Connection 'crm' is invalid: the connection's {field} must be text, and is of the type "
        f"{type(value).__name__}: put it in quotes."
    )


@pytest.mark.parametrize("value", [65536, 0, -1, "x", "8443x", "84.43", 8443.0, True, [8443], b"8443", "٨٤٤٣"])
def test_port_of_another_kind(value):
    """A port that is not a whole number within its range is an error that names the field."""
    with pytest.raises(OneboxConfigError, match="the connection's port must be a whole number from 1 to 65535"):
        settings_from_connection(stand_in(port=value))


def test_two_ports():
    """Two ports that differ are refused."""
    assert "port is 8443, but the Onebox URL says 443" in refusal(host="https://dev.example:443", port=8443)


@pytest.mark.parametrize(
    ("login", "name"),
    [
        ("demo\u200b@example.com", "U+200B (ZERO WIDTH SPACE), as its character 5"),
        ("\ufeffdemo@example.com", "U+FEFF (ZERO WIDTH NO-BREAK SPACE), as its character 1"),
        ("demo\uff20example.com", "U+FF20 (FULLWIDTH COMMERCIAL AT), as its character 5"),
        ("de mo@example.com", "U+0020 (SPACE), as its character 3"),
        ("demo@exa\nmple.com", "U+000A (a control character), as its character 9"),
        ("demo@example.com\ud800", "U+D800 (a control character), as its character 17"),
    ],
)
def test_email_with_an_odd_character(login, name):
    """What no e-mail address has is named before anything is sent; letters of any language pass."""
    with pytest.raises(OneboxConfigError, match="login has a character that no e-mail address has") as caught:
        settings_from_connection(stand_in(login=login))
    assert name in str(caught.value)
    assert settings_from_connection(stand_in(login="jürgen+é@例え.example")).email == "jürgen+é@例え.example"


@pytest.mark.parametrize(
    ("password", "problems"),
    [
        (PASSWORD.strip(), ""),
        ("***", "The stored password consists of asterisks, as exports and the form show it."),
        ("*x*", ""),
        ("pw\n", "The stored password ends with a space or line break."),
        (" pw ", "The stored password begins with a space or line break and ends with a space or line break."),
        ("'pw'", "The stored password is in quotes."),
        ('"pw"', "The stored password is in quotes."),
        ("\"pw'", ""),
        ("p%40ss", "The stored password contains a percent code, which only belongs in a URI."),
        ("p%4", ""),
        ("p\u200bw", "The stored password contains an invisible character."),
        ("p\tw", "The stored password contains an invisible character."),
    ],
)
def test_password_problems(password, problems):
    """What is unusual about a password is described without any part of it."""
    assert settings_from_connection(stand_in(password=password)).password_problems == problems


@pytest.mark.parametrize("conn_type", ["", None])
@pytest.mark.parametrize("extra", [None, '{"site_id": "169\'"}', "[1]"])
def test_value_that_airflow_could_not_read(conn_type, extra):
    """A value in quotes arrives as a connection without type and login, all of it in schema, which is not shown."""
    given = stand_in(conn_type=conn_type, login=None, password=None, schema="onebox//me:hunter22@h", extra=extra)
    with pytest.raises(OneboxConfigError, match=r"Airflow could not read its value.* remove quotes") as caught:
        settings_from_connection(given)
    assert "hunter22" not in str(caught.value)
    for usable in (stand_in(conn_type=conn_type), stand_in(conn_type="onebox", login="e")):
        assert settings_from_connection(usable).site_id == "169"
    for field in ("login", "password"):
        with pytest.raises(OneboxConfigError, match=f"{field} is empty"):
            settings_from_connection(stand_in(conn_type=conn_type, **{field: None}))


def test_white_space():
    """White space around an e-mail is a slip; in a password it is the password."""
    settings = settings_from_connection(connection(login=" demo@example.com\n", password="   "))
    assert (settings.email, settings.password) == ("demo@example.com", "   ")


@pytest.mark.parametrize("value", ["169", 169, " 169 "])
def test_site_id_as_argument(value):
    """An argument is used in place of the connection's site."""
    assert settings_from_connection(connection({"site_id": "1"}), value).site_id == "169"


@pytest.mark.parametrize("value", NO_SITES)
def test_site_id_as_argument_refused(value):
    """An argument that is not a site is refused by its name."""
    assert "site_id=" in refusal(site_id=value)


@pytest.mark.parametrize("extra", ["{}", '{"site_id": null}', '{"site_id": ""}', ""])
def test_site_id_missing(extra):
    """A connection without a site says which field to fill in."""
    assert "extra field 'site_id' is missing: enter the number of the Onebox site as Site ID" in refusal(extra)


@pytest.mark.parametrize("extra", ["[1]", "169", "site_id=169", '"x"', [], 0, False, b"{}", "[" * 10**5])
def test_extra_must_be_an_object(extra):
    """Anything but an object in extra is refused, not met later as an AttributeError."""
    # A stand-in again: Airflow 2 warns of it, and Airflow 3 raises an error of its own for most ways to it.
    with pytest.raises(OneboxConfigError, match="'crm' is invalid: the connection's extra must be a JSON object"):
        settings_from_connection(stand_in(extra=extra))


def test_airflow_says_nothing_of_a_short_site(caplog, monkeypatch):
    """Airflow takes no text of the extra for a secret: it would warn of the site in each task's log."""
    given = connection({"site_id": "16", "verify": "true"})
    monkeypatch.setattr(type(given), "extra_dejson", property(lambda self: pytest.fail("masks the site")))
    assert settings_from_connection(given).site_id == "16"


@pytest.mark.parametrize("value", ["170", 170, " 170 "])
def test_site_id_as_onebox_spells_it(value, caplog):
    """The extra siteId is the same field, so both must say the same."""
    extra = json.dumps({"siteId": value})
    assert settings_from_connection(connection(extra)).site_id == "170"
    assert settings_from_connection(connection(extra), "171").site_id == "171"
    assert settings_from_connection(connection({"site_id": "170", "siteId": value})).site_id == "170"
    assert settings_from_connection(connection({"site_id": "170", "siteId": ""})).site_id == "170"
    assert not caplog.records
    for site_id in (None, "170"):
        message = refusal({"site_id": 169, "siteId": value}, site_id=site_id)
        assert "'site_id' is given twice, in two spellings, with different values: remove one" in message
    assert "'site_id' is 'abc': it must be digits" in refusal(json.dumps({"siteId": "abc"}))


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    """A CA's file in PEM form."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


def test_verify(ca, caplog):
    """TLS verification is on, points at a CA file, or is off with a warning."""
    values = [("true", True), (True, True), (" False", False), (False, False), (str(ca), str(ca)), (f" {ca} ", str(ca))]
    for value, expected in values:
        caplog.clear()
        assert settings_from_connection(connection({"verify": value})).verify == expected
        assert ("verification switched off" in caplog.text) is (expected is False)


def test_verify_folder(ca, tmp_path):
    """In a folder, OpenSSL finds hashed certificates and nothing else."""
    assert "'verify' must be" in refusal({"verify": str(ca.parent)})
    assert "no hashed certificates" in refusal({"verify": str(ca.parent)})
    for name in ("0123abcd.r0", "0123abc.0", "x0123abcd.0", "0123abcd.0x", "0123ABCD.0"):
        (tmp_path / name).symlink_to(ca)
        assert "no hashed certificates" in refusal({"verify": str(tmp_path)})
    (tmp_path / "0123abcd.10").symlink_to(ca)
    assert settings_from_connection(connection({"verify": str(tmp_path)})).verify == str(tmp_path)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (0, ""),
        ([], ""),
        *((path, ": there is no such file") for path in ("no", "/etc/hostname/ca.pem", "/dev/null", "a\0b")),
        ("/" + "x" * 5000, ": File name too long"),
        (__file__, ": there is no certificate in it (PEM)"),
    ],
)
def test_verify_refused(value, problem):
    """Verification is not switched off by accident, and what can't be read is reported here."""
    message = refusal({"verify": value})
    assert message.endswith(f"'verify' must be true, false or the path of a CA file{problem}.")


def proxies_of(value):
    """What becomes of the extra field."""
    return settings_from_connection(connection({"proxies": value})).proxies


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (" HTTP://Proxy.Example ", "http://proxy.example"),
        ("proxy.example:3128", "http://proxy.example:3128"),
        ("http://proxy.example/", "http://proxy.example"),
        ("https://10.0.0.1:1", "https://10.0.0.1:1"),
        ("http://[::1]:3128", "http://[::1]:3128"),
        ("http://münchen.example:65535", "http://xn--mnchen-3ya.example:65535"),
        ("http://me:p%40ss%2Fw@proxy.example", "http://me:p%40ss%2Fw@proxy.example"),
        ("http://me:p@ss@proxy.example", "http://me:p@ss@proxy.example"),
        ("http://me@proxy.example", "http://me@proxy.example"),
        ("socks4://proxy.example", "socks4://proxy.example"),
        ("socks4a://proxy.example", "socks4a://proxy.example"),
        ("socks5://me:pw@proxy.example", "socks5://me:pw@proxy.example"),
        ("socks5h://proxy.example", "socks5h://proxy.example"),
    ],
)
def test_proxy(url, expected, monkeypatch):
    """A proxy is an address like Onebox's own, with the user and the password before an @."""
    monkeypatch.setattr(settings_module, "find_spec", lambda name: name == "socks")
    assert proxies_of({"all": url}) == (("all", expected),)


@pytest.mark.parametrize(
    "url",
    [
        *("", "ftp://me:hunter22@proxy.example"),
        *("http://me:hunter22@[::1", "http://me:hunter22@", "http://me:hunter22@:3128"),
        *(f"http://me:hunter22@proxy.example:{port}" for port in ("port", "0", "65536")),
        *(f"http://me:hunter22@proxy{rest}" for rest in ("..example", "/path", "/_", "?query", "#fragment")),
        # What follows the first of these characters would not be the password's any more.
        *(
            f"http://me:{password}@proxy.example"
            for password in ("hunter22/w", "22/hunter22", "hunter22#w", "hunter22?w")
        ),
        # No Basic header can carry it.
        *(f"http://me:hunter22{euro}@proxy.example" for euro in ("%E2%82%AC", "\N{EURO SIGN}")),
    ],
)
def test_proxy_refused(url):
    """An address that can't work is refused, and never shown: it may hold a password."""
    message = refusal({"proxies": {"http": "proxy.example", "https": url}})
    problem = "the scheme 'ftp': use one of http, https, socks4" if "ftp" in url else "a value that is not an address"
    assert f"'proxies' has for 'https' {problem}" in message
    assert "hunter" not in message


def test_socks_needs_pysocks(monkeypatch):
    """Without PySocks the message says what to install; a proxy that needs it not is none the worse."""
    monkeypatch.setattr(settings_module, "find_spec", lambda name: None)
    message = refusal({"proxies": {"https": "socks5h://me:hunter22@proxy.example"}})
    assert "'proxies' has for 'https' a SOCKS proxy" in message
    assert "pip install 'requests[socks]'" in message
    assert "hunter" not in message
    assert proxies_of({"https": "https://socks5.example"})


def test_secrets():
    """The password and the proxies' are known, these as they were written, decoded, and as a Basic header has them."""
    given = connection({"proxies": {"https": "http://me:p%40s%2fs@a.example", "all": "http://you@b.example"}})
    settings = settings_from_connection(given)
    assert settings.secrets == (PASSWORD, "p%40s%2fs", "p@s/s", "bWU6cEBzL3M=")
    plain = replace(settings, password="pw", proxies=(("https", "http://me:pw@a.example"),))
    assert plain.secrets == ("pw", "bWU6cHc=")
    assert Settings("crm", "https://dev.example", "e", "p", "1").secrets == ("p",)
    # As requests encodes it.
    assert replace(plain, proxies=(("https", "http://m%C3%A9:p%C3%A4@a.example"),)).secrets[-1] == "bek6cOQ="
    beyond = replace(plain, proxies=(("https", "http://me:%E2%82%AC@a.example"),))
    assert beyond.secrets == ("pw", "%E2%82%AC", "€", "bWU6Pw==")


def test_basic_header_of_a_proxy_is_among_the_secrets(monkeypatch):
    """What requests and urllib3 really send to a proxy is known, for every way to write it."""
    for url in ("http://me:p%40ss%2fw@127.0.0.1:1", "http://m%C3%A9:p:ä@127.0.0.1:1"):
        settings = settings_from_connection(connection({"proxies": {"https": url}}))
        adapter = OneboxClient(settings).session.get_adapter("https://dev.example")
        sent = adapter.proxy_headers(settings.proxies[0][1])["Proxy-Authorization"].removeprefix("Basic ")
        assert any(sent in forms_of(secret) for secret in settings.secrets)


def test_idn_host_over_the_wire(sandbox, connect, monkeypatch):
    """A host with letters of its own logs in and is called: its origin is what the session compares."""
    names = []
    find = socket.getaddrinfo

    def find_here(host, *args, **kwargs):
        names.append(host)
        return find("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", find_here)
    port = sandbox.url.rpartition(":")[2]
    connect(f"http://MÜNCHEN.example:{port}", login=sandbox.email, password=sandbox.password, allow_http=True)
    assert OneboxHook().count_records("ticketrz")[0] == 250
    assert {name if isinstance(name, str) else name.decode() for name in names} == {"xn--mnchen-3ya.example"}


@pytest.mark.parametrize("name", ["siteid", "siteId", "SITE_ID", "site-id", "SiteID"])
def test_spellings_of_a_field(name, caplog):
    """A command line lower-cases a name and Onebox writes another one: each is the same field."""
    settings = settings_from_connection(connection(json.dumps({name: 170, "MaxRetries": 7, "allowhttp": "false"})))
    assert (settings.site_id, settings.max_retries) == ("170", 7)
    assert not caplog.records


def test_unknown_extras_are_named(caplog):
    """A misspelt field is named, without its value: in the log, and in the error if no site is left."""
    with caplog.at_level(logging.WARNING):
        settings_from_connection(connection({"time_limit": "secret-value", "Alt": 1}))
    assert "extra fields that this provider ignores: Alt, time_limit. It knows only: site_id, timezone" in caplog.text
    message = refusal(json.dumps({"site": "secret-value", "x": 1}))
    assert message.endswith("as Site ID; its other fields are ignored: site, x.")
    assert "secret-value" not in caplog.text + message


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    """Keep this machine's own proxies and CA files out."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", *environment_proxies()):
        monkeypatch.delenv(name, raising=False)


PROXY_VARIABLES = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]


@pytest.mark.parametrize("name", PROXY_VARIABLES)
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("http://user:S3cr/Zq9@proxy:3128", "a value that is not an address such as http://user:password@proxy"),
        ("http://user:12/Zq9@proxy:3128", "a value that is not an address"),
        ("user:S3cr#Zq9@proxy:3128", "a value that is not an address"),
        ("http://user:S3cr?Zq9@proxy:3128", "a value that is not an address"),
        ("http://:3128", "a value that is not an address"),
        ("http://user:S3crZq9@:3128", "a value that is not an address"),
        ("http://", "a value that is not an address"),
        ("http://user:S3crZq9@proxy:port", "a value that is not an address"),
        ("ftp://user:S3crZq9@proxy", "the scheme 'ftp': use one of http, https, socks4"),
    ],
)
def test_proxy_of_the_environment_that_can_not_work(monkeypatch, name, value, problem):
    """The message names the variable, and nothing of the value: no library's message about it is shown."""
    monkeypatch.setenv(name, value)
    message = refusal(host="https://dev.example")
    assert message.startswith(f"Connection 'crm' can't be used here: the environment variable {name} has {problem}")
    assert not {part for part in ("S3cr", "Zq9", ":12") if part in message}
    if "scheme" not in problem:
        assert "percent-encode special characters" in message


@pytest.mark.parametrize(
    "value",
    ["http://proxy.example:3128", "proxy.example:3128", "http://me:p%2Fw@proxy/", "http://proxy:3128/proxy.pac"],
)
def test_proxy_of_the_environment_that_works(monkeypatch, value):
    """What requests can use passes, a path that it ignores included."""
    monkeypatch.setenv("HTTPS_PROXY", value)
    assert settings_from_connection(connection()).proxies == ()


def test_proxy_of_the_environment_that_is_not_used(monkeypatch):
    """A variable is checked only where it applies: neither behind NO_PROXY, nor the connection's own, nor for http."""
    monkeypatch.setenv("HTTPS_PROXY", "http://user:S3cr/Zq9@proxy:3128")
    assert "HTTPS_PROXY" in refusal(host="https://dev.example")
    assert "HTTPS_PROXY" in refusal({"proxies": {"http": "proxy.example"}}, host="https://dev.example")
    settings_from_connection(connection({"proxies": {"https": "proxy.example"}}, host="https://dev.example"))
    settings_from_connection(connection(host="http://localhost"))
    monkeypatch.setenv("NO_PROXY", "dev.example")
    settings_from_connection(connection(host="https://dev.example"))
    assert "HTTPS_PROXY" in refusal(host="https://prod.example")


def test_two_variables_with_one_proxy(monkeypatch):
    """Where two variables hold the same value, both are named; where a value is shown by neither, the usual one."""
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://")
    assert "the environment variable HTTPS_PROXY or https_proxy has" in refusal(host="https://dev.example")
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.delenv("https_proxy")
    monkeypatch.setattr("requests.utils.get_environ_proxies", lambda url: {"https": "http://"})
    assert "the environment variable HTTPS_PROXY has" in refusal(host="https://dev.example")


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_ca_of_the_environment(ca, monkeypatch, name):
    """A CA file of the environment that can't work is an error that names the variable, where it would be used."""
    monkeypatch.setenv(name, "/does/not/exist.pem")
    begin = f"Connection 'crm' can't be used here: the environment variable {name} has the path of a CA file that "
    begin += "can't be used: "
    assert refusal() == f"{begin}there is no such file."
    monkeypatch.setenv(name, __file__)
    assert refusal() == f"{begin}there is no certificate in it (PEM)."
    settings_from_connection(connection({"verify": str(ca)}))
    settings_from_connection(connection({"verify": False}))
    settings_from_connection(connection(host="http://localhost"))
    monkeypatch.setenv(name, str(ca))
    assert settings_from_connection(connection()).verify is True


def test_ca_of_the_environment_that_is_not_used(ca, monkeypatch):
    """The library reads CURL_CA_BUNDLE only without REQUESTS_CA_BUNDLE."""
    monkeypatch.setenv("CURL_CA_BUNDLE", "/does/not/exist.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca))
    assert settings_from_connection(connection()).verify is True
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "")
    assert "CURL_CA_BUNDLE" in refusal()


def test_secrets_of_the_environment(monkeypatch):
    """The passwords in the environment's proxies are secrets as the connection's are, in a malformed address too."""
    settings = settings_from_connection(connection())
    assert settings.secrets == (PASSWORD,)
    monkeypatch.setenv("HTTP_PROXY", "http://me:S3cr/Zq9@proxy:3128")
    assert settings.secrets == (PASSWORD, "S3cr/Zq9", "bWU6UzNjci9acTk=")
    monkeypatch.setenv("HTTP_PROXY", "me:p%40ss@proxy:3128")
    assert settings.secrets == (PASSWORD, "p%40ss", "p@ss", "bWU6cEBzcw==")
    for harmless in ("http://proxy:3128", "http://me@proxy:3128", "me@proxy:3128", "proxy", ""):
        monkeypatch.setenv("HTTP_PROXY", harmless)
        assert settings.secrets == (PASSWORD,)
    for name in ("http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "All_Proxy"):
        monkeypatch.setenv(name, "http://me:other@proxy")
        assert settings.secrets == (PASSWORD, "other", "bWU6b3RoZXI=")
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "http://me:other@proxy")
    assert settings.secrets == (PASSWORD,)


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


def test_is_plain_path():
    """A path that could be read as something else is not plain."""
    assert is_plain_path("ticketrz/12250")
    for path in ("", "/x", "x/", "//x", "a/../b", "..", "a/./b", ".", "a?b", "a#b", "a%2fb", "a b", "a\\b", "a:b", "é"):
        assert not is_plain_path(path), path
    assert not is_plain_path("a\n")
