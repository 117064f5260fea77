"""How targets take turns, worked out when rows are compiled."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from routing.compile import MAX_TURNS, turns

WEIGHTS = st.dictionaries(st.sampled_from(["http://a", "http://b", "http://c"]), st.integers(0, 10_000), min_size=1)


def test_targets_of_equal_weight_take_turns_one_after_the_other() -> None:
    assert turns({"http://a": 100, "http://b": 100}) == ["http://a", "http://b"]


def test_a_heavier_target_takes_more_turns_spread_evenly() -> None:
    assert turns({"http://a": 3, "http://b": 1}) == ["http://a", "http://a", "http://b", "http://a"]


def test_a_target_of_weight_0_takes_no_turn() -> None:
    assert turns({"http://a": 5, "http://b": 0}) == ["http://a"]


def test_targets_that_all_have_weight_0_take_equal_turns() -> None:
    assert turns({"http://a": 0, "http://b": 0}) == ["http://a", "http://b"]


@given(WEIGHTS)
def test_every_target_gets_its_share_of_the_turns(weights: dict[str, int]) -> None:
    order = turns(weights)
    total = sum(weights.values())
    assert len(order) <= MAX_TURNS + len(weights)
    for url, weight in weights.items():
        share = weight / total if total else 1 / len(weights)
        assert abs(Counter(order)[url] / len(order) - share) <= 0.02
