"""On what terms requests are forwarded: a route's word, else its service's, else the setting's (rule 9)."""

from __future__ import annotations

from dataclasses import dataclass

from routing.policies import Retries
from routing.records import RouteRecord, ServiceRecord

IDLE_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
DEFAULT_RETRIES = Retries()


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms an exchange is forwarded: time limits in seconds (rule 9), and what its route declares."""

    first_byte_s: float  # of each try: connecting, sending a bodiless request, and the answer's first byte
    connect_s: float = CONNECT_TIMEOUT_S
    idle_s: float = IDLE_TIMEOUT_S
    total_s: float | None = None
    may_resend: bool = False  # non-idempotent methods are safe to send again (rule 8)
    pass_credentials: bool = False
    retries: Retries | None = None


def forwarding_terms(service: ServiceRecord, route: RouteRecord | None, request_timeout_s: float) -> Terms:
    """A route's own word counts, else its service's, else the setting's."""
    first_byte_s = service.request_timeout_s or request_timeout_s
    connect_s, idle_s, total_s = service.connect_timeout_s, service.idle_timeout_s, service.total_timeout_s
    retries = service.retries
    if route is not None:
        first_byte_s = route.request_timeout_s or first_byte_s
        connect_s = route.connect_timeout_s or connect_s
        idle_s = route.idle_timeout_s or idle_s
        total_s = route.total_timeout_s or total_s
        retries = route.retries or retries
    return Terms(
        first_byte_s,
        connect_s=connect_s or CONNECT_TIMEOUT_S,
        idle_s=idle_s or IDLE_TIMEOUT_S,
        total_s=total_s,
        may_resend=route is not None and route.retry_unsafe_methods,
        pass_credentials=route is not None and route.pass_credentials,
        retries=retries or DEFAULT_RETRIES,
    )
