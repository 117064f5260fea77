"""One request, several calls, one document (R17), through a worker."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.dataplane import DataPlane
from tests.gateway_process import eventually
from tests.raw_http import Answer, CutShort
from tests.scripted_upstream import TIMEOUT_S, Peer, Script, Upstream, replying
from tests.wires import application_wire, entry_wire, route_wire, version_wire


def json_reply(value: Any, status: str = "200 OK", *fields: str) -> bytes:
    body = json.dumps(value).encode()
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Kitchen:
    """Serves parts of aggregates: each by an upstream of its own, and the route over them."""

    def __init__(self, plane: DataPlane) -> None:
        self.plane = plane
        self.upstreams: dict[str, Upstream] = {}

    _number = 0

    def serve(self, *parts: tuple[str, Script, dict[str, Any]], path: str = "/{id}", **route: Any) -> str:
        """The path of a route whose parts have these keys, scripts and members."""
        Kitchen._number += 1
        number = Kitchen._number
        documents = []
        for key, script, members in parts:
            service = members.pop("wire", {})
            name = f"agg{number}-{key or 'plain'}"
            self.upstreams[key] = self.plane.serve(script, name=name, **service)
            documents.append({"key": key, "service": name, "path": "/" + (key or "plain")} | members)
        changes = {"service": None, "policies": {"aggregation": {"parts": documents}}} | route
        self.plane.feed.put("route", route_wire(f"rte_agg{number}", f"/api/agg{number}{path}", **changes))
        return f"/api/agg{number}"


@pytest.fixture
def kitchen(plane: DataPlane) -> Kitchen:
    return Kitchen(plane)


def document(answer: Answer) -> Any:
    assert answer.status == 200, answer
    assert answer.field("content-type") == "application/json"
    return json.loads(answer.body)


def test_parts_are_asked_for_what_the_request_says_and_make_one_document(plane: DataPlane, kitchen: Kitchen) -> None:
    path = kitchen.serve(
        ("customer", replying(json_reply({"name": "Ann"})), {"path": "/customers/${path.id}"}),
        ("orders", replying(json_reply([1, 2])), {"path": "/orders?of=${path.id}&state=${query.state|any}"}),
        ("", replying(json_reply({"server_time": 5})), {"path": "/clock"}),
    )
    answer = plane.ask("GET", f"{path}/a%2Fb?state=op%26en", "Accept: text/html", "If-None-Match: *", "X-Tenant: acme")
    assert document(answer) == {"server_time": 5, "customer": {"name": "Ann"}, "orders": [1, 2]}
    assert answer.field("x-gateway-partial") is None
    assert kitchen.upstreams["customer"].requests[-1].target == b"/customers/a%2Fb"
    seen = kitchen.upstreams["orders"].requests[-1]
    assert seen.target == b"/orders?of=a%2Fb&state=op%26en"
    assert (seen.field("accept"), seen.field("accept-encoding")) == (b"application/json", b"identity")
    assert seen.field("x-tenant") == b"acme"
    assert {"if-none-match", "x-api-key"}.isdisjoint(seen.names)
    assert seen.field("x-request-id") == (answer.field("x-request-id") or "").encode()


def test_parts_are_called_at_the_same_time(plane: DataPlane, kitchen: Kitchen) -> None:
    together = threading.Barrier(3)

    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            together.wait(20)
            peer.send(json_reply(1))

    path = kitchen.serve(*((key, script, {}) for key in "abc"))
    assert document(plane.ask("GET", f"{path}/7")) == {"a": 1, "b": 1, "c": 1}


def hanging(peer: Peer) -> None:
    if peer.read_request() is not None:
        peer.wait_for_end()


def cut_off(peer: Peer) -> None:
    if peer.read_request() is not None:
        peer.send(json_reply(list(range(1000)))[:200])


def stalling(peer: Peer) -> None:
    if peer.read_request() is not None:
        peer.send(json_reply(list(range(1000)))[:200])
        peer.wait_for_end()


FAILURES: list[tuple[Script, dict[str, Any], int, str]] = [
    (replying(json_reply({}, "500 Internal Server Error")), {}, 500, "upstream_status"),
    (replying(json_reply({}, "404 Not Found")), {}, 404, "upstream_status"),
    (replying(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"), {}, 200, "not_json"),
    (replying(b"nonsense\r\n\r\n"), {}, 502, "upstream_invalid_response"),
    (hanging, {"timeoutMs": 300}, 504, "upstream_timeout"),
    (stalling, {"timeoutMs": 300}, 504, "upstream_timeout"),
    (cut_off, {}, 502, "upstream_reset"),
    (replying(json_reply("x" * 1_100_000)), {}, 200, "too_large"),
    (replying(json_reply({})), {"service": "nobody"}, 404, "no_route"),
    (replying(json_reply({})), {"wire": {"is_active": False}}, 404, "no_route"),
    (replying(json_reply({})), {"wire": {"policies": {"maintenance": {}}}}, 503, "maintenance"),
    (replying(json_reply({})), {"wire": {"default_url": ""}}, 503, "no_healthy_target"),
    (replying(json_reply({})), {"wire": {"default_url": "http://127.0.0.1:1"}}, 502, "upstream_connect_failed"),
    (
        replying(json_reply({})),
        {"wire": {"upstream_credentials": [{"header": "X-A", "value": "{secret://env/UPSTREAM_NONE}"}]}},
        503,
        "dependency_unavailable",
    ),
]


@pytest.mark.parametrize(("script", "members", "status", "error"), FAILURES)
def test_a_part_that_fails_is_left_out_and_named(
    plane: DataPlane, kitchen: Kitchen, script: Script, members: dict[str, Any], status: int, error: str
) -> None:
    path = kitchen.serve(("good", replying(json_reply(1)), {}), ("bad", script, dict(members)))
    answer = plane.ask("GET", f"{path}/7")
    assert document(answer) == {"good": 1, "_partial": {"bad": {"status": status, "error": error}}}
    assert answer.field("x-gateway-partial") == "bad"
    assert answer.field("cache-control") == "no-store"


def test_a_required_part_fails_the_whole_without_waiting_for_the_others(plane: DataPlane, kitchen: Kitchen) -> None:
    path = kitchen.serve(
        ("slow", hanging, {"timeoutMs": 600_000}),
        ("customer", replying(json_reply({}, "404 Not Found")), {"required": True}),
    )
    answer = plane.ask("GET", f"{path}/7")
    assert (answer.status, answer.code) == (404, "not_found")
    assert answer.problem["parts"] == {"customer": {"status": 404, "error": "upstream_status"}}
    eventually(lambda: not kitchen.upstreams["slow"].open_connections, what="the end of the other call")


def test_when_all_parts_fail_there_is_no_answer(plane: DataPlane, kitchen: Kitchen) -> None:
    path = kitchen.serve(*((key, replying(json_reply({}, "500 Oh")), {}) for key in "ab"))
    answer = plane.ask("GET", f"{path}/7")
    assert (answer.status, answer.code) == (502, "aggregate_failed")
    assert set(answer.problem["parts"]) == {"a", "b"}


def test_a_client_that_leaves_ends_every_call(plane: DataPlane, kitchen: Kitchen) -> None:
    path = kitchen.serve(*((key, hanging, {"timeoutMs": 600_000}) for key in "abc"))
    with plane.connect() as client:
        client.send(plane.request("GET", f"{path}/7"))
        for upstream in kitchen.upstreams.values():
            upstream.wait_for(1)
        client.reset()
    for upstream in kitchen.upstreams.values():
        eventually(lambda upstream=upstream: not upstream.open_connections, what="the end of a call")  # type: ignore[misc]


def test_post_parts_get_the_clients_body_and_get_parts_none(plane: DataPlane, kitchen: Kitchen) -> None:
    path = kitchen.serve(
        ("a", replying(json_reply(1)), {"method": "POST"}),
        ("b", replying(json_reply(2)), {"method": "POST"}),
        ("c", replying(json_reply(3)), {}),
    )
    body = b'{"q": "' + b"x" * 200_000 + b'"}'
    answer = plane.ask("POST", f"{path}/7", "Content-Type: application/json", body=body)
    assert document(answer) == {"a": 1, "b": 2, "c": 3}
    for key in "ab":
        seen = kitchen.upstreams[key].requests[-1]
        assert (seen.method, seen.body, seen.field("content-type")) == (b"POST", body, b"application/json")
    seen = kitchen.upstreams["c"].requests[-1]
    assert (seen.method, seen.body, seen.field("content-type")) == (b"GET", b"", None)
    answer = plane.ask("POST", f"{path}/7", body=b"x" * (1024 * 1024 + 1))
    assert (answer.status, answer.code) == (413, "payload_too_large")


def test_an_application_must_be_allowed_every_service_and_nothing_is_called_else(
    plane: DataPlane, kitchen: Kitchen
) -> None:
    path = kitchen.serve(("a", replying(json_reply(1)), {}), ("b", replying(json_reply(2)), {}))
    parts = [f"agg{Kitchen._number}-a", f"agg{Kitchen._number}-b"]

    def ask(services: list[str], **changes: Any) -> Answer:
        plane.feed.put("application", application_wire(id="app_2", name="narrow", services=services, **changes))
        key = plane.new_key(application="app_2")
        return plane.ask("GET", f"{path}/7", key=key)

    for services in ([], parts[:1], parts[1:]):
        answer = ask(services)
        assert (answer.status, answer.code) == (403, "service_not_allowed")
    answer = ask(parts, endpoint_mode="listed")
    assert (answer.status, answer.code) == (403, "endpoint_not_whitelisted")
    assert not any(upstream.requests for upstream in kitchen.upstreams.values())
    assert document(ask(parts)) == {"a": 1, "b": 2}
    entry = entry_wire("wle_1", f"{path}/*", methods=["GET"])
    assert document(ask(parts, endpoint_mode="listed", entries=[entry])) == {"a": 1, "b": 2}


def test_anonymous_clients_need_an_entry_of_an_application_that_may_use_all(plane: DataPlane, kitchen: Kitchen) -> None:
    path = kitchen.serve(("a", replying(json_reply(1)), {}), ("b", replying(json_reply(2)), {}))
    parts = [f"agg{Kitchen._number}-a", f"agg{Kitchen._number}-b"]
    entry = entry_wire("wle_2", f"{path}/*", is_public=True)

    def ask(services: list[str]) -> Answer:
        plane.feed.put("application", application_wire(id="app_3", name="open", services=services, entries=[entry]))
        return plane.ask("GET", f"{path}/7", key=None)

    assert ask(parts[:1]).status == 401
    assert document(ask(parts)) == {"a": 1, "b": 2}
    plane.feed.drop("application", "app_3")


@pytest.mark.parametrize(
    ("service", "route", "is_anonymous"),
    [({}, {}, False), ({"implicit": False}, {}, False), ({}, {"requires_key": False}, True)],
)
def test_a_change_of_the_configuration_ends_no_part_that_is_under_way(
    plane: DataPlane, kitchen: Kitchen, service: dict[str, Any], route: dict[str, Any], is_anonymous: bool
) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    def slow(peer: Peer) -> None:
        if peer.read_request() is not None:
            reply = json_reply(list(range(1000)))
            peer.send(reply[:200])
            has_begun.set()
            assert may_end.wait(TIMEOUT_S)
            peer.send(reply[200:])

    def endless(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx")
        peer.wait_for_end()

    path = kitchen.serve(("a", slow, {"wire": service, "timeoutMs": 60_000}), **route)
    stream, revoked = plane.serve(endless), plane.new_key()
    with plane.connect() as client, plane.connect() as watcher:
        watcher.send(plane.request("GET", stream.path, key=revoked))
        _, body = watcher.begin_answer()
        assert next(body) == b"x"
        client.send(plane.request("GET", f"{path}/7", key=None if is_anonymous else plane.key))
        assert has_begun.wait(TIMEOUT_S)
        plane.feed.drop("api_key", next(reversed(plane.feed.records("api_key"))))
        with pytest.raises(CutShort):
            next(body)  # all that is under way has been looked at
        may_end.set()
        assert document(client.answer()) == {"a": list(range(1000))}


@pytest.mark.parametrize("is_of_key", [True, False], ids=["the key", "what its application may use"])
def test_parts_that_are_under_way_end_with_what_they_stand_on(
    plane: DataPlane, kitchen: Kitchen, is_of_key: bool
) -> None:
    path = kitchen.serve(*((key, stalling, {"timeoutMs": 60_000}) for key in "ab"))
    parts = [f"agg{Kitchen._number}-a", f"agg{Kitchen._number}-b"]
    plane.feed.put("application", application_wire(id="app_4", name="ending", services=parts))
    key = plane.new_key(application="app_4")
    with plane.connect() as client:
        client.send(plane.request("GET", f"{path}/7", key=key))
        for each in "ab":
            kitchen.upstreams[each].wait_for()
        if is_of_key:
            plane.feed.drop("api_key", next(reversed(plane.feed.records("api_key"))))
        else:
            plane.feed.put("application", application_wire(id="app_4", name="ending", services=parts[:1]))
        assert client.answer().status == 502


def test_versions_are_chosen_for_each_service(plane: DataPlane, kitchen: Kitchen) -> None:
    newer = plane.serve(replying(json_reply("v2")), name="agg-newer")
    versions = [version_wire("v1"), version_wire("v2", 1, newer.url + "/base")]
    path = kitchen.serve(
        ("a", replying(json_reply(1)), {"wire": {"versions": versions, "path_prefix": "/prefix"}, "path": "/x"}),
        ("b", replying(json_reply(2)), {}),
    )
    assert document(plane.ask("GET", f"{path}/7", "X-API-Version: v9")) == {"a": "v2", "b": 2}
    assert newer.requests[-1].target == b"/base/prefix/x"


def test_a_fallback_is_asked_for_the_same(plane: DataPlane, kitchen: Kitchen) -> None:
    fallback = plane.serve(replying(json_reply("from the fallback")))
    wire = {"default_url": "http://127.0.0.1:1", "fallback_url": fallback.url + "/f"}
    path = kitchen.serve(("a", replying(), {"wire": wire, "path": "/of/${path.id}?x=1"}))
    assert document(plane.ask("GET", f"{path}/7")) == {"a": "from the fallback"}
    assert fallback.requests[-1].target == b"/f/of/7?x=1"


def test_values_that_would_lead_elsewhere_are_refused_before_anything_is_called(
    plane: DataPlane, kitchen: Kitchen
) -> None:
    path = kitchen.serve(("a", replying(json_reply(1)), {"path": "/c/${query.id}/x"}))
    answer = plane.ask("GET", f"{path}/7?id=..")
    assert (answer.status, answer.code) == (400, "bad_request")
    assert not kitchen.upstreams["a"].requests


def test_it_is_one_request_in_the_log_and_the_metrics(plane: DataPlane, kitchen: Kitchen) -> None:
    path = kitchen.serve(("a", replying(json_reply(1)), {}), ("b", replying(json_reply(2)), {}))
    answer = plane.ask("GET", f"{path}/7")
    request_id = answer.field("x-request-id")
    line = plane.log_line(request_id)
    assert (line["route"], line["service"], line["status_code"]) == (f"rte_agg{Kitchen._number}", "", 200)
    assert line["upstream_time_ms"] > 0
    assert sum(each["request_id"] == request_id for each in plane.log_lines()) == 1
    labels = {"method": "GET", "path": f"{path}/{{id}}", "status_code": "200", "service": ""}

    def is_counted() -> bool:
        messages = [message for message in plane.feed.heard if message["type"] == "metrics"]
        return any(["api_gateway_requests_total", labels, 1] in latest["counters"] for latest in messages[-1:])

    eventually(is_counted, what="one count")


def test_the_document_is_compressed_where_the_route_says_so(plane: DataPlane, kitchen: Kitchen) -> None:
    path = kitchen.serve(("a", replying(json_reply("x" * 5000)), {}))
    route = plane.feed.records("route")[f"rte_agg{Kitchen._number}"]
    plane.feed.put("route", route | {"policies": route["policies"] | {"compression": {}}})
    answer = plane.ask("GET", f"{path}/7", "Accept-Encoding: br")
    assert answer.field("content-encoding") == "br"


def test_head_has_the_fields_of_get(plane: DataPlane, kitchen: Kitchen) -> None:
    path = kitchen.serve(("a", replying(json_reply(1)), {}))
    answer = plane.ask("HEAD", f"{path}/7")
    assert (answer.status, answer.body, answer.field("content-type")) == (200, b"", "application/json")


def test_a_client_without_a_key_is_refused_as_everywhere(plane: DataPlane, kitchen: Kitchen) -> None:
    path = kitchen.serve(("a", replying(json_reply(1)), {}))
    assert plane.ask("GET", f"{path}/7", key=None).status == 401
    assert plane.ask("GET", f"{path}/7", key="km_" + "x" * 48).status == 401


def test_what_connection_names_does_not_reach_the_parts(plane: DataPlane, kitchen: Kitchen) -> None:
    path = kitchen.serve(("a", replying(json_reply(1)), {}))
    assert plane.ask("GET", f"{path}/7", "Connection: x-secret, keep-alive", "X-Secret: 1").status == 200
    assert "x-secret" not in kitchen.upstreams["a"].requests[-1].names
