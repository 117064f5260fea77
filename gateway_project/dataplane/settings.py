"""What a worker must know of the settings. Workers load no Django, so whoever starts one hands this over as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import orjson

from core.masking import CLASSES


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Plain values from `gateway_project.settings`; durations in seconds, sizes in bytes."""

    service_name: str
    node_name: str
    slot: int
    workers: int
    bind: str
    port: int
    agent_socket: str  # paths of Unix sockets
    control_socket: str
    snapshot_path: str  # the last good snapshot
    access_log: str  # a path, or "-"
    log_level: str
    embedded: bool
    pepper: str  # hexadecimal
    api_key_header: str
    api_key_prefix: str
    cors_origins: tuple[str, ...]
    trusted_proxies: tuple[str, ...]
    egress_allow: tuple[str, ...]
    rate_limit_requests: int
    rate_limit_window_s: int
    auth_failures_per_minute: int
    max_body_bytes: int
    max_header_field_bytes: int
    request_timeout_s: float
    max_config_age_s: float
    admin_api_on_gateway_port: bool
    docs_on_gateway_port: bool
    metrics_port: int
    metrics_token: str
    circuit_failures: int = 5  # in a row
    circuit_open_s: float = 30.0
    metrics_host: str = "127.0.0.1"  # where the agent of this host serves them
    tls_port: int = 0  # 0: none
    tls_certificate: str = ""  # paths
    tls_key: str = ""
    tls_certificates_dir: str = ""
    tls_min_version: str = "1.2"
    https_redirect_port: int = 0  # where the plain port sends clients; 0: it serves them
    hsts: str = ""
    http2: bool = True  # on the TLS port
    proxy_protocol: bool = False
    secrets_dir: str = "/run/secrets"  # of secret://file/…
    redis_url: str = ""  # for what workers share; empty: nothing
    redis_wait_s: float = 0.05  # of a request, for a stored answer that is shared
    cache_bytes: int = 64 * 1024 * 1024  # of stored answers
    tls_client_ca: str = ""  # a path
    tls_client_crl: str = ""
    tls_client_certificates: str = "off"  # or "optional", "required"
    trust_client_cert_field: bool = False  # of trusted proxies (RFC 9440)
    token_secret: str = ""  # hexadecimal: JWT_SECRET, where it signs our own tokens
    token_decryption_key: str = ""  # base64url: of our own tokens, where they are encrypted
    rate_limit_mode: Literal["local", "strict", "leased"] = "local"  # of limits that name none
    rate_limit_wait_s: float = 0.1  # of a request, for Redis
    rate_limit_legacy_headers: bool = False  # X-RateLimit-*
    mask: tuple[str, ...] = CLASSES  # of what logs must not hold (`core.masking`)
    mask_patterns: tuple[str, ...] = ()
    own_secret_files: tuple[str, ...] = ()  # which no reference reaches

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> WorkerSettings:
        values = orjson.loads(data)
        for name in ("cors_origins", "trusted_proxies", "egress_allow", "own_secret_files", "mask", "mask_patterns"):
            values[name] = tuple(values[name])
        return cls(**values)
