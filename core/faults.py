"""The one fault tree. Every refusal or failure that the gateway itself reports is a `GatewayFault` with a stable code.

`GatewayFault` → `ClientFault` (the request is wrong), `PolicyDenied` (it is not allowed), `UpstreamFault` (the target
failed, by phase), `InternalFault` (we or something we depend on failed). `core.problem` renders them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from core.problem import Form


@dataclass(frozen=True, slots=True)
class FaultKind:
    """What one stable error code stands for."""

    code: str
    status: int
    title: str
    type: str


_IANA = "https://iana.org/assignments/http-problem-types#"
_ROWS: tuple[tuple[str, int, str], ...] = (
    ("bad_request", 400, "The request is malformed"),
    ("bad_path", 400, "The path is ambiguous or malformed"),
    ("missing_credentials", 401, "Credentials are required"),
    ("invalid_credentials", 401, "The credentials are not valid"),
    ("service_not_allowed", 403, "The application may not use this service"),
    ("version_not_allowed", 403, "The application may not use this version"),
    ("endpoint_not_whitelisted", 403, "The endpoint is not whitelisted for the application"),
    ("method_not_whitelisted", 403, "The method is not whitelisted for this endpoint"),
    ("password_change_required", 403, "A new password must be chosen first"),
    ("insufficient_scope", 403, "The credentials lack a required scope"),
    ("insufficient_role", 403, "The user has none of the required roles"),
    ("ip_not_allowed", 403, "The address is not allowed"),
    ("key_not_allowed_now", 403, "The key may not be used at this time"),
    ("blocked", 403, "The request is blocked"),
    ("no_route", 404, "Nothing is routed at this path"),
    ("unknown_version", 404, "The service has no such active version"),
    ("not_found", 404, "There is no such object"),
    ("method_not_allowed", 405, "The method is not allowed here"),
    ("request_timeout", 408, "The request took too long to arrive"),
    ("conflict", 409, "The change conflicts with the present state"),
    ("version_retired", 410, "The version is retired"),
    ("stale_revision", 412, "The object has changed since it was read"),
    ("payload_too_large", 413, "The body is too large"),
    ("uri_too_long", 414, "The request target is too long"),
    ("unsupported_media_type", 415, "The media type is not supported"),
    ("invalid_field", 422, "A field is not valid"),
    ("upgrade_required", 426, "Another version of the protocol is required"),
    ("precondition_required", 428, "The request must be conditional"),
    ("header_too_large", 431, "The header section is too large"),
    ("rate_limited", 429, "Too many requests"),
    ("quota_exceeded", 429, "The quota is used up"),
    ("internal_error", 500, "The gateway failed"),
    ("upstream_connect_failed", 502, "The upstream could not be reached"),
    ("upstream_reset", 502, "The upstream closed the connection"),
    ("upstream_invalid_response", 502, "The upstream sent an invalid response"),
    ("aggregate_failed", 502, "What the answer is made of could not be had"),
    ("circuit_open", 503, "The upstream is failing and is left alone for a while"),
    ("no_healthy_target", 503, "No target can take the request"),
    ("maintenance", 503, "The service is being maintained"),
    ("overloaded", 503, "The gateway is overloaded"),
    ("dependency_unavailable", 503, "Something the gateway depends on is away"),
    ("not_cached", 504, "No stored answer can be used"),
    ("upstream_timeout", 504, "The upstream took too long"),
    ("loop_detected", 508, "The request goes round in a circle"),
)
_TYPES = {
    "rate_limited": _IANA + "quota-exceeded",
    "quota_exceeded": _IANA + "quota-exceeded",
    "overloaded": _IANA + "temporary-reduced-capacity",
}
KINDS: Mapping[str, FaultKind] = {
    code: FaultKind(code, status, title, _TYPES.get(code, f"urn:portcullis:error:{code}"))
    for code, status, title in _ROWS
}


class GatewayFault(Exception):
    """A failure that the gateway reports.

    ``detail`` is one sentence that helps whoever reads it and holds no secret. ``headers`` go out with the answer,
    ``members`` become further members of the problem document (RFC 9457 section 3.2), ``proxy_error`` is the
    ``error`` parameter of Proxy-Status (RFC 9209 section 2.3). ``form`` is what `core.problem.common` remembers.
    """

    form: "Form | None" = None

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        members: Mapping[str, Any] | None = None,
        proxy_error: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = KINDS[code]
        self.detail = detail
        self.headers = headers
        self.members = members or {}
        self.proxy_error = proxy_error
        self.retry_after_s = retry_after_s

    def again(self) -> Self:
        """One that says the same. An exception that has been raised holds on to the request that it was raised for, so
        one that stays, to be raised for many, is never raised itself."""
        twin = type(self).__new__(type(self), self.detail)
        twin.__dict__ = self.__dict__
        return twin

    @property
    def code(self) -> str:
        return self.kind.code

    @property
    def status(self) -> int:
        return self.kind.status


class ClientFault(GatewayFault):
    """The request is malformed, too large, too slow, or names nothing."""


class PolicyDenied(GatewayFault):
    """The request is well formed and not allowed."""


class UpstreamFault(GatewayFault):
    """The target failed. ``request_sent`` tells whether any byte of the request may have reached it (rules 7, 8)."""

    def __init__(self, code: str, detail: str, *, request_sent: bool, proxy_error: str, next_hop: str = "") -> None:
        super().__init__(code, detail, proxy_error=proxy_error)
        self.request_sent = request_sent
        self.next_hop = next_hop


class ConnectFault(UpstreamFault):
    """No connection could be made: refused, unreachable, TLS failed, or timed out before the first byte was sent."""


class ExchangeFault(UpstreamFault):
    """The connection failed while the request was sent or the answer was read."""


class InternalFault(GatewayFault):
    """The gateway, or the database or broker behind it, failed."""
