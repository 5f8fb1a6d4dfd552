"""The same work done in several ways: with the provider, and with what a user would pick instead."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import requests
from requests.auth import AuthBase

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

GZIP_LEVEL = 6  # the provider's; the default of the gzip module, 9, is slower for 1 % smaller files


class Bearer(AuthBase):
    """Puts a token onto requests; cheaper than a header alone, for which requests reads .netrc files each time."""

    def __init__(self, token: str) -> None:
        self.value = f"Bearer {token}"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put it on."""
        request.headers["Authorization"] = self.value
        return request


class Reader:
    """The work that every contender does with every row.

    :param expected: how many rows there must be.
    """

    def __init__(self, expected: int) -> None:
        self.expected, self.rows, self.last = expected, 0, ""

    def take(self, rows: Iterable[dict[str, Any]]) -> None:
        """Read rows."""
        for row in rows:
            if row["CreateDate"]:
                self.rows += 1
            self.last = row["Id"]

    def check(self) -> None:
        """Refuse to have measured something else."""
        if self.rows != self.expected:
            raise RuntimeError(f"{self.rows} rows instead of {self.expected}")


def bare_session(token: str) -> requests.Session:
    """Make what a careful user would: one session, kept alive, logged in."""
    session = requests.Session()
    session.auth = Bearer(token)
    return session


def bare_pages(url: str, token: str, resource: str, since_id: str, page: int) -> Iterator[list[dict[str, Any]]]:
    """List with one page after the other."""
    with bare_session(token) as session:
        while True:
            query = {"sinceId": since_id, "limit": page}
            response = session.get(f"{url}/api/{resource}", params=query, timeout=30)
            response.raise_for_status()
            reply = response.json()
            rows = reply["data"]
            yield rows
            if reply["total"] <= len(rows):
                return
            since_id = rows[-1]["Id"]


def list_bare(url: str, token: str, resource: str, since_id: str, page: int, rows: int) -> None:
    """List with ``requests``."""
    reader = Reader(rows)
    for batch in bare_pages(url, token, resource, since_id, page):
        reader.take(batch)
    reader.check()


def list_onebox(hook: Any, resource: str, since_id: str, rows: int, **options: Any) -> None:
    """List with ``OneboxHook``."""
    reader = Reader(rows)
    reader.take(hook.list_records(resource, since_id=since_id, **options))
    reader.check()


def list_operator(token: str, resource: str, since_id: str, page: int, rows: int) -> None:
    """List with ``HttpOperator``, whose rows are read as the pages come: parsed once, no text made of them."""
    from airflow.providers.http.operators.http import HttpOperator

    reader = Reader(rows)

    def next_page(response: requests.Response) -> dict[str, Any] | None:
        reply = response.json()
        reader.take(reply["data"])
        if reply["total"] <= len(reply["data"]):
            return None
        return {"data": {"sinceId": reader.last}}

    HttpOperator(
        task_id="list",
        http_conn_id="http_bench",
        method="GET",
        endpoint=f"/api/{resource}",
        data={"sinceId": since_id, "limit": page},
        headers={"Authorization": f"Bearer {token}"},
        pagination_function=next_page,
        response_filter=lambda responses: len(responses),
    ).execute({})
    reader.check()


def file_bare(url: str, token: str, resource: str, since_id: str, page: int, path: str) -> None:
    """Write JSON Lines with ``requests``, ``json`` and ``gzip``."""
    with gzip.open(path, "wt", compresslevel=GZIP_LEVEL, encoding="utf-8") as file:
        for rows in bare_pages(url, token, resource, since_id, page):
            file.write("".join([json.dumps(row, ensure_ascii=False) + "\n" for row in rows]))


def pack(lines: bytes, path: str) -> None:
    """Compress what is there already, as much at a time as a page of ours holds."""
    with gzip.open(path, "wb", compresslevel=GZIP_LEVEL) as file:
        for start in range(0, len(lines), 2**20):
            file.write(lines[start : start + 2**20])


def file_onebox(resource: str, since_id: str, path: str, **options: Any) -> None:
    """Write JSON Lines with ``OneboxListOperator``."""
    from airflow_provider_onebox.operators.onebox import OneboxListOperator

    operator = OneboxListOperator(task_id="list", resource=resource, since_id=since_id, output_path=path, **options)
    operator.execute({})
