"""The whole gateway closed for maintenance (R28): all that is routed is answered 503, and what is the gateway's own
goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dataplane import DataPlane
from tests.scripted_upstream import Upstream
from tests.wires import gateway_wire, queue_route_wire, route_wire


@pytest.fixture
def upstream(plane: DataPlane) -> Upstream:
    return plane.serve()


@pytest.fixture
def closed(plane: DataPlane, upstream: Upstream) -> Iterator[None]:
    for _ in range(3):
        assert plane.ask("GET", f"{upstream.path}/x").status == 200  # so that the way there is remembered
    plane.feed.put("gateway", gateway_wire(maintenance={"message": "Back at nine.", "retryAfterS": 120}))
    yield
    if "gateway" in plane.feed.records("gateway"):
        plane.feed.drop("gateway", "gateway")


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("key", ["", None, "km_wrong"], ids=["key", "no key", "wrong key"])
def test_whoever_asks_for_what_is_routed_is_told_and_nothing_is_called(
    plane: DataPlane, upstream: Upstream, key: str | None
) -> None:
    before = len(upstream.requests)
    plane.feed.put("queue_route", queue_route_wire(id="que_closed"))
    plane.feed.put("route", route_wire("rte_closed", "/api/closed", service=None, queue_route="que_closed"))
    for method, path in (("GET", f"{upstream.path}/x"), ("POST", "/api/closed")):
        answer = plane.ask(method, path, key=key)
        assert (answer.status, answer.code, answer.field("retry-after")) == (503, "maintenance", "120")
        assert answer.problem["detail"] == "Back at nine."
        assert answer.field("cache-control") == "no-store"
    assert len(upstream.requests) == before


@pytest.mark.usefixtures("closed")
def test_the_gateways_own_endpoints_go_on(plane: DataPlane) -> None:
    assert plane.ask("GET", "/health", key=None).status == 200
    assert plane.ask("GET", "/ready", key=None).status == 200
    assert plane.ask("GET", "/admin/gateway").code == "dependency_unavailable"  # no control process runs here
    assert plane.ask("GET", "/api/nowhere").status == 404


@pytest.mark.usefixtures("closed")
def test_it_ends_with_the_next_request(plane: DataPlane, upstream: Upstream) -> None:
    assert plane.ask("GET", f"{upstream.path}/x").status == 503
    plane.feed.put("gateway", gateway_wire())
    assert plane.ask("GET", f"{upstream.path}/x").status == 200
    plane.feed.put("gateway", gateway_wire(maintenance={}))
    assert plane.ask("GET", f"{upstream.path}/x").problem["detail"] == "The service is being maintained."
    plane.feed.drop("gateway", "gateway")
    assert plane.ask("GET", f"{upstream.path}/x").status == 200


@pytest.mark.usefixtures("closed")
def test_a_connection_that_was_open_before_is_told_too(plane: DataPlane, upstream: Upstream) -> None:
    plane.feed.put("gateway", gateway_wire())
    with plane.connect() as client:
        asked = plane.request("GET", f"{upstream.path}/x")
        assert client.send(asked).answer("GET").status == 200
        plane.feed.put("gateway", gateway_wire(maintenance={}))
        assert client.send(asked).answer("GET").status == 503
        plane.feed.put("gateway", gateway_wire())
        assert client.send(asked).answer("GET").status == 200
