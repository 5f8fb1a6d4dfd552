"""The token: its life by its own claims, and one renewal for all who ask."""

from __future__ import annotations

import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import jwt
import pytest
from support.wire import PATIENCE

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
    """What the claims say, counted from the arrival: a wrong clock on this machine does not matter."""
    token = Token.read(make(), now=50.0)
    assert (token.life, token.use_until, token.site_id) == (900, 50 + 900 - 60, "169")
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


@pytest.mark.parametrize(
    ("age", "skew", "left"), [(0, 0, 900), (300, 0, 600), (300, -3600, 900), (300, 3600, -3000), (1000, 0, -100)]
)
def test_token_from_upstream(age, skew, left):
    """A token that may be old ends by the wall clock, and never later than its life from now."""
    token = Token.read(make(), now=0.0, wall=1_000_000 + age + skew)
    assert token.use_until == pytest.approx(left - EXPIRY_MARGIN)


@pytest.mark.parametrize(("life", "use_until"), [(1, 0.5), (10, 5), (120, 60), (366 * 24 * 3600, 366 * 24 * 3600 - 60)])
def test_margin_of_a_life(life, use_until):
    """A token that lives less than two margins is used for half its life, not renewed at every call."""
    token = Token.read(make(life=life), now=0.0)
    assert (token.life, token.use_until) == (life, use_until)


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
    """A token that does not say when it expires, or says nonsense, is used until it is rejected."""
    token = Token.read(value, now=0.0)
    assert (token.value, token.use_until, token.life, token.expires_at) == (value, None, None, None)
    issuer = Issuer()
    issuer.now = 1e9
    source = issuer.source(token)
    assert source.get().value == value
    source.reject(Token(value))
    assert source.get().value != value


@pytest.mark.parametrize("value", ["", "a b", "a\nb", "é", "x" * 20000])
def test_impossible_token(value):
    """What a header can't hold is no token."""
    with pytest.raises(ValueError, match="bearer"):
        Token.read(value, now=0.0)


@pytest.mark.parametrize("claims", [{}, {"iat": None}, {"exp": "soon"}, {"iat": 5, "exp": 5}, {"iat": 0, "exp": 1e300}])
def test_token_without_an_end_keeps_its_site(claims):
    """A token that does not say how long it lives can still say for which site it is, as text or a number."""
    token = Token.read(jwt.encode({"sub": "55", "sid": 169, **claims}, KEY), now=0.0)
    assert (token.site_id, token.life, token.use_until) == ("169", None, None)
    assert Token.read(jwt.encode({"sid": [1], **claims}, KEY), now=0.0).site_id is None


def test_margin():
    """A token is renewed before use once less than the margin is left, and not before; looking at it renews nothing."""
    issuer = Issuer()
    source = issuer.source()
    assert (source.current, issuer.issued) == (None, [])
    first = source.get()
    issuer.now = 900 - EXPIRY_MARGIN - 0.001
    assert source.get() is source.current is first
    issuer.now = 900 - EXPIRY_MARGIN
    assert source.get() is not first
    assert issuer.issued == [None, None]


def test_one_login_for_all_threads():
    """However many threads ask at once, Onebox is asked once; so too when the token is rejected."""
    issuer = Issuer()
    issuer.pause = 0.02
    source = issuer.source()

    def renew(rejected):
        source.reject(rejected)
        return source.get()

    with ThreadPoolExecutor(32) as pool:
        first = set(pool.map(lambda _: source.get(), range(32)))
        second = set(pool.map(lambda _: renew(*first), range(32)))
    assert len(first) == len(second) == 1
    assert issuer.issued == [None, *first]


def test_waiting_threads_share_a_failure():
    """Threads that waited for an attempt do not try again one after the other."""
    looked, issued = threading.Semaphore(0), []

    def issue(rejected):
        issued.append(rejected)
        # Each looks at the clock before it waits, and this one again when it need not wait.
        for _ in range(8 + 1):
            assert looked.acquire(timeout=PATIENCE)
        time.sleep(0.1)
        raise OneboxUnavailableError("down")

    source = TokenSource(issue, Token("expired", use_until=0.0), clock=lambda: looked.release() or 1.0)

    def ask(_):
        with pytest.raises(OneboxUnavailableError):
            source.get()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert issued == [None]


def test_login_after_a_failure():
    """A failure that can pass does not last."""
    issuer = Issuer()
    issuer.error = OneboxUnavailableError("down")
    source = issuer.source()
    with pytest.raises(OneboxUnavailableError):
        source.get()
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


def test_secret_body():
    """A body that holds a password does not show it, however it is printed; what is sent is whole."""
    body = SecretBody(b"password=open+sesame")
    for shown in (repr(body), str(body), f"{body}", repr((body,))):
        assert shown in ("***", "(***,)")
    assert bytes(body) == b"password=open+sesame"
