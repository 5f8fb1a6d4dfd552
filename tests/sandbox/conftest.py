"""A running sandbox and a plain HTTP client for it."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from airflow_provider_onebox.sandbox import Sandbox


class Caller(requests.Session):
    """A session that knows the address, and follows no redirect."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__()
        self.sandbox = sandbox
        self.trust_env = False

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request to a path below the sandbox's address."""
        options = {"timeout": 60, **options, "allow_redirects": False}
        return super().request(method, self.sandbox.url + path, **options)

    def login(self, path: str = "/api/authenticate", **changes: str) -> requests.Response:
        """Log in with the right credentials, or with some of them changed."""
        return self.post(path, data={**self.sandbox.credentials, **changes}, headers={"Authorization": None})

    def sign_in(self, site: str = "169") -> str:
        """Log in and use the token from here on."""
        token: str = self.login(siteId=site).json()["token"]
        self.headers["Authorization"] = f"Bearer {token}"
        return token

    def page(self, resource: str = "ticketrz", **query: Any) -> dict[str, Any]:
        """Return one page."""
        response = self.get(f"/api/{resource}", params=query)
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body


@pytest.fixture(scope="session", params=["auto", "h11"])
def running(request):
    """Run one server for each of uvicorn's two protocols."""
    with Sandbox(records=60, http=request.param) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running):
    """Return the sandbox in its first state."""
    running.state.reset()
    return running


@pytest.fixture
def connect():
    """Return what makes a client for a sandbox of the test's own."""
    return Caller


@pytest.fixture
def caller(sandbox):
    """Open a client that has no token."""
    with Caller(sandbox) as session:
        yield session


@pytest.fixture
def user(caller):
    """Return a client that has a token for site 169; its login is not counted."""
    caller.headers["Authorization"] = f"Bearer {caller.sandbox.state.issue('169', caller.sandbox.email)}"
    return caller
