"""Calls: URL, session, retries, reply to dictionary or error."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from base64 import b64encode
from functools import cached_property
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import requests
import tenacity
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ProxyError

from airflow_provider_onebox.auth import OneboxAuth, Token, TokenSource
from airflow_provider_onebox.exceptions import (
    OneboxConfigError,
    OneboxError,
    OneboxRequestError,
    OneboxResponseError,
    OneboxUnavailableError,
    OneboxUncertainWriteError,
    quote,
)
from airflow_provider_onebox.listing import OneboxLists
from airflow_provider_onebox.reply import read_reply
from airflow_provider_onebox.settings import is_plain_path
from airflow_provider_onebox.transport import OneboxSession, ReplyTooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_provider_onebox.settings import Settings

MAX_RETRY_AFTER = 30.0
"""Seconds that a server may ask to wait within a call; a longer wait ends the call."""

READS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that may be sent again whatever became of the first try."""

log = logging.getLogger(__name__)

_backoff = tenacity.wait_exponential_jitter(initial=1, max=MAX_RETRY_AFTER, jitter=1)
_clients: weakref.WeakSet[OneboxClient] = weakref.WeakSet()


class _PassingError(Exception):
    """A try failed in a way that a further try within the call may mend."""

    def __init__(self, error: OneboxError) -> None:
        self.error = error


class OneboxClient(OneboxLists):
    """Speaks to one site of one Onebox as one user. Safe to share between threads.

    :param settings: the checked connection.
    :param tokens: where tokens come from; by default the client signs in by itself.
    :param on_token: is told of every token as soon as it is there, before anything else can log it.
    :param pause: waits between tries: for that many seconds, or until the event says that nobody waits any more.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        tokens: TokenSource | None = None,
        on_token: Callable[[str], object] = str,
        pause: Callable[[threading.Event, float], Any] = threading.Event.wait,
    ) -> None:
        self.settings = settings
        self.tokens = tokens or TokenSource(lambda _: self.login())
        self._on_token = on_token
        self._pause = pause
        _clients.add(self)

    @cached_property
    def session(self) -> OneboxSession:
        """A session that signs in by itself, keeps connections alive, and speaks to this Onebox alone."""
        session = OneboxSession(self.settings)
        session.auth = OneboxAuth(self.tokens, self.settings.base_url)
        return session

    def after_fork(self) -> None:
        """Leave the parent's sockets and locks to the parent."""
        self.__dict__.pop("session", None)
        self.tokens.after_fork()

    def login(self) -> Token:
        """Sign in, whatever token there is already.

        API page: Authentication - Token, ``POST {host}/api/authenticate``.

        :return: the new token.
        :raises OneboxAuthError: if Onebox refuses the e-mail, the password or the site.
        :raises OneboxError: if there is no answer or one that makes no sense.
        """
        settings = self.settings
        form = {"email": settings.email, "password": settings.password, "siteId": settings.site_id}
        data = self._call("POST", "authenticate", login=True, data=form)
        value = data.get("token") if isinstance(data, dict) else None
        if not isinstance(value, str) or not value:
            raise OneboxResponseError(f"{self._name('POST', 'authenticate')}: {_instead_of_a_token(data)}", status=200)
        self._on_token(value)
        try:
            return Token.read(value, now=time.monotonic())
        except ValueError:
            raise OneboxResponseError(
                f"{self._name('POST', 'authenticate')}: the token in the reply has characters that no token has.",
                status=200,
            ) from None

    def url_for(self, endpoint: str) -> str:
        """Put an endpoint behind ``{host}/api/``.

        :param endpoint: a path such as ``ticketrz/12250``.
        :return: the whole URL.
        :raises OneboxConfigError: if the endpoint is absolute or leads elsewhere.
        """
        if not isinstance(endpoint, str) or not is_plain_path(endpoint):
            raise OneboxConfigError(
                f"Endpoint {quote(self.clean(str(endpoint)))!r} is not a path below "
                f"{self.settings.base_url}/api/: write it like 'ticketrz/12250', with no slash at either end, "
                "and give a query as params."
            )
        return f"{self.settings.base_url}/api/{endpoint}"

    def request(
        self,
        method: str,
        endpoint: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        data: Mapping[str, Any] | str | bytes | None = None,
        files: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call Onebox with the token and return what it says.

        Passing faults are retried; a write is sent again only if Onebox can't have acted on it.

        :param method: the HTTP method.
        :param endpoint: a path below ``{host}/api/``.
        :param params: the query.
        :param json: a body to send as JSON.
        :param data: a form, or a body as it stands.
        :param files: files to upload, as for :func:`requests.request`.
        :return: the parsed JSON.
        :raises OneboxError: the member of the family that fits.
        """
        return self._call(method.upper(), endpoint, params=params, json=json, data=data, files=files)

    def clean(self, words: str) -> str:
        """Take this client's secrets out of foreign words, in the forms in which they travel.

        :param words: what the server said.
        :return: the same with ``***`` for the password and the token.
        """
        token = self.tokens.current
        for secret in (self.settings.password, token.value if token else ""):
            for form in {secret, quote_plus(secret), b64encode(secret.encode()).decode()} - {""}:
                words = words.replace(form, "***")
        return words

    def _name(self, method: str, endpoint: str) -> str:
        return f"Connection {self.settings.conn_id!r}, site {self.settings.site_id}: {method} {endpoint}"

    def _call(
        self,
        method: str,
        endpoint: str,
        *,
        login: bool = False,
        abandoned: threading.Event | None = None,
        **body: Any,
    ) -> Any:
        name = self._name(method, endpoint)
        session = self.session
        url = self.url_for(endpoint)
        try:
            # An empty auth keeps the session's own away from the login.
            request = requests.Request(method, url, auth=(lambda r: r) if login else None, **body)
            prepared = session.prepare_request(request)
        except (requests.RequestException, ValueError, TypeError) as error:
            raise OneboxConfigError(f"{name}: the arguments can't be sent: {quote(self.clean(str(error)))}.") from None
        options = session.merge_environment_settings(prepared.url, {}, None, None, None)
        safe = login or method in READS
        abandoned = abandoned or threading.Event()

        def attempt() -> Any:
            if abandoned.is_set():
                raise OneboxUnavailableError(f"{name}: nobody waits for it any more.")
            error: OneboxError
            try:
                response = session.send(prepared, **options)
            except OSError as failure:
                error, arrived = self._no_answer(name, failure), not _never_connected(failure)
            else:
                try:
                    return read_reply(response, name, login=login, clean=self.clean)
                except OneboxError as refusal:
                    error, arrived = refusal, _may_have_acted(refusal)
            if arrived and not safe:
                raise self._uncertain(error) from None
            if isinstance(error, OneboxUnavailableError) and error.retryable:
                raise _PassingError(error) from None
            raise error

        return self._with_retries(attempt, abandoned)

    def _with_retries(self, attempt: Callable[[], Any], abandoned: threading.Event) -> Any:
        tries = self.settings.max_retries + 1

        def error_of(state: tenacity.RetryCallState) -> OneboxError:
            fault = state.outcome.exception() if state.outcome else None
            return fault.error if isinstance(fault, _PassingError) else OneboxError("")

        def wait(state: tenacity.RetryCallState) -> float:
            asked = error_of(state).retry_after
            return _backoff(state) if asked is None else asked

        def stop(state: tenacity.RetryCallState) -> bool:
            return state.attempt_number >= tries or (error_of(state).retry_after or 0) > MAX_RETRY_AFTER

        def report(state: tenacity.RetryCallState) -> None:
            log.warning(
                "%s. Trying again in %.1f s (%d of %d).",
                str(error_of(state)).rstrip("."),
                state.upcoming_sleep,
                state.attempt_number,
                tries - 1,
            )

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_PassingError),
            wait=wait,
            stop=stop,
            sleep=lambda seconds: self._pause(abandoned, seconds),
            before_sleep=report,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except _PassingError as fault:
            error = fault.error
            done = retrying.statistics["attempt_number"]
            advice = f"Given up after {done} of {tries} tries."
            if (error.retry_after or 0) > MAX_RETRY_AFTER:
                advice = f"It asks to wait {error.retry_after:.0f} s, so the call was not repeated; try again then."
            error.args = (f"{str(error).rstrip('.')}. {advice}",)
            raise error from None

    def _no_answer(self, name: str, failure: OSError) -> OneboxError:
        cause = _root(failure)
        words = quote(self.clean(getattr(cause, "strerror", None) or str(cause) or type(cause).__name__))
        if isinstance(failure, requests.exceptions.SSLError) and "certificate" in words.lower():
            return OneboxConfigError(
                f"{name}: the TLS certificate of {self.settings.base_url} is not trusted: {words}. If a proxy or "
                "Onebox uses a CA of its own, put the path of that CA's file into the connection's extra field "
                "'verify'."
            )
        if isinstance(failure, ReplyTooLargeError):
            return OneboxResponseError(f"{name}: {words}.", retryable=False)
        if isinstance(failure, ValueError) or not isinstance(failure, requests.RequestException):
            return OneboxConfigError(
                f"{name}: can't be sent: {words}. Check the connection's Onebox URL and its extra fields "
                "'verify' and 'proxies'."
            )
        if isinstance(failure, requests.Timeout) or isinstance(cause, TimeoutError):
            words = f"no answer within {self.settings.timeout:g} s (the connection's extra field 'timeout')"
        return OneboxUnavailableError(f"{name}: {self.settings.base_url} can't be reached or broke off: {words}.")

    @staticmethod
    def _uncertain(error: OneboxError) -> OneboxUncertainWriteError:
        return OneboxUncertainWriteError(
            f"{str(error).rstrip('.')}. {OneboxUncertainWriteError.remedy}.",
            status=error.status,
            code=error.code,
            server_message=error.server_message,
        )


def _may_have_acted(error: OneboxError) -> bool:
    """Tell whether Onebox may have done what it was asked to do when this was its answer."""
    if isinstance(error, OneboxResponseError):
        return (error.status or 0) < 300
    if isinstance(error, OneboxUnavailableError):
        # 429 is the one passing fault that says by itself that nothing was done.
        return error.status != 429
    return isinstance(error, OneboxRequestError) and error.retryable


def _never_connected(failure: OSError) -> bool:
    """Tell whether a request failed before a byte of it was sent."""
    reason = getattr(failure.args[0] if failure.args else None, "reason", None)
    if isinstance(reason, ProxyError):
        reason = reason.original_error
    return isinstance(failure, (requests.ConnectTimeout, ValueError)) or isinstance(
        reason, (NewConnectionError, ConnectTimeoutError)
    )


def _root(failure: BaseException) -> BaseException:
    """Find the error that started it: the libraries wrap it several times."""
    # Beyond the libraries' own errors may be one that the caller is just handling.
    while not getattr(failure, "strerror", None):
        inner = failure.__cause__ or failure.__context__
        if not isinstance(inner, (OSError, HTTPError, HTTPException)):
            break
        failure = inner
    return failure


def _instead_of_a_token(data: Any) -> str:
    sites = data.get("data") if isinstance(data, dict) else data
    if isinstance(sites, list) and sites and all(isinstance(site, dict) and "Id" in site for site in sites):
        listed = quote(", ".join(str(site["Id"]) for site in sites))
        return f"Onebox answered with the account's sites ({listed}) and no token: set Site ID to one of them."
    keys = quote(", ".join(map(str, data))) if isinstance(data, dict) else type(data).__name__
    return f"the reply holds no token (it holds: {keys or 'nothing'}): usually a wrong Onebox URL."


def _after_fork() -> None:
    for client in list(_clients):
        client.after_fork()


os.register_at_fork(after_in_child=_after_fork)
