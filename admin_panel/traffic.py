"""How a service's traffic falls on its versions, as bars show it."""

from collections.abc import Iterable
from dataclasses import dataclass

from routing.models import ServiceConfig, ServiceVersion

SERIES = 4  # colours of the bars; a version's place among the active ones picks one


@dataclass(frozen=True, slots=True)
class Share:
    """One version's part. ``percent`` and ``offset`` are of the whole bar; ``series`` picks the colour."""

    name: str
    weight: int
    percent: float
    offset: float
    series: int

    @property
    def shown(self) -> str:
        return percent_text(self.percent)


def percent_text(percent: float) -> str:
    return "< 1 %" if 0 < percent < 1 else f"{percent:.0f} %"


def shares(versions: Iterable[ServiceVersion]) -> list[Share]:
    """Active versions with a weight, in their order; empty when no weight decides."""
    active = [version for version in versions if version.is_active]
    placed = [(place, version) for place, version in enumerate(active) if version.weight]
    total = sum(version.weight for _, version in placed)
    found, offset = [], 0.0
    for place, version in placed:
        percent = 100 * version.weight / total
        found.append(Share(version.version, version.weight, percent, offset, series(place)))
        offset += percent
    return found


def series(place: int) -> int:
    return place % SERIES + 1


def answers_by_default(service: ServiceConfig, versions: Iterable[ServiceVersion]) -> str:
    """Who answers while no weight decides, in words; empty when nobody can."""
    if any(version.is_active and version.version == service.current_version for version in versions):
        return f"{service.current_version}, the current version"
    return "the default URL" if service.default_url else ""
