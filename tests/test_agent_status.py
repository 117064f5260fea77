"""What a host tells admins and Prometheus of its targets."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db.models.functions import Now
from prometheus_client.core import Metric

from gateway_project.agent.probes import Watched
from gateway_project.agent.status import HALF_OPEN, MAX_SERIES, OPEN, StatusBoard, forget_gone_hosts
from routing.health import Finding, Probe, Standing
from routing.models import ServiceConfig, TargetStatus
from routing.policies import ActiveCheck
from routing.records import TargetRecord
from tests.agents import Bench, Play, play_in
from tests.links import until
from tests.scripted_upstream import Upstream, replying
from tests.test_agent_feed import add, remove

URL = "http://10.0.0.1:7000"


def watched(url: str = URL, *versions: str, **values: Any) -> dict[tuple[str, str], Watched]:
    probe = Probe(TargetRecord.from_url(url)[0], versions or ("v1",), ActiveCheck(path="/"))
    return {("svc_1", url): Watched(("svc_1", url), "orders", probe, **values)}


def reported(url: str = URL, circuit: int = 0, ejected: bool = False, in_flight: int = 0) -> list[Any]:
    return ["svc_1", "orders", "v1", url, circuit, ejected, in_flight]


def samples(metrics: Callable[[], Any]) -> dict[tuple[str, str, str], float]:
    """By metric, service and target."""
    found: dict[tuple[str, str, str], float] = {}
    metric: Metric
    for metric in metrics():
        for sample in metric.samples:
            key = sample.name, sample.labels["service"], sample.labels.get("target", "")
            assert key not in found
            found[key] = sample.value
    return found


# --- the board -----------------------------------------------------------------------------------------------------
def test_the_worst_of_the_workers_counts_and_requests_under_way_are_summed() -> None:
    board = StatusBoard({}, lambda: {1, 2})
    board.take(1, [reported(circuit=HALF_OPEN, in_flight=2)])
    board.take(2, [reported(circuit=OPEN, ejected=True, in_flight=3)])
    (held,) = board.held(100.0).values()
    assert (held.circuit, held.is_ejected, held.in_flight, held.circuit_since) == (OPEN, True, 5, 100.0)
    board.take(2, [reported()])
    (held,) = board.held(101.0).values()
    assert (held.circuit, held.circuit_since) == (HALF_OPEN, 101.0)
    (held,) = board.held(102.0).values()
    assert held.circuit_since == 101.0


def test_a_worker_that_has_left_is_forgotten() -> None:
    pids = {1}
    board = StatusBoard({}, lambda: pids)
    board.take(1, [reported(circuit=OPEN)])
    assert board.held(1.0)
    pids.clear()
    assert not board.held(2.0)


def test_probes_and_circuits_are_told_by_version() -> None:
    bad = watched(URL, "v1", "v2", standing=Standing(False), finding=Finding(False, 3.0, 503, "It was busy."))
    board = StatusBoard(bad, lambda: {1})
    board.take(1, [reported(circuit=OPEN)])
    held = board.held(5.0)
    assert {key[1]: (each.is_healthy, each.circuit, each.last_error) for key, each in held.items()} == {
        "v1": (False, OPEN, "It was busy."),
        "v2": (False, 0, "It was busy."),
    }


def test_prometheus_reads_each_target_and_the_worst_of_each_service() -> None:
    board = StatusBoard(watched(standing=Standing(False)), lambda: {1})
    board.take(1, [reported(circuit=OPEN, in_flight=2), reported("http://10.0.0.2:7000")])
    found = samples(board.metrics)
    assert found["api_gateway_circuit_state", "orders", URL] == 1
    assert found["api_gateway_target_healthy", "orders", URL] == 0
    assert found["api_gateway_target_in_flight", "orders", URL] == 2
    assert found["api_gateway_circuit_state", "orders", "http://10.0.0.2:7000"] == 0
    assert found["api_gateway_circuit_breaker_state", "orders", ""] == 1
    assert found["api_gateway_service_health", "orders", ""] == 1  # one of two


def test_the_series_of_targets_are_capped_and_the_worst_of_the_rest_is_told() -> None:
    board = StatusBoard({}, lambda: {1})
    board.take(1, [reported(f"http://10.0.0.1:{port}") for port in range(1000, 1000 + MAX_SERIES)])
    board.take(1, [*board_reports(MAX_SERIES), reported("http://10.9.9.9:80", circuit=OPEN)])
    found = samples(board.metrics)
    assert sum(name == "api_gateway_circuit_state" for name, _, _ in found) == MAX_SERIES + 1
    assert found["api_gateway_circuit_state", "other", "other"] == 1
    assert found["api_gateway_circuit_breaker_state", "orders", ""] == 1


def board_reports(count: int) -> list[list[Any]]:
    return [reported(f"http://10.0.0.1:{port}") for port in range(1000, 1000 + count)]


# --- rows ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def play(tmp_path: Path, settings: Any) -> Play:
    settings.EGRESS_ALLOW = ["127.0.0.0/8"]
    settings.NODE_NAME = "here"
    return play_in(tmp_path, settings)


def rows() -> list[tuple[str, str, bool, str, str]]:
    found = TargetStatus.objects.order_by("host", "url")
    return [(row.host, row.url, row.is_healthy, row.circuit, row.last_error) for row in found]


@pytest.mark.django_db(transaction=True)
def test_rows_follow_what_probes_and_workers_say_and_go_with_their_targets(play: Play) -> None:
    server = Upstream(replying(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"))
    checks = {"active": {"intervalS": 0.5, "unhealthyThreshold": 1}}

    async def scenario(bench: Bench) -> None:
        service = ServiceConfig(name="orders", default_url=server.url, health_checks=checks)
        await bench.do(add, service)
        async with bench.joined() as (_, link):
            wanted = ("here", server.url, False, "closed", "It answered with status 500.")
            await until_rows(bench, lambda found: found == [wanted])
            link.send_metrics({"targets": [[service.pk, "orders", "default", server.url, 1, False, 0]]})
            await until_rows(bench, lambda found: [row[3] for row in found] == ["open"])
            link.send_metrics({"targets": []})
            await until_rows(bench, lambda found: [row[3] for row in found] == ["closed"])
        assert await bench.do(rows)  # for the next agent
        async with bench.agent() as agent:
            await until(lambda: agent.prober.watched)
            assert not agent.prober.watched[service.pk, server.url].is_healthy  # at once, as before
            await bench.do(remove, service)
            await until_rows(bench, lambda found: not found)

    try:
        play(scenario)
    finally:
        server.close()


async def until_rows(bench: Bench, condition: Callable[[list[Any]], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition(await bench.do(rows)):
            await asyncio.sleep(0.05)


@pytest.mark.django_db
def test_hosts_that_are_gone_are_forgotten() -> None:
    service = ServiceConfig.objects.create(name="orders", default_url="http://10.0.0.1")
    for host, ago in (("gone", timedelta(hours=2)), ("here", timedelta(seconds=5))):
        TargetStatus.objects.create(host=host, service=service, version="v1", url=URL, seen_at=Now() - ago)
    forget_gone_hosts()
    assert [row[0] for row in rows()] == ["here"]
