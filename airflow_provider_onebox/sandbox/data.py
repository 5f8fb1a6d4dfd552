"""The sandbox's records, each made from its Id when it is first read.

A table of a million rows therefore costs a list of Ids at start, and a page costs one slice and one join.
"""

from __future__ import annotations

import json
import random
import re
from bisect import bisect_left, bisect_right
from datetime import datetime, timedelta
from functools import cache, lru_cache
from itertools import accumulate, cycle, islice
from typing import Any

START = datetime(2017, 7, 10)
STEP = 37
_DAY = 86400

_COMMON = {"SiteId": "%(site)s", "CreateDate": "%(created)s", "ModifyDate": "%(modified)s"}
_PERSON = {
    "Name": "%(name)s",
    "Phone": "+62 21 %(id)07d",
    "Fax": None,
    "Email": "%(mail)s",
    "Mobile": "+62 811 %(id)07d",
    "TwitterId": None,
    "FacebookId": "fb.%(id)d",
    "Media": "%(media)s",
}
_FIELDS: dict[str, dict[str, Any]] = {
    "ticketrz": {
        "Subject": "%(word)s %(id)d",
        "Requestor": "%(name)s",
        "Assignee": "staff%(small)d",
        "Media": "%(media)s",
        "Product": "%(word)s",
        "Region": "DKI Jakarta",
        "Category": "Product/%(word)s",
        "Status": "%(status)s",
        "Priority": "%(priority)s",
        "Attachments": [],
        "Tags": ["%(word)s", "%(media)s"],
        "Rating": None,
        "Content": "Selamat pagi, mohon informasi %(word)s untuk cabang %(small)d. Terima kasih.",
        **_COMMON,
    },
    "contactrz": _PERSON,
    "prospectrz": _PERSON,
    "message": {
        "ConnectionId": "%(small)d",
        "MethodId": "DIRECT",
        "Subject": "Re: %(word)s",
        "From": "%(mail)s",
        "To": "care@site%(site)s.example",
        "Content": {
            "Body": "<p>%(word)s</p>",
            "BodyText": "%(word)s",
            "ContentType": "text/html",
            "Encoding": "utf-8",
        },
        "Attachments": [],
        "Users": [],
        **_COMMON,
    },
    "connection": {
        "Name": "%(media)s %(small)d",
        "Type": "%(media)s",
        "Username": "channel%(small)d",
        "Password": "channel-password-%(id)d",
        "Token": "channel-token-%(id)d",
        **_COMMON,
    },
}
RESOURCES = tuple(_FIELDS)
_TEMPLATES = {name: json.dumps({"Id": "%(id)d", **fields}) for name, fields in _FIELDS.items()}

# Escaped as JSON once: the template is filled after encoding.
_WORDS, _MEDIA, _STATUS, _PRIORITY, _NAMES = (
    [json.dumps(word)[1:-1] for word in words]
    for words in (
        (
            "brosur",
            "request brosur",
            "komplain \u201cbarang rusak\u201d",
            'harga 14" monitor',
            "caf\u00e9 \u2615",
        ),
        ("Email", "Walk In", "WhatsApp", "Facebook", "Instagram", "Phone"),
        ("New", "Open", "Pending", "Closed"),
        ("Low", "Medium", "High"),
        (
            "Siti Rahma",
            "Budi Santoso",
            "Dewi L\u00e9stari",
            "Agus O'Brien",
            "Rina Wijaya",
            "\u738b\u5c0f\u660e",
        ),
    )
)
# Of these TS2, TS7 and the priorities are reported.
_CODES = {
    "Status": {"New": "TS2", "Open": "TS3", "Pending": "TS4", "Closed": "TS7"},
    "Priority": {"Low": "TP1", "Medium": "TP2", "High": "TP3"},
}
# What a listed ticket has in place of Ids.
_NAMED = ("Assignee", "Media", "Product", "Region", "Category", "Status", "Priority", "Attachments", "Tags")


def _lag(row_id: int) -> int:
    """Return a number of seconds that looks random."""
    return row_id * 7919 % (30 * _DAY)


# Formatting a datetime is most of the cost of a record, so both halves are cached.
@cache
def _date(days: int) -> str:
    return str((START + timedelta(days=days)).date())


@lru_cache(maxsize=_DAY)
def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _stamp(seconds: int) -> str:
    """Write a time, given in seconds from START, as Onebox does."""
    return f"{_date(seconds // _DAY)} {_clock(seconds % _DAY)}"


class Table:
    """One resource of one site, in order of Id.

    :param resource: name of the resource
    :param site: the site that owns the rows
    :param count: rows to begin with
    :param seed: the same seed gives the same rows
    :param until: when the last of them was created
    """

    def __init__(self, resource: str, site: str, count: int, seed: int, until: datetime) -> None:
        draw = random.Random(f"{seed}/{site}/{resource}")  # noqa: S311 - repeatable on purpose
        self._template, self._site = _TEMPLATES[resource], site
        self._gaps = cycle(draw.choices((1, 1, 1, 2, 3, 5), k=997))
        self._last = 12000 + draw.randrange(500)
        self.ids: list[int] = []
        self._rows: list[bytes | None] = []
        # Seconds from START, of records made or changed while the sandbox runs.
        self._created: dict[int, int] = {}
        self._changed: dict[int, int] = {}
        self._recent: tuple[datetime | None, list[int]] = (None, [])
        self.add(count)
        self._end, self._end_id = int((until - START).total_seconds()), self._last

    def add(self, count: int, when: datetime | None = None, /, **fields: Any) -> list[str]:
        """Append records, made at a time and with ``fields`` replacing generated ones; return their Ids."""
        new = list(islice(accumulate(self._gaps, initial=self._last), 1, count + 1))
        self._last = max(new, default=self._last)
        if when:
            self._created |= dict.fromkeys(new, int((when - START).total_seconds()))
            self._changed |= {row_id: self._created[row_id] for row_id in new}
        rows = [json.dumps({**json.loads(self._make(i)), **fields}).encode() for i in new] if fields else [None] * count
        self.ids += new
        self._rows += rows
        self._recent = (None, [])
        return [str(row_id) for row_id in new]

    def delete(self, row_id: int) -> bool:
        """Remove a record; return whether it existed."""
        at = bisect_left(self.ids, row_id)
        if self.ids[at : at + 1] != [row_id]:
            return False
        del self.ids[at], self._rows[at]
        self._recent = (None, [])
        return True

    def touch(self, row_id: int, when: datetime, /, **fields: Any) -> None:
        """Change a record's fields, and set the time of its last change."""
        row = self.find(row_id)
        if row is None:
            raise KeyError(row_id)
        self._changed[row_id] = int((when - START).total_seconds())
        values = json.loads(row)
        dates = {"ModifyDate": str(when.replace(microsecond=0))} if "ModifyDate" in values else {}
        self._rows[bisect_left(self.ids, row_id)] = json.dumps({**values, **dates, **fields}).encode()
        self._recent = (None, [])

    def find(self, row_id: int) -> bytes | None:
        """Return one record as JSON, or None."""
        at = bisect_left(self.ids, row_id)
        return self._slice(at, at + 1)[0] if self.ids[at : at + 1] == [row_id] else None

    def page(
        self,
        since_id: int = -1,
        since: datetime | None = None,
        last_update: datetime | None = None,
        offset: int = 0,
        size: int = 20,
        order: str = "ascending",
    ) -> tuple[list[bytes], int]:
        """Return the encoded records of a page, and how many match over all pages."""
        start = bisect_right(self.ids, since_id)
        if since:
            start = max(start, bisect_right(self.ids, (since - START).total_seconds(), key=self._created_at))
        if last_update is None and order in ("ascending", "page"):
            rows = self._slice(start + offset, start + offset + size)
            total = len(self.ids) - start
        else:
            places = self._updated(last_update)
            places = places[bisect_left(places, start) :]
            if order != "ascending":
                places.sort(key=(lambda at: -at) if order == "descending" else (lambda at: _lag(self.ids[at])))
            rows = [self._slice(at, at + 1)[0] for at in places[offset : offset + size]]
            total = len(places)
        return (rows[::-1] if order == "page" else rows), total

    def _updated(self, after: datetime | None) -> list[int]:
        """Return the places of the records changed after a time; the last result is kept for the next page."""
        if after is None:
            return list(range(len(self.ids)))
        if self._recent[0] != after:
            bound = (after - START).total_seconds()
            self._recent = (after, [at for at, i in enumerate(self.ids) if self._changed_at(i) > bound])
        return self._recent[1]

    def _changed_at(self, row_id: int) -> int:
        """Seconds from START to the record's last change."""
        if row_id in self._changed:
            return self._changed[row_id]
        created = self._created_at(row_id)
        return created + _lag(row_id) % (self._end - created + 1)

    def _created_at(self, row_id: int) -> int:
        """Seconds from START to the record's creation."""
        return self._created.get(row_id, self._end - (self._end_id - row_id) * STEP)

    def _slice(self, start: int, end: int) -> list[bytes]:
        """Return encoded records, making those that were never read."""
        rows = self._rows[start:end]
        if None in rows:
            for at in range(len(rows)):
                rows[at] = self._rows[start + at] = rows[at] or self._make(self.ids[start + at])
        return rows  # type: ignore[return-value]  # no None is left

    def _make(self, row_id: int) -> bytes:
        """Encode the record of an Id."""
        n = row_id * 31 + len(self._site)
        values = {
            "id": row_id,
            "site": self._site,
            "created": _stamp(self._created_at(row_id)),
            "modified": _stamp(self._changed_at(row_id)),
            "word": _WORDS[n % 5],
            "media": _MEDIA[n % 6],
            "status": _STATUS[n % 4],
            "priority": _PRIORITY[n % 3],
            "name": _NAMES[n % 6],
            "mail": f"customer{row_id % 5000}@example.com",
            "small": row_id % 40,
        }
        return (self._template % values).encode()


def as_row(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a ticket's fields, also those of a record, as its row has them; raise ValueError for one that is wrong."""
    row = dict(fields)
    for name, codes in _CODES.items():
        if f"{name}Id" in row:
            code = row.pop(f"{name}Id")
            row[name] = next((label for label in codes if codes[label] == code), None)
        if name in row and row[name] not in codes:
            raise ValueError(name)
    if derived := sorted(row.keys() & {"AssigneeList", "CategoryId", "ContactId", "ExpireDate", "MessageId"}):
        raise ValueError(derived[0])
    return row


def record(row: bytes) -> bytes:
    """Return a single ticket, which has Ids where a listed one has names."""
    values = json.loads(row)
    contact = str(int(values["Id"]) // 2)
    ids = {
        "Requestor": contact,
        "ContactId": contact,
        "StatusId": _CODES["Status"].get(str(values["Status"]), "TS2"),
        "PriorityId": _CODES["Priority"].get(str(values["Priority"]), "TP1"),
        "CategoryId": str(len(str(values["Category"]))),
        "MessageId": f"{values['Id']}0",
        "AssigneeList": [{"Id": "55", "Name": values["Assignee"]}],
        "ExpireDate": "3000-01-01 00:00:00",
    }
    return json.dumps({name: value for name, value in values.items() if name not in _NAMED} | ids).encode()


def attachment(path: str, date: str | None, name: str) -> dict[str, Any]:
    """Return an attachment as a message has it."""
    return {"Description": name, "File": {"Name": name, "Date": date, "Path": path}}


def conversation(ticket: dict[str, Any], own: str, public: str) -> list[dict[str, Any]]:
    """Return a ticket's conversation from before the sandbox's start: up to two messages, and the others as threads.

    :param ticket: the row
    :param own: URL that attachments on the server itself begin with
    :param public: the same on another one
    """
    date, files = ticket["CreateDate"], [own, public]
    messages = [
        {
            "Id": f"{ticket['Id']}{n}",
            "ConversationId": ticket["Id"],
            "Subject": ticket["Subject"],
            "FromName": ("Customer Care", ticket["Requestor"])[n % 2 == 0],
            "Processing": (1, "1")[n % 2],
            "Content": f"<p>message {n}</p>",
            "Contents": [f"message {n}"],
            "Attachments": [attachment(f"{url}/{ticket['Id']}/{n}.txt", date, f"{n}.txt") for url in files[n : n + 1]],
            "CreateDate": date,
        }
        for n in range(int(ticket["Id"]) % 4 + 1)
    ]
    messages[0]["Attachments"] += ticket["Attachments"]
    threads: list[dict[str, Any]] = []
    for message in reversed(messages[2:]):
        threads = [{"type": "thread", "ticketId": ticket["Id"], "data": [message, *threads]}]
    return [*messages[:2], *threads]


def integer_id(row: bytes) -> bytes:
    """Return a record with its Id as a JSON number."""
    return re.sub(rb'^{"Id": "(\d+)"', rb'{"Id": \1', row)
