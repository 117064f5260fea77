"""Which target answers: strategies, who may be used, and what a worker remembers of targets."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.faults import ClientFault, ConnectFault, ExchangeFault, GatewayFault, InternalFault
from routing.balancing import TargetGroup
from routing.circuit import CLOSED, HALF_OPEN, OPEN, Circuit
from routing.policies import CircuitBreaker, PassiveCheck
from routing.records import ServiceRecord, TargetRecord
from routing.target_registry import TargetRegistry
from routing.targets import FAILURE, NEUTRAL, SUCCESS, Target, verdict
from tests.wires import service_wire, version_wire

STRATEGIES = ("weighted", "round_robin", "ip_hash", "least_connections", "peak_ewma")
WEIGHTS = st.lists(st.integers(1, 10_000), min_size=1, max_size=12)


def record(number: int) -> TargetRecord:
    return TargetRecord.from_url(f"http://10.0.{number >> 8}.{number & 255}:8000")[0]


def group_of(weights: Sequence[int], strategy: str = "weighted", *, seed: int = 1) -> TargetGroup:
    group = TargetGroup(random=random.Random(seed).random)
    group.apply(strategy, [Target(record(number), group, weight) for number, weight in enumerate(weights)])
    return group


def chosen(group: TargetGroup, count: int, now: float = 0.0) -> Counter[Target]:
    """Whom that many clients get, one after the other."""
    points = random.Random(2)
    return Counter(group.choose(points.getrandbits(32), now) for _ in range(count))


def number_of(group: TargetGroup, target: Target | None) -> int:
    assert target is not None
    return group.targets.index(target)


def fail(target: Target, now: float, times: int) -> None:
    for _ in range(times):
        target.ended(now, 0.01, FAILURE, target.began(now))


# --- shares --------------------------------------------------------------------------------------------------------
@given(WEIGHTS, st.integers(0, 1000))
@example(weights=[1, 1, 1, 1, 1, 1, 29], seed=314)
def test_at_any_time_every_target_has_had_its_share_of_turns(weights: list[int], seed: int) -> None:
    group = group_of(weights, seed=seed)
    had: Counter[Target] = Counter()
    total = sum(weights)
    for turn in range(1, 500):
        had[group.choose(0, 0.0)] += 1
        if turn % 100 == 0:
            for target in group.targets:
                # Each is at most a turn away from where its weight puts it; the heaviest makes up for all others.
                assert abs(had[target] - turn * target.weight / total) <= 1 + len(weights)


@given(WEIGHTS)
def test_a_target_waits_no_longer_for_its_turn_than_its_weight_says(weights: list[int]) -> None:
    group = group_of([min(weight, 50) for weight in weights])
    total = sum(target.weight for target in group.targets)
    last = dict.fromkeys(group.targets, 0)
    for turn in range(1, 3 * total + 1):
        target = group.choose(0, 0.0)
        assert turn - last[target] <= 2 * total / target.weight + len(weights)
        last[target] = turn
    assert all(turn > total for turn in last.values())


def test_round_robin_takes_no_notice_of_weights() -> None:
    group = group_of([1, 5, 50], "round_robin")
    assert set(chosen(group, 300).values()) == {100}


@given(st.lists(st.integers(1, 20), min_size=2, max_size=6))
@settings(max_examples=20, deadline=None)
def test_addresses_fall_to_targets_by_weight(weights: list[int]) -> None:
    group = group_of(weights, "ip_hash")
    had = chosen(group, 20_000)
    for target in group.targets:
        assert had[target] / 20_000 == pytest.approx(target.weight / sum(weights), abs=0.04)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_target_of_weight_0_gets_nothing(strategy: str) -> None:
    group = group_of([5, 0, 5], strategy)
    had = chosen(group, 300)
    assert had[group.targets[1]] == 0 and min(had[group.targets[0]], had[group.targets[2]]) > 50


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_targets_that_all_have_weight_0_share_the_traffic(strategy: str) -> None:
    assert len(chosen(group_of([0, 0, 0], strategy), 300)) == 3


def simulated(group: TargetGroup, latency_s: Callable[[Target], float], *, rate: float, seconds: float) -> Counter[int]:
    """Requests that come evenly and take what ``latency_s`` says: how many each target has had."""
    under_way: list[tuple[float, Target, float, int]] = []
    had: Counter[int] = Counter()
    for request in range(int(rate * seconds)):
        now = request / rate
        for each in [each for each in under_way if each[0] <= now]:
            under_way.remove(each)
            _, target, took_s, ticket = each
            target.ended(now, took_s, SUCCESS, ticket)
        target = group.choose(request * 2654435761 & 0xFFFFFFFF, now)
        took_s = latency_s(target)
        had[number_of(group, target)] += 1
        under_way.append((now + took_s, target, took_s, target.began(now)))
    return had


@pytest.mark.parametrize("count", [3, 40], ids=["compared all", "compared by two"])
def test_least_connections_spares_a_slow_target(count: int) -> None:
    group = group_of([1] * count, "least_connections")
    had = simulated(group, lambda target: 0.5 if target is group.targets[0] else 0.01, rate=100 * count, seconds=10)
    assert 0 < had[0] * 2 < min(had[number] for number in range(1, count))


@pytest.mark.parametrize("count", [4, 40], ids=["compared all", "compared by two"])
def test_least_connections_follows_weights_under_load(count: int) -> None:
    weights = [1 + 2 * (number % 2) for number in range(count)]
    had = simulated(group_of(weights, "least_connections"), lambda _: 0.1, rate=200 * count, seconds=3)
    light = sum(had[number] for number in range(0, count, 2))
    assert light / had.total() == pytest.approx(1 / 4, abs=0.05)


def test_least_connections_chooses_among_idle_targets_by_weight() -> None:
    had = chosen(group_of([1, 3], "least_connections"), 4000)
    assert sorted(had.values())[0] / 4000 == pytest.approx(1 / 4, abs=0.04)


@pytest.mark.parametrize("count", [2, 5, 40])
def test_peak_ewma_prefers_the_fast_targets_and_forgets_nobody(count: int) -> None:
    group = group_of([1] * count, "peak_ewma")
    had = simulated(group, lambda target: 0.2 if target is group.targets[0] else 0.01, rate=20 * count, seconds=60)
    assert 0 < had[0] * 5 < min(had[number] for number in range(1, count))


def test_a_peak_counts_at_once_and_is_forgotten_within_seconds() -> None:
    group = group_of([1, 1], "peak_ewma")
    target = group.targets[0]

    def answer(now: float, latency_s: float, outcome: int = SUCCESS) -> None:
        target.ended(now, latency_s, outcome, target.began(now))

    for tenth in range(100):
        answer(tenth / 10, 0.01)
    calm = target.cost(10.0)
    assert calm == pytest.approx(0.01, rel=0.1)
    answer(10.0, 1.0)
    assert target.cost(10.0) == pytest.approx(1.0)
    for tenth in range(600):
        answer(10 + tenth / 10, 0.01)
    assert target.cost(70.0) < 0.02


def test_fast_failures_do_not_make_a_target_look_fast() -> None:
    group = group_of([1, 1], "peak_ewma")
    for target in group.targets:
        target.ended(0.0, 0.1, SUCCESS, target.began(0.0))
    broken = group.targets[0]
    for tenth in range(1, 100):
        broken.ended(tenth / 10, 0.001, FAILURE, broken.began(tenth / 10))
    assert broken.cost(10.0) > group.targets[1].cost(10.0)


def test_a_target_that_has_never_answered_gets_one_request_at_a_time() -> None:
    group = group_of([1, 1], "peak_ewma")
    known, new = group.targets
    known.ended(0.0, 0.5, SUCCESS, known.began(0.0))
    had = []
    for _ in range(10):
        had.append(target := group.choose(0, 0.0))
        target.began(0.0)
    assert had.count(new) == 1


# --- addresses -----------------------------------------------------------------------------------------------------
@given(st.integers(2, 12), st.data(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_losing_a_target_moves_its_own_clients_only(count: int, data: st.DataObject, even: bool) -> None:
    group = group_of([1 if even else 1 + number % 3 for number in range(count)], "ip_hash")
    lost = group.targets[data.draw(st.integers(0, count - 1))]
    points = range(3000)
    before = {point: group.choose(point, 0.0) for point in points}
    lost.is_healthy = False
    group.refresh()
    after = {point: group.choose(point, 0.0) for point in points}
    assert all(after[point] is before[point] for point in points if before[point] is not lost)
    assert lost not in after.values()
    lost.is_healthy = True
    group.refresh()
    assert {point: group.choose(point, 0.0) for point in points} == before


def test_two_workers_send_an_address_to_the_same_target() -> None:
    one, other = group_of([1, 2, 3], "ip_hash", seed=1), group_of([1, 2, 3], "ip_hash", seed=2)
    for point in range(1000):
        assert one.choose(point, 0.0).record == other.choose(point, 0.0).record


def test_clients_of_a_lost_target_go_to_all_others() -> None:
    group = group_of([1] * 10, "ip_hash")
    points = range(4096)
    before = {point: group.choose(point, 0.0) for point in points}
    lost = group.targets[0]
    lost.is_healthy = False
    group.refresh()
    moved = Counter(group.choose(point, 0.0) for point in points if before[point] is lost)
    assert len(moved) == 9 and max(moved.values()) < 3 * min(moved.values())


# --- who may be used -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_unhealthy_target_is_passed_over_and_the_others_share_its_part(strategy: str) -> None:
    group = group_of([1, 1, 1, 1], strategy)
    group.choose(0, 0.0)
    group.targets[1].is_healthy = False
    group.refresh()
    had = chosen(group, 3000)
    assert had[group.targets[1]] == 0
    assert min(had[group.targets[number]] for number in (0, 2, 3)) > 800


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.sampled_from(STRATEGIES))
def test_below_half_healthy_all_are_used(healthy: list[bool], strategy: str) -> None:
    group = group_of([1] * len(healthy), strategy)
    for target, is_healthy in zip(group.targets, healthy, strict=True):
        target.is_healthy = is_healthy
    group.refresh()
    panics = sum(healthy) * 2 < len(healthy)
    had = chosen(group, 600)
    for target, is_healthy in zip(group.targets, healthy, strict=True):
        assert (had[target] > 0) is (is_healthy or panics)


def test_circuits_do_not_count_towards_panic() -> None:
    group = group_of([1, 1, 1, 1])
    for target in group.targets[1:]:
        target.circuit = Circuit(1, 30.0)
        fail(target, 0.0, 1)
    assert set(chosen(group, 50)) == {group.targets[0]}


def test_in_panic_an_open_circuit_still_keeps_requests_away() -> None:
    group = group_of([1, 1, 1])
    group.targets[0].circuit = Circuit(1, 30.0)
    fail(group.targets[0], 0.0, 1)
    for target in group.targets:
        target.is_healthy = False
    group.refresh()
    assert set(chosen(group, 50)) == set(group.targets[1:])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_half_open_target_gets_one_request_and_comes_back_when_it_succeeds(strategy: str) -> None:
    group = group_of([1, 1], strategy)
    ill, other = group.targets
    ill.circuit = Circuit(5, 30.0)
    other.ended(0.0, 0.01, SUCCESS, other.began(0.0))
    for _ in range(5):
        ill.ended(0.0, 10.0, FAILURE, ill.began(0.0))  # slow failures: no reason to wait longer than the period
    assert set(chosen(group, 100, now=29.9)) == {other}
    trials = []
    for point in range(400):
        target = group.choose(point, 30.0)
        ticket = target.began(30.0)
        if target is ill:
            trials.append(ticket)
    assert len(trials) == 1
    ill.ended(31.0, 0.01, SUCCESS, trials[0])
    assert ill.circuit.state == CLOSED
    other.ended(31.0, 0.02, SUCCESS, other.began(31.0))
    for each in group.targets:
        each.in_flight = 0
    assert ill in chosen(group, 400, now=31.0)


def test_a_late_failure_from_before_the_trial_says_nothing() -> None:
    group = group_of([1])
    (target,) = group.targets
    target.circuit = Circuit(2, 30.0)
    hanging = [target.began(0.0) for _ in range(4)]
    target.ended(10.0, None, FAILURE, hanging[0])
    target.ended(10.0, None, FAILURE, hanging[1])
    assert target.circuit.state == OPEN
    trial = group.choose(0, 40.0).began(40.0)
    target.ended(40.1, None, FAILURE, hanging[2])
    target.ended(40.2, 40.0, SUCCESS, hanging[3])
    assert target.circuit.state == HALF_OPEN
    target.ended(40.3, 0.3, SUCCESS, trial)
    assert target.circuit.state == CLOSED and target.in_flight == 0


def test_a_trial_whose_client_left_makes_room_for_another() -> None:
    group = group_of([1])
    (target,) = group.targets
    target.circuit = Circuit(1, 30.0)
    fail(target, 0.0, 1)
    trial = group.choose(0, 30.0).began(30.0)
    with pytest.raises(InternalFault):
        group.choose(0, 30.1)
    target.ended(30.2, None, NEUTRAL, trial)
    assert group.choose(0, 30.2) is target


def test_a_streamed_answer_is_judged_by_its_beginning() -> None:
    group = group_of([1])
    (target,) = group.targets
    target.circuit = Circuit(1, 30.0)
    fail(target, 0.0, 1)
    ticket = group.choose(0, 30.0).began(30.0)
    target.answered(30.1, 0.1, SUCCESS, ticket)
    assert target.circuit.state == CLOSED and target.in_flight == 1
    target.ended(3600.0, None, NEUTRAL, ticket)
    assert target.in_flight == 0


def test_when_all_circuits_are_open_the_fault_says_when_to_come_back() -> None:
    group = group_of([1, 1])
    for at, target in enumerate(group.targets):
        target.circuit = Circuit(1, 30.0)
        fail(target, 10.0 * at, 1)
    with pytest.raises(InternalFault) as caught:
        group.choose(0, 12.0)
    assert (caught.value.code, caught.value.status, caught.value.retry_after_s) == ("circuit_open", 503, 18)


def test_a_group_without_anybody_fit_says_so() -> None:
    group = group_of([1, 1])
    group.targets[0].is_healthy = False
    group.targets[1].circuit = Circuit(1, 30.0)
    fail(group.targets[1], 0.0, 1)
    with pytest.raises(InternalFault) as caught:
        group.choose(0, 0.0)
    assert (caught.value.code, caught.value.retry_after_s) == ("no_healthy_target", 30)
    with pytest.raises(InternalFault) as caught:
        group_of([]).choose(0, 0.0)
    assert caught.value.code == "no_healthy_target"


# --- a further try -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_further_try_goes_to_another_target(strategy: str) -> None:
    group = group_of([1, 1, 1], strategy)
    tried = [group.choose(0, 0.0)]
    for _ in range(2):
        target = group.another(0.0, tried)
        assert target is not None and target not in tried
        tried.append(target)
    target = group.another(0.0, tried)
    assert target is not None and target is not tried[-1]


def test_a_target_without_a_free_place_is_not_tried() -> None:
    group = group_of([1, 1])
    group.targets[1].limit = 1
    group.targets[1].began(0.0)
    assert group.another(0.0, [group.targets[0]]) is None


def test_there_is_no_further_try_where_nobody_else_may_be_used() -> None:
    group = group_of([1, 1])
    group.targets[1].is_healthy = False
    group.refresh()
    assert group.another(0.0, [group.targets[0]]) is None


def test_a_further_try_at_a_half_open_target_is_its_trial() -> None:
    group = group_of([1, 1])
    group.targets[1].circuit = Circuit(1, 30.0)
    fail(group.targets[1], 0.0, 1)
    assert group.another(30.0, [group.targets[0]]) is group.targets[1]
    assert group.another(30.0, [group.targets[0]]) is None


# --- passive health ------------------------------------------------------------------------------------------------
PASSIVE = PassiveCheck(error_percent=50, min_requests=10, window_s=10, eject_s=30)


def watched(count: int = 4) -> TargetGroup:
    group = group_of([1] * count)
    for target in group.targets:
        target.passive = PASSIVE
    return group


def outcomes(target: Target, now: float, text: str) -> None:
    for each in text:
        target.ended(now, 0.01, {"+": SUCCESS, "-": FAILURE, "0": NEUTRAL}[each], target.began(now))


@pytest.mark.parametrize(
    ("text", "is_ejected"),
    [
        ("---------", False),  # nine are too few to say
        ("----------", True),
        ("+++++-----", True),
        ("++++++-----", False),
        ("00000-----", False),  # departed clients say nothing
        ("++++++++++", False),
    ],
)
def test_a_target_is_ejected_for_its_share_of_failures(text: str, is_ejected: bool) -> None:
    group = watched()
    target = group.targets[0]
    outcomes(target, 1.0, text)
    assert target.is_ejected(1.0) is is_ejected
    assert (target in chosen(group, 100, now=1.0)) is not is_ejected


def test_an_ejected_target_comes_back_after_its_time() -> None:
    group = watched()
    target = group.targets[0]
    outcomes(target, 1.0, "-" * 10)
    assert target not in chosen(group, 100, now=30.9)
    assert target in chosen(group, 100, now=31.0)
    assert target.ejections == 1


def test_failures_of_long_ago_do_not_count() -> None:
    target = watched().targets[0]
    outcomes(target, 0.0, "-" * 9)
    outcomes(target, 10.1, "-" * 9)  # the first nine lie more than a window back
    assert not target.is_ejected(10.1)
    outcomes(target, 12.0, "-")
    assert target.is_ejected(12.0)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 1.0, 3.0, 4.9, 5.0]), st.booleans()), min_size=1, max_size=100))
@settings(max_examples=300)
def test_nobody_is_ejected_without_enough_failures_in_the_last_window(steps: list[tuple[float, bool]]) -> None:
    target = watched().targets[0]
    now = 0.0
    recent: deque[tuple[float, bool]] = deque()  # of the last window
    for passed_s, is_failure in steps:
        now += passed_s
        recent.append((now, is_failure))
        before = target.ejections
        outcomes(target, now, "-" if is_failure else "+")
        while recent[0][0] < now - PASSIVE.window_s:
            recent.popleft()
        if target.ejections > before:
            assert is_failure and len(recent) >= PASSIVE.min_requests
            assert sum(bad for _, bad in recent) * 2 >= PASSIVE.min_requests


# --- verdicts ------------------------------------------------------------------------------------------------------
LOST = ExchangeFault("upstream_reset", "It left.", request_sent=True, proxy_error="connection_terminated")
REFUSED = ConnectFault("upstream_connect_failed", "No.", request_sent=False, proxy_error="connection_refused")


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        *((status, SUCCESS) for status in (200, 204, 304, 401, 404, 429, 500, 501, 505, 599)),
        *((status, FAILURE) for status in (502, 503, 504)),
        (LOST, FAILURE),
        (REFUSED, FAILURE),
        (ClientFault("payload_too_large", "Too large."), NEUTRAL),
        (InternalFault("overloaded", "Too much."), NEUTRAL),
    ],
    ids=str,
)
def test_what_counts_against_a_target(result: int | GatewayFault, outcome: int) -> None:
    assert verdict(result, None) == outcome
    assert verdict(result, CircuitBreaker(count_500=True)) == (FAILURE if result == 500 else outcome)


# --- what is remembered --------------------------------------------------------------------------------------------
class World:
    """A registry and the configuration it follows."""

    def __init__(self) -> None:
        self.services: dict[str, ServiceRecord] = {}
        self.now = 0.0
        self.registry = TargetRegistry(
            lambda: self.services, failures=5, open_s=30.0, affinity_key=b"k" * 32, now=lambda: self.now
        )

    def configure(self, *hosts: str | tuple[str, int], name: str = "orders", **changes: Any) -> ServiceRecord:
        version = version_wire("v1", 1)
        pairs = [(host, 1) if isinstance(host, str) else host for host in hosts]
        version["targets"] = [[f"http://{host}:8000", weight] for host, weight in pairs]
        wire = service_wire(id=f"svc_{name}", name=name, versions=[version], **changes)
        service = ServiceRecord.from_wire(wire)
        self.services = {**self.services, name: service}
        return service

    def group(self, service: ServiceRecord) -> TargetGroup:
        return self.registry.group(service, service.versions["v1"])

    def hosts(self, service: ServiceRecord) -> dict[str, Target]:
        return {target.record.origin[1]: target for target in self.group(service).targets}


@pytest.fixture
def world() -> World:
    return World()


def test_a_breaker_stands_before_every_target_by_default(world: World) -> None:
    circuit = world.group(world.configure("a")).targets[0].circuit
    assert circuit is not None and (circuit.failures, circuit.open_s) == (5, 30.0)


def test_a_service_may_have_its_own_breaker_or_none(world: World) -> None:
    circuit = world.group(world.configure("a", policies={"circuit_breaker": {"failures": 2}})).targets[0].circuit
    assert circuit is not None and (circuit.failures, circuit.open_s) == (2, 30.0)
    assert (
        world.group(world.configure("a", policies={"circuit_breaker": {"enabled": False}})).targets[0].circuit is None
    )


def test_what_is_known_of_targets_outlives_a_change_of_the_configuration(world: World) -> None:
    before = world.hosts(world.configure("a", "b"))
    fail(before["a"], 0.0, 5)
    before["b"].began(0.0)
    after = world.hosts(world.configure("b", "a", ("c", 3), request_timeout_ms=5))
    assert (after["a"], after["b"]) == (before["a"], before["b"])
    assert after["a"].circuit is not None and after["a"].circuit.state == OPEN
    assert after["b"].in_flight == 1 and after["c"].weight == 3
    assert "a" not in {target.record.origin[1] for target in chosen(world.group(world.services["orders"]), 50)}


def test_changed_policies_apply_to_known_targets(world: World) -> None:
    world.group(world.configure("a", "b"))
    policies = {
        "load_balancing": {"strategy": "peak_ewma"},
        "circuit_breaker": {"failures": 1, "openS": 3},
        "health_checks": {"passive": {"minRequests": 7}},
    }
    service = world.configure("a", "b", policies=policies)
    group = world.group(service)
    assert group.strategy == "peak_ewma"
    for target in group.targets:
        assert target.circuit is not None and (target.circuit.failures, target.circuit.open_s) == (1, 3)
        assert target.passive is not None and target.passive.min_requests == 7
        assert target.tracks_latency


def test_a_reset_closes_the_circuits_of_the_service(world: World) -> None:
    target = world.group(world.configure("a")).targets[0]
    fail(target, 0.0, 5)
    service = world.configure("a", circuit_resets=1)
    assert world.group(service).choose(0, 0.0) is target
    fail(target, 0.0, 5)
    assert target.circuit is not None and target.circuit.state == OPEN
    world.group(world.configure("a", circuit_resets=1))
    assert target.circuit.state == OPEN  # it was reset once


def test_a_late_request_of_an_older_configuration_changes_nothing(world: World) -> None:
    old = world.configure("a", "b")
    world.group(old)
    new = world.configure("a", policies={"load_balancing": {"strategy": "ip_hash"}})
    group = world.group(new)
    assert world.group(old) is group and group.strategy == "ip_hash" and len(group.targets) == 1
    assert world.group(new) is group


def test_a_late_request_for_a_version_that_is_gone_still_finds_its_targets(world: World) -> None:
    old = world.configure("a")
    world.group(old)
    new = ServiceRecord.from_wire(service_wire(id="svc_orders", name="orders", versions=[version_wire("v2", 1)]))
    world.services = {"orders": new}
    world.registry.group(new, new.versions["v2"])
    assert world.group(old).choose(0, 0.0).record.origin[1] == "a"
    assert [version for _, version, _ in world.registry.targets()] == ["v2"]


def test_services_that_are_gone_are_forgotten(world: World) -> None:
    for number in range(50):
        world.group(world.configure("a", name=f"s{number}"))
        world.registry.set_health(f"svc_s{number}", "http://a:8000", is_healthy=False)
    world.services = {"s7": world.services["s7"]}
    world.registry.prune()
    assert [state.record.name for state in world.registry.states()] == ["s7"]
    assert [(service.name, version) for service, version, _ in world.registry.targets()] == [("s7", "v1")]


PROBED: dict[str, Any] = {"health_checks": {"active": {}}}


def test_what_the_probes_find_holds_before_and_after_the_first_request(world: World) -> None:
    service = world.configure("a", "b", policies=PROBED)
    world.registry.set_health("svc_orders", "http://a:8000", is_healthy=False)
    group = world.group(service)
    assert {target.record.origin[1] for target in chosen(group, 50)} == {"b"}
    world.registry.set_health("svc_orders", "http://a:8000", is_healthy=True)
    assert len(chosen(group, 50)) == 2
    world.registry.set_health("svc_orders", "http://b:8000", is_healthy=False)
    assert {target.record.origin[1] for target in chosen(group, 50)} == {"a"}
    world.registry.forget_health()
    assert len(chosen(group, 50)) == 2


def test_a_target_that_nobody_probes_any_more_counts_as_healthy(world: World) -> None:
    world.registry.set_health("svc_orders", "http://a:8000", is_healthy=False)
    assert world.hosts(world.configure("a", "b", policies=PROBED))["a"].is_healthy is False
    assert world.hosts(world.configure("a", "b"))["a"].is_healthy is True


def test_an_adaptive_limit_is_kept_only_where_the_service_asks_for_it(world: World) -> None:
    assert world.registry.state(world.configure("a")).limit is None
    state = world.registry.state(world.configure("a", policies={"concurrency": {"adaptive": True}}))
    limit = state.limit
    assert limit is not None
    policies = {"concurrency": {"adaptive": True, "maxLimit": 20}}
    assert world.registry.state(world.configure("a", policies=policies)).limit is limit
    assert limit.limit <= 20


def test_an_affinity_is_preferred_while_its_target_may_be_used(world: World) -> None:
    policies: dict[str, Any] = {"load_balancing": {"sticky": {}}}
    service = world.configure("a", "b", "c", policies=policies)
    group = world.group(service)
    mine = group.targets[1]
    assert mine.name and mine.name != b"b"
    assert {group.choose(0, 0.0, mine.name) for _ in range(20)} == {mine}
    assert len({group.choose(0, 0.0, b"somebody els") for _ in range(20)}) == 3
    fail(mine, 0.0, 5)
    assert mine not in {group.choose(0, 0.0, mine.name) for _ in range(20)}


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_no_strategy_ever_chooses_whom_it_may_not(data: st.DataObject) -> None:
    """Targets fall ill, fail, recover, while requests come and end; every choice is judged by the slow definition."""
    strategy = data.draw(st.sampled_from(STRATEGIES))
    group = group_of(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=5)), strategy)
    for target in group.targets:
        target.circuit = Circuit(2, 5.0)
        target.passive = PassiveCheck(error_percent=50, min_requests=3, window_s=5, eject_s=4)
    candidates = [target for target in group.targets if target.weight]
    under_way: list[tuple[Target, int]] = []
    now = 0.0
    for point in range(data.draw(st.integers(10, 60))):
        now += data.draw(st.sampled_from([0.0, 0.5, 3.0]))
        step = data.draw(st.sampled_from(["come", "come", "end", "ill"]))
        if step == "ill":
            target = data.draw(st.sampled_from(group.targets))
            target.is_healthy = not target.is_healthy
            group.refresh()
        elif step == "end" and under_way:
            target, ticket = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            target.ended(now, 0.1, data.draw(st.sampled_from([SUCCESS, FAILURE, FAILURE, NEUTRAL])), ticket)
        else:
            fit = [each for each in candidates if each.is_healthy and not each.is_ejected(now)]
            if len(fit) * 2 < len(candidates):
                fit = candidates
            may = [each for each in fit if each.circuit is None or each.circuit.would_allow(now)]
            try:
                target = group.choose(point, now)
            except InternalFault:
                assert not may
            else:
                assert target in may
                under_way.append((target, target.began(now)))
    assert sum(target.in_flight for target in group.targets) == len(under_way)
