"""K6: what narrows one key further than its application, compiled for workers from `access.policies.Restrictions`.

Nothing of what is decided here is remembered: hours pass, and addresses differ from one request to the next.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from access.networks import AddressRules, compile_addresses
from access.networks import refusal as not_admitted
from access.policies import DAYS, Hours, IpAccess, Restrictions
from core.faults import PolicyDenied
from core.policies import read

_DAY = 24 * 60  # minutes
_WEEK = 7 * _DAY


class Opening:
    """When a key may be used: spans of the week, in minutes since Monday began, by the clocks of ``zone``."""

    __slots__ = ("_spans", "_text", "_zone")

    def __init__(self, hours: Sequence[Hours], time_zone: str) -> None:
        self._zone = ZoneInfo(time_zone)
        self._spans = [span for each in hours for span in _spans(each)]
        self._text = "; ".join(f"{', '.join(each.days)} {each.start}-{each.end}" for each in hours)

    def is_open(self, now: float) -> bool:
        """``now`` is epoch seconds. Where clocks are turned back, the hour that comes twice counts twice."""
        local = datetime.fromtimestamp(now, self._zone)
        minute = local.weekday() * _DAY + local.hour * 60 + local.minute
        return any(start <= minute < end or start <= minute + _WEEK < end for start, end in self._spans)

    def __str__(self) -> str:
        return f"{self._text} ({self._zone.key})"


def _spans(hours: Hours) -> list[tuple[int, int]]:
    """A span that passes midnight belongs to the day on which it begins."""
    start, end = _minutes(hours.start), _minutes(hours.end)
    if end <= start:
        end += _DAY
    return [(day * _DAY + start, day * _DAY + end) for day in sorted(map(DAYS.index, hours.days))]


def _minutes(clock: str) -> int:
    hour, minute = clock.split(":")
    return int(hour) * 60 + int(minute)


@dataclass(frozen=True, slots=True)
class KeyRestrictions:
    policy: Restrictions
    addresses: AddressRules | None = field(compare=False)
    services: frozenset[str] | None
    opening: Opening | None = field(compare=False)

    @classmethod
    def of(cls, document: Any) -> KeyRestrictions:
        """Raises `core.policies.PolicyError`, a ValueError."""
        policy = read(Restrictions, document)
        return cls(
            policy=policy,
            addresses=compile_addresses(IpAccess(allow=policy.ips)),
            services=frozenset(policy.services) or None,
            opening=Opening(policy.hours, policy.time_zone) if policy.hours else None,
        )

    @property
    def is_only_quota(self) -> bool:
        """Nothing is asked of each request but what the limits ask anyway."""
        return self.addresses is None and self.services is None and self.opening is None

    def refusal(self, address: str | None, destinations: Collection[str], now: float) -> PolicyDenied | None:
        """Why a request may not pass; None: it may. ``address`` None: not known, not judged. ``destinations`` are the
        services (or the queue route) that it is to reach, ``now`` epoch seconds."""
        if self.addresses is not None and address is not None and not self.addresses.permits(address):
            return not_admitted("the key")
        if self.opening is not None and not self.opening.is_open(now):
            return PolicyDenied("key_not_allowed_now", f"The key may be used at these times: {self.opening}.")
        if self.services is not None:
            for name in destinations:
                if name not in self.services:
                    return PolicyDenied("service_not_allowed", f"The key may not be used for the service {name}.")
        return None
