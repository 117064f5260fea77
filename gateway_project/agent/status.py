"""What this host holds of its targets: shown on ``/metrics``, and written down for admins, who see all hosts (R8, R9).

Workers report circuits, ejections and requests under way once a second; the prober knows the rest. The rows follow
within a second where something has changed; the times in them follow now and then.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import Q
from django.db.models.functions import Now
from prometheus_client.core import Metric

from gateway_project.agent.database import DatabaseAway, DatabaseThread
from gateway_project.agent.probes import Key, Watched
from routing.models import TargetSource, TargetStatus

CLOSED, OPEN, HALF_OPEN = 0, 1, 2  # rule 28
MAX_SERIES = 1000  # of targets on /metrics; what is beyond them counts under ``other``
_WORST = (CLOSED, HALF_OPEN, OPEN)
_CIRCUITS = {
    CLOSED: TargetStatus.Circuit.CLOSED,
    OPEN: TargetStatus.Circuit.OPEN,
    HALF_OPEN: TargetStatus.Circuit.HALF_OPEN,
}
_LOOK_S = 1.0
_RENEW_S = (10.0, 600.0)  # between renewals of all rows, for the times in them
_RENEWED_PER_S = 50  # rows, however many there are
_CLEAN_S = 600.0
_FORGOTTEN = timedelta(hours=1)
_BATCH = 500
_MOST_ERROR = 300

RowKey = tuple[str, str, str]  # service id, version, the target's URL


@dataclass(frozen=True, slots=True)
class Held:
    """One target in one version. Times are epoch seconds, 0 where nothing has been found yet."""

    service_name: str
    source: str = TargetSource.STATIC
    is_probed: bool = False
    is_healthy: bool = True
    health_since: float = 0.0
    checked_at: float = 0.0
    last_status: int | None = None
    last_ms: float | None = None
    last_error: str = ""
    circuit: int = CLOSED
    circuit_since: float = 0.0
    is_ejected: bool = False
    in_flight: int = 0

    @property
    def essence(self) -> tuple[Any, ...]:
        """What admins should see at once when it changes."""
        return (self.source, self.is_probed, self.is_healthy, self.last_error, self.circuit, self.is_ejected)


class StatusBoard:
    """Joins what the prober, discovery and the workers know. ``watched`` is the prober's, ``pids`` gives the workers
    that are connected, ``sources`` the service's name and the source of each target that was found."""

    def __init__(
        self,
        watched: Mapping[Key, Watched],
        pids: Callable[[], Collection[int]],
        sources: Callable[[], Mapping[RowKey, tuple[str, str]]] = dict,
    ) -> None:
        self._watched = watched
        self._pids = pids
        self._sources = sources
        self._reports: dict[int, dict[RowKey, tuple[str, int, bool, int]]] = {}  # by worker's pid
        self._circuits: dict[RowKey, tuple[int, float]] = {}  # since when they are as they are

    def take(self, pid: int, report: Iterable[Any]) -> None:
        """A worker's ``targets`` (`core.wire`). Raises ValueError or TypeError for what is none."""
        self._reports[pid] = {
            (str(service), str(version), str(url)): (str(name), _circuit(circuit), bool(ejected), int(in_flight))
            for service, name, version, url, circuit, ejected, in_flight in report
        }

    def held(self, now: float) -> dict[RowKey, Held]:
        """Every target that is probed, was found, or has had a request; ``now`` is epoch seconds."""
        held = {
            (watched.key[0], version, watched.key[1]): _probed(watched)
            for watched in self._watched.values()
            for version in watched.probe.versions
        }
        for key, (name, source) in self._sources().items():
            held[key] = replace(held.get(key) or Held(name), source=source)
        pids = self._pids()
        self._reports = {pid: report for pid, report in self._reports.items() if pid in pids}
        for report in self._reports.values():
            for key, (name, circuit, is_ejected, in_flight) in report.items():
                known = held.get(key) or Held(name)
                held[key] = replace(
                    known,
                    circuit=max(known.circuit, circuit, key=_WORST.index),
                    is_ejected=known.is_ejected or is_ejected,
                    in_flight=known.in_flight + in_flight,
                )
        return self._with_times(held, now)

    def _with_times(self, held: dict[RowKey, Held], now: float) -> dict[RowKey, Held]:
        former, self._circuits = self._circuits, {}
        for key, each in held.items():
            circuit, since = former.get(key, (CLOSED, 0.0))
            since = since if circuit == each.circuit else now
            if since:
                self._circuits[key] = each.circuit, since
                held[key] = replace(each, circuit_since=since)
        return held

    # --- /metrics ---

    def metrics(self) -> Iterator[Metric]:
        held = self.held(time.time())
        by_target: dict[tuple[str, str, str], Held] = {}
        by_service: dict[str, list[Held]] = {}
        for (_, version, url), each in sorted(held.items()):
            by_service.setdefault(each.service_name, []).append(each)
            labels = each.service_name, version, url
            if len(by_target) >= MAX_SERIES:
                labels = "other", "other", "other"
                each = _joined(by_target.get(labels), each)
            by_target[labels] = each
        yield from _target_metrics(by_target)
        yield from _service_metrics(by_service)


def _circuit(value: Any) -> int:
    if value not in _CIRCUITS:
        raise ValueError(f"{value!r} is no state of a circuit")
    return int(value)


def _probed(watched: Watched) -> Held:
    finding = watched.finding
    return Held(
        service_name=watched.service_name,
        is_probed=True,
        is_healthy=watched.is_healthy,
        health_since=watched.since,
        checked_at=watched.checked_at,
        last_status=finding.status if finding else None,
        last_ms=finding.ms if finding else None,
        last_error=finding.error if finding else "",
    )


def _joined(known: Held | None, other: Held) -> Held:
    """The worst of several."""
    if known is None:
        return other
    return replace(
        known,
        is_healthy=known.is_healthy and other.is_healthy,
        circuit=max(known.circuit, other.circuit, key=_WORST.index),
        is_ejected=known.is_ejected or other.is_ejected,
        in_flight=known.in_flight + other.in_flight,
    )


def _target_metrics(held: Mapping[tuple[str, str, str], Held]) -> Iterator[Metric]:
    healthy = Metric("api_gateway_target_healthy", "1 while the probes of this host hold a target for healthy", "gauge")
    circuit = Metric("api_gateway_circuit_state", "Circuit of a target: 0 closed, 1 open, 2 half-open", "gauge")
    ejected = Metric("api_gateway_target_ejected", "1 while a target is ejected for its failures", "gauge")
    in_flight = Metric("api_gateway_target_in_flight", "Requests under way at a target", "gauge")
    for (service, version, url), each in held.items():
        labels = {"service": service, "version": version, "target": url}
        healthy.add_sample(healthy.name, labels, each.is_healthy)
        circuit.add_sample(circuit.name, labels, each.circuit)
        ejected.add_sample(ejected.name, labels, each.is_ejected)
        in_flight.add_sample(in_flight.name, labels, each.in_flight)
    yield from (healthy, circuit, ejected, in_flight)


def _service_metrics(by_service: Mapping[str, list[Held]]) -> Iterator[Metric]:
    """Under the names that document 004 alerts on."""
    circuit = Metric("api_gateway_circuit_breaker_state", "The worst circuit of a service's targets", "gauge")
    health = Metric("api_gateway_service_health", "0 when no target of a service is healthy, else 1", "gauge")
    for service, held in by_service.items():
        labels = {"service": service}
        circuit.add_sample(circuit.name, labels, max((each.circuit for each in held), key=_WORST.index))
        health.add_sample(health.name, labels, any(each.is_healthy for each in held))
    yield from (circuit, health)


# --- rows --------------------------------------------------------------------------------------------------------
class StatusWriter:
    """Keeps the host's rows as the board has it."""

    def __init__(self, host: str, board: StatusBoard) -> None:
        self._host = host
        self._board = board
        self._database = DatabaseThread("target status")
        self._written: dict[RowKey, Held] | None = None  # None: unknown what the table holds
        self._next_renewal = self._next_clean = 0.0  # monotonic

    async def unhealthy_before(self) -> set[Key]:
        """The targets that this host held for unhealthy when its last agent ended, if that was lately."""
        try:
            return await self._database.run(_unhealthy, self._host)
        except DatabaseAway:
            return set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await asyncio.sleep(_LOOK_S)
                try:
                    await self.write()
                except DatabaseAway:
                    self._written = None  # the follower says so, once
        finally:
            await self._database.close()

    async def write(self) -> None:
        """Bring the rows up to date. Raises DatabaseAway."""
        now = time.monotonic()
        present = self._board.held(time.time())
        if self._written is None:
            await self._database.run(_remove_all_but, self._host, present.keys())
            self._written, self._next_renewal = {}, 0.0
        if gone := [key for key in self._written if key not in present]:
            await self._database.run(_remove, self._host, gone)
        changed = present
        if now < self._next_renewal:
            former = self._written
            changed = {
                key: held for key, held in present.items() if key not in former or former[key].essence != held.essence
            }
        else:
            shortest_s, longest_s = _RENEW_S
            self._next_renewal = now + min(max(shortest_s, len(present) / _RENEWED_PER_S), longest_s)
        if changed:
            await self._database.run(_store, self._host, changed)
        self._written = present
        if now >= self._next_clean:
            self._next_clean = now + _CLEAN_S
            await self._database.run(forget_gone_hosts)


def _unhealthy(host: str) -> set[Key]:
    lately = Q(seen_at__gt=Now() - _FORGOTTEN)
    rows = TargetStatus.objects.filter(lately, host=host, is_probed=True, is_healthy=False)
    return set(rows.values_list("service_id", "url"))


def _store(host: str, held: Mapping[RowKey, Held]) -> None:
    """Seen by the database's clock, which is the one that all hosts share (`core.propagation`)."""
    unique = ["host", "service", "version", "url"]
    updated = [field.name for field in TargetStatus._meta.concrete_fields if field.name not in {*unique, "id"}]
    TargetStatus.objects.bulk_create(
        [_row(host, key, each) for key, each in held.items()],
        batch_size=_BATCH,
        update_conflicts=True,
        unique_fields=unique,
        update_fields=updated,
    )


def _row(host: str, key: RowKey, held: Held) -> TargetStatus:
    service_id, version, url = key
    return TargetStatus(
        host=host,
        service_id=service_id,
        version=version,
        url=url,
        source=held.source,
        is_probed=held.is_probed,
        is_healthy=held.is_healthy,
        health_since=_moment(held.health_since),
        checked_at=_moment(held.checked_at),
        last_status=held.last_status,
        last_ms=None if held.last_ms is None else round(held.last_ms),
        last_error=held.last_error[:_MOST_ERROR],
        circuit=_CIRCUITS[held.circuit],
        circuit_since=_moment(held.circuit_since),
        is_ejected=held.is_ejected,
        seen_at=Now(),
    )


def _moment(epoch_s: float) -> datetime | None:
    return datetime.fromtimestamp(epoch_s, UTC) if epoch_s else None


def _remove(host: str, keys: Iterable[RowKey]) -> None:
    by_version: dict[tuple[str, str], list[str]] = {}
    for service_id, version, url in keys:
        by_version.setdefault((service_id, version), []).append(url)
    for (service_id, version), urls in by_version.items():
        for start in range(0, len(urls), _BATCH):
            part = urls[start : start + _BATCH]
            TargetStatus.objects.filter(host=host, service_id=service_id, version=version, url__in=part).delete()


def _remove_all_but(host: str, kept: Collection[RowKey]) -> None:
    rows = TargetStatus.objects.filter(host=host).values_list("service_id", "version", "url")
    _remove(host, [key for key in rows if key not in kept])


def forget_gone_hosts() -> None:
    """Their agents would have said so long ago that they live."""
    TargetStatus.objects.filter(seen_at__lt=Now() - _FORGOTTEN).delete()
