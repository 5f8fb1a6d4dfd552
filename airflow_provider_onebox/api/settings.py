"""An Airflow Connection, checked: the only place that knows what a connection of type Onebox may hold."""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import re
import ssl
from base64 import b64encode
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from airflow_provider_onebox.exceptions import OneboxConfigError, reason_of, sanitize
from airflow_provider_onebox.provider_info import CONN_FIELDS

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection


DEFAULT_HOST = "https://cloud.onebox.co.id"


DEFAULT_TIMEOUT = 30.0


DEFAULT_MAX_RETRIES = 3


MAX_TIMEOUT = 86400.0
"""Seconds that a timeout may be at the most: a day. Sockets take none that is much longer."""


MAX_CONNECTIONS = 32
"""The most connections that one session keeps open, so the most requests that can be asked to be in flight."""


PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")
"""How a proxy can be spoken to."""


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What a client needs to know, each value checked.

    :param conn_id: the connection that it came from, for messages.
    :param base_url: scheme, host, port and base path, with no slash at the end; the host in ASCII, as it is sent.
    :param email: who logs in.
    :param password: exactly as it was entered.
    :param site_id: the site to log in to, digits.
    :param timeout: seconds for connecting and for each read.
    :param max_retries: retries of a call.
    :param verify: ``True``, ``False``, or the path of a CA file or of a folder of hashed certificates.
    :param proxies: proxy addresses by scheme.
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

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown, each as it was entered: :func:`.redaction.forms_of` gives the rest."""
        secrets = [self.password]
        for parts in (urlsplit(url) for _, url in self.proxies):
            if parts.password:
                user, password = unquote(parts.username or ""), unquote(parts.password)
                # A Basic header carries both as one string.
                basic = b64encode(f"{user}:{password}".encode("latin-1", "replace")).decode()
                secrets += [parts.password, password, basic]
        return tuple(dict.fromkeys(secrets))


def settings_from_connection(conn: Connection, site_id: str | int | None = None) -> Settings:
    """Check a connection and turn it into settings. Sends nothing.

    :param conn: the Airflow Connection.
    :param site_id: a site to use in place of the connection's own.
    :return: the checked settings.
    :raises OneboxConfigError: if a field is missing or invalid; the message names connection, field
        and remedy, and never holds the password.
    """
    return ConnectionParser(conn).parse(site_id)


def is_site_id(value: object) -> bool:
    """Tell whether a value is a site id: digits, as text or as an integer.

    :param value: what to look at.
    :return: ``True`` for ``"169"`` and ``169``; ``False`` for anything else, booleans included.
    """
    return isinstance(value, (str, int)) and not isinstance(value, bool) and bool(_DIGITS.fullmatch(str(value)))


def is_plain_path(path: str) -> bool:
    """Tell whether a relative URL path stays where it is put, whoever reads it.

    :param path: the path, without a slash at either end.
    :return: ``True`` if it has nothing to escape, no empty segment, and none that leads up or to another host.
    """
    return all(_SEGMENT.fullmatch(part) and part not in (".", "..") for part in path.split("/"))


_DIGITS = re.compile("[0-9]+")


_SEGMENT = re.compile("[A-Za-z0-9._~-]+")


_LABEL = re.compile("[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


_API_PATH = re.compile("(^|/)api(/v[0-9]+)?(/authenticate)?$", re.IGNORECASE)


_PROXY_KEY = re.compile("(http|https|all)(://[^/]+)?")


_HASHED_CERTIFICATE = re.compile(r"[0-9a-f]{8}\.[0-9]+")


_BOOLEANS = {"true": True, "false": False}


class ConnectionParser:
    """Parses one connection; exists so that every error names it.

    :param conn: the Airflow Connection.
    :raises OneboxConfigError: if its extra is no JSON object.
    """

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        # With extra_dejson Airflow takes each text in it for a secret, and warns that a site is too short for one.
        extra = _json(conn.extra or {})
        if not isinstance(extra, dict):
            raise self._error("extra", 'must be a JSON object such as {"site_id": 169}')
        # An emptied field of the form is stored as null or as an empty string.
        self.extra = {key: value for key, value in extra.items() if value is not None and value != ""}
        site_id = self.extra.pop("siteId", None)
        if site_id is not None and str(self.extra.setdefault("site_id", site_id)).strip() != str(site_id).strip():
            raise self._error(
                "site_id", f"is {sanitize(self.extra['site_id'])!r}, but its 'siteId' differs: clear one of them"
            )

    def _error(self, name: str, problem: str) -> OneboxConfigError:
        where = f"the connection's extra field {name!r}" if name in CONN_FIELDS else f"the connection's {name}"
        return OneboxConfigError(f"Connection {self.conn.conn_id!r} is invalid: {where} {problem}.")

    def parse(self, site_id: str | int | None) -> Settings:
        """Check all fields.

        :param site_id: a site to use in place of the connection's own.
        :return: the settings.
        :raises OneboxConfigError: if a field is missing or invalid.
        """
        unknown = sorted(set(self.extra) - set(CONN_FIELDS))
        if unknown:
            log.warning(
                "Connection %r has extra fields that this provider ignores: %s. It knows only: %s.",
                self.conn.conn_id,
                sanitize(", ".join(unknown)),
                ", ".join(CONN_FIELDS),
            )
        email = (self.conn.login or "").strip()
        if not email:
            raise self._error("login", "is empty: enter the e-mail of a Onebox user as Email")
        password = self.conn.password or ""
        if not password:
            raise self._error("password", "is empty: enter the password of that user")
        for name, value in (("login", email), ("password", password)):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise self._error(name, "holds a character that can't be sent: enter it again") from None
        return Settings(
            conn_id=str(self.conn.conn_id),
            base_url=self._base_url(),
            email=email,
            password=password,
            site_id=self._site_id(site_id),
            timeout=self._timeout(),
            max_retries=self._max_retries(),
            verify=self._verify(),
            proxies=self._proxies(),
        )

    def _base_url(self) -> str:
        host = (self.conn.host or "").strip() or DEFAULT_HOST
        schema = (self.conn.schema or "").strip()
        scheme = "https"
        if schema.lower() in ("http", "https"):
            scheme, schema = schema.lower(), ""
        example = f"enter the address of Onebox such as {DEFAULT_HOST}"
        if "://" not in host:
            host = f"{scheme}://{host}"
        # What stands before an @ may be a password, so the value is shown in no message.
        if "@" in host:
            raise self._error("host", "holds user info before an @: put it into Email and Password, and " + example)
        if "?" in host or "#" in host:
            raise self._error("host", "holds a query or a fragment: " + example)
        try:
            parts = urlsplit(host)
            port = parts.port
            name = _ascii_host(parts.hostname or "")
        except ValueError as error:
            raise self._error("host", f"is not an address ({sanitize(error)}): {example}") from None
        if parts.scheme not in ("http", "https"):
            raise self._error("host", f"has the scheme {sanitize(parts.scheme)!r}, not https: {example}")
        # The path of a connection in URI form arrives as schema.
        path = "/".join(part.strip("/") for part in (parts.path, schema) if part.strip("/"))
        if path and not is_plain_path(path):
            raise self._error("host", "has a base path with unusual characters: " + example)
        api = _API_PATH.search(path)
        if api:
            raise self._error("host", f"ends in /{api[0].strip('/')}: leave that part out, the provider adds it")
        if None not in (self.conn.port, port) and self.conn.port != port:
            raise self._error("port", f"is {self.conn.port}, but the Onebox URL says {port}: clear one of them")
        port = self.conn.port if port is None else port
        if port is not None and not 0 < port < 65536:
            raise self._error("port", "is not between 1 and 65535")
        if parts.scheme == "http" and not _is_loopback(name) and not self._boolean("allow_http", False):
            raise self._error(
                "host",
                "starts with http://, which would send the password in the clear: use https://, "
                'or set the extra field "allow_http" to true if the network is trusted',
            )
        return f"{parts.scheme}://{_netloc(name, port)}{'/' + path if path else ''}"

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
            raise self._error("site_id", "is missing: enter the number of the Onebox site as Site ID")
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
            try:
                _check_ca(Path(value))
            except (OSError, ValueError) as error:
                problem = reason_of(error)
                if isinstance(error, ssl.SSLError):
                    problem = "there is no certificate in it (PEM)"
                raise self._error("verify", f"must be true, false or the path of a CA file: {problem}") from None
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
        return tuple((key, self._proxy(key, url.strip())) for key, url in value.items())

    def _proxy(self, key: str, url: str) -> str:
        if not _PROXY_KEY.fullmatch(key):
            raise self._error("proxies", f"has the key {sanitize(key)!r}: use https, http or all")
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port, name = parts.port, _ascii_host(parts.hostname or "")
            user, at, _ = parts.netloc.rpartition("@")
            # That is how a Basic header is encoded.
            unquote(user).encode("latin-1")
        except ValueError:
            name = ""
        if not name or port == 0 or parts.path.strip("/") or parts.query or parts.fragment:
            # Both the address and the library's words about it may hold a part of the password.
            raise self._error(
                "proxies",
                f"has for {key!r} what is not an address such as http://user:password@proxy.example:3128; in user "
                "and password write %40 for @, %2F for / and so on",
            )
        if parts.scheme not in PROXY_SCHEMES:
            schemes = ", ".join(PROXY_SCHEMES)
            raise self._error("proxies", f"has for {key!r} the scheme {sanitize(parts.scheme)!r}: use one of {schemes}")
        if parts.scheme.startswith("socks") and not find_spec("socks"):
            raise self._error(
                "proxies", f"has for {key!r} a SOCKS proxy: it needs PySocks, pip install 'requests[socks]'"
            )
        return f"{parts.scheme}://{user}{at}{_netloc(name, port)}"

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


def _json(value: Any) -> Any:
    """Read what may be JSON as text; ``None`` if it is text and not JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None


def _ascii_host(name: str) -> str:
    """Bring a host's name into the form in which it is looked up and sent."""
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


def _check_ca(path: Path) -> None:
    """Read what requests would: a file, or a folder in which OpenSSL looks for names that are hashes."""
    if path.is_dir():
        if not any(_HASHED_CERTIFICATE.fullmatch(entry.name) for entry in path.iterdir()):
            raise ValueError("the folder holds no hashed certificates, see openssl rehash")
    elif not path.is_file():
        raise ValueError("there is no such file")
    else:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
