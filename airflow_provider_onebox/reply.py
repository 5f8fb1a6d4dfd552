"""What Onebox answered: a reply in, its JSON or the right error out.

Onebox wraps every refusal in the same envelope and can send it under any HTTP status, 200 included;
``_meta.status == "ERROR"`` is what tells.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxError,
    OneboxQuotaError,
    OneboxRequestError,
    OneboxResponseError,
    OneboxUnavailableError,
    quote,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import requests

TRANSIENT = frozenset({429, 502, 503, 504})
"""Statuses that a later try of the same call can turn into an answer."""

_ENVELOPE_HEAD = 512  # the envelope's "_meta" stands at the head of the body
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_QUOTA = re.compile(r"\btime limit reached\b", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_NOTHING_USEFUL = object()


@dataclass(frozen=True)
class Refusal:
    """Onebox's error envelope.

    :param status: what the refusal amounts to as an HTTP status, wherever it stood.
    :param code: ``errorCode`` as text, ``None`` if it was absent.
    :param message: ``userMessage`` as it came.
    """

    status: int
    code: str | None
    message: str

    @property
    def is_quota(self) -> bool:
        """Whether this is the quota's 401, for which a new token does not help."""
        return bool(_QUOTA.search(self.message))

    @property
    def is_dead_token(self) -> bool:
        """Whether a new token can help."""
        return self.status == 401 and not self.is_quota


def decode(body: bytes) -> Any:
    """Parse a JSON body.

    :param body: the bytes as they came; a byte order mark is survived.
    :return: the parsed value.
    :raises ValueError: if it is not JSON.
    """
    try:
        return msgspec.json.decode(body.removeprefix(_BYTE_ORDER_MARK))
    except msgspec.DecodeError as error:
        # A ValueError from msgspec 0.21 on alone; Airflow 3.0 and 3.1 were released with older ones.
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def refusal_in(status: int, body: bytes) -> Refusal | None:
    """Find the error envelope in a reply.

    :param status: the HTTP status that it came with.
    :param body: the bytes of the reply.
    :return: the refusal, or ``None`` if the reply is none: data, HTML, nothing.
    """
    if status < 400 and b'"_meta"' not in body[:_ENVELOPE_HEAD]:
        return None
    try:
        return _refusal_of(status, decode(body))
    except ValueError:
        return None


def _refusal_of(status: int, data: Any) -> Refusal | None:
    meta = data.get("_meta") if isinstance(data, dict) else None
    if not isinstance(meta, dict) or meta.get("status") != "ERROR":
        return None
    records = data.get("records")
    records = records if isinstance(records, dict) else {}
    code = records.get("errorCode")
    number = int(code) if isinstance(code, (str, int)) and re.fullmatch("[1-9][0-9]{2}", str(code)) else None
    return Refusal(
        status=status if status >= 400 else number or status,
        code=None if code is None else quote(code),
        message=str(records.get("userMessage") or records.get("devMessage") or ""),
    )


def read_reply(response: requests.Response, call: str, *, login: bool, clean: Callable[[str], str]) -> Any:
    """Turn a reply into its JSON, or into the error that tells what went wrong.

    :param response: the reply, its body read.
    :param call: who asked for what, to begin messages with: ``"Connection 'x': GET ticketrz"``.
    :param login: whether the call was the login, where every refusal concerns the account.
    :param clean: takes secrets out of the server's words before they are shown.
    :return: the parsed JSON; an empty dictionary for 204.
    :raises OneboxError: the member of the family that fits.
    """
    status, body = response.status_code, response.content
    data: Any = _NOTHING_USEFUL
    try:
        data = decode(body)
    except ValueError:
        if status == 204 and not body:
            return {}
    refusal = _refusal_of(status, data)
    if refusal:
        raise _refused(refusal, response, call, login=login, clean=clean)
    if 200 <= status < 300 and data is not _NOTHING_USEFUL:
        return data
    raise _unreadable(response, call, login=login, clean=clean)


def _refused(
    refusal: Refusal, response: requests.Response, call: str, *, login: bool, clean: Callable[[str], str]
) -> OneboxError:
    words = quote(clean(refusal.message)) or "no reason given"
    facts: dict[str, Any] = {
        "status": response.status_code,
        "code": refusal.code,
        "server_message": words,
        "retry_after": retry_after(response),
    }
    if refusal.is_quota:
        return OneboxQuotaError(
            f"{call}: Onebox answers this account only within certain hours: {words!r}. "
            "The password and the token are fine; run the task within those hours.",
            **facts,
        )
    if refusal.status in TRANSIENT:
        return OneboxUnavailableError(f"{call}: Onebox is not available ({refusal.status}): {words!r}", **facts)
    if login and 400 <= refusal.status < 500:
        return OneboxAuthError(
            f"{call}: Onebox refused to sign in: {words!r}. Check Email, Password and Site ID of the connection; "
            "the task is not retried, so that the account does not get locked.",
            **facts,
        )
    if refusal.status == 401:
        return OneboxAuthError(f"{call}: Onebox refused a token that it had just given: {words!r}.", **facts)
    return OneboxRequestError(
        f"{call}: Onebox refused the call ({refusal.code or refusal.status}): {words!r}.",
        retryable=refusal.status >= 500,
        **facts,
    )


def _unreadable(response: requests.Response, call: str, *, login: bool, clean: Callable[[str], str]) -> OneboxError:
    status, body = response.status_code, response.content
    facts: dict[str, Any] = {"status": status, "retry_after": retry_after(response)}
    content_type = quote(response.headers.get("Content-Type") or "no content type", 60)
    if 300 <= status < 400:
        target = response.headers.get("Location", "")
        hint = "Onebox moved: enter the new address as Onebox URL"
        if urlsplit(quote(target, 2000)).path.rstrip("/").lower().endswith("/login"):
            hint = "that is its login page: the base path in the connection's Onebox URL is usually wrong then"
        return OneboxResponseError(
            f"{call}: redirected ({status}) to {quote(clean(target)) or 'nowhere'!r}, which is not followed. {hint}.",
            retryable=False,
            **facts,
        )
    if not body:
        what, hint = "an empty body", "usually a fault on the way or in Onebox; try again"
    elif b"<" in body[:_ENVELOPE_HEAD].lstrip()[:1]:
        title = _TITLE.search(body[: _ENVELOPE_HEAD * 8].decode("utf-8", "replace"))
        what = f"an HTML page titled {quote(clean(title[1]))!r}" if title else f"a page ({content_type})"
        hint = "usually a wrong Onebox URL, a proxy's own page, or maintenance"
    else:
        start = quote(clean(body[: _ENVELOPE_HEAD * 2].decode("utf-8", "replace")), 80)
        what = f"{len(body)} bytes of {content_type} that are not whole JSON and begin with {start!r}"
        hint = "usually a reply that was cut off on the way; try again"
    if status in TRANSIENT:
        return OneboxUnavailableError(f"{call}: not available ({status}), with {what}", **facts)
    if status == 401 or (login and status == 403):
        return OneboxAuthError(f"{call}: Onebox refused access ({status}), with {what}.", **facts)
    if status >= 400:
        return OneboxRequestError(
            f"{call}: refused with status {status} and {what}: {hint}.", retryable=status >= 500, **facts
        )
    return OneboxResponseError(f"{call}: answered {status} with {what}: {hint}.", **facts)


def retry_after(response: requests.Response) -> float | None:
    """Read the ``Retry-After`` header.

    :param response: the reply.
    :return: seconds to wait, at least 0; ``None`` if the header is absent or makes no sense.
    """
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,12}", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError, TypeError):
        return None
