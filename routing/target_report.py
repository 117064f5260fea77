"""What hosts say of a service's targets, and asking the targets oneself: for the admin API and the panel."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Now
from msgspec.structs import replace

from access.addresses import EgressPolicy
from core.faults import ClientFault
from core.managed_secrets import host_references
from core.models import GatewayNode
from routing.compile import compile_service
from routing.health import Finding, Probe, check_of, probes_of, with_path
from routing.models import ServiceConfig, TargetSource, TargetStatus
from routing.policies import ActiveCheck
from routing.probing import Asker
from routing.records import ServiceRecord
from routing.upstream.tls import ClientContexts

# What a host said counts while the host lives: its agent writes what changes, and takes away what is gone.
_LIVES = GatewayNode.objects.filter(host=OuterRef("host"), seen_at__gt=Now() - timedelta(seconds=20))
IS_CURRENT = Q(Exists(_LIVES))
MOST_ASKED = 200  # targets in one health check by hand
_AT_ONCE = 32
_LONGEST_S = 10.0  # for one probe, while somebody waits


@dataclass(frozen=True, slots=True)
class TargetReport:
    """A target and what each host holds of it; no host: it has not been needed or probed yet."""

    version: str
    url: str
    hosts: Sequence[TargetStatus]

    @property
    def is_amiss(self) -> bool:
        return any(_is_amiss(row) for row in self.hosts)


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """``check`` is how the targets are probed, None when they are not."""

    check: ActiveCheck | None
    targets: Sequence[TargetReport]

    @property
    def is_healthy(self) -> bool:
        return not any(target.is_amiss for target in self.targets)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a target answered just now."""

    versions: Sequence[str]
    url: str
    finding: Finding


def report_on(service: ServiceConfig) -> ServiceReport:
    """The targets of a service as every host sees them. Raises ClientFault ``conflict`` for a row that does not
    compile."""
    record = _with_found(service)
    rows = list(TargetStatus.objects.filter(IS_CURRENT, service=service).order_by("host"))
    return ServiceReport(check_of(record), _by_target(record, rows))


def ask_targets(service: ServiceConfig) -> tuple[ActiveCheck, list[Asked]]:
    """Ask each target once, now, from this host, as health checks would. Raises ClientFault ``conflict`` when there is
    none."""
    record = _with_found(service)
    check = check_of(record) or with_path(ActiveCheck(), record)
    probes = probes_of(record, replace(check, timeout_s=min(check.timeout_s, _LONGEST_S)))
    if not probes:
        raise ClientFault("conflict", f"{service.name} has no target that could be asked.")
    findings = asyncio.run(_ask_all(dict(list(probes.items())[:MOST_ASKED])))
    return check, [Asked(probes[url].versions, url, finding) for url, finding in findings.items()]


def _is_amiss(row: TargetStatus) -> bool:
    return not row.is_healthy or row.is_ejected or row.circuit != TargetStatus.Circuit.CLOSED


def _by_target(record: ServiceRecord, rows: list[TargetStatus]) -> list[TargetReport]:
    """Those of the configuration, and whatever else hosts use."""
    targets: dict[tuple[str, str], list[TargetStatus]] = {}
    for url, probe in probes_of(record, ActiveCheck()).items():
        targets |= {(version, url): [] for version in probe.versions}
    for row in rows:
        targets.setdefault((row.version, row.url), []).append(row)
    return [TargetReport(version, url, hosts) for (version, url), hosts in sorted(targets.items())]


def _with_found(service: ServiceConfig) -> ServiceRecord:
    """With what hosts say that they have found beside the configuration."""
    try:
        return _record(service)
    except ValueError as error:  # the row was changed by hand
        raise ClientFault("conflict", f"{service.name} does not compile: {error}") from None


def _record(service: ServiceConfig) -> ServiceRecord:
    wire = compile_service(service)
    record = ServiceRecord.from_wire(wire)
    dns = record.discovery.dns if record.discovery is not None else None
    name = dns.name.rstrip(".") if dns is not None and dns.type != "SRV" else ""
    discovered: dict[str, dict[str, list[Any]]] = {}
    for row in TargetStatus.objects.filter(IS_CURRENT, service=service).exclude(source=TargetSource.STATIC):
        host = name if row.source == TargetSource.DNS else ""
        discovered.setdefault(row.version, {})[row.url] = [row.url, 1, host]
    wire["discovered"] = {version: list(entries.values()) for version, entries in discovered.items()}
    return ServiceRecord.from_wire(wire)


async def _ask_all(probes: dict[str, Probe]) -> dict[str, Finding]:
    contexts = ClientContexts(host_references().resolve)
    asker = Asker(EgressPolicy(settings.EGRESS_ALLOW).permits, contexts.context)
    places = asyncio.Semaphore(_AT_ONCE)

    async def ask(probe: Probe) -> Finding:
        async with places:
            return await asker.ask(probe)

    try:
        return dict(zip(probes, await asyncio.gather(*map(ask, probes.values())), strict=True))
    finally:
        await asker.aclose()


@dataclass(frozen=True, slots=True)
class Health:
    """What hosts say of a service's targets, each counted once: how many are used or probed, how many are amiss."""

    targets: int = 0
    unhealthy: int = 0
    ejected: int = 0
    open_circuits: int = 0

    @property
    def is_good(self) -> bool:
        return not (self.unhealthy or self.ejected or self.open_circuits)


def health_of(services: Iterable[str]) -> dict[str, Health]:
    """By the ids of those services of which any host says anything."""
    rows = TargetStatus.objects.filter(IS_CURRENT, service__in=list(services)).order_by()
    targets: dict[str, dict[tuple[str, str], list[TargetStatus]]] = {}
    for row in rows:
        targets.setdefault(row.service_id, {}).setdefault((row.version, row.url), []).append(row)
    return {pk: _health(list(found.values())) for pk, found in targets.items()}


def troubled_services() -> int:
    """How many services have a target that any host found unhealthy, or to which its circuit is not closed."""
    is_well = Q(is_healthy=True, is_ejected=False, circuit=TargetStatus.Circuit.CLOSED)
    rows = TargetStatus.objects.filter(IS_CURRENT, service__in=ServiceConfig.objects.all()).exclude(is_well)
    return rows.order_by().values("service").distinct().count()


def _health(targets: list[list[TargetStatus]]) -> Health:
    return Health(
        len(targets),
        sum(any(not row.is_healthy for row in rows) for rows in targets),
        sum(any(row.is_ejected for row in rows) for rows in targets),
        sum(any(row.circuit != TargetStatus.Circuit.CLOSED for row in rows) for rows in targets),
    )


def trouble() -> dict[str, int]:
    """How many targets are unhealthy, ejected, or have a circuit that is not closed, on any host."""
    rows = TargetStatus.objects.filter(IS_CURRENT)
    targets = rows.order_by().values("service_id", "version", "url")
    return {
        "unhealthy": targets.filter(is_healthy=False).distinct().count(),
        "ejected": targets.filter(is_ejected=True).distinct().count(),
        "openCircuits": targets.exclude(circuit=TargetStatus.Circuit.CLOSED).distinct().count(),
    }
