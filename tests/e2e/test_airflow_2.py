"""The connection form of Airflow 2.11, filled in as a new user would. The tests build on each other, in order."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect
from support.airflow_home import AirflowHome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Locator, Page

PROXIES = {"https": "http://proxy.example:3128"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowHome]:
    """Run the webserver."""
    config = {("core", "test_connection"): "Enabled"}
    with AirflowHome(tmp_path_factory.mktemp("home") / "airflow", config=config) as home:
        home.migrate()
        home.start("api-server")
        yield home


def extra(page: Page, name: str) -> Locator:
    """Find an extra field."""
    return page.locator(f"[name=extra__onebox__{name}]")


def edit(page: Page, home: AirflowHome, conn_id: str) -> None:
    """Open the edit page of a connection."""
    page.goto(f"{home.url}/connection/list/?_flt_0_conn_id={conn_id}")
    page.locator('a[href*="/connection/edit/"]').click()
    expect(page.locator("#conn_id")).to_have_value(conn_id)


def press_test(page: Page) -> str:
    """Press Test and return what the page says."""
    with page.expect_response("**/connections/test"):
        page.get_by_role("button", name="Test").click()
    message = page.locator(".alert").filter(has_text=re.compile(r"Logged in|onnection"))
    expect(message).to_be_visible()
    return message.inner_text()


def test_form(page, home):
    """Labels and placeholders are those of Onebox; schema is not there."""
    page.goto(f"{home.url}/connection/add")
    page.select_option("#conn_type", "onebox")
    expect(page.locator("#schema")).to_be_hidden()
    expect(page.locator("#port")).to_be_visible()
    fields = {
        "#host": ("Onebox URL", "https://cloud.onebox.co.id"),
        "#login": ("Email", "name@example.com"),
        "#password": ("Password", "Required too: Site ID, in the section below"),
        "[name=extra__onebox__site_id]": ("Site ID", "169"),
        "[name=extra__onebox__timezone]": ("Time zone", ""),
        "[name=extra__onebox__timeout]": ("Timeout (seconds)", "30"),
        "[name=extra__onebox__max_retries]": ("Retries", "3"),
        "[name=extra__onebox__verify]": ("TLS verification", "true"),
        "[name=extra__onebox__proxies]": ("Proxies", ""),
        "[name=extra__onebox__allow_http]": ("Allow plain HTTP", None),
    }
    for field, (label, placeholder) in fields.items():
        expect(page.locator("tr", has=page.locator(field))).to_contain_text(label)
        if placeholder is not None:
            expect(page.locator(field)).to_have_attribute("placeholder", placeholder)


def test_add(page, home, onebox, stored):
    """Letters in Site ID are refused, by Test with a message and by Save; with digits both work."""
    page.fill("#conn_id", "onebox_211")
    page.fill("#host", onebox.url)
    page.fill("#login", onebox.email)
    page.fill("#password", onebox.password)
    extra(page, "site_id").fill("abc")
    assert "'abc': it must be digits" in press_test(page)
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#password")).to_have_value("")
    assert page.url.endswith("/connection/add")
    assert home.database("SELECT * FROM connection") == []

    extra(page, "site_id").fill("169")
    page.fill("#password", onebox.password)
    assert press_test(page) == f"Logged in to {onebox.url} as {onebox.email} for site 169; tokens live 15 minutes."
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Added Row")).to_be_visible()
    row = stored(home, "onebox_211")
    assert row[:4] == (onebox.url, onebox.email, onebox.password, None)
    assert row.extra["site_id"] == 169


def test_edit(page, home, onebox, stored):
    """A changed timeout is saved, and nothing is lost; Test wants the password again."""
    edit(page, home, "onebox_211")
    expect(extra(page, "site_id")).to_have_value("169")
    expect(page.locator("#port")).to_be_visible()
    expect(page.locator("#password")).to_have_value("")
    extra(page, "timeout").fill("20")
    assert "password is empty" in press_test(page)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Changed Row")).to_be_visible()
    row = stored(home, "onebox_211")
    assert row[:4] == (onebox.url, onebox.email, onebox.password, None)
    assert (row.extra["site_id"], row.extra["timeout"]) == (169, "20")


def test_wrong_password(page, home):
    """Onebox's message and ours are shown."""
    edit(page, home, "onebox_211")
    page.fill("#password", "wrong password")
    message = press_test(page)
    assert message.startswith("This connection, site 169: ")
    assert "'invalid email or password'" in message
    assert "Check Email, Password and Site ID" in message


def test_made_elsewhere(page, home, onebox, stored):
    """A connection made from JSON is kept by an edit, but for JSON's false, which the page can't show."""
    given = {"site_id": "169", "verify": True, "proxies": PROXIES, "allow_http": "false", "max_retries": "2"}
    body = {"connection_id": "onebox_json", "conn_type": "onebox", "host": onebox.url, "login": onebox.email}
    home.api("POST", "/connections", body | {"password": onebox.password, "extra": json.dumps(given)})
    edit(page, home, "onebox_json")
    expect(extra(page, "proxies")).to_have_value(json.dumps(PROXIES))
    expect(extra(page, "verify")).to_have_value("true")
    expect(extra(page, "allow_http")).not_to_be_checked()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Changed Row")).to_be_visible()
    kept = stored(home, "onebox_json").extra
    assert kept == given | {"site_id": 169, "verify": "true", "max_retries": 2, "proxies": json.dumps(PROXIES)} | {
        "allow_http": False
    }


def test_hand_over(home, hand_over):
    """Leave the database to Airflow 3.3."""
    home.stop()
    hand_over(home)
