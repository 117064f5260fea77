"""What can go wrong towards a target, as faults that say by phase whether a byte of the request may have been sent.

The ``error`` names are those of RFC 9209 section 2.3. ``next_hop`` is the service's name, not its address.
"""

import socket
import ssl

from core.faults import ConnectFault, ExchangeFault, UpstreamFault


class EgressDenied(OSError):
    """The address that the target's name resolved to is one that the gateway must not connect to (rule 25)."""


class ClientCertificateUnusable(OSError):
    """The client certificate that a policy names cannot be had, or is none. ``str()`` holds nothing of it."""


# OpenSSL's verify codes (x509_vfy.h); its own messages repeat the name or address of the target.
_WRONG = {
    9: "its time has not come",
    10: "it has expired",
    23: "it has been revoked",
    26: "it is not meant for servers",
    62: "it is for another name",
    64: "it is for another address",
}


def connect_fault(error: BaseException, next_hop: str) -> ConnectFault:
    """The fault for an exception raised while connecting."""
    if isinstance(error, EgressDenied):
        reason, name = "its address is not one that the gateway may connect to", "destination_ip_prohibited"
    elif isinstance(error, ClientCertificateUnusable):
        reason, name = f"the gateway's client certificate is unusable ({error})", "proxy_configuration_error"
    elif isinstance(error, ssl.SSLCertVerificationError):
        wrong = _WRONG.get(error.verify_code, "no authority that the gateway trusts has signed it")
        reason, name = f"its certificate is not valid ({wrong})", "tls_certificate_error"
    elif isinstance(error, ssl.SSLError) and (alert := _alert(error)):
        reason, name = f"it ended the TLS handshake ({alert})", "tls_alert_received"
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


def connection_terminated(next_hop: str, error: BaseException | None = None) -> UpstreamFault:
    """``error`` is what ended the connection, if anything did: in TLS 1.3 a server judges a client certificate when
    the handshake is over for the client (RFC 8446 section 4.4.2.4)."""
    alert = _alert(error) if isinstance(error, ssl.SSLError) else ""
    how = f" with a TLS alert ({alert})" if alert else ""
    detail = f"The upstream {next_hop} closed the connection{how} before its answer was whole."
    name = "tls_alert_received" if alert else "connection_terminated"
    return ExchangeFault("upstream_reset", detail, request_sent=True, proxy_error=name, next_hop=next_hop)


def invalid_response(next_hop: str) -> UpstreamFault:
    detail = f"The upstream {next_hop} sent something that is no valid HTTP answer."
    return ExchangeFault(
        "upstream_invalid_response", detail, request_sent=True, proxy_error="http_protocol_error", next_hop=next_hop
    )


def _alert(error: ssl.SSLError) -> str:
    """The TLS alert that the other end sent, in words; empty where it sent none."""
    _, mark, alert = (error.reason or "").partition("ALERT_")
    return alert.replace("_", " ").lower() if mark else ""
