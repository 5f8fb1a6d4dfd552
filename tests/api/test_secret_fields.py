"""Fields that hold secrets are known by their names, wherever they are in a response."""

from __future__ import annotations

import re
import time
from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_onebox.api.secret_fields import without_secrets

DEEP = {"token": "x"}
for _ in range(3000):
    DEEP = {"data": [DEEP], "token": "x"}


WITH_CASE = ["Password", "PASSWORDS", "Token", "accessToken", "ClientSecret", "apiKey"]
WITH_SEPARATORS = ["access_token", "Access-Token", "page access token", "app_secret", "api_key", "token_"]


@pytest.mark.parametrize("name", WITH_CASE + WITH_SEPARATORS)
def test_secrets(name):
    """Case and separators don't matter, nor what the value is, nor how deep it is."""
    for value in ("x", "", 7, 1, 0, {"value": "x"}, ["x"], {}, []):
        data = [{"Id": "1", name: value, "accounts": [{name: value}, [[{"x": {name: value}}]]]}]
        assert without_secrets(data) == [{"Id": "1", "accounts": [{}, [[{"x": {}}]]]}]


@pytest.mark.parametrize("name", ["Tokenized", "TokenCount", "PasswordHint", "Secretary", "Keypass", "Id", "", "_"])
def test_other_names(name):
    """A name that only begins like one of a secret is none."""
    assert without_secrets({name: "x"}) == {name: "x"}


@pytest.mark.parametrize("value", [None, True, False])
def test_no_value(value):
    """A field without a value, or one that only says whether there is a secret, is harmless."""
    data = {"Token": value, "a": [{"HasPassword": value}]}
    assert without_secrets(data) is data


@pytest.mark.parametrize("data", [None, "token", 7, [], {}, ["token", None, 1.5], {"Id": "1"}, [{"Tags": ["a"]}]])
def test_no_secret(data):
    """What holds no secret is the data itself."""
    assert without_secrets(data) is data


@pytest.mark.parametrize("form", [lambda data: data, lambda data: [data]], ids=["object", "list"])
def test_not_changed(form):
    """The data stays as it was; what is returned is a copy."""
    data = form({"Id": "1", "a": [{"Token": "x", "Tags": ["a"]}], "Token": "y"})
    before = deepcopy(data)
    assert without_secrets(data) == form({"Id": "1", "a": [{"Tags": ["a"]}]})
    assert data == before


def test_deep():
    """No depth is too much."""
    data = without_secrets(DEEP)
    depth = 0
    while data:
        assert list(data) == ["data"]
        (data,) = data["data"]
        depth += 1
    assert depth == 3000


# Each letter that another case or form has, too: \u00df is ss, \u212a is k, \u017f is s.
PARTS = ["pass", "word", "pa\u00dfword", "to", "\u212aen", "ken", "Secret", "api", "KEY", "\u017f", "s", "_", "-", "Id"]
NAMES = st.text(max_size=3) | st.lists(st.sampled_from([*PARTS, " "]), max_size=5).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "password"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=30,
)


def field_by_field(data):
    """The rule itself, written for a single field."""
    if isinstance(data, list):
        return [field_by_field(item) for item in data]
    if not isinstance(data, dict):
        return data
    return {
        name: field_by_field(value)
        for name, value in data.items()
        if value is None
        or isinstance(value, bool)
        or not re.search("(password|token|secret|apikey)s?$", re.sub(r"[\W_]", "", name.casefold()))
    }


def objects_in(data):
    """Count the objects of a response."""
    if isinstance(data, dict):
        return 1 + sum(map(objects_in, data.values()))
    return sum(map(objects_in, data)) if isinstance(data, list) else 0


@given(VALUES, st.integers(0, 2))
def test_any_response(data, more):
    """With any names and at any depth, it is what field by field would give, in the same order.

    How many objects there are at most changes nothing, as long as it is right.
    """
    before, expected = deepcopy(data), repr(field_by_field(data))
    assert repr(without_secrets(data)) == expected
    assert repr(without_secrets(data, objects_in(data) + more)) == expected
    assert repr(data) == repr(before)


def test_search_ends_with_the_last_object():
    """Once all objects are found, what is below them is left alone: there are no other fields."""
    data = [{"Token": None, "a": {"Token": "x"}}, {"a": {"Token": "x"}}]
    assert without_secrets(data, 2) is data
    assert without_secrets(data, 3) == [{"Token": None, "a": {}}, {"a": {}}]


def test_many_names():
    """Objects with as many different secrets as there are objects take no longer for each."""
    objects = [{f"a{n}Token": "x", "Id": n} for n in range(20_000)]
    begun = time.process_time()
    found = without_secrets(objects)
    assert time.process_time() - begun < 20
    assert found == [{"Id": n} for n in range(20_000)]
