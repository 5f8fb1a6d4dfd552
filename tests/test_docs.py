"""What is written about the package is true of it, and what is public is described."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import json
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from datetime import timedelta
from importlib.metadata import metadata
from pathlib import Path

import msgspec
import pytest
import yaml
from airflow.providers.common.compat.sdk import Connection
from support.readme import MESSAGES, PAGES, README, ROOT, blocks, python_blocks

import airflow_provider_onebox
from airflow_provider_onebox.api.settings import settings_from_connection
from airflow_provider_onebox.exceptions import OneboxError
from airflow_provider_onebox.files.changes import ByChanges
from airflow_provider_onebox.files.ids import ById
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.notifications.onebox import OneboxTicketNotifier
from airflow_provider_onebox.operators.bulk import OneboxBulkWriteOperator
from airflow_provider_onebox.provider_info import CONN_FIELDS
from airflow_provider_onebox.sandbox import Sandbox
from airflow_provider_onebox.sandbox.__main__ import _welcome

PACKAGE = Path(airflow_provider_onebox.__file__).parent
MODULES = [
    module.name
    for module in pkgutil.walk_packages(airflow_provider_onebox.__path__, "airflow_provider_onebox.")
    # The sandbox's inner parts are no interface, and ruff sees to their docstrings.
    if "sandbox" not in module.name
]
FOR_USERS = re.compile(r"\.(hooks|operators|sensors|triggers|notifications|exceptions)(\.[a-z]|$)")


def public_classes(module_name):
    """Return the public classes that a module defines, by name."""
    return {name: thing for name, thing in public_names(module_name) if inspect.isclass(thing)}


def public_names(module_name):
    """Return the public names that a module defines, and what they are."""
    found = vars(importlib.import_module(module_name)).items()
    return [(name, thing) for name, thing in found if name[0] != "_" and getattr(thing, "__module__", 0) == module_name]


def public_things():
    """Yield every public class and function of the package with its full name, methods included."""
    for module_name in MODULES:
        for name, thing in public_names(module_name):
            if inspect.isfunction(thing) or inspect.isclass(thing):
                yield f"{module_name}.{name}", thing
            for attribute, member in vars(thing).items() if inspect.isclass(thing) else ():
                function = getattr(member, "__func__", member)
                if attribute[0] != "_" and inspect.isfunction(function):
                    yield f"{module_name}.{name}.{attribute}", function


THINGS = dict(public_things())


def undocumented(thing):
    """Return what the docstring of a class or function leaves out."""
    doc = inspect.cleandoc(thing.__doc__ or "")
    if not doc:
        return ["docstring"]
    if inspect.isclass(thing):
        if thing.__init__ is object.__init__ or ("__init__" not in vars(thing) and not dataclasses.is_dataclass(thing)):
            return []
        signature = inspect.signature(thing.__init__)
    else:
        signature = inspect.signature(thing)
    catch_all = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [p.name for p in signature.parameters.values() if p.kind not in catch_all and p.name not in ("self", "cls")]
    missing = [f":param {name}:" for name in names if f":param {name}:" not in doc]
    if inspect.isfunction(thing) and signature.return_annotation not in ("None", None) and ":return:" not in doc:
        missing.append(":return:")
    return missing


def hidden(thing):
    """Return the parameters that a class documents and does not show in its signature."""
    shown = inspect.signature(thing).parameters
    return [name for name in re.findall(r":param (\w+):", thing.__doc__ or "") if name not in shown]


def test_docstrings():
    """Every public class and function says what it is, takes and returns; a class shows each parameter in editors."""
    assert {name: left_out for name, thing in THINGS.items() if (left_out := undocumented(thing))} == {}
    documented = {name: thing for name, thing in THINGS.items() if inspect.isclass(thing) and ":param" in thing.__doc__}
    assert {name: missing for name, thing in documented.items() if (missing := hidden(thing))} == {}


def test_templated_fields():
    """The docstring says of each field whether it is templated."""
    classes = {name: thing for name, thing in THINGS.items() if hasattr(thing, "template_fields")}
    templated = re.compile(r":param (\w+):(?:(?!:param|:raises).)*?\(templated\)", re.DOTALL)
    said = {name: sorted(templated.findall(thing.__doc__)) for name, thing in classes.items()}
    assert said == {name: sorted(thing.template_fields) for name, thing in classes.items()}


def test_docstring_check_checks():
    """The check above finds what it looks for."""

    def bare(self, a: int, *, b: int = 0, **c: int) -> int:
        """Say nothing of them."""

    assert undocumented(bare) == [":param a:", ":param b:", ":return:"]

    class Bare:
        """:param a: shown. :param b: not."""

        def __init__(self, a, **rest):
            """Take more than it shows."""

    assert hidden(Bare) == ["b"]
    assert len(THINGS) > 40


PYTHON_BLOCKS = [
    pytest.param(block, id=f"{name}-{number}")
    for name, text in PAGES.items()
    for number, block in enumerate(python_blocks(text))
]


@pytest.mark.parametrize("block", PYTHON_BLOCKS)
def test_python_on_pages(block):
    """Python in the README and on the pages parses, and what it imports of Airflow and of us exists."""
    imports = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
    for node in [node for node in imports if node.module.startswith("airflow")]:
        optional = node.module.startswith("airflow.providers.common.ai")
        module = (pytest.importorskip if optional else importlib.import_module)(node.module)
        assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


# What other tests run: DAGs, tests and calls.
RUN_ELSEWHERE = re.compile("onebox-hook.md-0|sandbox.md|testing.md")
EXCERPTS = [block for block in PYTHON_BLOCKS if "how-to/" in block.id and not RUN_ELSEWHERE.search(block.id)]


@pytest.mark.parametrize("block", EXCERPTS)
def test_excerpts(block):
    """What the how-to pages show runs as it is, given the classes that the page is about."""
    names = {"timedelta": timedelta, "OneboxBulkWriteOperator": OneboxBulkWriteOperator}
    names["OneboxTicketNotifier"] = OneboxTicketNotifier
    if "DeadlineAlert" in block:
        sdk = pytest.importorskip("airflow.sdk")
        if not hasattr(sdk, "AsyncCallback"):
            pytest.skip("This Airflow has no deadlines.")
        names |= {name: getattr(sdk, name) for name in ("AsyncCallback", "DeadlineAlert", "DeadlineReference")}
    if "airflow.providers.common.ai" in block:
        pytest.importorskip("airflow.providers.common.ai")
    exec(compile(block, "how-to", "exec"), names)  # noqa: S102 - our own text


def test_included_code():
    """Every example DAG is shown on a page, and a line with a link to code alone leads to a file."""
    shown = set()
    for name, text in PAGES.items():
        for target in re.findall(r"^\[.+\.py\]\((.+\.py)\)$", text, re.MULTILINE):
            shown.add((ROOT / name).parent.joinpath(target).resolve())
    assert all(file.is_file() for file in shown)
    assert set((ROOT / "example_dags").rglob("*.py")) <= shown


def test_readable_without_sphinx():
    """On GitHub, no page shows what only Sphinx understands; the API reference is made by Sphinx alone."""
    only_sphinx = re.compile(r"^(```\{|:::|\([\w-]+\)=$).*|\{py:\w+\}|\{ref\}|\{doc\}", re.MULTILINE)
    for name, text in PAGES.items():
        if not name.startswith("docs/reference/") and name != "docs/changelog.md":
            shown = re.sub(r"^<!--\n.*?^-->$", "", text, flags=re.MULTILINE | re.DOTALL)
            assert only_sphinx.findall(shown) == [], name


def test_test_on_page_passes(monkeypatch):
    """The test that is shown to users passes."""
    (block,) = (block for block in python_blocks(PAGES["docs/how-to/sandbox.md"]) if "def test_" in block)
    names = {}
    exec(compile(block, "sandbox.md", "exec"), names)  # noqa: S102 - our own text
    (test,) = (value for name, value in names.items() if name.startswith("test_"))
    test(monkeypatch)


def test_hook_calls(connected, monkeypatch):
    """The calls of the hook that its page shows work as written."""
    (block,) = (block for block in python_blocks(PAGES["docs/how-to/onebox-hook.md"]) if "hook.request(" in block)
    first = connected.state.ids()[0]
    printed = []
    code = block.replace("ticketrz/12250", f"ticketrz/{first}").replace("since_id=12000", "since_id=0")
    names = {"print": printed.append}
    exec(compile(code, "onebox-hook.md", "exec"), names)  # noqa: S102 - our own text
    assert names["ticket"]["Id"] == first
    assert names["created"]["ticketId"]
    assert names["response"].json()["count"] == 1
    assert names["ok"] is True
    assert printed == connected.state.ids("contactrz")
    assert connected.state.logins == 2


@pytest.mark.parametrize("name", ["README.md", "docs/quick-start.md", "docs/connection.md"])
def test_connections(name, monkeypatch):
    """Every connection on a page can work: JSON, URI and command line."""
    shell = "".join(blocks("shell", PAGES[name]))
    found = []
    for value in re.findall(r"^export AIRFLOW_CONN_ONEBOX_DEFAULT=(.*)$", shell, re.MULTILINE):
        monkeypatch.setenv("AIRFLOW_CONN_ONEBOX_DEFAULT", *shlex.split(value))
        found.append(OneboxHook.get_connection("onebox_default"))
    for command in re.findall(r"^airflow connections add ((?:.*\\\n)*.*)$", shell, re.MULTILINE):
        conn_id, *options = shlex.split(command.replace("\\\n", " "))
        fields = {k.removeprefix("--conn-"): v for k, v in zip(options[::2], options[1::2], strict=True)}
        found.append(Connection(conn_id=conn_id, conn_type=fields.pop("type"), **fields))
    assert {conn.conn_type for conn in found} == {"onebox"}
    assert {settings_from_connection(conn).site_id for conn in found} == {"169"}
    if name == "docs/connection.md":
        same = {settings_from_connection(conn) for conn in found}
        assert (len(found), len(same)) == (3, 1)
        assert {(settings.password, settings.timeout) for settings in same} == {("p@ss word", 60)}


def test_sample_records(connected):
    """The samples have the fields that the sandbox's records have, and the line that asks for the fields finds them."""
    page = PAGES["docs/records.md"]
    ticket, contact = map(json.loads, blocks("json", page))
    listed = {name: set(OneboxHook().get_records(name, max_records=1)[0]) for name in ("ticketrz", "contactrz")}
    assert set(contact) == listed["contactrz"]
    assert set(ticket) < listed["ticketrz"]
    printed = []
    exec(compile(*blocks("python", page), "records.md", "exec"), {"print": printed.append})  # noqa: S102 - our own text
    assert set(*printed) == listed["ticketrz"]
    single = OneboxHook().request("GET", f"ticketrz/{connected.state.ids()[0]}")
    table = [line.split("|") for line in page.split("## A contact")[0].splitlines() if line.startswith("| ")]
    found = [{name for row in table for name in re.findall(r"`([A-Z]\w+)`", row[column])} for column in (1, 2)]
    assert found[0] == set(ticket)
    assert found[1] < set(single)


def test_watermarks_by_hand():
    """What the page says to set a watermark to can be read."""
    page = PAGES["docs/faq.md"]
    ids, changes = (json.loads(text) for text in re.findall(r"\{\"known\": \{.*?\}\}", page))
    for kind, value in ((ById, ids), (ByChanges, changes)):
        state = msgspec.convert(value, kind.state_type, strict=False)
        assert msgspec.to_builtins(state.known) == value["known"]


def test_sandbox_output():
    """The quick start shows what the sandbox prints, and its connection logs in there."""
    page = PAGES["docs/quick-start.md"]
    with Sandbox(records=1) as sandbox:
        *login, connection = _welcome(sandbox).replace(sandbox.url, "http://127.0.0.1:8170").splitlines()
    (shown,) = blocks("text", page)
    assert shown.splitlines()[:-1] == login
    assert f"export {connection}\n" in "".join(blocks("shell", page))


def test_everything_is_named():
    """Every class for users has its page or table row, and every field of the connection its row."""
    names = {name for module in MODULES if FOR_USERS.search(module) for name in public_classes(module)}
    # Users don't call the trigger of the sensor.
    names -= {"OneboxRecordTrigger"}
    assert {"OneboxHook", "OneboxAuthenticateOperator", "OneboxServiceHoursError"} <= names
    errors = public_classes("airflow_provider_onebox.exceptions")
    text = README + PAGES["docs/troubleshooting.md"]
    assert [name for name in sorted(names) if f"`{name}" not in text] == []
    assert all(issubclass(cls, OneboxError) for cls in errors.values())
    titles = {text.splitlines()[0] for name, text in PAGES.items() if name.startswith("docs/how-to/")}
    for_tasks = names - set(errors)
    assert {f"# {name}" for name in for_tasks} <= titles
    registry = yaml.safe_load((ROOT / ".airflow-registry.yaml").read_text())
    listed = {entry["module"].rpartition(".")[2] for entry in registry["operators"] + registry["other"]}
    assert listed == for_tasks | {"OneboxRetryPolicy"}
    assert [name for name in listed if f"`{name}`" not in PAGES["docs/versions.md"]] == []
    assert [f"extra `{name}` | {field['label']} |" for name, field in CONN_FIELDS.items()] == re.findall(
        r"extra `\w+` \| [^|]+ \|", PAGES["docs/connection.md"]
    )


def test_figures():
    """The README's figures are those of the latest benchmark; `make bench` writes that of a listing."""
    results = (ROOT / "benchmarks" / "results.md").read_text(encoding="utf-8")
    few, many = re.search(r"open sockets \| ([\d,]+) +\| HttpSensorTrigger: ([\d,]+) ", results).groups()
    assert f"waiting sensors share {few} sockets; with `HttpSensorTrigger`, it's {many}." in " ".join(README.split())
    assert len(README.splitlines()) <= 120  # It is a first page.
    assert len(MESSAGES) > 150


def test_links():
    """A link to a file leads there, from the README, the pages and the policies."""
    others = {file.name: file.read_text(encoding="utf-8") for file in ROOT.glob("*.md")}
    for name, text in {**PAGES, **others}.items():
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)|<img src=\"([^\"]+)\"", text):
            path = "".join(target)
            if not path.startswith("https://"):
                assert (ROOT / name).parent.joinpath(path).exists(), f"{name}: {path}"


def test_package_index():
    """Links and pictures of the README that a package index shows are absolute, and lead to files of the repository."""
    found = metadata("airflow-provider-onebox")
    urls = dict(url.split(", ") for url in found.get_all("Project-URL"))
    repository = urls["Source"].removeprefix("https://github.com/")
    ours = re.compile(
        rf"https://(?:github\.com/{repository}/blob|raw\.githubusercontent\.com/{repository})/v[^/]+/([^#]+)(?:#.+)?"
    )
    links = re.findall(r"\]\(([^)]+)\)|<img src=\"([^\"]+)\"", found.json["description"])
    targets = ["".join(link) for link in links]
    assert [target for target in targets if not target.startswith("https://")] == []
    files = [match[1] for match in map(ours.fullmatch, targets) if match]
    assert {"LICENSE", "docs/index.md", "docs/images/overview.svg"} <= set(files)
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_changelog():
    """The newest entry is the version of the package."""
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == airflow_provider_onebox.__version__


@pytest.fixture(scope="module")
def tracked():
    """Every text file of the repository, by path; of the folder, if it is no repository."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        files = [ROOT / name for name in listed.split("\0") if name]
    else:
        files = [f for top in ("airflow_provider_onebox", "example_dags", "tests") for f in (ROOT / top).rglob("*.py")]
    return {
        file.relative_to(ROOT).as_posix(): file.read_text()
        for file in files
        if file.is_file() and file.suffix != ".png"
    }


def test_version_in_one_place(tracked):
    """Only the package, its change log and what was measured with it name the version."""
    version = re.compile(rf"(?<![\d.]){re.escape(airflow_provider_onebox.__version__)}(?![\d.])")
    holders = {n for n, text in tracked.items() if not n.startswith("constraints/") and version.search(text)}
    assert holders - {"CHANGELOG.md", "benchmarks/results.md", "benchmarks/soak.md"} == {
        "airflow_provider_onebox/__init__.py"
    }


@pytest.mark.parametrize("name", ["README.md", "docs/performance.md"])
def test_figures_are_those_that_were_measured(name):
    """Every figure comes from the page of results; `make figures` puts them there."""
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks/report.py")
    report = sys.modules["report"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    del sys.modules["report"]
    table = report.table_in((ROOT / "benchmarks/results.md").read_text())
    page = (ROOT / name).read_text()
    assert report.fill(page, table) == page
    # Without the figures it would be another page.
    assert report.fill(page, [[*cells[:1], "7 ms", "requests: 9 ms", *cells[3:]] for cells in table]) != page


def test_nothing_of_a_machine(tracked):
    """No file holds a path of somebody's machine or the address of a package index."""
    # In pieces, so that this file does not find itself.
    paths = ["/ho" + "me/[a-z]", "/ro" + "ot/", "/Us" + "ers/", "/wo" + "rk/", "/tm" + "p/", "[A-Z]:" + r"\\\\"]
    index = ["index" + "-url", "find" + "-links", "/sim" + "ple/", "files.python" + "hosted", "file:" + "///"]
    found = re.compile(rf"(?<![\w.}}])({'|'.join(paths)})|{'|'.join(index)}")
    assert [name for name, text in tracked.items() if found.search(text)] == []


@pytest.mark.parametrize("name", ["2.11", "3.0", "3.1", "3.2", "3.3", "3.4"])
def test_constraints(name):
    """The pinned files hold names and versions alone."""
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    pin = re.compile(r"[a-z0-9-]+==[0-9][a-z0-9.]*( ; [a-z_]+ [<>=!]+ '[^']+'( (and|or) .*)?)?")
    assert [line for line in lines if not pin.fullmatch(line)] == []
    assert any(line.startswith(f"apache-airflow=={name}.") for line in lines)
