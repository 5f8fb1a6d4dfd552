"""The token: what it is, how long it lives, who renews it, and how it gets onto a request.

API page: https://cloud.onebox.co.id/api/authenticate (Authentication - Token).
"""

from __future__ import annotations

import copy
import re
import threading
import time
from base64 import urlsafe_b64decode
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase

from airflow_provider_onebox.exceptions import OneboxAuthError, OneboxConfigError, OneboxError
from airflow_provider_onebox.outcome import decode, is_expired_token
from airflow_provider_onebox.transport import Bearer, read_body

if TYPE_CHECKING:
    from collections.abc import Callable

EXPIRY_MARGIN = 60.0
"""Seconds before it expires at which a token is no longer used; half its life for one that lives shorter."""

MAX_LIFE = 366 * 24 * 3600
_TOKEN = re.compile(r"[\x21-\x7e]{1,16384}")


@dataclass(frozen=True)
class Token:
    """A bearer token and what its claims say. They are read, not verified: only Onebox has the secret.

    :param value: the token itself.
    :param expires_at: when it expires by Onebox's clock, ``None`` if it does not say.
    :param site_id: the site that it is for, ``None`` if it does not say.
    :param use_until: when this process stops using it, on its monotonic clock, ``None`` for never.
    :param life: seconds that it lives, ``None`` if it does not say.
    """

    value: str = field(repr=False)
    expires_at: datetime | None = None
    site_id: str | None = None
    use_until: float | None = None
    life: float | None = None

    @classmethod
    def read(cls, value: str, *, now: float, wall: float | None = None) -> Token:
        """Read a token that has just arrived.

        Its life is ``exp - iat`` counted from ``now``, so a wrong clock on this machine does no harm.

        :param value: the token.
        :param now: the monotonic time of its arrival, in seconds.
        :param wall: this machine's wall clock, in seconds, for a token that arrived from another task and
            may be old; its life then ends no later than ``exp``.
        :return: the token with what is known of it.
        :raises ValueError: if it can't be a bearer token at all.
        """
        if not _TOKEN.fullmatch(value):
            raise ValueError("not a bearer token")
        try:
            _, claims, _ = value.split(".")
            claims = decode(urlsafe_b64decode(claims + "=="))
            site_id = claims.get("sid")
        except (AttributeError, ValueError):
            return cls(value)
        site_id = str(site_id) if isinstance(site_id, (str, int)) else None
        try:
            issued, expires = float(claims["iat"]), float(claims["exp"])
            expires_at = datetime.fromtimestamp(expires, timezone.utc)
        except (KeyError, TypeError, ValueError, OverflowError, OSError):
            return cls(value, site_id=site_id)
        life = expires - issued
        if not 0 < life <= MAX_LIFE:
            return cls(value, site_id=site_id)
        left = life if wall is None else min(life, expires - wall)
        return cls(
            value,
            expires_at=expires_at,
            site_id=site_id,
            use_until=now + left - min(EXPIRY_MARGIN, life / 2),
            life=life,
        )


class TokenSource:
    """Hands out a token that is valid now; one renewal at a time, however many threads ask.

    :param issue: gets a new token; its argument is the token that was rejected, if any.
    :param token: one to start with.
    :param clock: the monotonic clock, in seconds.
    """

    def __init__(
        self,
        issue: Callable[[Token | None], Token],
        token: Token | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issue = issue
        self._token = token
        self._clock = clock
        self._lock = threading.Lock()
        self._finished = 0
        self._failure: OneboxError | None = None

    @property
    def current(self) -> Token | None:
        """The token that is there, good or not; nothing is asked for."""
        return self._token

    def get(self, rejected: Token | None = None) -> Token:
        """Return a token that is valid now.

        :param rejected: a token that Onebox has rejected; it is not returned again.
        :return: the current token, or a new one.
        :raises OneboxError: if it can't get a new one; always a fresh one. Threads that waited for the same
            attempt get the same error, and rejected credentials are not tried again, lest the account get locked.
        """
        token = self._token
        if token and self._is_usable(token, rejected):
            return token
        finished = self._finished
        with self._lock:
            token = self._token
            if token and self._is_usable(token, rejected):
                return token
            if self._failure and (finished != self._finished or isinstance(self._failure, OneboxAuthError)):
                # A copy has no traceback, which would grow with each raise and keep its frames alive.
                raise copy.copy(self._failure)
            try:
                self._token = self._issue(rejected)
                self._failure = None
            except OneboxError as error:
                self._failure = copy.copy(error)
                raise
            finally:
                self._finished += 1
            return self._token

    def _is_usable(self, token: Token, rejected: Token | None) -> bool:
        is_rejected = rejected is not None and token.value == rejected.value
        return not is_rejected and (token.use_until is None or self._clock() < token.use_until)

    def after_fork(self) -> None:
        """Forget a lock that a thread of the parent may have held."""
        self._lock = threading.Lock()


class OneboxAuth(AuthBase):
    """Marks requests to carry the token; answers an expired token's 401 with one renewal and one replay.

    :param tokens: where tokens come from.
    :param base_url: the only origin that a token is sent to.
    """

    def __init__(self, tokens: TokenSource, base_url: str) -> None:
        self._tokens = tokens
        self._base_url = base_url

    @cached_property
    def _origin(self) -> str:
        # Requests turns a name such as münchen.example into ASCII; both have to be compared in one form.
        return origin_of(requests.Request("GET", self._base_url).prepare().url or "")

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Mark a request to carry the token; the session asks for it when the request is sent.

        :param request: the request, prepared.
        :return: the same request.
        :raises OneboxConfigError: if it goes to another origin than the connection's.
        """
        if origin_of(request.url or "") != self._origin:
            raise OneboxConfigError(f"This session carries a Onebox token and sends it to {self._origin} alone.")
        request.headers["Authorization"] = Bearer(self._tokens)
        request.hooks["response"].append(self._replay)
        return request

    def _replay(self, response: requests.Response, **kwargs: Any) -> requests.Response:
        request = response.request
        bearer = request.headers.get("Authorization")
        # Only a body that is held in memory can be sent twice; a stream under 200 is the caller's to read.
        if not isinstance(bearer, Bearer) or not isinstance(request.body, (bytes, str, type(None))):
            return response
        if response.status_code < 400 and kwargs.get("stream"):
            return response
        if not is_expired_token(response.status_code, read_body(response)):
            return response
        request = request.copy()
        request.headers["Authorization"] = Bearer(self._tokens, self._tokens.get(bearer.token))
        response.close()
        replayed: requests.Response = response.connection.send(request, **kwargs)
        replayed.history.append(response)
        replayed.request = request
        return replayed


def origin_of(url: str) -> str:
    """Tell where a URL leads.

    :param url: the URL.
    :return: its scheme, host and port.
    :raises ValueError: if its port is invalid.
    """
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{parts.hostname}:{port}"
