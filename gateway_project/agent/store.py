"""The compiled configuration as the agent holds it: each record once, encoded, ready to be sent to any worker.

Every change of the store has a serial number, and the latest changes are remembered as sets of ids. So a worker that
is behind, for whatever reason, gets one delta with the present state of all that changed since its own position, and
only one that is too far behind gets everything.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile

import orjson

from core.wire import KINDS, SLICE, Message, encode

Ref = tuple[str, str]  # kind, id
Records = dict[str, dict[str, bytes]]  # kind → id → the record's JSON
Problem = dict[str, str]  # "kind", "id", "name", "error"

_HISTORY_REFS = 20_000
_HISTORY_STEPS = 10_000
_DELTA_REFS = 500  # above that a full load, which is sliced, is kinder to a worker's event loop


@dataclass(frozen=True, slots=True)
class Position:
    """A revision in one history. Number 0 with an empty token is the beginning of every history."""

    number: int = 0
    token: str = ""


@dataclass(frozen=True, slots=True)
class _Step:
    serial: int
    position: Position
    refs: frozenset[Ref]  # what may differ from the step before


def no_records() -> Records:
    return {kind: {} for kind in KINDS}


def encoded_record(wire: Message) -> bytes:
    """Copied, because what orjson returns sits in a block of several kilobytes: 100,000 keys took 400 MB."""
    return bytes(memoryview(orjson.dumps(wire)))


class ConfigStore:
    """``as_of`` is when (epoch seconds) the database was last seen to agree with ``position``. Not ``is_ready``:
    there is nothing yet that a worker may run on. ``lay_over`` adds to a service's record what is no configuration;
    it may be applied to its own result."""

    def __init__(self) -> None:
        self.records = no_records()
        self.as_of = 0.0
        self.is_ready = False
        self.problems: dict[Ref, Problem] = {}
        self.lay_over: Callable[[str, bytes], bytes] = lambda service_id, record: record
        self._history: deque[_Step] = deque([_Step(0, Position(), frozenset())])
        self._history_refs = 0
        self._cut_position: Position | None = None
        self._delta: tuple[int, int, list[bytes]] | None = None  # from serial, to serial, frames

    @property
    def position(self) -> Position:
        return self._history[-1].position

    @property
    def serial(self) -> int:
        return self._history[-1].serial

    # --- changes ---

    def apply(
        self,
        steps: Iterable[tuple[Position, frozenset[Ref]]],
        compiled: Records,
        problems: Mapping[Ref, Problem],
    ) -> None:
        """Take over revisions, each with the refs that it concerns, and the present records of all these refs.

        A ref with a problem keeps the record it had; one that is neither compiled nor a problem is gone.
        """
        steps = list(steps)
        for kind, ref_id in frozenset[Ref]().union(*(refs for _, refs in steps)):
            problem = problems.get((kind, ref_id))
            if problem is not None:
                self.problems[kind, ref_id] = problem
                continue
            self.problems.pop((kind, ref_id), None)
            record = compiled[kind].get(ref_id)
            if record is None:
                self.records[kind].pop(ref_id, None)
            else:
                self.records[kind][ref_id] = self.lay_over(ref_id, record) if kind == "service" else record
        for position, refs in steps:
            self._remember(position, refs)

    def load(self, position: Position, compiled: Records, problems: Mapping[Ref, Problem]) -> None:
        """Take over everything as it stood at ``position``; what has changed here since then stays as it is.

        A row with a problem keeps the record it had before, if any.
        """
        services = {ref_id: self.lay_over(ref_id, record) for ref_id, record in compiled["service"].items()}
        compiled = {**compiled, "service": services}
        # The last step there: what has changed at one position was laid over, or read from the same state before.
        serial = next((step.serial for step in reversed(self._history) if step.position == position), None)
        newer = frozenset[Ref]() if serial is None else self._changed_since(serial)
        differing = {ref for ref in self._differing(compiled) if ref not in newer and ref not in problems}
        for kind, ref_id in differing:
            record = compiled[kind].get(ref_id)
            if record is None:
                del self.records[kind][ref_id]
            else:
                self.records[kind][ref_id] = record
        self.problems = {ref: each for ref, each in self.problems.items() if ref in newer} | {
            ref: each for ref, each in problems.items() if ref not in newer
        }
        target = position if serial is None else self.position
        if differing or target != self.position:
            self._remember(target, frozenset(differing))

    def lay_over_again(self, service_ids: Iterable[str]) -> bool:
        """What is laid over these services has changed: the same position, other records. Returns whether any
        differs."""
        differing = set[Ref]()
        for service_id in service_ids:
            record = self.records["service"].get(service_id)
            if record is None:
                continue
            fresh = self.lay_over(service_id, record)
            if fresh != record:
                self.records["service"][service_id] = fresh
                differing.add(("service", service_id))
        if differing:
            self._remember(self.position, frozenset(differing))
        return bool(differing)

    def send_again(self, service_ids: Iterable[str]) -> None:
        """Whoever comes with the present position may have other records of these services than the store: what is laid
        over them is no part of the position."""
        refs = frozenset(("service", each) for each in service_ids if each in self.records["service"])
        if refs:
            self._remember(self.position, refs)

    def _differing(self, compiled: Records) -> Iterator[Ref]:
        for kind in KINDS:
            held, fresh = self.records[kind], compiled[kind]
            yield from ((kind, ref_id) for ref_id, record in fresh.items() if held.get(ref_id) != record)
            yield from ((kind, ref_id) for ref_id in held.keys() - fresh.keys())

    def start_from(self, position: Position, records: Records, as_of: float) -> None:
        """Begin with the last good snapshot."""
        self.records, self.as_of = records, as_of
        self._history = deque([_Step(self.serial + 1, position, frozenset())])
        self._history_refs = 0

    def forget_history(self) -> None:
        """The database does not know the position, as after the restore of a backup: what is loaded next takes the
        place of everything, also where the position that it has was once passed here."""
        self._history = deque([self._history[-1]])
        self._history_refs = 0

    def _remember(self, position: Position, refs: frozenset[Ref]) -> None:
        self._history.append(_Step(self.serial + 1, position, refs))
        self._history_refs += len(refs)
        while len(self._history) > 1 and (len(self._history) > _HISTORY_STEPS or self._history_refs > _HISTORY_REFS):
            former = self._history.popleft()
            self._history_refs -= len(self._history[0].refs)  # the oldest step is where one can stand, no more
            if former.position == self._history[0].position:
                self._cut_position = former.position

    # --- what workers get ---

    def serial_of(self, position: Position) -> int | None:
        """The first step at which the store stood there. None: unknown, or too long ago."""
        if position == self._cut_position:
            return None  # its first steps are forgotten
        return next((step.serial for step in self._history if step.position == position), None)

    def changed_since(self, serial: int) -> frozenset[Ref] | None:
        """What may differ from that step; None where that is unknown, so that everything may."""
        return self._changed_since(serial) if serial >= self._history[0].serial else None

    def frames_since(self, serial: int) -> list[bytes] | None:
        """One delta from that step to the present; None when only a full load helps."""
        if self._delta is not None and self._delta[:2] == (serial, self.serial):
            return self._delta[2]
        refs = self.changed_since(serial)
        if refs is None or len(refs) > _DELTA_REFS:
            return None
        frames = [encode(self._delta_message(refs))]
        self._delta = serial, self.serial, frames  # workers are mostly at the same point
        return frames

    def _changed_since(self, serial: int) -> frozenset[Ref]:
        steps = takewhile(lambda step: step.serial > serial, reversed(self._history))
        return frozenset[Ref]().union(*(step.refs for step in steps))

    def _delta_message(self, refs: Iterable[Ref]) -> Message:
        put: dict[str, list[orjson.Fragment]] = {}
        drop: dict[str, list[str]] = {}
        for kind, ref_id in sorted(refs):
            record = self.records[kind].get(ref_id)
            if record is not None:
                put.setdefault(kind, []).append(orjson.Fragment(record))
            elif (kind, ref_id) not in self.problems:
                drop.setdefault(kind, []).append(ref_id)
        return {
            "type": "delta",
            "revision": self.position.number,
            "token": self.position.token,
            "put": put,
            "drop": drop,
        }

    def full_load(self) -> Iterator[bytes]:
        """The frames of a full load. The state is the one at the call, whatever changes while they are sent."""
        position, as_of = self.position, self.as_of
        slices = [(kind, list(self.records[kind].values())) for kind in KINDS]
        return _frames(position, as_of, slices)


def _frames(position: Position, as_of: float, slices: list[tuple[str, list[bytes]]]) -> Iterator[bytes]:
    at = {"revision": position.number, "token": position.token}
    yield encode({"type": "reset", **at})
    for kind, records in slices:
        for start in range(0, len(records), SLICE):
            part = [orjson.Fragment(record) for record in records[start : start + SLICE]]
            yield encode({"type": "records", "kind": kind, "records": part})
    yield encode({"type": "commit", **at, "as_of": as_of})
