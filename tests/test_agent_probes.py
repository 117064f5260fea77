"""The prober of a host: which targets it asks, how often, and what workers hear of what it finds."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from core.wire import Message
from gateway_project.agent.probes import AT_ONCE, HealthNews, Prober
from gateway_project.agent.store import ConfigStore, Position, no_records
from routing.health import Finding, Probe, url_of
from routing.models import ServiceConfig, ServiceTarget, ServiceVersion
from tests.agents import Bench, Play, play_in
from tests.links import new_link, until
from tests.scripted_upstream import Peer, Upstream, replying
from tests.test_agent_feed import add, at, change, remove
from tests.wires import service_wire, version_wire

OK, FAILING = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
QUICK = {"active": {"path": "/health", "intervalS": 0.5, "timeoutS": 0.3, "unhealthyThreshold": 2}}


# --- the timetable -------------------------------------------------------------------------------------------------
class Fleet:
    """Targets in memory, of one service, and who asks them."""

    def __init__(self, count: int = 1, **active: Any) -> None:
        self.store = ConfigStore()
        self.bad: set[str] = set()
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self.takes_s = 0.0
        self.changes = 0
        self._number = 0
        self.prober = Prober(self.store, self._ask, self._changed)
        self.put(*(f"http://10.0.{n // 250}.{n % 250 + 1}:80" for n in range(count)), **active)

    def put(self, *urls: str, **active: Any) -> None:
        policies = {"health_checks": {"active": {"intervalS": 0.5, **active}}}
        version = version_wire("v1") | {"targets": [[url, 1] for url in urls]}
        self._apply({"svc_1": orjson.dumps(service_wire(versions=[version], policies=policies))})

    def drop(self) -> None:
        self._apply({})

    def _apply(self, services: dict[str, bytes]) -> None:
        self._number += 1
        records = no_records() | {"service": services}
        self.store.apply([(Position(self._number, "t"), frozenset({("service", "svc_1")}))], records, {})
        self.store.is_ready = True

    async def _ask(self, probe: Probe) -> Finding:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.takes_s)
        self.at_once -= 1
        url = url_of(probe.target)
        self.asked.append(url)
        return Finding(url not in self.bad, 1.0, 200)

    def _changed(self) -> None:
        self.changes += 1

    def standing(self, url: str = "http://10.0.0.1:80") -> bool:
        return self.prober.watched["svc_1", url].is_healthy


def run(fleet: Fleet, scenario: Callable[[], Any]) -> None:
    async def main() -> None:
        running = asyncio.create_task(fleet.prober.run())
        try:
            await scenario()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_a_target_turns_after_its_thresholds_and_back_again() -> None:
    fleet = Fleet(unhealthyThreshold=2, healthyThreshold=2)
    fleet.bad = {"http://10.0.0.1:80"}

    async def scenario() -> None:
        await until(lambda: len(fleet.asked) == 1)
        assert fleet.standing()
        await until(lambda: not fleet.standing())
        fleet.bad = set()
        asked = len(fleet.asked)
        await until(fleet.standing)
        assert len(fleet.asked) >= asked + 2
        assert fleet.changes == 3  # the first: it is known which targets there are

    run(fleet, scenario)


def test_however_many_are_due_only_so_many_are_asked_at_once_and_all_get_their_turn() -> None:
    fleet = Fleet(AT_ONCE * 5)
    fleet.takes_s = 0.02

    async def scenario() -> None:
        await until(lambda: len(set(fleet.asked)) == AT_ONCE * 5)

    run(fleet, scenario)
    assert fleet.most_at_once <= AT_ONCE


def test_a_target_that_stays_keeps_its_standing_and_one_that_goes_is_asked_no_more() -> None:
    fleet = Fleet(2, unhealthyThreshold=1)
    fleet.bad = {"http://10.0.0.1:80"}

    async def scenario() -> None:
        await until(lambda: ("svc_1", "http://10.0.0.1:80") in fleet.prober.watched and not fleet.standing())
        fleet.put("http://10.0.0.1:80", "http://10.0.0.3:80", unhealthyThreshold=1, intervalS=3600)
        await until(lambda: "http://10.0.0.3:80" in fleet.asked)
        assert not fleet.standing()
        changes = fleet.changes
        fleet.drop()
        await until(lambda: not fleet.prober.watched)
        assert fleet.changes == changes + 1  # the unhealthy one has gone
        fleet.put("http://10.0.0.1:80")
        await until(lambda: fleet.prober.watched)
        assert fleet.standing()

    run(fleet, scenario)


def test_a_shorter_interval_counts_at_once() -> None:
    fleet = Fleet(intervalS=3600)

    async def scenario() -> None:
        await until(lambda: len(fleet.asked) == 1)
        fleet.put("http://10.0.0.1:80", intervalS=0.5)
        await until(lambda: len(fleet.asked) >= 3)

    run(fleet, scenario)


def test_services_without_checks_are_not_even_read() -> None:
    fleet = Fleet()
    fleet._apply({"svc_1": b'{"health_endpoint":"","policies":{}}'})

    async def scenario() -> None:
        await fleet.prober.follow()
        assert not fleet.prober.watched

    asyncio.run(scenario())


def test_what_was_unhealthy_before_the_agent_started_anew_is_unhealthy_until_it_proves_otherwise() -> None:
    fleet = Fleet(healthyThreshold=1)
    fleet.prober.remembered = {("svc_1", "http://10.0.0.1:80")}

    async def scenario() -> None:
        await fleet.prober.follow()
        assert not fleet.standing()

    asyncio.run(scenario())


# --- what workers hear ---------------------------------------------------------------------------------------------
def test_news_are_whole_for_whoever_joins_and_then_what_has_changed() -> None:
    fleet = Fleet(3, unhealthyThreshold=1)
    fleet.bad = {"http://10.0.0.1:80", "http://10.0.0.2:80"}
    news = HealthNews(fleet.prober.watched)

    def targets(message: Message | None) -> dict[str, bool]:
        assert message is not None
        return {each["url"]: each["healthy"] for each in message["targets"]}

    async def scenario() -> None:
        assert news.since(None) == (None, None)  # nothing is known yet
        news.changed()
        told, message = news.since(None)
        assert message == {"type": "health", "whole": True, "targets": []}
        await until(lambda: sum(not each.is_healthy for each in fleet.prober.watched.values()) == 2)
        news.changed()
        told, message = news.since(told)
        assert targets(message) == dict.fromkeys(fleet.bad, False)
        assert news.since(told) == (told, None)
        fleet.bad = {"http://10.0.0.2:80"}
        await until(fleet.standing)
        news.changed()
        told, message = news.since(told)
        assert targets(message) == {"http://10.0.0.1:80": True}
        _, message = news.since(None)
        assert targets(message) == {"http://10.0.0.2:80": False}

    run(fleet, scenario)


@pytest.fixture
def play(tmp_path: Path, settings: Any) -> Play:
    settings.EGRESS_ALLOW = ["127.0.0.0/8"]
    return play_in(tmp_path, settings)


@pytest.fixture
def upstreams() -> Iterator[Callable[..., Upstream]]:
    started: list[Upstream] = []

    def start(script: Callable[[Peer], None]) -> Upstream:
        started.append(Upstream(script))
        return started[-1]

    yield start
    for each in started:
        each.close()


def heard_by(link: Any) -> list[Message]:
    heard: list[Message] = []
    link.on("health", heard.append)
    return heard


def switched(state: dict[str, str]) -> Callable[[Peer], None]:
    """Answers as ``state["is"]`` says at that moment: ok, failing or hung."""

    def script(peer: Peer) -> None:
        while peer.read_request() is not None:
            if state["is"] == "hung":
                peer.wait_for_end()
                return
            peer.send(OK if state["is"] == "ok" else FAILING)

    return script


@pytest.mark.django_db(transaction=True)
def test_an_agent_tells_its_workers_of_servers_that_fail_hang_die_and_recover(
    play: Play, upstreams: Callable[..., Upstream]
) -> None:
    states = [{"is": "ok"}, {"is": "ok"}]
    servers = [upstreams(switched(state)) for state in states]

    async def scenario(bench: Bench) -> None:
        service = ServiceConfig(name="orders", health_checks=QUICK)
        version = ServiceVersion(service=service, version="v1", url=servers[0].url, weight=1)
        rows = [ServiceTarget(version=version, url=server.url) for server in servers]
        await bench.do(add, service, version, *rows)
        async with bench.agent() as agent:
            link = new_link(bench.var_dir)
            heard = heard_by(link)
            await link.start()
            try:
                await until(lambda: heard)
                assert heard[0] == {"type": "health", "whole": True, "targets": []}
                entry = {"service": service.pk, "url": servers[1].url}
                for state in ("failing", "ok", "hung", "ok"):
                    heard.clear()
                    states[1]["is"] = state
                    await until(lambda: heard)
                    told = {"type": "health", "whole": False, "targets": [entry | {"healthy": state == "ok"}]}
                    assert heard == [told]
                heard.clear()
                servers[1].close()
                await until(lambda: heard)
                late = new_link(bench.var_dir, slot=1)
                late_heard = heard_by(late)
                await late.start()
                await until(lambda: late_heard)
                await late.close()
                whole = {"type": "health", "whole": True, "targets": [entry | {"healthy": False}]}
                assert late_heard == [whole]
                heard.clear()
                await at(link, await bench.do(remove, rows[1]))
                await until(lambda: heard)
                assert heard[0]["targets"] == [entry | {"healthy": True}]  # forgotten, should it come back
                assert len(agent.prober.watched) == 1
            finally:
                await link.close()

    play(scenario)


@pytest.mark.django_db(transaction=True)
def test_an_edited_service_is_probed_anew_without_a_restart(play: Play, upstreams: Callable[..., Upstream]) -> None:
    server = upstreams(replying(OK))

    async def scenario(bench: Bench) -> None:
        service = ServiceConfig(name="orders", default_url=server.url)
        await bench.do(add, service)
        async with bench.joined() as (agent, link):
            assert not agent.prober.watched
            await at(link, await bench.do(lambda: change(service, health_endpoint="/up")))
            await until(lambda: server.requests)
            assert server.requests[0].target == b"/up"

    play(scenario)
