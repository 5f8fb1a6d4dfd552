"""Onebox as its pages describe it, as an ASGI application, and its faults."""

from __future__ import annotations

import asyncio
import json
import math
import re
import socket
import struct
import time
from base64 import b64decode
from contextlib import suppress
from datetime import datetime, timedelta
from email import message_from_bytes
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .data import RESOURCES, as_row, attachment, conversation, integer_id, record
from .state import Grant, Seen, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from starlette.types import Message, Receive, Scope, Send

LOGIN_PAGE = "<!DOCTYPE html><html><head><title>Onebox - Login</title></head><body><form>Login</form></body></html>"
QUOTA = "time limit reached please try again tomorrow at 18:00 - 06:00"
TICKET_FIELDS = ("fullName", "contact", "subject", "category", "content")
METHOD_IDS, ROLES = (None, "DIRECT", "POST", "MENTION", "COMMENT"), ("MSR1", "MSR2", "MSR3", "MSR4")
NEWS_FILTERS = {"subject": "Subject", "actor": "Actor", "city": "Location", "wilayah": "RegionId", "category": "Tag"}
# fmt: off
CALLS = (
    "configure", "fail", "calm", "add", "delete", "touch", "ids", "warm", "revoke", "reset", "snapshot", "books",
)
# fmt: on
# The writes that a page of the API describes; the others are reported of a generic router.
DOCUMENTED = {
    "/api/contactrz": ["POST"],
    "/api/message": ["POST"],
    "/api/connection": ["POST"],
    "/api/connection/{id}": ["PATCH"],
    "/api/ticketrz/{id}": ["DELETE"],
}
# Other names in paths: the login's, and those below /api/v1.
ALIASES = {
    "Authenticate": "authenticate",
    "Ticket": "ticketrz",
    "Contact": "contactrz",
    "Message": "message",
    "Connection": "connection",
}
UPLOADED = "sandbox:/files"  # in place of what the client calls the server
SCALAR = (str, int, float, type(None))
NESTED: dict[str, Any] = {"Attachments": list, "Tags": list, "Users": list, "Content": (dict, str)}
SUCCESS = {"response_code": "200", "response_status": "Success"}
JSON = "application/json"


class Refusal(Exception):  # noqa: N818 - a response, no mistake
    """An error envelope, raised from anywhere while a request is processed.

    :param status: HTTP status
    :param message: what it says
    :param code: the ``errorCode``; the status as a string by default
    :param blank: the value of the empty fields
    :param form: one of ``FORMS``
    """

    def __init__(
        self, status: int, message: str, code: int | str | None = None, blank: str | None = "", form: str = "records"
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.blank, self.form = status, message, blank, form
        self.code = str(status) if code is None else code

    def body(self, form: str = "", code_type: str = "") -> dict[str, Any]:
        """Return the JSON, in another form or with another type of code if so asked."""
        form, code = form or self.form, self.code
        if code_type:
            code = str(code) if code_type == "string" else int(code)
        if form == "response_code":
            return {"response_code": code, "response_status": self.message}
        if form != "records":
            return {form: self.message}
        blanks = dict.fromkeys(("devMessage", "more", "applicationCode"), self.blank)
        records = {"errorCode": code, "userMessage": self.message, **blanks}
        return {"_meta": {"status": "ERROR", "count": 1}, "records": records}


def plain(path: str) -> str:
    """Return a path without a version and without aliases."""
    parts = path.split("/")
    if parts[2:3] == ["v1"]:
        del parts[2]
    return "/".join([*parts[:2], *(ALIASES.get(name, name) for name in parts[2:3]), *parts[3:]])


def kind_of(path: str) -> str:
    """Return what a plain path asks for, in one word, as the request counter names it."""
    if path.startswith("/files/"):
        return "files"
    first, *rest = path.split("/")[2:] or [""]
    if first in RESOURCES:
        return ("list", "record", "other")[min(len(rest), 2)]
    if first == "ticket" and rest:
        return rest[0] if rest[0] in ("create", "conversations") else "record"
    return first if first in ("authenticate", "news", "VocWorklist") else "other"


class App:
    """The ASGI application.

    :param state: data, counters and settings
    :param base_path: the path it lives under, such as ``/feature/voc``
    """

    def __init__(self, state: State, base_path: str = "") -> None:
        self.state, self.base_path = state, base_path
        self.documented, self.all = self.routed(DOCUMENTED), self.routed({})

    def routed(self, writes: Mapping[str, list[str]]) -> Starlette:
        """Return the application with these writes of resources, with all if there are none."""

        def of_resource(path: str, endpoint: Any, *every: str) -> list[Route]:
            paths = [path.replace("*", name) for name in RESOURCES]
            return [Route(p, endpoint, methods=["GET", *(writes.get(p, []) if writes else every)]) for p in paths]

        return Starlette(
            routes=[
                *of_resource("/api/*", self.rows, "POST"),
                *of_resource("/api/*/{id}", self.one, "PUT", "PATCH", "DELETE"),
                Route("/api/ticket/create", self.create, methods=["POST"]),
                Route("/api/ticket/conversations/{id}", self.conversations),
                Route("/api/ticket/{id}", self.record),
                Route("/files/{id}/{name}", self.file),
                Route("/public/{id}/{name}", self.file),
                Route("/api/news/create", self.create_news, methods=["POST"]),
                Route("/api/news/get", self.news),
                Route("/api/VocWorklist", self.worklist),
                Route("/api/authenticate", self.authenticate, methods=["POST"]),
                Route("/sandbox/{call}", self.control, methods=["GET", "POST"]),
            ],
            exception_handlers={Refusal: self.refuse, HTTPException: self.refuse},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count and delay a request, then process it or inject a fault."""
        method, path, state = scope["method"], scope["path"], self.state
        inside = path[len(self.base_path) :] if path.startswith(self.base_path + "/") else ""
        for own in (inside, path):
            if own.startswith("/sandbox/"):
                await self.all({**scope, "path": own}, receive, send)
                return
        if path.startswith("/public/"):
            inside = path
        elif method in ("GET", "HEAD") or state.undocumented_writes or plain(inside) == "/api/authenticate":
            inside = plain(inside)
        query = scope["query_string"].decode("latin-1")
        with state.lock:
            state.requests[f"{method} {kind_of(inside)}"] += 1
            state.seen.append(Seen(method, path, query, scope["headers"]))
            state.active += 1
            state.max_concurrent = max(state.max_concurrent, state.active)
        try:
            if state.latency:
                await asyncio.sleep(state.latency)
            fault = state.take_fault(method, path)
            entry = dict.fromkeys(("site", "id", "body", "refusal"))
            entry |= {"call": f"{method} {inside}", "fault": fault and fault["kind"]}
            if method in ("POST", "PUT", "PATCH", "DELETE") and inside != "/api/authenticate":
                state.writes.append(entry)
            scope = {**scope, "path": inside, "entry": entry, "files": []}
            if fault:
                await self.misbehave(fault, scope, receive, send)
            else:
                await self.process(scope, receive, send)
        finally:
            state.active -= 1

    async def process(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Process a request; its path is without the base path."""
        if scope["path"].startswith(("/api/", "/files/", "/public/")):
            await (self.all if self.state.undocumented_writes else self.documented)(scope, receive, send)
        elif scope["path"] == "/Login":
            await HTMLResponse(LOGIN_PAGE)(scope, receive, send)
        else:
            await HTMLResponse("", 302, {"location": "/Login"})(scope, receive, send)

    async def refuse(self, request: Request, problem: Exception) -> Response:
        """Turn an exception into the error envelope."""
        headers = None
        if isinstance(problem, HTTPException):
            headers, problem = problem.headers, Refusal(problem.status_code, problem.detail)
        assert isinstance(problem, Refusal)  # noqa: S101 - the only other exception this is registered for
        request.scope.get("entry", {})["refusal"] = problem.message
        body = problem.body(self.state.envelope_form, self.state.envelope_code)
        return JSONResponse(body, self.state.envelope_status or problem.status, headers)

    # Logging in

    async def authenticate(self, request: Request) -> Response:
        """Create a token for one site."""
        state = self.state
        if state.outside_service_hours and state.service_hours_login:
            raise Refusal(401, QUOTA)
        is_form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
        form = await self.fields(request) if is_form else {}
        email, site = form.get("email", ""), form.get("siteId", "")
        if email not in state.accounts or state.accounts[email] != form.get("password"):
            state.failed_logins += 1
            raise Refusal(401, "invalid email or password")
        if not site and len(state.sites) == 1:
            site = state.sites[0]
        if not site:
            sites = [{"Id": known, "Name": f"Site {known}"} for known in state.sites]
            return JSONResponse(sites if state.sites_as_list else {**SUCCESS, "sites": sites})
        if site not in state.sites:
            state.failed_logins += 1
            raise Refusal(401, f"you are not authorized to log into this site {site}")
        token = state.issue(site, email, request.url.hostname or "localhost")
        state.logins_by_site[site] += 1
        state.logins_by_user[email] += 1
        success = {**SUCCESS, "token": token}
        if state.valid_until:
            success["valid_until"] = str(state.local(state.tokens[token].expires))
        return JSONResponse(success)

    def grant(self, request: Request) -> Grant:
        """Return the site and user of the request's token, or raise a Refusal."""
        if self.state.outside_service_hours:
            raise Refusal(401, QUOTA)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else request.query_params.get("token", "")
        if not token:
            raise Refusal(401, "jwt token not found", 401, None)
        # This server has signed no other token.
        grant = self.state.tokens.get(token)
        if grant is None:
            raise Refusal(401, "Signature verification failed", 401, None)
        if grant.expires <= self.state.now():
            raise Refusal(401, "Expired token", 401, None)
        request.scope["entry"]["site"] = grant.site
        return grant

    # Reading

    async def rows(self, request: Request) -> Response:
        """Return one page of a resource, or create a record."""
        if request.method != "POST":
            return await self.page(request)
        return await (self.send if request.scope["path"] == "/api/message" else self.store)(request)

    async def one(self, request: Request) -> Response:
        """Return, change or delete one record."""
        return await (self.record if request.method in ("GET", "HEAD") else self.edit)(request)

    async def page(self, request: Request) -> Response:
        """Return one page of a resource."""
        state, query, resource = self.state, request.query_params, request.scope["path"].rsplit("/", 1)[-1]
        site = self.grant(request).site
        if not state.admit(time.monotonic()):
            raise Refusal(429, "too many requests")
        since_id, limit = number(query, "sinceId", -1), number(query, "limit", 20, least=1)
        offset, _ = number(query, "offset", 0), number(query, "paging", 0, most=1)
        early = timedelta(seconds=state.times_inclusive)
        since, last_update = moment(query, "since", early), moment(query, "lastUpdate", early)
        if state.last_update_ignored:
            last_update = None
        size = limit + state.page_overflow
        with state.lock:
            table = state.table(resource, site)
            rows, total = table.page(
                -1 if state.since_id_ignored else since_id,
                since,
                last_update,
                0 if state.offset_ignored else offset,
                min(size, state.page_cap) if state.page_cap else size,
                state.id_order,
            )
            if state.total_ignores_since_id:
                total = table.page(-1, since, last_update, size=0)[1]
            if state.grow:
                state.add(state.grow, resource, site)
            for row_id in table.ids[: state.shrink]:
                table.delete(row_id)
            if state.churn:
                state.touch(state.chance.sample(table.ids, state.churn), None, resource, site)
        if state.page_seconds:
            await asyncio.sleep(state.page_seconds * (len(rows) / 100) ** math.log(10, 5))
        if state.int_ids:
            rows = [integer_id(row) for row in rows]
        head = json.dumps({"limit": query.get("limit", 20), "offset": query.get("offset", 0), "count": len(rows)})
        body = b'%b, "total": %d, "data": [%b]}' % (head[:-1].encode(), total, b",".join(rows))
        return self.response(request, body)

    async def record(self, request: Request) -> Response:
        """Return one record."""
        name = request.scope["path"].split("/")[2]
        row = self.row(request, name if name in RESOURCES else "ticketrz")
        return self.response(request, row if name in RESOURCES[1:] else record(row))

    async def conversations(self, request: Request) -> Response:
        """Return a ticket's conversation."""
        ticket = json.loads(self.row(request, "ticketrz")) | {"Id": request.path_params["id"]}
        data = conversation(ticket, *self.urls(request))
        data += self.state.replies[request.scope["entry"]["site"], ticket["Id"]]
        return self.response(request, {**SUCCESS, "type": "message", "ticketId": ticket["Id"], "data": data})

    async def file(self, request: Request) -> Response:
        """Return an attachment's file; a public one only without a token."""
        key = "{id}/{name}".format(**request.path_params)
        if request.scope["path"].startswith("/public/"):
            if "authorization" in request.headers:
                raise Refusal(400, "a token was sent to a public address")
        else:
            self.grant(request)
            if key in self.state.files:
                return Response(self.state.files[key], media_type="application/octet-stream")
            self.row(request, "ticketrz")
        size, line = self.state.attachment_size, f"{key}\n".encode()
        return Response((line * (size // len(line) + 1))[:size], media_type="text/plain")

    async def news(self, request: Request) -> Response:
        """Return the news that were created."""
        query, rows = request.query_params, self.state.news[self.grant(request).site]
        start, end = day(query, "startdate", "0001-01-01"), day(query, "enddate", "9999-12-31")
        rows = [row for row in rows if start <= row["CreateDate"][:10] <= end]
        for name, field in NEWS_FILTERS.items():
            rows = [row for row in rows if query.get(name, "").lower() in str(row.get(field)).lower()]
        offset = number(query, "offset", 0)
        rows = rows[offset : offset + number(query, "limit", 20, least=1)]
        return JSONResponse(rows if self.state.news_as_list else {"data": rows})

    async def worklist(self, request: Request) -> Response:
        """Return the first tickets, except the closed ones."""
        site = self.grant(request).site
        with self.state.lock:
            rows = [json.loads(row) for row in self.state.table("ticketrz", site).page()[0]]
        data = [row for row in rows if row["Status"] != "Closed"]
        return JSONResponse({"data": data, "meta": {"site_id": int(site), "count": len(data)}})

    def urls(self, request: Request) -> tuple[str, str]:
        """Return the URLs of files: on this server, and on one that counts as another."""
        other = "127.0.0.1" if request.url.hostname == "localhost" else "localhost"
        own = request.url.replace(path=f"{self.base_path}/files", query="")
        return str(own), str(own.replace(hostname=other, path="/public"))

    def response(self, request: Request, body: Any) -> Response:
        """Return JSON, in which uploaded files have the URL by which this client knows the server."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self.state.files:
            data = data.replace(UPLOADED.encode(), self.urls(request)[0].encode())
        return Response(data, media_type=JSON)

    def find(self, resource: str, site: str, row_id: Any) -> bytes | None:
        """Return a record by the text of its Id, or None."""
        if not re.fullmatch("[0-9]{1,18}", str(row_id)):
            return None
        with self.state.lock:
            row = self.state.table(resource, site).find(int(row_id))
        return integer_id(row) if row and self.state.int_ids else row

    def row(self, request: Request, resource: str) -> bytes:
        """Return the record that the path names, or raise a Refusal."""
        row_id = request.path_params["id"]
        row = self.find(resource, self.grant(request).site, row_id)
        if row is None:
            raise Refusal(404, f"{resource} {row_id[:18]} not found")
        return row

    # Writing

    async def create(self, request: Request) -> Response:
        """Create a ticket."""
        self.grant(request)
        body = await self.fields(request)
        if missing := [name for name in TICKET_FIELDS if not isinstance(body.get(name), str)]:
            raise Refusal(400, f"missing {', '.join(missing)}")
        if not isinstance(body.get("coordinate", ""), str):
            raise Refusal(400, "coordinate is not a text")
        files = [self.keep(name, content) for name, content in request.scope["files"]]
        row = {"Subject": body["subject"], "Category": body["category"], "Content": body["content"]}
        row |= {"Requestor": body["fullName"], "Status": "New", "Attachments": files}
        return JSONResponse({**SUCCESS, "ticketId": self.add(request, "ticketrz", row)})

    def add(self, request: Request, resource: str, fields: dict[str, Any]) -> str:
        """Add a record, log the write and return the Id."""
        fields = {name: value for name, value in fields.items() if name != "Id"}
        entry, state = request.scope["entry"], self.state
        with state.lock:
            entry["id"] = state.table(resource, entry["site"]).add(1, state.local(), **fields)[0]
        return str(entry["id"])

    def keep(self, name: str, content: bytes) -> dict[str, Any]:
        """Store an uploaded file and return it as an attachment."""
        key = f"{len(self.state.files) + 1}/{name}"
        self.state.files[key] = content
        return attachment(f"{UPLOADED}/{quote(key)}", str(self.state.local()), name)

    async def store(self, request: Request) -> Response:
        """Create a record and return it."""
        resource, site = request.scope["path"].split("/")[2], self.grant(request).site
        row_id = self.add(request, resource, await self.json(request, resource))
        return self.response(request, self.find(resource, site, row_id))

    async def edit(self, request: Request) -> Response:
        """Change a record and return it, or delete it."""
        resource, row_id = request.scope["path"].split("/")[2:]
        self.row(request, resource)
        site = request.scope["entry"]["site"]
        if request.method == "DELETE":
            self.state.delete([row_id], resource, site)
        else:
            fields = {**await self.json(request, resource), "Id": row_id}
            with self.state.lock:
                self.state.table(resource, site).touch(int(row_id), self.state.local(), **fields)
        request.scope["entry"]["id"] = row_id
        return self.response(request, self.find(resource, site, row_id) or b"{}")

    async def send(self, request: Request) -> Response:
        """Send a message or a reply."""
        state, site, body = self.state, self.grant(request).site, await self.json(request)
        ticket = body.get("ConversationId")
        if previous := body.get("PreviousId"):
            row = self.find("message", site, previous)
            # Otherwise it is one of the messages that conversations begin with.
            ticket = json.loads(row).get("ConversationId") if row else str(previous)[:-1]
        if ticket is not None and self.find("ticketrz", site, ticket) is None:
            raise Refusal(404, f"conversation {str(ticket)[:18]} not found")
        try:
            content = body.get("Content") or {}
            text = content.get("BodyText") or content.get("Body")
            method_is_known = body.get("MethodId") in METHOD_IDS
            roles = [user["RoleId"] for user in body.get("Users") or []]
            files = [self.attached(item["File"]) for item in body.get("Attachments") or []]
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            raise Refusal(400, "Content, Users or Attachments is not valid") from problem
        if not method_is_known or not all(role in ROLES for role in roles):
            raise Refusal(400, "MethodId or RoleId is not valid")
        row_id = self.add(request, "message", {**body, "ConversationId": ticket, "Attachments": files})
        message = {"Id": row_id, "ConversationId": ticket, "Subject": body.get("Subject"), "Processing": "1"}
        message |= {"FromName": "Customer Care", "Content": text, "Contents": [text], "Attachments": files}
        state.replies[site, str(ticket)].append({**message, "CreateDate": str(state.local())})
        ids = state.ids("message", site)
        rows = [json.loads(self.find("message", site, i) or b"{}") for i in ids[-state.message_page :]]
        # As in the example of Onebox's page: 2 for one message.
        return self.response(request, {"limit": 20, "offset": 0, "count": 2, "total": len(ids), "data": rows})

    def attached(self, file: dict[str, Any]) -> dict[str, Any]:
        """Return a message's attachment; its file is stored, unless it is at a public URL."""
        if not re.fullmatch("[^/]+", file["Name"]):
            raise ValueError(file["Name"])
        if "Path" in file:
            return attachment(str(file["Path"]), file.get("Date"), file["Name"])
        content = b64decode(file.pop("Content"), validate=True)
        file |= {"size": len(content), "sha256": sha256(content).hexdigest()}
        return self.keep(file["Name"], content)

    async def create_news(self, request: Request) -> Response:
        """Create news."""
        site, body = self.grant(request).site, await self.fields(request)
        # Longitude first: a latitude has no third digit.
        place = re.fullmatch(r"-?[0-9]+(\.[0-9]+)?, ?-?[0-9]{1,2}(\.[0-9]+)?", str(body.get("Coordinate") or "0,0"))
        if not isinstance(body.get("Subject"), str) or place is None:
            raise Refusal(400, "Subject or Coordinate is not valid")
        row_id = request.scope["entry"]["id"] = str(len(self.state.news[site]) + 1)
        self.state.news[site].append({**body, "Id": row_id, "CreateDate": str(self.state.local())})
        return JSONResponse({**SUCCESS, "ticketId": row_id})

    async def json(self, request: Request, resource: str = "") -> dict[str, Any]:
        """Return the fields of a JSON body; for a connection, errors have another form."""
        if not request.headers.get("content-type", "").startswith(JSON):
            raise Refusal(400, "the body is not JSON")
        body = await self.fields(request)
        # Records are read again, so their fields must have valid types.
        if resource and not all(isinstance(value, NESTED.get(name, SCALAR)) for name, value in body.items()):
            raise Refusal(400, "the fields are not valid")
        if resource == "ticketrz":
            try:
                body = as_row(body)
            except ValueError as problem:
                raise Refusal(400, f"{problem} is not valid") from problem
        for name in ("Name", "Type") if resource == "connection" else ():
            if not isinstance(body.get(name, None if request.method == "POST" else ""), str):
                raise Refusal(401, f"{name} is missing", form="error")
        return body

    async def fields(self, request: Request) -> dict[str, Any]:
        """Return and log the fields of a body; a file is represented by its name, size and hash."""
        raw, header = await request.body(), request.headers.get("content-type", "")
        body: Any = {}
        if header.startswith(JSON):
            try:
                body = json.loads(raw)
            except (ValueError, RecursionError) as problem:
                raise Refusal(400, "the body is not JSON") from problem
            if not isinstance(body, dict):
                raise Refusal(400, "the body is not a JSON object")
        elif header.startswith("application/x-www-form-urlencoded"):
            body = dict(parse_qsl(raw.decode(errors="replace"), keep_blank_values=True))
        elif header.startswith("multipart/form-data"):
            message = message_from_bytes(b"Content-Type: " + header.encode("latin-1") + b"\r\n\r\n" + raw)
            for part in message.get_payload() if message.is_multipart() else []:
                name = str(part.get_param("name", "", "content-disposition"))  # type: ignore[union-attr]
                content = part.get_payload(decode=True)  # type: ignore[union-attr]
                filename = part.get_filename()  # type: ignore[union-attr]
                assert isinstance(content, bytes)  # noqa: S101 - decode=True on a leaf
                if not filename:
                    body[name] = content.decode(errors="replace")
                    continue
                request.scope["files"].append((filename.rsplit("/", 1)[-1], content))
                file = {"filename": filename, "size": len(content), "sha256": sha256(content).hexdigest()}
                body[name] = [*body.get(name, []), file]
        else:
            raise Refusal(400, "the body is neither a form nor JSON")
        request.scope["entry"]["body"] = body
        return body  # type: ignore[no-any-return]

    # Control

    async def control(self, request: Request) -> Response:
        """Run one of the state's methods with a JSON object as its arguments."""
        client, call = request.client, request.path_params["call"]
        if client is None or client.host not in ("127.0.0.1", "::1") or call not in CALLS:
            raise Refusal(404, "Not Found")
        try:
            arguments = json.loads(await request.body() or b"{}")
            return JSONResponse(getattr(self.state, call)(**request.query_params, **arguments))
        except (KeyError, TypeError, ValueError, re.error) as problem:
            raise Refusal(400, str(problem)) from problem

    # Misbehaving

    async def misbehave(self, fault: dict[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
        """Inject a fault into the response to one request."""
        kind, status, headers, body = fault["kind"], 200, {"content-type": JSON}, b""
        if fault.get("processed", kind in ("drop_after", "truncated", "slow", "delay", "no_token", "merge")):
            status, headers, body = await self.capture(scope, receive)
        elif scope["method"] != "GET":
            # The log of writes has those that were not done, too.
            with suppress(Refusal, ClientDisconnect):
                await self.fields(Request(scope, receive))
        half = body[: len(body) // 2]
        if kind in ("drop_before", "drop_after", "hang"):
            await self.end(scope, receive, None if kind == "hang" else b"", reset=fault.get("reset", False))
        elif kind == "raw":
            await self.end(scope, receive, encoded(fault.get("data", "this is not HTTP\r\n\r\n")))
        elif kind == "truncated" and fault.get("variant", "length") == "length":
            head = f"HTTP/1.1 {status} Cut\r\ncontent-type: {JSON}\r\ncontent-length: {len(body)}\r\n\r\n"
            await self.end(scope, receive, head.encode() + half)
        else:
            response: Response
            if kind == "truncated":
                response = Response(half, status, media_type=JSON)
            elif kind == "slow":
                response = StreamingResponse(in_pieces(body, **fault), status, headers)
            elif kind == "delay":
                await asyncio.sleep(fault.get("pause", 1))
                response = Response(body, status, headers)
            elif kind in ("no_token", "merge"):
                response = Response(
                    merged(body, fault.get("fields", {"token": None})), fault.get("status", status), None, JSON
                )
            elif kind == "huge":
                response = StreamingResponse(endless(), media_type=JSON)
            else:
                response = RESPONSES[kind](fault)
            await response(scope, receive, send)

    async def end(self, scope: Scope, receive: Receive, last: bytes | None, reset: bool = False) -> None:
        """Close the connection after ``last``; with None, leave it open and silent."""
        transport = scope["state"]["transport"]
        if last:
            transport.write(last)
            transport.close()
        elif last is not None:
            drop(transport, reset)
        while (await receive())["type"] != "http.disconnect":
            pass

    async def capture(self, scope: Scope, receive: Receive) -> tuple[int, dict[str, str], bytes]:
        """Process a request and return the response."""
        sent: list[Message] = []

        async def keep(message: Message) -> None:
            sent.append(message)

        await self.process(scope, receive, keep)
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


def drop(transport: asyncio.Transport, reset: bool) -> None:
    """Close a connection at once, with a TCP reset if asked."""
    if reset:
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()


def encoded(body: Any) -> bytes:
    """Return a fault's body, which is bytes, text or JSON, as bytes."""
    return body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()


async def in_pieces(body: bytes, pieces: int = 4, pause: float = 0.05, **_: Any) -> AsyncIterator[bytes]:
    """Send a body in pieces with a pause before each."""
    size = -(-len(body) // pieces)
    for start in range(0, len(body), size):
        await asyncio.sleep(pause)
        yield body[start : start + size]


async def endless() -> AsyncIterator[bytes]:
    """Send JSON that never ends."""
    yield b'{"limit": 20, "offset": 0, "count": 1, "total": 1, "data": ["'
    while True:
        # So that the event loop notices that the client has gone.
        await asyncio.sleep(0)
        yield b"x" * 65536


def merged(body: bytes, fields: dict[str, Any]) -> bytes:
    """Return a JSON object with some fields set and those that are None removed; any other body as it is."""
    try:
        values = json.loads(body) | fields
    except (TypeError, ValueError):
        return body
    return encoded({name: value for name, value in values.items() if fields.get(name, "") is not None})


def envelope(fault: dict[str, Any], **defaults: Any) -> Response:
    """Return the error that a fault describes: ``status``, ``message``, ``code``, ``blank``, ``form``."""
    values = {"status": 500, "message": "internal error", **defaults, **fault}
    names = ("status", "message", "code", "blank", "form")
    refusal = Refusal(**{name: values[name] for name in names if name in values})
    return JSONResponse(refusal.body(), refusal.status, fault.get("headers"))


RESPONSES: dict[str, Callable[[dict[str, Any]], Response]] = {
    "status": lambda f: Response(
        encoded(f.get("body", "")),
        f.get("status", 503),
        {"content-type": "text/html", **f.get("headers", {})},
    ),
    "html": lambda f: HTMLResponse(LOGIN_PAGE, f.get("status", 200)),
    "empty": lambda f: Response(b"", f.get("status", 200), media_type=JSON),
    "redirect": lambda f: Response(b"", f.get("status", 302), {"location": f.get("location", "/Login")}),
    "envelope": envelope,
    "expired": lambda f: envelope(f, status=401, message="Expired token", code=401, blank=None),
    "envelope_200": lambda f: envelope(f, status=200, code="500"),
    "not_json": lambda f: Response(encoded(f.get("body", "this is not JSON")), media_type=JSON),
    "wrong_type": lambda f: JSONResponse(f.get("value", []), f.get("status", 200), f.get("headers")),
    "header_bomb": lambda f: Response(
        b"{}", 200, {f"x-{n}": "x" * f.get("size", 200) for n in range(f.get("count", 1000))}, JSON
    ),
}


def number(query: Mapping[str, str], name: str, absent: int, least: int = 0, most: int | None = None) -> int:
    """Return a whole number from the query, or raise a Refusal."""
    text = query.get(name)
    if text is None:
        return absent
    # int() takes no number of thousands of digits.
    value = int(text[:100]) if re.fullmatch("[0-9]+", text) else -1
    if value < least or (most is not None and value > most):
        raise Refusal(400, f"{name} is not valid")
    return value


def day(query: Mapping[str, str], name: str, absent: str) -> str:
    """Return a date from the query, or raise a Refusal for one that is not ``DD-MM-YYYY``."""
    if name not in query:
        return absent
    found = re.fullmatch("([0-9]{2})-([0-9]{2})-([0-9]{4})", query[name])
    if not found:
        raise Refusal(400, f"{name} is not valid")
    return "-".join(found.groups()[::-1])


def moment(query: Mapping[str, str], name: str, early: timedelta) -> datetime | None:
    """Return a time from the query, minus ``early``; raise a Refusal unless it is ``YYYY-MM-DD HH:MM``."""
    text = query.get(name)
    if text is None:
        return None
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}", text):
            return datetime.fromisoformat(text) - early
    except (ValueError, OverflowError):
        pass
    raise Refusal(400, f"{name} is not valid")
