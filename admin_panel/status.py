"""Which configuration is in force, and which nodes run it: the line in the header and the ending of a toast."""

from dataclasses import dataclass

from django.db.models import Max
from django.utils import timezone

from admin_panel.wording import count_of
from core.models import ConfigRevision, GatewayNode
from core.propagation import LIVE_FOR, wait_for_nodes
from routing.models import GatewayPolicies


@dataclass(frozen=True, slots=True)
class ConfigStatus:
    """``tone`` is good, warn, bad or off; ``summary`` fits into the header, ``explanation`` says what it means."""

    revision: int
    tone: str
    summary: str
    explanation: str


def config_status() -> ConfigStatus:
    revision = latest_revision()
    nodes = live_nodes()
    behind = [node.id for node in nodes if node.applied_revision < revision]
    problems = max((len(node.problems) for node in nodes), default=0)
    if not nodes:
        return ConfigStatus(revision, "off", "no node running", "No gateway process has reported lately.")
    summary = f"{len(nodes) - len(behind)}/{count_of(len(nodes), 'node')} in sync"
    if behind:
        return ConfigStatus(revision, "warn", summary, f"Still on an older revision: {', '.join(behind[:5])}.")
    if problems:
        explanation = _explained({str(each.get("kind")) for node in nodes for each in node.problems})
        return ConfigStatus(revision, "warn", f"{summary}, {count_of(problems, 'problem')}", explanation)
    return ConfigStatus(revision, "good", summary, f"Every node runs revision {revision}.")


def _explained(kinds: set[str]) -> str:
    limits = "Redis does not answer, so limits are not counted together" if "limits" in kinds else ""
    rows = "some objects do not compile, or need a secret that is not there" if kinds - {"limits"} else ""
    said = "; ".join(filter(None, (limits, rows)))
    return f"{said[:1].upper()}{said[1:]}: see Home."


def latest_revision() -> int:
    return int(ConfigRevision.objects.aggregate(latest=Max("number"))["latest"] or 0)


def is_maintained() -> bool:
    """Whether the whole gateway is under maintenance."""
    return GatewayPolicies.objects.filter(maintenance__isnull=False).exists()


def live_nodes() -> list[GatewayNode]:
    return list(GatewayNode.objects.filter(seen_at__gte=timezone.now() - LIVE_FOR))


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Who runs a revision by now. ``pending`` holds the ids of nodes that do not."""

    number: int
    live: int
    pending: list[str]


def acknowledgement(number: int) -> Acknowledgement:
    """Waits up to a second for the nodes (rule 30)."""
    pending = wait_for_nodes(number)
    return Acknowledgement(number, len(live_nodes()), pending)
