"""A checked Airflow Connection: the only module that knows what a connection of type Onebox may contain.

Where the connection names no proxy or CA file, those of the environment are used. They are checked here too, so that an
error names the variable, and their passwords are known as secrets.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import os
import re
import ssl
import unicodedata
from base64 import b64encode
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo

from airflow_provider_onebox.api.arguments import parse_id, parse_time
from airflow_provider_onebox.exceptions import OneboxConfigError, reason_of, sanitize
from airflow_provider_onebox.provider_info import CONN_FIELDS

if TYPE_CHECKING:
    from datetime import datetime

    from airflow.providers.common.compat.sdk import Connection


DEFAULT_HOST = "https://cloud.onebox.co.id"


DEFAULT_TIMEOUT = 30.0


DEFAULT_MAX_RETRIES = 3


MAX_TIMEOUT = 86400.0
"""The longest timeout in seconds: a day. Sockets reject much longer ones."""


MAX_CONNECTIONS = 32
"""The most connections that one session keeps open, and so the most requests that can be in flight."""


PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")
"""The schemes of proxy addresses that are supported."""


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What a client needs to know, each value checked.

    :param conn_id: the connection's id, for messages.
    :param base_url: scheme, host, port and base path, without a slash at the end; the host in ASCII, as it is sent.
    :param email: who logs in.
    :param password: exactly as it was entered.
    :param site_id: the site to log in to, digits.
    :param timeout: seconds for connecting and for each read.
    :param max_retries: retries of a call.
    :param verify: ``True``, ``False``, or the path of a CA file or of a folder of hashed certificates.
    :param proxies: proxy addresses by scheme.
    :param timezone: the zone of Onebox's times, ``None`` if that is not known.
    """

    conn_id: str
    base_url: str
    email: str
    password: str = field(repr=False)
    site_id: str
    timeout: float = DEFAULT_TIMEOUT
    max_retries: int = DEFAULT_MAX_RETRIES
    verify: bool | str = True
    proxies: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    timezone: ZoneInfo | None = None

    def local_time(self, name: str, value: datetime | str | None) -> datetime | None:
        """Read a time, and convert it to Onebox's own zone.

        :param name: the argument, for the message.
        :param value: a time, as for :func:`.arguments.parse_time`; without a zone, it is in Onebox's own.
        :return: the time in that zone, without saying so, as Onebox's times are.
        :raises OneboxConfigError: if it is not a time, or has a zone and Onebox's own is not known.
        """
        moment = parse_time(name, value)
        if moment is None or moment.tzinfo is None:
            return moment
        zone = self.zone_for(f"{name}={sanitize(value)!r}", "pass a time in that zone, without offset")
        return moment.astimezone(zone).replace(tzinfo=None)

    def zone_for(self, what: str, instead: str) -> ZoneInfo:
        """Return Onebox's own zone.

        :param what: what needs it, for the message.
        :param instead: what to do where it is not known, for the message.
        :return: the zone.
        :raises OneboxConfigError: if it is not known.
        """
        if self.timezone is None:
            raise OneboxConfigError(
                f"{what} has a time zone, and Onebox's times have none: enter the zone of this Onebox, such as "
                f"Asia/Jakarta, as Time zone of connection {self.conn_id!r} (extra field 'timezone'), or {instead}."
            )
        return self.timezone

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown: the password, and those of the connection's and the environment's proxies.

        :func:`.redaction.forms_of` lists the forms in which each can be printed.
        """
        secrets = [self.password]
        for url in (*dict(self.proxies).values(), *environment_proxies().values()):
            # Not with urlsplit: a malformed address of the environment can hold a password as well.
            found = _USER_INFO.match(url)
            if found:
                user, password = unquote(found[1]), unquote(found[2])
                # A Basic header carries both as one string.
                basic = b64encode(f"{user}:{password}".encode("latin-1", "replace")).decode()
                secrets += [found[2], password, basic]
        return tuple(dict.fromkeys(secrets))

    @property
    def password_problems(self) -> str:
        """What is unusual about the password, for a rejected login; empty if nothing is. Never any part of it."""
        problems = [problem for pattern, problem in _PASSWORD_PROBLEMS if re.search(pattern, self.password)]
        if any(unicodedata.category(c) in ("Cf", "Cc") for c in self.password.strip()):
            problems.append("contains an invisible character")
        return f"The stored password {' and '.join(problems)}." if problems else ""


def environment_proxies() -> dict[str, str]:
    """Return the proxies that the environment names, whether they are used or not.

    :return: addresses by the name of their variable, such as ``HTTPS_PROXY``; without ``NO_PROXY``.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name.lower() in ("http_proxy", "https_proxy", "all_proxy") and value
    }


def settings_from_connection(conn: Connection, site_id: str | int | None = None) -> Settings:
    """Check a connection and turn it into settings. Sends nothing.

    :param conn: the Airflow Connection.
    :param site_id: a site to use in place of the connection's own.
    :return: the checked settings.
    :raises OneboxConfigError: if a field, or a variable of the environment that would be used, is missing or invalid.
        The message names it and the remedy, and contains no password.
    """
    return ConnectionParser(conn).parse(site_id)


def is_site_id(value: object) -> bool:
    """Return whether a value is a site id: digits, as text or as an integer.

    :param value: the value.
    :return: ``True`` for ``"169"`` and ``169``; ``False`` for anything else, booleans included.
    """
    return isinstance(value, (str, int)) and not isinstance(value, bool) and bool(_DIGITS.fullmatch(str(value)))


def is_plain_path(path: str) -> bool:
    """Return whether every reader understands a relative URL path alike.

    :param path: the path, without a slash at either end.
    :return: ``True`` if it has nothing to escape, no empty segment, and none that leads up or to another host.
    """
    return all(_SEGMENT.fullmatch(part) and part not in (".", "..") for part in path.split("/"))


_DIGITS = re.compile("[0-9]+")


_SEGMENT = re.compile("[A-Za-z0-9._~-]+")


_LABEL = re.compile("[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


_API_PATH = re.compile("(^|/)api(/v[0-9]+)?(/authenticate)?$", re.IGNORECASE)


_PROXY_KEY = re.compile("(http|https|all)(://[^/]+)?")


_USER_INFO = re.compile("(?:[^/@]*//|(?![^/@]*//))([^:]*):(.*)@", re.DOTALL)


_IGNORED_PATH = re.compile("^((?:[^/]*//|(?![^/]*//))[^/?#]+)[/?#][^@]*$")


_HASHED_CERTIFICATE = re.compile(r"[0-9a-f]{8}\.[0-9]+")


_BOOLEANS = {"true": True, "false": False}


_PASSWORD_PROBLEMS = (
    (r"^\*+$", "consists of asterisks, as exports and the form show it"),
    (r"^\s", "begins with a space or line break"),
    (r"\s$", "ends with a space or line break"),
    (r"""^(["']).*\1$""", "is in quotes"),
    ("%[0-9A-Fa-f]{2}", "contains a percent code, which only belongs in a URI"),
)


class ConnectionParser:
    """Parses one connection; exists so that every error names it.

    :param conn: the Airflow Connection.
    :raises OneboxConfigError: if Airflow could not read it, or its extra is not a JSON object.
    """

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        if not conn.conn_type and not conn.login and not conn.password:
            # Airflow has then put the whole text into other fields, password included.
            raise OneboxConfigError(
                f"Connection {conn.conn_id!r} is invalid: Airflow could not read its value, because it is neither JSON "
                "nor a URI such as onebox://...: remove quotes around it, and a byte order mark (BOM) before it. "
                "docker --env-file, for one, passes both on as part of the value."
            )
        # With extra_dejson Airflow takes each text in it for a secret, and warns that a site is too short for one.
        extra = {} if conn.extra in (None, "") else _json(conn.extra)
        if not isinstance(extra, dict):
            raise self._error("extra", 'must be a JSON object such as {"site_id": 169}')
        self.extra: dict[str, Any] = {}
        self.ignored = []
        for key, value in extra.items():
            # siteId, as Onebox spells it; siteid, as a command line makes it of that.
            name = _FIELD_NAMES.get(re.sub("[_-]", "", str(key)).lower())
            if name is None:
                self.ignored.append(str(key))
            # An emptied field of the form is stored as null or as an empty string.
            elif value is not None and value != "":
                if name in self.extra and str(self.extra[name]).strip() != str(value).strip():
                    raise self._error(name, "is given twice, in two spellings, with different values: remove one")
                self.extra[name] = value

    def _error(self, name: str, problem: str) -> OneboxConfigError:
        where = f"the connection's extra field {name!r}" if name in CONN_FIELDS else f"the connection's {name}"
        return OneboxConfigError(f"Connection {self.conn.conn_id!r} is invalid: {where} {problem}.")

    def parse(self, site_id: str | int | None) -> Settings:
        """Check all fields.

        :param site_id: a site to use in place of the connection's own.
        :return: the settings.
        :raises OneboxConfigError: if a field, or a variable of the environment, is missing or invalid.
        """
        if self.ignored:
            log.warning(
                "Connection %r has extra fields that this provider ignores: %s. It knows only: %s.",
                self.conn.conn_id,
                sanitize(", ".join(sorted(self.ignored))),
                ", ".join(CONN_FIELDS),
            )
        email = self._text("login").strip()
        if not email:
            raise self._error("login", "is empty: enter the e-mail of a Onebox user as Email")
        for position, character in enumerate(email, 1):
            if unicodedata.category(character)[0] in "CZ" or unicodedata.normalize("NFKC", character) != character:
                name = unicodedata.name(character, "a control character")
                raise self._error(
                    "login",
                    f"has a character that no e-mail address has, U+{ord(character):04X} ({name}), as its character "
                    f"{position}: type it again",
                )
        password = self._text("password")
        if not password:
            raise self._error("password", "is empty: enter the password of that user")
        try:
            password.encode()
        except UnicodeEncodeError:
            raise self._error("password", "holds a character that can't be sent: enter it again") from None
        settings = Settings(
            conn_id=str(self.conn.conn_id),
            base_url=self._base_url(),
            email=email,
            password=password,
            site_id=self._site_id(site_id),
            timeout=self._timeout(),
            max_retries=self._max_retries(),
            verify=self._verify(),
            proxies=self._proxies(),
            timezone=self._timezone(),
        )
        self._check_environment(settings)
        return settings

    def _text(self, name: str) -> str:
        value = getattr(self.conn, name)
        if not isinstance(value, (str, type(None))):
            # Not what it is: it may be a password.
            raise self._error(name, f"must be text, and is of the type {type(value).__name__}: put it in quotes")
        return value or ""

    def _base_url(self) -> str:
        host = self._text("host").strip() or DEFAULT_HOST
        schema = self._text("schema").strip()
        scheme = "https"
        if schema.lower() in ("http", "https"):
            scheme, schema = schema.lower(), ""
        example = f"enter the address of Onebox such as {DEFAULT_HOST}"
        if "://" not in host:
            if re.match("https?[:/]", host, re.IGNORECASE):
                raise self._error("host", "starts with http or https, but has no :// after it: " + example)
            host = f"{scheme}://{host}"
        # A part before an @ may be a password, so no message shows the value.
        if "@" in host:
            raise self._error("host", "holds user info before an @: put it into Email and Password, and " + example)
        if "?" in host or "#" in host:
            raise self._error("host", "holds a query or a fragment: " + example)
        try:
            parts = urlsplit(_with_brackets(host))
            name = _ascii_host(parts.hostname or "")
        except ValueError:
            raise self._error("host", "is not an address, because no host has such a name: " + example) from None
        try:
            port = parts.port
            if port == 0:
                raise ValueError
        except ValueError:
            raise self._error("host", "has a port that is not a number from 1 to 65535: " + example) from None
        if parts.scheme not in ("http", "https"):
            raise self._error("host", f"has the scheme {sanitize(parts.scheme)!r}, not https: {example}")
        # The path of a connection in URI form arrives as schema.
        path = "/".join(part.strip("/") for part in (parts.path, schema) if part.strip("/"))
        if path and not is_plain_path(path):
            raise self._error("host", "has a base path with unusual characters: " + example)
        api = _API_PATH.search(path)
        if api:
            raise self._error("host", f"ends in /{api[0].strip('/')}: leave that part out, the provider adds it")
        own_port = self._port()
        if None not in (own_port, port) and own_port != port:
            raise self._error("port", f"is {own_port}, but the Onebox URL says {port}: clear one of them")
        port = own_port if port is None else port
        if port == (443 if parts.scheme == "https" else 80):
            port = None
        if parts.scheme == "http" and not _is_loopback(name) and not self._boolean("allow_http", False):
            raise self._error(
                "host",
                "starts with http://, which would send the password in the clear: use https://, "
                'or set the extra field "allow_http" to true if the network is trusted',
            )
        return f"{parts.scheme}://{_netloc(name, port)}{'/' + path if path else ''}"

    def _port(self) -> int | None:
        value = self.conn.port
        if isinstance(value, str):
            value = value.strip() or None
        if value is None:
            return None
        port = parse_id(value)
        if port is None or not 0 < port < 65536:
            raise self._error("port", "must be a whole number from 1 to 65535")
        return port

    def _site_id(self, override: str | int | None) -> str:
        value: Any = self.extra.get("site_id") if override is None else override
        if isinstance(value, str):
            value = value.strip()
        if override is not None and not is_site_id(value):
            raise OneboxConfigError(
                f"site_id={sanitize(override)!r} is not a Onebox site: pass digits such as '169', "
                f"or leave it out to use the site of connection {self.conn.conn_id!r}."
            )
        if value is None or value == "":
            others = f"; its other fields are ignored: {sanitize(', '.join(self.ignored))}" if self.ignored else ""
            raise self._error("site_id", f"is missing: enter the number of the Onebox site as Site ID{others}")
        if not is_site_id(value):
            raise self._error("site_id", f"is {sanitize(value)!r}: it must be digits, such as 169")
        return str(value)

    def _timeout(self) -> float:
        value = self._number("timeout", DEFAULT_TIMEOUT)
        if not 0 < value <= MAX_TIMEOUT:
            raise self._error("timeout", f"must be a number of seconds greater than 0, at most {MAX_TIMEOUT:.0f}")
        return value

    def _max_retries(self) -> int:
        value = self._number("max_retries", DEFAULT_MAX_RETRIES)
        if not (math.isfinite(value) and value >= 0 and value == int(value)):
            raise self._error("max_retries", "must be a whole number, 0 or greater")
        return int(value)

    def _verify(self) -> bool | str:
        value = self.extra.get("verify", True)
        if isinstance(value, str):
            value = _BOOLEANS.get(value.strip().lower(), value.strip())
        if isinstance(value, str):
            problem = _ca_problem(value)
            if problem:
                raise self._error("verify", f"must be true, false or the path of a CA file: {problem}")
            return value
        if value is False:
            log.warning(
                "Connection %r has TLS verification switched off: anyone in between can read the password. "
                "Set its extra field 'verify' to the path of a CA file instead.",
                self.conn.conn_id,
            )
        elif value is not True:
            raise self._error("verify", "must be true, false or the path of a CA file")
        return bool(value)

    def _proxies(self) -> tuple[tuple[str, str], ...]:
        value = _json(self.extra.get("proxies", {}))
        if not isinstance(value, dict) or not all(isinstance(url, str) for url in value.values()):
            raise self._error("proxies", 'must be JSON such as {"https": "http://proxy.example:3128"}')
        proxies = []
        for key, url in value.items():
            if not _PROXY_KEY.fullmatch(key):
                raise self._error("proxies", f"has the key {sanitize(key)!r}: use https, http or all")
            address, problem = _parse_proxy(url.strip())
            if problem:
                raise self._error("proxies", f"has for {key!r} {problem}")
            proxies.append((key, address))
        return tuple(proxies)

    def _timezone(self) -> ZoneInfo | None:
        value = self.extra.get("timezone")
        try:
            return None if value is None else ZoneInfo(str(value).strip())
        except (KeyError, OSError, ValueError):
            raise self._error(
                "timezone", f"is {sanitize(value, 60)!r}, which is not a time zone: enter a name such as Asia/Jakarta"
            ) from None

    def _check_environment(self, settings: Settings) -> None:
        """Check what requests takes from the environment where the connection says nothing."""
        from requests.utils import get_environ_proxies, select_proxy

        if not settings.base_url.startswith("https:"):
            return
        url = None
        if not select_proxy(settings.base_url, dict(settings.proxies)):
            url = select_proxy(settings.base_url, get_environ_proxies(settings.base_url))
        if url:
            # A path behind the address is ignored; one with an @ is the rest of a password.
            problem = _parse_proxy(_IGNORED_PATH.sub(r"\1", url.strip()))[1]
            if problem:
                names = [name for name, value in environment_proxies().items() if value == url]
                raise self._environment_error(" or ".join(names) or "HTTPS_PROXY", problem)
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            path = os.environ.get(name)
            if path:
                problem = _ca_problem(path) if settings.verify is True else ""
                if problem:
                    raise self._environment_error(name, f"the path of a CA file that can't be used: {problem}")
                break

    def _environment_error(self, name: str, problem: str) -> OneboxConfigError:
        return OneboxConfigError(
            f"Connection {self.conn.conn_id!r} can't be used here: the environment variable {name} has {problem}."
        )

    def _number(self, name: str, default: float) -> float:
        value = self.extra.get(name, default)
        try:
            return math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            return math.nan

    def _boolean(self, name: str, default: bool) -> bool:
        value = self.extra.get(name, default)
        if isinstance(value, str):
            value = _BOOLEANS.get(value.strip().lower(), value)
        if not isinstance(value, bool):
            raise self._error(name, "must be true or false")
        return value


_FIELD_NAMES = {name.replace("_", ""): name for name in CONN_FIELDS}


def _json(value: Any) -> Any:
    """Read what may be JSON as text; ``None`` if it is text and not JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None


def _parse_proxy(url: str) -> tuple[str, str]:
    """Bring a proxy's address into its normal form; return it and what is wrong with it, if anything."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port, name = parts.port, _ascii_host(parts.hostname or "")
        user, at, _ = parts.netloc.rpartition("@")
        # That is how a Basic header is encoded.
        unquote(user).encode("latin-1")
    except ValueError:
        name = ""
    if not name or port == 0 or parts.path.strip("/") or parts.query or parts.fragment:
        # Both the address and the library's message about it may hold a part of the password.
        return "", (
            "a value that is not an address such as http://user:password@proxy.example:3128; percent-encode special "
            "characters in user and password: %40 for @, %2F for / and so on"
        )
    if parts.scheme not in PROXY_SCHEMES:
        return "", f"the scheme {sanitize(parts.scheme)!r}: use one of {', '.join(PROXY_SCHEMES)}"
    if parts.scheme.startswith("socks") and not find_spec("socks"):
        return "", "a SOCKS proxy: it needs PySocks, pip install 'requests[socks]'"
    return f"{parts.scheme}://{user}{at}{_netloc(name, port)}", ""


def _with_brackets(url: str) -> str:
    """Put an IPv6 address into the brackets that Airflow takes off a connection in URI form."""
    scheme, _, rest = url.partition("://")
    name, slash, path = rest.partition("/")
    try:
        return f"{scheme}://[{ipaddress.IPv6Address(name)}]{slash}{path}"
    except ValueError:
        return url


def _ascii_host(name: str) -> str:
    """Bring a host name into the form in which it is looked up and sent."""
    if ":" in name and "%" not in name:
        return str(ipaddress.IPv6Address(name))
    if not name.isascii():
        import idna

        name = idna.encode(name, uts46=True).decode()
    labels = name.removesuffix(".").split(".")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError("no host name")
    return name


def _netloc(name: str, port: int | None) -> str:
    return (f"[{name}]" if ":" in name else name) + ("" if port is None else f":{port}")


def _ca_problem(path: str) -> str:
    """Read a CA file, or look into a folder for the names that OpenSSL reads; return what is wrong, if anything."""
    ca = Path(path)
    try:
        if ca.is_dir():
            if not any(_HASHED_CERTIFICATE.fullmatch(entry.name) for entry in ca.iterdir()):
                return "the folder holds no hashed certificates, see openssl rehash"
        elif not ca.is_file():
            ca.stat()  # It raises what else is wrong, such as a name that is too long: Python 3.14 hides that.
            return "there is no such file"
        else:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)
    except ssl.SSLError:
        return "there is no certificate in it (PEM)"
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "there is no such file"
    except OSError as error:
        return reason_of(error)
    return ""


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
