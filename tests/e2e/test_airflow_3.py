"""The pages of Airflow 3.3 or 3.4, used as a new user would. The tests build on each other, in order.

The metadata database is the one that the run on Airflow 2.11 has left, migrated.
"""

from __future__ import annotations

import ast
import json
import re
from html import escape
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
import requests
from PIL import Image
from playwright.sync_api import expect
from support.airflow_home import AIRFLOW_VERSION, AirflowHome

from airflow_provider_onebox.hooks.onebox import OneboxHook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Locator, Page

EXAMPLES = Path(__file__).parents[2] / "example_dags"
EXAMPLE = EXAMPLES / "example_onebox_token.py"
DAG = "example_onebox_token"
QUICK_START, SITES, NOTIFIER = "example_onebox_quick_start", "example_onebox_sites", "example_onebox_notifier"
BULK = "example_onebox_bulk"
PORT = "Port, usually 443"
COLUMN = 560
"""Pixels of a picture, at most: what is wider can't be read on a phone."""
HEAD = {"x": 72, "y": 8, "width": COLUMN, "height": 285}
"""Where a narrow page has the names of DAG, run and task, the grid and the task's state."""
LABELS = [
    *("Connection ID *", "Connection Type *", "Description", "Onebox URL", "Email", "Password", PORT),
    *("Site ID *", "Time zone", "Timeout (seconds)", "Retries", "TLS verification", "Proxies", "Allow plain HTTP"),
    "",  # the switch itself
]
PROXIES = {"https": "http://proxy.example:3128"}

# Shows an error's message with the numbers of its parts.
ANNOTATE = """element => {
    const shown = document.createElement('p')
    shown.id = 'annotated'
    shown.style = 'position: fixed; left: 0; top: 0; z-index: 9999; width: 560px; padding: 16px; background: white; ' +
        'color: #1f2328; font: 15px/1.6 monospace'
    document.body.append(shown)
    const mark = (number, text) => `<mark style="background: #fff8c5; color: #1f2328">${number} ${text}</mark>`
    shown.innerHTML = element.innerText
        .replace(/^(.*?: POST authenticate)/, text => mark('①', text))
        .replace(/('invalid email or password')/, text => mark('②', text))
        .replace(/(Check Email.*)$/s, text => mark('③', text))
}"""

# In these the Test button of a connection without a port always shows Bad Request (apache/airflow#73298).
TEST_NEEDS_PORT = version("apache-airflow") in ("3.3.1", "3.3.2")


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory, upgraded: Callable[[Path], dict[tuple[str, str], str]]
) -> Iterator[AirflowHome]:
    """Migrate what Airflow 2.11 has left and run everything."""
    folder = tmp_path_factory.mktemp("home") / "airflow"
    config = {("core", "test_connection"): "Enabled", **upgraded(folder)}
    dags = [EXAMPLE, *(EXAMPLES / f"{name}.py" for name in (QUICK_START, SITES, NOTIFIER, BULK))]
    # The connection of the mapped tasks and the others is the one that the first test makes.
    with AirflowHome(folder, dags, config=config) as home:
        home.migrate()
        home.start("api-server", "scheduler", "dag-processor", "triggerer")
        yield home


@pytest.fixture
def picture(page: Page, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Take the pictures of the documentation, if they are asked for: of each part, one below the other."""
    folder: Path | None = request.config.getoption("--screenshots")

    def cut(part: Locator | dict[str, int], width: int, margin: int) -> Image.Image:
        size = {**page.viewport_size, "width": width}
        if size != page.viewport_size:
            page.set_viewport_size(size)
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # until nothing fades or slides any more
        box = part if isinstance(part, dict) else part.bounding_box()
        left, top = max(box["x"] - margin, 0), max(box["y"] - margin, 0)
        right = min(box["x"] + box["width"] + margin, width, left + COLUMN)
        bottom = min(box["y"] + box["height"] + margin, size["height"])
        clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        return Image.open(BytesIO(page.screenshot(clip=clip))).convert("RGB")

    def take(name: str, *parts: tuple[Locator | dict[str, int], int], margin: int = 0) -> None:
        if folder is None:
            return
        usual = page.viewport_size
        cuts = [cut(part, width, margin) for part, width in parts]
        full = Image.new("RGB", (max(one.width for one in cuts), sum(one.height for one in cuts)), "white")
        for number, one in enumerate(cuts):
            full.paste(one, (0, sum(above.height for above in cuts[:number])))
        folder.mkdir(parents=True, exist_ok=True)
        # A third of the bytes, and nothing that an eye misses.
        few = full.quantize(96, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(folder / f"{name}.png", optimize=True)
        page.set_viewport_size(usual)

    return take


def connections(page: Page, home: AirflowHome) -> None:
    """Open the Connections page anew."""
    page.goto(f"{home.url}/connections")
    expect(page.get_by_role("button", name="Add Connection")).to_be_visible()


def row(page: Page, conn_id: str) -> Locator:
    """Find a connection in the list."""
    return page.get_by_role("row").filter(has=page.get_by_role("cell", name=conn_id, exact=True))


def unfold(form: Locator) -> None:
    """Open the section of the extra fields, which Airflow 3.4 has open."""
    if AIRFLOW_VERSION < (3, 4):
        form.get_by_role("button", name="Extra Fields", exact=True).click()


def edit(page: Page, home: AirflowHome, conn_id: str) -> Locator:
    """Open the edit form of a connection, its extra fields unfolded."""
    connections(page, home)
    row(page, conn_id).get_by_role("button", name="Edit Connection").click()
    form = page.get_by_role("dialog")
    unfold(form)
    expect(form.get_by_label("Site ID")).to_be_visible()
    return form


def save(form: Locator) -> None:
    """Press Save and wait until it is done."""
    form.get_by_role("button", name="Save").click()
    expect(form).to_be_hidden()


def press_test(page: Page, home: AirflowHome, conn_id: str) -> str:
    """Press Test and return what the page says."""
    connections(page, home)
    row(page, conn_id).get_by_role("button", name="Test Connection").click()
    message = page.get_by_role("status").filter(has_text="Test Connection")
    expect(message).to_be_visible()
    return message.inner_text()


def type_over(field: Locator, text: str) -> None:
    """Type as a hand does, key by key, and leave the field."""
    field.click()
    field.press("Control+a")
    field.press("Delete")
    field.press_sequentially(text)
    field.press("Tab")


def test_add(page, home, onebox, stored, picture):
    """The form has Onebox's fields and no others, says where Site ID is, and wants a Site ID that is a number."""
    connections(page, home)
    page.get_by_role("button", name="Add Connection").click()
    form = page.get_by_role("dialog")
    form.get_by_label("Connection ID").fill("onebox_default")
    form.get_by_role("combobox").fill("onebox")
    form.get_by_role("option", name="Onebox", exact=True).click()

    hint = "Required too: Site ID, in the section below"
    for label, placeholder in (
        ("Onebox URL", "https://cloud.onebox.co.id"),
        ("Email", "name@example.com"),
        ("Password", hint),
        (PORT, "Enter 443 if Test shows Bad Request"),
    ):
        expect(form.get_by_label(label)).to_have_attribute("placeholder", placeholder)
    expect(form.get_by_label("Password")).to_have_attribute("type", "password")
    page.get_by_role("heading", name="Add Connection").click()  # no field is in focus any more
    picture("standard-fields", (form, COLUMN))
    form.get_by_label("Onebox URL").fill(onebox.url)
    form.get_by_label("Email").fill(onebox.email)
    form.get_by_label("Password").fill(onebox.password)
    port = int(onebox.url.rsplit(":", 1)[1]) if TEST_NEEDS_PORT else None
    if port:
        form.get_by_label(PORT).fill(str(port))
    button = form.get_by_role("button", name="Save")
    expect(button).to_be_disabled()

    unfold(form)
    expect(form.locator("label")).to_have_text(LABELS)
    expect(form.get_by_text("This field is required")).to_be_visible()
    site = form.get_by_label("Site ID")
    for typed, shown in (("abc", ""), ("-5", ""), ("1,5", "")):
        type_over(site, typed)
        expect(site).to_have_value(shown)
        expect(button).to_be_disabled()
    type_over(site, "169x")
    expect(site).to_have_value("169")
    expect(form.get_by_text("This field is required")).to_be_hidden()
    expect(button).to_be_enabled()
    page.get_by_role("heading", name="Add Connection").click()  # no field is in focus any more
    picture("connection", (form, COLUMN))
    save(form)

    saved = stored(home, "onebox_default")
    assert saved[:4] == (onebox.url, onebox.email, onebox.password, port)
    empty = dict.fromkeys(("timezone", "timeout", "max_retries", "verify", "proxies"))
    assert saved.extra == {"site_id": 169, "allow_http": False, **empty}


def test_button(page, home, onebox, picture):
    """Test of a new connection, with the port that the form asks for, says where, as whom and for which site."""
    done = f"Logged in to {onebox.url} as {onebox.email} for site 169; tokens live 15 minutes."
    assert press_test(page, home, "onebox_default") == f"Test Connection Successful\n{done}"
    picture("test-connection", (page.get_by_role("status").filter(has_text="Test Connection"), 1200), margin=8)


def test_edit(page, home, onebox, stored):
    """A changed timeout is saved, and neither password nor Site ID is lost."""
    before = stored(home, "onebox_default")
    form = edit(page, home, "onebox_default")
    expect(form.get_by_label("Site ID")).to_have_value("169")
    type_over(form.get_by_label("Timeout (seconds)"), "20")
    save(form)
    assert stored(home, "onebox_default") == before._replace(extra=before.extra | {"timeout": 20})
    assert "Successful" in press_test(page, home, "onebox_default")


def test_wrong_password(page, home, onebox, stored, picture):
    """Onebox's message and ours are shown; the page of a task that fails with it opens with it on screen."""
    for password, result in (("wrong password", "Failed"), (onebox.password, "Successful")):
        connections(page, home)
        row(page, "onebox_default").get_by_role("button", name="Edit Connection").click()
        form = page.get_by_role("dialog")
        expect(form.get_by_label("Password")).to_have_value("***")
        form.get_by_label("Password").fill(password)
        save(form)
        assert stored(home, "onebox_default").password == password
        message = press_test(page, home, "onebox_default")
        assert message.startswith(f"Test Connection {result}\n")
        if result == "Failed":
            assert "\nThis connection, site 169: " in message
            assert "'invalid email or password'" in message
            assert "Check Email, Password and Site ID" in message
            run_id = home.trigger(DAG)
            assert home.wait(DAG, run_id) == "failed"
            size = page.viewport_size
            page.set_viewport_size({"width": 1280, "height": 720})
            page.goto(f"{home.url}/dags/{DAG}/runs/{run_id}/tasks/authenticate")
            error = page.get_by_text("Check Email, Password and Site ID")
            expect(error).to_be_in_viewport()
            error.evaluate(ANNOTATE)
            picture("failed", (page.locator("#annotated"), 640))
            page.set_viewport_size(size)


def test_made_elsewhere(page, home, onebox, stored):
    """A connection made from JSON is shown where the page can, and is kept by an edit."""
    given = {"site_id": "169", "verify": True, "proxies": PROXIES, "allow_http": False, "timeout": "10"}
    body = {"connection_id": "onebox_made", "conn_type": "onebox", "host": onebox.url, "login": onebox.email}
    home.api("POST", "/connections", body | {"password": onebox.password, "extra": json.dumps(given)})
    form = edit(page, home, "onebox_made")
    expect(form.get_by_label("Site ID")).to_have_value("169")
    expect(form.locator("#element_verify")).to_have_value("true")
    # Airflow hides the values of what is called proxies.
    expect(form.locator("#element_proxies")).to_have_value(re.compile(r'^\{\s*"https": "\*\*\*"\s*\}$'))
    expect(form.get_by_label("Retries")).to_have_count(0)  # the page leaves out what is not stored
    type_over(form.get_by_label("Timeout (seconds)"), "20")
    save(form)
    assert stored(home, "onebox_made").extra == given | {"timeout": 20}


def test_saved_on_2(page, home, onebox, stored):
    """A connection that the page of Airflow 2.11 has saved logs in, shows its Site ID and can be changed."""
    before = stored(home, "onebox_211")
    assert "Connection success!" in home.run("connections", "test", "onebox_211")
    form = edit(page, home, "onebox_211")
    expect(form.get_by_label("Site ID")).to_have_value("169")
    expect(form.get_by_label("Timeout (seconds)")).to_have_value("20")
    type_over(form.get_by_label("Timeout (seconds)"), "25")
    save(form)
    assert stored(home, "onebox_211") == before._replace(extra=before.extra | {"timeout": 25})


def test_example(page, home, onebox):
    """The example DAG is triggered, succeeds and shows the token as XCom, and no log shows a secret."""
    home.until(lambda: home._parsed(DAG), f"{DAG} is parsed")
    page.goto(f"{home.url}/dags/{DAG}")
    page.get_by_role("button", name="Dag Docs").click()
    docs = page.get_by_role("dialog")
    docstring = docs.get_by_text(ast.get_docstring(ast.parse(EXAMPLE.read_text())))
    expect(docstring).to_be_visible()
    page.keyboard.press("Escape")
    expect(docs).to_be_hidden()
    page.get_by_role("button", name="Trigger Dag").click()
    page.get_by_role("dialog").get_by_role("button", name="Trigger", exact=True).click()
    page.wait_for_url("**/runs/**")
    tasks = page.get_by_role("table").get_by_role("row")
    for task in ("authenticate", "list_tickets"):
        expect(tasks.filter(has=page.get_by_role("link", name=task))).to_contain_text("Success")
    url = page.url.split("?")[0]
    token = home.xcoms(DAG, unquote(url.split("/runs/")[1]))["authenticate", -1, "return_value"]
    assert token.count(".") == 2

    page.goto(f"{url}/tasks/authenticate")
    if AIRFLOW_VERSION < (3, 4):
        page.get_by_role("link", name="Storage").click()
    page.get_by_role("link", name="XCom").click()
    xcoms = page.get_by_role("table")
    expect(xcoms.get_by_role("row").filter(has_text="return_value")).to_contain_text(token)
    expect(xcoms.get_by_role("row").filter(has_text="site_id")).to_contain_text("169")

    for task, said in (("authenticate", "Logged in to"), ("list_tickets", "Returned value was")):
        page.goto(f"{url}/tasks/{task}")
        expect(page.get_by_text("Post Execute")).to_be_visible()
        page.keyboard.press("e")
        expect(page.get_by_text("Pushing xcom" if task == "list_tickets" else said).first).to_be_visible()
        text = page.locator("body").inner_text()
        assert said in text
        page.get_by_role("link", name="Rendered Templates").click()
        expect(page.get_by_text("onebox_conn_id" if task == "authenticate" else "op_kwargs")).to_be_visible()
        text += page.locator("body").inner_text()
        assert not found(text, token, onebox.password)
    for file in home.log_files():
        assert not found(file.read_text(errors="replace"), token, onebox.password), file
    assert not found(str(home.database("SELECT * FROM log")), token, onebox.password)


def finish(home: AirflowHome, dag: str, folder: Path, state: str = "success") -> str:
    """Run a DAG to its end and return the URL of the run."""
    run_id = home.trigger(dag, {"folder": str(folder)})
    assert home.wait(dag, run_id) == state
    return f"{home.url}/dags/{dag}/runs/{run_id}"


def show(page: Page, text: str) -> Locator:
    """Show a text of our own, as it was read elsewhere."""
    style = "margin: 0; padding: 16px; font: 15px/1.5 monospace; white-space: pre-wrap; overflow-wrap: anywhere"
    page.set_content(f"<pre style='{style}'>{escape(text)}</pre>")
    return page.locator("pre")


def test_quick_start(page, home, tmp_path, picture):
    """The quick start's DAG succeeds, and its XCom shows the tickets."""
    url = finish(home, QUICK_START, tmp_path)
    page.goto(f"{url}/tasks/show/xcom")
    page.get_by_role("button", name="Expand all extra JSON").click()
    value = page.get_by_role("table").locator(".monaco-editor")
    expect(value).to_contain_text("CreateDate")
    picture("run", (HEAD, 640), (value, 1100))


def test_sites(page, home, tmp_path, picture):
    """Each site is a mapped task, and the page lists them."""
    page.goto(f"{finish(home, SITES, tmp_path)}/tasks/list_tickets/mapped")
    mapped = page.get_by_role("table")
    expect(mapped.get_by_text("Success")).to_have_count(2)
    picture("mapped", ({**HEAD, "height": 270}, 640), (mapped, 1200))


def test_notifier(page, home, onebox, tmp_path, monkeypatch, picture):
    """A failed task opens a ticket, which names the task and links to its log."""
    url = finish(home, NOTIFIER, tmp_path, "failed")
    connection = {"conn_type": "onebox", "host": onebox.url, "login": onebox.email, "password": onebox.password}
    monkeypatch.setenv("AIRFLOW_CONN_ONEBOX", json.dumps({**connection, "extra": {"site_id": 169}}))
    *_, ticket = OneboxHook("onebox").list_records("ticketrz")
    assert NOTIFIER in ticket["Subject"]
    assert url in ticket["Content"]
    picture("ticket", (show(page, f"Subject: {ticket['Subject']}\n\n{ticket['Content']}"), COLUMN))


def test_results(page, home, onebox, tmp_path, picture):
    """A results file has a line for each contact, and says why one is uncertain."""
    fault = {"kind": "status", "path": "POST /api/contactrz", "after": 2, "times": 1, "status": 500}
    requests.post(f"{onebox.url}/sandbox/fail", json=fault, timeout=10).raise_for_status()
    finish(home, BULK, tmp_path)
    (file,) = tmp_path.glob("contacts_*.jsonl")
    lines = file.read_text().splitlines()
    results = [json.loads(line) for line in lines]
    assert sorted(result["result"] for result in results) == ["done"] * 9 + ["uncertain"]
    picture("results", (show(page, "\n".join(lines[:5])), COLUMN))


def found(text: str, *secrets: str) -> list[str]:
    """Return which of the secrets, or long parts of them, are in a text."""
    parts = [part for secret in secrets for part in (secret, *secret.split(".")) if len(part) > 8]
    return [part for part in parts if part in text]
