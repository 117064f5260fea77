"""Lists of addresses through a running worker (A12): whose they are, when they are asked, and what they end."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.dataplane import DataPlane
from tests.raw_http import CutShort
from tests.scripted_upstream import OK, Peer, Upstream, replying
from tests.websocket_peers import agreeing, open_socket
from tests.wires import application_wire, entry_wire, gateway_wire, route_wire

HERE, THERE = "127.0.0.1", "127.0.0.9"
ONLY_HERE = {"allow": [HERE]}


@pytest.fixture(scope="module")
def upstream(plane: DataPlane) -> Upstream:
    return plane.serve()


@pytest.fixture
def gateways_list(plane: DataPlane) -> Iterator[None]:
    plane.feed.put("gateway", gateway_wire(ip_access=ONLY_HERE))
    yield
    plane.feed.drop("gateway", "gateway")


def refused(plane: DataPlane, path: str, whose: str, **options: Any) -> None:
    """From elsewhere, and not from here."""
    assert plane.ask("GET", path, **options).status == 200
    answer = plane.ask("GET", path, source=THERE, **options)
    assert (answer.status, answer.code) == (403, "ip_not_allowed")
    assert answer.problem["detail"] == f"The address list of {whose} does not admit your address."


def test_the_gateways_list_is_asked_before_anything_else(
    plane: DataPlane, upstream: Upstream, gateways_list: None
) -> None:
    refused(plane, f"{upstream.path}/x", "the gateway")
    refused(plane, "/info", "the gateway", key=None)
    for path in (f"{upstream.path}/x", "/nowhere", "/validate", "/admin/nodes"):
        assert plane.ask("GET", path, source=THERE, key="km_wrong").code == "ip_not_allowed"


def test_this_host_may_always_ask_after_health(plane: DataPlane) -> None:
    plane.feed.put("gateway", gateway_wire(ip_access={"allow": ["192.0.2.0/24"]}))
    for path in ("/health", "/ready"):
        assert plane.ask("GET", path, key=None).status == 200
    assert plane.ask("GET", "/info", key=None).code == "ip_not_allowed"
    plane.feed.drop("gateway", "gateway")
    assert plane.ask("GET", "/info", key=None).status == 200


def test_a_services_list_holds_on_every_way_to_it(plane: DataPlane) -> None:
    upstream = plane.serve(policies={"ip_access": ONLY_HERE})
    name = upstream.path.rpartition("/")[2]
    plane.feed.put("route", route_wire("rte_listed", "/api/listed", service=name))
    for path in (f"{upstream.path}/x", "/api/listed"):
        for _ in range(3):  # remembered or not
            refused(plane, path, f"the service {name}")
    assert plane.ask("GET", "/api/listed", source=THERE, key=None).code == "ip_not_allowed"  # before authentication


def test_a_routes_list_stands_beside_its_services(plane: DataPlane, upstream: Upstream) -> None:
    name = upstream.path.rpartition("/")[2]
    route = route_wire("rte_own", "/api/own", service=name, policies={"ip_access": {"deny": ["127.0.0.8/29"]}})
    plane.feed.put("route", route)
    refused(plane, "/api/own", "the route rte_own")


def test_an_applications_list_is_asked_when_it_is_known_whose_the_request_is(
    plane: DataPlane, upstream: Upstream
) -> None:
    listed = application_wire(id="app_listed", name="listed", policies={"ip_access": ONLY_HERE})
    plane.feed.put("application", listed)
    key = plane.new_key(application="app_listed")
    refused(plane, f"{upstream.path}/x", "the application listed", key=key)
    assert plane.ask("GET", f"{upstream.path}/x", source=THERE, key="km_wrong").code == "invalid_credentials"
    entry = entry_wire("wle_open", f"{upstream.path}/open", is_public=True)
    plane.feed.put("application", listed | {"entries": [entry]})
    refused(plane, f"{upstream.path}/open", "the application listed", key=None)


def test_every_service_of_an_aggregate_must_admit_the_client(plane: DataPlane) -> None:
    upstream = plane.serve(replying(OK.replace(b"ok", b"{}")), policies={"ip_access": ONLY_HERE})
    name = upstream.path.rpartition("/")[2]
    aggregation = {"parts": [{"key": "a", "service": name, "path": "/a"}]}
    route = route_wire("rte_all", "/api/all", service=None, policies={"aggregation": aggregation})
    plane.feed.put("route", route)
    refused(plane, "/api/all", f"the service {name}")


def test_a_change_counts_at_once_and_ends_what_goes_on(plane: DataPlane) -> None:
    def stream(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
            peer.wait_for_end()

    talking, streaming = plane.serve(agreeing()), plane.serve(stream)
    with open_socket(plane, talking.path) as socket, plane.connect() as client:
        _, body = client.send(plane.request("GET", f"{streaming.path}/x")).begin_answer()
        assert next(body) == b"one"
        for upstream in (talking, streaming):
            wire = plane.feed.records("service")[f"svc_{upstream.path.rpartition('/')[2]}"]
            plane.feed.put("service", wire | {"policies": {"ip_access": {"deny": [HERE]}}})
        assert plane.ask("GET", f"{streaming.path}/x").code == "ip_not_allowed"
        assert socket.read().code == 1008
        with pytest.raises(CutShort):
            next(body)
