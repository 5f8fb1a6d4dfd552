"""What became of a call: a response or a failure in, its JSON or the right error out.

Onebox can send its rejections under any HTTP status, 200 included, and in three forms: the envelope with
``_meta.status == "ERROR"``, a ``response_code`` that is not 2xx, and ``{"error": "<message>"}``.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import requests
from urllib3.exceptions import ProxyError
from urllib3.exceptions import TimeoutError as Urllib3TimeoutError

from airflow_provider_onebox.api.json import MAX_VALUES, NotJSONError, TooManyValuesError, decode
from airflow_provider_onebox.api.token import Bearer
from airflow_provider_onebox.api.transport import (
    MAX_RESPONSE_TIMEOUTS,
    AbandonedError,
    Attempt,
    ResponseTooLargeError,
    attempt_of,
)
from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxError,
    OneboxRequestError,
    OneboxResponseError,
    OneboxServiceHoursError,
    OneboxUnavailableError,
    OneboxUncertainWriteError,
    OneboxUnusableResultError,
    sanitize,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_onebox.api.settings import Settings

TRANSIENT = frozenset({429, 502, 503, 504})
"""Statuses of transient errors: a retry of the same call can succeed."""


_HEAD = 4096


_SERVICE_HOURS = re.compile(r"\btime limit reached\b", re.IGNORECASE)


_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)


LOGIN_PAGE = re.compile(r"/login/?([?#]|$)", re.IGNORECASE)


_TUNNEL = re.compile("Tunnel connection failed: ([0-9]{3})")


_PLAIN_HTTP = frozenset({"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"})
"""OpenSSL's names for a peer that does not speak TLS; which one it is depends on its version and on what was sent."""


_SECONDS = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?")


_MAX_NAMED = 5


_FOREIGN = "It is not in Onebox's form, so probably a proxy or a firewall between Airflow and Onebox sent it"


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rejection:
    """What Onebox says when it rejects a call.

    :param status: the effective status: Onebox's code where it is one, else the HTTP status.
    :param code: Onebox's own code as text, ``None`` if there is none.
    :param message: Onebox's message as it was sent.
    :param concerns_token: whether it is of a form that is used for expired tokens.
    """

    status: int
    code: str | None
    message: str
    concerns_token: bool = True

    @property
    def is_outside_service_hours(self) -> bool:
        """Whether Onebox does not serve the account at this hour, for which a new token does not help."""
        return self.status == 401 and bool(_SERVICE_HOURS.search(self.message))

    @property
    def is_expired_token(self) -> bool:
        """Whether a new token can help."""
        return self.status == 401 and self.concerns_token and not self.is_outside_service_hours


def is_expired_token(status: int, body: bytes) -> bool:
    """Decide whether a response says that the token has expired, so that a new one can help.

    :param status: the HTTP status.
    :param body: the body.
    :return: ``True`` for a rejection with code 401 that is not about service hours, and for a 401 that is no rejection
        of a known form.
    """
    head = body[:_HEAD]
    # Pages of records are large, and are parsed later.
    if status < 400 and b'"_meta"' not in head and b'"response_code"' not in head:
        return False
    data, _ = _parse(body, [])
    rejection = rejection_in(status, data)
    return rejection.is_expired_token if rejection else status == 401


def rejection_in(status: int, data: Any) -> Rejection | None:
    """Find a rejection in the JSON of a response.

    :param status: the HTTP status of the response.
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
        # This form says nothing about the token, whatever the status.
        return Rejection(status, None, str(data["error"] or ""), concerns_token=False)
    return None


def _rejection(status: int, code: Any, message: Any) -> Rejection:
    # The code counts before the status: "Expired token" is sent under 400, 403 and 500, too.
    known = not isinstance(code, bool) and re.fullmatch("[45][0-9]{2}", str(code))
    return Rejection(int(code) if known else status, None if code is None else sanitize(code), str(message))


def _parse(body: bytes, repairs: list[str]) -> tuple[Any, ValueError | None]:
    try:
        return decode(body, repairs), None
    except ValueError as problem:
        return None, problem.with_traceback(None)


def read_response(response: requests.Response, call: str, *, login: bool, redact: Callable[[str], str]) -> Any:
    """Turn a response into its JSON, or into the error that says what went wrong.

    The error is returned and not raised: the frames of this module hold what Onebox sent, a token perhaps.

    :param response: the response, its body read.
    :param call: who asked for what, to begin messages with: ``"Connection 'x': GET ticketrz"``.
    :param login: whether the call was the login, where every rejection concerns the account.
    :param redact: takes secrets out of the server's message before it is shown.
    :return: the parsed JSON, an empty dictionary for a response that has no body by design; or a
        :class:`~airflow_provider_onebox.exceptions.OneboxError`.
    """
    status, body = response.status_code, response.content or b""
    is_success = 200 <= status < 300
    if is_success and not body and (status == 204 or response.request.method == "HEAD"):
        return {}
    repairs: list[str] = []
    data, problem = _parse(body, repairs)
    rejection = rejection_in(status, data)
    if rejection:
        return _rejected(rejection, response, call, login=login, redact=redact)
    if is_success and not problem:
        if repairs:
            _warn_of_repairs(call, repairs)
        return data
    return _error_without_envelope(response, problem, call, login=login, redact=redact)


def _warn_of_repairs(call: str, repairs: list[str]) -> None:
    ids = [sanitize(number, 40) for number in dict.fromkeys(filter(None, repairs))]
    named = ", ".join(ids[:_MAX_NAMED]) + (f" and {len(ids) - _MAX_NAMED} more" if len(ids) > _MAX_NAMED else "")
    log.warning(
        "%s: broken values in the response: %d (half an emoji, bytes that are not UTF-8, or a number that is not "
        "finite); U+FFFD or null takes their place%s.",
        call,
        len(repairs),
        f", in the records with the Id {named}" if ids else "",
    )


def _rejected(
    rejection: Rejection, response: requests.Response, call: str, *, login: bool, redact: Callable[[str], str]
) -> OneboxError:
    message = sanitize(redact(rejection.message)) or "no reason given"
    status = rejection.status
    details: dict[str, Any] = {
        "status": response.status_code,
        "code": rejection.code,
        "server_message": message,
        "retry_after": retry_after(response),
        "uncertain": status >= 500,
    }
    if rejection.is_outside_service_hours:
        return OneboxServiceHoursError(
            f"{call}: Onebox serves this account only within certain hours: {message!r}. "
            "The password and the token are fine; run the task within those hours.",
            **details,
        )
    if status in TRANSIENT:
        return OneboxUnavailableError(f"{call}: Onebox is not available ({status}): {message!r}.", **details)
    if login and status < 500:
        return OneboxAuthError(
            f"{call}: Onebox rejected the login: {message!r}. Check Email, Password and Site ID of the connection. "
            "The login is not retried, so that the account does not get locked.",
            **details,
        )
    if rejection.is_expired_token and _carried_token(response):
        return OneboxUnavailableError(
            f"{call}: Onebox rejected a token that it had just issued: {message!r}. The password is right. Probably "
            "another login of the same user ended this one: give each process that runs at the same time a "
            "separate user.",
            **details,
        )
    return OneboxRequestError(
        f"{call}: Onebox rejected the call ({rejection.code or status}): {message!r}.",
        retryable=status >= 500,
        **details,
    )


def _error_without_envelope(
    response: requests.Response, problem: ValueError | None, call: str, *, login: bool, redact: Callable[[str], str]
) -> OneboxError:
    status = response.status_code
    details: dict[str, Any] = {"status": status, "retry_after": retry_after(response)}
    details["uncertain"] = not 400 <= status < 500
    if 300 <= status < 400:
        target = response.headers.get("Location", "")
        place = sanitize(redact(target)) or "nowhere"
        if LOGIN_PAGE.search(target):
            details["uncertain"] = False
            meaning = "its login page: probably the base path in the connection's Onebox URL is wrong"
        else:
            meaning = (
                "not its login page. Redirects are never followed, so that nothing secret reaches another server; if "
                "Onebox has moved, enter its new address as Onebox URL"
            )
        return OneboxResponseError(
            f"{call}: Onebox redirected the call to {place!r} ({status}). That is {meaning}.",
            retryable=False,
            **details,
        )
    what, hint = _describe(response, problem, login=login, redact=redact)
    if status == 407:
        return OneboxUnusableResultError(
            f"{call}: the proxy {attempt_of(response.request).proxy} rejected its user or password (407), with {what}. "
            "Check the connection's extra field 'proxies', or the environment's HTTPS_PROXY.",
            **{**details, "uncertain": True},
        )
    if status in TRANSIENT:
        return OneboxUnavailableError(f"{call}: not available ({status}), with {what}. {_FOREIGN}.", **details)
    if status == 401 and _carried_token(response):
        return OneboxUnavailableError(
            f"{call}: a token that Onebox had just issued was rejected with status 401 and {what}. {_FOREIGN}. If not, "
            "another login of the same user ended the token.",
            **details,
        )
    if status in (401, 403) and login:
        return OneboxAuthError(
            f"{call}: the login was rejected with status {status} and {what}. {_FOREIGN}. The task is not retried, so "
            "that the account does not get locked.",
            **details,
        )
    if status >= 400:
        return OneboxRequestError(
            f"{call}: rejected with status {status} and {what}{hint}.", retryable=status >= 500, **details
        )
    if isinstance(problem, TooManyValuesError):
        details["status"] = 413
        return OneboxResponseError(
            f"{call}: the response holds more than {MAX_VALUES:,} values. Request fewer records per page.",
            retryable=False,
            **details,
        )
    return OneboxResponseError(f"{call}: received status {status} with {what}{hint}.", **details)


def _carried_token(response: requests.Response) -> bool:
    return isinstance(response.request.headers.get("Authorization"), Bearer)


def _describe(
    response: requests.Response, problem: ValueError | None, *, login: bool, redact: Callable[[str], str]
) -> tuple[str, str]:
    """Say what a body is, and what that usually means."""
    body = response.content or b""
    content_type = sanitize(redact(response.headers.get("Content-Type") or "no content type"), 60)
    text = redact(body[:_HEAD].decode("utf-8", "replace"))
    if not body:
        return "an empty body", ": usually an error on the way or in Onebox; try again"
    if not problem:
        return f"the JSON {sanitize(text)!r}", ""
    if body.lstrip()[:1] == b"<":
        title = _TITLE.search(text)
        what = f"an HTML page titled {sanitize(title[1])!r}" if title else f"a page ({content_type})"
        return what, ": usually a wrong Onebox URL, a proxy's own page, or maintenance"
    # What begins like the response to a login may go on with half a token.
    start = "" if login else f" that begin with {sanitize(text, 80)!r}"
    if isinstance(problem, NotJSONError) and problem.is_cut_off:
        what = f"JSON that was cut off after {len(body)} bytes"
        return what, ": usually by a proxy or by an error in Onebox; try again"
    what = f"{len(body)} bytes of {content_type}{start}, which is not JSON"
    return what, ": usually a wrong Onebox URL, or an error in Onebox or in a proxy"


def error_from_failure(
    failure: Exception, call: str, settings: Settings, redact: Callable[[str], str], attempt: Attempt
) -> OneboxError:
    """Turn the failure of a request into the error that says what went wrong.

    :param failure: what the libraries raised.
    :param call: who asked for what, to begin messages with.
    :param settings: the connection.
    :param redact: takes secrets out of a library's message before it is shown.
    :param attempt: what is known of the request.
    :return: the error.
    """
    if isinstance(failure, AbandonedError):
        return OneboxUnavailableError(
            f"{call}: not sent, because its result was no longer needed: its time limit had passed, or what it was a "
            "part of had ended.",
            retryable=False,
            uncertain=False,
        )
    chain = _chain(failure)
    reason = sanitize(redact(getattr(chain[-1], "strerror", None) or str(chain[-1]) or type(chain[-1]).__name__))
    details: dict[str, Any] = {"uncertain": attempt.is_sent}
    where = settings.base_url + (f" (through the proxy {attempt.proxy})" if attempt.proxy else "")
    if attempt.proxy and any(isinstance(error, ProxyError) for error in chain):
        where = f"the proxy {attempt.proxy}"
    if isinstance(failure, ResponseTooLargeError):
        return OneboxResponseError(
            f"{call}: {reason}. Request fewer records per page.", status=413, retryable=False, **details
        )
    if not attempt.is_sent:
        error = _never_sent(failure, chain, call, reason, where, attempt)
        if error:
            return error
    what = "broke off after the request was sent" if attempt.is_sent else "can't be reached"
    if isinstance(chain[-1], (Urllib3TimeoutError, TimeoutError)):
        reason = (
            f"no complete response in {time.monotonic() - attempt.began:.1f} s (the connection's extra field 'timeout' "
            f"is {settings.timeout:g} s; a response may take {MAX_RESPONSE_TIMEOUTS} times as long in all)"
        )
        what = "is too slow" if attempt.is_sent else what
    return OneboxUnavailableError(f"{call}: {where} {what}: {reason}.", **details)


def _never_sent(
    failure: Exception, chain: list[BaseException], call: str, reason: str, where: str, attempt: Attempt
) -> OneboxConfigError | None:
    """Find what in the connection or the environment keeps requests from being sent; ``None`` if a retry can help."""
    reasons = {getattr(error, "reason", None) for error in chain if isinstance(error, OSError)}
    if "CERTIFICATE_VERIFY_FAILED" in reasons or re.search("certificate verify failed|doesn't match", reason):
        return OneboxConfigError(
            f"{call}: the TLS certificate of {where} is not trusted: {reason}. If a proxy or Onebox uses a private "
            "CA, put the path of that CA's file into the connection's extra field 'verify'."
        )
    if reasons & _PLAIN_HTTP:
        return OneboxConfigError(
            f"{call}: {where} speaks no TLS on this port, but its address begins with https://. Correct the port, or "
            "write http:// if that is meant."
        )
    tunnel = _TUNNEL.match(reason)
    if tunnel and tunnel[1] not in ("408", "429") and tunnel[1] < "500":
        hint = "its user or password" if tunnel[1] == "407" else "the way to Onebox"
        return OneboxConfigError(
            f"{call}: the proxy {attempt.proxy} rejected {hint}: {reason}. Check the connection's extra field "
            "'proxies', or the environment's HTTPS_PROXY and NO_PROXY."
        )
    if isinstance(failure, (requests.ConnectionError, requests.Timeout)):
        return None
    if "SOCKS" in reason:
        reason += " (pip install 'requests[socks]' installs what a SOCKS proxy needs)"
    return OneboxConfigError(
        f"{call}: can't be sent: {reason}. Check the connection's Onebox URL and its extra fields 'verify' and "
        "'proxies'."
    )


def _chain(failure: BaseException) -> list[BaseException]:
    """List an error and those inside it, where the libraries pass them on; the last one is the cause."""
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
    parts = [part.strip() for part in value.split(",")]
    if all(map(_SECONDS.fullmatch, parts)):
        return max(map(float, parts))
    until = _seconds(value)
    # The server's own clock, where it says what time it is: this machine's may be wrong.
    now = _seconds(response.headers.get("Date", ""))
    return None if until is None else max(0.0, until - (time.time() if now is None else now))


def _seconds(date: str) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError, TypeError):
        return None
