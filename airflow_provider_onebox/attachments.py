"""Attachments in: the files that messages name, each downloaded whole or not at all."""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import requests

from airflow_provider_onebox.auth import origin_of
from airflow_provider_onebox.client import OneboxClient
from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxError,
    OneboxResponseError,
    sanitize,
)
from airflow_provider_onebox.files import WholeFile
from airflow_provider_onebox.outcome import LOGIN_PAGE
from airflow_provider_onebox.transport import MAX_REPLY_BYTES, OneboxAdapter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_REDIRECTS = 5
"""Redirects that are followed for one attachment, each only to where the attachment itself might be."""

MAX_TOLD = 20
"""Attachments that could not be had of which the log tells each."""

MAX_NAME = 40
"""Characters of a file's name, in front of its suffix; in UTF-8 up to four bytes each."""

log = logging.getLogger(__name__)


class Attachments:
    """Downloads the attachments of messages into a folder. Safe to share between threads.

    The connection's own Onebox gets the token; hosts that are allowed by name do not. An attachment is in memory while
    it is downloaded, one for each thread.

    :param client: asks for them.
    :param folder: where they go, as for ``ObjectStoragePath``: ``<folder>/<ticket id>/<message id>-<number>-<name>``.
    :param max_bytes: the largest attachment, in bytes, up to 64 MiB.
    :param hosts: names of other hosts from which attachments may be downloaded.
    :raises OneboxConfigError: if an argument can't work.
    """

    def __init__(self, client: OneboxClient, folder: Any, *, max_bytes: Any, hosts: Any = ()) -> None:
        if str(folder).strip() in ("", "None"):
            raise OneboxConfigError(f"attachments_path={folder!r} names no folder: a template in it found nothing.")
        if type(max_bytes) is not int or not 1 <= max_bytes <= MAX_REPLY_BYTES:
            raise OneboxConfigError(
                f"max_attachment_bytes={sanitize(max_bytes)!r} is not a whole number from 1 to {MAX_REPLY_BYTES}."
            )
        names = [hosts] if isinstance(hosts, str) else list(hosts or ())
        if not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+|\[[\da-fA-F:]+\]", name) for name in names):
            raise OneboxConfigError(
                f"attachment_hosts={sanitize(hosts, 60)!r} are no names of hosts: write them like 'files.example.com', "
                "without https:// and without a path."
            )
        self._folder = str(folder).rstrip("/")
        WholeFile(f"{self._folder}/attachment", "attachments_path")
        self._client = client
        self._max_bytes = max_bytes
        self._hosts = {name.strip("[]").lower() for name in names}
        self._lock = threading.Lock()
        self._clients: dict[str, _FileClient] = {}
        self.failed = 0

    def download(self, messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Download the attachments of messages.

        One that can't be had for good, too large or not there for example, is counted and told in the log.

        :param messages: the messages of tickets.
        :return: the messages, each with the paths of its attachments as ``attachmentFiles``.
        :raises OneboxError: if one can't be had now and a retry can help, or a file can't be written.
        """
        return [
            {**message, "attachmentFiles": list(self._files(message, str(message.get("Id") or f"no-id-{number}")))}
            for number, message in enumerate(messages, 1)
        ]

    def _files(self, message: dict[str, Any], message_id: str) -> Iterator[str]:
        attachments = message.get("Attachments")
        ticket, message_id = _plain(message.get("ticketId")), _plain(message_id)
        for number, attachment in enumerate(attachments if isinstance(attachments, list) else [], 1):
            file = attachment.get("File") if isinstance(attachment, dict) else None
            url, name = (file.get("Path"), file.get("Name")) if isinstance(file, dict) else (None, None)
            path = f"{self._folder}/{ticket}/{message_id}-{number}-{_plain(name)}"
            try:
                content = self._get(url)
            except _NotHadError as problem:
                self._tell(f"Attachment {number} of message {message_id}, ticket {ticket}", problem)
                continue
            with WholeFile(path, "attachments_path") as target:
                target.write_bytes(content)
                target.finish()
                target.put_in_place()
            yield path

    def _tell(self, which: str, problem: Exception) -> None:
        with self._lock:
            self.failed += 1
            failed = self.failed
        if failed <= MAX_TOLD:
            log.warning("%s was not downloaded: %s", which, problem)
        elif failed == MAX_TOLD + 1:
            log.warning("Further attachments that are not downloaded are counted only.")

    def _get(self, url: Any) -> bytes:
        if not isinstance(url, str):
            raise _NotHadError("Onebox names no URL for it.")
        base = f"{self._client.settings.base_url}/"
        for _ in range(MAX_REDIRECTS + 1):
            client, url = self._find(base, url)
            try:
                answer = client.get(url)
            except OneboxError as error:
                if error.retryable or (client.is_own and isinstance(error, OneboxAuthError)):
                    raise
                if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                    raise _NotHadError(f"it is larger than max_attachment_bytes={self._max_bytes:,}.") from None
                raise _NotHadError(str(error)) from None
            if isinstance(answer, bytes):
                return answer
            base, url = url, answer.target
        raise _NotHadError(f"it was redirected more than {MAX_REDIRECTS} times.")

    def _find(self, base: str, link: str) -> tuple[_FileClient, str]:
        try:
            url = urljoin(base, link)
            parts, origin = urlsplit(url), origin_of(requests.Request("GET", url).prepare().url or "")
        except (ValueError, requests.RequestException):
            raise _NotHadError(f"its URL {sanitize(self._client.redact(link), 60)!r} makes no sense.") from None
        own = origin_of(self._client.settings.base_url)
        if parts.scheme not in ("https", urlsplit(own).scheme):
            raise _NotHadError(f"its URL begins with {sanitize(parts.scheme)}:// and not with https://.")
        if origin != own and parts.hostname not in self._hosts:
            raise _NotHadError(
                f"it is at {sanitize(parts.hostname)!r}: name that host in attachment_hosts if it may be asked; it "
                "gets no token."
            )
        with self._lock:
            if origin not in self._clients:
                self._clients[origin] = _FileClient(self._client, origin, self._max_bytes, is_own=origin == own)
            return self._clients[origin], url


class _NotHadError(Exception):
    """An attachment can't be had, and a retry can't help."""


@dataclass(frozen=True)
class _Redirect:
    target: str


class _FileClient(OneboxClient):
    """Gets files from one origin, with the token if it is the connection's own."""

    def __init__(self, client: OneboxClient, origin: str, max_bytes: int, *, is_own: bool) -> None:
        settings = client.settings if is_own else replace(client.settings, base_url=origin)
        super().__init__(settings, tokens=client.tokens, adapter=OneboxAdapter(max_bytes), pause=client._pause)
        self.is_own = is_own

    def get(self, url: str) -> bytes | _Redirect:
        # Nothing else keeps away the session's own login, and one for this host from a .netrc file.
        auth = self.session.auth if self.is_own else lambda request: request
        # A query can hold a signature.
        shown = sanitize(self.redact(url.partition("?")[0]))
        answer: bytes | _Redirect = self._call("GET", shown, url=url, auth=auth)
        return answer

    def _read(self, response: requests.Response, name: str, login: bool) -> Any:
        target = response.headers.get("Location", "")
        if response.is_redirect and not LOGIN_PAGE.search(target):
            return _Redirect(target)
        is_success = 200 <= response.status_code < 300
        outcome = None if is_success and not self.is_own else super()._read(response, name, login)
        # Onebox rejects under 200, too; that the file is no JSON is no matter.
        is_rejection = isinstance(outcome, OneboxError) and not isinstance(outcome, OneboxResponseError)
        return response.content or b"" if is_success and not is_rejection else outcome


def _plain(name: Any) -> str:
    """Make a name of letters, digits and a few signs, which is one on every file system."""
    text = re.sub(r"[^\w.-]+", "_", str(name or "")).lstrip(".")
    stem, dot, suffix = text.rpartition(".")
    return f"{stem[:MAX_NAME]}{dot}{suffix[:16]}" or "file"
