"""Active health checks: what is asked of a service's targets, and what the answers come to (R8). Pure; how targets are
asked stands in `routing.probing`."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from msgspec.structs import replace

from routing.policies import ActiveCheck
from routing.records import ServiceRecord, TargetRecord


@dataclass(frozen=True, slots=True)
class Probe:
    """What is asked of one target. ``versions`` are those that it serves."""

    target: TargetRecord
    versions: tuple[str, ...]
    check: ActiveCheck  # its path is never empty


@dataclass(frozen=True, slots=True)
class Finding:
    """``status`` of the answer, None where there was none; ``error`` is a sentence, empty when all is well."""

    is_good: bool
    ms: float
    status: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is held of a target: healthy until proven otherwise. ``streak`` results in a row say the opposite."""

    is_healthy: bool = True
    streak: int = 0


def judged(standing: Standing, is_good: bool, check: ActiveCheck) -> Standing:
    """After one more result. Only a threshold's number of them in a row turns it."""
    if is_good == standing.is_healthy:
        return Standing(standing.is_healthy)
    streak = standing.streak + 1
    wanted = check.healthy_threshold if is_good else check.unhealthy_threshold
    return Standing(is_good) if streak >= wanted else Standing(standing.is_healthy, streak)


def check_of(service: ServiceRecord) -> ActiveCheck | None:
    """How the service's targets are probed. A healthEndpoint alone asks for probes with the defaults; a policy without
    ``active`` asks for none."""
    if not service.is_active:
        return None
    policy = service.health_checks
    check = policy.active if policy is not None else ActiveCheck() if service.health_endpoint else None
    return check and with_path(check, service)


def with_path(check: ActiveCheck, service: ServiceRecord) -> ActiveCheck:
    path = check.path or service.health_endpoint or "/"
    return replace(check, path=path if path.startswith("/") else f"/{path}")


def probes_of(service: ServiceRecord, check: ActiveCheck | None = None) -> dict[str, Probe]:
    """By the target's URL, each once, whichever of the versions it serves."""
    check = check or check_of(service)
    if check is None:
        return {}
    probes: dict[str, Probe] = {}
    for version in service.versions.values():
        for target in version.targets:
            url = url_of(target)
            known = probes.get(url)
            versions = (version.name,) if known is None else (*known.versions, version.name)
            probes[url] = Probe(target, versions, check)
    return probes


def url_of(target: TargetRecord) -> str:
    """Scheme, host and port, the port always said: the name that a target has in what the gateway tells of it."""
    scheme, host, port = target.origin
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def is_address(host: str) -> bool:
    """Else it is a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
