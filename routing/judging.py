"""A rollout's judge: what the numbers of the new version, beside those of the others, mean for the next step.

Pure: numbers in, a verdict with its reason out. Nothing is judged below the plan's smallest sample.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import gcd

from routing.policies import RolloutPlan

# Upper bounds of the buckets, each a fifth wider than the one before, so that a quotient of two quantiles means
# something: 0.5 ms to 60 s.
LATENCY_S = tuple(0.0005 * 1.2**number for number in range(65))
_WHOLE = 10_000  # the largest weight, and a share of 100 % in hundredths of a percent
_QUANTILE = 0.95


def latency_bucket(seconds: float) -> int:
    return bisect_left(LATENCY_S, seconds)


@dataclass(frozen=True, slots=True)
class Numbers:
    """What some version did: requests, how many of them failed, and their latencies by bucket of `LATENCY_S`."""

    requests: int = 0
    errors: int = 0
    latency: tuple[int, ...] = (0,) * (len(LATENCY_S) + 1)

    @property
    def error_percent(self) -> float:
        return 100 * self.errors / self.requests if self.requests else 0.0

    @property
    def p95_s(self) -> float:
        return _quantile(self.latency, _QUANTILE)


def total(parts: Iterable[Numbers]) -> Numbers:
    """Of several hosts, times or versions."""
    listed = [Numbers(), *parts]
    latency = tuple(map(sum, zip(*(part.latency for part in listed), strict=True)))
    return Numbers(sum(part.requests for part in listed), sum(part.errors for part in listed), latency)


def _quantile(counts: Sequence[int], share: float) -> float:
    """Within its bucket, the quantile lies as if the observations there were spread evenly."""
    rank = share * sum(counts)
    below = 0
    for number, count in enumerate(counts):
        if count and below + count >= rank:
            lower = LATENCY_S[number - 1] if number else 0.0
            upper = LATENCY_S[min(number, len(LATENCY_S) - 1)]
            return lower + (upper - lower) * max(0.0, rank - below) / count
        below += count
    return 0.0


class Verdict(Enum):
    WAIT = "too few requests yet"
    CONTINUE = "good so far, the step is not over"
    PROMOTE = "the next step"
    ROLL_BACK = "back to the weights of before"
    PAUSE = "too few requests for too long: an admin decides"


@dataclass(frozen=True, slots=True)
class Judgement:
    """``reason`` is for the history: what was seen, with its numbers."""

    verdict: Verdict
    reason: str


def judge(plan: RolloutPlan, step: int, canary: Numbers, stable: Numbers, elapsed_s: float) -> Judgement:
    """What is to become of a rollout that has been at ``step`` (from 0) for ``elapsed_s``.

    ``canary`` are the new version's numbers since the step began; ``stable`` those of the versions it is compared with.
    Where the step leaves these no requests and there were too few before, the new version must be without errors but
    for the increase that the plan allows.
    """
    at = plan.steps[step]
    overdue = elapsed_s >= at.hold_s + plan.max_wait_s
    is_compared = stable.requests >= plan.min_samples
    for name, numbers in ((plan.version, canary), ("the others", stable)):
        if numbers.requests < plan.min_samples and (numbers is canary or at.percent < 100):
            few = f"{numbers.requests:,} of {plan.min_samples:,} requests to {name} after {_duration(elapsed_s)}"
            return Judgement(Verdict.PAUSE, f"paused: {few}") if overdue else Judgement(Verdict.WAIT, few)
    if failure := _failure(plan, canary, stable if is_compared else None):
        return Judgement(Verdict.ROLL_BACK, f"rolled back: {failure}, {canary.requests:,} requests")
    seen = _seen(canary, stable if is_compared else None)
    if elapsed_s < at.hold_s:
        return Judgement(Verdict.CONTINUE, f"good at {at.percent:g} %: {seen}")
    return Judgement(Verdict.PROMOTE, f"{_way(plan, step)}: {seen}")


def _failure(plan: RolloutPlan, canary: Numbers, stable: Numbers | None) -> str:
    """What is worse than the plan allows; empty when nothing is."""
    usual = stable.error_percent if stable is not None else 0.0
    if canary.error_percent > usual + plan.max_error_increase:
        return f"{canary.error_percent:.1f} % errors against {usual:.1f} %"
    ratio = plan.max_latency_ratio
    if stable is not None and ratio is not None and canary.p95_s > stable.p95_s * ratio:
        return f"p95 {_ms(canary)} against {_ms(stable)}"
    return ""


def _seen(canary: Numbers, stable: Numbers | None) -> str:
    if stable is None:
        return f"{canary.error_percent:.1f} % errors, p95 {_ms(canary)}, {canary.requests:,} requests"
    errors = f"{canary.error_percent:.1f} % errors (stable {stable.error_percent:.1f} %)"
    return f"{errors}, p95 {_ms(canary)} (stable {_ms(stable)}), {canary.requests:,} requests"


def _duration(seconds: float) -> str:
    """``45 s``, ``52 min``, ``3 h 5 min``: whole units that have passed."""
    if seconds < 60:
        return f"{int(seconds)} s"
    hours, minutes = divmod(int(seconds) // 60, 60)
    return " ".join(f"{count} {unit}" for count, unit in ((hours, "h"), (minutes, "min")) if count)


def _ms(numbers: Numbers) -> str:
    milliseconds = numbers.p95_s * 1000
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def _way(plan: RolloutPlan, step: int) -> str:
    """``5 % → 25 %``; of the last step ``100 %, done``."""
    here = f"{plan.steps[step].percent:g} %"
    return f"{here}, done" if step + 1 == len(plan.steps) else f"{here} → {plan.steps[step + 1].percent:g} %"


def weights_at(percent: float, canary: str, stable: Mapping[str, int]) -> dict[str, int]:
    """Weights with which ``canary`` gets exactly ``percent`` (a multiple of 0.01) and the others share the rest in the
    proportions of ``stable`` (weights above 0), exactly where weights up to 10,000 can, else to the nearest one."""
    share = round(percent * 100)
    rest = _WHOLE - share
    if rest == 0:
        return {canary: 100, **dict.fromkeys(stable, 0)}
    whole = sum(stable.values())
    common = gcd(*stable.values())
    parts = whole // common
    # The smallest sum of weights of which both the canary's share and every part of the rest are whole numbers.
    unit = _WHOLE // gcd(share, _WHOLE)
    smallest = unit * (parts // gcd(parts, rest * unit // _WHOLE))
    size = next((size for size in (100, 1000, _WHOLE) if size % smallest == 0), smallest)
    if size > _WHOLE:
        return {canary: share, **_nearest(rest, stable)}
    left = size * rest // _WHOLE
    return {canary: size - left, **{name: left * weight // whole for name, weight in stable.items()}}


def _nearest(size: int, stable: Mapping[str, int]) -> dict[str, int]:
    """``size`` in whole parts, by the largest remainders."""
    whole = sum(stable.values())
    shares = {name: size * weight // whole for name, weight in stable.items()}
    by_remainder = sorted(stable, key=lambda name: (-(size * stable[name] % whole), name))
    for name in by_remainder[: size - sum(shares.values())]:
        shares[name] += 1
    return shares
