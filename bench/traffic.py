"""What policies cost: CPU time per request with several of them on, of a cache hit, and through TLS."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from bench.load import Measurement, Party, measure
from bench.lone_worker import HEADER, LoneWorker, service
from bench.machine import GATEWAY_CORE, LOAD_CORE, CannotMeasure, Stage, eventually, free_port
from bench.peers import BODY, PATH, nginx_conf
from bench.plain_http import answers
from bench.report import TIMES, Bar, report, say, table

PLAIN, POLICIES, HIT, TLS = "proxied", "with policies", "cache hit", "through TLS"
NGINX, NGINX_HIT, NGINX_TLS = "nginx", "nginx cache hit", "nginx TLS"


def run(*, rounds: int, seconds: int) -> None:
    """Raises CannotMeasure."""
    say("What policies cost: CPU time per request")
    with ExitStack() as stages:
        stage = stages.enter_context(Stage())
        parties = [*_ours(stage, _upstream(stage)), *_nginx(stage, _upstream(stage))]
        runs: dict[str, list[Measurement]] = {party.name: [] for party in parties}
        for number in range(1, rounds + 1):
            say(f"  round {number} of {rounds}")
            for party in parties:
                runs[party.name].append(measure(party, seconds))
    us = {name: statistics.median(each.cpu_us for each in measured) for name, measured in runs.items()}
    say()
    say(
        table(
            ("CPU µs per request", "median", "of our proxied"), [(name, us[name], us[name] / us[PLAIN]) for name in us]
        )
    )
    results = {"cpu_us": us, "measurements": {name: [asdict(each) for each in runs[name]] for name in runs}}
    report("traffic", results, bars(us))


def bars(us: Mapping[str, float]) -> list[Bar]:
    return [
        Bar(
            "health checks, breaker, retries, least connections: of the plain request",
            us[POLICIES] / us[PLAIN],
            1.1,
            TIMES,
        ),
        Bar("a cache hit with key, limit and log, of our proxied request", us[HIT] / us[PLAIN], 0.75, TIMES),
    ]


def _upstream(stage: Stage) -> int:
    """One small JSON answer, under /cached one that may be kept."""
    port = free_port()
    server = (
        f"listen 127.0.0.1:{port} backlog=8192; listen [::1]:{port}; default_type application/json;"
        f" location / {{ return 200 '{BODY}'; }}"
        f" location /cached {{ add_header Cache-Control 'public, max-age=3600'; return 200 '{BODY}'; }}"
    )
    stage.start(LOAD_CORE, "nginx", "-c", nginx_conf(stage.directory, f"upstream-{port}", server))
    eventually(lambda: answers(port, "/"), "an answer of the upstream")
    return port


def _ours(stage: Stage, upstream: int) -> list[Party]:
    url = f"http://127.0.0.1:{upstream}"
    certificate = self_signed(stage.directory)
    tls_port = free_port()
    services = [
        service("plain", url),
        service(
            "policies", url, url, f"http://localhost:{upstream}",
            load_balancing={"strategy": "least_connections"},
            health_checks={"active": {}, "passive": {}},
            circuit_breaker={},
            retries={},
        ),
        service("cached", f"{url}/cached", caching={}),
    ]  # fmt: skip
    worker = LoneWorker(
        stage, services, tls_port=tls_port, tls_certificate=str(certificate), tls_key=str(certificate)
    ).wait()
    for name in ("policies", "cached"):
        worker.wait(name)
    return [
        worker.party(PLAIN, "plain"),
        worker.party(POLICIES, "policies"),
        worker.party(HIT, "cached"),
        worker.party(TLS, "plain", scheme="https", port=tls_port),
    ]


def _nginx(stage: Stage, upstream: int) -> list[Party]:
    certificate = self_signed(stage.directory)
    ports = [free_port() for _ in range(3)]
    passing = "proxy_http_version 1.1; proxy_set_header Connection '';"
    common = f"upstream u {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}"
    common += f" proxy_cache_path {stage.directory}/nginx-cache keys_zone=z:10m;"
    cache = "proxy_cache z; proxy_cache_valid 200 1h;"
    tls = f"listen 127.0.0.1:{ports[2]} ssl; ssl_certificate {certificate}; ssl_certificate_key {certificate};"
    servers = (
        f"listen 127.0.0.1:{ports[0]}; location / {{ {passing} proxy_pass http://u; }}",
        f"listen 127.0.0.1:{ports[1]}; location / {{ {passing} {cache} proxy_pass http://u/cached; }}",
        f"{tls} location / {{ {passing} proxy_pass http://u; }}",
    )
    parties = []
    for name, server, port in zip((NGINX, NGINX_HIT, NGINX_TLS), servers, ports, strict=True):
        conf = nginx_conf(stage.directory, name.replace(" ", "-"), server, common)
        process = stage.start(GATEWAY_CORE, "nginx", "-c", conf)
        if name != NGINX_TLS:
            eventually(partial(answers, port, PATH), f"an answer of {name}")
        parties.append(Party(name, process.pid, port, PATH, (HEADER,), scheme="https" if name == NGINX_TLS else "http"))
    return parties


def self_signed(directory: Path) -> Path:
    """A certificate with its key in one file. Raises CannotMeasure."""
    path = directory / "certificate.pem"
    if not path.exists():
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        done = subprocess.run([*command, "-keyout", "-", "-out", "-"], capture_output=True)
        if done.returncode != 0:
            raise CannotMeasure(f"openssl makes no certificate: {done.stderr.decode(errors='replace')[-200:]}")
        path.write_bytes(done.stdout)
        path.chmod(0o600)
    return path
