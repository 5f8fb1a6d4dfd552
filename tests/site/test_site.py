"""The documentation as a reader sees it."""

from __future__ import annotations

import re
import zlib
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest
from support.readme import MESSAGES, anchor

if TYPE_CHECKING:
    from pathlib import Path

PHONE = {"width": 360, "height": 740}


class Page(HTMLParser):
    """What a page links to, and what it can be linked by."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = {""}
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        """Collect."""
        found = dict(attrs)
        self.ids.add(found.get("id") or "")
        link = found.get("href") if tag in ("a", "link") else found.get("src")
        if link:
            self.links.append(link)


@pytest.fixture(scope="module")
def pages(site):
    """Every page of the site, by path."""
    return {file.relative_to(site).as_posix(): Page(file) for file in sorted(site.rglob("*.html"))}


def test_messages_have_anchors(pages):
    """Each message in troubleshooting can be linked to."""
    assert {anchor(message) for message in MESSAGES} <= pages["troubleshooting.html"].ids


def test_internal_links(site, pages):
    """Every link within the site leads to an existing page, and to a place on it."""
    broken = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            if target.is_dir():
                target /= "index.html"
            known = pages.get(target.resolve().relative_to(site).as_posix())
            # Furo's own markup has the top of the page as #.
            if not target.exists() or (known and unquote(parts.fragment) not in known.ids):
                broken.append(f"{name}: {link}")
    assert len(pages) > 30
    assert broken == []


def test_inventory(site):
    """Others can refer to our classes: objects.inv holds them."""
    body = (site / "objects.inv").read_bytes().split(b"zlib.\n", 1)[1]
    names = {line.split(" ")[0] for line in zlib.decompress(body).decode().splitlines()}
    assert {
        "airflow_provider_onebox.hooks.onebox.OneboxHook",
        "airflow_provider_onebox.operators.onebox.OneboxListOperator",
        "airflow_provider_onebox.exceptions.OneboxError",
    } <= names


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page(browser, url, pages, scheme):
    """On a phone, no page is wider than it, each picture loads, and the browser's console stays empty."""
    context = browser.new_context(viewport=PHONE, color_scheme=scheme)
    page = context.new_page()
    complaints = []
    page.on(
        "console",
        lambda message: (
            complaints.append(f"{message.text} {message.location}") if message.type in ("error", "warning") else None
        ),
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "response", lambda found: complaints.append(f"{found.url}: {found.status}") if found.status >= 400 else None
    )
    page.on("request", lambda request: None if request.url.startswith(url) else complaints.append(request.url))
    for name in pages:
        # Source listings are as wide as the source, and scroll.
        page.goto(f"{url}/{name}", wait_until="load")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name
        # Those further down are loaded when they are seen.
        broken = page.evaluate(
            """() => Promise.all([...document.images].map(async image => {
                image.loading = 'eager';
                try { await image.decode() } catch { return image.src }
                return image.naturalWidth ? null : image.src
            }))"""
        )
        assert [picture for picture in broken if picture] == [], name
    assert complaints == []
    context.close()


def test_dark_mode(browser, url):
    """The page is dark for who has set the system so."""
    colours = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(url)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        colours[scheme] = sum(map(int, re.findall("[0-9]+", colour)[:3]))
        page.close()
    assert colours["dark"] < 150 < 600 < colours["light"]


def test_search(browser, url):
    """The search finds the class, and the way to it."""
    page = browser.new_page()
    page.goto(f"{url}/search.html?q=OneboxHook")
    page.wait_for_selector("ul.search li")
    found = page.eval_on_selector_all("ul.search li a", "links => links.map(link => link.getAttribute('href'))")
    assert any("reference/hook.html" in link for link in found)
    assert any("how-to/onebox-hook.html" in link for link in found)
    page.close()
