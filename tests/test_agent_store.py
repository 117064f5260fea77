"""The agent's store: what workers get from any point, and what a row that does not compile leaves in force."""

from typing import Any

import pytest

from core.wire import KINDS, FrameReader, Message
from gateway_project.agent import store as store_module
from gateway_project.agent.store import ConfigStore, Position, Records, Ref, encoded_record, no_records


def compiled(**services: int) -> Records:
    """Services by id, told apart by a number."""
    records = no_records()
    records["service"] = {id: encoded_record({"id": id, "n": number}) for id, number in services.items()}
    return records


def at(number: int, token: str = "t") -> Position:
    return Position(number, token)


def refs(*ids: str) -> frozenset[Ref]:
    return frozenset(("service", id) for id in ids)


def problem(id: str) -> dict[Ref, dict[str, str]]:
    return {("service", id): {"kind": "service", "id": id, "name": "", "error": "broken"}}


def messages(frames: Any) -> list[Message]:
    return list(FrameReader().feed(b"".join(frames)))


def held(store: ConfigStore) -> dict[str, int]:
    (reset, *slices, commit) = messages(store.full_load())
    assert (reset["type"], commit["type"]) == ("reset", "commit")
    assert (reset["revision"], reset["token"]) == (commit["revision"], commit["token"]) == store_position(store)
    return {each["id"]: each["n"] for message in slices for each in message["records"]}


def store_position(store: ConfigStore) -> tuple[int, str]:
    return store.position.number, store.position.token


def delta(store: ConfigStore, serial: int) -> tuple[dict[str, int], list[str]]:
    """What a worker at that step is told to put and to drop."""
    frames = store.frames_since(serial)
    assert frames is not None
    (message,) = messages(frames)
    assert (message["revision"], message["token"]) == store_position(store)
    return {each["id"]: each["n"] for each in message["put"].get("service", [])}, message["drop"].get("service", [])


@pytest.fixture
def store() -> ConfigStore:
    store = ConfigStore()
    store.load(at(1), compiled(a=1, b=1, c=1), {})
    return store


def test_a_worker_gets_the_present_state_of_all_that_changed_since_its_own_step(store: ConfigStore) -> None:
    start = store.serial
    store.apply([(at(2), refs("a"))], compiled(a=2), {})
    store.apply([(at(3), refs("a", "b")), (at(4), refs("d"))], compiled(a=4, d=4), {})
    assert delta(store, start) == ({"a": 4, "d": 4}, ["b"])
    second, third = store.serial_of(at(2)), store.serial_of(at(3))
    assert second is not None
    assert third is not None
    assert delta(store, second) == ({"a": 4, "d": 4}, ["b"])
    assert delta(store, third) == ({"d": 4}, [])
    assert held(store) == {"a": 4, "c": 1, "d": 4}


def test_a_row_that_does_not_compile_keeps_its_former_record_until_it_compiles_or_goes(store: ConfigStore) -> None:
    store.apply([(at(2), refs("a", "new"))], compiled(), problem("a") | problem("new"))
    assert held(store) == {"a": 1, "b": 1, "c": 1}
    assert {each["id"] for each in store.problems.values()} == {"a", "new"}
    store.load(at(3), compiled(b=3), problem("a"))
    assert held(store) == {"a": 1, "b": 3}
    store.apply([(at(4), refs("a"))], compiled(a=4), {})
    assert (held(store), store.problems) == ({"a": 4, "b": 3}, {})
    store.apply([(at(5), refs("a"))], compiled(), {})
    assert held(store) == {"b": 3}


def test_no_worker_is_told_to_drop_a_row_that_merely_does_not_compile(store: ConfigStore) -> None:
    start = store.serial
    store.apply([(at(2), refs("new"))], compiled(), problem("new"))
    assert delta(store, start) == ({}, [])


def test_reading_everything_leaves_what_has_changed_meanwhile_and_tells_workers_only_what_differs(
    store: ConfigStore,
) -> None:
    start = store.serial
    store.apply([(at(2), refs("a"))], compiled(a=2), {})
    applied = store.serial
    store.load(at(1), compiled(a=1, b=7, c=1), {})  # read before revision 2; b was changed by hand
    assert store.position == at(2)
    assert held(store) == {"a": 2, "b": 7, "c": 1}
    assert delta(store, applied) == ({"b": 7}, [])
    assert delta(store, start) == ({"a": 2, "b": 7}, [])


def test_another_history_replaces_everything_and_workers_still_get_only_what_differs(store: ConfigStore) -> None:
    store.apply([(at(2), refs("a"))], compiled(a=2), {})
    before = store.serial
    store.load(at(2, "restored"), compiled(a=1, c=1), {})
    assert store.position == at(2, "restored")
    assert delta(store, before) == ({"a": 1}, ["b"])


def test_reading_everything_without_finding_a_difference_is_no_step(store: ConfigStore) -> None:
    before = store.serial
    store.load(at(1), compiled(a=1, b=1, c=1), {})
    assert store.serial == before


def test_one_that_is_too_far_behind_needs_a_full_load(store: ConfigStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_HISTORY_STEPS", 3)
    start = store.serial
    for number in range(2, 6):
        store.apply([(at(number), refs("a"))], compiled(a=number), {})
    assert store.serial_of(at(1)) is None
    assert store.frames_since(start) is None
    oldest = store.serial_of(at(3))
    assert oldest is not None
    assert delta(store, oldest) == ({"a": 5}, [])


def test_the_history_is_bounded_by_what_it_holds(store: ConfigStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_HISTORY_REFS", 10)
    for number in range(2, 30):
        ids = [f"s{number}-{index}" for index in range(4)]
        store.apply([(at(number), refs(*ids))], compiled(**dict.fromkeys(ids, number)), {})
        assert store._history_refs == sum(len(step.refs) for step in list(store._history)[1:]) <= 10


def test_a_full_load_under_way_stays_as_the_store_was_at_its_beginning(store: ConfigStore) -> None:
    frames = store.full_load()
    first = next(frames)
    store.apply([(at(2), refs("a", "b"))], compiled(a=2), {})
    reset, *slices, commit = messages([first, *frames])
    assert reset["revision"] == commit["revision"] == 1
    assert [each["n"] for message in slices for each in message["records"]] == [1, 1, 1]


def test_a_store_that_starts_from_a_file_knows_no_other_step(store: ConfigStore) -> None:
    fresh = ConfigStore()
    fresh.start_from(at(7), compiled(a=7), as_of=5.0)
    assert (fresh.position, fresh.as_of, fresh.is_ready) == (at(7), 5.0, False)
    assert fresh.serial_of(at(7)) == fresh.serial
    assert fresh.serial_of(Position()) is None


def test_nothing_is_in_a_new_store() -> None:
    assert no_records() == {kind: {} for kind in KINDS}
    assert held(ConfigStore()) == {}


# --- what is laid over services ------------------------------------------------------------------------------------
class Overlay:
    """Lays a number over some services."""

    def __init__(self, store: ConfigStore) -> None:
        self.numbers: dict[str, int] = {}
        store.lay_over = self.lay_over

    def lay_over(self, id: str, record: bytes) -> bytes:
        return encoded_record({"id": id, "n": self.numbers[id]}) if id in self.numbers else record


def test_what_is_laid_over_reaches_workers_at_the_same_position_by_delta_and_by_full_load(store: ConfigStore) -> None:
    overlay, start = Overlay(store), store.serial
    overlay.numbers = {"a": 70}
    assert store.lay_over_again(["a", "b", "unknown"])
    assert not store.lay_over_again(["a", "b"])
    assert delta(store, start) == ({"a": 70}, [])
    assert held(store) == {"a": 70, "b": 1, "c": 1}
    assert store_position(store) == (1, "t")


def test_what_is_laid_over_stays_over_revisions_and_what_is_read_anew(store: ConfigStore) -> None:
    Overlay(store).numbers = {"a": 70}
    store.lay_over_again(["a"])
    store.apply([(at(2), refs("a", "b"))], compiled(a=2, b=2), {})
    assert held(store) == {"a": 70, "b": 2, "c": 1}
    store.load(at(2), compiled(a=2, b=3, c=1), {})
    assert held(store) == {"a": 70, "b": 3, "c": 1}


def test_a_row_changed_by_hand_is_taken_over_though_something_is_laid_over_it(store: ConfigStore) -> None:
    overlay = Overlay(store)
    overlay.numbers = {"a": 70}
    store.lay_over_again(["a"])
    overlay.numbers = {}
    store.load(at(1), compiled(a=9, b=1, c=1), {})
    assert held(store) == {"a": 9, "b": 1, "c": 1}


def test_whoever_comes_with_the_present_position_is_told_what_is_laid_over(store: ConfigStore) -> None:
    store.send_again(["a", "unknown"])
    serial = store.serial_of(at(1))
    assert serial is not None
    assert delta(store, serial) == ({"a": 1}, [])


def test_a_position_whose_first_steps_are_forgotten_is_none_to_stand_at(
    store: ConfigStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_HISTORY_STEPS", 3)
    overlay = Overlay(store)
    for number in range(5):
        overlay.numbers = {"a": number + 70}
        store.lay_over_again(["a"])
    assert store.serial_of(at(1)) is None  # a full load helps, and nothing less
    store.apply([(at(2), refs("b"))], compiled(b=2), {})
    assert store.serial_of(at(2)) == store.serial
