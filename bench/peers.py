"""The upstream, and the proxies that the gateway is compared with.

``envoy-1000`` does the gateway's work: 1,000 prefix routes, of which the request takes the 978th, an API key, a rate
limit, a JSON access log, weighted clusters. ``envoy-tree`` does the same with the routes in Envoy's prefix trie
(``matcher_tree``), which is its best way. The others do nothing but forward.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from bench.load import Party
from bench.machine import GATEWAY_CORE, LOAD_CORE, Stage, envoy_binary, eventually, free_port
from bench.plain_http import answers

BODY = '{"id":1,"name":"widget","price":12.5,"tags":["a","b"],"ok":true}'
ROUTES = 1_000
PATH = "/api/v1/s977/abc"
ECHOED = "/changed"
PROGRAMS = ("taskset", "wrk", "nginx", "haproxy", "envoy")
_KEY = "km_abcdefgh_" + "x" * 32
_V3 = "type.googleapis.com/envoy.extensions."
_API = "type.googleapis.com/envoy."

Json = dict[str, Any]


def start_upstream(stage: Stage) -> int:
    """nginx with one small JSON answer for everything, but under `ECHOED` the path itself. Returns its port."""
    port = free_port()
    server = (
        f"listen 127.0.0.1:{port} backlog=8192; default_type application/json;"
        f" location / {{ return 200 '{BODY}'; }} location {ECHOED}/ {{ return 200 '$uri'; }}"
    )
    stage.start(LOAD_CORE, "nginx", "-c", nginx_conf(stage.directory, "upstream", server))
    eventually(lambda: answers(port, "/"), "an answer of the upstream")
    return port


def nginx_conf(directory: Path, name: str, server: str, upstream: str = "") -> Path:
    path = directory / f"{name}.conf"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    user = "user root;\n" if os.geteuid() == 0 else ""  # the directory is ours alone
    temporary = " ".join(f"{kind}_temp_path {directory}/{name}-{kind};" for kind in kinds)
    path.write_text(
        f"{user}worker_processes 1; daemon off; pid {directory}/{name}.pid; error_log {directory}/{name}.err;\n"
        "events { worker_connections 8192; }\n"
        f"http {{ access_log off; keepalive_requests 1000000000; {temporary}\n {upstream} server {{ {server} }} }}\n"
    )
    return path


class Peers:
    """Starts peers in a stage, all of them in front of one upstream."""

    def __init__(self, stage: Stage, upstream_port: int) -> None:
        self._stage = stage
        self._upstream = upstream_port

    def start(self) -> list[Party]:
        """All of them, each on the gateway's core."""
        tree = {"matcher": {"matcher_tree": {"input": _path_input(), "prefix_match_map": {"map": _tree_routes()}}}}
        parties = [
            self._nginx(),
            self._haproxy(),
            self._envoy("envoy-bare", {"routes": [{"match": {"prefix": "/"}, "route": {"cluster": "u"}}]}, works=False),
            self._envoy("envoy-1000", {"routes": _linear_routes()}, works=True),
            self._envoy("envoy-tree", tree, works=True),
        ]
        for party in parties:
            eventually(partial(answers, party.port, PATH, party.headers), f"an answer of {party.name}")
        return parties

    def _nginx(self) -> Party:
        port = free_port()
        conf = nginx_conf(
            self._stage.directory,
            "proxy",
            f"listen 127.0.0.1:{port} backlog=8192; location / {{ proxy_http_version 1.1;"
            " proxy_set_header Connection ''; proxy_set_header X-Forwarded-For $remote_addr; proxy_pass http://u; }",
            f"upstream u {{ server 127.0.0.1:{self._upstream}; keepalive 256; keepalive_requests 1000000000; }}",
        )
        return self._party("nginx", port, "nginx", "-c", conf)

    def _haproxy(self) -> Party:
        port = free_port()
        conf = self._stage.directory / "haproxy.cfg"
        conf.write_text(
            "global\n  maxconn 8192\n  nbthread 1\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n"
            "  timeout server 30s\n  option http-keep-alive\n"
            f"frontend f\n  bind 127.0.0.1:{port}\n  default_backend b\n"
            f"backend b\n  http-reuse always\n  option forwardfor\n  server s 127.0.0.1:{self._upstream}\n"
        )
        return self._party("haproxy", port, "haproxy", "-db", "-f", conf)

    def _envoy(self, name: str, virtual_host: Json, *, works: bool) -> Party:
        port = free_port()
        log = self._stage.directory / f"{name}-access.log"
        manager = {
            "@type": _V3 + "filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "x",
            "use_remote_address": True,
            "access_log": [_access_log(log)] if works else [],
            "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], **virtual_host}]},
            "http_filters": [*(_filters() if works else []), _typed("router", "filters.http.router.v3.Router")],
        }
        listener = {
            "address": _address(port),
            "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
        }
        clusters = [_cluster(name, self._upstream) for name in ("u", "u2")]
        path = self._stage.directory / f"{name}.json"
        path.write_text(json.dumps({"static_resources": {"clusters": clusters, "listeners": [listener]}}))
        options = ("--concurrency", "1", "-l", "error", "--base-id", str(port))
        headers = (f"X-API-Key: {_KEY}",) if works else ()
        return self._party(name, port, envoy_binary() or "envoy", "-c", path, *options, headers=headers)

    def _party(self, name: str, port: int, *command: str | Path, headers: tuple[str, ...] = ()) -> Party:
        process = self._stage.start(GATEWAY_CORE, *command)
        return Party(name, process.pid, port, PATH, headers)


def _typed(name: str, kind: str, **config: Any) -> Json:
    return {"name": name, "typed_config": {"@type": _V3 + kind, **config}}


def _address(port: int) -> Json:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _cluster(name: str, port: int) -> Json:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}]
    assignment = {"cluster_name": name, "endpoints": endpoints}
    return {"name": name, "type": "STATIC", "outlier_detection": {"consecutive_5xx": 5}, "load_assignment": assignment}


def _split() -> Json:
    clusters = [{"name": "u", "weight": 90}, {"name": "u2", "weight": 10}]
    return {"weighted_clusters": {"clusters": clusters}, "timeout": "30s"}


def _linear_routes() -> list[Json]:
    return [{"match": {"path_separated_prefix": f"/api/v1/s{i}"}, "route": _split()} for i in range(ROUTES)]


def _tree_routes() -> Json:
    return {f"/api/v1/s{i}/": {"action": _route_action(f"/api/v1/s{i}/")} for i in range(ROUTES)}


def _route_action(prefix: str) -> Json:
    config = {"@type": _API + "config.route.v3.Route", "match": {"prefix": prefix}, "route": _split()}
    return {"name": "route", "typed_config": config}


def _path_input() -> Json:
    kind = _API + "type.matcher.v3.HttpRequestHeaderMatchInput"
    return {"name": "path", "typed_config": {"@type": kind, "header_name": ":path"}}


def _filters() -> list[Json]:
    always = {"default_value": {"numerator": 100}}
    return [
        _typed(
            "key",
            "filters.http.api_key_auth.v3.ApiKeyAuth",
            credentials=[{"key": _KEY, "client": "app1"}],
            key_sources=[{"header": "X-API-Key"}],
        ),
        _typed(
            "limit",
            "filters.http.local_ratelimit.v3.LocalRateLimit",
            stat_prefix="rl",
            token_bucket={"max_tokens": 10**8, "tokens_per_fill": 10**8, "fill_interval": "1s"},
            filter_enabled=always,
            filter_enforced=always,
            enable_x_ratelimit_headers="DRAFT_VERSION_03",
        ),
    ]


def _access_log(path: Path) -> Json:
    fields = {
        "ts": "%START_TIME%",
        "id": "%REQ(X-REQUEST-ID)%",
        "m": "%REQ(:METHOD)%",
        "p": "%REQ(:PATH)%",
        "s": "%RESPONSE_CODE%",
        "d": "%DURATION%",
        "c": "%UPSTREAM_CLUSTER%",
        "ip": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "b": "%BYTES_SENT%",
    }
    return _typed("file", "access_loggers.file.v3.FileAccessLog", path=str(path), log_format={"json_format": fields})
