"""What workers count of versions, and what the agent keeps of it while the database is away."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import OperationalError

from core.context import Exchange
from core.wire import Message
from gateway_project.agent import versions as agent_versions
from gateway_project.agent.versions import Versions
from gateway_project.dataplane import version_counts
from gateway_project.dataplane.version_counts import VersionCounts
from routing.judging import LATENCY_S
from routing.models import VersionTraffic, VersionUse
from routing.records import ServiceRecord
from routing.traffic import add_uses, store_traffic
from tests.wires import service_wire, version_wire

OLD = version_wire("v1", 50) | {"lifecycle": "deprecated"}
SERVICE = ServiceRecord.from_wire(service_wire(versions=[OLD, version_wire("v2", 50)], phase="rol_1/0"))
EPOCH = 1_000_000.0


def exchange(key: str = "key_1", status: int = 200, upstream_s: float | None = 0.01, **changes: Any) -> Exchange:
    made = Exchange()
    made.started = 5.0
    made.identity = SimpleNamespace(client="192.0.2.1", host=b"", forwarding_lines=b"")
    made.application = SimpleNamespace(id="app_1")
    made.key = SimpleNamespace(id=key) if key else None
    made.status, made.upstream_s = status, upstream_s
    for name, value in changes.items():
        setattr(made, name, value)
    return made


class Agent:
    """Takes messages, unless it is away."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.is_away = False

    def __call__(self, message: Message) -> bool:
        if not self.is_away:
            self.messages.append(message)
        return not self.is_away

    def rows(self, kind: str) -> list[list[Any]]:
        return [row for message in self.messages if message["type"] == kind for row in message["rows"]]


def served(counts: VersionCounts, name: str, made: Exchange) -> None:
    version = SERVICE.versions[name]
    if not version.is_plain:
        counts.chosen(made, SERVICE, version)
        counts.count(made, 0.5)


def test_a_callers_requests_to_a_deprecated_version_are_summed() -> None:
    counts, agent = VersionCounts(), Agent()
    for key in ("key_1", "key_1", ""):
        served(counts, "v1", exchange(key))
    served(counts, "v2", exchange())
    counts.report(agent, EPOCH)
    assert agent.rows("version_uses") == [
        ["svc_1", "v1", "app_1", "key_1", 2, EPOCH + 5, "192.0.2.1"],
        ["svc_1", "v1", "app_1", "", 1, EPOCH + 5, "192.0.2.1"],
    ]
    counts.report(agent, EPOCH)
    assert len(agent.messages) == 2  # one of each kind: nothing is said twice


@pytest.mark.parametrize(
    ("made", "counted"),
    [
        (exchange(), [1, 0]),
        (exchange(status=404), [1, 0]),
        (exchange(status=500), [1, 1]),
        (exchange(status=503, upstream_s=None), [1, 1]),  # no target could take it
        (exchange(is_fallback=True), [1, 1]),
        (exchange(fault_code="aborted"), [1, 1]),
        (exchange(status=499), None),  # the client has left
        (exchange(upstream_s=None), None),  # from memory
        (exchange(status=413, upstream_s=None), None),
    ],
)
def test_an_outcome_counts_for_the_version_that_made_it(made: Exchange, counted: list[int] | None) -> None:
    counts, agent = VersionCounts(), Agent()
    served(counts, "v2", made)
    counts.report(agent, EPOCH)
    rows = agent.rows("version_traffic")
    assert [row[3:5] for row in rows] == ([] if counted is None else [counted])
    assert all(row[:3] == ["svc_1", "v2", "rol_1/0"] and sum(row[5]) == 1 for row in rows)


def test_counts_wait_for_an_agent_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_counts, "MAX_CALLERS", 3)
    counts, agent = VersionCounts(), Agent()
    agent.is_away = True
    for number in range(10):
        served(counts, "v1", exchange(f"key_{number}"))
        counts.report(agent, EPOCH)
    agent.is_away = False
    counts.report(agent, EPOCH)
    assert [row[3] for row in agent.rows("version_uses")] == ["key_0", "key_1", "key_2"]  # bounded
    assert [row[3] for row in agent.rows("version_traffic")] == [10]


# --- the agent --------------------------------------------------------------------------------------------------------
USE = ["svc_1", "v1", "app_1", "key_1", 2, 1_800_000_000.0, "192.0.2.1"]
TRAFFIC = ["svc_1", "v1", "rol_1/0", 4, 1, [4] + [0] * len(LATENCY_S)]


@pytest.mark.django_db(transaction=True)
def test_what_was_counted_while_the_database_was_away_is_stored_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_away = True

    def unless_away(function: Any) -> Any:
        def run(*args: Any) -> None:
            if is_away:
                raise OperationalError("the server closed the connection unexpectedly")
            function(*args)

        return run

    monkeypatch.setattr(agent_versions, "add_uses", unless_away(add_uses))
    monkeypatch.setattr(agent_versions, "store_traffic", unless_away(store_traffic))

    async def scenario() -> None:
        nonlocal is_away
        versions = Versions("host")
        running = asyncio.create_task(versions.run())
        for _ in range(3):
            versions.take_uses([USE])
            versions.take_traffic([TRAFFIC])
            await versions._look(0.0)
        is_away = False
        running.cancel()  # the end stores what is left
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(scenario())
    assert VersionUse.objects.get().requests == 6
    assert sum(VersionTraffic.objects.values_list("requests", flat=True)) == 12


def test_numbers_of_one_agent_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_versions, "_MAX_USES", 5)
    monkeypatch.setattr(agent_versions, "_MAX_BUCKETS", 5)
    versions = Versions("host")
    for number in range(20):
        versions.take_uses([[f"svc_{number}", *USE[1:]]])
        versions.take_traffic([[f"svc_{number}", *TRAFFIC[1:]]])
    assert (len(versions._uses), len(versions._traffic)) == (5, 5)
    asyncio.run(versions._database.close())
