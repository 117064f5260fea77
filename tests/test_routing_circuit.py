"""The circuit breaker, against its state table and against a reference that is written the slow way."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from routing.circuit import CLOSED, HALF_OPEN, LONG_TRIAL_S, OPEN, Circuit


def circuit_in(state: int) -> Circuit:
    """A circuit for 2 failures and 30 seconds, at second 100: closed, opened at 90, or with its trial under way."""
    circuit = Circuit(failures=2, open_s=30.0)
    if state != CLOSED:
        opened_at = 90.0 if state == OPEN else 60.0
        circuit.failed(opened_at)
        circuit.failed(opened_at)
    if state == HALF_OPEN:
        assert circuit.allows(100.0)
    assert circuit.state == state
    return circuit


@pytest.mark.parametrize(
    ("state", "event", "after", "allows"),
    [
        (CLOSED, "succeeded", CLOSED, True),
        (CLOSED, "failed", CLOSED, True),  # the first of two
        (CLOSED, "abandoned", CLOSED, True),
        (CLOSED, "reset", CLOSED, True),
        (OPEN, "succeeded", OPEN, False),
        (OPEN, "failed", OPEN, False),
        (OPEN, "abandoned", OPEN, False),
        (OPEN, "reset", CLOSED, True),
        (HALF_OPEN, "succeeded", CLOSED, True),
        (HALF_OPEN, "failed", OPEN, False),
        (HALF_OPEN, "abandoned", HALF_OPEN, True),  # the next trial
        (HALF_OPEN, "reset", CLOSED, True),
    ],
)
def test_the_state_table(state: int, event: str, after: int, allows: bool) -> None:
    circuit = circuit_in(state)
    if event == "failed":
        circuit.failed(100.0)
    else:
        getattr(circuit, event)()
    assert circuit.state == after
    assert circuit.would_allow(100.0) is allows
    assert circuit.allows(100.0) is allows


def test_it_opens_after_failures_in_a_row_only() -> None:
    circuit = Circuit(failures=3, open_s=30.0)
    for _ in range(10):
        circuit.failed(0.0)
        circuit.failed(0.0)
        circuit.succeeded()
    assert circuit.state == CLOSED
    for _ in range(3):
        circuit.failed(0.0)
    assert circuit.state == OPEN


def test_one_trial_is_made_when_the_period_has_passed() -> None:
    circuit = circuit_in(OPEN)
    assert not circuit.allows(119.9)
    assert circuit.allows(120.0)
    assert [circuit.allows(120.0 + second) for second in range(30)] == [False] * 30
    circuit.succeeded()
    assert circuit.allows(149.0) and circuit.allows(149.0)


def test_a_trial_that_outlasts_the_period_does_not_keep_the_circuit_from_another() -> None:
    circuit = circuit_in(OPEN)
    assert circuit.allows(120.0)
    assert not circuit.allows(149.9)
    assert circuit.allows(150.0)
    assert not circuit.allows(150.0)
    circuit.succeeded()
    assert circuit.state == CLOSED


def test_a_failed_trial_begins_a_new_period() -> None:
    circuit = circuit_in(OPEN)
    assert circuit.allows(125.0)
    circuit.failed(126.0)
    assert not circuit.allows(155.9)
    assert circuit.allows(156.0)
    assert circuit.times_opened == 2


@pytest.mark.parametrize(("now", "seconds"), [(90.0, 30), (90.5, 30), (119.5, 1), (120.0, 1), (500.0, 1)])
def test_it_tells_when_to_come_back(now: float, seconds: int) -> None:
    assert circuit_in(OPEN).retry_after_s(now) == seconds


def test_while_a_trial_is_under_way_it_says_to_come_back_soon() -> None:
    assert circuit_in(HALF_OPEN).retry_after_s(100.0) == 1


def test_every_change_of_state_begins_a_generation() -> None:
    circuit = Circuit(failures=1, open_s=1.0)
    seen = [circuit.generation]
    circuit.failed(0.0)  # open
    seen.append(circuit.generation)
    circuit.allows(1.0)  # half open
    seen.append(circuit.generation)
    circuit.succeeded()  # closed
    seen.append(circuit.generation)
    assert len(set(seen)) == 4


class CircuitAgainstReference(RuleBasedStateMachine):
    """Requests come, end in any order and in any way, while time passes. The reference remembers everything."""

    @initialize(failures=st.integers(1, 4), open_s=st.sampled_from([0.5, 5.0, 30.0]))
    def begin(self, failures: int, open_s: float) -> None:
        self.circuit = Circuit(failures, open_s)
        self.failures, self.open_s = failures, open_s
        self.now = 0.0
        self.state = "closed"
        self.row: list[str] = []  # outcomes since the circuit was closed
        self.opened_at = 0.0
        self.period = 0  # counts the changes of state
        self.next_trial_at = 0.0  # while half open
        self.under_way: dict[int, tuple[int, int]] = {}  # request → period of the reference, generation of the circuit
        self.next_request = 0

    def change(self, state: str) -> None:
        self.state = state
        self.period += 1
        self.row = []
        self.next_trial_at = self.now

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def a_request_comes(self) -> None:
        expected = True
        if self.state == "open" and self.now < self.opened_at + self.open_s:
            expected = False
        elif self.state == "open":
            self.change("half open")
        elif self.state == "half open":
            expected = self.now >= self.next_trial_at
        assert self.circuit.would_allow(self.now) is expected
        assert self.circuit.allows(self.now) is expected
        if expected:
            if self.state == "half open":
                self.next_trial_at = self.now + max(self.open_s, LONG_TRIAL_S)
            self.under_way[self.next_request] = (self.period, self.circuit.generation)
            self.next_request += 1

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), outcome=st.sampled_from(["success", "failure", "neutral"]))
    def a_request_ends(self, data: st.DataObject, outcome: str) -> None:
        request = data.draw(st.sampled_from(sorted(self.under_way)))
        period, generation = self.under_way.pop(request)
        if generation == self.circuit.generation:  # as `Target` does
            if outcome == "success":
                self.circuit.succeeded()
            elif outcome == "failure":
                self.circuit.failed(self.now)
            else:
                self.circuit.abandoned()
        if period != self.period:
            return
        if self.state == "half open":
            if outcome == "neutral":
                self.next_trial_at = 0.0
            else:
                self.change("closed" if outcome == "success" else "open")
                self.opened_at = self.now
        elif outcome != "neutral":
            self.row.append(outcome)
            if self.row[-self.failures :] == ["failure"] * self.failures:
                self.change("open")
                self.opened_at = self.now

    @rule()
    def an_admin_resets_it(self) -> None:
        self.circuit.reset()
        self.change("closed")

    @invariant()
    def the_states_agree(self) -> None:
        if hasattr(self, "circuit"):
            assert ["closed", "open", "half open"][self.circuit.state] == self.state
            if self.circuit.failures_in_row == 0:
                assert self.state == "closed"


TestCircuitAgainstReference = CircuitAgainstReference.TestCase
