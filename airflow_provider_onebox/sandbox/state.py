"""The sandbox's data, counters and settings; tests use the same calls in the process and over HTTP."""

from __future__ import annotations

import random
import re
import secrets
import threading
import time
from collections import Counter, defaultdict, deque
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

import jwt

from .data import RESOURCES, Table

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Mapping

# fmt: off
KINDS = (
    "drop_before", "drop_after", "status", "html", "empty", "truncated", "slow", "delay", "hang", "no_token",
    "redirect", "expired", "envelope", "envelope_200", "merge", "huge", "header_bomb", "not_json", "wrong_type",
    "raw",
)
_COUNTERS = (
    "logins", "logins_by_site", "logins_by_user", "failed_logins", "requests", "tickets", "max_concurrent",
    "connections", "faults", "rejected_pages",
)
# fmt: on
ORDERS = ("ascending", "descending", "shuffled", "page")
# The documented error envelope, {"error": message}, {"message": message}, and a message with a response_code.
FORMS = ("records", "error", "message", "response_code")


@dataclass
class Settings:
    """What can be changed while the sandbox runs; the defaults are Onebox as its pages describe it."""

    token_life: float = 900  # seconds
    latency: float = 0  # seconds before every response
    clock_skew: float = 0  # seconds the server's clock is ahead
    opaque_tokens: bool = False  # a random string in place of a JWT
    endless_tokens: bool = False  # a JWT that names only sub, jti and sid; it expires all the same
    int_claims: bool = False  # sub and sid are integers; there are usid and sesid, too
    token_claims: dict[str, Any] = field(default_factory=dict)  # override the others; None removes a claim
    valid_until: bool = False  # in the login's response, with the token
    sites_as_list: bool = False  # the response to an empty siteId is a bare list
    news_as_list: bool = False  # and that to news/get
    outside_service_hours: bool = False  # every call but the login is rejected
    service_hours_login: bool = False  # outside them, logins are rejected too
    page_overflow: int = 0  # records of a page beyond its limit
    page_cap: int = 0  # most records of a page; 0 is no cap
    page_rate: int = 0  # pages in any second; more are rejected with 429; 0 is no limit
    page_seconds: float = 0  # extra for a page of 100 records; ten times as many for one of 500
    since_id_ignored: bool = False
    offset_ignored: bool = False
    total_ignores_since_id: bool = False
    int_ids: bool = False
    id_order: str = "ascending"  # or descending, shuffled, or page: backwards within each page
    grow: int = 0  # records added after each page
    shrink: int = 0  # oldest records removed after each page
    churn: int = 0  # random records changed after each page
    utc_offset: float = 7  # hours; dates are local to the server, without saying so
    times_inclusive: bool = False  # since and lastUpdate include records of that second
    last_update_ignored: bool = False
    undocumented_writes: bool = False  # POST, PUT, PATCH and DELETE of every resource, as reported
    message_page: int = 1  # messages in the response to a new message, which is the last
    attachment_size: int = 1000  # bytes of each file that was not uploaded
    envelope_status: int = 0  # HTTP status of every error envelope; 0 is its usual status
    envelope_form: str = ""  # of every error envelope, one of FORMS; "" is its usual form
    envelope_code: str = ""  # every code is a "string" or an "integer"; "" is its usual type
    keep_alive: float = 60  # seconds after which an idle connection is closed
    fault_rate: float = 0  # share of the requests that meet a fault drawn from fault_kinds
    fault_kinds: tuple[str | dict[str, Any], ...] = (
        # a kind alone, or one with its options
        "drop_before",
        "drop_after",
        "status",
        "html",
        "empty",
        "truncated",
    )


class Seen(NamedTuple):
    """A request as received."""

    method: str
    path: str
    query: str
    raw_headers: list[tuple[bytes, bytes]]

    @property
    def headers(self) -> dict[str, str]:
        """The headers, with names in lower case."""
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self.raw_headers}


class Grant(NamedTuple):
    """The site and user of a token, and when it expires."""

    site: str
    user: str
    expires: float


class State(Settings):
    """The data, counters and settings of one sandbox.

    :param records: records that each resource of each site begins with
    :param sites: Ids of the sites
    :param accounts: passwords by e-mail
    :param seed: for the data and for random faults
    :param until: when the last of those records was created, without a zone; the end of yesterday if None
    :param settings: fields of :class:`Settings`
    """

    def __init__(
        self,
        records: int,
        sites: Iterable[str],
        accounts: Mapping[str, str],
        seed: int = 0,
        until: datetime | None = None,
        **settings: Any,
    ) -> None:
        self._begin: dict[str, Any] = settings
        self.records, self.sites, self.seed, self.until = records, [str(site) for site in sites], seed, until
        self.accounts = dict(accounts)
        self.secret = secrets.token_hex(32)
        self.transports: set[asyncio.Transport] = set()
        self.lock = threading.RLock()
        self.active = 0
        self.reset()

    def reset(self) -> None:
        """Reset everything: settings, data, counters, faults and tokens."""
        with self.lock:
            super().__init__(**self._begin)
            self.configure()
            self.tokens: dict[str, Grant] = {}
            self.faults: list[dict[str, Any]] = []
            self.logins_by_site: Counter[str] = Counter()
            self.logins_by_user: Counter[str] = Counter()
            self.failed_logins = 0
            self.requests: Counter[str] = Counter()  # "GET list", "POST authenticate", ...
            self.writes: list[dict[str, Any]] = []
            # Messages sent, by site and ticket, and news.
            self.replies: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
            self.news: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
            self.files: dict[str, bytes] = {}  # uploaded, by the end of their paths
            self.max_concurrent, self.connections = self.active, 0
            self.pages: deque[float] = deque()  # times of the requests in the last second
            self.rejected_pages = 0
            self.seen: deque[Seen] = deque(maxlen=1000)
            self._tables: dict[tuple[str, str], Table] = {}
            self.chance = random.Random(self.seed)  # noqa: S311 - repeatable on purpose

    @property
    def logins(self) -> int:
        """Tokens created by logging in."""
        return sum(self.logins_by_site.values())

    @property
    def tickets(self) -> list[dict[str, Any]]:
        """The tickets created, each as it was sent, with its Id and its site's."""
        return [
            {**entry["body"], "ticketId": entry["id"], "siteId": entry["site"]}
            for entry in self.books()
            if entry["id"] and entry["call"] == "POST /api/ticket/create"
        ]

    def books(self) -> list[dict[str, Any]]:
        """Return each POST, PUT, PATCH and DELETE except logins, in order of arrival.

        One with an ``id`` was done, one with a ``refusal`` was not; ``fault`` names the fault that the response met
        or, without an id, that prevented the write.
        """
        return list(self.writes)

    def snapshot(self) -> dict[str, Any]:
        """Return counters, settings, pending faults and the last requests, ready for JSON."""
        seen = [
            {
                "method": request.method,
                "path": request.path,
                "query": request.query,
                "headers": request.headers,
            }
            for request in list(self.seen)[-100:]
        ]
        return {**{name: getattr(self, name) for name in _COUNTERS}, "seen": seen, "settings": asdict(self)}

    def configure(self, **changes: Any) -> None:
        """Change settings by name."""
        for name, value in changes.items():
            if name not in Settings.__dataclass_fields__:
                raise KeyError(f"no setting {name}")
            setattr(self, name, value)
        for name, known in (("id_order", ORDERS), ("envelope_form", FORMS), ("envelope_code", ("string", "integer"))):
            if getattr(self, name) not in (*known, getattr(Settings, name)):
                raise ValueError(f"{name} is one of {', '.join(known)}")
        if unknown := {_as_fault(kind)["kind"] for kind in self.fault_kinds}.difference(KINDS):
            raise ValueError(f"no fault kind {', '.join(unknown)}")

    # Data

    def table(self, resource: str = "ticketrz", site: str | None = None) -> Table:
        """Return a resource of a site (the first one by default)."""
        key = (resource, site or self.sites[0])
        if resource not in RESOURCES or key[1] not in self.sites:
            raise KeyError(f"no {resource} at site {key[1]}")
        with self.lock:
            if key not in self._tables:
                until = self.until or self.local().replace(hour=0, minute=0, second=0) - timedelta(seconds=1)
                self._tables[key] = Table(*key, count=self.records, seed=self.seed, until=until)
            return self._tables[key]

    def add(self, count: int, resource: str = "ticketrz", site: str | None = None, **fields: Any) -> list[str]:
        """Add records, created now and newest last, with ``fields`` replacing generated ones; return their Ids."""
        with self.lock:
            return self.table(resource, site).add(count, self.local(), **fields)

    def delete(self, ids: Iterable[str | int], resource: str = "ticketrz", site: str | None = None) -> int:
        """Delete records by Id; return how many there were."""
        with self.lock:
            return sum(self.table(resource, site).delete(int(row_id)) for row_id in ids)

    def touch(
        self,
        ids: str | int | Iterable[str | int],
        when: str | None = None,
        resource: str = "ticketrz",
        site: str | None = None,
        **fields: Any,
    ) -> None:
        """Change fields of records, with their ModifyDate: now, or ``when`` (``YYYY-MM-DD HH:MM:SS``)."""
        time = datetime.fromisoformat(when) if when else self.local()
        with self.lock:
            for row_id in [ids] if isinstance(ids, str | int) else ids:
                self.table(resource, site).touch(int(row_id), time, **fields)

    def admit(self, now: float) -> bool:
        """Count a request for a page at a time; return whether ``page_rate`` allows it."""
        with self.lock:
            while self.pages and self.pages[0] <= now - 1:
                self.pages.popleft()
            if self.page_rate and len(self.pages) >= self.page_rate:
                self.rejected_pages += 1
                return False
            self.pages.append(now)
            return True

    def ids(self, resource: str = "ticketrz", site: str | None = None) -> list[str]:
        """Return the Ids of all current records, ascending."""
        with self.lock:
            return [str(row_id) for row_id in self.table(resource, site).ids]

    def warm(self, count: int, resource: str = "ticketrz", site: str | None = None) -> None:
        """Create the first records now, so that a measurement does not include it."""
        with self.lock:
            self.table(resource, site).page(size=count)

    # Tokens

    def now(self) -> float:
        """Return the time on the server's clock."""
        return time.time() + self.clock_skew

    def local(self, seconds: float | None = None) -> datetime:
        """Return a time (now by default) as the server's dates give it."""
        zone = timezone(timedelta(hours=self.utc_offset))
        return datetime.fromtimestamp(int(self.now() if seconds is None else seconds), zone).replace(tzinfo=None)

    def issue(self, site: str, user: str, issuer: str = "localhost", life: float | None = None) -> str:
        """Return a new token, without counting a login."""
        life = self.token_life if life is None else life
        now = self.now()
        issued = int(now)
        user_id = str(55 + list(self.accounts).index(user))
        claims: dict[str, Any] = {"sub": user_id, "sid": site, "jti": secrets.token_urlsafe(24)}
        if self.int_claims:
            claims |= {"sub": int(user_id), "sid": int(site), "usid": int(user_id), "sesid": secrets.token_hex(8)}
        if not self.endless_tokens:
            claims |= {"iss": issuer, "iat": issued, "nbf": issued, "exp": int(issued + life)}
        claims = {name: value for name, value in (claims | self.token_claims).items() if value is not None}
        token = secrets.token_urlsafe(48) if self.opaque_tokens else jwt.encode(claims, self.secret, "HS256")
        # The claims are whole seconds: counted from the claim, a token would expire up to a second early, and one of
        # one second sometimes at once.
        with self.lock:
            self.tokens[token] = Grant(site, user, now + life)
        return token

    def revoke(self) -> int:
        """Reject every token issued so far with ``Expired token``; return how many there were."""
        with self.lock:
            self.tokens = {token: grant._replace(expires=0) for token, grant in self.tokens.items()}
            return len(self.tokens)

    # Faults

    def fail(self, kind: str, path: str = "*", times: int = 1, after: int = 0, **options: Any) -> None:
        """Queue a fault.

        :param kind: one of ``KINDS``
        :param path: pattern that is searched in ``METHOD /path``, or ``*``
        :param times: requests that meet it
        :param after: matching requests that pass first
        :param options: of that kind; ``processed=True`` processes the request before the fault
        """
        if kind not in KINDS:
            raise ValueError(f"no fault kind {kind}")
        pattern = "" if path == "*" else re.compile(path).pattern
        with self.lock:
            self.faults.append({"kind": kind, "path": pattern, "times": times, "after": after, **options})

    def calm(self) -> None:
        """Remove the queued faults and stop the random ones."""
        with self.lock:
            self.faults.clear()
            self.fault_rate = 0

    def take_fault(self, method: str, path: str) -> dict[str, Any] | None:
        """Return the fault that this request meets, if any."""
        with self.lock:
            for fault in self.faults:
                if re.search(fault["path"], f"{method} {path}"):
                    if fault["after"] > 0:
                        fault["after"] -= 1
                        continue
                    fault["times"] -= 1
                    if fault["times"] <= 0:
                        self.faults.remove(fault)
                    return fault
            if self.fault_rate and self.chance.random() < self.fault_rate:
                return _as_fault(self.chance.choice(self.fault_kinds))
        return None


def _as_fault(kind: str | dict[str, Any]) -> dict[str, Any]:
    return {"kind": kind} if isinstance(kind, str) else kind
