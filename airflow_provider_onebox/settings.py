"""An Airflow Connection, checked: the only place that knows what a connection of type Onebox may hold."""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_onebox.exceptions import OneboxConfigError, quote
from airflow_provider_onebox.provider_info import CONN_FIELDS

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

DEFAULT_HOST = "https://cloud.onebox.co.id"
DEFAULT_TIMEOUT = 30.0
DEFAULT_MAX_RETRIES = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What a client needs to know, each value checked.

    :param conn_id: the connection that it came from, for messages.
    :param base_url: scheme, host, port and base path, with no slash at the end.
    :param email: who signs in.
    :param password: exactly as it was entered.
    :param site_id: the site to sign in to, digits.
    :param timeout: seconds for connecting and for each read.
    :param max_retries: tries after the first.
    :param verify: ``True``, ``False`` or the path of a CA file.
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


def settings_from_connection(conn: Connection, site_id: str | int | None = None) -> Settings:
    """Check a connection and turn it into settings. Sends nothing.

    :param conn: the Airflow Connection.
    :param site_id: a site to use in place of the connection's own.
    :return: the checked settings.
    :raises OneboxConfigError: if a field is missing or can't work; the message names connection, field
        and remedy, and never holds the password.
    """
    return _Reader(conn).read(site_id)


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
_HOST_NAME = re.compile(r"[\w.:-]+")
_BOOLEANS = {"true": True, "false": False}


class _Reader:
    """Reads one connection; exists so that every refusal names it."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        extra = conn.extra_dejson
        if not isinstance(extra, dict):
            raise self.refuse("extra", 'must be a JSON object such as {"site_id": "169"}')
        # An emptied field of the form is stored as null or as an empty string.
        self.extra = {key: value for key, value in extra.items() if value is not None and value != ""}

    def refuse(self, name: str, problem: str) -> OneboxConfigError:
        where = f"the connection's extra field {name!r}" if name in CONN_FIELDS else f"the connection's {name}"
        return OneboxConfigError(f"Connection {self.conn.conn_id!r} can't work: {where} {problem}.")

    def read(self, site_id: str | int | None) -> Settings:
        unknown = sorted(set(self.extra) - set(CONN_FIELDS))
        if unknown:
            log.warning(
                "Connection %r has extra fields that this provider does not know and ignores: %s. It knows: %s.",
                self.conn.conn_id,
                quote(", ".join(unknown)),
                ", ".join(CONN_FIELDS),
            )
        email = (self.conn.login or "").strip()
        if not email:
            raise self.refuse("login", "is empty: enter the e-mail of a Onebox user as Email")
        password = self.conn.password or ""
        if not password:
            raise self.refuse("password", "is empty: enter the password of that user")
        for name, value in (("login", email), ("password", password)):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise self.refuse(name, "holds a character that can't be sent: enter it again") from None
        return Settings(
            conn_id=str(self.conn.conn_id),
            base_url=self.base_url(),
            email=email,
            password=password,
            site_id=self.site_id(site_id),
            timeout=self.timeout(),
            max_retries=self.max_retries(),
            verify=self.verify(),
            proxies=self.proxies(),
        )

    def base_url(self) -> str:
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
            raise self.refuse("host", "holds user info before an @: put it into Email and Password, and " + example)
        if "?" in host or "#" in host:
            raise self.refuse("host", "holds a query or a fragment: " + example)
        try:
            parts = urlsplit(host)
            port = parts.port
            name = parts.hostname
        except ValueError as error:
            raise self.refuse("host", f"is not an address ({quote(error)}): {example}") from None
        if parts.scheme not in ("http", "https"):
            raise self.refuse("host", f"has the scheme {quote(parts.scheme)!r}, not https: {example}")
        if not name or not _HOST_NAME.fullmatch(name):
            raise self.refuse("host", "is not an address: " + example)
        # The path of a connection in URI form arrives as schema.
        path = "/".join(part.strip("/") for part in (parts.path, schema) if part.strip("/"))
        if path and not is_plain_path(path):
            raise self.refuse("host", "has a base path with unusual characters: " + example)
        if re.search(r"(^|/)api(/authenticate)?$", path, re.IGNORECASE):
            raise self.refuse("host", "ends in /api: leave that part out, the provider adds it")
        if self.conn.port and port and self.conn.port != port:
            raise self.refuse("port", f"is {self.conn.port}, but the Onebox URL says {port}: clear one of them")
        port = port or self.conn.port
        if port is not None and not 0 < port < 65536:
            raise self.refuse("port", "is not between 1 and 65535")
        if parts.scheme == "http" and not _is_loopback(name) and not self.boolean("allow_http", False):
            raise self.refuse(
                "host",
                "starts with http://, which would send the password in the clear: use https://, "
                'or set the extra field "allow_http" to true if the network is trusted',
            )
        netloc = f"[{name}]" if ":" in name else name
        return f"{parts.scheme}://{netloc}{f':{port}' if port else ''}{'/' + path if path else ''}"

    def site_id(self, override: str | int | None) -> str:
        value: Any = self.extra.get("site_id") if override is None else override
        if isinstance(value, str):
            value = value.strip()
        if override is not None and not is_site_id(value):
            raise OneboxConfigError(
                f"site_id={quote(override)!r} is not a Onebox site: pass digits such as '169', "
                f"or leave it out to use the site of connection {self.conn.conn_id!r}."
            )
        if value is None or value == "":
            raise self.refuse("site_id", "is missing: enter the number of the Onebox site as Site ID")
        if not is_site_id(value):
            raise self.refuse("site_id", f"is {quote(value)!r}: it must be digits, such as 169")
        return str(value)

    def timeout(self) -> float:
        value = self.number("timeout", DEFAULT_TIMEOUT)
        if not (math.isfinite(value) and value > 0):
            raise self.refuse("timeout", "must be a number of seconds greater than 0")
        return value

    def max_retries(self) -> int:
        value = self.number("max_retries", DEFAULT_MAX_RETRIES)
        if not (math.isfinite(value) and value >= 0 and value == int(value)):
            raise self.refuse("max_retries", "must be a whole number, 0 or greater")
        return int(value)

    def verify(self) -> bool | str:
        value = self.extra.get("verify", True)
        if isinstance(value, str):
            value = _BOOLEANS.get(value.strip().lower(), value)
        if isinstance(value, str) and Path(value).exists():
            return value
        if value is False:
            log.warning(
                "Connection %r has TLS verification switched off: whoever sits between can read the password. "
                "Point its extra field 'verify' at a CA file instead.",
                self.conn.conn_id,
            )
        elif value is not True:
            raise self.refuse("verify", "must be true, false or the path of a CA file that exists on this machine")
        return bool(value)

    def proxies(self) -> tuple[tuple[str, str], ...]:
        value = self.extra.get("proxies", {})
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                value = None
        if not isinstance(value, dict) or not all(isinstance(url, str) and url for url in value.values()):
            raise self.refuse("proxies", 'must be JSON such as {"https": "http://proxy.example:3128"}')
        return tuple(value.items())

    def number(self, name: str, default: float) -> float:
        value = self.extra.get(name, default)
        try:
            return math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            return math.nan

    def boolean(self, name: str, default: bool) -> bool:
        value = self.extra.get(name, default)
        if isinstance(value, str):
            value = _BOOLEANS.get(value.strip().lower(), value)
        if not isinstance(value, bool):
            raise self.refuse(name, "must be true or false")
        return value


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
