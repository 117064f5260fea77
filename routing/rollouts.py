"""Gradual rollouts: a service's traffic goes over to a version step by step, each step one revision.

Admins start, promote, pause, resume and abort; `advance_rollouts`, which the agents call, judges and does the rest. All
that decides is in the row, so a rollout survives any restart, and whoever decides does so under the row's lock and only
if nobody has decided since it was read. Use-cases are as in `routing.services`.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from django.db import Error
from django.utils import timezone

from core.faults import ClientFault
from core.locks import sole_holder
from core.policies import PolicyError, plain, read
from core.revisions import Actor, RevisionWriter, locked, revision
from core.validation import FieldErrors, as_sentence, invalid
from routing.compile import phase
from routing.judging import Judgement, Numbers, Verdict, judge, total, weights_at
from routing.models import Rollout, ServiceConfig, ServiceVersion
from routing.policies import RolloutPlan
from routing.services import set_weights
from routing.traffic import numbers_of

logger = logging.getLogger("portcullis.rollouts")

Status = Rollout.Status
_ENDS = {
    Status.COMPLETED: "is completed",
    Status.ROLLED_BACK: "was rolled back",
    Status.ABORTED: "was aborted",
    Status.SUPERSEDED: "was superseded",
}


def plan_of(rollout: Rollout) -> RolloutPlan:
    return read(RolloutPlan, rollout.plan)


# --- what admins do ------------------------------------------------------------------------------------------------
def start_rollout(
    *, service: ServiceConfig, plan: Mapping[str, Any], actor: Actor, source: str, reason: str = ""
) -> Rollout:
    """``plan``: a `RolloutPlan` as JSON gives it. The first step takes force at once. Refused (``conflict``,
    ``rollout``: its id) while another one is open."""
    document = _checked(plan)
    with revision(actor=actor, source=source, reason=reason or _beginning(document)) as change:
        current = locked(service)
        _refuse_second(current)
        versions = {version.version: version for version in current.versions.order_by("version")}
        stable = _stable(current, versions, document.version)
        rollout = Rollout(
            service=current,
            version=document.version,
            plan=plain(document),
            before={name: version.weight for name, version in versions.items()},
        )
        _enter(rollout, 0, stable, actor, source)
        change.save_new(rollout)
    return rollout


def promote_rollout(*, rollout: Rollout, is_full: bool = False, actor: Actor, source: str, reason: str = "") -> Rollout:
    """To the next step without waiting for the judge; from the last one, or with ``is_full``, to its end."""
    with _decision(rollout, actor, source, reason or "promoted by hand") as (change, current, before):
        plan = plan_of(current)
        last = len(plan.steps) - 1
        if is_full and current.step < last:
            _enter(current, last, _shares(current), actor, source)
        if is_full or current.step == last:
            _end(current, Status.COMPLETED, "promoted by hand")
        else:
            current.status = Status.RUNNING
            _enter(current, current.step + 1, _shares(current), actor, source)
            current.outcome = ""
        change.save(current, before)
    return current


def pause_rollout(*, rollout: Rollout, actor: Actor, source: str, reason: str = "") -> Rollout:
    """The weights stay as they are, and nothing is judged, until it is resumed, promoted or aborted."""
    with _decision(rollout, actor, source, reason) as (change, current, before):
        if current.status == Status.PAUSED:
            raise ClientFault("conflict", "The rollout is paused already.")
        current.status, current.outcome = Status.PAUSED, "paused by hand"
        change.save(current, before)
    return current


def resume_rollout(*, rollout: Rollout, actor: Actor, source: str, reason: str = "") -> Rollout:
    """The step's time begins anew; the requests that it has had count."""
    with _decision(rollout, actor, source, reason) as (change, current, before):
        if current.status != Status.PAUSED:
            raise ClientFault("conflict", "The rollout is not paused.")
        current.status, current.outcome, current.step_began_at = Status.RUNNING, "", timezone.now()
        change.save(current, before)
    return current


def abort_rollout(*, rollout: Rollout, actor: Actor, source: str, reason: str = "") -> Rollout:
    """Back to the weights of before."""
    with _decision(rollout, actor, source, reason or "aborted by hand") as (change, current, before):
        _restore(current, actor, source)
        _end(current, Status.ABORTED, "aborted by hand")
        change.save(current, before)
    return current


@contextmanager
def _decision(
    rollout: Rollout, actor: Actor, source: str, reason: str
) -> Iterator[tuple[RevisionWriter, Rollout, dict[str, Any]]]:
    """An open rollout, locked, with what the history has of it. Raises ClientFault ``conflict`` for one that has
    ended, or whose weights an admin has changed."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(rollout)
        if not current.is_open:
            raise ClientFault("conflict", f"The rollout {_ENDS[Status(current.status)]}: {current.outcome}.")
        if drift := _drift(current):
            raise ClientFault("conflict", f"The rollout ends: {drift}.")
        yield change, current, current.recorded()


def _checked(plan: Mapping[str, Any]) -> RolloutPlan:
    try:
        return read(RolloutPlan, plan)
    except PolicyError as error:
        raise invalid(error.field or "body", as_sentence(error.sentence)) from None


def _beginning(plan: RolloutPlan) -> str:
    return f"rollout of {plan.version} begins: {plan.steps[0].percent:g} %"


def _refuse_second(service: ServiceConfig) -> None:
    present = service.rollouts.filter(status__in=Rollout.OPEN).first()
    if present is not None:
        detail = f"{service.name} has a rollout of {present.version} already: abort it, or wait for its end."
        raise ClientFault("conflict", detail, members={"rollout": present.pk})


def _stable(service: ServiceConfig, versions: Mapping[str, ServiceVersion], canary: str) -> dict[str, int]:
    """The weights of the versions that the traffic comes from. Raises ClientFault for a rollout that cannot be."""
    errors = FieldErrors()
    if canary not in versions:
        errors.add("version", f"{service.name} has no version {canary!r}.")
    elif not versions[canary].takes_traffic:
        errors.add("version", f"{canary} is switched off or retired.")
    others = {name: version for name, version in versions.items() if name != canary and version.takes_traffic}
    stable = {name: version.weight for name, version in others.items() if version.weight}
    if not stable and service.current_version in others:  # it answers, as long as no version has a weight
        stable = {service.current_version: 1}
    if not stable:
        errors.add(
            "version",
            f"No other version of {service.name} takes traffic: give one a weight or make it the current version.",
        )
    errors.raise_any()
    return stable


# --- weights -------------------------------------------------------------------------------------------------------
def _enter(rollout: Rollout, step: int, stable: Mapping[str, int], actor: Actor, source: str) -> None:
    """Begin a step: its weights take force with the revision."""
    percent = plan_of(rollout).steps[step].percent
    rollout.step, rollout.step_began_at = step, timezone.now()
    rollout.weights = weights_at(percent, rollout.version, stable)
    set_weights(service=rollout.service, weights=rollout.weights, actor=actor, source=source)


def _shares(rollout: Rollout) -> dict[str, int]:
    """The proportions of the other versions, as they were at the start."""
    return {name: rollout.before[name] or 1 for name in rollout.weights if name != rollout.version}


def _restore(rollout: Rollout, actor: Actor, source: str) -> None:
    weights = {name: rollout.before[name] for name in rollout.weights}
    set_weights(service=rollout.service, weights=weights, actor=actor, source=source)


def _drift(rollout: Rollout) -> str:
    """What an admin has changed since the step began; empty when nothing."""
    versions = {version.version: version for version in rollout.service.versions.order_by("version")}
    for name, weight in rollout.weights.items():
        version = versions.pop(name, None)
        if version is None:
            return f"{name} was deleted"
        if not version.takes_traffic:
            return f"{name} was switched off or retired"
        if version.weight != weight:
            return f"the weight of {name} was changed to {version.weight} by hand"
    added = [name for name, version in versions.items() if version.weight and version.takes_traffic]
    return f"{added[0]} takes a share now" if added else ""


def _end(rollout: Rollout, status: Status, outcome: str) -> None:
    rollout.status, rollout.outcome, rollout.ended_at = status, outcome, timezone.now()


# --- what agents do ------------------------------------------------------------------------------------------------
def advance_rollouts() -> None:
    """Judge what is due, on one host at a time."""
    for rollout in Rollout.objects.filter(status__in=Rollout.OPEN).select_related("service"):
        try:
            with sole_holder(f"rollout {rollout.pk}") as is_ours:
                if is_ours:
                    _advance(rollout, timezone.now())
        except Error:
            raise
        except Exception:  # one that somebody has broken by hand keeps none of the others
            logger.exception("the rollout %s cannot be judged", rollout.pk)


def _advance(rollout: Rollout, now: datetime) -> None:
    if drift := _drift(rollout):
        _settle(rollout, Status.SUPERSEDED, f"superseded: {drift}")
        return
    plan = plan_of(rollout)
    is_due = rollout.judged_at is None or now - rollout.judged_at >= timedelta(seconds=plan.interval_s)
    if rollout.status != Status.RUNNING or not is_due:
        return
    canary, stable = compared(rollout)
    judgement = judge(plan, rollout.step, canary, stable, (now - rollout.step_began_at).total_seconds())
    Rollout.objects.filter(pk=rollout.pk, revision=rollout.revision).update(judged_at=now, judgement=judgement.reason)
    _act(rollout, plan, judgement)


def compared(rollout: Rollout) -> tuple[Numbers, Numbers]:
    """The version's numbers since the step began, and those of the others: since then too, or since the start of the
    rollout where the step leaves them too little to say."""
    plan = plan_of(rollout)
    present = numbers_of(rollout.service_id, [phase(rollout)])
    canary = present.pop(rollout.version, Numbers())
    stable = total(present.values())
    if stable.requests < plan.min_samples and rollout.step:
        everything = numbers_of(rollout.service_id, [f"{rollout.pk}/{step}" for step in range(rollout.step + 1)])
        everything.pop(rollout.version, None)
        stable = total(everything.values())
    return canary, stable


def _act(rollout: Rollout, plan: RolloutPlan, judgement: Judgement) -> None:
    if judgement.verdict is Verdict.ROLL_BACK:
        _settle(rollout, Status.ROLLED_BACK, judgement.reason)
    elif judgement.verdict is Verdict.PAUSE:
        _settle(rollout, Status.PAUSED, judgement.reason)
    elif judgement.verdict is Verdict.PROMOTE and rollout.step + 1 == len(plan.steps):
        _settle(rollout, Status.COMPLETED, judgement.reason)
    elif judgement.verdict is Verdict.PROMOTE:
        _settle(rollout, Status.RUNNING, judgement.reason)


def _settle(rollout: Rollout, status: Status, reason: str) -> None:
    """Do what was decided of the rollout as it was read, unless somebody has decided otherwise since."""
    actor = Actor("rollout", rollout.pk, f"rollout of {rollout.version}")
    with revision(actor=actor, source="agent", reason=reason) as change:
        current = Rollout.objects.select_for_update().filter(pk=rollout.pk, revision=rollout.revision).first()
        if current is None or not current.is_open or (status != Status.SUPERSEDED and _drift(current)):
            return
        before = current.recorded()
        if status == Status.ROLLED_BACK:
            _restore(current, actor, "agent")
        if status == Status.RUNNING:
            _enter(current, current.step + 1, _shares(current), actor, "agent")
        elif status == Status.PAUSED:
            current.status, current.outcome = status, reason
        else:
            _end(current, status, reason)
        change.save(current, before)
