"""The session: puts the token on a request, and renews it when Onebox rejects it."""

from __future__ import annotations

import sys
from functools import cached_property
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase
from requests.hooks import default_hooks, dispatch_hook
from requests.utils import select_proxy

from airflow_provider_onebox.api.response import is_expired_token
from airflow_provider_onebox.api.token import Bearer, TokenSource
from airflow_provider_onebox.api.transport import Attempt, OneboxAdapter, read_body
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError

if TYPE_CHECKING:
    from typing import NoReturn

    from airflow_provider_onebox.api.settings import Settings


class OneboxAuth(AuthBase):
    """Marks requests to carry the token; the session asks for it when it sends them.

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
        """Mark a request to carry the token.

        :param request: the request, prepared.
        :return: the same request.
        :raises OneboxConfigError: if it goes to another origin than the connection's.
        """
        if origin_of(request.url or "") != self._origin:
            raise OneboxConfigError(f"This session carries a Onebox token and sends it to {self._origin} alone.")
        request.headers["Authorization"] = Bearer(self._tokens)
        return request


class OneboxSession(requests.Session):
    """A :class:`requests.Session` with the connection's timeout, TLS settings and proxies as defaults.

    Redirects are never followed and cookies never kept, so nothing that is sent reaches another host. A request
    that carries a token shows ``Bearer ***`` in its place.

    :param settings: the checked connection.
    :param adapter: another session's, to share its connections.
    """

    def __init__(self, settings: Settings, adapter: OneboxAdapter | None = None) -> None:
        super().__init__()
        self._settings = settings
        self.proxies = dict(settings.proxies)
        self.headers["Accept-Encoding"] = "gzip, deflate"
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # A proxy from the environment would carry the password of a plain-HTTP connection in the clear.
        self.trust_env = settings.base_url.startswith("https:")
        adapter = adapter or OneboxAdapter()
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A session of Onebox is not pickled, because it holds a login: get one from OneboxHook.get_conn() where it "
            "is needed."
        )

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 - signature of the base
        """Find no redirect to follow, wherever the response points.

        :param resp: the response.
        :return: always ``None``.
        """
        return

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """Merge the environment's settings with the connection's; the connection's proxies win.

        :param url: where the request goes.
        :param proxies: the request's own proxies, which win over all.
        :param stream: as for the base class.
        :param verify: likewise.
        :param cert: likewise.
        :return: the options to send the request with.
        """
        own = {**self.proxies, **(proxies or {})}
        options = super().merge_environment_settings(url, proxies, stream, verify, cert)
        if own and select_proxy(url, own):
            options["proxies"] = own
        return options

    def send(
        self, request: requests.PreparedRequest, *, attempt: Attempt | None = None, **kwargs: Any
    ) -> requests.Response:
        """Send a prepared request with the connection's timeout, TLS settings and proxies, and the current token.

        If Onebox rejects the token as expired, it is renewed and the request sent once more.

        :param request: the prepared request.
        :param attempt: where to note what becomes of it.
        :param kwargs: as for :meth:`requests.Session.send`; ``timeout`` in seconds.
        :return: the response.
        """
        if isinstance(request, requests.Request):
            return super().send(request, **kwargs)  # The base class says what is wrong.
        outer = sys.exc_info()[1]
        attempt = attempt or Attempt()
        attempt.is_sent = False
        try:
            options = self._options(request, kwargs)
            bearer = request.headers.get("Authorization")
            if not isinstance(bearer, Bearer):
                return super().send(_outgoing(request, attempt), **options)
            token = bearer.tokens.get()
            response = super().send(_outgoing(request, attempt, Bearer(bearer.tokens, token)), **options)
            if bearer.renew and _is_rejected(response, options):
                # It was rejected, so it has not been acted on, should the login fail now.
                attempt.is_sent = False
                bearer.tokens.reject(token)
                token = bearer.tokens.get()
                first, response = (
                    response,
                    super().send(_outgoing(request, attempt, Bearer(bearer.tokens, token)), **options),
                )
                response.history.append(first)
                if _is_rejected(response, options):
                    bearer.tokens.reject(token)
        except BaseException as error:  # noqa: BLE001 - raised below
            failure = strip_frames(error, outer)
        else:
            # The caller's hooks see what the caller gets.
            result: requests.Response = dispatch_hook("response", request.hooks, response, **options)  # type: ignore[no-untyped-call]
            return result
        raise failure

    def _options(self, request: requests.PreparedRequest, options: dict[str, Any]) -> dict[str, Any]:
        if "proxies" not in options:
            options = {**self.merge_environment_settings(request.url, {}, None, None, None), **options}
        if options.get("timeout") is None:
            options["timeout"] = self._settings.timeout
        # Requests lets REQUESTS_CA_BUNDLE win over a session's own setting; an explicit one must win over it.
        if self._settings.verify is not True:
            options["verify"] = self._settings.verify
        return options


def _outgoing(
    request: requests.PreparedRequest, attempt: Attempt, bearer: Bearer | None = None
) -> requests.PreparedRequest:
    """Copy a request with what belongs to this sending alone."""
    # Until our adapter says otherwise: of what another one does with it, nothing is known.
    attempt.is_sent = True
    request = request.copy()
    vars(request)["attempt"] = attempt
    if bearer:
        request.headers["Authorization"] = bearer
        request.hooks = default_hooks()
    return request


def _is_rejected(response: requests.Response, options: dict[str, Any]) -> bool:
    """Decide whether to renew the token and send the request again."""
    # Only a body that is held in memory can be sent twice; a stream under 200 is the caller's to read.
    if not isinstance(response.request.body, (bytes, str, type(None))):
        return False
    if response.status_code < 400 and options.get("stream"):
        return False
    return is_expired_token(response.status_code, read_body(response))


def strip_frames(error: BaseException, outer: BaseException | None) -> BaseException:
    """Take the frames from an error and from those that led to it: they hold requests as they are sent, with secrets.

    :param error: what was raised.
    :param outer: what the caller is just handling, which is the caller's own.
    :return: the same error.
    """
    if isinstance(error, OneboxError):
        # Its message says all.
        error.__context__ = error.__cause__ = None
    pending, seen = [error], {id(outer), id(None)}
    while pending:
        inner = pending.pop()
        if id(inner) not in seen:
            seen.add(id(inner))
            inner.__traceback__ = None
            pending += [inner.__cause__, inner.__context__]  # type: ignore[list-item]
    return error


def origin_of(url: str) -> str:
    """Return where a URL leads.

    :param url: the URL.
    :return: its scheme, host and port.
    :raises ValueError: if its port is invalid.
    """
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{parts.hostname}:{port}"
