"""The example DAGs, the README's and the test's own run against the sandbox through a real Airflow."""

from __future__ import annotations

import gzip
import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
from support.airflow_home import AIRFLOW_VERSION, AirflowHome
from support.readme import PAGES, python_blocks

from airflow_provider_onebox.sandbox import Sandbox

EXAMPLES = sorted((Path(__file__).parents[1] / "example_dags").glob("*.py"))
# `make recipes` runs them.
RECIPES = sorted((Path(__file__).parents[1] / "example_dags" / "recipes").glob("*.py"))
OWN = Path(__file__).parent / "dags" / "onebox.py"
CONVERSATIONS = "GET /api/ticket/conversations/N"
LOGIN, TICKETS, CONTACTS = "POST /api/authenticate", "GET /api/ticketrz", "GET /api/contactrz"

# What each DAG asks of Onebox, in this order: one login per task try, and none where there is an upstream token.
CALLS = {
    "example_onebox_token": [LOGIN, TICKETS],
    "example_onebox_quick_start": [LOGIN, TICKETS],
    "example_onebox_sites": [LOGIN, *[TICKETS] * 3] * 2,
    "example_onebox_hook": [LOGIN, CONTACTS, LOGIN, *[CONTACTS + "/N"] * 3],
    "onebox_tickets": [LOGIN, *[TICKETS] * 3],
    "onebox_template": [LOGIN, TICKETS],
    "onebox_no_push": [LOGIN],
    "onebox_refused": [LOGIN],
    "onebox_rendered_nothing": [],
    "example_onebox_list": [LOGIN, *[TICKETS] * 3],
    "example_onebox_interval": [LOGIN, *[TICKETS] * 2],
    "example_onebox_ticket": [LOGIN, "POST /api/ticket/create", LOGIN, TICKETS + "/N", LOGIN, "DELETE /api/ticketrz/N"],
    "example_onebox_request": [LOGIN, "GET /api/VocWorklist", LOGIN, "GET /api/news/get"],
    # Without the attachments, which are asked for in between.
    "example_onebox_conversations": [LOGIN, TICKETS, LOGIN, *[CONVERSATIONS] * 5],
    "example_onebox_answer": [LOGIN, CONVERSATIONS, LOGIN, "POST /api/message"],
    "example_onebox_bulk": [LOGIN, *["POST /api/contactrz"] * 10],
    "example_onebox_retry_policy": [LOGIN, TICKETS],
    "example_onebox_notifier": [LOGIN, "POST /api/ticket/create"],
    # Without those that look for the time of the latest change: how many they are depends on the clock.
    "example_onebox_changes": [LOGIN, *[TICKETS] * 3, LOGIN, *[TICKETS] * 3],
}
# These need a triggerer or an event: tests/test_real_airflow.py runs them.
ELSEWHERE = {"example_onebox_sensor", "example_onebox_watch"}


@pytest.fixture(scope="module")
def sandbox():
    """One Onebox for all of them."""
    with Sandbox(records=250) as running:
        yield running


def interval(sandbox):
    """Return when the 101st ticket was created, and the 201st."""
    rows, _ = sandbox.state.table("ticketrz").page(size=250)
    return [json.loads(rows[at])["CreateDate"] for at in (100, 200)]


@pytest.fixture(scope="module")
def runs(sandbox, tmp_path_factory):
    """Every DAG, run once, one after the other in one process."""
    fields = {"conn_type": "onebox", "host": sandbox.url, "login": sandbox.email, "password": sandbox.password}
    fields["extra"] = {"site_id": "169", "timezone": "Asia/Jakarta"}
    connections = {"onebox_default": fields, "onebox_wrong": {**fields, "password": "wrong password"}}
    listed = tmp_path_factory.mktemp("listed") / "all.jsonl.gz"
    ids = [*sandbox.state.ids(), "1", "2"]
    listed.write_bytes(gzip.compress("\n".join(json.dumps({"Id": row_id}) for row_id in ids).encode()))
    last = json.dumps({"last": str(listed)})
    readme = tmp_path_factory.mktemp("readme") / "readme.py"
    (block,) = python_blocks()
    readme.write_text(block.replace("/data/onebox", str(readme.parent)))
    with AirflowHome(
        tmp_path_factory.mktemp("dags"),
        [*EXAMPLES, OWN, readme],
        connections={name: json.dumps(value) for name, value in connections.items()},
        env={"PYTHONWARNINGS": "default", "AIRFLOW_VAR_ONEBOX_LISTINGS": last},
    ) as home:
        confs = {
            "example_onebox_answer": {"ticket_id": sandbox.state.ids()[0], "connection_id": "1"},
            "example_onebox_interval": {
                **dict(zip(("since", "until"), interval(sandbox), strict=True)),
                "folder": str(readme.parent),
            },
        }
        yield home.test_dags(CALLS, confs)


def records(run, task="list_tickets", map_index=-1):
    """Return the records in a task's file, which is removed: it may lie outside of the folders of tests."""
    path = Path(run.xcoms[task, map_index, "return_value"]["path"])
    content = path.read_bytes()
    path.unlink()
    lines = gzip.decompress(content) if path.suffix == ".gz" else content
    return [json.loads(line) for line in lines.splitlines()]


def ids(run, task="list_tickets", map_index=-1):
    """Return the ids in a task's file, which is removed."""
    return [record["Id"] for record in records(run, task, map_index)]


def test_states(runs):
    """Each DAG succeeds but those that show a failure."""
    others = {dag: run.state for dag, run in runs.items() if run.state != "success"}
    assert others == dict.fromkeys(["onebox_refused", "onebox_rendered_nothing", "example_onebox_notifier"], "failed")


def test_every_example_is_run():
    """An example file is named after its DAG, and none is left out."""
    assert {file.stem for file in EXAMPLES} == ELSEWHERE | {name for name in CALLS if name.startswith("example_")}
    elsewhere = (Path(__file__).parent / "test_real_airflow.py").read_text()
    assert [name for name in ELSEWHERE if name not in elsewhere] == []


@pytest.mark.parametrize("dag", CALLS)
def test_calls(runs, sandbox, dag):
    """Each DAG makes the calls that it should, and no more."""
    assert runs
    seen = [f"{r.method} {re.sub('/[0-9]+$', '/N', r.path)}" for r in sandbox.state.seen if "lastUpdate" not in r.query]
    seen = [call for call in seen if not re.search("/(files|public)/", call)]
    before = sum(len(CALLS[name]) for name in list(CALLS)[: list(CALLS).index(dag)])
    assert seen[before : before + len(CALLS[dag])] == CALLS[dag]
    assert len(seen) == sum(map(len, CALLS.values()))


@pytest.mark.parametrize("dag", CALLS)
def test_output(runs, sandbox, dag):
    """Nothing of ours warns, and Airflow prints no token or password."""
    output = runs[dag].output
    if AIRFLOW_VERSION == (3, 0):
        # It prints what its parts send each other there: the order to mask a secret, and that a Variable is not set.
        output = re.sub(r"(?m)^.*(\[debug *\]|\[airflow\.sdk\.api\.client\]).*(\n(?!\[?20).*)*\n", "", output)
    assert "DagRun Finished" in output or "Marking run" in output
    ours = re.compile(r"airflow_provider_onebox|example_onebox|dags/onebox\.py")
    warned = [line for line in output.splitlines() if re.search("(?i)warn", line) and ours.search(line)]
    assert warned == []
    assert sandbox.password not in output
    assert not [token for token in sandbox.state.tokens if token in output]


def test_token(runs, sandbox):
    """`.output` carries the token downstream, where tickets are listed with it."""
    run = runs["example_onebox_token"]
    assert set(run.tasks.values()) == {"success"}
    token = run.xcoms["authenticate", -1, "return_value"]
    assert sandbox.state.tokens[token].site == run.xcoms["authenticate", -1, "site_id"] == "169"
    assert run.xcoms["authenticate", -1, "expires_at"].endswith("+00:00")
    tickets = run.xcoms["list_tickets", -1, "return_value"]
    assert [ticket["Id"] for ticket in tickets] == sandbox.state.ids()[:5]
    assert sandbox.state.seen[1].headers["authorization"] == f"Bearer {token}"


def test_list(runs, sandbox):
    """The listing is in the file that the task names."""
    run = runs["example_onebox_list"]
    written = run.xcoms["list_tickets", -1, "return_value"]
    assert ids(run) == sandbox.state.ids()[:250]
    assert (written["count"], written["last_id"]) == (250, sandbox.state.ids()[249])


def test_interval(runs, sandbox):
    """The file has the tickets of the interval: its beginning is included, its end is not."""
    run = runs["example_onebox_interval"]
    written = run.xcoms["list_tickets", -1, "return_value"]
    assert Path(written["path"]).name == f"tickets_{interval(sandbox)[0]}.jsonl.gz"
    assert ids(run) == sandbox.state.ids()[100:200]
    # A minute before the interval is read too.
    assert re.search(
        r"Of 15\d ticketrz records read, 100 were created .*; left out: [1-9] earlier, 50 later", run.output
    )


def test_changes(runs, sandbox):
    """All there is has changed since never, and what an earlier listing has and this one has not was deleted."""
    run = runs["example_onebox_changes"]
    changes, everything = (records(run, task) for task in ("list_changes", "list_all"))
    assert [record["Id"] for record in changes] == sandbox.state.ids()
    assert changes == everything
    assert run.xcoms["find_deleted", -1, "return_value"] == ["1", "2"]


@pytest.mark.parametrize(
    ("operator", "dag", "task"),
    [
        ("OneboxListOperator", "example_onebox_list", "list_tickets"),
        ("OneboxListConversationsOperator", "example_onebox_conversations", "list_conversations"),
        ("OneboxBulkWriteOperator", "example_onebox_bulk", "create_contacts"),
    ],
)
def test_result_keys(runs, operator, dag, task):
    """The reference's table names every key of each operator's result."""
    (row,) = (line for line in PAGES["docs/reference/operators.md"].splitlines() if line.startswith(f"| `{operator}`"))
    named = re.findall(r'"(\w+)"|and `(\w+)`|also `(\w+)`', row)
    assert {"".join(name) for name in named} == set(runs[dag].xcoms[task, -1, "return_value"])


def test_request(runs, sandbox):
    """Calls without an operator are made by name, and the filter's result is the XCom."""
    run = runs["example_onebox_request"]
    worklist = run.xcoms["list_worklist", -1, "return_value"]
    assert worklist
    assert set(worklist) < set(sandbox.state.ids())
    assert run.xcoms["list_news", -1, "return_value"] == {"data": []}


def test_conversations(runs, sandbox):
    """The conversations of the listed tickets are in the file that the task names."""
    run = runs["example_onebox_conversations"]
    result = run.xcoms["list_conversations", -1, "return_value"]
    messages = records(run, "list_conversations")
    files = [Path(path) for message in messages for path in message["attachmentFiles"]]
    attached = {path.read_bytes().split(b"/")[0].decode() for path in files}
    shutil.rmtree(files[0].parents[1])
    tickets = sandbox.state.ids()[:5]
    assert ids(run) == tickets
    assert attached == set(tickets)
    assert (result["attachments"], result["attachments_failed"]) == (len(files), 0)
    assert len(files) == sum(len(m["Attachments"]) for m in messages)
    assert [m["Id"] for m in messages] == [f"{i}{n}" for i in tickets for n in range(int(i) % 4 + 1)]
    assert (result["count"], result["tickets"]) == (len(messages), 5)


def test_answer(runs, sandbox):
    """The message is in the ticket's conversation."""
    run = runs["example_onebox_answer"]
    (entry,) = [entry for entry in sandbox.state.books() if entry["call"] == "POST /api/message"]
    assert entry["id"] == run.xcoms["answer", -1, "return_value"]
    assert entry["body"]["ConversationId"] == sandbox.state.ids()[0]


def test_bulk(runs, sandbox):
    """Each contact has a result with its id."""
    run = runs["example_onebox_bulk"]
    result = run.xcoms["create_contacts", -1, "return_value"]
    results = records(run, "create_contacts")
    entries = [entry for entry in sandbox.state.books() if entry["call"] == "POST /api/contactrz"]
    assert (result["done"], result["count"]) == (10, 10)
    names = {entry["id"]: entry["body"]["Name"] for entry in entries}
    assert [names[result["id"]] for result in results] == [f"Customer {n}" for n in range(10)]


def test_ticket(runs, sandbox):
    """The ticket is opened once, read back by its id, and deleted."""
    run = runs["example_onebox_ticket"]
    ticket = sandbox.state.tickets[0]
    assert ticket["ticketId"] == run.xcoms["create_ticket", -1, "return_value"]
    assert run.xcoms["read_ticket", -1, "return_value"]["Id"] == ticket["ticketId"]
    assert ticket["ticketId"] not in sandbox.state.ids()


def test_notifier(runs, sandbox):
    """The failing task opens one ticket, which names it."""
    run = runs["example_onebox_notifier"]
    (ticket,) = sandbox.state.tickets[1:]
    assert ticket["subject"] == "Airflow: example_onebox_notifier.load failed"
    assert f"Run: {run.run_id}\n" in ticket["content"]


def test_readme(runs, sandbox):
    """The DAG of the README's first screen does what it says."""
    run = runs["onebox_tickets"]
    written = run.xcoms["list_tickets", -1, "return_value"]
    assert f"250 new tickets in {written['path']}" in run.output
    assert ids(run) == sandbox.state.ids()[:250]


def test_sites(runs, sandbox):
    """`.expand(site_id=[...])` writes each site's tickets to the site's own file."""
    run = runs["example_onebox_sites"]
    assert run.tasks == {("list_tickets", n): "success" for n in (0, 1)}
    for n, site in enumerate(("169", "170")):
        assert f"site_{site}_" in run.xcoms["list_tickets", n, "return_value"]["path"]
        assert ids(run, map_index=n) == sandbox.state.ids(site=site)[:250]


def test_quick_start(runs, sandbox):
    """The quick start's DAG shows the five tickets that its first task has written."""
    run = runs["example_onebox_quick_start"]
    tickets = run.xcoms["show", -1, "return_value"]
    Path(run.xcoms["list_tickets", -1, "return_value"]["path"]).unlink()
    assert [ticket["Id"] for ticket in tickets] == sandbox.state.ids()[:5]
    assert {tuple(ticket) for ticket in tickets} == {("Id", "Subject", "Status", "CreateDate")}


def test_hook(runs, sandbox):
    """A task with the hook needs no upstream token, and pushes none."""
    run = runs["example_onebox_hook"]
    first = run.xcoms["first_contacts", -1, "return_value"]
    assert first == sandbox.state.ids("contactrz")[:3]
    assert [contact["Id"] for contact in run.xcoms["read_contacts", -1, "return_value"]] == first
    assert not set(map(str, run.xcoms.values())) & set(sandbox.state.tokens)


def test_template(runs, sandbox):
    """`{{ ti.xcom_pull(...) }}` passes the token on, and its other XComs can be pulled by key."""
    run = runs["onebox_template"]
    assert sandbox.state.tokens[run.xcoms["authenticate", -1, "return_value"]].site == "170"
    assert run.xcoms["count", -1, "return_value"] == 250
    assert run.xcoms["when", -1, "return_value"] == [run.xcoms["authenticate", -1, "expires_at"], "170"]


def test_no_push(runs):
    """With `do_xcom_push=False` no token is published."""
    run = runs["onebox_no_push"]
    assert {key for _, _, key in run.xcoms} == {"expires_at", "site_id"}


def test_refused(runs, sandbox):
    """Rejected credentials fail the task at its first try, whatever retries it has."""
    run = runs["onebox_refused"]
    assert run.tasks == {("authenticate", -1): "failed"}
    assert sandbox.state.failed_logins == 1
    assert "Check Email, Password and Site ID of the connection" in run.output


def test_rendered_nothing(runs):
    """A template that finds no token fails the task, and says why, before anything is sent."""
    run = runs["onebox_rendered_nothing"]
    assert run.tasks == {("count", -1): "failed"}
    assert "The upstream token is empty" in run.output


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipe_is_parsed(file):
    """Each recipe can be imported on every Airflow, without the packages that it loads into."""
    runpy.run_path(str(file))
