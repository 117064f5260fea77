"""The tier in Redis, with real workers and a real Redis, which is also killed and frozen."""

import struct
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from gateway_project.processes import ROOT
from routing.cache.shared_tier import Generation, decoded, encoded
from tests.cached_services import answering, is_hit, reply, status_of
from tests.dataplane import DataPlane
from tests.gateway_process import eventually
from tests.private_servers import PrivateRedis
from tests.scripted_upstream import Upstream
from tests.test_cache_store import answer
from tests.wires import route_wire

PUBLIC = "Cache-Control: public, max-age=60"
POLICY = {"caching": {"shared": True}}
Planes = tuple[DataPlane, DataPlane]
AnyPlanes = tuple[DataPlane, ...]


def tell_purges(plane: DataPlane, number: int, *rules: tuple[str, str], whole: bool = False) -> None:
    wires = [[number, kind, value] for kind, value in rules]
    plane.feed.tell({"type": "purges", "number": number, "whole": whole, "rules": wires})


@pytest.fixture
def planes(start_plane: Callable[..., DataPlane], private_redis: PrivateRedis) -> Planes:
    """Two workers of two hosts, which share nothing but Redis."""
    first, second = (start_plane(redis_url=private_redis.url, redis_wait_s=1.0) for _ in range(2))
    for plane in (first, second):
        tell_purges(plane, 1, whole=True)
    return first, second


def shared(planes: AnyPlanes, *replies: bytes) -> Upstream:
    """The same service on both."""
    upstream = Upstream(answering(*replies))
    for plane in planes:
        plane.serve(upstream=upstream, id="svc_shared", name="shared", default_url=upstream.url, policies=POLICY)
    upstream.path = "/api/v1/shared"
    return upstream


def wait_for_keys(server: PrivateRedis, count: int) -> list[bytes]:
    with redis.Redis.from_url(server.url) as client:
        eventually(lambda: len(client.keys("*")) >= count, what=f"{count} keys in Redis")
        keys: list[bytes] = client.keys("*")
        assert all(0 < client.ttl(key) <= 2 * 86_400 for key in keys)
    return keys


def test_one_hosts_answer_serves_another(planes: Planes, private_redis: PrivateRedis) -> None:
    first, second = planes
    upstream = shared(planes, reply(PUBLIC, 'ETag: "1"', "X-Own: 1", age_s=10))
    assert status_of(first.ask("GET", "/api/v1/shared/a")) == "fwd=uri-miss; stored"
    wait_for_keys(private_redis, 1)
    found = second.ask("GET", "/api/v1/shared/a", 'If-None-Match: "1"')
    assert (found.status, status_of(found)[:9]) == (304, "hit; ttl=")
    assert status_of(found).endswith("; detail=shared")
    assert int(found.field("age") or 0) >= 10
    own = second.ask("GET", "/api/v1/shared/a")
    assert (own.body, own.field("x-own"), "shared" in status_of(own)) == (b"stored", "1", False)
    assert len(upstream.requests) == 1


def test_variants_and_owners_are_kept_apart_there_too(planes: Planes, private_redis: PrivateRedis) -> None:
    first, second = planes
    upstream = shared(planes, reply("Cache-Control: max-age=60", "Vary: Accept-Language"))
    first.ask("GET", "/api/v1/shared/a", "Accept-Language: de")
    wait_for_keys(private_redis, 2)
    other = {**second.feed.records("application")["app_1"], "id": "app_2", "name": "other"}
    second.feed.put("application", other)
    key = second.new_key(application="app_2")
    assert not is_hit(second.ask("GET", "/api/v1/shared/a", "Accept-Language: de", key=key))
    assert not is_hit(second.ask("GET", "/api/v1/shared/a", "Accept-Language: en"))
    assert is_hit(second.ask("GET", "/api/v1/shared/a", "Accept-Language: DE"))
    assert len(upstream.requests) == 3


def test_a_purge_reaches_what_is_shared(planes: Planes, private_redis: PrivateRedis) -> None:
    first, second = planes
    shared(planes, reply(PUBLIC, "Cache-Tag: t", body=b"old"), reply(PUBLIC, body=b"new"))
    first.ask("GET", "/api/v1/shared/a")
    wait_for_keys(private_redis, 1)
    tell_purges(second, 2, ("tag", "t"))
    assert second.ask("GET", "/api/v1/shared/a").body == b"new"
    tell_purges(first, 2, ("tag", "t"))
    assert first.ask("GET", "/api/v1/shared/a").body == b"new"


def test_a_worker_that_knows_no_purges_uses_nothing_shared(
    planes: Planes, start_plane: Callable[..., DataPlane], private_redis: PrivateRedis
) -> None:
    third = start_plane(redis_url=private_redis.url, redis_wait_s=1.0)
    upstream = shared((*planes, third), reply(PUBLIC))
    planes[0].ask("GET", "/api/v1/shared/a")
    wait_for_keys(private_redis, 1)
    assert not is_hit(third.ask("GET", "/api/v1/shared/a"))
    assert len(upstream.requests) == 2


def test_an_unsafe_request_voids_what_is_shared(planes: Planes, private_redis: PrivateRedis) -> None:
    first, second = planes
    shared(planes, reply(PUBLIC, body=b"old"), reply(status="204 No Content"), reply(PUBLIC, body=b"new"))
    first.ask("GET", "/api/v1/shared/a")
    wait_for_keys(private_redis, 1)
    assert second.ask("DELETE", "/api/v1/shared/a").status == 204  # it has never asked Redis before
    wait_for_keys(private_redis, 2)
    assert second.ask("GET", "/api/v1/shared/a").body == b"new"


def test_an_unsafe_request_whose_own_route_shares_nothing_voids_what_is_shared_too(
    planes: Planes, private_redis: PrivateRedis
) -> None:
    first, second = planes
    shared(planes, reply(PUBLIC, body=b"old"), reply(body=b"posted"), reply(PUBLIC, body=b"new"))
    path = "/api/v1/shared/*"
    for plane in planes:
        plane.feed.put("route", route_wire("rte_r", path, methods=["GET"], service="shared"))
        own = route_wire("rte_w", path, methods=["POST"], service="shared", policies={"caching": {}})
        plane.feed.put("route", own)
    first.ask("GET", "/api/v1/shared/a")
    wait_for_keys(private_redis, 1)
    assert first.ask("POST", "/api/v1/shared/a", body=b"{}").body == b"posted"
    wait_for_keys(private_redis, 2)
    assert second.ask("GET", "/api/v1/shared/a").body == b"new"


def test_what_redis_has_not_been_told_to_drop_is_not_taken_from_it(planes: Planes, private_redis: PrivateRedis) -> None:
    first, second = planes
    shared(planes, reply(PUBLIC, body=b"old"), reply(status="204 No Content"), reply(PUBLIC, body=b"new"))
    first.ask("GET", "/api/v1/shared/a")
    wait_for_keys(private_redis, 1)
    with redis.Redis.from_url(private_redis.url) as client:
        client.config_set("maxmemory", 1)  # it reads, and writes nothing
        assert second.ask("DELETE", "/api/v1/shared/a").status == 204
        eventually(lambda: int(client.info("stats")["total_error_replies"]) > 0, what="a write that is refused")

        def asked() -> int:
            assert second.ask("GET", "/api/v1/shared/a", "Cache-Control: no-store").body == b"new"
            second.ask("GET", "/api/v1/shared/b", "Cache-Control: no-store")
            return int(client.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"])

        before = asked()
        assert asked() > before  # a Redis that is full is read all the same
        assert "is only read, Redis takes nothing" in second.output()
        client.config_set("maxmemory", 0)
    wait_for_keys(private_redis, 2)
    assert first.ask("GET", "/api/v1/shared/a", "Cache-Control: no-cache").body == b"new"


def test_every_unsafe_request_counts_in_redis(planes: Planes, private_redis: PrivateRedis) -> None:
    first, _ = planes
    shared(planes, reply(status="204 No Content"))
    first.ask("DELETE", "/api/v1/shared/a")
    (key,) = wait_for_keys(private_redis, 1)
    private_redis.freeze()
    for _ in range(2):  # the second while the first is on its way to Redis
        first.ask("DELETE", "/api/v1/shared/a")
    private_redis.thaw()
    with redis.Redis.from_url(private_redis.url) as client:
        eventually(lambda: int(client.get(key) or 0) >= 3, what="both to have been counted")


def test_a_stale_answer_is_renewed_from_what_is_shared(planes: Planes, private_redis: PrivateRedis) -> None:
    first, second = planes
    stale = reply("Cache-Control: public, max-age=1, stale-while-revalidate=60", 'ETag: "1"', age_s=5, body=b"old")
    upstream = shared(planes, stale, stale, reply(PUBLIC, body=b"new"))
    for plane in planes:
        plane.ask("GET", "/api/v1/shared/a", "Cache-Control: no-cache")
    eventually(lambda: first.ask("GET", "/api/v1/shared/a").body == b"new", what="the new answer")
    wait_for_keys(private_redis, 1)
    eventually(lambda: second.ask("GET", "/api/v1/shared/a").body == b"new", what="the new answer there")
    assert len(upstream.requests) == 3


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_a_redis_that_is_away_harms_no_request(planes: Planes, private_redis: PrivateRedis, how: str) -> None:
    first, second = planes
    upstream = shared(planes, reply(PUBLIC))
    first.ask("GET", "/api/v1/shared/a")
    wait_for_keys(private_redis, 1)
    getattr(private_redis, how)()
    began = time.monotonic()
    for number in range(30):
        assert second.ask("GET", f"/api/v1/shared/{number}").status == 200
    assert time.monotonic() - began < 10  # some wait for a second; if all did, it would be 30 s
    assert is_hit(first.ask("GET", "/api/v1/shared/a"))
    assert is_hit(second.ask("GET", "/api/v1/shared/7"))
    assert len(upstream.requests) == 31
    assert "left alone" in second.output()
    if how == "kill":
        private_redis.start()
    else:
        private_redis.thaw()
    eventually(
        lambda: (
            "shared" in status_of(second.ask("GET", "/api/v1/shared/a", "Cache-Control: max-age=50"))
            or is_hit(second.ask("GET", "/api/v1/shared/a"))
        ),
        what="Redis to be used again",
    )


def test_those_that_wait_share_what_redis_has(planes: Planes, private_redis: PrivateRedis) -> None:
    first, second = planes
    upstream = shared(planes, reply(PUBLIC))
    first.ask("GET", "/api/v1/shared/a")
    wait_for_keys(private_redis, 1)
    clients = [second.connect() for _ in range(20)]
    for client in clients:
        client.send(second.request("GET", "/api/v1/shared/a"))
    assert {client.answer().body for client in clients} == {b"stored"}
    for client in clients:
        client.socket.close()
    assert len(upstream.requests) == 1


def test_nonsense_in_redis_is_no_answer(planes: Planes, private_redis: PrivateRedis) -> None:
    first, second = planes
    upstream = shared(planes, reply(PUBLIC))
    first.ask("GET", "/api/v1/shared/a")
    (key,) = wait_for_keys(private_redis, 1)
    nonsense = [
        b"pc0:old",
        b"pc1:",
        b"pc1:\0\0\0\2{}",
        b"pc1:\0\0\0\2[]",
        b"pc1vx",
        b"pc1v[1]",
        b"pc1v{}",
        b"",
        b"pc1:\xff\xff\xff\xff{",
    ]
    with redis.Redis.from_url(private_redis.url) as client:
        for value in nonsense:
            client.set(key, value)
            assert second.ask("GET", "/api/v1/shared/a", "Cache-Control: max-age=0, no-store").status == 200
            assert client.get(key) == value  # which was read
    assert "Traceback" not in second.output()
    assert len(upstream.requests) == 1 + len(nonsense)


def test_a_worker_loads_no_redis_before_a_policy_asks_for_it() -> None:
    loads = "import sys, gateway_project.dataplane.worker; sys.exit(bool({'redis', 'hiredis'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", loads], cwd=ROOT, check=True)


# --- values ---
PARTS = st.binary(max_size=30)


@given(
    st.binary(max_size=200),
    st.lists(PARTS),
    st.none() | PARTS,
    st.frozensets(PARTS),
    st.floats(0, 1e6),
    st.integers(0, 99),
)
def test_what_is_written_is_read(
    body: bytes, lines: list[bytes], etag: bytes | None, tags: frozenset[bytes], age_s: float, number: int
) -> None:
    vary = ((b"accept", b"\xff"), (b"cookie", None))
    kept = answer(b"/\xff", body=body, lines=lines, etag=etag, tags=tags, initial_age_s=age_s, vary=vary, at=100.0)
    value = encoded(kept, Generation(number, number), 150.0, 1_000_050.0)
    read, generation = decoded(value, kept.key, 70.0, 1_000_060.0)
    assert generation == Generation(number, number)
    assert (read.body, read.lines, read.etag, read.tags, read.vary) == (body, lines, etag, tags, vary)
    assert read.place == kept.place
    assert read.age_s(70.0) == pytest.approx(kept.age_s(160.0))
    with pytest.raises(ValueError):
        decoded(value, answer(b"/other").key, 0.0, 0.0)


@given(st.binary(max_size=80))
def test_nonsense_is_refused(value: bytes) -> None:
    for each in (value, b"pc1:" + value):
        with pytest.raises((ValueError, LookupError, TypeError, AttributeError, struct.error)):
            decoded(each, answer().key, 0.0, 0.0)
