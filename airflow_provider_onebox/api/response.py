"""What became of a call: a response or a failure in, its JSON or the right error out.

Onebox can send its rejections under any HTTP status, 200 included, and in three forms: the envelope with
``_meta.status == "ERROR"``, a ``response_code`` that is not 2xx, and ``{"error": "<words>"}``.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import requests
from urllib3.exceptions import ProxyError
from urllib3.exceptions import TimeoutError as Urllib3TimeoutError

from airflow_provider_onebox.api.transport import MAX_RESPONSE_TIMEOUTS, ResponseTooLargeError, exchange
from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxError,
    OneboxRequestError,
    OneboxResponseError,
    OneboxServiceHoursError,
    OneboxUnavailableError,
    OneboxUncertainWriteError,
    sanitize,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_onebox.api.settings import Settings
from airflow_provider_onebox.api.json import decode

TRANSIENT = frozenset({429, 502, 503, 504})
"""Statuses of transient errors: a retry of the same call can get an answer."""


_HEAD = 4096


_SERVICE_HOURS = re.compile(r"\btime limit reached\b", re.IGNORECASE)


_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)


LOGIN_PAGE = re.compile(r"/login/?([?#]|$)", re.IGNORECASE)


_TUNNEL = re.compile("Tunnel connection failed: ([0-9]{3})")


_NOT_JSON = object()


@dataclass(frozen=True)
class Rejection:
    """What Onebox says when it rejects a call.

    :param status: what it amounts to as an HTTP status, wherever it stood.
    :param code: Onebox's own code as text, ``None`` if there is none.
    :param message: Onebox's words as they came.
    :param concerns_token: whether it is of a form that is used for expired tokens.
    """

    status: int
    code: str | None
    message: str
    concerns_token: bool = True

    @property
    def is_outside_service_hours(self) -> bool:
        """Whether this is the quota's 401, for which a new token does not help."""
        return bool(_SERVICE_HOURS.search(self.message))

    @property
    def is_expired_token(self) -> bool:
        """Whether a new token can help."""
        return self.status == 401 and self.concerns_token and not self.is_outside_service_hours


def is_expired_token(status: int, body: bytes) -> bool:
    """Tell whether a response says that the token has expired, so that a new one can help.

    :param status: the HTTP status.
    :param body: the body.
    :return: ``True`` for a rejection with code 401 that is not the quota's, and for a 401 that is no rejection of
        a known form.
    """
    head = body[:_HEAD]
    # Pages of records are large, and are parsed later anyway.
    if status < 400 and b'"_meta"' not in head and b'"response_code"' not in head:
        return False
    rejection = rejection_in(status, _json(body))
    return rejection.is_expired_token if rejection else status == 401


def rejection_in(status: int, data: Any) -> Rejection | None:
    """Find a rejection in the JSON of a response.

    :param status: the HTTP status that it came with.
    :param data: the parsed JSON.
    :return: the rejection, or ``None`` if there is none.
    """
    if not isinstance(data, dict):
        return None
    meta = data.get("_meta")
    if isinstance(meta, dict) and meta.get("status") == "ERROR":
        records = data.get("records")
        records = records if isinstance(records, dict) else {}
        message = records.get("userMessage") or records.get("devMessage") or ""
        return _rejection(status, records.get("errorCode"), message)
    code = data.get("response_code")
    if code is not None and not re.fullmatch("2[0-9]{2}", str(code)):
        message = next((data[k] for k in ("userMessage", "message", "error", "response_status") if data.get(k)), "")
        return _rejection(status, code, message)
    if set(data) == {"error"}:
        # It says nothing about the token, whatever the status.
        return Rejection(status, None, str(data["error"] or ""), concerns_token=False)
    return None


def _rejection(status: int, code: Any, message: Any) -> Rejection:
    # The code counts before the status: "Expired token" can come under 400, 403 and 500.
    known = not isinstance(code, bool) and re.fullmatch("[45][0-9]{2}", str(code))
    return Rejection(int(code) if known else status, None if code is None else sanitize(code), str(message))


def _json(body: bytes) -> Any:
    try:
        return decode(body)
    except ValueError:
        return _NOT_JSON


def read_response(response: requests.Response, call: str, *, login: bool, redact: Callable[[str], str]) -> Any:
    """Turn a response into its JSON, or into the error that tells what went wrong.

    The error is returned and not raised: the frames of this module hold what Onebox sent, a token perhaps.

    :param response: the response, its body read.
    :param call: who asked for what, to begin messages with: ``"Connection 'x': GET ticketrz"``.
    :param login: whether the call was the login, where every rejection concerns the account.
    :param redact: takes secrets out of the server's words before they are shown.
    :return: the parsed JSON, an empty dictionary for a response that has no body by design; or a
        :class:`~airflow_provider_onebox.exceptions.OneboxError`.
    """
    status, body = response.status_code, response.content or b""
    is_success = 200 <= status < 300
    if is_success and not body and (status == 204 or response.request.method == "HEAD"):
        return {}
    data = _json(body)
    rejection = rejection_in(status, data)
    if rejection:
        return _rejected(rejection, response, call, login=login, redact=redact)
    if is_success and data is not _NOT_JSON:
        return data
    return _error_without_envelope(response, data is not _NOT_JSON, call, login=login, redact=redact)


def _rejected(
    rejection: Rejection, response: requests.Response, call: str, *, login: bool, redact: Callable[[str], str]
) -> OneboxError:
    words = sanitize(redact(rejection.message)) or "no reason given"
    status = rejection.status
    details: dict[str, Any] = {
        "status": response.status_code,
        "code": rejection.code,
        "server_message": words,
        "retry_after": retry_after(response),
        "uncertain": status >= 500,
    }
    if rejection.is_outside_service_hours:
        return OneboxServiceHoursError(
            f"{call}: Onebox answers this account only within certain hours: {words!r}. "
            "The password and the token are fine; run the task within those hours.",
            **{**details, "uncertain": False},
        )
    if status in TRANSIENT:
        return OneboxUnavailableError(f"{call}: Onebox is not available ({status}): {words!r}", **details)
    if login and status < 500:
        return OneboxAuthError(
            f"{call}: Onebox rejected the login: {words!r}. Check Email, Password and Site ID of the connection. "
            "The login is not retried, so that the account does not get locked.",
            **details,
        )
    if rejection.is_expired_token:
        return OneboxAuthError(f"{call}: Onebox rejected a token that it had just given: {words!r}.", **details)
    return OneboxRequestError(
        f"{call}: Onebox rejected the call ({rejection.code or status}): {words!r}.", retryable=status >= 500, **details
    )


def _error_without_envelope(
    response: requests.Response, is_json: bool, call: str, *, login: bool, redact: Callable[[str], str]
) -> OneboxError:
    status = response.status_code
    details: dict[str, Any] = {"status": status, "retry_after": retry_after(response)}
    details["uncertain"] = not 300 <= status < 500
    if 300 <= status < 400:
        target = response.headers.get("Location", "")
        hint = "Onebox moved: enter the new address as Onebox URL"
        if LOGIN_PAGE.search(target):
            hint = "that is its login page: the base path in the connection's Onebox URL is usually wrong then"
        place = sanitize(redact(target)) or "nowhere"
        return OneboxResponseError(
            f"{call}: redirected ({status}) to {place!r}, which is not followed. {hint}.",
            retryable=False,
            **details,
        )
    what, hint = _describe(response, is_json, login=login, redact=redact)
    if status == 407:
        return OneboxConfigError(
            f"{call}: the proxy {exchange.proxy} rejected its user or password (407), with {what}. Check the "
            "connection's extra field 'proxies'.",
            **details,
        )
    if status in TRANSIENT:
        return OneboxUnavailableError(f"{call}: not available ({status}), with {what}", **details)
    if status == 401 or (login and status == 403):
        return OneboxAuthError(f"{call}: Onebox rejected the call ({status}), with {what}.", **details)
    if status >= 400:
        return OneboxRequestError(
            f"{call}: rejected with status {status} and {what}{hint}.", retryable=status >= 500, **details
        )
    return OneboxResponseError(f"{call}: answered {status} with {what}{hint}.", **details)


def _describe(
    response: requests.Response, is_json: bool, *, login: bool, redact: Callable[[str], str]
) -> tuple[str, str]:
    """Say what a body is, and what that usually means."""
    body = response.content or b""
    content_type = sanitize(redact(response.headers.get("Content-Type") or "no content type"), 60)
    text = redact(body[:_HEAD].decode("utf-8", "replace"))
    if not body:
        return "an empty body", ": usually an error on the way or in Onebox; try again"
    if is_json:
        return f"the JSON {sanitize(text)!r}", ""
    if body.lstrip()[:1] == b"<":
        title = _TITLE.search(text)
        what = f"an HTML page titled {sanitize(title[1])!r}" if title else f"a page ({content_type})"
        return what, ": usually a wrong Onebox URL, a proxy's own page, or maintenance"
    # What begins like the response to a login may go on with half a token.
    start = "" if login else f" and begin with {sanitize(text, 80)!r}"
    what = f"{len(body)} bytes of {content_type} that are not whole JSON{start}"
    return what, ": usually a response that was cut off on the way; try again"


def error_from_failure(failure: Exception, call: str, settings: Settings, redact: Callable[[str], str]) -> OneboxError:
    """Turn the failure of a request into the error that tells what went wrong.

    What is known of the request itself stands in :data:`~airflow_provider_onebox.api.transport.exchange`.

    :param failure: what the libraries raised.
    :param call: who asked for what, to begin messages with.
    :param settings: the connection.
    :param redact: takes secrets out of foreign words before they are shown.
    :return: the error.
    """
    chain = _chain(failure)
    words = sanitize(redact(getattr(chain[-1], "strerror", None) or str(chain[-1]) or type(chain[-1]).__name__))
    details: dict[str, Any] = {"uncertain": exchange.is_sent}
    where = settings.base_url + (f" (through the proxy {exchange.proxy})" if exchange.proxy else "")
    if exchange.proxy and any(isinstance(error, ProxyError) for error in chain):
        where = f"the proxy {exchange.proxy}"
    if re.search("certificate verify failed|doesn't match", words):
        return OneboxConfigError(
            f"{call}: the TLS certificate of {where} is not trusted: {words}. If a proxy or "
            "Onebox uses a CA of its own, put the path of that CA's file into the connection's extra field "
            "'verify'.",
            **details,
        )
    tunnel = _TUNNEL.match(words)
    if tunnel and tunnel[1] not in ("408", "429") and tunnel[1] < "500":
        hint = "its user or password" if tunnel[1] == "407" else "the way to Onebox"
        return OneboxConfigError(
            f"{call}: the proxy {exchange.proxy} rejected {hint}: {words}. Check the connection's extra field "
            "'proxies', or the environment's HTTPS_PROXY and NO_PROXY.",
            **details,
        )
    if isinstance(failure, ResponseTooLargeError):
        return OneboxResponseError(f"{call}: {words}.", status=413, retryable=False, **details)
    if not exchange.is_sent and not isinstance(failure, (requests.ConnectionError, requests.Timeout)):
        if "SOCKS" in words:
            words += " (pip install 'requests[socks]' installs what a SOCKS proxy needs)"
        return OneboxConfigError(
            f"{call}: can't be sent: {words}. Check the connection's Onebox URL and its extra fields "
            "'verify' and 'proxies'.",
            **details,
        )
    if isinstance(chain[-1], (Urllib3TimeoutError, TimeoutError)):
        words = (
            f"no whole answer after {time.monotonic() - exchange.began:.1f} s (the connection's extra field 'timeout' "
            f"is {settings.timeout:g} s; a response may take {MAX_RESPONSE_TIMEOUTS} times as long in all)"
        )
    return OneboxUnavailableError(f"{call}: {where} can't be reached or broke off: {words}", **details)


def _chain(failure: BaseException) -> list[BaseException]:
    """List an error and those inside it, as far as the libraries pass them on; the last one started it."""
    # Never by __context__: that can be an error which the caller is just handling.
    chain = [failure]
    while not getattr(chain[-1], "strerror", None):
        last = chain[-1]
        inside = (getattr(last, "reason", None), getattr(last, "original_error", None), *last.args, last.__cause__)
        inner = [error for error in inside if isinstance(error, BaseException) and error not in chain]
        if not inner:
            break
        chain.append(inner[0])
    return chain


def uncertain_write(error: OneboxError) -> OneboxUncertainWriteError:
    """Say of a write that it may have been done.

    :param error: how the call failed.
    :return: the error to raise instead.
    """
    return OneboxUncertainWriteError(
        f"{str(error).rstrip('.')}. {OneboxUncertainWriteError.remedy}.",
        status=error.status,
        code=error.code,
        server_message=error.server_message,
    )


def retry_after(response: requests.Response) -> float | None:
    """Read the ``Retry-After`` header.

    :param response: the response.
    :return: seconds to wait, at least 0; ``None`` if the header is absent or makes no sense.
    """
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,12}", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError, TypeError):
        return None
