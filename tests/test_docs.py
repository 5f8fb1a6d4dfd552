"""What is written about the package is true of it, and what is public is described."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import Connection
from readme import README, ROOT, blocks, python_blocks

import airflow_provider_onebox
from airflow_provider_onebox.exceptions import OneboxError
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.provider_info import CONN_FIELDS
from airflow_provider_onebox.settings import settings_from_connection

PACKAGE = Path(airflow_provider_onebox.__file__).parent
MODULES = [
    module.name
    for module in pkgutil.walk_packages(airflow_provider_onebox.__path__, "airflow_provider_onebox.")
    # The sandbox's inner parts are no interface, and ruff sees to their docstrings.
    if "sandbox" not in module.name
]
FOR_USERS = re.compile(r"\.(hooks|operators|sensors|triggers|notifications|exceptions)(\.|$)")


def is_public(name):
    """Tell whether a name has no leading underscore."""
    return not name.startswith("_")


def public_classes(module_name):
    """Return the public classes that a module defines, by name."""
    module = importlib.import_module(module_name)
    return {
        name: thing
        for name, thing in vars(module).items()
        if is_public(name) and inspect.isclass(thing) and thing.__module__ == module_name
    }


def public_things():
    """Yield every public class and function of the package with its full name, methods included."""
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name, thing in vars(module).items():
            if is_public(name) and inspect.isfunction(thing) and thing.__module__ == module_name:
                yield f"{module_name}.{name}", thing
        for name, cls in public_classes(module_name).items():
            yield f"{module_name}.{name}", cls
            for attribute, member in vars(cls).items():
                function = getattr(member, "__func__", member)
                if is_public(attribute) and inspect.isfunction(function):
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


@pytest.mark.parametrize("name", THINGS)
def test_docstrings(name):
    """Every public thing says what it is, takes and gives back."""
    assert undocumented(THINGS[name]) == []


def test_docstring_check_checks():
    """The check above finds what it looks for."""

    def bare(self, a: int, *, b: int = 0, **c: int) -> int:
        """Say nothing of them."""

    assert undocumented(bare) == [":param a:", ":param b:", ":return:"]
    assert len(THINGS) > 40


def test_every_test_has_a_docstring():
    """A test says what it proves."""
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert ast.get_docstring(node), f"{file.name}: {node.name}"


@pytest.mark.parametrize("block", python_blocks())
def test_readme_python(block):
    """Python in the README parses, and what it imports is there."""
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


def test_readme_test_passes(monkeypatch):
    """The test that the README shows to users passes."""
    (block,) = (block for block in python_blocks() if "def test_" in block)
    names = {}
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102 - our own text
    (test,) = (value for name, value in names.items() if name.startswith("test_"))
    test(monkeypatch)


def test_readme_hook_calls(connected, monkeypatch):
    """The calls of the hook that the README shows work as written."""
    (block,) = (block for block in python_blocks() if "hook.request(" in block)
    first = connected.state.ids()[0]
    printed = []
    code = block.replace("ticketrz/12250", f"ticketrz/{first}").replace("since_id=12000", "since_id=0")
    names = {"print": printed.append}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - our own text
    assert names["ticket"]["Id"] == first
    assert names["created"]["ticketId"]
    assert names["reply"].json()["count"] == 1
    assert names["ok"] is True
    assert printed == connected.state.ids("contactrz")
    assert connected.state.logins == 2


def test_readme_connections(monkeypatch):
    """JSON, URI and command line, as written, are the same connection, and one that works."""
    shell = "".join(blocks("shell"))
    values = re.findall(r"^export AIRFLOW_CONN_ONEBOX_DEFAULT=(.*)$", shell, re.MULTILINE)
    found = []
    for value in values:
        monkeypatch.setenv("AIRFLOW_CONN_ONEBOX_DEFAULT", *shlex.split(value))
        found.append(OneboxHook.get_connection("onebox_default"))
    (command,) = re.findall(r"^airflow connections add ((?:.*\\\n)*.*)$", shell, re.MULTILINE)
    conn_id, *options = shlex.split(command.replace("\\\n", " "))
    fields = {k.removeprefix("--conn-"): v for k, v in zip(options[::2], options[1::2], strict=True)}
    found.append(Connection(conn_id=conn_id, conn_type=fields.pop("type"), **fields))
    assert {conn.conn_type for conn in found} == {"onebox"}
    first, *others = [settings_from_connection(conn) for conn in found]
    assert (first.base_url, first.email, first.site_id) == ("https://cloud.onebox.co.id", "me@example.com", "169")
    assert len(others) == 3
    assert len(set(others)) == 1
    assert (others[0].password, others[0].timeout) == ("p@ss word", 60)


def test_readme_names_everything():
    """Every class for users and every field of the connection is named in the README."""
    names = {name for module in MODULES if FOR_USERS.search(module) for name in public_classes(module)}
    assert {"OneboxHook", "OneboxAuthenticateOperator", "OneboxQuotaError"} <= names
    assert [name for name in sorted(names) if f"`{name}" not in README] == []
    assert [f"extra `{name}` | {field['label']} |" for name, field in CONN_FIELDS.items()] == re.findall(
        r"extra `\w+` \| [^|]+ \|", README
    )
    methods = {name for name in vars(OneboxHook) if is_public(name) and inspect.isfunction(vars(OneboxHook)[name])}
    assert [name for name in sorted(methods) if f"`{name}(" not in README] == []
    assert all(issubclass(cls, OneboxError) for cls in public_classes("airflow_provider_onebox.exceptions").values())


def test_readme_links():
    """A link to a heading or to a file leads there."""
    headings = {re.sub("[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall("^#+ (.*)$", README, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings
        elif not target.startswith("https://"):
            assert (ROOT / target).exists()


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
    assert holders - {"CHANGELOG.md", "benchmarks/results.md"} == {"airflow_provider_onebox/__init__.py"}


def test_nothing_of_a_machine(tracked):
    """No file holds a path of somebody's machine or the address of a package index."""
    # In pieces, so that this file does not find itself.
    paths = ["/ho" + "me/[a-z]", "/ro" + "ot/", "/Us" + "ers/", "/wo" + "rk/", "/tm" + "p/", "[A-Z]:" + r"\\\\"]
    index = ["index" + "-url", "find" + "-links", "/sim" + "ple/", "files.python" + "hosted", "file:" + "///"]
    found = re.compile(rf"(?<![\w.}}])({'|'.join(paths)})|{'|'.join(index)}")
    assert [name for name, text in tracked.items() if found.search(text)] == []


@pytest.mark.parametrize("name", ["2.11", "3.0", "3.1", "3.2", "3.3"])
def test_constraints(name):
    """The pinned files hold names and versions alone."""
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    pin = re.compile(r"[a-z0-9-]+==[0-9][a-z0-9.]*( ; [a-z_]+ [<>=!]+ '[^']+'( (and|or) .*)?)?")
    assert [line for line in lines if not pin.fullmatch(line)] == []
    assert any(line.startswith(f"apache-airflow=={name}.") for line in lines)
