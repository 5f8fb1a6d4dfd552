"""The token: what it is, how long it lives, and who renews it.

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
from typing import TYPE_CHECKING

from airflow_provider_onebox.api.json import decode
from airflow_provider_onebox.exceptions import OneboxAuthError, OneboxError

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
        self._rejected: Token | None = None
        self._finished = 0
        self._failure: OneboxError | None = None

    @property
    def current(self) -> Token | None:
        """The last token, good or not; nothing is sent."""
        return self._token

    def reject(self, token: Token) -> None:
        """Note that Onebox has rejected a token, so that it is not handed out again.

        :param token: the token; one that has been replaced meanwhile changes nothing.
        """
        current = self._token
        if current and current.value == token.value:
            self._rejected = current

    def get(self) -> Token:
        """Return a token that is valid now.

        :return: the current token, or a new one.
        :raises OneboxError: if it can't get a new one; always a fresh one. Threads that waited for the same
            attempt get the same error, and rejected credentials are not tried again, so that the account is not locked.
        """
        token = self._token
        if token and self._is_usable(token):
            return token
        finished = self._finished
        with self._lock:
            token = self._token
            if token and self._is_usable(token):
                return token
            if self._failure and (finished != self._finished or isinstance(self._failure, OneboxAuthError)):
                # A copy has no traceback, which would grow with each raise and keep its frames alive.
                raise copy.copy(self._failure)
            # Also for those who wait, should this attempt end by what is no error of Onebox.
            self._failure = None
            try:
                self._token = self._issue(token if token is self._rejected else None)
            except OneboxError as error:
                self._failure = copy.copy(error)
                raise
            finally:
                self._finished += 1
            return self._token

    def _is_usable(self, token: Token) -> bool:
        return token is not self._rejected and (token.use_until is None or self._clock() < token.use_until)

    def after_fork(self) -> None:
        """Forget a lock that a thread of the parent may have held."""
        self._lock = threading.Lock()


class Bearer(str):
    """The value of an ``Authorization`` header: reads ``Bearer ***``; the connection alone sends the token.

    :param tokens: where the token comes from.
    :param token: the token to send; ``None`` before a request is sent.
    :param renew: whether a response that says so means that the token has expired.
    """

    tokens: TokenSource
    token: Token | None
    renew: bool

    def __new__(cls, tokens: TokenSource, token: Token | None = None, *, renew: bool = True) -> Bearer:  # noqa: D102
        self = super().__new__(cls, "Bearer ***")
        self.tokens, self.token, self.renew = tokens, token, renew
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


class SecretBody(bytes):
    """A body that holds a password: reads ``***`` wherever it is printed."""

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__
