"""The fixtures for users' tests work as their page shows."""

from __future__ import annotations

import sys

from support.readme import PAGES, python_blocks

pytest_plugins = ["pytester"]


def test_page(pytester):
    """A conftest, a DAG and tests as on the page pass in a project that has nothing else."""
    conftest, hook_tests, dag, dag_tests = python_blocks(PAGES["docs/how-to/testing.md"])
    pytester.makeconftest(conftest)
    (pytester.mkdir("dags") / "closed_tickets.py").write_text(dag)
    pytester.makepyfile(test_hook=hook_tests, test_closed_tickets=dag_tests)
    result = pytester.run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", timeout=300)
    result.assert_outcomes(passed=4)


def test_site(onebox_connection, onebox_sandbox):
    """The connection is for the sandbox's first site."""
    from airflow_provider_onebox.hooks.onebox import OneboxHook

    hook = OneboxHook(onebox_connection)
    assert hook.settings.site_id == onebox_sandbox.state.sites[0]
    assert hook.count_records("ticketrz")[0] == 250
