"""Changes of JSON bodies by path: ``customer.address.city``, ``items[0].id``, ``items[*].price``.

    path   = ( member | index ) *( "." member | index )
    member = 1*( any character but ".", "[", "]" and "\\" | "\\" any character )
    index  = "[" ( digits | "*" ) "]"                     "*" is every element

A path that leads nowhere changes nothing, except that ``set`` makes the objects that are missing on its way. Of equal
names in one object the last counts, and the body that goes on has no other. Numbers stay as they are written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import orjson

from core.policies import PolicyError
from routing.policies import BodyChanges, JsonChange
from routing.request_fields import RequestFields
from routing.templates import CompileTemplate, Template

Step = str | int | None  # a member, an element, every element
Path = tuple[Step, ...]
_MAX_STEPS = 32
_STEP = re.compile(r"(?P<dot>\.)?(?P<member>(?:[^.\[\]\\]|\\.)+)|\[(?P<index>[0-9]{1,6}|\*)\]", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class NoJson(ValueError):
    """The body is no JSON, or none that can be written again as it was."""


def parse_path(text: str) -> Path:
    """Raises ValueError with a sentence."""
    steps: list[Step] = []
    at = 0
    while at < len(text):
        step = _STEP.match(text, at)
        if step is None or (step["member"] is not None and bool(step["dot"]) is not bool(steps)):
            raise ValueError(f"{text[at : at + 40]!r} is no step of a path: write something like items[0].price")
        index = step["index"]
        steps.append(_ESCAPED.sub(r"\1", step["member"]) if index is None else None if index == "*" else int(index))
        at = step.end()
    if len(steps) > _MAX_STEPS:
        raise ValueError(f"a path has at most {_MAX_STEPS} steps")
    return tuple(steps)


@dataclass(frozen=True, slots=True)
class BodyChanger:
    """`BodyChanges`, compiled."""

    removals: tuple[Path, ...]
    renames: tuple[tuple[Path, str], ...]
    settings: tuple[tuple[Path, Template | orjson.Fragment], ...]
    max_bytes: int

    @property
    def templates(self) -> Iterator[Template]:
        return (value for _, value in self.settings if isinstance(value, Template))

    def changed(self, body: bytes, fields: RequestFields) -> bytes:
        """Raises NoJson; ClientFault for a value that the request makes too long."""
        document = _loads(body)
        for path in self.removals:
            for holder in _holders(document, path, makes=False):
                _remove(holder, path[-1])
        for path, to in self.renames:
            for holder in _holders(document, path, makes=False):
                if isinstance(holder, dict) and path[-1] in holder:
                    holder[to] = holder.pop(path[-1])
        for path, value in self.settings:
            if isinstance(value, Template):
                self._set_text(document, path, value.render(fields))
            else:
                for holder in _holders(document, path, makes=True):
                    _set(holder, path[-1], value)
        return _dumps(document)

    def _set_text(self, document: Any, path: Path, text: bytes | None) -> None:
        """What a client sent does not stay where the gateway has nothing to put in its place."""
        for holder in _holders(document, path, makes=text is not None):
            if text is None:
                _remove(holder, path[-1])
            else:
                _set(holder, path[-1], text.decode("utf-8", "replace"))


def _holders(document: Any, path: Path, *, makes: bool) -> list[Any]:
    """What holds the last step of the path; ``makes``: objects that are missing on the way are made."""
    holders = [document]
    for step, following in pairwise(path):
        found = []
        for holder in holders:
            if makes and isinstance(holder, dict) and isinstance(step, str) and isinstance(following, str):
                holder.setdefault(step, {})
            found += _children(holder, step)
        holders = found
    return holders


def _children(holder: Any, step: Step) -> list[Any]:
    if isinstance(holder, dict):
        return [holder[step]] if step in holder else []
    if isinstance(holder, list) and not isinstance(step, str):
        return holder if step is None else holder[step : step + 1]
    return []


def _remove(holder: Any, step: Step) -> None:
    if isinstance(holder, dict):
        holder.pop(step, None)
    elif isinstance(holder, list) and not isinstance(step, str):
        if step is None:
            holder.clear()
        else:
            del holder[step : step + 1]


def _set(holder: Any, step: Step, value: Any) -> None:
    if isinstance(holder, dict) and isinstance(step, str):
        holder[step] = value
    elif isinstance(holder, list) and not isinstance(step, str):
        for place in range(len(holder)) if step is None else range(len(holder))[step : step + 1]:
            holder[place] = value


def _loads(body: bytes) -> Any:
    try:
        # Nobody calculates with numbers here, so nothing of them may be lost.
        return json.loads(body.decode(), parse_float=orjson.Fragment, parse_int=orjson.Fragment, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise NoJson("The body is no JSON.") from None


def _refuse(text: str) -> None:
    raise ValueError(text)  # NaN and Infinity, which Python's parser takes


def _dumps(document: Any) -> bytes:
    try:
        return orjson.dumps(document)
    except TypeError:  # too deep, or half of a surrogate pair
        raise NoJson("The body is no JSON that could be written again.") from None


# --- compiling -----------------------------------------------------------------------------------------------------
def compile_body(policy: BodyChanges, template: CompileTemplate) -> BodyChanger:
    """Raises PolicyError for the first change that does not compile."""
    for error in faulty_body(policy, template):
        raise error
    return BodyChanger(
        tuple(parse_path(path) for path in policy.remove),
        tuple((parse_path(each.path), each.to) for each in policy.rename),
        tuple((parse_path(each.path), _value(each, template)) for each in policy.set),
        policy.max_bytes,
    )


def faulty_body(policy: BodyChanges, template: CompileTemplate) -> Iterator[PolicyError]:
    for place, path in enumerate(policy.remove):
        yield from _faults(f"remove[{place}]", path)
    for place, rename in enumerate(policy.rename):
        yield from _faults(f"rename[{place}].path", rename.path, is_member=True)
    for place, change in enumerate(policy.set):
        yield from _faults(f"set[{place}].path", change.path)
        try:
            _value(change, template)
        except ValueError as error:
            yield PolicyError(str(error), f"set[{place}].value")


def _faults(field: str, path: str, *, is_member: bool = False) -> Iterator[PolicyError]:
    try:
        steps = parse_path(path)
        if is_member and not isinstance(steps[-1], str):
            raise ValueError("only a member of an object has a name: an element cannot be renamed")
    except ValueError as error:
        yield PolicyError(str(error), field)


def _value(change: JsonChange, template: CompileTemplate) -> Template | orjson.Fragment:
    """Raises ValueError."""
    if isinstance(change.value, str):
        return template(change.value)
    try:
        return orjson.Fragment(orjson.dumps(change.value))
    except TypeError as error:
        raise ValueError(f"this cannot be sent as JSON: {error}") from None
