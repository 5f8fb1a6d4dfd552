"""Calls: URL, session, retries, response to dictionary or error."""

from __future__ import annotations

import logging
import os
import random
import re
import sys
import threading
import time
import weakref
from concurrent import futures
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import requests

from airflow_provider_onebox.api.auth import OneboxAuth, OneboxSession, strip_frames
from airflow_provider_onebox.api.listing import Listing
from airflow_provider_onebox.api.redaction import redact
from airflow_provider_onebox.api.response import error_from_failure, read_response, uncertain_write
from airflow_provider_onebox.api.settings import is_plain_path
from airflow_provider_onebox.api.token import SecretBody, Token, TokenSource
from airflow_provider_onebox.api.transport import (
    MAX_JSON_BYTES,
    MAX_LOGIN_BYTES,
    READS,
    AbandonedError,
    Attempt,
    OneboxAdapter,
)
from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxError,
    OneboxResponseError,
    OneboxUnavailableError,
    sanitize,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_provider_onebox.api.settings import Settings
    from airflow_provider_onebox.api.turns import Turns


MAX_RETRY_AFTER = 30.0
"""Seconds that a server may ask to wait within a call; a longer wait ends the call."""


# What a server repeats of a token or of the user of an address, known to the client or not.
_BY_SHAPE = re.compile(r"(?<=//)[^/@\s]+(?=@)|\beyJ[\w-]+(\.[\w-]*)*")


log = logging.getLogger(__name__)


_clients: weakref.WeakSet[OneboxClient] = weakref.WeakSet()


class OneboxClient:
    """Speaks to one site of one Onebox as one user. Safe to share between threads.

    :param settings: the checked connection.
    :param tokens: where tokens come from; by default the client logs in by itself.
    :param adapter: another client's, to share its connections.
    :param time_limit: seconds that a call may take in total, including the login; calls are then not retried.
    :param pause: waits between tries: for that many seconds, or until the event says that nobody waits any longer.
    :param count: counts a login, a retry, or a write by its result, for metrics: ``logins``, ``retries``,
        ``writes.done``, ``writes.rejected`` (nothing was written) and ``writes.uncertain``. It must not raise anything.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        tokens: TokenSource | None = None,
        adapter: OneboxAdapter | None = None,
        time_limit: float | None = None,
        pause: Callable[[threading.Event, float], Any] = threading.Event.wait,
        count: Callable[[str], Any] = lambda _: None,
    ) -> None:
        if time_limit is not None:
            # A login and a call without a response both end within the limit, with an error that says which it was.
            settings = replace(settings, max_retries=0, timeout=min(settings.timeout, time_limit * 0.4))
        self.settings = settings
        self.tokens = tokens or TokenSource(lambda _: self.login())
        self._adapter = adapter or OneboxAdapter()
        self._time_limit = time_limit
        self._pause = pause
        self._count = count
        self.lists = Listing(self._call, self._name, settings)
        #: When the calls of :meth:`request` start; at once if ``None``.
        self.turns: Turns | None = None
        _clients.add(self)

    def with_token(self, token: Token) -> OneboxClient:
        """Make a client that begins with an upstream token, and shares connections and logins with this one.

        :param token: the token to begin with.
        :return: the client.
        """

        def issue(rejected: Token | None) -> Token:
            if rejected is token:
                log.info(
                    "Connection %r, site %s: Onebox rejected the upstream token; logging in instead.",
                    self.settings.conn_id,
                    self.settings.site_id,
                )
            if rejected:
                self.tokens.reject(rejected)
            return self.tokens.get()

        return OneboxClient(
            self.settings,
            tokens=TokenSource(issue, token),
            adapter=self._adapter,
            time_limit=self._time_limit,
            pause=self._pause,
            count=self._count,
        )

    @cached_property
    def session(self) -> OneboxSession:
        """A session that logs in by itself, keeps connections alive, and speaks to this Onebox alone."""
        session = OneboxSession(self.settings, self._adapter)
        session.auth = OneboxAuth(self.tokens, self.settings.base_url)
        return session

    def close(self) -> None:
        """Close the connections that are open."""
        self._adapter.close()

    def after_fork(self) -> None:
        """Leave the parent's sockets and locks to the parent."""
        self.__dict__.pop("session", None)
        self._adapter.after_fork()
        self.tokens.after_fork()

    def login(self) -> Token:
        """Log in, even if there is a valid token.

        API page: Authentication - Token, ``POST {host}/api/authenticate``.

        :return: the new token.
        :raises OneboxAuthError: if Onebox rejects the e-mail, the password or the site.
        :raises OneboxError: if there is no response or one that makes no sense.
        """
        try:
            token = _token_in(self._call("POST", "authenticate", login=True))
        except OneboxAuthError as error:
            error.args = (f"{error} {self.settings.password_problems}".rstrip(),)
            raise
        if not isinstance(token, Token):
            raise OneboxResponseError(f"{self._name('POST', 'authenticate')}: {self.redact(token)}", status=200)
        self._count("logins")
        return token

    def url_for(self, endpoint: str) -> str:
        """Put an endpoint behind ``{host}/api/``.

        :param endpoint: a path such as ``ticketrz/12250``.
        :return: the whole URL.
        :raises OneboxConfigError: if the endpoint is absolute or leads elsewhere.
        """
        if not isinstance(endpoint, str) or not is_plain_path(endpoint):
            raise OneboxConfigError(
                f"Endpoint {sanitize(self.redact(str(endpoint)))!r} is not a path below "
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
        """Call Onebox with the token and return the response.

        Transient errors are retried; a write is sent again only if Onebox can't have acted on it.

        :param method: the HTTP method.
        :param endpoint: a path below ``{host}/api/``.
        :param params: the query.
        :param json: a body to send as JSON.
        :param data: a form, or a raw body; a file has to be read first.
        :param files: files to upload, as for :func:`requests.request`.
        :return: the parsed JSON.
        :raises OneboxError: the subclass that fits what went wrong. A write that anything interrupts once it is being
            sent, a timeout of the task included, is a ``OneboxUncertainWriteError``.
        """
        if not isinstance(method, str) or not re.fullmatch("[A-Za-z]+", method):
            raise OneboxConfigError(f"method={sanitize(method)!r} is not an HTTP method such as 'GET'.")
        method = method.upper()
        body = {"params": params, "json": json, "data": data, "files": files}
        try:
            if self.turns:
                response = self.turns.take(partial(self._call, method, endpoint, **body))
            else:
                response = self._call(method, endpoint, **body)
        except OneboxError as error:
            if method not in READS:
                self._count("writes.uncertain" if error.uncertain else "writes.rejected")
            raise
        if method not in READS:
            self._count("writes.done")
        return response

    def redact(self, text: str) -> str:
        """Take this client's secrets out of a text that others wrote, in the forms in which they travel.

        :param text: a message of a server or a library.
        :return: the same with ``***`` for passwords and tokens.
        """
        token = self.tokens.current
        return _BY_SHAPE.sub("***", redact(text, [*self.settings.secrets, *([token.value] if token else [])]))

    def _name(self, method: str, endpoint: str) -> str:
        return f"Connection {self.settings.conn_id!r}, site {self.settings.site_id}: {method} {endpoint}"

    def _call(
        self,
        method: str,
        endpoint: str,
        *,
        login: bool = False,
        abandoned: threading.Event | None = None,
        on_transient: Callable[[OneboxError], Mapping[str, Any] | None] | None = None,
        attempt: Attempt | None = None,
        **body: Any,
    ) -> Any:
        """Make a call with its retries; return its JSON or raise its error."""
        if attempt is None:
            attempt = Attempt(MAX_LOGIN_BYTES if login else MAX_JSON_BYTES, abandoned)
            if self._time_limit is not None:
                return self._within(self._time_limit, attempt, method, endpoint, login, body)
        outer, number = sys.exc_info()[1], 0
        while True:
            number += 1
            attempt.is_sent = False
            try:
                if attempt.abandoned.is_set():
                    raise AbandonedError
                prepared = self._prepare(method, endpoint, login, body)
                # Until the session says otherwise: where another one takes its place, nothing is known.
                attempt.is_sent = True
                response = self.session.send(prepared, attempt=attempt)
                outcome = self._read(response, self._name(method, endpoint), login)
                if not isinstance(outcome, OneboxError):
                    return outcome
            except OneboxError as failure:
                # An invalid argument, or the error of the login, which has had its own retries.
                error = strip_frames(failure, outer)
                break
            except BaseException as failure:  # noqa: BLE001 - raised below, in one form or another
                outcome = strip_frames(failure, outer)
            error = self._judge(outcome, method, endpoint, login, attempt)
            if not isinstance(error, OneboxUnavailableError) or not error.retryable:
                break
            wait = error.retry_after
            if wait is None:
                wait = min(MAX_RETRY_AFTER, 2.0 ** min(number - 1, 9) + random.random())  # noqa: S311 - no secret
            text = str(error).rstrip(".")
            if wait > MAX_RETRY_AFTER:
                error.args = (f"{text}. It asks to wait {wait:.0f} s, so the call was not retried; try again then.",)
                break
            if number > self.settings.max_retries:
                error.args = (f"{text}. That was try {number} of {number}.",)
                break
            log.warning("%s. Retrying in %.1f s (%d of %d).", text, wait, number, self.settings.max_retries)
            error.retry_after = wait
            self._count("retries")
            params = on_transient(error) if on_transient else None
            if params is not None:
                body["params"] = params
            self._pause(attempt.abandoned, wait)
        # Outside of the handlers: the frames of the libraries hold passwords, and errors hold frames.
        raise error

    def _judge(
        self, failure: BaseException, method: str, endpoint: str, login: bool, attempt: Attempt
    ) -> BaseException:
        """Return the error to raise for a failed call: of a write that may have been done, it says so."""
        name, is_write = self._name(method, endpoint), method not in READS and not login
        if isinstance(failure, OneboxError):
            error = failure
        elif isinstance(failure, Exception):
            error = error_from_failure(failure, name, self.settings, self.redact, attempt)
        elif is_write and attempt.is_sent:
            # Such as a timeout of the task, after which Airflow would run it again.
            reason = sanitize(self.redact(str(failure))) or type(failure).__name__
            error = OneboxUnavailableError(f"{name}: interrupted before the response: {reason}", uncertain=True)
        else:
            return failure
        if login:
            error.uncertain = False
        return uncertain_write(error) if is_write and error.uncertain else error

    def _within(
        self, seconds: float, attempt: Attempt, method: str, endpoint: str, login: bool, body: dict[str, Any]
    ) -> Any:
        """Make a call in a separate thread: nothing else ends a look-up of a name, for example."""
        future: futures.Future[Any] = futures.Future()

        def run() -> None:
            try:
                future.set_result(self._call(method, endpoint, login=login, attempt=attempt, **body))
            except BaseException as error:  # noqa: BLE001 - for the caller's thread to raise
                future.set_exception(error)

        threading.Thread(target=run, name="onebox-call", daemon=True).start()
        failure: BaseException
        try:
            if futures.wait([future], seconds).done:
                return future.result()
            failure = OneboxUnavailableError(
                f"{self._name(method, endpoint)}: no response within the {seconds:g} s that the call may take."
            )
        except OneboxError:
            raise
        except BaseException as interruption:  # noqa: BLE001 - raised below
            failure = interruption
        # In this order: a request that is not sent by now never is.
        attempt.abandoned.set()
        if isinstance(failure, OneboxError):
            failure.uncertain = attempt.is_sent
        raise self._judge(failure, method, endpoint, login, attempt)

    def _prepare(self, method: str, endpoint: str, login: bool, body: dict[str, Any]) -> requests.PreparedRequest:
        url, session = self.url_for(endpoint), self.session
        body = {"headers": session.headers, "auth": session.auth, **body}
        if login:
            settings = self.settings
            form = {"email": settings.email, "password": settings.password, "siteId": settings.site_id}
            # An auth that adds nothing, for None would be looked for in the URL.
            body |= {
                "auth": lambda request: request,
                "data": SecretBody(urlencode(form).encode()),
                "headers": {**session.headers, "Content-Type": "application/x-www-form-urlencoded"},
            }
        try:
            # Half of what the session itself takes, which also merges cookies, parameters and hooks that it has not.
            prepared = requests.PreparedRequest()
            prepared.prepare(method, url, **body)
        except (requests.RequestException, ValueError, TypeError) as failure:
            problem = sanitize(self.redact(str(failure)))
        else:
            if isinstance(prepared.body, (bytes, str, type(None))):
                return prepared
            problem = "the body is a file or an iterator, which can't be sent again: read it, and pass what it holds"
        raise OneboxConfigError(f"{self._name(method, endpoint)}: the arguments can't be sent: {problem}.")

    def _read(self, response: requests.Response, name: str, login: bool) -> Any:
        return read_response(response, name, login=login, redact=self.redact)


def _token_in(response: Any) -> Token | str:
    """Read the token of a login, or say what was sent instead."""
    value = response.get("token") if isinstance(response, dict) else None
    if not isinstance(value, str) or not value:
        return _instead_of_a_token(response)
    try:
        return Token.read(value, now=time.monotonic())
    except ValueError:
        return "the token in the response has characters that no token has."


def _instead_of_a_token(data: Any) -> str:
    sites = data.get("data") if isinstance(data, dict) else data
    if isinstance(sites, list) and sites and all(isinstance(site, dict) and "Id" in site for site in sites):
        listed = sanitize(", ".join(str(site["Id"]) for site in sites))
        return f"Onebox returned the account's sites ({listed}) and no token: set Site ID to one of them."
    keys = sanitize(", ".join(map(str, data))) if isinstance(data, dict) else type(data).__name__
    return f"the response holds no token (it holds: {keys or 'nothing'}): usually a wrong Onebox URL."


def _after_fork() -> None:
    for client in list(_clients):
        client.after_fork()


os.register_at_fork(after_in_child=_after_fork)
