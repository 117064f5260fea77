"""What the gateway answers by itself, and what it writes of each request (architecture section 9; rules 15, 21, 28)."""

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from core.faults import ClientFault, InternalFault
from core.wire import Message
from tests.dataplane import DataPlane
from tests.gateway_process import eventually
from tests.private_servers import free_port
from tests.raw_http import Answer, request
from tests.scripted_upstream import OK, Upstream, replying
from tests.wires import queue_route_wire, route_wire


@pytest.fixture(scope="module")
def upstream(plane: DataPlane) -> Upstream:
    return plane.serve()


# --- problem documents -----------------------------------------------------------------------------------------------
REFUSALS = {
    "bad_path": ("GET", "{up}/a/../b?secret=1", []),
    "bad_request": ("GET", "{up}/x?secret=1", ["X-API-Version: v1", "Accept: a/b;version=2"]),
    "missing_credentials": ("GET", "{up}/x?secret=1", None),
    "invalid_credentials": ("GET", "{up}/x?secret=1", ["Authorization: Bearer nonsense"]),
    "no_route": ("GET", "/nowhere?secret=1", []),
    "unknown_version": ("GET", "{up}/x?secret=1", ["X-API-Version: v9"]),
    "method_not_allowed": ("TRACE", "{up}/x?secret=1", []),
    "payload_too_large": ("POST", "{up}/x?secret=1", ["Content-Length: 99999999"]),
    "header_too_large": ("GET", "{up}/x?secret=1", ["X-Long: " + "a" * 9000]),
    "uri_too_long": ("GET", "{up}/x?secret=" + "a" * 9000, []),
    "upstream_connect_failed": ("GET", "{dead}/x?secret=1", []),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_every_refusal_is_a_problem_document_that_the_log_knows(
    plane: DataPlane, upstream: Upstream, code: str
) -> None:
    method, target, fields = REFUSALS[code]
    dead = plane.serve(default_url=f"http://127.0.0.1:{free_port()}")
    target = target.format(up=upstream.path, dead=dead.path)
    key = None if fields is None or code == "invalid_credentials" else ""
    answer = plane.ask(method, target, *(fields or []), key=key)
    problem = answer.problem
    assert problem["code"] == code
    assert set(problem) == {"type", "title", "status", "detail", "instance", "code", "request_id"}
    assert all(isinstance(problem[name], str) and problem[name] for name in ("type", "title", "detail", "instance"))
    assert problem["request_id"] == answer.field("x-request-id")
    assert problem["instance"] == target.partition("?")[0]
    assert (answer.field("proxy-status") or "").startswith("portcullis; ")
    assert answer.field("cache-control") == "no-store"
    assert parsedate_to_datetime(answer.field("date") or "")
    assert "www-authenticate" in dict(answer.fields) if answer.status == 401 else True
    line = plane.log_line(problem["request_id"])
    assert (line["code"], line["status_code"]) == (code, answer.status)
    assert "secret" not in json.dumps(line) and "secret" not in answer.body.decode()


def test_what_the_gateway_refuses_and_what_the_upstream_does_are_told_apart(
    plane: DataPlane, upstream: Upstream
) -> None:
    theirs = plane.serve(replying(OK.replace(b"200 OK", b"404 Not Found")))
    answer = plane.ask("GET", f"{theirs.path}/x")
    assert (answer.status, answer.body, answer.field("proxy-status")) == (404, b"ok", None)
    assert plane.ask("GET", "/nowhere").field("proxy-status") == 'portcullis; details="no_route"'


# --- the access log --------------------------------------------------------------------------------------------------
def test_a_line_says_what_became_of_a_request_and_keeps_its_secrets(plane: DataPlane, upstream: Upstream) -> None:
    fields = ["Cookie: session=hush", "Authorization: Basic aHVzaA=="]
    answer = plane.ask("POST", f"{upstream.path}/a%20b?token=hush", *fields, body=b"12345")
    line = plane.log_line(answer.field("x-request-id"))
    told = {
        "level": "info",
        "method": "POST",
        "path": f"{upstream.path}/a%20b",
        "status_code": 200,
        "client": "127.0.0.1",
        "service": upstream.path.rpartition("/")[2],
        "version": "default",
        "route": None,
        "application": "web",
        "key_id": "key_1",
        "tenant_id": "default",
        "bytes_in": 5,
        "bytes_out": 2,
        "code": None,
    }
    assert {name: line[name] for name in told} == told
    assert line["response_time_ms"] >= line["upstream_time_ms"] > 0
    assert len(line["trace_id"]) == 32
    text = (plane.directory / "access.log").read_text()
    assert "hush" not in text and "aHVzaA" not in text and plane.key not in text


def test_paths_are_escaped_and_cut(plane: DataPlane, upstream: Upstream) -> None:
    answer = plane.ask("GET", f"{upstream.path}/" + "a" * 5000)
    assert len(plane.log_line(answer.field("x-request-id"))["path"]) == 2048
    answer = plane.ask("GET", '/"quoted"\\<script>')
    assert plane.log_line(answer.field("x-request-id"))["path"] == '/"quoted"\\<script>'
    for line in (plane.directory / "access.log").read_bytes().splitlines():
        assert line.isascii() and json.loads(line)


def test_what_is_no_request_has_a_line_too(plane: DataPlane) -> None:
    with plane.connect() as client:
        answer = client.send(b"\x16\x03\x01\x02\x00\x01\xff\n\n").answer()
    line = plane.log_line(answer.problem["request_id"])
    assert (line["method"], line["status_code"], line["code"]) == ("-", 400, "bad_request")


def test_the_log_is_reopened_after_rotation_and_no_line_is_lost(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane()
    path = f"{plane.serve().path}/x"
    ids = []
    log = plane.directory / "access.log"
    for number in range(3):
        for _ in range(50):
            ids.append(plane.ask("GET", path).field("x-request-id"))
        log.rename(plane.directory / f"access.log.{number}")
        plane.process.send_signal(signal.SIGUSR1)
        eventually(log.exists, what="the new file")
    ids.append(plane.ask("GET", path).field("x-request-id"))
    plane.log_line(ids[-1])
    lines = [line for file in plane.directory.glob("access.log*") for line in file.read_text().splitlines()]
    written = [json.loads(line)["request_id"] for line in lines]
    assert sorted(id for id in written if id in ids) == sorted(filter(None, ids))


# --- the gateway's own endpoints -------------------------------------------------------------------------------------
def test_health_ready_and_info_are_answered_to_anybody(plane: DataPlane) -> None:
    assert plane.ask("GET", "/health", key=None).body == b'{"status":"ok"}'
    ready = plane.ask("GET", "/ready", key=None)
    assert (ready.status, json.loads(ready.body)["status"]) == (200, "ready")
    assert json.loads(ready.body)["dependencies"] == {"agent": "up", "configuration": "fresh"}
    assert json.loads(plane.ask("GET", "/info", key=None).body)["service"] == "portcullis"


@pytest.mark.parametrize("path", ["/health", "/ready", "/info", "/api/v1/tasks/task_1"])
def test_they_take_get_and_head_only(plane: DataPlane, path: str) -> None:
    answer = plane.ask("POST", path, body=b"x")
    assert (answer.status, answer.code, answer.field("allow")) == (405, "method_not_allowed", "GET, HEAD")


def test_metrics_are_served_only_where_there_is_a_token_and_to_whoever_has_it(
    start_plane: Callable[..., DataPlane],
) -> None:
    agent = Upstream()
    try:
        plane = start_plane(metrics_token="the token", metrics_port=agent.port, egress_allow=())
        assert plane.ask("GET", "/metrics", key=None).code == "invalid_credentials"
        assert plane.ask("GET", "/metrics", "Authorization: Bearer wrong", key=None).status == 401
        assert plane.ask("GET", "/metrics", "Authorization: Bearer the token", key=None).body == b"ok"
        assert plane.ask("POST", "/metrics", "Authorization: Bearer the token", key=None).status == 405
    finally:
        agent.close()


def test_metrics_are_not_served_by_default(plane: DataPlane) -> None:
    assert plane.ask("GET", "/metrics", "Authorization: Bearer ", key=None).code == "no_route"


@pytest.fixture
def control(plane: DataPlane) -> Iterator[list[bytes]]:
    """The control process's socket; the heads that it gets."""
    heads: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(plane.settings.control_socket)
    listener.listen()

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                heads.append(peer.recv(65536))
                peer.sendall(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    thread = threading.Thread(target=serve)
    thread.start()
    yield heads
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    os.unlink(plane.settings.control_socket)


@pytest.mark.parametrize(
    "path",
    ["/admin/routing/services?a=b", "/keys", "/keys/key_1", "/validate", "/auth/login", "/docs", "/openapi.json"],
)
def test_the_admin_api_is_handed_to_control_with_its_credentials_and_without_panel_cookies(
    plane: DataPlane, control: list[bytes], path: str
) -> None:
    fields = ["Cookie: portcullis_session=x; a=1", "X-Gateway-Direct: forged", "X-Gateway-Application: app_forged"]
    assert plane.ask("GET", path, *fields).body == b"ok"
    head = control[-1].lower()
    assert head.startswith(f"get {path} http/1.1\r\n".encode())
    assert f"x-api-key: {plane.key}".lower().encode() in head
    assert b"portcullis_session" not in head and b"cookie: a=1" in head
    assert b"forged" not in head
    assert b"x-gateway-direct: yes" in head


@pytest.mark.parametrize("field", ["X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1", "Via: 1.1 p"])
def test_control_is_told_when_somebody_stands_between(plane: DataPlane, control: list[bytes], field: str) -> None:
    assert plane.ask("GET", "/keys", field).status == 200
    assert b"x-gateway-direct" not in control[-1]


def test_without_control_its_endpoints_fail_and_the_rest_goes_on(plane: DataPlane, upstream: Upstream) -> None:
    answer = plane.ask("GET", "/admin/routing/services")
    assert answer.status in (502, 503)
    assert answer.problem["detail"]
    assert plane.ask("GET", f"{upstream.path}/x").status == 200


def test_the_admin_api_may_be_kept_off_this_port(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane(admin_api_on_gateway_port=False, docs_on_gateway_port=False)
    for path in ("/admin/routing/services", "/keys", "/validate", "/setup", "/docs", "/openapi.json"):
        assert plane.ask("GET", path).code == "no_route"


def test_logins_of_end_users_stay_on_this_port(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane(admin_api_on_gateway_port=False)
    for path in ("/auth/login", "/.well-known/jwks.json"):  # there is no control process here
        assert plane.ask("GET", path).code == "dependency_unavailable"


def test_web_applications_of_allowed_origins_may_log_in(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane(cors_origins=("https://app.example",))
    wanted = "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type"
    allowed = plane.ask("OPTIONS", "/auth/login", "Origin: https://app.example", *wanted)
    assert (allowed.status, allowed.field("access-control-allow-origin")) == (204, "https://app.example")
    assert plane.ask("OPTIONS", "/auth/login", "Origin: https://evil.example", *wanted).status == 403


# --- debugging -------------------------------------------------------------------------------------------------------
def test_an_admin_key_is_told_what_served_a_request(plane: DataPlane, upstream: Upstream) -> None:
    admin = plane.new_key(application=None, scopes=["admin:*"])
    path = f"{upstream.path}/x"
    answer = plane.ask("GET", path, f"X-Gateway-Debug: {admin}")
    assert answer.field("x-gateway-route") == f"{upstream.path}/*"
    assert answer.field("x-gateway-revision") and answer.field("x-gateway-node") == "test/0"
    assert "x-gateway-debug" not in upstream.requests[-1].names
    assert plane.ask("GET", path).field("x-gateway-route") is None
    for wrong in (plane.key, "nonsense"):
        assert plane.ask("GET", path, f"X-Gateway-Debug: {wrong}").code == "invalid_credentials"


# --- queues (rules 19, 20) -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def queued(plane: DataPlane) -> str:
    plane.feed.put("queue_route", queue_route_wire(id="que_mail", name="mail"))
    wire = route_wire("rte_mail", "/api/v1/mail", service=None, queue_route="que_mail", methods=["POST"])
    plane.feed.put("route", wire)
    return "/api/v1/mail"


def test_a_request_to_a_queue_is_202_once_the_agent_has_stored_it(plane: DataPlane, queued: str) -> None:
    calls: list[tuple[str, Message]] = []

    def accept(name: str, params: Message) -> Message:
        calls.append((name, params))
        return {"task_id": "task_7"}

    plane.feed.answerer = accept
    fields = ["Content-Type: application/json", "traceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-01"]
    answer = plane.ask("POST", queued, *fields, body=b'{"to": "ada"}')
    assert (answer.status, answer.field("location"), answer.field("retry-after")) == (202, "/api/v1/tasks/task_7", "1")
    assert json.loads(answer.body) == {
        "task_id": "task_7",
        "status": "queued",
        "status_url": "/api/v1/tasks/task_7",
    }
    ((name, params),) = calls
    assert (name, params["queue_route"], params["application"]) == ("accept", "que_mail", "app_1")
    assert (params["key"], params["body"]) == ("key_1", {"to": "ada"})
    assert params["request_id"] == answer.field("x-request-id")
    assert params["traceparent"].startswith("00-" + "a" * 32)
    assert plane.log_line(answer.field("x-request-id"))["status_code"] == 202


@pytest.mark.parametrize(
    ("media_type", "body", "status"),
    [
        ("text/plain", b"hello", 415),
        ("application/json", b"{", 400),
        ("application/json", b'{"a": 1, "a": 2}', 422),
        ("application/json", b"[1]", 422),
        ("application/json", b'{"a": "' + b"x" * 1024 * 1024 + b'"}', 413),
    ],
)
def test_a_body_that_no_task_can_take_is_refused(
    plane: DataPlane, queued: str, media_type: str, body: bytes, status: int
) -> None:
    answer = plane.ask("POST", queued, f"Content-Type: {media_type}", body=body)
    assert answer.status == status, answer


def test_what_the_agent_refuses_is_the_answer(plane: DataPlane, queued: str) -> None:
    def full(name: str, params: Message) -> Message:
        raise InternalFault("overloaded", "The outbox is full.", retry_after_s=7)

    plane.feed.answerer = full
    answer = plane.ask("POST", queued)
    assert (answer.status, answer.code, answer.field("retry-after")) == (503, "overloaded", "7")


def test_a_task_is_shown_to_its_sender(plane: DataPlane) -> None:
    calls: list[Message] = []

    def show(name: str, params: Message) -> Message:
        assert name == "task"
        calls.append(params)
        if params["application"] != "app_1":
            raise ClientFault("not_found", "There is no such task.")
        return {"task_id": params["id"], "status": "queued"}

    plane.feed.answerer = show
    answer = plane.ask("GET", "/api/v1/tasks/task_7")
    assert (answer.status, json.loads(answer.body)["status"]) == (200, "queued")
    anonymous: Answer = plane.ask("GET", "/api/v1/tasks/task_7", key=None)
    assert (anonymous.status, anonymous.code) == (404, "not_found")
    assert plane.ask("GET", "/api/v1/tasks/task_7", key="nonsense").code == "invalid_credentials"
    assert [params["application"] for params in calls] == ["app_1", ""]


def test_an_answer_of_the_agents_that_nobody_awaits_any_longer_does_no_harm(plane: DataPlane, queued: str) -> None:
    was_called, has_left = threading.Event(), threading.Event()

    def slow(name: str, params: Message) -> Message:
        was_called.set()
        assert has_left.wait(10)
        return {"task_id": "task_8"}

    plane.feed.answerer = slow
    with plane.connect() as client:
        client.send(request("POST", queued, f"X-API-Key: {plane.key}"))
        assert was_called.wait(10)
        client.reset()
    has_left.set()
    assert plane.ask("GET", "/health", key=None).status == 200


# --- processes -------------------------------------------------------------------------------------------------------
def test_a_worker_that_cannot_listen_ends_with_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        plane = DataPlane(tmp_path, with_agent=False, port=taken.getsockname()[1])
        try:
            plane.start_process()
            assert plane.process.wait(30) == 1
            assert "cannot listen on 127.0.0.1" in plane.output()
        finally:
            plane.close()


def test_the_access_log_and_problems_hold_no_secret_of_a_path(plane: DataPlane) -> None:
    path = "/nowhere/ann%40example.org/4111111111111111/km_0123456789abcdefghij/x"
    answer = plane.ask("GET", path)
    line = plane.log_line(answer.field("x-request-id"))
    assert line["path"] == answer.problem["instance"] == "/nowhere/***@***/***/km_0123456789***/x"
