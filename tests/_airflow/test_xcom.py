"""What Airflow stores of a result is what this Airflow's own XCom makes of it."""

from __future__ import annotations

import pickle

import pytest
from airflow.providers.common.compat import sdk

from airflow_provider_onebox._airflow.xcom import as_stored


@pytest.mark.parametrize("value", [None, 1, "x", [1, {"a": "ß\0"}], {"a": None}])
def test_plain_json(value):
    """Plain JSON is stored as it is, on every Airflow."""
    assert as_stored(value) == value


def test_serializers():
    """What Airflow can serialize is made JSON; what it can't raises."""
    assert isinstance(as_stored({1}), dict)
    with pytest.raises(TypeError):
        as_stored(object())


class BaseXCom:
    """As Airflow's own on 2.11, with one of its two settings."""

    @staticmethod
    def serialize_value(value):
        """Return JSON text as bytes."""
        return b'{"a": NaN}' if value == "nan" else pickle.dumps(value)


class OwnXCom(BaseXCom):
    """A deployment's custom backend."""

    @staticmethod
    def serialize_value(value):
        """Store it elsewhere."""
        raise AssertionError


class QuietXCom(BaseXCom):
    """A backend that leaves the serializing to Airflow."""


def test_of_airflow_2(monkeypatch):
    """On Airflow 2, the bytes are JSON, which can hold NaN, or a pickle, which can hold anything."""
    for backend in (BaseXCom, QuietXCom):
        monkeypatch.setattr(sdk, "XCom", backend, raising=False)
        assert repr(as_stored("nan")) == "{'a': nan}"
        assert as_stored({"a": object}) is None


def test_custom_backend(monkeypatch):
    """Only a deployment's custom backend knows what it can store."""
    monkeypatch.setattr(sdk, "XCom", OwnXCom, raising=False)
    assert as_stored(object()) is None
