"""Builds the documentation: Markdown by MyST, the API reference from the docstrings."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.addnodes import pending_xref

if TYPE_CHECKING:
    from docutils.nodes import Element, TextElement, document
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

# Airflow reads its configuration when it is first imported, and makes a folder for it.
_home = tempfile.TemporaryDirectory(prefix="airflow-docs-")
os.environ |= {"AIRFLOW_HOME": _home.name, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from airflow_provider_onebox import __version__  # noqa: E402 - from this tree, whatever is installed

project = "airflow-provider-onebox"
author = "airflow-provider-onebox maintainers"
copyright = author  # noqa: A001 - Sphinx's name
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx", "sphinx.ext.viewcode"]
exclude_patterns = ["inventories"]
nitpicky = True
needs_sphinx = "8.1"

myst_enable_extensions = ["alert", "deflist", "fieldlist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.strikethrough"]

html_theme = "furo"
html_title = f"Onebox provider {__version__}"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "source_repository": "https://github.com/airflow-provider-onebox/airflow-provider-onebox/",
    "source_branch": "main",
    "source_directory": "docs/",
}
html_copy_source = False
html_show_sphinx = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
add_module_names = False


def _inventory(name: str) -> str:
    """Write the inventory of names in a list, for where there is no network: see CONTRIBUTING.md."""
    lines = (DOCS / "inventories" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    head = f"# Sphinx inventory version 2\n# Project: {name}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    body = "".join(f"{line}\n" for line in lines if line and not line.startswith("#"))
    target = Path(_home.name) / f"{name}.inv"
    target.write_bytes(head.encode() + zlib.compress(body.encode()))
    return str(target)


# None is the public inventory; the list in this repository is asked where that can't be reached.
intersphinx_mapping = {
    "airflow-sdk": ("https://airflow.apache.org/docs/task-sdk/stable/", (None, _inventory("airflow-sdk"))),
    "airflow": ("https://airflow.apache.org/docs/apache-airflow/stable/", (None, _inventory("airflow"))),
    "requests": ("https://requests.readthedocs.io/en/latest/", (None, _inventory("requests"))),
}
intersphinx_timeout = 5

# Airflow has no page for these.
nitpick_ignore = {
    ("py:exc", "AirflowOptionalProviderFeatureException"),
    ("py:exc", "AirflowSensorTimeout"),
    ("py:exc", "AirflowSkipException"),
    ("py:class", "airflow.sdk.RetryPolicy"),
    ("py:class", "SharedStreamProducer"),
    # What an error carries is described as the parameters of its class.
    ("py:attr", "server_message"),
}

# A number that a private module holds.
nitpick_ignore_regex = [("py:data", r"airflow_provider_onebox\..*")]

# Where Airflow documents a class, which is not where it is defined.
_DOCUMENTED = {
    "AirflowException": "airflow.exceptions",
    "AirflowFailException": "airflow.exceptions",
    "BaseTrigger": "airflow.triggers.base",
    "BaseEventTrigger": "airflow.triggers.base",
}


def _public_bases(_app: Sphinx, _name: str, _obj: Any, _options: Any, bases: list[Any]) -> None:
    """Show the first public class above a private one, under the name that Airflow documents it by."""
    shown = []
    for base in bases:
        public = next(cls for cls in base.__mro__ if not cls.__name__.startswith("_"))
        if public.__module__.startswith("airflow."):
            place = _DOCUMENTED.get(public.__name__, "airflow.sdk")
            public = f":py:class:`~{place}.{public.__name__}`"
        if public not in shown:
            shown.append(public)
    bases[:] = shown


def _own_class(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: TextElement) -> Element | None:
    """Find a class of ours by its bare name, from any module."""
    name = node["reftarget"].rpartition(".")[2].strip()
    domain = env.get_domain("py")
    found = {full for full, _, kind, *_ in domain.get_objects() if full.endswith(f".{name}") and kind != "module"}
    if node.get("refdomain") != "py" or not name.startswith("Onebox") or len(found) != 1:
        return None
    full = found.pop()
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, content)


def _sphinx_only(_app: Sphinx, _name: str, source: list[str]) -> None:
    """Show a linked example's code in place of a line with the link alone, and read what is in a comment.

    So the pages read well without Sphinx too: on GitHub, and in an editor.
    """
    include = r"```{literalinclude} \2\n:caption: \1\n```"
    text = re.sub(r"^\[(.+\.py)\]\((.+\.py)\)$", include, source[0], flags=re.MULTILINE)
    source[0] = re.sub(r"^<!--\n(.*?)^-->$", r"\1", text, flags=re.MULTILINE | re.DOTALL)


def _class_links(app: Sphinx, doctree: document) -> None:
    """Link each `OneboxClass` in the text to its place in the reference."""
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext()
        linked = isinstance(literal.parent, (nodes.title, nodes.term, nodes.reference, pending_xref))
        if re.fullmatch("Onebox[A-Z][A-Za-z]+", name) and not linked:
            place = {"refdoc": app.env.docname, "refdomain": "py", "reftype": "class", "reftarget": name}
            literal.replace_self(link := pending_xref("", refwarn=True, **place))
            link += literal


def _message_anchors(app: Sphinx, doctree: document) -> None:
    """Give each message on the page about them an anchor: its letters and digits, joined by hyphens."""
    if app.env.docname == "troubleshooting":
        for term in doctree.findall(nodes.term):
            anchor = re.sub("[^a-z0-9]+", "-", term.astext().lower()).strip("-")
            term["ids"].append(anchor)
            term += nodes.reference("", "#", refid=anchor, classes=["headerlink"])


def setup(app: Sphinx) -> None:
    """Connect the above."""
    app.connect("source-read", _sphinx_only)
    app.connect("doctree-read", _class_links)
    app.connect("doctree-read", _message_anchors)
    app.connect("missing-reference", _own_class)
    app.connect("autodoc-process-bases", _public_bases)
