"""The fixtures for users' tests work as their page shows."""

from __future__ import annotations

import sys

from support.processes import run, unmeasured
from support.readme import PAGES, python_blocks

pytest_plugins = ["pytester"]


def test_page(pytester):
    """A conftest, a DAG and tests as on the page pass in a project that has nothing else."""
    conftest, hook_tests, dag, dag_tests = python_blocks(PAGES["docs/how-to/testing.md"])
    # The command is that of all other deployments in these tests; within the process it takes half the time.
    command = 'subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True)'
    assert command in conftest
    pytester.makeconftest(conftest.replace(command, "from airflow.utils.db import initdb; initdb()"))
    (pytester.mkdir("dags") / "closed_tickets.py").write_text(dag)
    pytester.makepyfile(test_hook=hook_tests, test_closed_tickets=dag_tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = run(*command, cwd=pytester.path, env={**unmeasured(), "HOME": str(pytester.path)})
    assert done.stdout.splitlines()[-1].startswith("4 passed"), done.stdout + done.stderr


def test_site(onebox_connection, onebox_sandbox):
    """The connection is for the sandbox's first site."""
    from airflow_provider_onebox.hooks.onebox import OneboxHook

    hook = OneboxHook(onebox_connection)
    assert hook.settings.site_id == onebox_sandbox.state.sites[0]
    assert hook.count_records("ticketrz")[0] == 250
