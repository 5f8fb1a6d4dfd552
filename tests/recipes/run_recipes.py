"""The recipes run as they are shown, against the sandbox; what they load into is a real PostgreSQL and DuckDB.

Not part of the suite: ``make recipes``. It fails where PostgreSQL is missing.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import importlib.util
import json
import os
import sys
import threading
from collections import Counter
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import duckdb
import psycopg2
import pyarrow.parquet
import pytest
import yaml
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from cluster.services import postgresql
from kubernetes.client import ApiClient
from support.airflow_home import AirflowHome
from support.readme import PAGES, blocks

from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.sandbox import Sandbox

RECIPES = {file.stem: file for file in (Path(__file__).parents[2] / "example_dags" / "recipes").glob("*.py")}
RECORDS = 60
SITES = tuple(map(str, range(169, 189)))
TABLES = """
CREATE TABLE tickets (
    id bigint PRIMARY KEY, subject text, status text, priority text, category text,
    created timestamp, modified timestamp
);
CREATE TABLE contacts (
    id bigint PRIMARY KEY, name text, email text, phone text, mobile text, changed timestamptz, deleted timestamptz
);
"""
CUSTOMERS = [("Rahma, Siti", "siti@example.com", ""), ("Budi", "", "+62 811 1"), *[(f"C{n}", "", "") for n in range(9)]]
# In this order, each in one process.
AGAIN = ("recipe_tickets_to_s3", "recipe_changes_to_table", "recipe_contacts_snapshot")
DAYS = ("recipe_tickets_by_day", "recipe_conversations_of_yesterday")
FIRST = (*AGAIN, "recipe_twenty_sites", "recipe_contacts_from_csv", "recipe_dbt_after_load")
SECOND = (*AGAIN, *DAYS, "recipe_wait_from_now")


def load(name):
    """Import a recipe as Airflow does."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES[name])
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path):
    """Return the records of a file of JSON Lines."""
    data = Path(path).read_bytes()
    lines = gzip.decompress(data) if str(path).endswith(".gz") else data
    return [json.loads(line) for line in lines.splitlines()]


class World:
    """The sandbox, the warehouse and the runs of the recipes."""

    def __init__(self, folder, sandbox, address):
        self.folder, self.state, self.address = folder, sandbox.state, address
        self.first, self.second, self.added, self.changed, self.deleted = {}, {}, [], [], []

    def query(self, sql):
        """Return the rows of a statement on PostgreSQL."""
        host, _, database = self.address.partition("/")
        with closing(psycopg2.connect(f"postgresql://airflow@{host}/{database}")) as connection:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                rows = cursor.fetchall() if cursor.description else []
            connection.commit()
        return rows


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Every recipe, run once or twice, with changes in Onebox in between."""
    folder = tmp_path_factory.mktemp("recipes")
    with Sandbox(records=RECORDS, sites=SITES) as sandbox, postgresql(folder) as address:
        world = World(folder, sandbox, address)
        world.query(TABLES)
        run_all(world, sandbox)
        yield world


def run_all(world, sandbox):
    """Run the recipes in a separate Airflow."""
    folder, state = world.folder, world.state
    files = [folder / file.name for file in RECIPES.values()]
    for file in files:
        # A test waits neither for a poll nor for a retry.
        text = RECIPES[file.stem].read_text().replace("poke_interval=60", "poke_interval=0.2")
        file.write_text(text.replace('"retries": 3', '"retries": 0'))
    dbt = folder / "bin" / "dbt"
    dbt.parent.mkdir()
    dbt.write_text('#!/bin/sh\necho "$PWD $*" > dbt.txt\n')
    dbt.chmod(0o755)
    with (folder / "customers.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(
            [("Customer", "E-Mail (private)", "Mobile", "Segment"), *[(*c, "A") for c in CUSTOMERS]]
        )
        file.write(",,,a row that names nobody\n")
    (folder / "project").mkdir()
    onebox = {"conn_type": "onebox", "host": sandbox.url, "login": sandbox.email, "password": sandbox.password}
    common = {"folder": str(folder)}
    confs = {
        "recipe_contacts_from_csv": {"file": str(folder / "customers.csv"), "results": str(folder)},
        "recipe_dbt_after_load": {"project": str(folder / "project")},
    }
    with AirflowHome(
        folder / "home",
        files,
        connections={
            "onebox_default": json.dumps({**onebox, "extra": {"site_id": 169, "timezone": "Asia/Jakarta"}}),
            "warehouse": f"postgres://airflow@{world.address}",
        },
        env={
            "AIRFLOW_VAR_ONEBOX_SITES": json.dumps(SITES),
            "PATH": f"{dbt.parent}{os.pathsep}{os.environ['PATH']}",
        },
    ) as home:
        world.first = home.test_dags(FIRST, {name: confs.get(name, common) for name in FIRST})
        world.added = state.add(3)
        world.changed = state.ids()[:2]
        state.touch(world.changed, Status="Closed")
        contacts = state.ids("contactrz")
        state.touch(contacts[0], resource="contactrz", Name="Somebody Else")
        world.deleted = contacts[20:22]
        state.delete(world.deleted, "contactrz")
        # For the sensor, which waits for a ticket that is not there when the run starts.
        done = threading.Event()

        def add_tickets():
            while not done.wait(0.5):
                if any("limit=1&" in f"{r.query}&" and "lastUpdate" not in r.query for r in list(state.seen)[before:]):
                    state.add(1)

        before = len(state.seen)
        thread = threading.Thread(target=add_tickets)
        thread.start()
        try:
            world.second = home.test_dags(SECOND, dict.fromkeys(SECOND, common))
        finally:
            done.set()
            thread.join()


def test_every_recipe_is_run():
    """No recipe is left out."""
    texts = "".join(file.read_text() for file in RECIPES.values())
    dags = {word for word in texts.split('"') if word.startswith("recipe_")}
    # Tests below call what the others do: some need an event of an asset or a deadline.
    called = {"tickets_to_postgres", "tickets_to_duckdb", "deadline_ticket", "frames", "dlt_pipeline"}
    assert dags == {*FIRST, *SECOND} | {f"recipe_{name}" for name in called}


def test_success(world):
    """Every run succeeds, and nothing of ours warns."""
    for runs in (world.first, world.second):
        assert {name: run.state for name, run in runs.items()} == dict.fromkeys(runs, "success")


def test_new_tickets(world):
    """The files have all tickets, then the new ones, under names that every reader takes."""
    paths = [
        Path(runs["recipe_tickets_to_s3"].xcoms["list_tickets", -1, "return_value"]["path"])
        for runs in (world.first, world.second)
    ]
    ids = [pyarrow.parquet.read_table(path)["Id"].to_pylist() for path in paths]
    assert ids[1] == world.added
    assert len(ids[0]) == RECORDS
    assert not {":", "+"} & {*"".join(path.name for path in paths)}
    assert pyarrow.parquet.read_schema(paths[0]).names == load("tickets_to_warehouse").FIELDS


@pytest.fixture
def events(world, monkeypatch):
    """The events of the two files of new tickets, as one run for both gets them."""
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", f"postgres://airflow@{world.address}")
    runs = [runs["recipe_tickets_to_s3"] for runs in (world.first, world.second)]
    return {"asset": [SimpleNamespace(extra=run.xcoms["list_tickets", -1, "return_value"]) for run in runs]}


def test_postgres(world, events):
    """New tickets are in the table once, however often they are loaded, and an older file undoes no change."""
    world.query("TRUNCATE tickets")
    function = load("tickets_to_warehouse").load_postgres.function
    assert function(triggering_asset_events=events) == RECORDS + 3
    loaded = world.query("SELECT id, status, created, modified FROM tickets ORDER BY id")
    world.query("UPDATE tickets SET status = 'Newer', modified = modified + interval '1 day' WHERE id % 2 = 0")
    world.query("UPDATE tickets SET status = 'Older', modified = modified - interval '1 day' WHERE id % 2 = 1")
    assert function(triggering_dataset_events=events) == RECORDS + 3
    again = world.query("SELECT id, status FROM tickets ORDER BY id")
    assert again == [(row[0], "Newer" if row[0] % 2 == 0 else row[1]) for row in loaded]
    assert [str(row[0]) for row in loaded[-3:]] == world.added
    assert None not in {value for row in loaded for value in row}
    assert function() == 0


def test_duckdb(world, events, tmp_path):
    """The same in DuckDB, whose table is made by the first load."""
    function = load("tickets_to_warehouse").load_duckdb.function
    params = {"database": str(tmp_path / "a.duckdb")}
    assert [function(params, triggering_asset_events=events) for _ in range(2)] == [RECORDS + 3] * 2
    with duckdb.connect(params["database"]) as connection:
        rows = connection.execute("SELECT id, created FROM tickets ORDER BY id").fetchall()
    assert len(rows) == RECORDS + 3
    assert [str(row[0]) for row in rows[-3:]] == world.added
    assert None not in {value for row in rows for value in row}


def test_changes(world):
    """The second run loads what was added and changed."""
    counts = [
        runs["recipe_changes_to_table"].xcoms["upsert", -1, "return_value"] for runs in (world.first, world.second)
    ]
    assert counts == [RECORDS, 5]
    path = world.second["recipe_changes_to_table"].xcoms["list_changes", -1, "return_value"]["path"]
    assert {record["Id"] for record in read(path)} == {*world.added, *world.changed}


def test_contacts(world):
    """The table says which contacts are new, changed and deleted."""
    results = [
        runs["recipe_contacts_snapshot"].xcoms["compare", -1, "return_value"] for runs in (world.first, world.second)
    ]
    # Those of the CSV file are new, too.
    assert results == [{"changed": RECORDS, "deleted": 0}, {"changed": 1 + len(CUSTOMERS), "deleted": 2}]
    deleted = world.query("SELECT id::text FROM contacts WHERE deleted IS NOT NULL ORDER BY id")
    assert [row[0] for row in deleted] == world.deleted
    assert world.query("SELECT count(*) FROM contacts WHERE name = 'Somebody Else'") == [(1,)]


def test_sites(world):
    """Each site has its own file."""
    run = world.first["recipe_twenty_sites"]
    for n, site in enumerate(SITES):
        path = run.xcoms["list_tickets", n, "return_value"]["path"]
        assert f"/site={site}/" in path
        assert [record["Id"] for record in read(path)] == world.state.ids(site=site)[:RECORDS]


def test_days(world):
    """The files have the tickets of one day in Onebox's own zone, by its name, and what was said about them."""
    path = Path(world.second["recipe_tickets_by_day"].xcoms["list_tickets", -1, "return_value"]["path"])
    table = pyarrow.parquet.read_table(path)
    day = path.parent.name.removeprefix("day=")
    rows = world.query(f"SELECT id::text FROM tickets WHERE created::date = '{day}' ORDER BY id")  # noqa: S608
    yesterday = [row[0] for row in rows]
    assert table["Id"].to_pylist() == yesterday
    assert len(yesterday) > 10
    assert day == str((world.state.local() - timedelta(days=1)).date())
    result = world.second["recipe_conversations_of_yesterday"].xcoms["list_conversations", -1, "return_value"]
    messages = read(result["path"])
    assert path.parent.name in result["path"]
    assert {message["ticketId"] for message in messages} == set(yesterday)
    assert result["attachments"] == sum(len(message["attachmentFiles"]) for message in messages)
    assert result["attachments"] > 0


def test_csv(world):
    """Good rows become contacts, and the results file has a line for each row."""
    run = world.first["recipe_contacts_from_csv"]
    result = run.xcoms["create_contacts", -1, "return_value"]
    assert (result["count"], result["done"], result["rejected"]) == (len(CUSTOMERS) + 1, len(CUSTOMERS), 1)
    sent = [entry["body"] for entry in world.state.books() if entry["call"] == "POST /api/contactrz"]
    found = {(body["Name"], body.get("Email") or "", body.get("Mobile") or "") for body in sent}
    assert found == set(CUSTOMERS)


def test_frames(connected):
    """Both libraries count what the list has."""
    first, *_ = connected.state.ids("contactrz")
    connected.state.touch(first, resource="contactrz", Email="")
    module = load("frames")
    counts = module.open_by_category.function()
    tickets = OneboxHook().get_records("ticketrz")
    still_open = Counter(ticket["Category"] for ticket in tickets if ticket["Status"] != "Closed")
    assert {row["Category"]: row["count"] for row in counts} == still_open
    assert [row["count"] for row in counts] == sorted(still_open.values(), reverse=True)
    assert module.without_mail.function() == [first]


def test_dlt(connected, tmp_path, monkeypatch):
    """The second run lists a few tickets again, and the table has each once."""
    # It would report its use, and look for its settings in Airflow's Variables; there is no database here.
    monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")
    monkeypatch.setenv("PROVIDERS__ENABLE_AIRFLOW_SECRETS", "false")
    params = {"database": str(tmp_path / "onebox.duckdb")}
    load("dlt_pipeline").load.function(params)
    connected.state.touch(connected.state.ids()[-1], Subject="Changed")
    connected.state.add(3)
    load("dlt_pipeline").load.function(params)
    with duckdb.connect(params["database"]) as connection:
        rows = connection.execute("SELECT id, subject FROM crm.tickets ORDER BY id").fetchall()
    assert [str(row[0]) for row in rows] == connected.state.ids()
    assert rows[-4][1] == "Changed"


def test_dbt(world):
    """The command runs in its project."""
    project = world.folder / "project"
    assert (project / "dbt.txt").read_text() == f"{project} build --select source:onebox+\n"


def test_waiting(world):
    """The wait ends with a ticket that was not there when it began, and only new ones are listed."""
    xcoms = world.second["recipe_wait_from_now"].xcoms
    newest = xcoms["newest", -1, "return_value"]
    listed = [ticket["Id"] for ticket in xcoms["list_tickets", -1, "return_value"]]
    assert listed
    assert min(map(int, listed)) > int(newest)


def test_deadline(connected):
    """The callback of the deadline opens a ticket that names the DAG, in the triggerer."""
    callback = load("deadline_ticket").alert.callback
    context = {
        "dag_run": {"dag_id": "recipe_deadline_ticket", "dag_run_id": "r"},
        "deadline": {"id": "7", "deadline_time": "2026-11-24T08:30:00Z"},
    }
    module, _, name = callback.path.rpartition(".")
    notifier = getattr(importlib.import_module(module), name)

    async def call():
        await notifier(**callback.kwargs, context=context)

    asyncio.run(call())
    (ticket,) = connected.state.tickets
    assert ticket["subject"] == "The tickets of recipe_deadline_ticket are late"


def test_recipes_are_listed():
    """The index leads to every page of recipes."""
    index = PAGES["docs/recipes/index.md"]
    pages = {name.rpartition("/")[2] for name in PAGES if name.startswith("docs/recipes/")} - {"index.md"}
    assert [page for page in pages if f"]({page}" not in index] == []


def test_pod_template():
    """Airflow's own code makes a pod of the template, and of the override; no field is misspelt."""
    page = PAGES["docs/kubernetes.md"]
    (template,) = map(yaml.safe_load, blocks("yaml", page))
    base = PodGenerator.deserialize_model_dict(template)
    assert ApiClient().sanitize_for_serialization(base) == template
    (override,) = blocks("python", page)
    names = {}
    exec(compile(override, "kubernetes.md", "exec"), names)  # noqa: S102 - our own text
    pod = PodGenerator.reconcile_pods(base, names["large"]["pod_override"])
    (container,) = pod.spec.containers
    assert container.image == base.spec.containers[0].image
    assert [volume.name for volume in pod.spec.volumes] == [mount.name for mount in container.volume_mounts]
    assert container.resources.limits == {"memory": "4Gi"}
    assert container.env == base.spec.containers[0].env
