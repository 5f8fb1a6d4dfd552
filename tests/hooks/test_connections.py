"""Connections as people have them, through real secrets backends: each gives its settings, or a message that helps."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
import requests_mock as requests_mock_module
from support.airflow_home import AIRFLOW_VERSION

from airflow_provider_onebox.api.settings import environment_proxies
from airflow_provider_onebox.exceptions import OneboxConfigError
from airflow_provider_onebox.hooks.onebox import OneboxHook

PASSWORD = "S3cr/Zq9@%:#? é"
IN_URI = "S3cr%2FZq9%40%25%3A%23%3F%20%C3%A9"
LOCAL = "airflow.secrets.local_filesystem.LocalFilesystemBackend"
VAULT = "airflow.providers.hashicorp.secrets.vault.VaultBackend"

NOT_READ = "Connection 'crm' can't be read: Airflow can't parse the value of the environment variable AIRFLOW_CONN_CRM"
NOT_FOUND = "Connection 'crm' can't be found. Airflow reports this if there is no such connection"
QUOTED = "Connection 'crm' is invalid: Airflow could not read its value, because it is neither JSON nor a URI"
FIELD = "Connection 'crm' is invalid: the connection's "
# Airflow 3.0 and 3.1 can't read such a value themselves.
NO_OBJECT = NOT_READ if AIRFLOW_VERSION in ((3, 0), (3, 1)) else FIELD + "extra must be a JSON object"


def fields(**changes):
    """The fields of a complete connection, with some changed; those that are ``...`` are left out."""
    given = {"conn_type": "onebox", "host": "dev.example", "login": "me@example.com", "password": PASSWORD}
    given = {**given, "extra": {"site_id": 169}, **changes}
    return {name: value for name, value in given.items() if value is not ...}


def uri(host="dev.example", query="site_id=169", login="me%40example.com", password=IN_URI):
    """A complete connection as a URI."""
    return f"onebox://{login}:{password}@{host}/?{query}"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    """Keep this machine's own proxies and CA files out."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", *environment_proxies()):
        monkeypatch.delenv(name, raising=False)


def forget_backends():
    """Have Airflow read its configuration of secrets backends again, where it keeps what it has read."""
    with suppress(ImportError):
        from airflow.sdk.configuration import clear_secrets_backends_cache

        clear_secrets_backends_cache()


@pytest.fixture
def use_backend(monkeypatch):
    """Configure a secrets backend, as a deployment does."""

    def use(backend, **options):
        monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND", backend)
        monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND_KWARGS", json.dumps(options))
        forget_backends()

    yield use
    monkeypatch.undo()
    forget_backends()


@pytest.fixture
def store(use_backend, monkeypatch, tmp_path):
    """Put a connection into a secrets backend: the environment, a file, or Vault."""
    with requests_mock_module.Mocker() as vault:

        def put(place, value):
            if place == "environment":
                monkeypatch.setenv("AIRFLOW_CONN_CRM", value if isinstance(value, str) else json.dumps(value))
            elif place == "vault":
                data = {"data": {"data": value, "metadata": {}}}
                vault.get("http://vault.example/v1/auth/token/lookup-self", json={})
                vault.get("http://vault.example/v1/airflow/data/connections/crm", json=data)
                use_backend(VAULT, mount_point="airflow", url="http://vault.example", token="x")
            else:
                path = tmp_path / f"connections{place}"
                path.write_text(value if isinstance(value, str) else json.dumps({"crm": value}), encoding="utf-8")
                use_backend(LOCAL, connections_file_path=str(path))

        yield put


YAML = f"""
crm:
  conn_type: onebox
  host: dev.example
  login: me@example.com
  password: '{PASSWORD}'
"""

GOOD = {"base_url": "https://dev.example", "email": "me@example.com", "password": PASSWORD, "site_id": "169"}

WORKS = {
    # The environment.
    "JSON": ("environment", fields(), GOOD),
    "JSON with white space around it": ("environment", f" {json.dumps(fields())}\n", GOOD),
    "JSON with the extra as text": ("environment", fields(extra='{"site_id": "169"}'), GOOD),
    "JSON without a type": ("environment", fields(conn_type=...), GOOD),
    "JSON with a port as text": ("environment", fields(port="8443"), {"base_url": "https://dev.example:8443"}),
    "JSON with an empty port": ("environment", fields(port=""), GOOD),
    "JSON without a host": ("environment", fields(host=...), {"base_url": "https://cloud.onebox.co.id"}),
    "JSON with null": ("environment", fields(schema=None, port=None, extra={"site_id": 169, "timeout": None}), GOOD),
    "URI": ("environment", uri(), GOOD),
    "URI with @ in the e-mail": ("environment", uri(login="me@example.com"), GOOD),
    "URI with a port and a path": (
        "environment",
        uri("dev.example:8443/voc"),
        {"base_url": "https://dev.example:8443/voc"},
    ),
    "URI with an encoded address": (
        "environment",
        uri("https%3A%2F%2Fdev.example%2Fvoc"),
        {"base_url": "https://dev.example/voc"},
    ),
    "URI with IPv6 and a port": ("environment", uri("[2001:db8::1]:8443"), {"base_url": "https://[2001:db8::1]:8443"}),
    "URI with siteid": ("environment", uri(query="siteid=169&timeout=5"), {"site_id": "169", "timeout": 5.0}),
    "URI with siteId": ("environment", uri(query="siteId=169&verify=true"), {"site_id": "169", "verify": True}),
    "URI with __extra__": ("environment", uri(query="__extra__=%7B%22site_id%22%3A%20169%7D"), GOOD),
    "URI of another type": ("environment", uri().replace("onebox:", "https:"), GOOD),
    # Files, as `airflow connections export` and Airflow's samples write them.
    "JSON file": (".json", fields(), GOOD),
    "JSON file with a port as text": (".json", fields(port="8443"), {"base_url": "https://dev.example:8443"}),
    "JSON file with a URI": (".json", json.dumps({"crm": uri()}), GOOD),
    "YAML file": (".yaml", f"{YAML}  extra:\n    site_id: 169\n", GOOD),
    "YAML file with extra_dejson": (".yml", f"{YAML}  extra_dejson:\n    siteId: '169'\n", GOOD),
    ".env file with a URI": (".env", f"crm={uri()}\n", GOOD),
    # Vault, in this process; what reaches the provider of other types is in tests/api/test_settings.py.
    "Vault": ("vault", fields(), GOOD),
    "Vault with a URI": ("vault", {"conn_uri": uri()}, GOOD),
    "Vault with a port as text": ("vault", fields(port="8443"), {"base_url": "https://dev.example:8443"}),
    "Vault with the extra as text": ("vault", fields(extra='{"siteid": "169"}'), GOOD),
}

FAILS = {
    "environment, URI with / in the password": ("environment", uri(password="S3cr/Zq9"), NOT_READ),
    "environment, URI with # in the password": ("environment", uri(password="S3cr#Zq9"), NOT_READ),
    "environment, URI with ? in the password": ("environment", uri(password="S3cr?Zq9"), NOT_READ),
    "environment, URI with a wrong port": ("environment", uri("dev.example:S3cr"), NOT_READ),
    "environment, trailing comma": ("environment", json.dumps(fields())[:-1] + ",}", NOT_READ),
    "environment, numeric password": ("environment", fields(password=53472943), NOT_READ),
    "environment, numeric e-mail": ("environment", fields(login=5), NOT_READ),
    "environment, list as host": ("environment", fields(host=["S3cr"]), NOT_READ),
    "environment, user": ("environment", {**fields(login=...), "user": "me@example.com"}, NOT_READ),
    "environment, word as port": ("environment", fields(port="S3cr"), NOT_READ),
    "environment, nothing": ("environment", "", NOT_FOUND),
    "environment, URI in quotes": ("environment", f"'{uri()}'", QUOTED),
    "environment, JSON in quotes": ("environment", f"'{json.dumps(fields())}'", QUOTED),
    "environment, JSON behind a BOM": ("environment", f"\ufeff{json.dumps(fields())}", QUOTED),
    "environment, list": ("environment", "[1]", QUOTED),
    "environment, word": ("environment", "S3cr", QUOTED),
    "environment, extra as a list": ("environment", fields(extra=[1]), NO_OBJECT),
    "environment, extra as words": ("environment", fields(extra="site_id=169"), NO_OBJECT),
    "environment, misspelt site": (
        "environment",
        uri(query="site=169"),
        FIELD + "extra field 'site_id' is missing: enter the number of the Onebox site as Site ID; its other fields",
    ),
    "environment, no e-mail": ("environment", fields(login=...), FIELD + "login is empty"),
    "JSON file, trailing comma": (".json", json.dumps({"crm": fields()})[:-1] + ",}", NOT_FOUND),
    "JSON file, user": (".json", {**fields(login=...), "user": "me@example.com"}, NOT_FOUND),
    "JSON file, no such connection": (".json", json.dumps({"other": fields()}), NOT_FOUND),
    "YAML file, not YAML": (".yaml", "crm: {S3cr", NOT_FOUND),
    ".env file, URI in quotes": (".env", f"crm='{uri()}'\n", QUOTED),
    ".env file, JSON": (".env", f"crm={json.dumps(fields())}\n", QUOTED),
    ".env file, no equals sign": (".env", "crm: S3cr\n", NOT_FOUND),
    "Vault, no such field": ("vault", {**fields(login=...), "user": "me@example.com"}, NOT_FOUND),
    "Vault, e-mail as a list": ("vault", fields(login=["me"]), NOT_FOUND),
    "Vault, numeric host": ("vault", fields(host=5), NOT_FOUND),
    "Vault, word as port": ("vault", fields(port="S3cr"), NOT_FOUND),
}


@pytest.mark.parametrize("name", WORKS)
def test_connection_that_works(store, name):
    """What people write in such a place gives the settings that they mean."""
    place, value, expected = WORKS[name]
    store(place, value)
    settings = OneboxHook("crm").look_up()
    assert {key: getattr(settings, key) for key in expected} == expected


# Airflow 2 warns of an extra that is not an object; here, a warning would be an error.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", FAILS)
def test_connection_that_fails(store, name):
    """What can't work gives a message that names the cause, and shows no part of the password."""
    place, value, expected = FAILS[name]
    store(place, value)
    with pytest.raises(OneboxConfigError) as caught:
        OneboxHook("crm").look_up()
    message = str(caught.value)
    assert message.startswith(expected)
    assert not [part for part in ("S3cr", "Zq9", "53472943") if part in message]
    ok, shown = OneboxHook("crm").test_connection()
    assert not ok
    assert shown == message.replace("Connection 'crm'", "This connection")
