"""Logins beside argon2's own cost, what they do to the admin API meanwhile, and how fast a worker checks new tokens."""

from __future__ import annotations

import json
import statistics
import threading
import time
from typing import Any

from argon2 import PasswordHasher
from joserfc import jwt
from joserfc.jwk import ECKey

from access.tokens.keys import published_keys
from access.tokens.parsing import SignedToken, parse
from bench.databases import SMALL, Databases
from bench.gateways import READY_S, Gateway
from bench.machine import CannotMeasure, Stage, eventually
from bench.plain_http import Client, answers
from bench.report import TIMES, Bar, report, say, table

_PASSWORD = "a password of the benchmark"
_CLIENTS = 4
_CHECKS = 3_000
_ALONE, _BESIDE = "alone", "beside logins"


def run(databases: Databases, *, seconds: int) -> None:
    """Raises CannotMeasure."""
    say("Logins")
    database = databases.get(SMALL)
    hashes = _hashes_per_second(seconds)
    with Stage() as stage:
        gateway = Gateway(stage, database, PASSWORD_THREADS="1")
        gateway.start_control()
        eventually(lambda: answers(gateway.admin_port, "/health"), "the control process", READY_S)
        admin = Client(gateway.admin_port, {"X-API-Key": database.admin_key})
        names = _make_users(admin)
        admin_ms = {_ALONE: _admin_ms(admin, seconds)}
        logins, admin_ms[_BESIDE] = _log_in(gateway, names, admin, max(seconds, 3))
    checks = _checks_per_second()
    rows = [
        ("argon2id hashes on one core", hashes),
        ("logins, one password at a time", logins),
        ("signatures of new tokens in one worker", checks),
    ]
    say(table(("per second", ""), rows))
    say(table(("the admin API, ms", "median", "p99"), [(name, *both) for name, both in admin_ms.items()]))
    bars = [Bar("argon2's rate, of the logins'", hashes / logins, 1.5, TIMES)]
    report("logins", {"per_second": dict(rows), "admin_ms": admin_ms}, bars)


def _hashes_per_second(seconds: int) -> float:
    hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        hasher.hash(_PASSWORD)
        count += 1
    return count / (time.perf_counter() - began)


def _make_users(admin: Client) -> list[str]:
    names = [f"bench{number}@example.com" for number in range(_CLIENTS)]
    for name in names:
        fields = {"username": name, "role": "passenger", "password": _PASSWORD}
        status, body, _ = admin.ask("POST", "/admin/access/end-users", fields, Prefer="wait=0")
        if status != 201:
            raise CannotMeasure(f"no end user can be made: {body.decode()[:300]}")
    return names


def _admin_ms(admin: Client, seconds: float) -> tuple[float, float]:
    """Median and 99th percentile of a small question, over and over."""
    taken, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        status, body, _ = admin.ask("GET", "/admin/access/end-user-roles")
        if status != 200:
            raise CannotMeasure(f"the admin API says {status}: {body.decode()[:300]}")
        taken.append(1e3 * (time.perf_counter() - began))
        time.sleep(0.01)
    return statistics.median(taken), statistics.quantiles(taken, n=100)[98]


def _log_in(gateway: Gateway, names: list[str], admin: Client, seconds: float) -> tuple[float, tuple[float, float]]:
    """Logins per second of as many clients as there are names, and what the admin API takes meanwhile."""
    stop, done, refused = threading.Event(), [0] * len(names), list[str]()

    def work(number: int) -> None:
        client = Client(gateway.admin_port, {})
        credentials: dict[str, Any] = {"username": names[number], "password": _PASSWORD}
        while not stop.is_set():
            status, body, _ = client.ask("POST", "/auth/login", credentials)
            if status != 200:
                refused.append(body.decode()[:300])
                return
            credentials["device_token"] = json.loads(body)["device_token"]
            done[number] += 1
        client.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(names))]
    for thread in threads:
        thread.start()
    eventually(lambda: refused or all(done), "a login of each client", READY_S)
    before, began = sum(done), time.perf_counter()
    admin_ms = _admin_ms(admin, seconds)
    per_second = (sum(done) - before) / (time.perf_counter() - began)
    stop.set()
    for thread in threads:
        thread.join()
    if refused:
        raise CannotMeasure(f"a login was refused: {refused[0]}")
    return per_second, admin_ms


def _checks_per_second() -> float:
    """Tokens that were never seen before: their form, and their signature by ES256."""
    key = ECKey.generate_key("P-256", {"kid": "bench", "alg": "ES256", "use": "sig"})
    header = {"alg": "ES256", "kid": "bench", "typ": "at+jwt"}
    claims = {"iss": "portcullis", "sub": "usr_1", "exp": 2_000_000_000}
    tokens = [
        jwt.encode(header, claims | {"jti": str(number)}, key, algorithms=["ES256"]).encode()
        for number in range(_CHECKS)
    ]
    keys = published_keys({"keys": [key.as_dict(private=False)]}, ["ES256"])
    began = time.perf_counter()
    for token in tokens:
        signed = parse(token)
        assert isinstance(signed, SignedToken)
        keys.verify(signed)
    return _CHECKS / (time.perf_counter() - began)
