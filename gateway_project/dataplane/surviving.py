"""What a worker tells of retries, of shedding, and of the limits that it has found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway_project.dataplane.metrics import MAX_TEMPLATES
from routing.target_registry import TargetRegistry


def surviving_counters(targets: TargetRegistry) -> Iterator[list[Any]]:
    """``counters`` of a ``metrics`` message (`core.wire`), for at most as many services as there may be templates."""
    for number, state in enumerate(targets.states()):
        if number >= MAX_TEMPLATES:
            return
        name, budget = state.record.name, state.budget
        for result, count in (("sent", budget.taken), ("over_budget", budget.refused)):
            if count:
                yield ["api_gateway_retries_total", {"service": name, "result": result}, count]
        if state.limit is not None:
            for priority, count in enumerate(state.limit.shed):
                if count:
                    labels = {"service": name, "priority": str(priority)}
                    yield ["api_gateway_shed_requests_total", labels, count]


def surviving_gauges(targets: TargetRegistry) -> list[tuple[str, dict[str, str], float]]:
    """Of services whose limit adapts."""
    return [
        ("api_gateway_concurrency_limit", {"service": state.record.name}, state.limit.limit)
        for state in targets.states()
        if state.limit is not None
    ][:MAX_TEMPLATES]
