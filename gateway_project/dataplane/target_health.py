"""What the agent's probes have found, for the worker's balancing; kept for a while when the agent is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from core.wire import Message
from routing.circuit import CLOSED
from routing.health import url_of
from routing.target_registry import TargetRegistry

KEPT_S = 60.0  # without the agent; then nobody knows, and every target counts as healthy
MOST_REPORTED = 1000  # targets of one worker; those with something wrong go first


class Targets(Protocol):
    """What of `routing.target_registry.TargetRegistry` is needed."""

    def set_health(self, service_id: str, origin_url: str, is_healthy: bool) -> None: ...
    def forget_health(self) -> None: ...


class TargetHealth:
    """Takes the agent's ``health`` messages (`core.wire`). ``is_connected`` tells whether the agent is there."""

    def __init__(self, targets: Targets, is_connected: Callable[[], bool]) -> None:
        self._targets = targets
        self._is_connected = is_connected
        self._silent_since: float | None = None
        self._has_any = False

    def take(self, message: Message) -> None:
        if message["whole"]:
            self._targets.forget_health()
        for each in message["targets"]:
            self._targets.set_health(each["service"], each["url"], each["healthy"])
            self._has_any = True

    def sweep(self, now: float) -> None:
        """Monotonic seconds. What an agent said that left long ago is no reason to withhold traffic."""
        if self._is_connected():
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
        elif self._has_any and now - self._silent_since > KEPT_S:
            self._targets.forget_health()
            self._has_any = False


def target_report(targets: TargetRegistry, now: float) -> list[list[Any]]:
    """The ``targets`` of a ``metrics`` message (`core.wire`); ``now`` is monotonic seconds."""
    wrong: list[list[Any]] = []
    well: list[list[Any]] = []
    for service, version, target in targets.targets():
        circuit = target.circuit.state if target.circuit is not None else CLOSED
        is_ejected = target.is_ejected(now)
        report = wrong if circuit != CLOSED or is_ejected else well
        report.append([service.id, service.name, version, url_of(target.record), circuit, is_ejected, target.in_flight])
    return (wrong + well)[:MOST_REPORTED]
