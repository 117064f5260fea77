"""Targets that are found, through a real agent: registered in the database and in Redis, or looked up in DNS."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dns.rcode
import pytest
import redis
from django.db.models.functions import Now

from gateway_project.agent.redis_registry import KEY
from gateway_project.dataplane.agent_link import AgentLink
from gateway_project.processes import ROOT
from routing.models import DiscoveredTarget, ServiceConfig, ServiceVersion, TargetStatus
from routing.registration import create_token, register, signature, signing_key
from tests.agents import Bench, Play, on_both_databases, play_in
from tests.links import new_link, until
from tests.name_server import NameServer
from tests.private_servers import PrivateRedis
from tests.random_config import ACTOR
from tests.test_agent_feed import add, at, change

postgres = pytest.mark.django_db(transaction=True)
STATIC = "10.0.0.9:80"


@pytest.fixture
def play(tmp_path: Path, settings: Any) -> Play:
    settings.EGRESS_ALLOW = ["127.0.0.0/8", "10.0.0.0/8"]
    return play_in(tmp_path, settings)


@pytest.fixture
def names() -> Iterator[NameServer]:
    server = NameServer()
    yield server
    server.close()


def rows_of(discovery: dict[str, Any], name: str = "orders") -> tuple[ServiceConfig, ServiceVersion]:
    service = ServiceConfig(name=name, discovery=discovery)
    return service, ServiceVersion(service=service, version="v1", url=f"http://{STATIC}", weight=1)


def targets(link: AgentLink) -> set[str]:
    service = link.snapshot.services.get("orders")
    if service is None:
        return set()
    return {f"{target.origin[1]}:{target.origin[2]}" for target in service.versions["v1"].targets}


async def finds(link: AgentLink, *expected: str) -> None:
    try:
        await until(lambda: targets(link) == set(expected))
    except TimeoutError:
        raise AssertionError(f"{targets(link)} rather than {set(expected)}") from None


# --- registered by HTTP --------------------------------------------------------------------------------------------
def put(service: ServiceConfig, instance: str, url: str, seconds: float = 60) -> None:
    values = {"version": "v1", "url": url, "expires_at": Now() + timedelta(seconds=seconds)}
    DiscoveredTarget.objects.update_or_create(service=service, instance=instance, defaults=values)


@on_both_databases
@pytest.mark.usefixtures("database")
def test_what_registers_serves_within_a_second_and_what_expires_no_more(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        service, version = rows_of({"registration": {}})
        await bench.do(add, service, version)
        async with bench.joined() as (_, link):
            await finds(link, STATIC)
            revision = link.snapshot.revision
            await bench.do(lambda: register(service=service, instance="one", url="http://10.0.0.1:7000"))
            await bench.do(lambda: register(service=service, instance="one", url="http://10.0.0.1:7000", ttl_s=20))
            started = time.monotonic()
            await finds(link, "10.0.0.1:7000")
            assert time.monotonic() - started < 5  # a second, on a machine with nothing else to do
            await bench.do(put, service, "two", "http://10.0.0.2:7000", 3)
            await finds(link, "10.0.0.1:7000", "10.0.0.2:7000")
            await finds(link, "10.0.0.1:7000")
            late = new_link(bench.var_dir, slot=1)  # a full load knows it too
            await late.start()
            await until(lambda: late.has_snapshot)
            assert targets(late) == {"10.0.0.1:7000"}
            await late.close()
            assert link.snapshot.revision == revision
            await bench.do(lambda: DiscoveredTarget.objects.all().delete())
            await finds(link, STATIC)

    play(scenario)


@postgres
def test_a_change_of_the_service_keeps_what_is_found(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        service, version = rows_of({"registration": {}})
        await bench.do(add, service, version)
        await bench.do(put, service, "one", "http://10.0.0.1:7000")
        async with bench.joined() as (_, link):
            await finds(link, "10.0.0.1:7000")
            await at(link, await bench.do(lambda: change(service, description="another")))
            assert targets(link) == {"10.0.0.1:7000"}
            await at(link, await bench.do(lambda: change(service, discovery=None)))
            assert targets(link) == {STATIC}
            await at(link, await bench.do(lambda: change(service, discovery={"registration": {}, "static": "never"})))
            await finds(link, "10.0.0.1:7000")
            await bench.do(lambda: DiscoveredTarget.objects.all().delete())
            await finds(link)  # nothing: 503 no_healthy_target

    play(scenario)


@postgres
def test_a_worker_that_outlives_the_agent_is_brought_to_what_the_next_one_finds(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        service, version = rows_of({"registration": {}})
        await bench.do(add, service, version)
        await bench.do(put, service, "one", "http://10.0.0.1:7000")
        link = new_link(bench.var_dir)
        async with bench.agent():
            await link.start()
            await finds(link, "10.0.0.1:7000")
        await bench.do(lambda: DiscoveredTarget.objects.all().delete())
        async with bench.agent():
            await finds(link, STATIC)
        await link.close()

    play(scenario)


# --- DNS -----------------------------------------------------------------------------------------------------------
def dns_policy(names: NameServer, **members: Any) -> dict[str, Any]:
    return {"dns": {"name": "orders.test", "server": names.address, "intervalS": 1, **members}}


@postgres
def test_addresses_follow_the_name_and_outlive_a_name_server_that_fails(play: Play, names: NameServer) -> None:
    names.answers["orders.test.", "A"] = ["10.0.0.1", "10.0.0.2", "169.254.169.254"]

    async def scenario(bench: Bench) -> None:
        await bench.do(add, *rows_of(dns_policy(names, port=7000)))
        async with bench.joined() as (_, link):
            await finds(link, "10.0.0.1:7000", "10.0.0.2:7000")  # never the metadata service
            hosts = {target.host_header for target in link.snapshot.services["orders"].versions["v1"].targets}
            assert hosts == {b"orders.test:7000"}
            names.answers["orders.test.", "A"] = ["10.0.0.3"]
            await finds(link, "10.0.0.3:7000")
            for failing in ({"rcode": dns.rcode.SERVFAIL}, {"rcode": dns.rcode.NOERROR, "is_silent": True}):
                vars(names).update(failing)
                asked = names.asked
                await until(lambda: names.asked > asked)  # noqa: B023  # awaited here
                assert targets(link) == {"10.0.0.3:7000"}
            names.is_silent = False
            del names.answers["orders.test.", "A"]
            await finds(link, STATIC)  # the name has ended, in so many words

    play(scenario)


@postgres
def test_services_in_dns_say_their_ports_and_weights(play: Play, names: NameServer) -> None:
    names.answers["orders.test.", "SRV"] = [
        "10 5 7001 one.orders.test.",
        "10 0 7002 two.orders.test.",
        "20 9 7003 spare.orders.test.",
    ]

    async def scenario(bench: Bench) -> None:
        await bench.do(add, *rows_of(dns_policy(names, type="SRV")))
        async with bench.joined() as (_, link):
            await finds(link, "one.orders.test:7001", "two.orders.test:7002")
            version = link.snapshot.services["orders"].versions["v1"]
            weights = {
                target.origin[1]: weight for target, weight in zip(version.targets, version.weights, strict=True)
            }
            assert weights == {"one.orders.test": 5, "two.orders.test": 1}
            names.answers["orders.test.", "SRV"] = ["0 0 0 ."]
            await finds(link, STATIC)

    play(scenario)


@postgres
def test_the_ttl_says_when_to_ask_again_within_bounds(play: Play, names: NameServer) -> None:
    names.answers["orders.test.", "A"] = ["10.0.0.1"]
    names.ttl = 0

    async def scenario(bench: Bench) -> None:
        await bench.do(add, *rows_of(dns_policy(names, intervalS=30)))
        async with bench.joined() as (_, link):
            await finds(link, "10.0.0.1:80")
            asked, started = names.asked, time.monotonic()
            await until(lambda: names.asked >= asked + 2)
            assert time.monotonic() - started > 1  # not without end
            names.ttl = 3600
            await until(lambda: names.asked >= asked + 3)
            asked = names.asked
            await asyncio.sleep(1.5)
            assert names.asked == asked

    play(scenario)


@postgres
def test_the_last_good_snapshot_holds_what_was_found_for_when_nobody_answers(play: Play, names: NameServer) -> None:
    names.answers["orders.test.", "A"] = ["10.0.0.1"]

    async def scenario(bench: Bench) -> None:
        await bench.do(add, *rows_of(dns_policy(names)))
        async with bench.joined() as (_, link):
            await finds(link, "10.0.0.1:80")
        names.is_silent = True
        async with bench.joined() as (_, link):
            await finds(link, "10.0.0.1:80")
            await asyncio.sleep(1)
            assert targets(link) == {"10.0.0.1:80"}

    play(scenario)


@postgres
def test_a_name_server_that_the_gateway_may_not_reach_is_not_asked(
    play: Play, names: NameServer, settings: Any
) -> None:
    settings.EGRESS_ALLOW = []
    names.answers["orders.test.", "A"] = ["1.1.1.1"]

    async def scenario(bench: Bench) -> None:
        await bench.do(add, *rows_of(dns_policy(names)))
        async with bench.joined() as (_, link):
            await finds(link, STATIC)
            await asyncio.sleep(1)
            assert names.asked == 0

    play(scenario)


@postgres
def test_admins_see_what_was_found_and_where_it_comes_from(play: Play, names: NameServer) -> None:
    names.answers["orders.test.", "A"] = ["10.0.0.1"]

    async def scenario(bench: Bench) -> None:
        await bench.do(add, *rows_of(dns_policy(names)))
        async with bench.agent():
            async with asyncio.timeout(20):
                while await bench.do(statuses) != [("http://10.0.0.1:80", "dns")]:
                    await asyncio.sleep(0.05)

    play(scenario)


def statuses() -> list[tuple[str, str]]:
    return list(TargetStatus.objects.values_list("url", "source"))


# --- Redis ---------------------------------------------------------------------------------------------------------
class Instance:
    """A service that registers itself, as the documentation says."""

    def __init__(self, url: str, token: str) -> None:
        self.redis = redis.Redis.from_url(url)
        self.key = signing_key(token)

    def put(self, name: str, url: str, seconds: float = 20, **changes: Any) -> None:
        signed = {"url": url, "version": "v1", "weight": 7, "expires": int(time.time() + seconds)}
        document = {
            **signed,
            "signature": signature(self.key, service="orders", instance=name, **signed),  # type: ignore[arg-type]
            **changes,
        }
        self.redis.hset(KEY + "orders", name, json.dumps(document))


@postgres
def test_signed_registrations_in_redis_count_until_they_expire_and_survive_its_absence(
    play: Play, private_redis: PrivateRedis, settings: Any
) -> None:
    settings.REDIS_URL = private_redis.url

    async def scenario(bench: Bench) -> None:
        service, version = rows_of({"registration": {"redis": True, "ttlS": 30}})
        await bench.do(add, service, version)
        token, _ = await bench.do(lambda: create_token(service=service, actor=ACTOR, source="command"))
        instance = Instance(private_redis.url, token)
        async with bench.joined() as (_, link):
            await finds(link, STATIC)
            instance.put("one", "http://10.0.0.1:7000")
            instance.put("two", "http://10.0.0.2:7000", 3)
            await finds(link, "10.0.0.1:7000", "10.0.0.2:7000")
            await finds(link, "10.0.0.1:7000")
            private_redis.stop()
            await asyncio.sleep(1)
            assert targets(link) == {"10.0.0.1:7000"}
            private_redis.start()
            instance.put("three", "http://10.0.0.3:7000")
            await until(lambda: "10.0.0.3:7000" in targets(link))
            instance.redis.delete(KEY + "orders")
            await finds(link, STATIC)
            instance.redis.close()

    play(scenario)


@postgres
def test_the_documented_way_into_redis_works(play: Play, redis_server: str, settings: Any) -> None:
    settings.REDIS_URL = redis_server
    example = (ROOT / "docs/discovery.md").read_text().partition("```python\n")[2].partition("```")[0]

    async def scenario(bench: Bench) -> None:
        service, version = rows_of({"registration": {"redis": True, "ttlS": 30}})
        await bench.do(add, service, version)
        token, _ = await bench.do(lambda: create_token(service=service, actor=ACTOR, source="command"))
        names = re.sub("^TOKEN, .*$", f"TOKEN, SERVICE, INSTANCE = {token!r}, 'orders', 'x'", example, flags=re.M)
        program: dict[str, Any] = {}
        exec(names, program)
        async with bench.joined() as (_, link):
            with redis.Redis.from_url(redis_server) as client:
                try:
                    program["register"](client, "http://10.0.0.8:7000")
                    await finds(link, "10.0.0.8:7000")
                finally:
                    client.delete(KEY + "orders")

    play(scenario)


@postgres
def test_what_anybody_could_have_written_into_redis_does_not_count(
    play: Play, redis_server: str, settings: Any
) -> None:
    settings.REDIS_URL = redis_server

    async def scenario(bench: Bench) -> None:
        service, version = rows_of({"registration": {"redis": True, "ttlS": 30}})
        await bench.do(add, service, version)
        token, _ = await bench.do(lambda: create_token(service=service, actor=ACTOR, source="command"))
        instance, forger = Instance(redis_server, token), Instance(redis_server, "prt_another")
        url = "http://10.0.0.1:7000"
        try:
            async with bench.joined() as (_, link):
                forger.put("forged", url)
                instance.put("changed", url, weight=10_000)
                instance.put("for-ever", url, 3600)
                instance.put("metadata", "http://169.254.169.254")
                instance.put("nonsense", url, weight="7")
                instance.redis.hset(KEY + "orders", "junk", b"\xff{")
                instance.put("good", "http://10.0.0.5:7000")
                await finds(link, "10.0.0.5:7000")
        finally:
            instance.redis.delete(KEY + "orders")
            for each in (instance, forger):
                each.redis.close()

    play(scenario)


@postgres
def test_what_stands_in_redis_for_one_service_is_no_matter_of_the_others(
    play: Play, redis_server: str, settings: Any
) -> None:
    settings.REDIS_URL = redis_server

    async def scenario(bench: Bench) -> None:
        service, version = rows_of({"registration": {"redis": True, "ttlS": 30}})
        other, version_of_other = rows_of({"registration": {"redis": True, "ttlS": 30}}, name="billing")
        await bench.do(add, service, version)
        await bench.do(add, other, version_of_other)
        token, _ = await bench.do(lambda: create_token(service=service, actor=ACTOR, source="command"))
        instance = Instance(redis_server, token)
        instance.redis.set(KEY + "billing", "no hash")
        try:
            async with bench.joined() as (_, link):
                instance.put("good", "http://10.0.0.5:7000")
                await finds(link, "10.0.0.5:7000")
        finally:
            instance.redis.delete(KEY + "orders", KEY + "billing")
            instance.redis.close()

    play(scenario)


@postgres
def test_instances_in_redis_count_again_once_enough_of_too_many_have_expired(
    play: Play, redis_server: str, settings: Any
) -> None:
    settings.REDIS_URL = redis_server

    async def scenario(bench: Bench) -> None:
        service, version = rows_of({"registration": {"redis": True, "ttlS": 30}})
        await bench.do(add, service, version)
        token, _ = await bench.do(lambda: create_token(service=service, actor=ACTOR, source="command"))
        instance = Instance(redis_server, token)
        long_gone = json.dumps({"url": "http://10.0.0.9:7000", "expires": int(time.time()) - 600})
        instance.redis.hset(KEY + "orders", mapping={f"gone-{number}": long_gone for number in range(3000)})
        try:
            async with bench.joined() as (_, link):
                instance.put("good", "http://10.0.0.5:7000")
                await finds(link, "10.0.0.5:7000")
                assert instance.redis.hlen(KEY + "orders") <= 1000
        finally:
            instance.redis.delete(KEY + "orders")
            instance.redis.close()

    play(scenario)
