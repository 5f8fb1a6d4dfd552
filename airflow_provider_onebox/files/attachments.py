"""Attachments: the files that messages name, each downloaded whole or not at all."""

from __future__ import annotations

import logging
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import requests

from airflow_provider_onebox.api.arguments import whole_number
from airflow_provider_onebox.api.auth import origin_of
from airflow_provider_onebox.api.client import OneboxClient
from airflow_provider_onebox.api.response import LOGIN_PAGE
from airflow_provider_onebox.api.transport import MAX_RESPONSE_BYTES, OneboxAdapter
from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxError,
    OneboxResponseError,
    sanitize,
)
from airflow_provider_onebox.files.atomic import AtomicFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


MAX_REDIRECTS = 5
"""The most redirects that are followed for an attachment, each only to a host that may be asked."""


MAX_LOGGED = 20
"""The most skipped attachments that the log names one by one."""


MAX_NAME = 40
"""The most characters of a file's name before its suffix. In UTF-8, a character takes up to four bytes."""


log = logging.getLogger(__name__)


class Attachments:
    """Downloads the attachments of messages into a folder. Safe to share between threads.

    Only the connection's own Onebox gets the token. Other hosts are asked if they are named, without it. Each thread
    holds the attachment that it downloads in memory.

    :param client: the client of the connection.
    :param folder: the target folder, as for ``ObjectStoragePath``; the files in it are
        ``<ticket id>/<message id>-<number>-<name>``.
    :param max_bytes: the maximum size of an attachment, in bytes, up to 64 MiB.
    :param hosts: names of other hosts to download from.
    :raises OneboxConfigError: if an argument is invalid.
    """

    def __init__(self, client: OneboxClient, folder: Any, *, max_bytes: Any, hosts: Any = ()) -> None:
        if str(folder).strip() in ("", "None"):
            raise OneboxConfigError(f"attachments_path={folder!r} names no folder: a template in it found nothing.")
        self._max_bytes = whole_number("max_attachment_bytes", max_bytes, 1, MAX_RESPONSE_BYTES)
        self._hosts = {_as_sent(name) for name in ([hosts] if isinstance(hosts, str) else hosts or ())}
        if None in self._hosts:
            raise OneboxConfigError(
                f"attachment_hosts={sanitize(hosts, 60)!r} is not a list of host names: write them like "
                "'files.example.com', without https:// and without a path."
            )
        self._folder = str(folder).rstrip("/")
        AtomicFile(f"{self._folder}/attachment", "attachments_path")
        self._client = client
        self._lock = threading.Lock()
        self._clients: dict[str, _FileClient] = {}
        self.failed = 0

    def download(self, messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Download the attachments of messages.

        An attachment that a retry can't get, because it is too large or missing for example, is skipped, counted in
        ``failed``, and named in the log.

        :param messages: the messages of tickets.
        :return: the messages, each with the paths of its attachments as ``attachmentFiles``.
        :raises OneboxError: if a retry can help, or a file can't be written.
        """
        found: list[dict[str, Any]] = []
        seen: set[str] = set()
        for message in messages:
            message_id = _plain(message.get("Id") or "no-id")
            if message_id in seen:
                message_id += f".{len(found)}"
            seen.add(message_id)
            found.append({**message, "attachmentFiles": list(self._files(message, message_id))})
        return found

    def _files(self, message: dict[str, Any], message_id: str) -> Iterator[str]:
        attachments = message.get("Attachments")
        ticket = _plain(message.get("ticketId"))
        for number, attachment in enumerate(attachments if isinstance(attachments, list) else [], 1):
            file = attachment.get("File") if isinstance(attachment, dict) else None
            url, name = (file.get("Path"), file.get("Name")) if isinstance(file, dict) else (None, None)
            path = f"{self._folder}/{ticket}/{message_id}-{number}-{_plain(name)}"
            try:
                content = self._get(url)
            except _SkippedError as problem:
                self._tell(f"Attachment {number} of message {message_id}, ticket {ticket}", problem)
                continue
            with AtomicFile(path, "attachments_path") as target:
                target.write_bytes(content)
                target.finish()
                target.publish()
            yield path

    def _tell(self, which: str, problem: Exception) -> None:
        with self._lock:
            self.failed += 1
            failed = self.failed
        if failed <= MAX_LOGGED:
            log.warning("%s was not downloaded: %s", which, problem)
        elif failed == MAX_LOGGED + 1:
            log.warning("Further attachments that can't be downloaded are only counted.")

    def _get(self, url: Any) -> bytes:
        if not isinstance(url, str) or not url.strip():
            raise _SkippedError("Onebox gives no URL for it.")
        base = f"{self._client.settings.base_url}/"
        for _ in range(MAX_REDIRECTS + 1):
            client, url = self._find(base, url)
            try:
                answer = client.get(url)
            except OneboxError as error:
                if error.retryable or (client.is_own and isinstance(error, OneboxAuthError)):
                    raise
                if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                    raise _SkippedError(f"it is larger than max_attachment_bytes={self._max_bytes:,}.") from None
                raise _SkippedError(str(error)) from None
            if isinstance(answer, bytes):
                return answer
            base, url = url, answer.target
        raise _SkippedError(f"it was redirected more than {MAX_REDIRECTS} times.")

    def _find(self, base: str, link: str) -> tuple[_FileClient, str]:
        try:
            url = urljoin(base, link)
            # Parsers differ on which host some URLs name: judged is the one that is asked.
            asked = requests.Request("GET", url).prepare().url or ""
            parts, origin = urlsplit(asked), origin_of(asked)
        except (ValueError, requests.RequestException):
            raise _SkippedError(f"its URL {sanitize(self._client.redact(link), 60)!r} is not valid.") from None
        own = origin_of(self._client.settings.base_url)
        if parts.scheme not in ("https", urlsplit(own).scheme):
            raise _SkippedError(f"its URL begins with {sanitize(parts.scheme)}://, not with https://.")
        if origin != own and parts.hostname not in self._hosts:
            raise _SkippedError(
                f"it is on {sanitize(parts.hostname)!r}: to download from there, without the token, add that host to "
                "attachment_hosts."
            )
        with self._lock:
            if origin not in self._clients:
                self._clients[origin] = _FileClient(self._client, origin, self._max_bytes, is_own=origin == own)
            return self._clients[origin], url


class _SkippedError(Exception):
    """An attachment can't be downloaded, and a retry can't help."""


@dataclass(frozen=True)
class _Redirect:
    target: str


class _FileClient(OneboxClient):
    """Downloads files from one origin, with the token if it is the connection's own."""

    def __init__(self, client: OneboxClient, origin: str, max_bytes: int, *, is_own: bool) -> None:
        settings = client.settings if is_own else replace(client.settings, base_url=origin)
        super().__init__(settings, tokens=client.tokens, adapter=OneboxAdapter(max_bytes), pause=client._pause)
        self.is_own = is_own

    def get(self, url: str) -> bytes | _Redirect:
        # An auth that adds nothing keeps out the session's token, and a login for this host from a .netrc file.
        auth = self.session.auth if self.is_own else lambda request: request
        # A query can hold a signature.
        shown = sanitize(self.redact(url.partition("?")[0]))
        answer: bytes | _Redirect = self._call("GET", shown, url=url, auth=auth)
        return answer

    def _read(self, response: requests.Response, name: str, login: bool) -> Any:
        # The libraries read headers as Latin-1, and servers send the names of files in UTF-8.
        target = response.headers.get("Location", "").encode("latin-1").decode("utf-8", "replace")
        if response.is_redirect and not LOGIN_PAGE.search(target):
            return _Redirect(target)
        is_success = 200 <= response.status_code < 300
        outcome = None if is_success and not self.is_own else super()._read(response, name, login)
        # Onebox can send a rejection under 200. A file that is not JSON is no error.
        is_rejection = isinstance(outcome, OneboxError) and not isinstance(outcome, OneboxResponseError)
        return response.content or b"" if is_success and not is_rejection else outcome


def _as_sent(host: Any) -> str | None:
    """Bring a host's name into the form in which it is asked; ``None`` if it is no name."""
    if isinstance(host, str) and re.fullmatch(r"[\w.-]+|\[[\da-fA-F:]+\]", host):
        with suppress(requests.RequestException):
            return urlsplit(requests.Request("GET", f"https://{host}").prepare().url or "").hostname
    return None


def _plain(name: Any) -> str:
    """Make a name of letters, digits and a few signs, which is one on every file system."""
    text = re.sub(r"[^\w.-]+", "_", str(name or "")).lstrip(".")
    stem, dot, suffix = text.rpartition(".")
    return f"{stem[:MAX_NAME]}{dot}{suffix[:16]}" or "file"
