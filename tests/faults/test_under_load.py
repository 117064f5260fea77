"""Targets of a real gateway are killed, hang, are slow, flap, reset, answer garbage and break off, one after another
and together, under 200 requests a second: no wrong answer, nothing done twice that must not be, nothing lost silently,
no growth, and all is well again within a period of the circuit breaker."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.faults.load import Load, Outcome, tally
from tests.faults.targets import TargetProcess
from tests.gateway_process import GatewayFactory, GatewayProcess, eventually
from tests.gateway_traffic import NO_LIMIT, create, new_key, panel_api

PHASE_S = 4.0
OPEN_S = 2.0
TARGETS = 4
# What a client may be told while targets fail. Everything else would be the gateway's own failure.
EXPECTED = {"upstream_connect_failed", "upstream_reset", "upstream_invalid_response", "upstream_timeout"}
EXPECTED |= {"circuit_open", "no_healthy_target", "overloaded"}


@pytest.fixture
def targets(tmp_path: Path) -> Iterator[list[TargetProcess]]:
    running = [TargetProcess(tmp_path, number) for number in range(TARGETS)]
    yield running
    for target in running:
        target.end()


@pytest.fixture
def load(start_gateway: GatewayFactory, targets: list[TargetProcess]) -> tuple[GatewayProcess, Load]:
    gateway = start_gateway(WORKERS="2")
    with panel_api(gateway) as admin:
        create(
            admin,
            "/admin/routing/services",
            name="orders",
            requestTimeoutMs=1000,
            connectTimeoutMs=500,
            idleTimeoutMs=1000,
            loadBalancing={"strategy": "least_connections"},
            circuitBreaker={"failures": 3, "openS": OPEN_S},
            retries={"attempts": 2, "on": ["connect", "reset", "timeout", "502", "503", "504"]},
            healthChecks={"passive": {"minRequests": 10, "windowS": 2, "ejectS": OPEN_S}},
        )
        versions = "/admin/routing/services/orders/versions"
        first = f"http://127.0.0.1:{targets[0].port}"
        create(admin, versions, version="v1", url=first, weight=100)
        for target in targets:
            create(admin, f"{versions}/v1/targets", url=f"http://127.0.0.1:{target.port}")
        application = create(
            admin, "/admin/access/applications", name="shop", allowedServices=["*"], rateLimit=NO_LIMIT
        )
        key = new_key(admin, application["id"])["key"]
    load = Load(int(gateway.environment["PORT"]), "/api/v1/orders/1", key).start()
    eventually(lambda: len(load.outcomes) > 300, 20, "a load that flows")
    return gateway, load


def test_whatever_targets_do_nobody_gets_a_wrong_answer(
    load: tuple[GatewayProcess, Load], targets: list[TargetProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    gateway, traffic = load
    workers = [pid for name, pid in gateway.children().items() if name.startswith("worker-")]
    before = footprint(workers)
    phases: list[tuple[str, Callable[[], None]]] = [
        (mode, partial(targets[0].be, mode))
        for mode in ("killed", "hung", "frozen", "slow", "flapping", "resetting", "garbage", "truncated")
    ]
    phases.append(("three at once", partial(be, targets, "killed", "hung", "garbage")))
    phases.append(("all of them", partial(be, targets, *["resetting"] * TARGETS)))
    report = []
    for name, begin in phases:
        began = time.monotonic()
        begin()
        time.sleep(PHASE_S)
        for target in targets:
            target.be("well")
        well_again = time.monotonic()
        # A breaker's period, the trial's own time, and as much again for a busy machine.
        recovered = eventually(partial(all_well, traffic, well_again), 2 * OPEN_S + 6, f"recovery from {name}")
        report.append((name, tally(traffic.since(began, well_again)), recovered - well_again))
        if name != "all of them":
            assert_mostly_served(name, list(traffic.since(began, well_again)))
    outcomes = traffic.stop()
    after = footprint(workers)
    with capsys.disabled():
        for name, counts, took_s in report:
            print(f"\n  {name:14} well after {took_s:4.1f} s  {dict(counts.most_common())}", end="")
        print()
    assert_honest(outcomes, targets)
    assert (
        gateway.children() == gateway.children()
        and [pid for name, pid in gateway.children().items() if name.startswith("worker-")] == workers
    ), "a worker died"
    for (memory, descriptors), (memory_after, descriptors_after) in zip(before, after, strict=True):
        assert memory_after - memory < 40, f"{memory} MiB became {memory_after}"
        assert descriptors_after - descriptors < 150, f"{descriptors} descriptors became {descriptors_after}"


def be(targets: list[TargetProcess], *modes: str) -> None:
    for target, mode in zip(targets, modes, strict=False):
        target.be(mode)


def all_well(traffic: Load, since: float) -> float | None:
    """When a whole second of nothing but right answers began, if one has passed since then."""
    began = since
    for outcome in sorted(traffic.since(since, float("inf")), key=lambda outcome: outcome.began):
        if outcome.status != 200:
            began = outcome.began + 1e-6
    latest = max((outcome.began for outcome in traffic.since(since, float("inf"))), default=since)
    return began if latest - began >= 1.0 else None


def assert_mostly_served(name: str, outcomes: list[Outcome]) -> None:
    """While one target of four still serves, requests that may be repeated are rarely refused."""
    repeatable = [outcome for outcome in outcomes if outcome.method != "POST"]
    served = sum(outcome.status == 200 for outcome in repeatable)
    assert served >= 0.85 * len(repeatable), f"{name}: {served} of {len(repeatable)}, {tally(iter(repeatable))}"


def assert_honest(outcomes: list[Outcome], targets: list[TargetProcess]) -> None:
    done = Counter(line.split()[1] for target in targets for line in target.done() if line.startswith("POST"))
    wrong = [outcome for outcome in outcomes if not outcome.is_right]
    assert not wrong, wrong[:5]
    silent = [outcome for outcome in outcomes if outcome.ending == "silent"]
    assert not silent, silent[:5]
    faults = {outcome.code for outcome in outcomes if outcome.ending == "answered" and outcome.status != 200}
    assert faults <= EXPECTED | {""}, faults - EXPECTED
    twice = {request_id for request_id, times in done.items() if times > 1}
    assert not twice, f"carried out more than once: {sorted(twice)[:5]}"
    undone = [each for each in outcomes if each.method == "POST" and each.status == 200 and not done[each.id]]
    assert not undone, f"answered 200 and not carried out: {undone[:5]}"


def footprint(pids: list[int]) -> list[tuple[int, int]]:
    """Resident MiB and open descriptors of each process."""
    page = os.sysconf("SC_PAGESIZE")
    return [
        (
            int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page // 2**20,
            len(list(Path(f"/proc/{pid}/fd").iterdir())),
        )
        for pid in pids
    ]
