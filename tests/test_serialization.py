"""What Airflow stores of a DAG when it parses the file, and reads back in scheduler, API server and triggerer."""

from __future__ import annotations

import importlib
import inspect
import json
from datetime import datetime

import pytest
from airflow.providers.common.compat.sdk import DAG, BaseOperator
from airflow.serialization import serialized_objects

from airflow_provider_onebox.provider_info import get_provider_info

# Airflow 3.2 has given what writes and what is read back two names.
Serialized = getattr(serialized_objects, "DagSerialization", serialized_objects.SerializedDAG)
MODULES = [
    name for kind in ("operators", "sensors") for entry in get_provider_info()[kind] for name in entry["python-modules"]
]
CLASSES = [
    found
    for module in map(importlib.import_module, MODULES)
    for name, found in vars(module).items()
    if inspect.isclass(found) and issubclass(found, BaseOperator) and name.startswith("Onebox")
]


def restored(dag):
    """Store a DAG as JSON, which is checked against Airflow's schema, and read it back."""
    return Serialized.from_dict(json.loads(json.dumps(Serialized.to_dict(dag))))


@pytest.mark.parametrize("operator", CLASSES)
def test_every_operator(operator):
    """An operator or sensor, mapped or not, is stored with its type, its templates and its arguments."""
    arguments = {"onebox_conn_id": "crm"}
    for one in inspect.signature(operator).parameters.values():
        if one.default is one.empty and one.kind is one.KEYWORD_ONLY:
            arguments[one.name] = "contact" if one.name == "kind" else "{{ run_id }}"
    if operator.__name__ == "OneboxRecordSensor":  # It needs one of three arguments.
        arguments["since_id"] = "{{ run_id }}"
    with DAG("d", schedule=None, start_date=datetime(2026, 1, 1)) as dag:
        operator(task_id="plain", **arguments)
        operator.partial(task_id="mapped", **arguments).expand(site_id=["169", "170"])
    stored = restored(dag)
    plain, mapped = stored.get_task("plain"), stored.get_task("mapped")
    assert plain.task_type == mapped.task_type == operator.__name__
    assert tuple(plain.template_fields) == tuple(mapped.template_fields) == tuple(operator.template_fields)
    templates = {name: value for name, value in arguments.items() if name in operator.template_fields}
    assert {name: getattr(plain, name) for name in templates} == templates
    assert mapped.partial_kwargs.items() >= arguments.items()
    assert mapped.expand_input.value == {"site_id": ["169", "170"]}
