"""Attachments: the files that messages name, each downloaded whole or not at all.

Whoever wrote a message chose the URLs, the names and the contents of its attachments. So the token goes to no address
of the API and to none outside of the connection's Onebox, and nothing that comes back is read as a message of Onebox:
where a response suggests that the token has expired or that Onebox is down, Onebox itself is asked.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

import requests

from airflow_provider_onebox.api.arguments import as_list, whole_number
from airflow_provider_onebox.api.auth import OneboxSession, origin_of
from airflow_provider_onebox.api.availability import check_available
from airflow_provider_onebox.api.client import MAX_RETRY_AFTER
from airflow_provider_onebox.api.json import decode
from airflow_provider_onebox.api.response import LOGIN_PAGE, error_from_failure, rejection_in, retry_after
from airflow_provider_onebox.api.token import Bearer
from airflow_provider_onebox.api.transport import MAX_RESPONSE_BYTES, Attempt
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, sanitize
from airflow_provider_onebox.files.atomic import AtomicFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from airflow_provider_onebox.api.client import OneboxClient


MAX_REDIRECTS = 5
"""The most redirects that are followed for an attachment, each under the rules for a URL in a message."""


MAX_LOGGED = 20
"""The most skipped attachments that the log names one by one, and after which a download is tried once only."""


MAX_NAME_BYTES = 120
"""The most bytes of a file's name before its suffix."""


MAX_ID_BYTES = 60
"""The most bytes of a message's id in a file's name."""


MAX_REJECTION_BYTES = 4096
"""The most bytes of a response that can be a rejection by Onebox; a larger one is a file."""


_MAX_DECODES = 5


_NOT_A_FILE = re.compile(r"\W*(api|\.\.)\W*")


log = logging.getLogger(__name__)


class Attachments:
    """Downloads the attachments of messages into a folder. Safe to share between threads.

    The token is sent only below the connection's Onebox URL, and never into its API. Other places are asked if their
    host is named, without the token. Each thread holds the attachment that it downloads in memory.

    :param client: the client of the connection.
    :param folder: the target folder, as for ``ObjectStoragePath``; the files in it are
        ``<ticket id>/<message id>-<number>-<name>``.
    :param max_bytes: the maximum size of an attachment, in bytes, up to 64 MiB.
    :param max_failed: how many attachments may be skipped; ``None`` for any number.
    :param hosts: names of hosts to download from without the token.
    :param pause: waits between tries, for that many seconds.
    :raises OneboxConfigError: if an argument is invalid.
    """

    def __init__(
        self,
        client: OneboxClient,
        folder: Any,
        *,
        max_bytes: Any,
        max_failed: Any = None,
        hosts: Any = (),
        pause: Callable[[float], Any] = time.sleep,
    ) -> None:
        if str(folder).strip() in ("", "None"):
            raise OneboxConfigError(f"attachments_path={folder!r} names no folder: a template in it found nothing.")
        self._max_bytes = whole_number("max_attachment_bytes", max_bytes, 1, MAX_RESPONSE_BYTES)
        self._max_failed = None if max_failed is None else whole_number("max_failed_attachments", max_failed, 0)
        self._hosts = {_normalize_host(name) for name in ([hosts] if isinstance(hosts, str) else hosts or ())}
        if None in self._hosts:
            raise OneboxConfigError(
                f"attachment_hosts={sanitize(hosts, 60)!r} is not a list of host names: write them like "
                "'files.example.com', without https:// and without a path."
            )
        self._folder = str(folder).rstrip("/")
        AtomicFile(f"{self._folder}/attachment", "attachments_path")
        self._client = client
        self._pause = pause
        # Its proxies and certificates are those of the connection. It knows no token.
        self._session = OneboxSession(replace(client.settings, base_url="https://"))
        self._own = requests.Request("GET", f"{client.settings.base_url}/").prepare().url or ""
        self._lock = threading.Lock()
        self.failed = 0

    def download(self, messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Download the attachments of messages.

        An attachment that can't be downloaded is skipped, counted in ``failed``, and named in the log.

        :param messages: the messages of tickets.
        :return: the messages, each with the paths of its attachments as ``attachmentFiles``.
        :raises OneboxError: if Onebox itself can't be used, or a file can't be written.
        """
        found: list[dict[str, Any]] = []
        seen: set[str] = set()
        for message in messages:
            message_id = first = _id_name(message.get("Id"))
            number = len(found)
            while message_id in seen:
                message_id = f"{first}.{number}"
                number += 1
            seen.add(message_id)
            found.append({**message, "attachmentFiles": list(self._files(message, message_id))})
        return found

    def check_failed(self) -> None:
        """Find out whether too many attachments were skipped.

        :raises OneboxError: if so; a retry downloads all anew.
        """
        if self._max_failed is not None and self.failed > self._max_failed:
            raise OneboxError(
                f"{self.failed:,} attachments were skipped, more than max_failed_attachments={self._max_failed} "
                "allows. The log has the reasons.",
                retryable=True,
            )

    def _files(self, message: dict[str, Any], message_id: str) -> Iterator[str]:
        ticket = _id_name(message.get("ticketId"))
        where = f"of message {message_id}, ticket {ticket}"
        named = message.get("Attachments")
        attachments = as_list(named)
        if attachments is None:
            if named:
                self._skip(f"What message {message_id}, ticket {ticket}, names as attachments", "it is not a list.")
            return
        for number, attachment in enumerate(attachments, 1):
            file = attachment.get("File") if isinstance(attachment, dict) else None
            url, name = (file.get("Path"), file.get("Name")) if isinstance(file, dict) else (None, None)
            path = f"{self._folder}/{ticket}/{message_id}-{number}-{_file_name(name)}"
            try:
                content = self._get(url)
            except _SkippedError as problem:
                self._skip(f"Attachment {number} {where}", str(problem))
                continue
            with AtomicFile(path, "attachments_path") as target:
                target.write_bytes(content)
                target.finish()
                target.publish()
            yield path

    def _skip(self, which: str, problem: str) -> None:
        with self._lock:
            self.failed += 1
            failed = self.failed
        if failed <= MAX_LOGGED:
            log.warning("%s was not downloaded: %s", which, problem)
        elif failed == MAX_LOGGED + 1:
            log.warning("Further attachments that can't be downloaded are only counted.")

    def _get(self, link: Any) -> bytes:
        if not isinstance(link, str) or not link.strip():
            raise _SkippedError("Onebox gives no URL for it.")
        base = self._own
        for _ in range(MAX_REDIRECTS + 1):
            request = self._locate(base, link)
            outcome = self._fetch(request)
            if outcome.content is not None:
                return outcome.content
            if not outcome.target:
                raise _SkippedError(outcome.problem)
            base, link = request.url or "", outcome.target
        raise _SkippedError(f"it was redirected more than {MAX_REDIRECTS} times.")

    def _locate(self, base: str, link: str) -> requests.PreparedRequest:
        """Prepare the request for a URL, with the token where that may go."""
        try:
            # An auth that adds nothing keeps out a user in the URL, and one for this host from a .netrc file. The file
            # is stored as it is sent, so it must not be compressed on the way.
            request = self._session.prepare_request(
                requests.Request(
                    "GET", urljoin(base, link), headers={"Accept-Encoding": "identity"}, auth=lambda request: request
                )
            )
            # Parsers disagree about the host and the path of some URLs: checked is the URL that is sent.
            url = request.url or ""
            parts, is_own = urlsplit(url), origin_of(url) == origin_of(self._own)
        except (ValueError, requests.RequestException):
            shown = sanitize(self._client.redact(link.partition("?")[0]), 60)
            raise _SkippedError(f"its URL {shown!r} is not valid.") from None
        if parts.scheme not in ("https", urlsplit(self._own).scheme):
            raise _SkippedError(f"its URL begins with {sanitize(parts.scheme)}://, not with https://.")
        if is_own and _is_below(url, self._own):
            request.headers["Authorization"] = Bearer(self._client.tokens, renew=False)
        elif parts.hostname not in self._hosts:
            place = "on" if not is_own else "in the API, or outside of the connection's Onebox URL, on"
            raise _SkippedError(
                f"it is {place} {sanitize(parts.hostname)!r}: to download from there, without the token, add that host "
                "to attachment_hosts."
            )
        return request

    def _fetch(self, request: requests.PreparedRequest) -> _Outcome:
        if "Authorization" not in request.headers:
            return self._send_with_retries(request)
        token = self._client.tokens.get()
        outcome = self._send_with_retries(request)
        if outcome.is_doubtful:
            check_available(self._client)
            if self._client.tokens.get() is not token:
                outcome = self._send_with_retries(request)
        return outcome

    def _send_with_retries(self, request: requests.PreparedRequest) -> _Outcome:
        retries = self._client.settings.max_retries if self.failed < MAX_LOGGED else 0
        number = 0
        while True:
            outcome = self._send(request)
            wait = 2.0**number if outcome.retry_after is None else outcome.retry_after
            if not outcome.is_transient or wait > MAX_RETRY_AFTER or number == retries:
                return outcome
            number += 1
            self._pause(wait)

    def _send(self, request: requests.PreparedRequest) -> _Outcome:
        url = request.url or ""
        # A query can hold a signature.
        shown = f"GET {sanitize(self._client.redact(url.partition('?')[0]))}"
        session = self._client.session if "Authorization" in request.headers else self._session
        attempt = Attempt()
        failure: Exception
        try:
            with session.send(request, stream=True, attempt=attempt) as response:
                return self._outcome(response, shown)
        except OneboxError:
            # Of a login, which says nothing about the file.
            raise
        except Exception as error:  # noqa: BLE001 - each library has its own errors, and urllib3's come through here
            failure = error
        settings = replace(self._client.settings, base_url=origin_of(url))
        problem = str(error_from_failure(failure, shown, settings, self._client.redact, attempt))
        return _Outcome(problem=problem, is_doubtful=True, is_transient=True)

    def _outcome(self, response: requests.Response, shown: str) -> _Outcome:
        status = response.status_code
        if status // 100 == 2:
            content = self._read(response)
            if content is None:
                return _Outcome(problem=f"it is larger than max_attachment_bytes={self._max_bytes:,}.")
            return _Outcome(content=content, is_doubtful=_can_be_rejection(status, content))
        if status // 100 == 3:
            # The libraries read headers as Latin-1, and servers send the names of files in UTF-8.
            target = response.headers.get("Location", "").encode("latin-1").decode("utf-8", "replace")
            is_login = LOGIN_PAGE.search(target) is not None
            if response.is_redirect and not is_login:
                return _Outcome(target=target)
            place = repr(sanitize(self._client.redact(target.partition("?")[0])) or "nowhere")
            if is_login:
                place += ", a login page"
            return _Outcome(problem=f"{shown}: redirected ({status}) to {place}.", is_doubtful=is_login)
        is_transient = status == 429 or status >= 500
        return _Outcome(
            problem=f"{shown}: rejected with status {status}.",
            is_doubtful=is_transient or status == 401,
            is_transient=is_transient,
            retry_after=retry_after(response),
        )

    def _read(self, response: requests.Response) -> bytes | None:
        """Read a body as it was sent; ``None`` if it is too large."""
        size, chunks = 0, []
        for chunk in response.raw.stream(65536, decode_content=False):
            size += len(chunk)
            if size > self._max_bytes:
                return None
            chunks.append(chunk)
        return b"".join(chunks)


class _SkippedError(Exception):
    """An attachment can't be downloaded."""


@dataclass(frozen=True)
class _Outcome:
    """The result of a request: the file, a redirect to follow, or a problem.

    :param content: the file.
    :param target: where a redirect leads.
    :param problem: why there is no file.
    :param is_doubtful: whether an expired token, or Onebox as a whole, can be the reason for this outcome.
    :param is_transient: whether another try can help.
    :param retry_after: seconds that the server asked to wait, if it did.
    """

    content: bytes | None = None
    target: str = ""
    problem: str = ""
    is_doubtful: bool = False
    is_transient: bool = False
    retry_after: float | None = None


def _is_below(url: str, own: str) -> bool:
    """Return whether a URL leads to a place below another one of the same origin, and not into the API there.

    No page of Onebox says that files are in the API, so all of it is kept out: in any case and encoding, as a part of
    the path (``/index.php/api/``) or as a parameter of a router (``?_url=/api/``).
    """
    parts, folder = urlsplit(url), urlsplit(own).path
    if not parts.path.startswith(folder):
        return False
    place = f"{parts.path[len(folder) :]}?{parts.query}".casefold()
    for _ in range(_MAX_DECODES):
        decoded = unquote(place)
        if decoded == place:
            return not any(map(_NOT_A_FILE.fullmatch, re.split(r"[/\\?&=;#]", place)))
        place = decoded
    return False


def _can_be_rejection(status: int, content: bytes) -> bool:
    """Return whether a body looks like a rejection, which Onebox can send under any status."""
    if len(content) > MAX_REJECTION_BYTES:
        return False
    with suppress(ValueError):
        return rejection_in(status, decode(content)) is not None
    return False


def _normalize_host(host: Any) -> str | None:
    """Return a host's name in the form in which it is asked; ``None`` if it is no name."""
    if isinstance(host, str) and re.fullmatch(r"[\w.-]+|\[[\da-fA-F:]+\]", host):
        with suppress(requests.RequestException):
            return urlsplit(requests.Request("GET", f"https://{host}").prepare().url or "").hostname
    return None


def _safe_name(name: Any) -> str:
    """Replace what is not a letter, a digit, a dot, a hyphen or an underscore."""
    return re.sub(r"[^\w.-]+", "_", str(name or "")).lstrip(".")


def _shorten(name: str, most: int) -> str:
    """Cut a name to a number of bytes, between two characters."""
    return name.encode()[:most].decode(errors="ignore")


def _id_name(value: Any) -> str:
    """Make a part of a path of an id. It has no hyphen, so that it ends where the attachment's number begins."""
    return _shorten(_safe_name(value).replace("-", "_"), MAX_ID_BYTES) or "no-id"


def _file_name(name: Any) -> str:
    """Make a name that every file system takes."""
    stem, dot, suffix = _safe_name(name).rpartition(".")
    if not dot:
        stem, suffix = suffix, ""
    return f"{_shorten(stem, MAX_NAME_BYTES)}{dot}{_shorten(suffix, 16)}" or "file"
