"""The connection form of Airflow 2.11 to 3.1: the fields of the provider info, as WTForms widgets."""

from __future__ import annotations

import html
import sys
import warnings
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest

from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.provider_info import CONN_FIELDS


class Unbound:
    """Stands in for a form field where Airflow has no form library: it keeps what it was made of."""

    def __init__(self, *args, **kwargs):
        self.field_class, self.args, self.kwargs = type(self), args, kwargs


@pytest.fixture
def _form_library(monkeypatch):
    """Provide what the form of older Airflow is made of: the real thing on Airflow 2, stand-ins elsewhere."""
    if find_spec("wtforms") and find_spec("flask_appbuilder"):
        return
    stand_in_for_form_library(monkeypatch)


def stand_in_for_form_library(monkeypatch):
    """Put stand-ins in the place of what the form of older Airflow is made of."""
    fields = {name: type(name, (Unbound,), {}) for name in ("BooleanField", "IntegerField", "StringField")}
    modules = {
        "wtforms": fields,
        "wtforms.validators": {"Optional": type("Optional", (), {})},
        "flask_appbuilder": {},
        "flask_appbuilder.fieldwidgets": {
            "BS3TextFieldWidget": type("BS3TextFieldWidget", (), {"__call__": lambda _, field, **shown: shown})
        },
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("_form_library")
def test_form_of_older_airflow():
    """The widgets of Airflow 2.11 to 3.1 are made of the same declaration as the form of later ones."""
    behaviour = OneboxHook.get_ui_field_behaviour()
    assert behaviour["hidden_fields"] == ["schema"]
    assert behaviour["relabeling"]["login"] == "Email"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries of Airflow 2's page warn of each other
        widgets = OneboxHook.get_connection_form_widgets()
    assert {name: (w.args[0], w.kwargs["description"]) for name, w in widgets.items()} == {
        name: (declared["label"], declared["description"]) for name, declared in CONN_FIELDS.items()
    }
    assert {name: w.field_class.__name__ for name, w in widgets.items()} == {
        "site_id": "IntegerField",
        "timezone": "StringField",
        "timeout": "StringField",
        "max_retries": "IntegerField",
        "verify": "StringField",
        "proxies": "StringField",
        "allow_http": "BooleanField",
    }
    # One form serves all connection types on Airflow 2: what one requires, all would.
    assert all(type(validator).__name__ == "Optional" for w in widgets.values() for validator in w.kwargs["validators"])


def test_stored_values_in_the_form_of_airflow_2():
    """What a connection made from JSON holds is shown as JSON, and the text "false" as off."""
    pytest.importorskip("flask_appbuilder", reason="part of Airflow 2 alone")
    from wtforms import Form

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        form = type("ConnectionForm", (Form,), OneboxHook.get_connection_form_widgets())()
    assert 'value=""' in form.proxies()
    form.proxies.data = {"https": "http://proxy.example:3128"}
    assert html.unescape(form.proxies()).count('value="{"https": "http://proxy.example:3128"}"') == 1
    for stored, shown in ((True, "true"), ("/etc/ca.pem", "/etc/ca.pem")):
        form.verify.data = stored
        assert f'value="{shown}"' in form.verify()
    form.site_id.data = "169"
    assert 'value="169"' in form.site_id()
    for stored, on in ((True, True), ("true", True), ("false", False), (False, False), (None, False)):
        form.allow_http.data = stored
        assert ("checked" in form.allow_http()) is on


def test_stored_values_wherever_the_form_is_made(monkeypatch):
    """The same with stand-ins, for where Airflow has no form library."""
    stand_in_for_form_library(monkeypatch)
    widgets = OneboxHook.get_connection_form_widgets()
    show = widgets["proxies"].kwargs["widget"]
    assert show(SimpleNamespace(data={"https": "x"}), id="proxies") == {"id": "proxies", "value": '{"https": "x"}'}
    assert show(SimpleNamespace(data=None)) == show(SimpleNamespace(data="text")) == {}
    switch = type("Switch", (), {"widget": staticmethod(lambda field: field.data), "data": None})()
    for stored, on in ((True, True), ("true", True), ("false", False), (None, False)):
        switch.data = stored
        assert widgets["allow_http"].kwargs["widget"](switch) is on
