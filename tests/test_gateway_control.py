"""The control process through real sockets: its TCP port for the panel, its Unix socket for the workers."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.db import connection
from django.test import Client

from gateway_project.control_server import server_config, tcp_socket, unix_socket
from keys.authentication import FAILURES
from tests.admin_api import SERVICES, admin_with_key

pytestmark = pytest.mark.django_db(transaction=True)


@dataclass(frozen=True)
class Control:
    port: int
    path: Path

    def tcp(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, **options)

    def unix(self, **options: Any) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.path))
        return httpx.Client(base_url="http://control", transport=transport, trust_env=False, **options)


@pytest.fixture
def static_file(settings: Any, tmp_path: Path) -> bytes:
    settings.STATIC_ROOT = str(tmp_path / "static")
    content = b"/* a comment */" * 10_000
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "a.css").write_bytes(content)
    return content


@pytest.fixture
def control(transactional_db: None, static_file: bytes, tmp_path: Path) -> Iterator[Control]:
    """Served as `gateway_project.control_server` does, in a thread, on the test's database."""
    from gateway_project.control import limited  # makes an application when loaded, which looks for static files

    FAILURES.clear()
    path = tmp_path / "control.sock"
    application: Any = limited(get_asgi_application())  # type: ignore[arg-type]
    tcp, unix = tcp_socket("127.0.0.1", 0), unix_socket(path)
    server = uvicorn.Server(server_config(application))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [tcp, unix]})
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield Control(tcp.getsockname()[1], path)
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()
    tcp.close()
    unix.close()


@pytest.fixture
def key() -> dict[str, str]:
    return {"X-API-Key": admin_with_key()[1]}


def test_an_object_is_made_read_and_guarded_over_both_sockets(control: Control, key: dict[str, str]) -> None:
    with control.tcp(headers=key) as panel, control.unix(headers=key) as worker:
        made = panel.post(SERVICES, json={"name": "orders"})
        assert (made.status_code, made.headers["x-config-revision"]) == (201, "2")
        seen = worker.get(f"{SERVICES}/orders")
        assert seen.json() == made.json()
        tag = seen.headers["etag"]

        assert (
            panel.patch(f"{SERVICES}/orders", json={"description": "a"}, headers={"If-Match": tag}).status_code == 200
        )
        stale = worker.patch(f"{SERVICES}/orders", json={"description": "b"}, headers={"If-Match": tag})

    assert (stale.status_code, stale.json()["code"]) == (412, "stale_revision")
    assert stale.headers["content-type"] == "application/problem+json"
    assert stale.headers["etag"] == f'"{stale.json()["current"]}"'


def test_a_panel_session_counts_on_the_panels_port_only(control: Control) -> None:
    browser = Client()
    browser.force_login(User.objects.create_superuser("ann"))
    cookies = {django_settings.SESSION_COOKIE_NAME: browser.cookies[django_settings.SESSION_COOKIE_NAME].value}

    with control.tcp(cookies=cookies) as panel, control.unix(cookies=cookies) as worker:
        assert panel.get(SERVICES).status_code == 200
        assert worker.get(SERVICES).status_code == 401


def test_failures_count_for_the_address_that_the_worker_names(control: Control, settings: Any) -> None:
    settings.AUTH_FAILURES_PER_MINUTE = 2
    wrong = {"X-API-Key": "km_wrong"}

    def status(client: httpx.Client, address: str) -> int:
        return client.get(SERVICES, headers={**wrong, "X-Forwarded-For": address}).status_code

    with control.tcp() as panel, control.unix() as worker:
        assert [status(worker, "192.0.2.1") for _ in range(3)] == [401, 401, 429]
        assert status(worker, "192.0.2.2") == 401
        # On its own port the peer counts, whatever it says.
        assert [status(panel, f"192.0.2.{number}") for number in (10, 11, 12)] == [401, 401, 429]
        # But a proxy in front of it is believed, or one client's failures would hold everybody back.
        settings.TRUSTED_PROXIES = ["127.0.0.1"]
        assert [status(panel, "192.0.2.13, 192.0.2.14") for _ in range(3)] == [401, 401, 429]
        assert status(panel, "192.0.2.15") == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Forwarded-For": "127.0.0.1", "X-Gateway-Direct": "yes"}, 201),
        ({"X-Forwarded-For": "::1", "X-Gateway-Direct": "yes"}, 201),
        ({"X-Forwarded-For": "192.0.2.1", "X-Gateway-Direct": "yes"}, 401),
        ({"X-Forwarded-For": "127.0.0.1"}, 401),
        ({}, 401),
    ],
)
def test_setup_through_a_worker_is_free_for_this_host_only(
    control: Control, settings: Any, headers: dict[str, str], status: int
) -> None:
    settings.EMBEDDED, settings.SETUP_TOKEN = True, ""

    with control.unix() as worker:
        answer = worker.post("/setup", json={"name": "Ann", "email": "ann@example.com"}, headers=headers)

    assert answer.status_code == status


def test_of_two_setups_at_once_one_makes_the_admin(control: Control, settings: Any) -> None:
    settings.EMBEDDED = True
    statuses: list[int] = []

    def set_up(number: int) -> None:
        with control.tcp() as client:
            body = {"name": "Ann", "email": f"ann{number}@example.com"}
            statuses.append(client.post("/setup", json=body).status_code)

    threads = [threading.Thread(target=set_up, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(statuses) == [201, 409, 409, 409]
    assert User.objects.count() == 1


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_beyond_the_limit_never_reaches_a_view(control: Control, key: dict[str, str], is_chunked: bool) -> None:
    body = b" " * (8 * 1024 * 1024)  # more than the sockets' buffers hold: the client must read the answer all the same
    content = iter([body[:600_000], body[600_000:]]) if is_chunked else body

    with control.tcp(headers=key) as client:
        answer = client.post(SERVICES, content=content, headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


def test_a_client_that_leaves_in_the_middle_of_its_body_disturbs_nobody(control: Control, key: dict[str, str]) -> None:
    with socket.create_connection(("127.0.0.1", control.port)) as leaver:
        leaver.sendall(b"POST /keys HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")

    with control.tcp(headers=key) as client:
        assert client.get(SERVICES).status_code == 200


def test_requests_leave_no_database_connection_behind(control: Control, key: dict[str, str]) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no server that counts connections")
    with control.tcp(headers=key) as client:
        for _ in range(20):
            assert client.get(SERVICES).status_code == 200

    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        assert cursor.fetchone()[0] <= 3  # the test's own, and one that may be closing


def test_paths_that_nobody_serves_are_problems(control: Control) -> None:
    with control.tcp() as client:
        for path in ("/nowhere", "/admin/%00", "/admin/%ff", "/keys/%2e%2e%2f"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path


def test_files_are_served_whole(control: Control, static_file: bytes) -> None:
    with control.tcp() as client:
        answer = client.get("/static/a.css")

    assert (answer.status_code, answer.headers["content-type"]) == (200, 'text/css; charset="utf-8"')
    assert answer.content == static_file


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """Nagle's algorithm and delayed acknowledgements together cost 40 ms an answer."""
    with (
        tcp_socket("127.0.0.1", 0) as listener,
        socket.socket() as client,
    ):
        listener.listen()
        client.connect(listener.getsockname())
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_head_beyond_its_limit_is_refused_before_it_is_whole(control: Control) -> None:
    begin = b"GET /health HTTP/1.1\r\nHost: a\r\nX-Long: "
    with socket.create_connection(("127.0.0.1", control.port), timeout=10) as client:
        client.sendall(begin.ljust(64 * 1024 + 1, b"a"))
        assert client.recv(12) == b"HTTP/1.1 400"
