"""How limits are told to clients (draft-ietf-httpapi-ratelimit-headers-10)."""

from __future__ import annotations

from access.records import LimitPolicy
from core.faults import PolicyDenied


def fields(policy: LimitPolicy, remaining: int, seconds: int) -> bytes:
    """The RateLimit-Policy and RateLimit lines, each with its CRLF. ``seconds`` last until the bucket is full."""
    return b"%b%d;t=%d\r\n" % (policy.fields, remaining, seconds)


def refusal(policy: LimitPolicy, seconds: int) -> PolicyDenied:
    """The 429 of a subject that may try again in ``seconds``."""
    return PolicyDenied(
        "rate_limited",
        f"The limit of {policy.limit} requests per {policy.window_s} seconds is used up; try again in {seconds} s.",
        headers=(
            (b"ratelimit-policy", f'"{policy.name}";q={policy.limit};w={policy.window_s}'.encode()),
            (b"ratelimit", f'"{policy.name}";r=0;t={seconds}'.encode()),
        ),
        members={"violated-policies": [policy.name]},
        retry_after_s=seconds,
    )
