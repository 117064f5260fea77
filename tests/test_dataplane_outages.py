"""A worker whose agent is silent, gone or was never there (rules 11 and 21, architecture section 4)."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.wire import encode
from gateway_project.dataplane.snapshot_file import write_snapshot_file
from keys.credential import generate
from tests.dataplane import DataPlane
from tests.gateway_process import eventually
from tests.raw_http import Answer
from tests.scripted_upstream import Upstream
from tests.wires import application_wire, entry_wire

SILENT_S = 4.0  # the feed counts as silent after two seconds


@pytest.fixture
def own(start_plane: Callable[..., DataPlane]) -> DataPlane:
    return start_plane()


def asks(plane: DataPlane, upstream: Upstream) -> dict[str, Callable[[], Answer]]:
    """A request with each kind of key."""
    path = f"{upstream.path}/x"
    unknown = generate("km_").key
    return {
        "known": lambda: plane.ask("GET", path),
        "unknown": lambda: plane.ask("GET", path, key=unknown),
        "malformed": lambda: plane.ask("GET", path, key=unknown[:-1]),
        "none": lambda: plane.ask("GET", path, key=None),
    }


def statuses(questions: dict[str, Callable[[], Answer]]) -> dict[str, int]:
    return {name: ask().status for name, ask in questions.items()}


def test_while_the_feed_is_silent_an_unknown_key_is_503_and_what_is_known_goes_on(own: DataPlane) -> None:
    """It may be a new one; no outage is ever a 401."""
    questions = asks(own, own.serve())
    assert statuses(questions) == {"known": 200, "unknown": 401, "malformed": 401, "none": 401}
    own.feed.is_ticking = False
    eventually(lambda: questions["unknown"]().status == 503, SILENT_S, "the doubt")
    assert statuses(questions) == {"known": 200, "unknown": 503, "malformed": 401, "none": 401}
    refused = questions["unknown"]()
    assert (refused.code, refused.field("retry-after")) == ("dependency_unavailable", "1")
    ready = own.ask("GET", "/ready", key=None)
    assert (ready.status, json.loads(ready.body)["dependencies"]["configuration"]) == (200, "stale")
    own.feed.is_ticking = True
    eventually(lambda: questions["unknown"]().status == 401, SILENT_S, "the certainty")


def test_a_worker_whose_agent_is_killed_serves_on_and_follows_the_next_one(own: DataPlane) -> None:
    upstream = own.serve()
    questions = asks(own, upstream)
    own.feed.stop()
    for _ in range(20):
        assert statuses(questions)["known"] == 200
    eventually(lambda: questions["unknown"]().status == 503, SILENT_S, "the doubt")
    ready = own.ask("GET", "/ready", key=None)
    assert (ready.status, json.loads(ready.body)["dependencies"]["agent"]) == (200, "down")
    own.feed.drop("api_key", "key_1")  # while nobody tells the worker
    assert questions["known"]().status == 200
    own.feed.start()
    own.feed.wait_for_worker()
    assert statuses(questions) == {"known": 401, "unknown": 401, "malformed": 401, "none": 401}


def test_past_max_config_age_no_key_is_trusted_and_public_endpoints_go_on(
    start_plane: Callable[..., DataPlane],
) -> None:
    plane = start_plane(max_config_age_s=1.0)
    upstream = plane.serve()
    entry = entry_wire("wle_public", f"{upstream.path}/public", is_public=True)
    plane.feed.put("application", application_wire(id="app_public", endpoint_mode="listed", entries=[entry]))
    with plane.connect() as client:  # also one that has shown its key before
        ask = plane.request("GET", f"{upstream.path}/x")
        assert client.send(ask).answer().status == 200
        plane.feed.is_ticking = False
        refused = eventually(
            lambda: answer if (answer := client.send(ask).answer()).status != 200 else None, SILENT_S, "the refusal"
        )
        assert (refused.status, refused.code) == (503, "dependency_unavailable")
        assert refused.field("retry-after")
        assert plane.ask("GET", f"{upstream.path}/public", key=None).status == 200
        plane.feed.is_ticking = True
        eventually(lambda: client.send(ask).answer().status == 200, SILENT_S, "the trust")


def test_a_worker_starts_from_the_last_good_snapshot_when_there_is_no_agent(
    own: DataPlane, start_plane: Callable[..., DataPlane]
) -> None:
    upstream = own.serve()
    path = own.directory / "saved.bin"
    write_snapshot_file(path, map(encode, own.feed.full_load()))
    began = time.monotonic()
    late = start_plane(with_agent=False, snapshot_path=str(path))
    assert late.ask("GET", "/ready", key=None).status == 200
    assert time.monotonic() - began < 10
    assert late.ask("GET", f"{upstream.path}/x", key=own.key).status == 200
    assert late.ask("GET", f"{upstream.path}/x", key=generate("km_").key).status == 503
    assert late.ask("GET", f"{upstream.path}/x", key="nonsense").status == 401


@pytest.mark.parametrize("content", [None, b"not a snapshot"], ids=["missing", "torn"])
def test_a_worker_without_any_configuration_lives_and_is_not_ready(
    start_plane: Callable[..., DataPlane], tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "snapshot.bin"
    if content is not None:
        path.write_bytes(content)
    plane = start_plane(with_agent=False, snapshot_path=str(path))
    assert plane.ask("GET", "/health", key=None).status == 200
    ready = plane.ask("GET", "/ready", key=None)
    assert (ready.status, json.loads(ready.body)["status"]) == (503, "starting")
    for target in ("/api/v1/orders/x", "/api/x", "/"):
        answer = plane.ask("GET", target)
        assert (answer.status, answer.code, answer.field("retry-after")) == (503, "dependency_unavailable", "1")
    upstream = plane.serve()
    plane.feed.start()
    plane.feed.wait_for_worker()
    assert plane.ask("GET", "/ready", key=None).status == 200
    assert plane.ask("GET", f"{upstream.path}/x").status == 200


def test_a_record_that_does_not_compile_is_skipped_and_reported_and_the_rest_goes_on(own: DataPlane) -> None:
    upstream = own.serve()
    broken = own.feed.records("service")[f"svc_{upstream.path.rpartition('/')[2]}"] | {"default_url": "nonsense"}
    own.feed.put("service", broken)
    (problem,) = next(each for each in reversed(own.feed.heard) if each["type"] == "ack")["problems"]
    assert (problem["kind"], problem["id"]) == ("service", broken["id"])
    assert own.ask("GET", f"{upstream.path}/x").status == 200  # the former one serves on
    assert own.ask("GET", f"{own.serve().path}/x").status == 200


def test_requests_in_flight_end_with_the_configuration_that_they_began_with(own: DataPlane) -> None:
    upstream = own.serve()
    with own.connect() as client:
        client.send(own.request("POST", f"{upstream.path}/x", "Content-Length: 4") + b"ha")
        eventually(lambda: upstream.connections == 1, what="the connection")
        own.feed.drop("service", f"svc_{upstream.path.rpartition('/')[2]}")
        own.feed.drop("api_key", "key_1")
        assert client.send(b"lf").answer("POST").status == 200
    assert upstream.requests[-1].body == b"half"


def test_the_agent_hears_what_was_counted_and_which_keys_were_used(own: DataPlane) -> None:
    upstream = own.serve()
    for _ in range(3):
        assert own.ask("GET", f"{upstream.path}/x").status == 200
    template = f"{upstream.path}/*"

    def counted() -> int:
        counters = next((each["counters"] for each in reversed(own.feed.heard) if each["type"] == "metrics"), ())
        return sum(
            number
            for name, labels, number in counters
            if name == "api_gateway_requests_total" and labels["path"] == template
        )

    eventually(lambda: counted() == 3, 5.0, "the count of three requests")
    used = eventually(lambda: [each for each in own.feed.heard if each["type"] == "used"], 15.0, "the use of the key")
    [[key, address, requests, last]] = used[0]["rows"]
    assert (key, address) == ("key_1", "127.0.0.1")
    assert 1 <= requests <= 3
    assert abs(last - time.time()) < 60  # epoch seconds
