"""How limits are told to clients (draft-ietf-httpapi-ratelimit-headers-10)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from access.limits.charges import LimitPolicy
from core.faults import InternalFault, PolicyDenied

DEGRADED_RETRY_S = 2


class Told(NamedTuple):
    """What a client reads of one limit. ``seconds``: until its budget is back, or until the request would be admitted
    where it ``refused`` it; None where nobody knows (requests under way)."""

    policy: LimitPolicy
    remaining: int
    seconds: int | None
    refused: bool = False


def fields(policy: LimitPolicy, remaining: int, seconds: int) -> bytes:
    """The RateLimit-Policy and RateLimit lines, each with its CRLF. ``seconds`` last until the bucket is full."""
    return b"%b%d;t=%d\r\n" % (policy.fields, remaining, seconds)


def fields_of_all(told: Iterable[Told]) -> bytes:
    """The same of several limits."""
    items = list(told)
    policies, states = ",".join(each.policy.item for each in items), ",".join(map(_state, items))
    return f"RateLimit-Policy: {policies}\r\nRateLimit: {states}\r\n".encode() if items else b""


def legacy_fields(told: Sequence[Told]) -> bytes:
    """X-RateLimit-* of the limit that will refuse first. No standard says what they mean: Reset is seconds from now,
    as in RateLimit."""
    return b"".join(b"%b: %b\r\n" % field for field in _legacy(told))


def _legacy(told: Sequence[Told]) -> tuple[tuple[bytes, bytes], ...]:
    if not told:
        return ()
    tightest = min(told, key=lambda each: (not each.refused, each.remaining / each.policy.limit))
    return (
        (b"x-ratelimit-limit", b"%d" % tightest.policy.limit),
        (b"x-ratelimit-remaining", b"%d" % tightest.remaining),
        (b"x-ratelimit-reset", b"%d" % (tightest.seconds or 0)),
    )


def refusal(policy: LimitPolicy, seconds: int, *, has_legacy: bool = False) -> PolicyDenied:
    """The 429 of a subject that may try again in ``seconds``."""
    return refusal_of_all([Told(policy, 0, seconds, refused=True)], has_legacy=has_legacy)


def fields_with_legacy(policy: LimitPolicy, remaining: int, seconds: int) -> bytes:
    return fields(policy, remaining, seconds) + legacy_fields([Told(policy, remaining, seconds)])


def refusal_of_all(told: Sequence[Told], *, has_legacy: bool = False) -> PolicyDenied:
    """The 429 of a request that at least one limit refused. Retry-After is when all of those would admit it."""
    legacy = _legacy(told) if has_legacy else ()
    violated = [each for each in told if each.refused]
    latest = max(violated, key=lambda each: each.seconds or 0)
    wait_s = max(latest.seconds or 0, 1)
    return PolicyDenied(
        "quota_exceeded" if any(each.policy.algorithm == "quota" for each in violated) else "rate_limited",
        f"{_reason(latest.policy)}; try again in {wait_s} s.",
        headers=(
            (b"ratelimit-policy", ",".join(each.policy.item for each in told).encode()),
            (b"ratelimit", ",".join(map(_state, told)).encode()),
            *legacy,
        ),
        members={"violated-policies": list(dict.fromkeys(each.policy.name for each in violated))},
        retry_after_s=wait_s,
    )


def degraded(policy: LimitPolicy) -> InternalFault:
    """The 503 of a limit that admits nobody while those who count together cannot."""
    return InternalFault(
        "dependency_unavailable",
        "The gateway cannot count requests at the moment, and this limit admits none that are not counted.",
        members={"violated-policies": [policy.name]},
        retry_after_s=DEGRADED_RETRY_S,
    )


def _state(told: Told) -> str:
    state = f'"{told.policy.name}";r={told.remaining}'
    return state if told.seconds is None else f"{state};t={told.seconds}"


def _reason(policy: LimitPolicy) -> str:
    if policy.algorithm == "concurrency":
        return f"{policy.limit} requests are under way, which is the limit"
    if policy.algorithm == "quota":
        return f"The quota of {policy.limit} requests per {policy.period} is used up"
    return f"The limit of {policy.limit} requests per {policy.window_s} seconds is used up"
