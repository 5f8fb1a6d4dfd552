"""Keys of Variables fit into Airflow's database."""

from __future__ import annotations

import pytest

from airflow_provider_onebox._airflow.variables import MAX_KEY, shorten_key


@pytest.mark.parametrize("length", [0, 1, 249, 250])
def test_short(length):
    """A key that fits stays as it is."""
    assert shorten_key("x" * length) == "x" * length


@pytest.mark.parametrize("length", [251, 1000])
def test_long(length):
    """A longer one begins alike, is as long as a key may be, and differs from every other."""
    key, other = shorten_key("x" * length), shorten_key("x" * (length - 1) + "y")
    assert len(key) == len(other) == MAX_KEY == 250
    assert key[:218] == other[:218] == "x" * 217 + "."
    assert key != other
    assert shorten_key("x" * length) == key
