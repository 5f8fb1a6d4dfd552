"""The same work done in several ways: with the provider, and with what a user would pick instead."""

from __future__ import annotations

import gzip
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
import requests
from requests.auth import AuthBase

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from airflow_provider_onebox.hooks.onebox import OneboxHook

TYPES: Any = {
    "Id": "int64",
    **dict.fromkeys(("Subject", "Requestor", "Assignee", "Media", "Status", "Priority", "Content"), "string"),
    **dict.fromkeys(("CreateDate", "ModifyDate"), "timestamp"),
}
URL, TOKEN = os.environ["BENCH_URL"], os.environ["BENCH_TOKEN"]
PAGE = 500
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


class BareSession(requests.Session):
    """What a careful user would make: one session, kept alive, logged in."""

    def __init__(self) -> None:
        super().__init__()
        self.auth = Bearer(TOKEN)

    def call(self, method: str, endpoint: str, **options: Any) -> Any:
        """Make one call."""
        response = self.request(method, f"{URL}/api/{endpoint}", timeout=30, **options)
        response.raise_for_status()
        return response.json()


def bare_pages(since_id: str) -> Iterator[list[dict[str, Any]]]:
    """List with one page after the other."""
    with BareSession() as session:
        while True:
            page = session.call("GET", "ticketrz", params={"sinceId": since_id, "limit": PAGE})
            rows = page["data"]
            yield rows
            if page["total"] <= len(rows):
                return
            since_id = rows[-1]["Id"]


def list_bare(since_id: str, rows: int) -> None:
    """List with ``requests``."""
    reader = Reader(rows)
    for batch in bare_pages(since_id):
        reader.take(batch)
    reader.check()


def list_ideal(since_id: str, rows: int) -> None:
    """List as nobody can: all pages are known before the first one arrives, and nothing is checked."""
    reader, size = Reader(rows), 1600
    with BareSession() as session, ThreadPoolExecutor(4) as pool:

        def get(offset: int) -> list[dict[str, Any]]:
            query: dict[str, Any] = {"sinceId": since_id, "offset": offset, "limit": size}
            response = session.get(f"{URL}/api/ticketrz", params=query, timeout=30)
            rows: list[dict[str, Any]] = msgspec.json.decode(response.content)["data"]
            return rows

        for page in pool.map(get, range(0, rows, size)):
            reader.take(page)
    reader.check()


def list_onebox(hook: OneboxHook, since_id: str, rows: int, **options: Any) -> None:
    """List with ``OneboxHook``."""
    reader = Reader(rows)
    reader.take(hook.list_records("ticketrz", since_id=since_id, **options))
    reader.check()


def list_operator(since_id: str, rows: int) -> None:
    """List with ``HttpOperator``, whose rows are read as the pages come: parsed once, no text made of them."""
    from airflow.providers.http.operators.http import HttpOperator

    reader = Reader(rows)

    def next_page(response: requests.Response) -> dict[str, Any] | None:
        page = response.json()
        reader.take(page["data"])
        if page["total"] <= len(page["data"]):
            return None
        return {"data": {"sinceId": reader.last}}

    HttpOperator(
        task_id="list",
        http_conn_id="http_bench",
        method="GET",
        endpoint="/api/ticketrz",
        data={"sinceId": since_id, "limit": PAGE},
        headers={"Authorization": f"Bearer {TOKEN}"},
        pagination_function=next_page,
        response_filter=lambda responses: len(responses),
    ).execute({})
    reader.check()


def file_bare(since_id: str, path: str) -> None:
    """Write JSON Lines with ``requests``, ``json`` and ``gzip``."""
    with gzip.open(path, "wt", compresslevel=GZIP_LEVEL, encoding="utf-8") as file:
        for rows in bare_pages(since_id):
            file.write("".join([json.dumps(row, ensure_ascii=False) + "\n" for row in rows]))


def pack(lines: bytes, path: str) -> None:
    """Compress what is there already, as much at a time as a page of ours holds."""
    with gzip.open(path, "wb", compresslevel=GZIP_LEVEL) as file:
        for start in range(0, len(lines), 2**20):
            file.write(lines[start : start + 2**20])


def file_onebox(since_id: str, path: str, rows: int | None = None) -> None:
    """Write a file with ``OneboxListOperator``."""
    from airflow_provider_onebox.operators.onebox import OneboxListOperator

    operator = OneboxListOperator(task_id="list", resource="ticketrz", since_id=since_id, output_path=path)
    result: Any = operator.execute({})
    written = result["count"]
    if rows not in (None, written):
        raise RuntimeError(f"{written} rows instead of {rows}")


def parquet_onebox(batches: list[list[dict[str, Any]]], path: str) -> None:
    """Write records that have arrived to Parquet, with types."""
    from airflow_provider_onebox.files.records import RecordFile

    with RecordFile(path, fields=TYPES) as file:
        for batch in batches:
            file.write(batch)
        file.finish()
        file.publish()


def parquet_pyarrow(batches: list[list[dict[str, Any]]], path: str, like: str) -> None:
    """Write the same table as another file holds with ``pyarrow`` alone."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(like)
    text = pyarrow.schema([(name, pyarrow.string()) for name in schema.names])
    tables = [pyarrow.Table.from_pylist(batch, text).cast(schema) for batch in batches]
    pyarrow.parquet.write_table(pyarrow.concat_tables(tables), path)
