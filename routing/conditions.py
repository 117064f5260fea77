"""Conditions of routes beyond host, path and method (R4): header fields, query parameters, parameters of the path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from core.policies import PolicyError
from routing.expressions import compile_expression
from routing.policies import Conditions, FieldCondition
from routing.request_fields import RequestFields
from routing.templates import field_name

Test = Callable[[bytes], bool]


@dataclass(frozen=True, slots=True)
class Condition:
    """``test`` is for the value; None: it is only asked whether there is one, and ``wanted`` is the answer."""

    test: Test | None
    wanted: bool = True

    def holds(self, values: list[bytes]) -> bool:
        """Whether any of the values passes."""
        if self.test is None:
            return bool(values) is self.wanted
        return any(map(self.test, values))


@dataclass(frozen=True, slots=True)
class RouteConditions:
    """All of them must hold. ``count``: a route with more of them is more specific."""

    headers: tuple[tuple[bytes, Condition], ...]
    query: tuple[tuple[bytes, Condition], ...]
    segments: tuple[tuple[int, Condition], ...]
    count: int

    def hold(self, fields: RequestFields) -> bool:
        """The path is looked at first: as long as it decides, the decision holds for every request for it."""
        for place, condition in self.segments:
            segment = fields.segment(place)
            if not condition.holds([] if segment is None else [segment]):
                return False
        if fields.has_headers:
            for name, condition in self.headers:
                value = fields.header(name)
                if not condition.holds([] if value is None else [value]):
                    return False
        return all(condition.holds(fields.parameters(name)) for name, condition in self.query)


def compile_conditions(policy: Conditions, parameters: Mapping[str, int]) -> RouteConditions:
    """``parameters``: names in the route's path, and which segment each one is. Raises PolicyError for the first one
    that does not compile."""
    for error in faulty_conditions(policy, parameters):
        raise error
    return RouteConditions(
        tuple((field_name(each.name), _compile(each)) for each in policy.headers),
        tuple((each.name.encode(), _compile(each)) for each in policy.query),
        tuple((parameters[each.name], _compile(each)) for each in policy.path_parameters),
        len(policy.headers) + len(policy.query) + len(policy.path_parameters),
    )


def faulty_conditions(policy: Conditions, parameters: Mapping[str, int]) -> Iterator[PolicyError]:
    """What is wrong with each of them; ``field`` as in the document (``headers[0].matches``)."""
    for place, each in enumerate(policy.headers):
        try:
            field_name(each.name)
        except ValueError as error:
            yield PolicyError(str(error), f"headers[{place}].name")
        yield from _faulty_test(each, f"headers[{place}]")
    for place, each in enumerate(policy.query):
        yield from _faulty_test(each, f"query[{place}]")
    for place, each in enumerate(policy.path_parameters):
        if each.name not in parameters:
            yield PolicyError(f"the route's path has no {{{each.name}}}", f"pathParameters[{place}].name")
        if each.present is not None:
            sentence = "a parameter of the path is always there"
            yield PolicyError(sentence, f"pathParameters[{place}].present")
        yield from _faulty_test(each, f"pathParameters[{place}]")


def _faulty_test(condition: FieldCondition, field: str) -> Iterator[PolicyError]:
    try:
        _compile(condition)
    except ValueError as error:
        yield PolicyError(str(error), f"{field}.matches")


def _compile(condition: FieldCondition) -> Condition:
    """Raises ValueError for an expression that is none."""
    if condition.equals is not None:
        return Condition(condition.equals.encode().__eq__)
    if condition.prefix is not None:
        prefix = condition.prefix.encode()
        return Condition(lambda value: value.startswith(prefix))
    if condition.matches is not None:
        expression = compile_expression(condition.matches)
        return Condition(lambda value: expression.fullmatch(value) is not None)
    return Condition(None, condition.present is not False)
