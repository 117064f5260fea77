"""A real browser before a real server on the test database. Every page is watched: see `tests.browser.watch`."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from django.conf import settings
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.browser.watch import Watch

# Playwright's synchronous API runs an event loop in this thread, where Django would refuse to touch the database.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
ROOT = Path(__file__).resolve().parent.parent.parent
START_LIMIT_S = 60
WAIT_MS = 20_000  # on a machine that is busy with others
expect.set_options(timeout=WAIT_MS)


class OpenPanel(Protocol):
    def __call__(self, path: str = "/", *, width: int = 1440, theme: str = "light", signed_in: bool = True) -> Page: ...


@pytest.fixture(scope="package")
def static_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The panel's files, collected once."""
    root = tmp_path_factory.mktemp("static")
    command = [sys.executable, "manage.py", "collectstatic", "--noinput", "--verbosity=0"]
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "gateway_project.settings", "STATIC_ROOT": str(root)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return root


@pytest.fixture(scope="package")
def panel_url(django_db_setup: None, static_root: Path) -> Iterator[str]:
    with panel_server(static_root) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def panel_server(static_root: Path, **settings_of_its_own: str) -> Iterator[int]:
    """The control process's application behind uvicorn, on the test database."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    database = settings.DATABASES["default"]
    server = f"{database['USER']}:{database['PASSWORD']}@{database['HOST']}:{database['PORT']}"
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "gateway_project.settings",
        "DATABASE_URL": f"postgres://{server}/{database['NAME']}",
        "STATIC_ROOT": str(static_root),
        "SERVICE_NAME": "portcullis-test",
        **settings_of_its_own,
    }
    command = [sys.executable, "-m", "uvicorn", "gateway_project.control:application", "--port", str(port)]
    with subprocess.Popen(
        [*command, "--log-level", "warning", "--lifespan", "off"], cwd=ROOT, env=environment
    ) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process)
            yield port
        finally:
            process.terminate()
            process.wait()


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the panel's server ended while it started"
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the panel's server did not answer in time")


@pytest.fixture(scope="package")
def browser(browser_path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def watch(panel_url: str) -> Iterator[Watch]:
    """What the pages of a test complain of. It fails the test in the end."""
    watch = Watch(panel_url)
    yield watch
    watch.check()


@pytest.fixture
def open_panel(panel_url: str, browser: Browser, watch: Watch, transactional_db: None) -> Iterator[OpenPanel]:
    """``open_panel("/services", width=390, theme="dark")``: a page of its own, signed in as ann."""
    from tests.panel_client import make_admin, signed_in  # Django's models load after this file

    session: Any = signed_in(make_admin()).cookies["portcullis_session"].value
    contexts: list[BrowserContext] = []

    def open_panel(path: str = "/", *, width: int = 1440, theme: str = "light", signed_in: bool = True) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if theme == "dark" else "light",
            reduced_motion="reduce",
        )
        contexts.append(context)
        if signed_in:
            context.add_cookies([{"name": "portcullis_session", "value": session, "url": panel_url}])
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        watch.over(page)
        page.goto(panel_url + path)
        return page

    yield open_panel
    for context in contexts:
        context.close()
