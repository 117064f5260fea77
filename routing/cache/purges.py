"""What admins have had dropped, as workers know it: each purge has a number, larger than those before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from routing.cache.dropping import Kept, Rule, read_rule

# Nothing is kept in the shared tier for longer, so that older purges may be forgotten.
REMEMBERED_S = 24 * 3600


class PurgeBook:
    """The purges of the last `REMEMBERED_S`, each place once. ``number`` is the latest; None before the agent has told
    anything."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._by_place: dict[tuple[str, str], tuple[int, Rule]] = {}
        self._prefixes: dict[str, tuple[int, Rule]] = {}  # and URLs: those that must be tried one by one

    def take(self, message: Mapping[str, Any]) -> list[Rule]:
        """The agent's message (`core.wire`). Returns the rules that have not been in force here yet."""
        former, number = self.number, message["number"]
        if message["whole"]:
            self._by_place, self._prefixes = {}, {}
        # One that knew of none has perhaps stored something since some of them.
        fresh = [rule for at, rule in self._enter(message["rules"]) if former is None or at > former]
        self.number = number
        if former is not None and number < former:  # another history: a restored backup
            return [Rule("all")]
        return fresh

    def _enter(self, wires: Iterable[tuple[int, str, str]]) -> Iterable[tuple[int, Rule]]:
        entered = []
        for at, kind, value in wires:
            try:
                rule = read_rule(kind, value)
            except ValueError:  # of a later version of the gateway: rather too much than too little
                kind, value, rule = "all", "", Rule("all")
            if kind in ("url", "prefix"):
                self._prefixes[kind + value] = at, rule
            else:
                self._by_place[kind, value] = at, rule
            entered.append((at, rule))
        return entered

    def covers_since(self, number: int, kept: Kept) -> bool:
        """Whether what was asked for when ``number`` was the latest purge has been dropped by a later one."""
        if self.number is None or number > self.number:
            return True  # from another history, or from a worker that knows more
        if number == self.number:
            return False
        places = [("all", ""), ("service", kept.service), *(("tag", tag.decode("latin-1")) for tag in kept.tags)]
        if any(place in self._by_place and self._by_place[place][0] > number for place in places):
            return True
        return any(at > number and rule.covers(kept) for at, rule in self._prefixes.values())
