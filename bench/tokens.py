"""What tokens cost: CPU time per request with a key, with a JWT that comes again and again, and with JWTs that are new.

All three go through one worker that knows an issuer. More different tokens are sent than a worker remembers, in turn,
so that each of the new ones costs its signature check.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial

from bench.load import Measurement, Party, measure
from bench.lone_worker import LoneWorker, service
from bench.machine import LOAD_CORE, Stage, eventually, free_port
from bench.peers import BODY, nginx_conf
from bench.plain_http import answers
from bench.report import TIMES, Bar, report, say, table
from tests.token_makers import AUDIENCE, ISSUER, claims, jwks, token
from tests.wires import issuer_wire

KEYED, HOT, COLD = "key", "hot token", "cold tokens"
DIFFERENT_TOKENS = 9_000


def run(*, rounds: int, seconds: int, different: int = DIFFERENT_TOKENS) -> None:
    """Raises CannotMeasure."""
    say("What tokens cost: CPU time per request")
    with ExitStack() as stages:
        stage = stages.enter_context(Stage())
        parties = _parties(stage, different)
        runs: dict[str, list[Measurement]] = {party.name: [] for party in parties}
        for number in range(1, rounds + 1):
            say(f"  round {number} of {rounds}")
            for party in parties:
                runs[party.name].append(measure(party, seconds))
    us = {name: statistics.median(each.cpu_us for each in measured) for name, measured in runs.items()}
    say()
    say(
        table(("CPU µs per request", "median", "of the keyed"), [(name, us[name], us[name] / us[KEYED]) for name in us])
    )
    results = {"cpu_us": us, "measurements": {name: [asdict(each) for each in runs[name]] for name in runs}}
    report("tokens", results, bars(us))


def bars(us: Mapping[str, float]) -> list[Bar]:
    return [Bar("a token that comes again, of the request with a key", us[HOT] / us[KEYED], 1.15, TIMES)]


def _parties(stage: Stage, different: int) -> list[Party]:
    upstream = free_port()
    server = f"listen 127.0.0.1:{upstream} backlog=8192; location / {{ return 200 '{BODY}'; }}"
    stage.start(LOAD_CORE, "nginx", "-c", nginx_conf(stage.directory, "upstream", server))
    eventually(partial(answers, upstream, "/"), "an answer of the upstream")
    issuer = issuer_wire(issuer=ISSUER, rules={"jwks": jwks(), "audiences": [AUDIENCE]})
    worker = LoneWorker(stage, [service("plain", f"http://127.0.0.1:{upstream}")], issuers=[issuer]).wait()
    keyed = worker.party(KEYED, "plain")
    tokens = stage.directory / "tokens"
    until = int(time.time()) + 86_400
    tokens.write_bytes(b"\n".join(token(claims(exp=until, jti=str(number))) for number in range(different)))
    hot = f"Authorization: Bearer {token(claims(exp=until)).decode()}"
    return [
        keyed,
        replace(keyed, name=HOT, headers=(hot,)),
        replace(keyed, name=COLD, headers=(), script="cold_tokens.lua", arguments=(str(tokens),)),
    ]
