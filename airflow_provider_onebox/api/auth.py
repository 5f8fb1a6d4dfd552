"""How the token gets onto a request, and what happens when Onebox rejects it."""

from __future__ import annotations

from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase

from airflow_provider_onebox.api.response import is_expired_token
from airflow_provider_onebox.api.token import Bearer, TokenSource
from airflow_provider_onebox.api.transport import read_body
from airflow_provider_onebox.exceptions import OneboxConfigError


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
