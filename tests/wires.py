"""Wire records as the compilers send them, small and valid; tests change what they are about."""

from typing import Any

Wire = dict[str, Any]


def service_wire(**changes: Any) -> Wire:
    return {
        "id": "svc_1",
        "tenant": "default",
        "name": "orders",
        "versions": [],
        "current_version": "",
        "default_url": "",
        "fallback_url": "",
        "path_prefix": "",
        "implicit": True,
        "is_active": True,
        "request_timeout_ms": None,
        "connect_timeout_ms": None,
        "idle_timeout_ms": None,
        "total_timeout_ms": None,
        "health_endpoint": "",
        "upstream_credentials": [],
        "circuit_resets": 0,
        "policies": {},
        "phase": "",
    } | changes


def version_wire(name: str, weight: int = 0, url: str = "http://10.0.0.1:8000") -> Wire:
    return {
        "name": name,
        "weight": weight,
        "url": url,
        "targets": [],
        "lifecycle": "supported",
        "deprecated_at": None,
        "sunset_at": None,
        "deprecation_link": "",
    }


def gateway_wire(**policies: Any) -> Wire:
    return {"id": "gateway", "tenant": "default", "name": "the gateway", "policies": policies}


def route_wire(id: str, path: str, **changes: Any) -> Wire:
    return {
        "id": id,
        "tenant": "default",
        "name": id,
        "hosts": [],
        "path": path,
        "methods": [],
        "priority": 0,
        "is_active": True,
        "service": "orders",
        "queue_route": None,
        "version": "",
        "strip_prefix": "",
        "replace_prefix": "",
        "request_timeout_ms": None,
        "total_timeout_ms": None,
        "max_body_bytes": None,
        "allow_empty_segments": False,
        "retry_unsafe_methods": False,
        "pass_credentials": False,
        "connect_timeout_ms": None,
        "idle_timeout_ms": None,
        "requires_key": True,
        "policies": {},
    } | changes


def application_wire(**changes: Any) -> Wire:
    return {
        "id": "app_1",
        "tenant": "default",
        "name": "web",
        "services": ["*"],
        "versions": ["*"],
        "endpoint_mode": "all",
        "rate_limit": None,
        "priority": 5,
        "policies": {},
        "entries": [],
    } | changes


def entry_wire(id: str, path: str, **changes: Any) -> Wire:
    return {
        "id": id,
        "path": path,
        "methods": ["*"],
        "versions": ["*"],
        "rate_limit": None,
        "is_public": False,
    } | changes


def key_wire(id: str, digest: bytes, **changes: Any) -> Wire:
    return {
        "id": id,
        "tenant": "default",
        "digest": digest.hex(),
        "application": "app_1",
        "expires_at": None,
        "scopes": [],
    } | changes


def limit_wire(id: str = "lim_1", *, name: str = "burst", tenant: str = "default", **rule: Any) -> Wire:
    return {"id": id, "tenant": tenant, "name": name, "rule": {"limit": 100} | rule, "bundles": []}


def queue_route_wire(**changes: Any) -> Wire:
    return {"id": "que_1", "tenant": "default", "name": "mail", "arguments": "members"} | changes


def issuer_wire(**changes: Any) -> Wire:
    return {
        "id": "iss_1",
        "tenant": "default",
        "name": "login",
        "issuer": "https://login.example.com",
        "application": "app_1",
        "rules": {"jwksUrl": "https://login.example.com/jwks"},
    } | changes
