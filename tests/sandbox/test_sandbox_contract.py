"""The sandbox keeps to the contract, in ``contract.yaml`` and as schemathesis reads it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import schemathesis
from hypothesis import settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    ignored_auth,
    negative_data_rejection,
    positive_data_acceptance,
    unsupported_method,
)

from airflow_provider_onebox.sandbox import Sandbox
from airflow_provider_onebox.sandbox.data import RESOURCES
from airflow_provider_onebox.sandbox.state import FORMS, Settings

EXAMPLES = 10
CONFIG = SchemathesisConfig(
    seed=1,
    projects=ProjectsConfig(
        default=ProjectConfig(
            generation=GenerationConfig(deterministic=True, max_examples=EXAMPLES), request_timeout=60
        )
    ),
)
pytest_plugins = ["schemathesis.pytest.plugin"]
SCHEMA = schemathesis.openapi.from_path(Path(__file__).with_name("contract.yaml"), config=CONFIG)
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d", re.ASCII)


@pytest.fixture(scope="module")
def server():
    """Serve all the examples from one sandbox, with the writes that are reported only."""
    with Sandbox(records=30, undocumented_writes=True) as sandbox:
        yield sandbox


def is_error(response):
    """Return whether a response is the first error envelope."""
    body = response.json()
    return body["_meta"]["status"] == "ERROR" and {"errorCode", "userMessage"} <= set(body["records"])


def excluded_checks(case, response):
    """Return the checks that cannot hold for this request, because the contract does not say all."""
    excluded = []
    if response.status_code in (400, 404):
        assert case.method == "HEAD" or is_error(response)
        times = [case.query[name] for name in ("since", "lastUpdate") if name in case.query]
        if response.status_code == 400 and not all(TIME.fullmatch(str(time)) for time in times):
            # The contract takes any text for a time; a description has the format.
            excluded.append(positive_data_acceptance)
    if f"{case.method} {case.path}" in ("POST /api/{resource}", "POST /api/news/create", "GET /api/news/get"):
        # Which fields a row and its channel have is known in parts only; what is not known passes.
        excluded.append(negative_data_rejection)
    if case.path == "/api/ticket/create":
        # Read, it is the ticket whose Id is "create".
        excluded.append(unsupported_method)
    return excluded


@SCHEMA.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
def test_contract(case, server):
    """For valid and invalid requests with a token, the response conforms to the contract."""
    token = server.state.issue("169", server.email)
    headers = {} if case.path == "/api/authenticate" else {"Authorization": f"Bearer {token}"}
    response = case.call(base_url=server.url, headers=headers)
    case.validate_response(response, excluded_checks=excluded_checks(case, response), headers=headers)


@SCHEMA.include(method="GET").parametrize()
@settings(max_examples=5, deadline=None, derandomize=True, database=None)
def test_contract_without_token(case, server):
    """Without a token every well-formed path is a 401 in the form of the contract."""
    response = case.call(base_url=server.url)
    case.validate_response(response, excluded_checks=excluded_checks(case, response))
    assert response.status_code in (401, 404, 405)


def test_login_that_succeeds(server):
    """The response to a good login, which no generated one is, keeps to the contract."""
    case = SCHEMA["/api/authenticate"]["POST"].Case(
        body=server.credentials, media_type="application/x-www-form-urlencoded"
    )
    assert case.call_and_validate(base_url=server.url).status_code == 200


@pytest.mark.parametrize("resource", RESOURCES)
def test_rows_that_exist(server, resource):
    """Lists and records of every resource keep to the contract."""
    headers = {"Authorization": f"Bearer {server.state.issue('169', server.email)}"}
    pages = SCHEMA["/api/{resource}"]["GET"].Case(
        path_parameters={"resource": resource}, query={"sinceId": 1, "limit": 30}, headers=headers
    )
    assert pages.call_and_validate(base_url=server.url).json()["total"] >= 30
    parameters = {"resource": resource, "id": server.state.ids(resource)[0]}
    record = SCHEMA["/api/{resource}/{id}"]["GET"].Case(path_parameters=parameters, headers=headers)
    assert record.call_and_validate(base_url=server.url).status_code == 200


QUIRKS = (
    *({"envelope_form": form, "envelope_status": status} for form in FORMS for status in (200, 401, 403, 422, 500)),
    *({"envelope_code": kind} for kind in ("string", "integer")),
    {"valid_until": True, "endless_tokens": True},
    {"sites_as_list": True},
)

# An error under 200 and under 500 is what these are about.
MEANT = [negative_data_rejection, ignored_auth, not_a_server_error]


@pytest.mark.parametrize("quirk", QUIRKS, ids=str)
def test_quirks(server, quirk):
    """What is reported of other installations is in the contract as well."""
    server.state.configure(**quirk)
    try:
        for change in ({}, {"siteId": ""}, {"email": "x"}):
            case = SCHEMA["/api/authenticate"]["POST"].Case(
                body={**server.credentials, **change}, media_type="application/x-www-form-urlencoded"
            )
            case.validate_response(case.call(base_url=server.url), excluded_checks=MEANT)
        case = SCHEMA["/api/{resource}"]["GET"].Case(path_parameters={"resource": "ticketrz"}, query={"limit": 0})
        response = case.call(base_url=server.url)
        case.validate_response(response, excluded_checks=MEANT)
        assert "data" not in response.json()
    finally:
        server.state.configure(**{name: getattr(Settings, name) for name in quirk})


def test_the_contract_can_be_broken(server):
    """A sandbox that breaks the contract fails the checks, so they do look."""
    headers = {"Authorization": f"Bearer {server.state.issue('169', server.email)}"}
    case = SCHEMA["/api/{resource}"]["GET"].Case(path_parameters={"resource": "ticketrz"}, headers=headers)
    for kind in ("wrong_type", "html", "status"):
        server.state.fail(kind)
        with pytest.raises(FailureGroup):
            case.call_and_validate(base_url=server.url)
    server.state.int_ids = True
    with pytest.raises(FailureGroup):
        case.call_and_validate(base_url=server.url)
    server.state.int_ids = False
