"""The error family: its tree, its details, and texts that are safe to show."""

from __future__ import annotations

import inspect
import pickle

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_onebox import exceptions
from airflow_provider_onebox.exceptions import OneboxError, OneboxServiceHoursError, OneboxUncertainWriteError, sanitize

FAMILY = [cls for _, cls in inspect.getmembers(exceptions, inspect.isclass) if issubclass(cls, OneboxError)]


def test_tree_in_docstring_is_the_tree():
    """The drawing names every class, and stars those that fail a task at once."""
    assert len(FAMILY) == 9
    for cls in FAMILY:
        assert issubclass(cls, AirflowException)
        line = next(line for line in exceptions.__doc__.splitlines() if f" {cls.__name__} " in line)
        assert (" * " in line) is issubclass(cls, AirflowFailException)


@pytest.mark.parametrize("cls", FAMILY)
def test_details_survive_pickling(cls):
    """What is known of an error crosses process borders with it."""
    error = cls("m", status=401, code="401", server_message="w", retryable=not cls.retryable, retry_after=5.0)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (str(copy), copy.status, copy.code, copy.server_message, copy.retry_after) == ("m", 401, "401", "w", 5.0)
    assert vars(copy) == vars(error)
    assert copy.retryable is not cls.retryable


def test_retryable_is_the_class_attribute_unless_given():
    """Service hours begin again; the class says so."""
    assert OneboxServiceHoursError("m").retryable is True
    assert OneboxServiceHoursError("m", retryable=False).retryable is False


def test_uncertain_is_the_class_attribute_unless_given():
    """Only of an uncertain write nobody knows whether Onebox acted, unless it is given."""
    assert {cls for cls in FAMILY if cls("m").uncertain} == {OneboxUncertainWriteError}
    for value in (False, True):
        assert {cls("m", uncertain=value).uncertain for cls in FAMILY} == {value}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\n  c\x00\x1b[31md", "a b c [31md"),
        ("\u202eevil\u2028line", "evil line"),
        ("x" * 500, "x" * 199 + "…"),
        ("x" * 200, "x" * 200),
        (None, "None"),
        ("", ""),
    ],
)
def test_sanitize(text, shown):
    """A text from outside is made printable, put on one line and shortened."""
    assert sanitize(text) == shown
