"""What the views of ``/api/v1/management/…`` share: names are in snake_case there."""

from collections.abc import Callable, Mapping
from typing import Any

from django.http import HttpResponse

from core.api_problems import as_fault, problem_response
from core.faults import GatewayFault


class SnakeCaseErrors:
    """Problem documents name members as these endpoints do."""

    def get_exception_handler(self) -> Callable[[Exception, Mapping[str, Any]], HttpResponse]:
        return _handle


def _handle(error: Exception, context: Mapping[str, Any]) -> HttpResponse:
    fault = error if isinstance(error, GatewayFault) else _listed(as_fault(error))
    return problem_response(fault, context["request"])


def _listed(fault: GatewayFault) -> GatewayFault:
    """What is said of a list stands at the list: ``conditions.body`` is the framework's name for it."""
    errors = fault.members.get("errors")
    if not errors:
        return fault
    renamed = {name.removesuffix(".body"): sentences for name, sentences in errors.items()}
    detail = f"Not valid: {', '.join(sorted(renamed))}."
    return type(fault)(fault.code, detail, members={**fault.members, "errors": renamed})
