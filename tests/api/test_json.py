"""JSON as it is broken on its way: repaired where single values are, and said to be cut off only where it was."""

from __future__ import annotations

import json
import math
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_onebox.api.json import NotJSONError, TooManyValuesError, decode


@pytest.mark.parametrize(
    ("body", "value", "places"),
    [
        (rb'{"Id": "5", "a": "x\ud83dy"}', {"Id": "5", "a": "x\ufffdy"}, ["5"]),
        (rb'["\ude00\ud83d"]', ["\ufffd\ufffd"], [""]),
        (b'{"a": {"Id": 6, "b\xff": "\xc3\xa9"}}', {"a": {"Id": 6, "b\ufffd": "\u00e9"}}, ["6"]),
        (b"[NaN, Infinity, -Infinity, 1e999, -1e999, 1.5, 1e3]", [None] * 5 + [1.5, 1000.0], [""] * 5),
        (b"[1, 1" + b"0" * 4999 + b", NaN]", [1, None, None], ["", ""]),
        (b'{"Id": [NaN], "x": null}', {"Id": [None], "x": None}, [""]),
        (b'\xef\xbb\xbf ["\xed\xa0\xbd", true] ', ["\ufffd\ufffd\ufffd", True], [""]),
        (
            b'{"data": [{"Id": "1", "x": NaN}, {"Id": "2"}, NaN]}',
            {"data": [{"Id": "1", "x": None}, {"Id": "2"}, None]},
            ["1", ""],
        ),
    ],
)
def test_broken_values(body, value, places):
    """U+FFFD for text, null for numbers, and the record that it is."""
    repairs = []
    assert decode(body, repairs) == value
    assert repairs == places
    assert decode(body) == value


@pytest.mark.parametrize("body", [rb'["\u0000", "\ud83d\ude00", "\ufffd"]', b"[12345678901234567890123, 1.5, -0]"])
def test_whole_values(body):
    """What is unusual and whole is left as it is."""
    repairs = []
    assert decode(body, repairs) == json.loads(body)
    assert repairs == []


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(-1e300, 1e300) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=5), values, min_size=1, max_size=3), st.booleans(), st.data())
def test_beginning_of_json_is_cut_off(value, is_ascii, data):
    """Each beginning of an object is said to be cut off, wherever it ends; the whole of it is not."""
    body = json.dumps(value, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    assert decode(body) == json.loads(json.dumps(value))
    with pytest.raises(NotJSONError) as caught:
        decode(body[: data.draw(st.integers(1, len(body) - 1))])
    assert caught.value.is_cut_off is True


@pytest.mark.parametrize(
    "body", [b"{", b'{"a": 1', b'{"a": "\\u12', b'{"a": -', b"[1.", b"[1e", b"[-Infi", b"[tru", b'["a\\']
)
def test_cut_off(body):
    """The same of what breaks off within a text, a number or a word."""
    with pytest.raises(NotJSONError) as caught:
        decode(body)
    assert caught.value.is_cut_off is True


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"oops",
        b"{oops",
        b'{"a": 1}{"b"',
        b"[1 2]",
        b'["a\tb"]',
        b"{'a': 1}",
        b"[1,]",
        b"[" * 1_000_000,
        b"[NaN," + b"[" * 100_000,
        b"[NaN}",
    ],
)
def test_no_json(body):
    """What is not JSON for another reason was not cut off."""
    with pytest.raises(NotJSONError) as caught:
        decode(body)
    assert caught.value.is_cut_off is False
    assert isinstance(caught.value, ValueError)


def test_number_of_values_is_bounded():
    """A body of more values of any kind is rejected."""
    assert len(decode(b"[" + b"0," * 999_999 + b"0]")) == 1_000_000
    for piece in (b"0,", b"[]", b"{}"):
        with pytest.raises(TooManyValuesError, match=r"^more than 1,000,000 values$"):
            decode(b"[" + piece * 1_000_000 + b"0]")


@pytest.mark.parametrize("piece", [b"[],", b"{},", b'{"":1},', b'"ab",', b"0.1,", b"1000,", b"[[1]],"])
def test_memory_is_bounded(piece):
    """A million values that take the most memory take less than 256 MiB; a hundredth of them shows it."""
    count = 10_000 // sum(map(piece.count, (b",", b"[", b"{")))
    tracemalloc.start()
    value = decode(b"[" + piece * count + b"0]")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(value) == count + 1
    assert peak < 2.56 * 2**20


def test_small_bodies_are_not_counted():
    """A body of a mebibyte may hold what it likes: that is little."""
    assert len(decode(b"[" + b"0," * (2**19 - 2) + b"0]")) == 2**19 - 1
    with pytest.raises(NotJSONError):
        decode(b"[" * 2**20)
    assert not math.isnan(decode(b"[1]")[0])
