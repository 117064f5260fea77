"""Routes in the panel: their order, their preview, their overlaps."""

from contextlib import suppress

import pytest
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st

from admin_panel.route_order import matching_order, overlaps
from core.faults import ClientFault
from core.path_trie import compile_pattern
from queues.models import QueueRoute
from routing.compile import compile_route
from routing.models import Route
from routing.records import RouteRecord
from routing.services import create_route
from routing.table import RouteTable
from tests.panel_client import BOB, errors_at, make_queue_route, make_service, text_of

segments = st.sampled_from(["a", "b", "{x}", "*"])
patterns = st.lists(segments, min_size=1, max_size=3).map(lambda parts: "/api/" + "/".join(parts))
hosts = st.sampled_from([[], ["h.example"], ["*.example"], ["*.h.example"]])
routes = st.lists(st.tuples(patterns, hosts, st.integers(0, 2)), min_size=1, max_size=6)


@given(
    drawn=routes,
    path=st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(lambda parts: "/api/" + "/".join(parts)),
    host=st.sampled_from([b"h.example", b"x.h.example", b"other"]),
)
def test_of_the_listed_routes_that_match_the_first_is_the_one_that_takes_the_request(
    drawn: list[tuple[str, list[str], int]], path: str, host: bytes
) -> None:
    rows = [
        Route(pk=f"rte_{number}", name=f"r{number}", path=pattern, hosts=named, priority=priority, queue_route=_QUEUE)
        for number, (pattern, named, priority) in enumerate(drawn)
    ]
    taken = _table(rows).match(host, path.encode(), b"GET")
    listed = next((row for row in matching_order(rows) if _takes(row, path, host)), None)
    assert (taken and taken.id) == (listed and listed.pk)


_QUEUE = QueueRoute(pk="que_1", name="q")


def _table(rows: list[Route]) -> RouteTable:
    table = RouteTable()
    for row in rows:
        wire = compile_route(row) | {"path": compile_pattern(row.path).decode()}
        table.load(RouteRecord.from_wire(wire))
    return table


def _takes(row: Route, path: str, host: bytes) -> bool:
    with suppress(ClientFault):
        return _table([row]).match(host, path.encode(), b"GET") is not None
    return False


@pytest.mark.parametrize(
    ("left", "right", "do"),
    [
        ({"path": "/api/a/{x}"}, {"path": "/api/a/{y}"}, True),
        ({"path": "/api/a/*"}, {"path": "/api/a/{y}"}, False),
        ({"path": "/api/a", "methods": ["GET"]}, {"path": "/api/a", "methods": ["POST"]}, False),
        ({"path": "/api/a", "methods": ["GET"]}, {"path": "/api/a"}, True),
        ({"path": "/api/a", "hosts": ["x"]}, {"path": "/api/a", "hosts": ["y"]}, False),
        ({"path": "/api/a", "hosts": ["x"]}, {"path": "/api/a"}, False),
        ({"path": "/api/a", "hosts": ["x", "y"]}, {"path": "/api/a", "hosts": ["y"]}, True),
        ({"path": "/api/%61"}, {"path": "/api/a"}, True),
        ({"path": "/api/*/b"}, {"path": "/api/{x}/b"}, True),
    ],
)
def test_routes_overlap_when_equally_specific_patterns_take_the_same_requests(
    left: dict[str, object], right: dict[str, object], do: bool
) -> None:
    one, other = Route(pk="rte_1", **left), Route(pk="rte_2", **right)
    assert bool(overlaps(one, [one, other])) is do
    assert bool(overlaps(other, [one, other])) is do


def test_of_two_that_overlap_the_higher_priority_goes_first() -> None:
    low, high = Route(pk="rte_1", path="/api/a"), Route(pk="rte_2", path="/api/a", priority=5)
    assert overlaps(low, [high]) == [(high, True)]
    assert overlaps(high, [low]) == [(low, False)]


def typed(**fields: object) -> dict[str, object]:
    return {"name": "r", "path": "/api/v1/x", "leads_to": "service", "priority": 0, "is_active": "on"} | fields


def test_the_preview_says_what_the_upstream_will_see(panel: Client) -> None:
    make_service("orders", v1=100).versions.update(url="http://10.0.0.1:8000/base")
    form = typed(path="/api/v1/x/{id}", service="orders", strip_prefix="/api/v1", replace_prefix="/in")
    text = text_of(panel.post("/routes/preview", form))
    assert "Client asks /api/v1/x/id Upstream sees /base/in/x/id" in text


def test_the_preview_of_a_queue_names_task_and_queue(panel: Client) -> None:
    make_queue_route()
    text = text_of(panel.post("/routes/preview", typed(leads_to="queue", queue_route="email-send")))
    assert "task email.send on queue email" in text


@pytest.mark.parametrize(
    "half_typed", [{"path": ""}, {"path": "/ap"}, {"path": "/api/ü"}, {"priority": "-"}, {"strip_prefix": "x"}, {}]
)
def test_the_preview_of_what_is_half_typed_is_no_error(panel: Client, half_typed: dict[str, object]) -> None:
    assert panel.post("/routes/preview", typed(service="nobody") | half_typed).status_code == 200
    assert panel.post("/routes/preview", {}).status_code == 200


def test_the_preview_warns_of_an_overlap(panel: Client) -> None:
    service = make_service("orders", v1=100)
    create_route(name="older", path="/api/v1/x", service=service, **BOB)
    text = text_of(panel.post("/routes/preview", typed(service="orders")))
    assert "older /api/v1/x , priority 0: it takes them before this one" in text


def test_a_route_is_made_edited_switched_and_deleted(panel: Client) -> None:
    service = make_service("orders", v1=100)
    panel.post("/routes/new", typed(service="orders", methods=["GET", "POST"], hosts="a.example b.example"))
    route = Route.objects.get()
    assert (route.service, route.methods, route.hosts) == (service, ["GET", "POST"], ["a.example", "b.example"])
    panel.post(f"/routes/{route.pk}/edit", typed(revision=route.revision, service="orders", priority=3))
    panel.post(f"/routes/{route.pk}/switch", {"active": "false"})
    route.refresh_from_db()
    assert (route.priority, route.methods, route.hosts, route.is_active) == (3, [], [], False)
    assert "the only route to orders" in text_of(panel.get(f"/routes/{route.pk}/delete"))
    panel.post(f"/routes/{route.pk}/delete")
    assert not Route.objects.exists()


def test_a_route_changes_from_a_service_to_a_queue(panel: Client) -> None:
    service = make_service("orders", v1=100)
    make_queue_route()
    route = create_route(name="r", path="/api/v1/x", service=service, version="v1", **BOB)
    form = typed(revision=route.revision, leads_to="queue", queue_route="email-send", service="orders", version="v1")
    assert panel.post(f"/routes/{route.pk}/edit", form).status_code == 302
    route.refresh_from_db()
    assert (route.service, route.version) == (None, "")
    assert route.queue_route is not None


@pytest.mark.parametrize(
    ("wrong", "field", "sentence"),
    [
        ({"service": "nobody"}, "service", "There is no service named nobody."),
        ({"service": ""}, "service", "Name the service."),
        ({"leads_to": "queue"}, "queue_route", "Name the queue route."),
        ({"path": "/x"}, "path", "begins with /api/"),
        ({"hosts": "HTTP://x"}, "hosts", "not valid"),
        ({"strip_prefix": "/other"}, "strip_prefix", "beginning of the route's path"),
        ({"priority": "high"}, "priority", "Enter a whole number."),
    ],
)
def test_what_is_wrong_with_a_route_stands_at_its_field(
    panel: Client, wrong: dict[str, object], field: str, sentence: str
) -> None:
    make_service("orders", v1=100)
    answer = panel.post("/routes/new", typed(service="orders") | wrong)
    assert answer.status_code == 422
    assert sentence in errors_at(answer, field)


def test_the_list_is_in_matching_order(panel: Client) -> None:
    service = make_service("orders", v1=100)
    for name, fields in (
        ("any", {"path": "/api/*"}),
        ("exact", {"path": "/api/v1/x/y"}),
        ("hosted", {"path": "/api/*", "hosts": ["a.example"]}),
    ):
        create_route(name=name, service=service, **fields, **BOB)
    text = text_of(panel.get("/routes"))
    assert text.index("hosted") < text.index("exact") < text.index("any any")
