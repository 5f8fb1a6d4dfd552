"""The forms of conversations, messages and attachments in requests and responses."""

from __future__ import annotations

import pytest

from airflow_provider_onebox.api.messages import greatest_id, messages_in

DEEP = {"data": [{"Id": "1"}]}
for _ in range(3000):
    DEEP = {"type": "thread", "data": [DEEP]}


@pytest.mark.parametrize(
    ("response", "ids"),
    [
        ({"data": []}, []),
        ({"data": [{"Id": "1"}, {"type": "t", "data": [{"Id": "2"}, {"data": [{"Id": "3"}]}]}, {"Id": "4"}]}, "1234"),
        ({"data": [{"data": []}, {"Id": "1", "data": None}]}, "1"),
        ({"data": {}}, []),
        ({"data": {"0": {"Id": "1"}, "2": {"data": {"1": {"Id": "2"}}}, "3": {"Id": "3", "data": {"a": 1}}}}, "123"),
        (DEEP, "1"),
    ],
    ids=["none", "threads", "empty thread", "empty object", "objects", "deep"],
)
def test_flatten(response, ids):
    """Messages come in the order in which they would be read, however deep they are, with the ticket's id."""
    found = messages_in(response, "7")
    assert [message["Id"] for message in found] == list(ids)
    assert all(message["ticketId"] == "7" for message in found)


@pytest.mark.parametrize(
    "response",
    [None, [], "x", {}, {"data": None}, {"data": {"a": {}}}, {"data": [1]}, {"data": [[]]}, {"data": {"\u0661": {}}}],
)
def test_no_conversation(response):
    """What is no conversation is none, not an empty one."""
    assert messages_in(response, "7") is None


def test_greatest_id():
    """The newest message is that with the greatest number, and what has none is passed over."""
    assert greatest_id([{"Id": "9"}, {"Id": 10}, {"Id": None}, {}, "x", {"Id": "9" * 5000}]) == "10"
    assert greatest_id([]) is None
