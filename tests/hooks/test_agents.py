"""Methods of the hook as tools of an agent, with the toolset of apache-airflow-providers-common-ai."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from airflow_provider_onebox.hooks.onebox import OneboxHook


@pytest.fixture(scope="module")
def ai():
    """Import the libraries for agents, which takes long."""
    from airflow.providers.common.ai.toolsets.hook import HookToolset
    from pydantic_ai import Agent
    from pydantic_ai.models.test import TestModel

    return SimpleNamespace(toolset=HookToolset, agent=Agent, model=TestModel)


def results(run):
    """Return what the tools returned, by their name."""
    from pydantic_ai.messages import ToolReturnPart

    parts = [part for message in run.all_messages() for part in message.parts]
    return {part.tool_name: part.content for part in parts if isinstance(part, ToolReturnPart)}


def test_reads(ai, connected):
    """An agent calls the allowed reads; their results are JSON without secrets."""
    toolset = ai.toolset(
        OneboxHook(), allowed_methods=["get_records", "count_records"], pinned_arguments={"resource": "connection"}
    )
    run = asyncio.run(ai.agent(ai.model(), toolsets=[toolset]).run("How many channels are there?"))
    found = results(run)
    records = json.loads(found["get_records"])
    assert [record["Id"] for record in records] == connected.state.ids("connection")
    assert json.loads(found["count_records"]) == [250, int(records[-1]["Id"])]
    assert not {"Password", "Token"} & set(records[0])


def test_schema(ai):
    """Each argument of a tool has a type and a description, and what is pinned is not among them."""
    model = ai.model(call_tools=[])
    toolset = ai.toolset(
        OneboxHook(), allowed_methods=["get_records"], pinned_arguments={"resource": "ticketrz", "max_records": 5}
    )
    asyncio.run(ai.agent(model, toolsets=[toolset]).run("Nothing"))
    (tool,) = model.last_model_request_parameters.function_tools
    properties = tool.parameters_json_schema["properties"]
    assert set(properties) == {"since_id", "since", "until", "last_update", "newest"}
    assert [name for name, schema in properties.items() if not {"type", "anyOf"} & set(schema)] == []
    assert [name for name, schema in properties.items() if not schema.get("description")] == []
    assert "Get records of a resource" in tool.description


def test_copied_hook(ai, connected, connect):
    """A toolset that is given another connection asks that one."""
    connect(connected.url, "onebox_other", login=connected.email, password=connected.password, site_id="170")
    hook = OneboxHook()
    assert hook.settings.site_id == "169"
    toolset = ai.toolset(hook, allowed_methods=["get_records"], pinned_arguments={"resource": "ticketrz"})
    toolset.conn_id = "onebox_other"
    run = asyncio.run(ai.agent(ai.model(), toolsets=[toolset]).run("List tickets"))
    records = json.loads(results(run)["get_records"])
    assert [record["Id"] for record in records] == connected.state.ids(site="170")
