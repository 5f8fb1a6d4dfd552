"""Fields that hold secrets are known by their names, wherever they are in a response."""

from __future__ import annotations

import pytest

from airflow_provider_onebox.api.secret_fields import remove_secrets

DEEP = {"token": "x"}
for _ in range(3000):
    DEEP = {"data": [DEEP], "token": "x"}


@pytest.mark.parametrize(
    "name",
    [
        "Password",
        "password",
        "PASSWORD",
        "Passwords",
        "token",
        "Token",
        "access_token",
        "accessToken",
        "Access-Token",
        "page access token",
        "refresh_token",
        "TOKENS",
        "app_secret",
        "ClientSecret",
        "api_key",
        "apiKey",
        "token_",
    ],
)
@pytest.mark.parametrize("value", ["x", "", 7, 1, 0, {"value": "x"}, ["x"], {}, []])
def test_secrets(name, value):
    """Case and separators don't matter, nor what the value is, nor how deep it is."""
    assert remove_secrets({name: value, "Id": "1"}) == {"Id": "1"}
    assert remove_secrets([{"Id": "1", "accounts": [{name: value}, [[{"x": {name: value}}]]]}]) == [
        {"Id": "1", "accounts": [{}, [[{"x": {}}]]]}
    ]


@pytest.mark.parametrize("name", ["Tokenized", "TokenCount", "PasswordHint", "Secretary", "Keypass", "Id", "", "_"])
def test_other_names(name):
    """A name that only begins like one of a secret is none."""
    assert remove_secrets({name: "x"}) == {name: "x"}


@pytest.mark.parametrize("value", [None, True, False])
def test_no_value(value):
    """A field without a value, or one that only tells whether there is a secret, is harmless."""
    assert remove_secrets({"Token": value, "a": [{"HasPassword": value}]}) == {
        "Token": value,
        "a": [{"HasPassword": value}],
    }


@pytest.mark.parametrize("data", [None, "token", 7, [], {}, ["token", None, 1.5]])
def test_no_fields(data):
    """What holds no fields stays as it is."""
    assert remove_secrets(data) == data


def test_deep():
    """No depth is too much, and the response itself is changed."""
    data = remove_secrets(DEEP)
    assert data is DEEP
    depth = 0
    while data:
        assert list(data) == ["data"]
        (data,) = data["data"]
        depth += 1
    assert depth == 3000
