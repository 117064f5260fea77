"""What a worker remembers of services and their targets from one configuration to the next.

Circuits, ejections, latencies and budgets belong to the running worker. When the configuration changes, policies are
applied anew and everything else is kept for the targets that are still there.
"""

from __future__ import annotations

import random as _random
from collections.abc import Callable, Iterator, Mapping
from time import time

from routing.affinity import cookie_name, cookie_value, read, set_cookie_line, target_name
from routing.balancing import TargetGroup
from routing.circuit import Circuit
from routing.health import check_of
from routing.policies import CircuitBreaker, Concurrency, LoadBalancing, Sticky
from routing.records import ServiceRecord, TargetRecord, VersionRecord
from routing.retrying import RetryBudget
from routing.shedding import AdaptiveLimit
from routing.targets import Target

Origin = tuple[str, str, int]
_BALANCING = LoadBalancing()
_BREAKER = CircuitBreaker()
_CONCURRENCY = Concurrency()


class ServiceState:
    """One service in one worker. ``groups`` by the name of the version; ``limit`` None unless it is adaptive,
    ``sticky`` None unless clients stay where they are."""

    __slots__ = ("_affinity_key", "budget", "circuit_resets", "concurrency", "groups", "limit", "record", "sticky")

    def __init__(self, record: ServiceRecord, now: float, affinity_key: bytes) -> None:
        self.record = record
        self.concurrency = _CONCURRENCY
        self.sticky: Sticky | None = None
        self._affinity_key = affinity_key
        self.groups: dict[str, TargetGroup] = {}
        self.budget = RetryBudget(now)
        self.limit: AdaptiveLimit | None = None
        self.circuit_resets = record.circuit_resets

    # --- sticky sessions (R13) ---
    def had_before(self, cookies: bytes) -> bytes | None:
        """The name of the target that a client had, by its Cookie field; None for one that proves none."""
        assert self.sticky is not None
        value = cookie_value(cookies, cookie_name(self.sticky, self.record.name))
        return None if value is None else read(self._affinity_key, self.record.id, value, time())

    def cookie_line(self, target: Target, *, is_secure: bool) -> bytes:
        """The Set-Cookie line that brings a client back to ``target``."""
        assert self.sticky is not None
        key, service_id = self._affinity_key, self.record.id
        cookie = cookie_name(self.sticky, self.record.name)
        return set_cookie_line(self.sticky, cookie, key, service_id, target.name, time(), is_secure=is_secure)


class TargetRegistry:
    """Of one worker. ``services`` gives those of the snapshot in force, by name. ``failures`` and ``open_s`` are the
    breaker where a service says nothing else; ``affinity_key`` signs the cookies of sticky sessions."""

    def __init__(
        self,
        services: Callable[[], Mapping[str, ServiceRecord]],
        *,
        failures: int = 5,
        open_s: float = 30.0,
        affinity_key: bytes = b"",
        now: Callable[[], float],
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._services = services
        self._failures = failures
        self._open_s = open_s
        self.affinity_key = affinity_key
        self._now = now
        self._random = random
        self._states: dict[str, ServiceState] = {}  # by service id
        self._unhealthy: dict[str, set[Origin]] = {}  # by service id, as the agent's probes found
        self._pruned_for: Mapping[str, ServiceRecord] | None = None

    # --- on the way of a request ---
    def state(self, service: ServiceRecord) -> ServiceState:
        state = self._states.get(service.id)
        if state is None or state.record is not service:
            state = self._renewed(service, state)
        return state

    def group(self, service: ServiceRecord, version: VersionRecord) -> TargetGroup:
        """The targets of a version; ``version`` is the service's."""
        state = self._states.get(service.id)
        if state is None or state.record is not service:
            state = self._renewed(service, state)
        group = state.groups.get(version.name)
        return group if group is not None else self._new_group(state, service, version)

    # --- configuration ---
    def _renewed(self, service: ServiceRecord, state: ServiceState | None) -> ServiceState:
        """The service's state with this record's policies, unless the record is one that a late request holds."""
        if state is None:
            state = self._states[service.id] = ServiceState(service, self._now(), self.affinity_key)
        elif self._services().get(service.name) is not service:
            return state
        state.record = service
        state.sticky = service.load_balancing.sticky if service.load_balancing is not None else None
        concurrency = service.concurrency
        state.concurrency = concurrency or _CONCURRENCY
        if concurrency is None or not concurrency.adaptive:
            state.limit = None
        elif state.limit is None:
            state.limit = AdaptiveLimit(concurrency)
        else:
            state.limit.apply(concurrency)
        for name in list(state.groups):
            version = service.versions.get(name)
            if version is None:
                del state.groups[name]
            else:
                self._fill(state.groups[name], service, version)
        if service.circuit_resets != state.circuit_resets:
            state.circuit_resets = service.circuit_resets
            _close_circuits(state)
        return state

    def _new_group(self, state: ServiceState, service: ServiceRecord, version: VersionRecord) -> TargetGroup:
        group = TargetGroup(random=self._random)
        group.state = state
        self._fill(group, service, version)
        if state.record is service:
            state.groups[version.name] = group
        return group

    def _fill(self, group: TargetGroup, service: ServiceRecord, version: VersionRecord) -> None:
        """Give the group the version's targets, with what is known of them."""
        known = {target.record.origin: target for target in group.targets}
        targets = []
        for record, weight in zip(version.targets, version.weights, strict=True):
            target = known.get(record.origin) or Target(record, group)
            target.record = record
            target.weight = weight
            self._apply_policies(target, service)
            targets.append(target)
        group.apply((service.load_balancing or _BALANCING).strategy, targets)

    def _apply_policies(self, target: Target, service: ServiceRecord) -> None:
        breaker = service.circuit_breaker or _BREAKER
        if not breaker.enabled:
            target.circuit = None
        else:
            failures, open_s = breaker.failures or self._failures, breaker.open_s or self._open_s
            if target.circuit is None:
                target.circuit = Circuit(failures, open_s)
            target.circuit.failures, target.circuit.open_s = failures, open_s
        target.limit = (service.concurrency or _CONCURRENCY).max_connections
        checks = service.health_checks
        target.passive = checks.passive if checks is not None else None
        if target.passive is None:
            target.ejected_until = 0.0
        is_ill = target.record.origin in self._unhealthy.get(service.id, ())
        target.is_healthy = not (is_ill and check_of(service) is not None)
        is_sticky = service.load_balancing is not None and service.load_balancing.sticky is not None
        target.name = target_name(self.affinity_key, service.id, target.record.origin) if is_sticky else b""

    # --- what the agent tells ---
    def set_health(self, service_id: str, origin_url: str, is_healthy: bool) -> None:
        """What the agent's probes say of a target, from now on. Raises ValueError for what is no target's URL."""
        origin = TargetRecord.from_url(origin_url)[0].origin
        ill = self._unhealthy.setdefault(service_id, set())
        if is_healthy:
            ill.discard(origin)
            if not ill:
                del self._unhealthy[service_id]
        else:
            ill.add(origin)
        self._look_again(service_id)

    def forget_health(self) -> None:
        """The agent is about to tell everything anew: all targets count as healthy until then."""
        services, self._unhealthy = list(self._unhealthy), {}
        for service_id in services:
            self._look_again(service_id)

    def _look_again(self, service_id: str) -> None:
        state = self._states.get(service_id)
        if state is None:
            return
        for name, group in state.groups.items():
            version = state.record.versions.get(name)
            if version is not None:
                self._fill(group, state.record, version)

    def reset_circuits(self, service_id: str) -> None:
        state = self._states.get(service_id)
        if state is not None:
            _close_circuits(state)

    # --- upkeep ---
    def prune(self) -> None:
        """Forget services that are gone, and apply what has changed of the others. For the sweep: it does nothing while
        the services are the same."""
        services = self._services()
        if services is self._pruned_for or not services:
            return
        self._pruned_for = services
        ids = {service.id for service in services.values()}
        self._states = {key: state for key, state in self._states.items() if key in ids}
        for state in self._states.values():  # also where no request comes: a reset shall be seen to have worked
            record = services.get(state.record.name)
            if record is not None and record is not state.record and record.id == state.record.id:
                self._renewed(record, state)
        self._unhealthy = {key: ill for key, ill in self._unhealthy.items() if key in ids}

    def states(self) -> Iterator[ServiceState]:
        """Of services that have had a request."""
        return iter(self._states.values())

    def targets(self) -> Iterator[tuple[ServiceRecord, str, Target]]:
        """Service, name of the version, target: for metrics."""
        for state in self._states.values():
            for name, group in state.groups.items():
                for target in group.targets:
                    yield state.record, name, target


def _close_circuits(state: ServiceState) -> None:
    for group in state.groups.values():
        for target in group.targets:
            if target.circuit is not None:
                target.circuit.reset()
        group.refresh()
