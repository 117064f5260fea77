"""What a worker holds of its targets' health while the agent comes and goes."""

from typing import Any

from gateway_project.dataplane.target_health import KEPT_S, TargetHealth, target_report
from routing.records import ServiceRecord
from routing.target_registry import TargetRegistry
from tests.wires import service_wire, version_wire


class Targets:
    def __init__(self) -> None:
        self.unhealthy: set[tuple[str, str]] = set()

    def set_health(self, service_id: str, origin_url: str, is_healthy: bool) -> None:
        (self.unhealthy.discard if is_healthy else self.unhealthy.add)((service_id, origin_url))

    def forget_health(self) -> None:
        self.unhealthy.clear()


def entry(url: str, *, healthy: bool) -> dict[str, object]:
    return {"service": "svc_1", "url": url, "healthy": healthy}


def test_what_is_whole_takes_the_place_of_all_and_what_is_not_changes_it() -> None:
    targets = Targets()
    health = TargetHealth(targets, lambda: True)
    health.take({"whole": True, "targets": [entry("http://a:80", healthy=False), entry("http://b:80", healthy=False)]})
    health.take({"whole": False, "targets": [entry("http://a:80", healthy=True)]})
    assert targets.unhealthy == {("svc_1", "http://b:80")}
    health.take({"whole": True, "targets": []})
    assert not targets.unhealthy


def test_the_last_state_is_kept_for_a_while_without_the_agent_and_then_forgotten() -> None:
    targets, is_connected = Targets(), True
    health = TargetHealth(targets, lambda: is_connected)
    health.take({"whole": True, "targets": [entry("http://a:80", healthy=False)]})
    health.sweep(1000.0)
    is_connected = False
    for now in (1010.0, 1010.0 + KEPT_S):
        health.sweep(now)
        assert targets.unhealthy
    is_connected = True
    health.sweep(1071.0)  # it was back for a moment
    is_connected = False
    health.sweep(1072.0)
    assert targets.unhealthy
    health.sweep(1072.1 + KEPT_S)
    assert not targets.unhealthy


# --- the registry --------------------------------------------------------------------------------------------------
A, B = "http://10.0.0.1:80", "http://10.0.0.2:80"


class Worker:
    """A registry, its health, and the configuration that it looks at."""

    def __init__(self, **service: Any) -> None:
        self.services: dict[str, ServiceRecord] = {}
        self.registry = TargetRegistry(lambda: self.services, failures=1, now=lambda: 0.0)
        self.health = TargetHealth(self.registry, lambda: True)
        self.put(**service)

    def put(self, **service: Any) -> None:
        version = version_wire("v1", 1) | {"targets": [[A, 1], [B, 1]]}
        record = ServiceRecord.from_wire(service_wire(versions=[version], **service))
        self.services = {record.name: record}

    def chosen(self) -> set[str]:
        service = self.services["orders"]
        group = self.registry.group(service, service.versions["v1"])
        found = [group.choose(number, 0.0) for number in range(20)]
        return {f"http://{target.record.origin[1]}:{target.record.origin[2]}" for target in found}

    def circuits(self) -> dict[str, int]:
        return {row[3]: row[4] for row in target_report(self.registry, 0.0)}


def test_a_health_endpoint_alone_keeps_requests_from_an_unhealthy_target() -> None:
    worker = Worker(health_endpoint="/health")
    assert worker.chosen() == {A, B}
    worker.health.take({"whole": False, "targets": [entry(A, healthy=False)]})
    assert worker.chosen() == {B}
    worker.put()  # no longer probed: nobody knows
    assert worker.chosen() == {A, B}


def test_a_reset_is_seen_to_have_worked_though_no_request_comes() -> None:
    worker = Worker()
    service = worker.services["orders"]
    target = worker.registry.group(service, service.versions["v1"]).choose(0, 0.0)
    ticket = target.began(0.0)
    target.ended(0.0, None, 1, ticket)
    assert sorted(worker.circuits().values()) == [0, 1]
    worker.put(circuit_resets=1)
    worker.registry.prune()
    assert list(worker.circuits().values()) == [0, 0]


def test_what_is_wrong_is_reported_first_where_not_all_can_be() -> None:
    worker = Worker()
    worker.chosen()
    service = worker.services["orders"]
    second = worker.registry.group(service, service.versions["v1"]).targets[1]
    second.ended(0.0, None, 1, second.began(0.0))
    report = target_report(worker.registry, 0.0)
    assert [row[3:6] for row in report] == [[B, 1, False], [A, 0, False]]
