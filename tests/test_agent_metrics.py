"""The sums of what workers count, as a Prometheus server reads them."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway_project.agent.metrics import WorkerMetrics, serve_metrics

REQUESTS = "api_gateway_requests_total"
DURATION = "api_gateway_request_duration_seconds"


def counted(number: int, **labels: str) -> dict[str, Any]:
    return {"counters": [[REQUESTS, labels, number]]}


def samples(metrics: WorkerMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """By name and labels, as the official parser reads the text."""
    families = text_string_to_metric_families(metrics.text().decode())
    found = [sample for family in families for sample in family.samples]
    return {(each.name, tuple(sorted(each.labels.items()))): each.value for each in found}


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics(lambda: [("api_gateway_config_revision", "The revision", 7.0)])


@pytest.fixture
def other_pid() -> int:
    """That of a process that lives as long as this one."""
    return os.getppid()


def ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_counters_and_gauges_of_workers_are_summed_by_name_and_labels(metrics: WorkerMetrics, other_pid: int) -> None:
    labels = {"method": "GET", "path": "/api/v1/orders/*", "status_code": "200", "service": "orders"}
    gauge = {"gauges": [["portcullis_client_connections", {}, 3]]}
    metrics.take(os.getpid(), counted(3, **labels) | gauge)
    metrics.take(other_pid, counted(4, **labels) | gauge)
    metrics.take(other_pid, counted(5, **labels) | gauge)  # totals since the worker started, not increments
    found = samples(metrics)
    assert found[REQUESTS, tuple(sorted(labels.items()))] == 8
    assert found["portcullis_client_connections", ()] == 6
    assert found["api_gateway_config_revision", ()] == 7


def test_histograms_are_summed_bucket_by_bucket_and_told_cumulatively(metrics: WorkerMetrics, other_pid: int) -> None:
    def message(counts: list[int], total: float) -> dict[str, Any]:
        bounds = {DURATION: [0.1, 1.0]}
        return {"histograms": [[DURATION, {"service": "s"}, counts, total, sum(counts)]], "bounds": bounds}

    metrics.take(os.getpid(), message([1, 2, 0], 2.5))
    metrics.take(other_pid, message([1, 0, 4], 40.0))
    found = samples(metrics)
    service = ("service", "s")
    buckets = {bound: found[DURATION + "_bucket", (("le", bound), service)] for bound in ("0.1", "1.0", "+Inf")}
    assert buckets == {"0.1": 2, "1.0": 4, "+Inf": 8}
    assert (found[DURATION + "_sum", (service,)], found[DURATION + "_count", (service,)]) == (42.5, 8)


def test_a_worker_that_is_replaced_makes_no_counter_go_down_and_takes_its_gauges_along(metrics: WorkerMetrics) -> None:
    gone = ended_pid()
    metrics.take(gone, counted(10, service="s") | {"gauges": [["connections", {}, 3]]})
    before = samples(metrics)
    metrics.take(os.getpid(), counted(1, service="s"))
    after = samples(metrics)
    assert before[REQUESTS, (("service", "s"),)] == 10
    assert after[REQUESTS, (("service", "s"),)] == 11
    assert ("connections", ()) not in after


# --- served --------------------------------------------------------------------------------------------------------
def served(metrics: WorkerMetrics, token: str, then: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    async def run() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        serving = asyncio.create_task(serve_metrics(listener, metrics, token))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{address[1]}", trust_env=False) as client:
            await then(client)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address).close()

    asyncio.run(run())


def test_metrics_and_health_are_served_and_nothing_else_is(metrics: WorkerMetrics) -> None:
    async def then(client: httpx.AsyncClient) -> None:
        answer = await client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert "api_gateway_config_revision 7.0" in answer.text
        assert (await client.get("/health")).json() == {"status": "healthy"}
        assert (await client.get("/elsewhere")).status_code == 404

    served(metrics, "", then)


def test_a_head_beyond_its_limit_is_refused_before_it_is_whole(metrics: WorkerMetrics) -> None:
    async def then(client: httpx.AsyncClient) -> None:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Long: ".ljust(64 * 1024 + 1, b"a"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        writer.close()

    served(metrics, "", then)


@pytest.mark.parametrize("credential", [None, "Bearer wrong", "Basic right", "right"], ids=str)
def test_with_a_token_set_metrics_need_it_and_health_does_not(metrics: WorkerMetrics, credential: str | None) -> None:
    async def then(client: httpx.AsyncClient) -> None:
        headers = {"Authorization": credential} if credential else {}
        refused = await client.get("/metrics", headers=headers)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert "revision" not in refused.text
        assert (await client.get("/metrics", headers={"Authorization": "Bearer right"})).status_code == 200
        assert (await client.get("/health")).status_code == 200

    served(metrics, "right", then)
