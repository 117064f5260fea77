"""What can go wrong towards a target, as faults that say by phase whether a byte of the request may have been sent.

The ``error`` names are those of RFC 9209 section 2.3. ``next_hop`` is the service's name, not its address.
"""

import socket
import ssl

from core.faults import ConnectFault, ExchangeFault, UpstreamFault


class EgressDenied(OSError):
    """The address that the target's name resolved to is one that the gateway must not connect to (rule 25)."""


def connect_fault(error: BaseException, next_hop: str) -> ConnectFault:
    """The fault for an exception raised while connecting."""
    if isinstance(error, EgressDenied):
        reason, name = "its address is not one that the gateway may connect to", "destination_ip_prohibited"
    elif isinstance(error, ssl.SSLCertVerificationError):
        reason, name = "its certificate is not valid", "tls_certificate_error"
    elif isinstance(error, ssl.SSLError):
        reason, name = "the TLS handshake failed", "tls_protocol_error"
    elif isinstance(error, socket.gaierror):
        reason, name = "its name could not be resolved", "dns_error"
    elif isinstance(error, ConnectionRefusedError):
        reason, name = "it refused the connection", "connection_refused"
    elif isinstance(error, TimeoutError):
        reason, name = "the connection timed out", "connection_timeout"
    else:
        reason, name = "no connection could be made", "destination_unavailable"
    detail = f"The upstream {next_hop} could not be reached: {reason}."
    return ConnectFault("upstream_connect_failed", detail, request_sent=False, proxy_error=name, next_hop=next_hop)


def connect_timeout(next_hop: str) -> ConnectFault:
    detail = f"The upstream {next_hop} could not be reached in time."
    return ConnectFault(
        "upstream_timeout", detail, request_sent=False, proxy_error="connection_timeout", next_hop=next_hop
    )


def response_timeout(next_hop: str) -> UpstreamFault:
    detail = f"The upstream {next_hop} did not answer in time."
    return ExchangeFault(
        "upstream_timeout", detail, request_sent=True, proxy_error="http_response_timeout", next_hop=next_hop
    )


def connection_terminated(next_hop: str) -> UpstreamFault:
    detail = f"The upstream {next_hop} closed the connection before its answer was whole."
    return ExchangeFault(
        "upstream_reset", detail, request_sent=True, proxy_error="connection_terminated", next_hop=next_hop
    )


def invalid_response(next_hop: str) -> UpstreamFault:
    detail = f"The upstream {next_hop} sent something that is no valid HTTP answer."
    return ExchangeFault(
        "upstream_invalid_response", detail, request_sent=True, proxy_error="http_protocol_error", next_hop=next_hop
    )
