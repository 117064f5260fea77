"""Purging stored answers: what admins say, what workers drop, and that nothing slips through meanwhile."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from rest_framework.test import APIClient

from core.revisions import Actor
from routing.cache.dropping import Rule, read_rule
from routing.cache.purges import PurgeBook
from routing.cache_purges import purge_cache, purges_after
from routing.models import CachePurge
from tests.admin_api import admin_with_key, client_with_key, problem_of
from tests.cached_services import cached, is_hit, purge, reply
from tests.dataplane import DataPlane
from tests.gateway_process import GatewayFactory, GatewayProcess, eventually
from tests.gateway_traffic import create, new_key, panel_api
from tests.raw_http import Answer
from tests.scripted_upstream import Seen, Upstream
from tests.wires import route_wire

PUBLIC = "Cache-Control: public, max-age=60"
ANN = Actor("user", "1", "ann")


# --- in a worker ---
@pytest.mark.parametrize(
    ("kind", "value", "dropped"),
    [
        ("url", "{path}/a", {"/a"}),
        ("url", "https://gateway.test{path}/%61", {"/a"}),
        ("url", "https://other.test{path}/a", set()),
        ("url", "{path}/a?x=1", {"/a?x=1"}),
        ("prefix", "{path}/a", {"/a", "/a?x=1", "/a/b"}),
        ("prefix", "{path}/a?", {"/a?x=1"}),
        ("prefix", "http://gateway.test:80{path}/a/", {"/a/b"}),
        ("tag", "blue", {"/c", "/a/b"}),
        ("service", "{service}", {"/a", "/a?x=1", "/a/b", "/c"}),
        ("all", "", {"/a", "/a?x=1", "/a/b", "/c"}),
    ],
)
def test_what_a_purge_names_is_dropped(plane: DataPlane, kind: str, value: str, dropped: set[str]) -> None:
    paths = ["/a", "/a?x=1", "/a/b", "/c"]

    def script(seen: Seen) -> bytes:
        return reply(PUBLIC, "Cache-Tag: red, blue" if seen.target in (b"/c", b"/a/b") else "Cache-Tag: red")

    upstream = cached(plane, script)
    for path in paths:
        plane.ask("GET", upstream.path + path)
    purge(plane, kind, value.format(path=upstream.path, service=upstream.path.rpartition("/")[2]))
    assert {path for path in paths if not is_hit(plane.ask("GET", upstream.path + path))} == dropped


def test_a_policy_names_the_field_of_tags(plane: DataPlane) -> None:
    upstream = cached(plane, reply(PUBLIC, "Surrogate-Key: one two"), tagHeader="Surrogate-Key")
    plane.ask("GET", upstream.path + "/a")
    purge(plane, "tag", "two")
    assert not is_hit(plane.ask("GET", upstream.path + "/a"))


@pytest.mark.parametrize("kind", ["url", "tag", "service", "all", "prefix"])
def test_an_answer_on_its_way_is_not_stored_after_a_purge(plane: DataPlane, kind: str) -> None:
    opened, count = threading.Event(), iter(range(9))

    def script(seen: Seen) -> bytes:
        if next(count):
            return reply(PUBLIC, "Cache-Tag: t1", body=b"new")
        assert opened.wait(20)
        return reply(PUBLIC, "Cache-Tag: t1", body=b"old")

    upstream = cached(plane, script)
    values = {"url": upstream.path + "/a", "prefix": upstream.path, "tag": "t1", "all": ""}
    with plane.connect() as client:
        client.send(plane.request("GET", upstream.path + "/a"))
        upstream.wait_for(1)
        purge(plane, kind, values.get(kind, upstream.path.rpartition("/")[2]))
        opened.set()
        assert client.answer().body == b"old"
    assert plane.ask("GET", upstream.path + "/a").body == b"new"


def test_a_service_that_has_another_name_now_has_nothing_stored_that_its_purges_miss(plane: DataPlane) -> None:
    upstream = cached(plane, lambda seen: reply(PUBLIC, body=b"%d" % len(upstream.requests)))
    service = list(plane.feed.records("service").values())[-1]
    route = route_wire("rte_renamed", "/renamed/*", service=service["name"])
    plane.feed.put("route", route)
    assert [plane.ask("GET", "/renamed/a").body for _ in range(2)] == [b"1", b"1"]
    plane.feed.put("service", {**service, "name": "renamed"})
    plane.feed.put("route", {**route, "service": "renamed"})
    plane.ask("GET", "/renamed/a")
    purge(plane, "service", "renamed")
    last = plane.ask("GET", "/renamed/a")
    assert (is_hit(last), last.body) == (False, b"%d" % len(upstream.requests))
    plane.ask("POST", "/renamed/a", body=b"{}")
    assert not is_hit(plane.ask("GET", "/renamed/a"))


def test_another_history_of_purges_empties_the_cache(plane: DataPlane) -> None:
    upstream = cached(plane, reply(PUBLIC))
    purge(plane, "tag", "nobody")
    plane.ask("GET", upstream.path + "/a")
    plane.feed.tell({"type": "purges", "number": purge.number, "whole": True, "rules": []})
    assert is_hit(plane.ask("GET", upstream.path + "/a"))
    plane.feed.tell({"type": "purges", "number": 0, "whole": True, "rules": []})
    purge.number = 0
    assert not is_hit(plane.ask("GET", upstream.path + "/a"))


def test_nobody_reads_what_was_before_their_own_write(plane: DataPlane) -> None:
    """Clients write and read the same few things at once, over an upstream that looks, hesitates and answers."""
    numbers = dict.fromkeys(range(3), 0)
    lock = threading.Lock()

    def script(seen: Seen) -> bytes:
        which = int(seen.target[1:])
        with lock:
            if seen.method == b"POST":
                numbers[which] += 1
            number = numbers[which]
        time.sleep(random.random() / 200)
        return reply(PUBLIC, f'ETag: "{number}"', body=b"%d" % number)

    upstream = cached(plane, script)
    hits = []

    def client(seed: int) -> None:
        chooser = random.Random(seed)
        with plane.connect() as connection:

            def ask(method: str, which: int) -> Answer:
                body = b"{}" if method == "POST" else None
                request = plane.request(method, f"{upstream.path}/{which}", body=body)
                return connection.send(request).answer()

            for _ in range(60):
                which = chooser.randrange(3)
                written = int(ask("POST", which).body) if chooser.random() < 0.3 else 0
                read = ask("GET", which)
                assert int(read.body) >= written
                hits.append(is_hit(read))

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(client, seed) for seed in range(8)]:
            done.result()
    assert any(hits)
    for which, number in numbers.items():
        assert int(plane.ask("GET", f"{upstream.path}/{which}").body) == number


# --- rules ---
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("url", ""),
        ("url", "a"),
        ("url", "//host/a"),
        ("url", "ftp://host/a"),
        ("url", "/a b"),
        ("url", "/a/../b"),
        ("url", "/ä"),
        ("url", "/a#b"),
        ("prefix", "https:///a"),
        ("prefix", "/%zz"),
        ("tag", ""),
        ("tag", "two words"),
        ("service", "x" * 201),
        ("everything", ""),
    ],
)
def test_what_names_nothing_that_could_be_stored_is_refused(kind: str, value: str) -> None:
    with pytest.raises(ValueError):
        read_rule(kind, value)


def test_a_book_of_purges_tells_what_came_after_a_number() -> None:
    class Kept:
        service, host, place, tags = "orders", b"h", (b"/a", None), frozenset((b"t",))

    book = PurgeBook()
    assert book.covers_since(0, Kept())  # nothing is known
    assert book.take({"number": 5, "whole": True, "rules": [[3, "tag", "t"], [4, "url", "/b"]]}) == [
        Rule("tag", "t"),
        read_rule("url", "/b"),
    ]
    assert [book.covers_since(number, Kept()) for number in (2, 3, 5, 6)] == [True, False, False, True]
    assert book.take({"number": 6, "whole": False, "rules": [[6, "prefix", "/a"]]}) == [read_rule("prefix", "/a")]
    assert [book.covers_since(number, Kept()) for number in (5, 6)] == [True, False]
    assert book.take({"number": 1, "whole": True, "rules": []}) == [Rule("all")]


def test_a_kind_of_a_later_version_drops_everything() -> None:
    book = PurgeBook()
    assert book.take({"number": 1, "whole": True, "rules": [[1, "colour", "red"]]}) == [Rule("all")]


# --- the admin API ---
@pytest.mark.django_db
class TestApi:
    def test_a_purge_is_written_down(self, api: APIClient) -> None:
        first = api.post(
            "/admin/cache/purge", {"url": "/api/v1/orders/7"}, format="json", headers={"X-Change-Reason": "why"}
        )
        assert first.status_code == 202
        second = api.post("/admin/cache/purge", {"all": True}, format="json").json()
        assert (second["number"], second["kind"], second["value"]) == (2, "all", "")
        listed = api.get("/admin/cache/purges").json()["purges"]
        assert [each["number"] for each in listed] == [2, 1]
        assert listed[1] == first.json()
        assert (listed[1]["kind"], listed[1]["value"], listed[1]["reason"]) == ("url", "/api/v1/orders/7", "why")
        assert (listed[1]["actor"]["name"], listed[1]["source"]) == ("ann (laptop)", "api")

    @pytest.mark.parametrize(
        ("body", "fields"),
        [
            ({}, {"body"}),
            ({"url": "/a", "tag": "b"}, {"body"}),
            ({"all": False}, {"all"}),
            ({"url": "a"}, {"url"}),
            ({"tag": "a b"}, {"tag"}),
            ({"colour": "red"}, {"colour"}),
            ({"url": 7}, {"url"}),
            ({"service": 7}, {"service"}),
            ({"tag": 1.5}, {"tag"}),
            ({"all": "yes"}, {"all"}),
            (["url"], {"body"}),
        ],
        ids=str,
    )
    def test_a_purge_that_says_nothing_clear_is_refused(self, api: APIClient, body: Any, fields: set[str]) -> None:
        problem = problem_of(api.post("/admin/cache/purge", body, format="json"), 422, "invalid_field")
        assert set(problem["errors"]) == fields
        assert not CachePurge.objects.exists()

    def test_purging_needs_its_permission(self, api: APIClient) -> None:
        reader = client_with_key(admin_with_key("admin:cache:read", username="bob")[1])
        problem_of(reader.post("/admin/cache/purge", {"all": True}, format="json"), 403, "insufficient_scope")
        assert reader.get("/admin/cache/purges").status_code == 200
        purger = client_with_key(admin_with_key("admin:cache:delete", username="eve")[1])
        assert purger.post("/admin/cache/purge", {"all": True}, format="json").status_code == 202

    def test_agents_are_told_of_each_place_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for value in ("/a", "/b", "/a"):
            purge_cache(kind="url", value=value, actor=ANN, source="api")
        assert purges_after(0) == (3, [(2, "url", "/b"), (3, "url", "/a")])
        assert purges_after(2) == (3, [(3, "url", "/a")])
        monkeypatch.setattr("routing.cache_purges.MOST_TOLD", 1)
        assert purges_after(0) == (3, [(2, "all", ""), (3, "url", "/a")])


# --- through a whole gateway ---
@pytest.fixture(scope="module")
def gateway(start_module_gateway: GatewayFactory) -> GatewayProcess:
    return start_module_gateway(WORKERS="2")


@pytest.fixture
def admin(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with panel_api(gateway) as admin:
        yield admin


def test_a_purge_is_in_force_on_every_worker_within_a_second(gateway: GatewayProcess, admin: httpx.Client) -> None:
    count = iter(range(10**6))
    upstream = Upstream(lambda peer: _serve(peer, count))
    create(admin, "/admin/services", name="shelf", defaultUrl=upstream.url, caching={})
    application = create(admin, "/admin/access/applications", name="shop", allowedServices=["*"], rateLimit=100_000)
    key = str(new_key(admin, application["id"])["key"])
    with httpx.Client(base_url=gateway.url, headers={"X-API-Key": key}) as client:

        def numbers() -> set[int]:
            """What the workers answer, on a new connection each."""
            return {int(client.get("/api/v1/shelf/a", headers={"Connection": "close"}).text) for _ in range(20)}

        eventually(lambda: len(numbers()) <= 2, what="answers from memory")
        before = max(numbers())
        assert admin.post("/admin/cache/purge", json={"prefix": "/api/v1/shelf/"}).status_code == 202
        purged_at = time.monotonic()
        eventually(lambda: min(numbers()) > before, what="new answers from every worker")
        assert time.monotonic() - purged_at < 5  # a busy machine; 0.3 s on an idle one
    series = 'api_gateway_cache_requests_total{result="hit",service="shelf"}'
    eventually(lambda: series in httpx.get(f"{gateway.metrics_url}/metrics").text, what="the metrics")
    upstream.close()


def test_an_unsafe_request_voids_what_the_other_workers_hold(gateway: GatewayProcess, admin: httpx.Client) -> None:
    count = iter(range(10**6))
    upstream = Upstream(lambda peer: _serve(peer, count))
    create(admin, "/admin/services", name="rack", defaultUrl=upstream.url, caching={})
    application = create(admin, "/admin/access/applications", name="rack", allowedServices=["*"], rateLimit=100_000)
    key = str(new_key(admin, application["id"])["key"])
    with httpx.Client(base_url=gateway.url, headers={"X-API-Key": key, "Connection": "close"}) as client:
        before = {int(client.get("/api/v1/rack/a?x=1").text) for _ in range(20)}
        assert len(before) <= 2
        client.delete("/api/v1/rack/a?x=1").raise_for_status()
        eventually(
            lambda: min(int(client.get("/api/v1/rack/a?x=1").text) for _ in range(20)) > max(before),
            what="new answers from every worker",
        )
    upstream.close()


def _serve(peer: Any, count: Iterator[int]) -> None:
    while peer.read_request() is not None:
        peer.send(reply(PUBLIC, body=b"%d" % next(count)))
