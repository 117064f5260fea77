"""What a worker must know of the settings. Workers load no Django, so whoever starts one hands this over as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import orjson


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
    metrics_host: str = "127.0.0.1"  # where the agent of this host serves them

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> WorkerSettings:
        values = orjson.loads(data)
        for name in ("cors_origins", "trusted_proxies", "egress_allow"):
            values[name] = tuple(values[name])
        return cls(**values)
