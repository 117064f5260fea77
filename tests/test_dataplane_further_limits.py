"""Limits beside the one that every request has, through a running worker (A8, A10, A11, rule 10)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from core.faults import InternalFault
from tests.dataplane import DataPlane
from tests.gateway_process import eventually
from tests.raw_http import Answer
from tests.scripted_upstream import OK, Peer, Upstream
from tests.token_makers import AUDIENCE, ISSUER, claims, jwks, token
from tests.websocket_peers import agreeing, ask, echo, open_socket
from tests.wires import application_wire, entry_wire, issuer_wire, limit_wire, route_wire


@pytest.fixture(scope="module")
def upstream(plane: DataPlane) -> Upstream:
    return plane.serve()


@pytest.fixture
def limit(plane: DataPlane) -> Iterator[Callable[..., None]]:
    """Lays in a limit for as long as the test lasts."""
    laid: list[str] = []

    def lay(id: str, **rule: Any) -> None:
        laid.append(id)
        plane.feed.put("limit", limit_wire(id, name=id.removeprefix("lim_"), **rule))

    yield lay
    plane.feed.drop("limit", *laid)


def caller(plane: DataPlane, id: str, **changes: Any) -> str:
    plane.feed.put("application", application_wire(id=id, name=id, **changes))
    return plane.new_key(application=id)


def statuses(plane: DataPlane, path: str, count: int, key: str | None, method: str = "GET") -> list[int]:
    return [answer.status for answer in ask_all(plane, path, count, key, method)]


def ask_all(plane: DataPlane, path: str, count: int, key: str | None, method: str = "GET") -> list[Answer]:
    with plane.connect() as client:
        client.send(plane.request(method, path, key=key) * count)
        return [client.answer(method) for _ in range(count)]


@pytest.mark.parametrize("algorithm", ["token_bucket", "sliding_window", "sliding_log", "fixed_window"])
def test_exactly_the_limit_is_admitted(
    plane: DataPlane, upstream: Upstream, limit: Callable[..., None], algorithm: str
) -> None:
    key = caller(plane, f"app_{algorithm}")
    limit(f"lim_{algorithm}", algorithm=algorithm, limit=5, windowS=86_400, applications=[f"app_{algorithm}"])
    assert statuses(plane, f"{upstream.path}/x", 9, key) == [200] * 5 + [429] * 4


def test_every_limit_is_told_and_the_one_that_refused_is_named(
    plane: DataPlane, upstream: Upstream, limit: Callable[..., None]
) -> None:
    key = caller(plane, "app_told_all", rate_limit=50)
    limit("lim_burst", limit=3, windowS=60, applications=["app_told_all"])
    limit("lim_open", algorithm="concurrency", limit=10, applications=["app_told_all"])
    answers = ask_all(plane, f"{upstream.path}/x", 4, key)
    assert answers[0].field("ratelimit-policy") == (
        '"application";q=50;w=60,"burst";q=3;w=60,"open";q=10;qu="concurrent-requests"'
    )
    told = re.fullmatch(
        r'"application";r=(\d+);t=\d+,"burst";r=(\d+);t=\d+,"open";r=(\d+)', answers[0].field("ratelimit") or ""
    )
    assert told and told.groups() == ("49", "2", "9")
    refused = answers[-1]
    assert (refused.status, refused.code) == (429, "rate_limited")
    assert refused.problem["violated-policies"] == ["burst"]
    wait = re.search(r'"burst";r=0;t=(\d+)', refused.field("ratelimit") or "")
    assert wait and int(refused.field("retry-after") or 0) >= int(wait[1]) > 0


def test_a_request_that_one_limit_refuses_is_charged_by_none(
    plane: DataPlane, upstream: Upstream, limit: Callable[..., None]
) -> None:
    key = caller(plane, "app_all_or_none", rate_limit=10)
    limit("lim_narrow", limit=2, windowS=86_400, applications=["app_all_or_none"], paths=[f"{upstream.path}/narrow"])
    assert statuses(plane, f"{upstream.path}/narrow", 30, key) == [200] * 2 + [429] * 28
    assert statuses(plane, f"{upstream.path}/wide", 9, key) == [200] * 8 + [429]


@pytest.mark.parametrize(
    ("rule", "asked", "expected"),
    [
        ({"methods": ["POST"]}, [("GET", "/x"), ("GET", "/x"), ("POST", "/x"), ("POST", "/x")], [200, 200, 200, 429]),
        ({"paths": ["/api/v1/*/a/*"]}, [("GET", "/b/1"), ("GET", "/a/1"), ("GET", "/a/2")], [200, 200, 429]),
        ({"per": ["key", "endpoint"], "paths": ["{path}/a", "{path}/b"]}, [("GET", "/a"), ("GET", "/b")], [200, 200]),
        ({"services": ["elsewhere"]}, [("GET", "/x"), ("GET", "/x")], [200, 200]),
        ({"services": ["{service}"]}, [("GET", "/x"), ("GET", "/x")], [200, 429]),
        ({"roles": ["staff"]}, [("GET", "/x"), ("GET", "/x")], [200, 200]),
        ({"per": ["user"]}, [("GET", "/x"), ("GET", "/x")], [200, 429]),  # no user: the key
    ],
    ids=["a method", "a path", "each endpoint", "another service", "the service", "a role", "each user"],
)
def test_a_limit_holds_where_it_says(
    plane: DataPlane,
    upstream: Upstream,
    limit: Callable[..., None],
    rule: dict[str, Any],
    asked: list[tuple[str, str]],
    expected: list[int],
) -> None:
    key = caller(plane, "app_where")
    service = upstream.path.rpartition("/")[2]
    filled = {
        name: [text.format(path=upstream.path, service=service) if "{" in text else text for text in values]
        for name, values in rule.items()
    }
    limit(f"lim_where{time.monotonic_ns()}", limit=1, windowS=86_400, applications=["app_where"], **filled)
    assert [plane.ask(method, upstream.path + path, key=key).status for method, path in asked] == expected


def test_one_budget_may_be_everybody_s_or_each_address_s(
    plane: DataPlane, upstream: Upstream, limit: Callable[..., None]
) -> None:
    first, second = caller(plane, "app_first"), caller(plane, "app_second")
    limit("lim_all", limit=2, windowS=86_400, per=["gateway"], paths=[f"{upstream.path}/all"])
    limit("lim_each", limit=2, windowS=86_400, per=["ip"], paths=[f"{upstream.path}/each"])
    asked = [plane.ask("GET", f"{upstream.path}/all", key=key).status for key in (first, second, first, second)]
    assert asked == [200, 200, 429, 429]
    sources = ["127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.3"]
    asked = [plane.ask("GET", f"{upstream.path}/each", key=first, source=each).status for each in sources]
    assert asked == [200, 200, 429, 200]


def test_keys_of_one_line_share_the_bucket(plane: DataPlane, upstream: Upstream, limit: Callable[..., None]) -> None:
    first = caller(plane, "app_line")
    second = plane.new_key(application="app_line", bucket="key_line")
    third = plane.new_key(application="app_line", bucket="key_line")
    limit("lim_line", limit=1, windowS=86_400, applications=["app_line"])
    asked = [plane.ask("GET", f"{upstream.path}/x", key=key).status for key in (first, second, third)]
    assert asked == [200, 200, 429]


def test_a_public_endpoint_is_limited_too(plane: DataPlane, upstream: Upstream, limit: Callable[..., None]) -> None:
    entry = entry_wire("wle_open_limit", f"{upstream.path}/open", is_public=True)
    caller(plane, "app_open_limit", endpoint_mode="listed", entries=[entry])
    limit("lim_public", limit=2, windowS=86_400, applications=["app_open_limit"])
    assert statuses(plane, f"{upstream.path}/open", 3, None) == [200, 200, 429]


def test_a_request_may_cost_more_or_nothing(plane: DataPlane, upstream: Upstream, limit: Callable[..., None]) -> None:
    key = caller(plane, "app_cost", rate_limit=10)
    service = upstream.path.rpartition("/")[2]
    plane.feed.put(
        "route",
        route_wire("rte_dear", "/api/dear", service=service, policies={"charging": {"cost": 4}}),
        route_wire("rte_free", "/api/free", service=service, policies={"charging": {"cost": 0}}),
    )
    limit("lim_cost", limit=10, windowS=86_400, applications=["app_cost"])
    assert statuses(plane, "/api/free", 30, key) == [200] * 30
    assert statuses(plane, "/api/dear", 3, key) == [200, 200, 429]
    answers = ask_all(plane, "/api/dear", 1, key)
    assert '"application";r=2' in (answers[0].field("ratelimit") or "")


# --- users and roles ---
@pytest.fixture(scope="module")
def gate(start_module_plane: Callable[..., DataPlane]) -> DataPlane:
    """A worker that takes tokens."""
    gate = start_module_plane()
    gate.feed.tell({"type": "jwks", "whole": False, "issuers": {"iss_1": jwks()}})
    rules = {"jwksUrl": f"{ISSUER}/jwks", "audiences": [AUDIENCE]}
    gate.feed.put("issuer", issuer_wire(issuer=ISSUER, rules=rules))
    return gate


def test_users_and_roles_have_budgets_of_their_own(gate: DataPlane) -> None:
    path = gate.serve().path
    role: dict[str, Any] = {"per": ["user"], "windowS": 86_400}
    gate.feed.put(
        "limit",
        limit_wire("lim_passenger", name="passenger", limit=2, roles=["passenger"], **role),
        limit_wire("lim_staff", name="staff", limit=3, roles=["staff"], **role),
        limit_wire("lim_staffs", name="all staff", limit=5, per=["role"], roles=["staff"], windowS=86_400),
    )

    def admitted(subject: str, *roles: str) -> int:
        sent = token(claims(sub=subject, roles=list(roles))).decode()
        answers = [gate.ask("GET", f"{path}/x", f"Authorization: Bearer {sent}", key=None) for _ in range(4)]
        return sum(answer.status == 200 for answer in answers)

    assert admitted("ann", "passenger") == 2
    assert admitted("bob", "passenger") == 2, "each user of the role"
    assert admitted("cat", "staff") == 3
    assert admitted("dan", "staff") == 2, "what is left for all staff"
    assert admitted("eve") == 4
    assert statuses(gate, f"{path}/x", 4, gate.key) == [200] * 4


def test_a_role_that_no_table_can_hold_is_counted_under_another_name(gate: DataPlane) -> None:
    path = gate.serve().path
    quotas = Quotas(gate.feed)
    gate.feed.put("limit", limit_wire("lim_any_role", name="any role", algorithm="quota", limit=2, per=["role"]))
    for role in ("half of a pair: \ud800", "a\x00b", "r" * 1000):
        sent = token(claims(roles=[role])).decode()
        asked = [gate.ask("GET", f"{path}/x", f"Authorization: Bearer {sent}", key=None).status for _ in range(3)]
        assert asked == [200, 200, 429]
    gate.feed.drop("limit", "lim_any_role")
    assert all(bucket.startswith("role:#") and len(bucket) < 50 for _, bucket, _ in quotas.used)


# --- requests under way ---
def held_back(gate: list[bool]) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        while peer.read_request() is not None:
            eventually(lambda: gate, what="the gate")
            peer.send(OK)

    return script


def test_so_many_requests_are_under_way_and_no_more(plane: DataPlane, limit: Callable[..., None]) -> None:
    gate: list[bool] = []
    slow = plane.serve(held_back(gate))
    key = caller(plane, "app_open")
    limit("lim_open2", algorithm="concurrency", limit=2, applications=["app_open"])
    with ExitStack() as stack:
        clients = [stack.enter_context(plane.connect()) for _ in range(2)]
        for number, client in enumerate(clients):
            client.send(plane.request("GET", f"{slow.path}/x", key=key))
            eventually(lambda number=number: len(slow.requests) == number + 1, what="the request")  # type: ignore[misc]
        refused = plane.ask("GET", f"{slow.path}/x", key=key)
        assert (refused.status, refused.code) == (429, "rate_limited")
        assert refused.field("retry-after") == "1"
        gate.append(True)
        assert [client.answer().status for client in clients] == [200, 200]
    assert plane.ask("GET", f"{slow.path}/x", key=key).status == 200


def test_a_client_that_leaves_is_under_way_no_longer(plane: DataPlane, limit: Callable[..., None]) -> None:
    gate: list[bool] = []
    slow = plane.serve(held_back(gate))
    key = caller(plane, "app_leaves")
    limit("lim_leaves", algorithm="concurrency", limit=1, applications=["app_leaves"])
    for _ in range(3):
        seen = len(slow.requests)
        with plane.connect() as client:
            client.send(plane.request("GET", f"{slow.path}/x", key=key))
            eventually(lambda seen=seen: len(slow.requests) > seen, what="the request")  # type: ignore[misc]
            client.reset()
        eventually(
            lambda: plane.ask("GET", f"{slow.path}/y", "X-API-Version: none", key=key).status == 404,
            what="the place to be free",
        )
    gate.append(True)


def test_a_websocket_is_under_way_as_long_as_it_is_open(plane: DataPlane, limit: Callable[..., None]) -> None:
    upstream = plane.serve(agreeing(echo))
    key = caller(plane, "app_sockets")
    limit("lim_sockets", algorithm="concurrency", limit=1, applications=["app_sockets"])
    for _ in range(3):
        with open_socket(plane, upstream.path, key=key), plane.connect() as client:
            assert client.send(ask(plane, upstream.path, key=key)).answer().status == 429
        eventually(
            lambda: plane.ask("GET", f"{upstream.path}/y", "X-API-Version: none", key=key).status == 404,
            what="the place to be free",
        )


# --- waiting for one's turn ---
def test_a_key_that_is_revoked_while_its_request_waits_opens_nothing(
    plane: DataPlane, upstream: Upstream, limit: Callable[..., None]
) -> None:
    key = caller(plane, "app_waits")
    limit("lim_waits", algorithm="leaky_bucket", limit=1, windowS=1, queue=3, applications=["app_waits"])
    with plane.connect() as client:
        client.send(plane.request("GET", f"{upstream.path}/x", key=key) * 2)
        assert client.answer().status == 200
        plane.feed.drop("api_key", next(reversed(plane.feed.records("api_key"))))
        before = len(upstream.requests)
        answer = client.answer()
        assert (answer.status, answer.code) == (401, "invalid_credentials")
        assert len(upstream.requests) == before


def test_a_request_whose_body_is_refused_while_it_waits_goes_nowhere(
    plane: DataPlane, limit: Callable[..., None]
) -> None:
    heads: list[bytes] = []

    def noting(peer: Peer) -> None:
        while (seen := peer.read_head()) is not None:
            heads.append(seen.line)
            peer.send(OK)

    upstream = plane.serve(noting)
    key = caller(plane, "app_garbled")
    limit("lim_garbled", algorithm="leaky_bucket", limit=2, windowS=1, queue=3, applications=["app_garbled"])
    assert plane.ask("GET", f"{upstream.path}/first", key=key).status == 200
    with plane.connect() as client:
        client.send(
            plane.request("POST", f"{upstream.path}/garbled", "Transfer-Encoding: chunked", key=key) + b"no\r\n"
        )
        assert client.answer("POST").status == 400
    assert plane.ask("GET", f"{upstream.path}/last", key=key).status == 200
    assert heads == [b"GET /first HTTP/1.1", b"GET /last HTTP/1.1"]


def test_a_leaky_bucket_lets_requests_out_one_by_one(
    plane: DataPlane, upstream: Upstream, limit: Callable[..., None]
) -> None:
    key = caller(plane, "app_leaky")
    limit("lim_leaky", algorithm="leaky_bucket", limit=20, windowS=1, queue=3, applications=["app_leaky"])
    began = time.monotonic()
    with ExitStack() as stack:
        clients = [stack.enter_context(plane.connect()) for _ in range(6)]
        for client in clients:
            client.send(plane.request("GET", f"{upstream.path}/x", key=key))
        answered = sorted((client.answer().status, time.monotonic() - began) for client in clients)
    assert [status for status, _ in answered] == [200] * 4 + [429] * 2
    assert answered[3][1] >= 0.15, "the fourth waited for three turns"


def test_who_leaves_while_waiting_is_not_forwarded(
    plane: DataPlane, upstream: Upstream, limit: Callable[..., None]
) -> None:
    key = caller(plane, "app_impatient")
    limit("lim_impatient", algorithm="leaky_bucket", limit=5, windowS=1, queue=5, applications=["app_impatient"])
    assert plane.ask("GET", f"{upstream.path}/x", key=key).status == 200
    seen = len(upstream.requests)
    with plane.connect() as client:
        client.send(plane.request("GET", f"{upstream.path}/gone", key=key)).reset()
    assert plane.ask("GET", f"{upstream.path}/after", key=key).status == 200, "after the turn of the one that left"
    assert [each.target for each in upstream.requests[seen:]] == [b"/after"]


# --- quotas ---
class Quotas:
    """The agent's side: what has been used, by bucket and period."""

    def __init__(self, feed: Any) -> None:
        self.used: dict[tuple[str, str, str], int] = {}
        self.is_away = False
        feed.answerer = self.answer

    def answer(self, name: str, params: dict[str, Any]) -> dict[str, Any]:
        assert name == "quotas"
        if self.is_away:
            raise InternalFault("dependency_unavailable", "The database is away.")
        told = []
        for _, *place, cost in params["rows"]:
            key = (place[0], place[1], place[2])
            self.used[key] = self.used.get(key, 0) + cost
            told.append(self.used[key])
        return {"used": told}


@pytest.fixture
def quotas(plane: DataPlane) -> Iterator[Quotas]:
    former = plane.feed.answerer
    yield Quotas(plane.feed)
    eventually(lambda: True)
    plane.feed.answerer = former


def today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


def test_a_quota_goes_on_from_what_has_been_used_and_is_told(
    plane: DataPlane, upstream: Upstream, limit: Callable[..., None], quotas: Quotas
) -> None:
    key = plane.new_key(application="app_1", bucket="key_quota")
    place = ("lim_daily", "key:key_quota", today())
    quotas.used[place] = 7
    limit("lim_daily", algorithm="quota", limit=10, period="day", applications=["web"])
    answers = ask_all(plane, f"{upstream.path}/x", 5, key)
    assert [answer.status for answer in answers] == [200] * 3 + [429] * 2
    refused = answers[-1]
    assert refused.code == "quota_exceeded"
    assert refused.problem["violated-policies"] == ["daily"]
    assert 0 < int(refused.field("retry-after") or 0) <= 86_400
    assert '"daily";q=10;w=86400' in (answers[0].field("ratelimit-policy") or "")
    eventually(lambda: quotas.used[place] == 10, what="what was admitted, told")


def test_a_key_may_have_a_quota_of_its_own(plane: DataPlane, upstream: Upstream, quotas: Quotas) -> None:
    key = plane.new_key(application="app_1", bucket="key_own", restrictions={"quota": {"limit": 2, "period": "month"}})
    assert statuses(plane, f"{upstream.path}/x", 3, key) == [200, 200, 429]
    eventually(lambda: 2 in quotas.used.values(), what="what was admitted, told")
    assert ("key", "key_own", today()[:7]) in quotas.used


def test_while_nobody_answers_a_quota_is_counted_here_or_closed(
    plane: DataPlane, upstream: Upstream, limit: Callable[..., None], quotas: Quotas
) -> None:
    quotas.is_away = True
    key = caller(plane, "app_away")
    limit("lim_share", algorithm="quota", limit=2, applications=["app_away"], paths=[f"{upstream.path}/share"])
    limit(
        "lim_closed",
        algorithm="quota",
        limit=2,
        outage="closed",
        applications=["app_away"],
        paths=[f"{upstream.path}/closed"],
    )
    assert statuses(plane, f"{upstream.path}/share", 3, key) == [200, 200, 429]
    closed = plane.ask("GET", f"{upstream.path}/closed", key=key)
    assert (closed.status, closed.code) == (503, "dependency_unavailable")
    assert int(closed.field("retry-after") or 0) > 0
    quotas.is_away = False
    eventually(lambda: quotas.used.get(("lim_share", "key:" + bucket_of(plane), today())) == 2, what="the sum, told")


def bucket_of(plane: DataPlane) -> str:
    return list(plane.feed.records("api_key"))[-1]


# --- what is told ---
def test_the_agent_hears_who_uses_limits_and_who_is_refused(
    plane: DataPlane, upstream: Upstream, limit: Callable[..., None]
) -> None:
    key = caller(plane, "app_heard")
    limit("lim_heard", limit=2, windowS=86_400, applications=["app_heard"], alert=True)
    statuses(plane, f"{upstream.path}/x", 5, key)

    def rows(kind: str, id: str) -> list[Any]:
        return [row for message in plane.feed.heard if message["type"] == kind for row in message["rows"] if id in row]

    subject = "key:" + bucket_of(plane)
    uses = eventually(lambda: rows("limit_uses", "lim_heard"), what="the uses")
    assert uses[0][1] == subject and sum(row[2] for row in uses) == 2
    (violation,) = eventually(lambda: rows("violations", "lim_heard"), what="the violations")
    assert violation == ["default", "lim_heard", "heard", subject, "app_heard", "127.0.0.1", 3, True]


def test_the_older_fields_are_sent_where_they_are_wanted(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane(rate_limit_legacy_headers=True, rate_limit_requests=2, rate_limit_window_s=3600)
    path = f"{plane.serve().path}/x"
    answers = ask_all(plane, path, 3, plane.key)
    names = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
    assert [answers[0].field(name) for name in names] == ["2", "1", "1800"]
    assert answers[2].status == 429
    assert [answers[2].field(name) for name in names[:2]] == ["2", "0"]
    plane.feed.put("limit", limit_wire("lim_old", name="old", limit=9, windowS=60, per=["gateway"]))
    key = caller(plane, "app_old")
    (answer,) = ask_all(plane, path, 1, key)
    assert [answer.field(name) for name in names[:2]] == ["2", "1"]
