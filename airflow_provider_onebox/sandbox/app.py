"""Onebox as its pages describe it, as an ASGI application, and the ways it can misbehave."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from datetime import datetime
from email import message_from_bytes
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .data import RESOURCES, integer_id
from .state import Grant, Seen, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from starlette.requests import Request
    from starlette.types import Message, Receive, Scope, Send

LOGIN_PAGE = "<!DOCTYPE html><html><head><title>Onebox - Login</title></head><body><form>Login</form></body></html>"
QUOTA = "time limit reached please try again tomorrow at 18:00 - 06:00"
TICKET_FIELDS = ("fullName", "contact", "subject", "category", "content")
CALLS = ("configure", "fail", "calm", "add", "delete", "touch", "ids", "warm", "revoke", "reset", "snapshot")
JSON = "application/json"


class Refusal(Exception):  # noqa: N818 - an answer, no mistake
    """An error envelope, raised from anywhere while a request is processed.

    :param status: HTTP status
    :param message: the words
    :param code: the ``errorCode``; the status as a string by default
    :param blank: the value of the fields that say nothing
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


def kind_of(path: str) -> str:
    """Return what a path below the base asks for, in one word, as the request counter names it."""
    parts = path.strip("/").split("/")[1:]
    if parts[-1:] and parts[-1].lower() == "authenticate":
        return "authenticate"
    if parts[:1] == ["ticket"]:
        return "create" if parts[1:] == ["create"] else "conversations"
    return {1: "list", 2: "record"}.get(len(parts), "other") if parts[:1] and parts[0] in RESOURCES else "other"


class App:
    """The ASGI application.

    :param state: what it serves and obeys
    :param base_path: the path it lives under, such as ``/feature/voc``
    """

    def __init__(self, state: State, base_path: str = "") -> None:
        self.state, self.base_path = state, base_path
        self.inner = Starlette(
            routes=[
                *(Route(f"/api/{name}", self.page) for name in RESOURCES),
                *(Route(f"/api/{name}/{{id}}", self.record) for name in RESOURCES),
                *(Route(f"/api/{name}", self.store, methods=["POST"]) for name in ("message", "contactrz")),
                Route("/api/ticketrz/{id}", self.remove, methods=["DELETE"]),
                Route("/api/ticket/create", self.create, methods=["POST"]),
                Route("/api/ticket/conversations/{id}", self.conversations),
                *(
                    Route(path, self.authenticate, methods=["POST"])
                    for path in ("/api/authenticate", "/api/Authenticate", "/api/v1/authenticate")
                ),
                Route("/sandbox/{call}", self.control, methods=["GET", "POST"]),
            ],
            exception_handlers={Refusal: self.refuse, HTTPException: self.refuse},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count, delay and perhaps spoil a request; answer it otherwise."""
        method, path, state = scope["method"], scope["path"], self.state
        inside = path[len(self.base_path) :] if path.startswith(self.base_path + "/") else ""
        for own in (inside, path):
            if own.startswith("/sandbox/"):
                await self.inner({**scope, "path": own}, receive, send)
                return
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
            if fault:
                await self.misbehave(fault, {**scope, "path": inside}, receive, send)
            else:
                await self.process({**scope, "path": inside}, receive, send)
        finally:
            state.active -= 1

    async def process(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request whose path was cut down to what is below the base."""
        if scope["path"].startswith("/api/"):
            await self.inner(scope, receive, send)
        elif scope["path"] == "/Login":
            await HTMLResponse(LOGIN_PAGE)(scope, receive, send)
        else:
            await HTMLResponse("", 302, {"location": "/Login"})(scope, receive, send)

    async def refuse(self, _: Request, problem: Exception) -> Response:
        """Turn an exception into the error envelope."""
        headers = None
        if isinstance(problem, HTTPException):
            headers, problem = problem.headers, Refusal(problem.status_code, problem.detail)
        assert isinstance(problem, Refusal)  # noqa: S101 - the only other exception this is registered for
        body = problem.body(self.state.envelope_form, self.state.envelope_code)
        return JSONResponse(body, self.state.envelope_status or problem.status, headers)

    # Signing in

    async def authenticate(self, request: Request) -> Response:
        """Create a token for one site."""
        state = self.state
        if state.quota_closed and state.quota_login:
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
            reply = {"response_code": "200", "response_status": "Success", "sites": sites}
            return JSONResponse(sites if state.sites_as_list else reply)
        if site not in state.sites:
            state.failed_logins += 1
            raise Refusal(401, f"you are not authorized to log into this site {site}")
        token = state.issue(site, email, request.url.hostname or "localhost")
        state.logins_by_site[site] += 1
        state.logins_by_user[email] += 1
        success = {"response_code": "200", "response_status": "Success", "token": token}
        if state.valid_until:
            success["valid_until"] = str(datetime.fromtimestamp(int(state.tokens[token].expires)))
        return JSONResponse(success)

    def grant(self, request: Request) -> Grant:
        """Return what the request's token stands for, or refuse."""
        if self.state.quota_closed:
            raise Refusal(401, QUOTA)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else request.query_params.get("token", "")
        if not token:
            raise Refusal(401, "jwt token not found", 401, None)
        # A token that was not issued here was not signed with this server's secret either.
        grant = self.state.tokens.get(token)
        if grant is None:
            raise Refusal(401, "Signature verification failed", 401, None)
        if grant.expires <= self.state.now():
            raise Refusal(401, "Expired token", 401, None)
        return grant

    # Reading

    async def page(self, request: Request) -> Response:
        """Answer one page of a resource."""
        state, query, resource = self.state, request.query_params, request.scope["path"].rsplit("/", 1)[-1]
        site = self.grant(request).site
        since_id, limit = number(query, "sinceId", -1), number(query, "limit", 20, least=1)
        offset, _ = number(query, "offset", 0), number(query, "paging", 0, most=1)
        since, last_update = moment(query, "since"), moment(query, "lastUpdate")
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
                table.add(state.grow)
            for row_id in table.ids[: state.shrink]:
                table.delete(row_id)
        if state.int_ids:
            rows = [integer_id(row) for row in rows]
        head = json.dumps({"limit": query.get("limit", 20), "offset": query.get("offset", 0), "count": len(rows)})
        body = b'%b, "total": %d, "data": [%b]}' % (head[:-1].encode(), total, b",".join(rows))
        return Response(body, media_type=JSON)

    async def record(self, request: Request) -> Response:
        """Answer one record."""
        return Response(self.row(request, request.scope["path"].rsplit("/", 2)[-2]), media_type=JSON)

    async def conversations(self, request: Request) -> Response:
        """Answer what was said about a ticket."""
        ticket = json.loads(self.row(request, "ticketrz"))
        names = (ticket.get("RequesterName"), "Customer Care")
        data = [
            {
                "Id": f"{ticket['Id']}{n}",
                "From": name,
                "Body": f"message {n}",
                "CreateDate": ticket["CreateDate"],
            }
            for n, name in enumerate(names)
        ]
        return JSONResponse({"response_code": "200", "ticketId": str(ticket["Id"]), "data": data})

    def row(self, request: Request, resource: str) -> bytes:
        """Return the row the path names, or refuse."""
        site, row_id = self.grant(request).site, request.path_params["id"]
        with self.state.lock:
            row = self.state.table(resource, site).find(int(row_id)) if re.fullmatch("[0-9]{1,18}", row_id) else None
        if row is None:
            raise Refusal(404, f"{resource} {row_id[:18]} not found")
        return integer_id(row) if self.state.int_ids else row

    # Writing

    async def create(self, request: Request) -> Response:
        """Create a ticket."""
        grant, body = self.grant(request), await self.fields(request)
        if missing := [name for name in TICKET_FIELDS if not isinstance(body.get(name), str)]:
            raise Refusal(400, f"missing {', '.join(missing)}")
        if not isinstance(body.get("coordinate", ""), str):
            raise Refusal(400, "coordinate is not a text")
        row = {"Subject": body["subject"], "Category": body["category"], "Content": body["content"]}
        row |= {"RequesterName": body["fullName"], "RequesterEmail": body["contact"], "Status": "Open"}
        with self.state.lock:
            ticket = self.state.add(1, "ticketrz", grant.site, **row)[0]
            self.state.tickets.append({**body, "ticketId": ticket, "siteId": grant.site})
        return JSONResponse({"response_code": "200", "response_status": "Success", "ticketId": ticket})

    async def store(self, request: Request) -> Response:
        """Store a message or a contact and answer it."""
        resource, site = request.scope["path"].rsplit("/", 1)[-1], self.grant(request).site
        if not request.headers.get("content-type", "").startswith(JSON):
            raise Refusal(400, "the body is not JSON")
        body = await self.fields(request)
        with self.state.lock:
            row_id = self.state.add(1, resource, site, **{k: v for k, v in body.items() if k != "Id"})[0]
            return Response(self.state.table(resource, site).find(int(row_id)), media_type=JSON)

    async def remove(self, request: Request) -> Response:
        """Delete a ticket."""
        row_id = json.loads(self.row(request, "ticketrz"))["Id"]
        self.state.delete([row_id], "ticketrz", self.grant(request).site)
        return JSONResponse({})

    async def fields(self, request: Request) -> dict[str, Any]:
        """Return the fields of a JSON, form or multipart body; a file is represented by its name and size."""
        raw, header = await request.body(), request.headers.get("content-type", "")
        if header.startswith(JSON):
            try:
                body = json.loads(raw)
            except (ValueError, RecursionError) as problem:
                raise Refusal(400, "the body is not JSON") from problem
            if not isinstance(body, dict):
                raise Refusal(400, "the body is not a JSON object")
            return body
        if header.startswith("application/x-www-form-urlencoded"):
            return dict(parse_qsl(raw.decode(errors="replace"), keep_blank_values=True))
        if header.startswith("multipart/form-data"):
            parts: dict[str, Any] = {}
            message = message_from_bytes(b"Content-Type: " + header.encode("latin-1") + b"\r\n\r\n" + raw)
            for part in message.get_payload() if message.is_multipart() else []:
                name = str(part.get_param("name", "", "content-disposition"))  # type: ignore[union-attr]
                content = part.get_payload(decode=True)  # type: ignore[union-attr]
                filename = part.get_filename()  # type: ignore[union-attr]
                assert isinstance(content, bytes)  # noqa: S101 - decode=True on a leaf
                parts[name] = {"filename": filename, "size": len(content)} if filename else content.decode()
            return parts
        raise Refusal(400, "the body is neither a form nor JSON")

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
        """Spoil the answer to one request."""
        kind, status, headers, body = fault["kind"], 200, {"content-type": JSON}, b""
        if fault.get("processed", kind in ("drop_after", "truncated", "slow", "delay", "no_token", "merge")):
            status, headers, body = await self.capture(scope, receive)
        half = body[: len(body) // 2]
        if kind in ("drop_before", "drop_after", "hang"):
            await self.end(scope, receive, None if kind == "hang" else b"", reset=fault.get("reset", False))
        elif kind == "raw":
            await self.end(scope, receive, encoded(fault.get("data", "this is not HTTP\r\n\r\n")))
        elif kind == "truncated" and fault.get("variant", "length") == "length":
            head = f"HTTP/1.1 {status} Cut\r\ncontent-type: {JSON}\r\ncontent-length: {len(body)}\r\n\r\n"
            await self.end(scope, receive, head.encode() + half)
        else:
            reply: Response
            if kind == "truncated":
                reply = Response(half, status, media_type=JSON)
            elif kind == "slow":
                reply = StreamingResponse(in_pieces(body, **fault), status, headers)
            elif kind == "delay":
                await asyncio.sleep(fault.get("pause", 1))
                reply = Response(body, status, headers)
            elif kind in ("no_token", "merge"):
                reply = Response(
                    merged(body, fault.get("fields", {"token": None})), fault.get("status", status), None, JSON
                )
            elif kind == "huge":
                reply = StreamingResponse(endless(), media_type=JSON)
            else:
                reply = REPLIES[kind](fault)
            await reply(scope, receive, send)

    async def end(self, scope: Scope, receive: Receive, last: bytes | None, reset: bool = False) -> None:
        """End the connection, after some last bytes if there are any; with None, leave it open and silent."""
        transport = scope["state"]["transport"]
        if last:
            transport.write(last)
            transport.close()
        elif last is not None:
            drop(transport, reset)
        while (await receive())["type"] != "http.disconnect":
            pass

    async def capture(self, scope: Scope, receive: Receive) -> tuple[int, dict[str, str], bytes]:
        """Process a request and keep the answer."""
        sent: list[Message] = []

        async def keep(message: Message) -> None:
            sent.append(message)

        await self.process(scope, receive, keep)
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


def drop(transport: asyncio.Transport, reset: bool) -> None:
    """Break a connection off, with a TCP reset in place of the ordinary end if so asked."""
    if reset:
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()


def encoded(body: Any) -> bytes:
    """Return a fault's body as bytes: those it has, a text's, or those of JSON."""
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
        # The loop would not learn that the client is gone if it were never given a turn.
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
    """Answer an error that a fault describes: ``status``, ``message``, ``code``, ``blank``, ``form``."""
    values = {"status": 500, "message": "internal error", **defaults, **fault}
    names = ("status", "message", "code", "blank", "form")
    refusal = Refusal(**{name: values[name] for name in names if name in values})
    return JSONResponse(refusal.body(), refusal.status, fault.get("headers"))


REPLIES: dict[str, Callable[[dict[str, Any]], Response]] = {
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
    """Return a whole number from the query, or refuse."""
    text = query.get(name)
    if text is None:
        return absent
    # A number of thousands of digits is more than int() takes, and more than there are rows.
    value = int(text[:100]) if re.fullmatch("[0-9]+", text) else -1
    if value < least or (most is not None and value > most):
        raise Refusal(400, f"{name} is not valid")
    return value


def moment(query: Mapping[str, str], name: str) -> datetime | None:
    """Return a time from the query, or refuse one that is not written ``YYYY-MM-DD HH:MM``."""
    text = query.get(name)
    if text is None:
        return None
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}", text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise Refusal(400, f"{name} is not valid")
