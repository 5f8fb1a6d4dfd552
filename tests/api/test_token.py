"""The token: its life by its own claims, and one renewal for all who ask."""

from __future__ import annotations

import random
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import jwt
import pytest

from airflow_provider_onebox.api.token import EXPIRY_MARGIN, SecretBody, Token, TokenSource
from airflow_provider_onebox.exceptions import OneboxAuthError, OneboxUnavailableError

KEY = "k" * 32


def make(iat=1_000_000, life=900, **claims):
    """A token as Onebox issues them."""
    return jwt.encode({"sub": "55", "sid": "169", "iat": iat, "exp": iat + life, **claims}, KEY)


class Issuer:
    """Issues tokens on a clock that the test moves."""

    def __init__(self):
        self.now = 0.0
        self.issued = []
        self.error = None
        self.pause = 0.0

    def __call__(self, rejected):
        time.sleep(self.pause)
        self.issued.append(rejected)
        if self.error:
            raise self.error
        return Token.read(make(jti=str(len(self.issued))), now=self.now)

    def source(self, token=None):
        return TokenSource(self, token, clock=lambda: self.now)


def test_read():
    """What the claims say, counted from the arrival."""
    token = Token.read(make(), now=50.0)
    assert token.life == 900
    assert token.use_until == 50 + 900 - 60
    assert token.site_id == "169"
    assert token.expires_at == datetime.fromtimestamp(1_000_900, timezone.utc)
    assert token.value not in repr(token)


def test_documented_token():
    """The token of the API page, with its claims as text where they are."""
    value = (
        "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJvbmVjbG91ZC5jaXB0YWRyYXNvZnQubmV0Iiwic3ViIjoiNTUiLCJleHAi"
        "OjE1Nzg5ODU3ODAsIm5iZiI6MTU3ODk4NDg4MCwiaWF0IjoxNTc4OTg0ODgwLCJqdGkiOiJwYkpHSk5sXC9RVUppNEVLSFd1dFwvQk9cL0"
        "pneG9QZ2c3YlQ2UWZaNVAwT0swPSIsInNpZCI6IjE2OSJ9.W0R0qxWHU25sqeMObsLiFWT5WKkL-Oeae-yc4BlYZX8"
    )
    token = Token.read(value, now=0)
    assert (token.life, token.site_id) == (900, "169")
    assert token.expires_at.isoformat() == "2020-01-14T07:09:40+00:00"


@pytest.mark.parametrize("skew", [-3600, 0, 3600])
def test_wrong_clock_does_not_matter(skew):
    """A worker an hour off neither renews again and again nor uses a expired token."""
    issuer = Issuer()
    issuer.now = 5.0
    source = TokenSource(
        lambda rejected: Token.read(make(iat=int(time.time()) + skew), now=issuer.now), clock=lambda: issuer.now
    )
    first = source.get()
    issuer.now += 900 - EXPIRY_MARGIN - 1
    assert source.get() is first
    issuer.now += 2
    assert source.get() is not first


@pytest.mark.parametrize(
    ("age", "skew", "left"), [(0, 0, 900), (300, 0, 600), (300, -3600, 900), (300, 3600, -3000), (1000, 0, -100)]
)
def test_token_from_upstream(age, skew, left):
    """A token that may be old ends by the wall clock, and never later than its life from now."""
    token = Token.read(make(), now=0.0, wall=1_000_000 + age + skew)
    assert token.use_until == pytest.approx(left - EXPIRY_MARGIN)


def test_short_life_has_a_shorter_margin():
    """A token that lives less than two margins is used for half its life, not renewed at every call."""
    assert Token.read(make(life=10), now=0.0).use_until == 5


@pytest.mark.parametrize(
    "value",
    [
        "opaque-token-0123456789",
        "a.b.c",
        jwt.encode({"sub": "55"}, KEY),
        make(life=0),
        make(life=-5),
        make(life=366 * 24 * 3600 + 1),
        jwt.encode({"iat": "soon", "exp": None}, KEY),
        jwt.encode({"iat": 0, "exp": 1e300}, KEY),
        jwt.encode({"iat": [1], "exp": {}}, KEY),
    ],
)
def test_unreadable_token_is_used_until_rejected(value):
    """A token that says nothing of its end, or nonsense, is used until it is rejected."""
    token = Token.read(value, now=0.0)
    assert (token.value, token.use_until, token.life, token.expires_at) == (value, None, None, None)
    issuer = Issuer()
    source = issuer.source(Token.read(value, now=0.0))
    issuer.now = 1e9
    assert source.get().value == value
    source.reject(Token(value))
    assert source.get().value != value


@pytest.mark.parametrize("value", ["", "a b", "a\nb", "é", "x" * 20000])
def test_impossible_token(value):
    """What can't stand in a header is no token."""
    with pytest.raises(ValueError, match="bearer"):
        Token.read(value, now=0.0)


@pytest.mark.parametrize("claims", [{}, {"iat": None}, {"exp": "soon"}, {"iat": 5, "exp": 5}, {"iat": 0, "exp": 1e300}])
def test_token_without_an_end_keeps_its_site(claims):
    """A token that does not say how long it lives still says for which site it is."""
    token = Token.read(jwt.encode({"sub": "55", "sid": 169, **claims}, KEY), now=0.0)
    assert (token.site_id, token.life, token.use_until) == ("169", None, None)


def test_site_claim_of_another_kind():
    """A site claim that is no text or number is not believed."""
    assert Token.read(make(sid=[1]), now=0.0).site_id is None


def test_current():
    """An existing token can be looked at, and none is asked for."""
    issuer = Issuer()
    source = issuer.source()
    assert (source.current, issuer.issued) == (None, [])
    token = source.get()
    assert source.current is token
    assert len(issuer.issued) == 1


def test_margin():
    """A token is renewed before use once less than the margin is left, and not before."""
    issuer = Issuer()
    source = issuer.source()
    first = source.get()
    issuer.now = 900 - EXPIRY_MARGIN - 0.001
    assert source.get() is first
    issuer.now = 900 - EXPIRY_MARGIN
    assert source.get() is not first
    assert issuer.issued == [None, None]


@pytest.mark.parametrize("seed", range(5))
def test_one_login_for_all_threads(seed):
    """However many threads ask at once, Onebox is asked once; so too when the token is rejected."""
    issuer = Issuer()
    issuer.pause = 0.02
    source = issuer.source()
    order = random.Random(seed)  # noqa: S311 - no secret
    delays = [order.random() * 0.01 for _ in range(32)]

    def ask(delay, rejected=None):
        time.sleep(delay)
        if rejected:
            source.reject(rejected)
        return source.get()

    with ThreadPoolExecutor(32) as pool:
        first = set(pool.map(ask, delays))
        second = set(pool.map(lambda delay: ask(delay, *first), delays))
    assert len(first) == len(second) == 1
    assert issuer.issued == [None, *first]


def test_waiting_threads_share_a_failure():
    """Threads that waited for an attempt do not try again one after the other."""
    issuer = Issuer()
    issuer.pause = 0.2
    issuer.error = OneboxUnavailableError("down")
    source = issuer.source()
    gate = threading.Barrier(8)

    def ask(_):
        gate.wait()
        with pytest.raises(OneboxUnavailableError):
            source.get()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert len(issuer.issued) == 1
    issuer.error = None
    assert source.get().value


def test_rejected_credentials_are_not_tried_again():
    """A locked account helps nobody; each raise is a fresh error, with a traceback that does not grow."""
    issuer = Issuer()
    issuer.error = OneboxAuthError("no", status=401, code="401")
    source = issuer.source()
    errors = []
    for _ in range(4):
        with pytest.raises(OneboxAuthError, match="no") as caught:
            source.get()
        errors.append(caught.value)
    assert len(issuer.issued) == 1
    assert len({id(error) for error in errors}) == 4
    assert {(error.status, error.code) for error in errors} == {(401, "401")}
    assert len({len(traceback.extract_tb(error.__traceback__)) for error in errors[1:]}) == 1
    assert source._failure.__traceback__ is None


def test_lock_after_fork():
    """A child does not wait for a thread that only its parent has."""
    issuer = Issuer()
    source = issuer.source()
    source._lock.acquire()
    source.after_fork()
    assert source.get().value


@pytest.mark.parametrize("life", [1, 900, 366 * 24 * 3600])
def test_life_within_bounds(life):
    """A token of one second has a life, and so has one of a leap year; one of none at all tells nothing."""
    assert Token.read(make(life=life), now=0.0).life == life
    assert Token.read(make(life=0), now=0.0).expires_at is None


def test_secret_body():
    """A body that holds a password does not show it, however it is printed; what is sent is whole."""
    body = SecretBody(b"password=open+sesame")
    for shown in (repr(body), str(body), f"{body}", repr((body,))):
        assert shown in ("***", "(***,)")
    assert bytes(body) == b"password=open+sesame"
