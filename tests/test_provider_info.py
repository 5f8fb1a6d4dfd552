"""What Airflow reads about the provider: it is valid, complete and shown without a warning."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
from support.airflow_home import AIRFLOW_VERSION, AirflowHome
from support.processes import run
from support.run_commands import MARK

import airflow_provider_onebox
from airflow_provider_onebox.api import settings
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.provider_info import CONN_FIELDS, UI_FIELD_BEHAVIOUR, get_provider_info

NAME = "airflow-provider-onebox"
AIRFLOW = Path(find_spec("airflow").submodule_search_locations[0])


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What Airflow's tables and its connection form show, from one process without a database; all warnings are on."""
    with AirflowHome(tmp_path_factory.mktemp("providers"), env={"PYTHONWARNINGS": "always"}) as home:
        output = home.python(str(Path(__file__).parent / "support" / "connection_form.py"))
    _, *tables, form = output.split(MARK)
    return tables, form


def modules_in(folder):
    """Name the public modules of a folder of the package, if there is one."""
    path = Path(airflow_provider_onebox.__file__).parent / folder
    if path.with_suffix(".py").exists():
        return {f"airflow_provider_onebox.{folder}"}
    return {
        f"airflow_provider_onebox.{folder}.{module.name}"
        for module in pkgutil.iter_modules([str(path)])
        if module.name[0] != "_"
    }


def test_schemas():
    """Both of Airflow's schemas accept it: that used at run time, and the strict one of Airflow's own providers."""
    info = get_provider_info()
    jsonschema.validate(info, json.loads((AIRFLOW / "provider_info.schema.json").read_text()))
    schema = json.loads((AIRFLOW / "provider.yaml.schema.json").read_text())
    schema["required"] = ["name", "package-name", "description"]
    # The strict one knows no key of another Airflow's.
    other = {"asset-uris", "dataset-uris", "retry-policies"} - schema["properties"].keys()
    assert not {"asset-uris", "dataset-uris"} <= other
    jsonschema.validate({key: value for key, value in info.items() if key not in other}, schema)


def test_entry_point():
    """The one entry point of the distribution leads to the information, and the name is the distribution's."""
    (found,) = (e for e in entry_points(group="apache_airflow_provider") if e.dist.name == NAME)
    assert found.load() is get_provider_info
    assert get_provider_info()["package-name"] == NAME
    assert version(NAME) == airflow_provider_onebox.__version__


KINDS = {name: name for name in ("hooks", "operators", "sensors", "triggers")} | {"retry-policies": "retry_policy"}


@pytest.mark.parametrize(("kind", "folder"), KINDS.items())
def test_modules_are_listed(kind, folder):
    """Every module of the kind is listed, and every listed one can be imported."""
    listed = [name for entry in get_provider_info().get(kind, []) for name in entry["python-modules"]]
    assert sorted(listed) == sorted(modules_in(folder))
    for name in listed:
        importlib.import_module(name)


def test_classes_are_listed():
    """What Airflow takes by class name exists: the hook of the connection, and the notifiers."""
    info = get_provider_info()
    notifiers = info.get("notifications", [])
    assert {name.rpartition(".")[0] for name in notifiers} == modules_in("notifications")
    for name in [*notifiers, *(entry["hook-class-name"] for entry in info["connection-types"])]:
        module, _, attribute = name.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), attribute), type)
    (integration,) = info["integrations"]
    assert info["name"] == integration["integration-name"] == OneboxHook.hook_name
    assert integration["external-doc-url"] == settings.DEFAULT_HOST
    for kind in KINDS:
        assert {entry["integration-name"] for entry in info[kind]} == {info["name"]}


def test_uris():
    """Assets are declared under the key of Airflow 3 and that of Airflow 2, and what they name can be called."""
    info = get_provider_info()
    assert info["asset-uris"] == info["dataset-uris"]
    (uris,) = info["asset-uris"]
    assert set(uris) == {"schemes", "handler", "factory", "to_openlineage_converter"}
    assert uris["schemes"] == ["onebox"]
    for name in (uris["handler"], uris["factory"], uris["to_openlineage_converter"]):
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute))


def test_reading_it_costs_nothing():
    """Every Airflow process imports it, so neither Airflow nor an HTTP library comes along."""
    code = """
import sys
from airflow_provider_onebox.provider_info import get_provider_info
get_provider_info()
print(sorted({"airflow", "requests", "urllib3", "jwt", "msgspec"} & {name.split(".")[0] for name in sys.modules}))
"""
    done = run(sys.executable, "-c", code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_airflow_lists_it(shown):
    """Airflow's command line names the provider in one row of each table and nowhere else, such as in a warning."""
    rows = [[line for line in table.splitlines() if "onebox" in line.lower()] for table in shown[0]]
    columns = [[{cell.strip() for cell in row.split("|")} for row in found] for found in rows]
    ((listed,), (hook,)) = columns
    assert {NAME, airflow_provider_onebox.__version__} <= listed
    assert {"airflow_provider_onebox.hooks.onebox.OneboxHook", "onebox_conn_id"} <= hook


def test_connection_form(shown):
    """The page shows our labels, hides what has no use, and has a field for each extra."""
    *before, last = shown[1].splitlines()
    form = json.loads(last)
    assert not [line for line in before if "onebox" in line.lower() and "warn" in line.lower()]
    if AIRFLOW_VERSION == (3, 0) and not find_spec("wtforms"):
        # Airflow 3.0 itself imports wtforms before it asks any hook, and shows no provider's fields without it.
        assert form == {"hidden": [], "labels": {}, "extra": {}}
        return
    assert sorted(form["hidden"]) == UI_FIELD_BEHAVIOUR["hidden-fields"] == ["schema"]
    assert form["labels"] == UI_FIELD_BEHAVIOUR["relabeling"]
    assert form["extra"] == {name: [field["label"], field["description"]] for name, field in CONN_FIELDS.items()}


@pytest.mark.parametrize(
    ("name", "fit", "unfit"),
    [
        ("site_id", [169], ["x", None]),
        ("timeout", [30, 0.5, None], ["30"]),
        ("max_retries", [0, 3, None], [-1, 0.5, "3"]),
        ("verify", ["/ca.pem", None], [5]),
        ("proxies", ['{"https": "http://proxy.example"}', {"https": "http://proxy.example"}, None], [5]),
        ("allow_http", [True, False, None], ["yes"]),
    ],
)
def test_values_of_the_form(name, fit, unfit):
    """The page takes what can work, and no other kind of value."""
    for value in fit:
        jsonschema.validate(value, CONN_FIELDS[name]["schema"])
    for value in unfit:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(value, CONN_FIELDS[name]["schema"])


def test_examples_of_the_form():
    """What the page shows in fields that are empty fits them, and is the default where there is one."""
    examples = UI_FIELD_BEHAVIOUR["placeholders"]
    assert set(examples) == {"host", "login", "password", "port", "site_id", "timeout", "max_retries", "verify"}
    assert "443" in examples["port"]
    assert examples["host"] == settings.DEFAULT_HOST
    assert examples["login"].endswith("@example.com")
    assert float(examples["timeout"]) == settings.DEFAULT_TIMEOUT
    assert int(examples["max_retries"]) == settings.DEFAULT_MAX_RETRIES
    assert (examples["site_id"], examples["verify"]) == ("169", "true")
    assert CONN_FIELDS["allow_http"]["schema"]["default"] is False


def test_names_of_the_form():
    """A user meets these fields, in this order, with these names."""
    labels = {name: field["label"] for name, field in CONN_FIELDS.items()}
    assert labels == {
        "site_id": "Site ID",
        "timezone": "Time zone",
        "timeout": "Timeout (seconds)",
        "max_retries": "Retries",
        "verify": "TLS verification",
        "proxies": "Proxies",
        "allow_http": "Allow plain HTTP",
    }
    names = {"host": "Onebox URL", "login": "Email", "password": "Password", "port": "Port, usually 443"}
    assert UI_FIELD_BEHAVIOUR["relabeling"] == names
    (connection,) = get_provider_info()["connection-types"]
    assert (connection["connection-type"], connection["hook-name"]) == (OneboxHook.conn_type, OneboxHook.hook_name)
    assert (connection["conn-fields"], connection["ui-field-behaviour"]) == (CONN_FIELDS, UI_FIELD_BEHAVIOUR)
