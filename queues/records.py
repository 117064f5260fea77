"""Queue routes as workers hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class QueueRouteRecord:
    """Enough to authorize and validate a queue request; the agent knows the rest by ``id``."""

    id: str
    tenant_id: str
    name: str
    arguments: str  # "members" or "body"

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> QueueRouteRecord:
        return cls(id=wire["id"], tenant_id=wire["tenant"], name=wire["name"], arguments=wire["arguments"])
