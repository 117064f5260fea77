"""Step 8 where more is asked than the one local limit that every request has: further limits, costs, quotas, and
budgets that all workers share.

A request is charged by all of its limits or by none (rule 10). What is counted here is looked at first and charged
together; then budgets in slices; then, if any are left, those that only Redis can decide, all in one script, for which
the request is held. Whoever is refused on the way gets everything back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from access.limits.charges import SECOND_NS, Charge, LimitPolicy, Mode, Verdict, share_of
from access.limits.headers import (
    Told,
    degraded,
    fields,
    fields_of_all,
    fields_with_legacy,
    legacy_fields,
    refusal_of_all,
)
from access.limits.local import Look
from access.limits.quotas import Place
from access.limits.records import MOST_REMEMBERED, Held, LimitIndex
from access.records import DEFAULT, Grant
from core.context import Exchange
from core.faults import GatewayFault
from gateway_project.dataplane.holding import Hold
from gateway_project.dataplane.limit_uses import LimitUses
from gateway_project.dataplane.quota_telling import QuotaTelling
from gateway_project.dataplane.snapshot import Problem
from gateway_project.dataplane.turns import Turns

if TYPE_CHECKING:
    from access.limits.shared.limits import SharedLimits
    from gateway_project.dataplane.app import Gateway

_DEGRADED_S = 5.0  # after the last charge that Redis did not take
_DEGRADED: Problem = {
    "kind": "limits",
    "id": "redis",
    "name": "",
    "error": "Redis does not answer. Each limit does what its outage says: share, open or closed.",
}


class _Request:
    """A request on its way through its limits. ``told``: what each has said so far; ``made``: what is to be undone."""

    __slots__ = ("charges", "exchange", "made", "proceed", "told", "wait_s")

    def __init__(self, exchange: Exchange, charges: list[Charge], proceed: Callable[[], None]) -> None:
        self.exchange = exchange
        self.charges = charges
        self.proceed = proceed
        self.begin_anew()

    def begin_anew(self) -> None:
        self.told: list[tuple[Charge, Told]] = []
        self.made: list[tuple[Callable[[Charge], None], Charge]] = []
        self.wait_s = 0.0  # for a leaky bucket's turn


class Limiting:
    """One per worker. ``counts_here``: limits that say nothing else are counted in each worker."""

    def __init__(self, gateway: Gateway, make_shared: Callable[[], SharedLimits] | None) -> None:
        """``make_shared`` None: there is nothing that workers share."""
        settings = gateway.settings
        self._gateway = gateway
        self._make_shared = make_shared
        self._limiter = gateway.limiter
        self._mode: Mode = settings.rate_limit_mode if make_shared is not None else "local"
        self._workers = settings.workers
        self._has_legacy = settings.rate_limit_legacy_headers
        self._fields = fields_with_legacy if self._has_legacy else fields
        self.telling = QuotaTelling(gateway)
        self._quotas = self.telling.book
        self._shared: SharedLimits | None = None
        self._looked_at: LimitIndex | None = None
        self._outages = 0
        self._degraded_until = 0.0
        self.counts_here = self._mode == "local"
        self.uses = LimitUses()
        self.turns = Turns(lambda: gateway.loop, gateway.now)

    def prepare(self) -> None:
        """Connect to what workers share before requests need it. Needs a running loop; called now and then."""
        limits = self._gateway.link.snapshot.limits
        if limits is self._looked_at or self._shared is not None or self._make_shared is None:
            return
        self._looked_at = limits
        if not self.counts_here or any(each.policy.mode not in (None, "local") for each in limits.records.values()):
            self._backend()

    # --- deciding ---
    def charge(self, exchange: Exchange, grant: Grant, subject: str, proceed: Callable[[], None]) -> None:
        """Returns when the request may go on. Raises PolicyDenied, InternalFault, or Hold: then it goes on later, with
        ``proceed``."""
        plan, key, mode = grant.plan, exchange.key, self._mode
        if (
            mode != "local"
            and (plan is None or (plan.is_for_users and exchange.user is None))
            and (key is None or key.quota is None)
        ):  # nearly every request: one limit alone
            policy, now = grant.limit, exchange.started
            if mode == "strict":
                raise self._ask_alone(exchange, Charge(policy, subject, 1), proceed)
            slice_ = self._backend().take_one(policy, subject, now)
            if slice_ is not None:
                seconds = max(_rounded_up(slice_.reset_at - now), 0)
                exchange.answer_lines += self._fields(policy, slice_.remaining + slice_.tokens, seconds)
                return
        charges = self._charges_of(exchange, grant, subject)
        if (
            plan is not None
            and plan.is_plain
            and not plan.by_role
            and self.counts_here
            and (key is None or key.quota is None)
        ):
            self._charge_plain(exchange, charges, plan.fields)
        elif charges:
            self._decide(_Request(exchange, charges, proceed), exchange.started)

    def _charge_plain(self, exchange: Exchange, charges: list[Charge], fields: bytes) -> None:
        """Where nobody but this worker needs to be asked, and nobody waits: most places that have further limits."""
        if not charges:
            return
        now_ns = int(exchange.started * 1e9)
        is_admitted, looks = self._limiter.charge_all(charges, now_ns)
        if not is_admitted:
            request = _Request(exchange, charges, _nothing)
            request.told = [(each, _not_charged(each, look)) for each, look in zip(charges, looks, strict=True)]
            raise self._refuse(request)
        states = []
        for charge, look in zip(charges, looks, strict=True):
            policy = charge.policy
            if policy.algorithm == "concurrency":
                self._under_way(exchange, self._limiter.give_back, charge)
                states.append(b"%b%d" % (policy.state, look.remaining))
            else:
                states.append(b"%b%d;t=%d" % (policy.state, look.remaining, -(-look.reset_ns // SECOND_NS)))
            if policy.id:
                self.uses.note(exchange, charge, look.remaining, is_refused=False)
        exchange.answer_lines += b"%b%b\r\n" % (fields, b",".join(states))
        if self._has_legacy:
            seen = zip(charges, looks, strict=True)
            told = [Told(each.policy, look.remaining, -(-look.reset_ns // SECOND_NS)) for each, look in seen]
            exchange.answer_lines += legacy_fields(told)

    def _charges_of(self, exchange: Exchange, grant: Grant, subject: str) -> list[Charge]:
        plan, key, user = grant.plan, exchange.key, exchange.user
        line = key or exchange.certificate  # a certificate stands for a key
        base_cost = 1 if plan is None else plan.base_cost
        of_key, of_user = line.bucket if line is not None else "", user.user if user is not None else ""
        memory = None
        if plan is not None and not plan.by_role and (of_key or of_user) and (key is None or key.quota is None):
            memory = plan.remembered
            known = memory.get((of_key, of_user)) if memory is not None else None
            if known is not None and known[0].bucket == subject:
                return known
        charges = [Charge(grant.limit, subject, base_cost)] if base_cost else []
        if plan is not None and (plan.everybody or plan.by_role):
            roles = user.roles if user is not None else ()
            client = exchange.identity.client
            held_here = plan.of(roles)
            if user is not None and grant.limit.name == DEFAULT and any(_is_of_role(each) for each in held_here):
                charges.clear()  # what somebody has said of the role takes the place of what nobody has said
            for held in held_here:
                charges.append(Charge(held.policy, held.bucket(of_key, of_user, roles, client), held.cost))
        if memory is not None and base_cost and len(memory) < MOST_REMEMBERED:
            memory[of_key, of_user] = charges
        if key is not None and key.quota is not None and (cost := exchange.match.cost):
            charges.append(Charge(key.quota, key.bucket, min(cost, key.quota.most)))
        return charges

    def _decide(self, request: _Request, now: float) -> None:
        """From the beginning: nothing has been charged yet."""
        request.begin_anew()
        shared = self._charge_here(request, now)
        if not shared:
            self._admit(request, now)
            return
        left = self._charge_slices(request, shared, now)
        if not left:
            self._admit(request, now)
            return
        hold = Hold(self._gateway, request.exchange)
        self._backend().strict(left, lambda verdicts: self._decided(request, hold, left, verdicts))
        raise hold

    def _ask_alone(self, exchange: Exchange, charge: Charge, proceed: Callable[[], None]) -> Hold:
        hold = Hold(self._gateway, exchange)
        self._backend().strict((charge,), partial(self._decided_alone, exchange, hold, charge, proceed))
        return hold

    def _decided_alone(
        self,
        exchange: Exchange,
        hold: Hold,
        charge: Charge,
        proceed: Callable[[], None],
        verdicts: list[Verdict] | None,
    ) -> None:
        if verdicts is None or not verdicts[0].allowed:
            self._decided(_Request(exchange, [charge], proceed), hold, [charge], verdicts)
        elif not hold.is_over:
            _, remaining, _, reset_s, _ = verdicts[0]
            exchange.answer_lines += self._fields(charge.policy, remaining, _rounded_up(reset_s))
            hold.go_on(proceed)

    def _mode_of(self, policy: LimitPolicy) -> Mode:
        if self._make_shared is None:
            return "local"
        if policy.mode is None and policy.algorithm == "quota" and self._mode == "leased":
            return "local"  # which the database makes one for all, and keeps
        return policy.mode or self._mode

    def _is_shared(self, policy: LimitPolicy) -> bool:
        return policy.algorithm == "quota" or self._mode_of(policy) != "local"

    # --- what is counted here ---
    def _charge_here(self, request: _Request, now: float) -> list[Charge]:
        """Charge what this worker counts, quotas too. Returns the rest."""
        now_ns, epoch = int(now * 1e9), time.time()
        shared: list[Charge] = []
        looks: list[tuple[Charge, Look]] = []
        unknown: set[Place] = set()
        for charge in request.charges:
            if self._mode_of(charge.policy) != "local":
                shared.append(charge)
            elif charge.policy.algorithm == "quota":
                look = self._look_at_quota(charge, epoch)
                if look is None:
                    application = request.exchange.application
                    tenant = application.tenant_id if application is not None else ""
                    unknown.add(self._quotas.want(charge, epoch, tenant))
                else:
                    looks.append((charge, look))
            else:
                looks.append((charge, self._limiter.look(charge, now_ns)))
        if all(look.allowed for _, look in looks) and unknown:
            raise self.telling.ask(request.exchange, unknown, lambda: self._try_again(request))
        self._take(request, looks, now_ns, epoch)
        return shared

    def _look_at_quota(self, charge: Charge, epoch: float) -> Look | None:
        if charge.policy.outage == "closed" and self._quotas.is_alone(charge, epoch):
            raise degraded(charge.policy)
        return self._quotas.look(charge, epoch)

    def _take(self, request: _Request, looks: list[tuple[Charge, Look]], now_ns: int, epoch: float) -> None:
        """Make these charges. Raises PolicyDenied, and makes none, when one of them is refused."""
        if not all(look.allowed for _, look in looks):
            for charge, look in looks:
                if not look.allowed:
                    self._limiter.remember(charge, look)
                request.told.append((charge, _not_charged(charge, look)))
            raise self._refuse(request)
        for charge, look in looks:
            is_counted = charge.policy.algorithm == "concurrency"
            told = Told(charge.policy, look.remaining, None if is_counted else -(-look.reset_ns // SECOND_NS))
            request.told.append((charge, told))
            if charge.policy.algorithm == "quota":
                self._quotas.make(charge, epoch)
                request.made.append((lambda each: self._quotas.give_back(each, epoch), charge))
                continue
            self._limiter.make(charge, look, now_ns)
            if is_counted:
                self._under_way(request.exchange, self._limiter.give_back, charge)
            else:
                request.made.append((self._limiter.give_back, charge))
            request.wait_s = max(request.wait_s, look.wait_ns / SECOND_NS)

    # --- what all workers count together ---
    def _backend(self) -> SharedLimits:
        if self._shared is None:
            assert self._make_shared is not None  # else nothing is counted there
            self._shared = self._make_shared()
        return self._shared

    def _charge_slices(self, request: _Request, shared: list[Charge], now: float) -> list[Charge]:
        """Charge what this worker holds a slice of. Returns the rest, for which Redis must be asked."""
        left: list[Charge] = []
        backend = self._backend()
        for charge in shared:
            verdict = backend.leased(charge, now) if self._mode_of(charge.policy) == "leased" else None
            if verdict is None:
                left.append(charge)
            elif self._read(request, charge, verdict):
                self._note_shared(request, charge)
            else:
                raise self._refuse(request)
        return left

    def _decided(self, request: _Request, hold: Hold, left: list[Charge], verdicts: list[Verdict] | None) -> None:
        """Redis has answered, or is away (None)."""
        if verdicts is None:
            self._outages += 1
            self._degraded_until = self._gateway.now() + _DEGRADED_S
            hold.go_on(lambda: self._do_without(request, left))
            return
        if not all(verdict.allowed for verdict in verdicts):
            if hold.is_over:
                self._give_back(request)
            hold.go_on(lambda: self._turn_down(request, left, verdicts))
            return
        for charge, verdict in zip(left, verdicts, strict=True):
            self._read(request, charge, verdict)
            if hold.is_over and charge.policy.algorithm == "concurrency":
                self._backend().give_back(charge)  # the client has left: nobody else will
            elif not hold.is_over:
                self._note_shared(request, charge)
        hold.go_on(lambda: self._admit_held(request))

    def _turn_down(self, request: _Request, left: list[Charge], verdicts: list[Verdict]) -> None:
        for charge, verdict in zip(left, verdicts, strict=True):
            self._read(request, charge, verdict)
        raise self._refuse(request)

    def _read(self, request: _Request, charge: Charge, verdict: Verdict) -> bool:
        refused = not verdict.allowed
        seconds = _rounded_up(verdict.wait_s if refused else verdict.reset_s)
        is_counted = charge.policy.algorithm == "concurrency"
        request.told.append((charge, Told(charge.policy, verdict.remaining, None if is_counted else seconds, refused)))
        if not refused:
            request.wait_s = max(request.wait_s, verdict.wait_s)
        return not refused

    def _note_shared(self, request: _Request, charge: Charge) -> None:
        if charge.policy.algorithm == "concurrency":
            self._under_way(request.exchange, self._backend().give_back, charge)
        else:
            request.made.append((self._backend().give_back, charge))

    def _do_without(self, request: _Request, left: list[Charge]) -> None:
        """Redis is away: each limit says what then holds."""
        now = self._gateway.now()
        shares: list[Charge] = []
        for charge in left:
            if charge.policy.outage == "closed":
                self._give_back(request)
                raise degraded(charge.policy)
            if charge.policy.outage == "share":
                policy = share_of(charge.policy, self._workers)
                shares.append(Charge(policy, charge.bucket, min(charge.cost, policy.most)))
        now_ns = int(now * 1e9)
        looks = [(charge, self._limiter.look(charge, now_ns)) for charge in shares]
        self._take(request, looks, now_ns, time.time())
        self._admit_held(request)

    # --- the outcome ---
    def _refuse(self, request: _Request) -> GatewayFault:
        self._give_back(request)
        for charge, told in request.told:
            if told.refused:
                is_shared = self._is_shared(charge.policy)
                self.uses.note(request.exchange, charge, told.remaining, is_refused=True, is_shared=is_shared)
        return refusal_of_all([told for _, told in request.told], has_legacy=self._has_legacy)

    def _give_back(self, request: _Request) -> None:
        for give_back, charge in request.made:
            give_back(charge)
        request.made = []

    def _admit(self, request: _Request, now: float) -> None:
        exchange, told = request.exchange, [each for _, each in request.told]
        for charge, each in request.told:
            is_shared = self._is_shared(charge.policy)
            self.uses.note(exchange, charge, each.remaining, is_refused=False, is_shared=is_shared)
        exchange.answer_lines += fields_of_all(told)
        if self._has_legacy:
            exchange.answer_lines += legacy_fields(told)
        if request.wait_s:
            hold = Hold(self._gateway, exchange)
            self.turns.wait(now + request.wait_s, hold, request.proceed)
            raise hold

    def _admit_held(self, request: _Request) -> None:
        self._admit(request, self._gateway.now())
        request.proceed()

    # --- requests under way ---
    def _under_way(self, exchange: Exchange, give_back: Callable[[Charge], None], charge: Charge) -> None:
        if exchange.under_way is None:
            exchange.under_way = []
        exchange.under_way.append((give_back, charge))

    def release(self, exchange: Exchange) -> None:
        """The exchange has ended, however it did: what it counted as under way is no longer."""
        ended, exchange.under_way = exchange.under_way, None
        for give_back, charge in ended:
            give_back(charge)

    # --- quotas ---
    def _try_again(self, request: _Request) -> None:
        self._decide(request, self._gateway.now())
        request.proceed()

    # --- what others are told ---
    @property
    def is_degraded(self) -> bool:
        return self._gateway.now() < self._degraded_until

    @property
    def problems(self) -> list[Problem]:
        """Among the node's, for the panel."""
        return [_DEGRADED] if self.is_degraded else []

    def counters(self) -> list[Any]:
        refusals: list[Any] = [
            ["api_gateway_limit_refusals_total", {"limit": name}, number] for name, number in self.uses.refusals.items()
        ]
        shared = self._shared.counters() if self._shared is not None else []
        return [*refusals, ["api_gateway_limit_outages_total", {}, self._outages], *shared]

    def gauges(self) -> Iterable[tuple[str, dict[str, str], float]]:
        yield "api_gateway_limits_degraded", {}, float(self.is_degraded)
        yield "api_gateway_requests_awaiting_turn", {}, float(len(self.turns))
        if self._shared is not None:
            yield from self._shared.gauges()

    async def close(self) -> None:
        """Tell the agent what it has not been told, and give back what is not used."""
        await self.telling.close()
        if self._shared is not None:
            await self._shared.close()


def _is_of_role(held: Held) -> bool:
    """A budget for each user of a role (A24)."""
    return bool(held.roles) and "user" in held.parts


def _nothing() -> None: ...


def _not_charged(charge: Charge, look: Look) -> Told:
    """What a refused request is told of a limit, which may have admitted it."""
    if look.allowed:
        return Told(charge.policy, look.remaining + charge.cost, -(-look.reset_ns // SECOND_NS))
    is_counted = charge.policy.algorithm == "concurrency"
    return Told(charge.policy, look.remaining, None if is_counted else -(-look.wait_ns // SECOND_NS), refused=True)


def _rounded_up(seconds: float) -> int:
    return -int(-seconds // 1)
