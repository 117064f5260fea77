"""Whatever goes wrong in the control process becomes a problem document (`core.problem`), with a stable code.

Used by the REST framework (`exception_handler`), by Django's own error handlers, and for CSRF failures.
"""

import logging
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import DatabaseError, DataError, IntegrityError, InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.http.request import UnreadablePostError
from rest_framework import exceptions
from rest_framework.request import Request
from rest_framework.views import set_rollback

from core.faults import ClientFault, GatewayFault, InternalFault, PolicyDenied
from core.ids import new_request_id
from core.problem import render

logger = logging.getLogger("portcullis.control")
CHALLENGE = ((b"www-authenticate", b'Bearer realm="portcullis"'),)
_RETRY_AFTER_S = 2
_READ_ONLY = "25006"  # PostgreSQL's read_only_sql_transaction
_SNAKE = re.compile(r"_([a-z0-9])")
_BY_STATUS = {
    404: ("not_found", "There is nothing at this address."),
    413: ("payload_too_large", "The body is too large."),
    415: ("unsupported_media_type", "Send JSON, with Content-Type: application/json."),
}


def exception_handler(error: Exception, context: Mapping[str, Any]) -> HttpResponse:
    """The REST framework's ``EXCEPTION_HANDLER``."""
    set_rollback()
    return problem_response(as_fault(error), context["request"])


def problem_response(fault: GatewayFault, request: HttpRequest | Request) -> HttpResponse:
    request_id = getattr(request, "request_id", "") or new_request_id()
    status, headers, body = render(fault, request.path, request_id)
    response = HttpResponse(body, status=status)
    for name, value in headers:
        response[name.decode("latin-1")] = value.decode("latin-1")
    response["Cache-Control"] = "no-store"
    return response


def as_fault(error: BaseException | None) -> GatewayFault:
    """The fault that stands for an exception. What nobody foresaw is logged, and told without any detail."""
    if isinstance(error, GatewayFault):
        return _camelized(error)
    if isinstance(error, exceptions.APIException):
        return _from_framework(error)
    if is_database_away(error):
        return InternalFault(
            "dependency_unavailable", "The database cannot be reached at the moment.", retry_after_s=_RETRY_AFTER_S
        )
    if isinstance(error, IntegrityError):
        return ClientFault("conflict", "The change conflicts with what the database holds.")
    if isinstance(error, RequestDataTooBig):
        return ClientFault("payload_too_large", "The body is too large.")
    if isinstance(error, Http404):
        return ClientFault("not_found", "There is nothing at this address.")
    if isinstance(error, PermissionDenied):
        return PolicyDenied("insufficient_scope", "You may not do this.")
    if isinstance(error, SuspiciousOperation | DataError | UnreadablePostError):
        return ClientFault("bad_request", "The request is malformed.")
    logger.error("unexpected failure", exc_info=error)
    return InternalFault("internal_error", "The gateway failed to answer this request; its log says why.")


def is_database_away(error: BaseException | None) -> bool:
    """Whether the database cannot do its work at the moment: it is not there, only takes reads (after a failover), or
    is no database (a broken file)."""
    if isinstance(error, OperationalError | InterfaceError):
        return True
    is_read_only = getattr(error.__cause__, "sqlstate", None) == _READ_ONLY if error is not None else False
    return type(error) is DatabaseError or is_read_only


def _from_framework(error: exceptions.APIException) -> GatewayFault:
    if isinstance(error, exceptions.ValidationError):
        errors = dict(_flattened("", error.detail))
        return ClientFault("invalid_field", f"Not valid: {', '.join(sorted(errors))}.", members={"errors": errors})
    if isinstance(error, exceptions.NotAuthenticated):
        return PolicyDenied("missing_credentials", "Send an admin key, or sign in to the panel.", headers=CHALLENGE)
    if isinstance(error, exceptions.AuthenticationFailed):
        return PolicyDenied("invalid_credentials", "The credentials are not valid.", headers=CHALLENGE)
    if isinstance(error, exceptions.PermissionDenied):
        return PolicyDenied("insufficient_scope", str(error.detail))
    if isinstance(error, exceptions.MethodNotAllowed):
        return ClientFault("method_not_allowed", str(error.detail))
    code, detail = _BY_STATUS.get(error.status_code, ("bad_request", str(error.detail)))
    return ClientFault(code, detail)


def _flattened(prefix: str, detail: Any) -> Iterable[tuple[str, list[str]]]:
    """``{"weights": {"v1": ["…"]}}`` → ``("weights.v1", ["…"])``."""
    if isinstance(detail, Mapping):
        for name, inner in detail.items():
            yield from _flattened(f"{prefix}.{name}" if prefix else str(name), inner)
    elif isinstance(detail, list) and not any(isinstance(item, Mapping | list) for item in detail):
        yield prefix or "body", [str(item) for item in detail]
    else:
        for number, inner in enumerate(detail):
            yield from _flattened(f"{prefix}.{number}" if prefix else str(number), inner)


def camel(name: str) -> str:
    """``rate_limit`` → ``rateLimit``. What stands behind a dot is a name that somebody gave and stays."""
    head, dot, rest = name.partition(".")
    return _SNAKE.sub(lambda match: match[1].upper(), head) + dot + rest


def _camelized(fault: GatewayFault) -> GatewayFault:
    """Use-cases name fields by attribute, the API in camelCase."""
    errors = fault.members.get("errors")
    if not errors:
        return fault
    members = {**fault.members, "errors": {camel(name): sentences for name, sentences in errors.items()}}
    detail = f"Not valid: {', '.join(sorted(members['errors']))}." if fault.code == "invalid_field" else fault.detail
    return type(fault)(fault.code, detail, headers=fault.headers, members=members)


# --- Django's own handlers (gateway_project.urls, CSRF_FAILURE_VIEW) ------------------------------------------------
def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return problem_response(as_fault(exception), request)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    return problem_response(as_fault(exception), request)


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return problem_response(ClientFault("not_found", "There is nothing at this address."), request)


def server_error(request: HttpRequest) -> HttpResponse:
    return problem_response(as_fault(sys.exc_info()[1]), request)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    return problem_response(
        PolicyDenied("blocked", "The CSRF token is missing or wrong: load the page again."), request
    )
