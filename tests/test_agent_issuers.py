"""How the agent asks issuers of tokens: what it takes, where it goes, and what it keeps (rule 25)."""

import asyncio
import json
import stat
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from access.addresses import EgressPolicy
from access.policies import Introspection
from access.tokens.fetching import MAX_BYTES, IssuerAway, IssuerClient
from core.faults import InternalFault
from core.secret_references import SecretReferences
from gateway_project.agent.issuers import Issuers
from gateway_project.agent.store import ConfigStore, Position, encoded_record, no_records
from tests.links import until
from tests.scripted_upstream import Peer, Upstream
from tests.token_makers import jwks, private_key
from tests.wires import issuer_wire

LOOPBACK = EgressPolicy(["127.0.0.0/8"]).permits


def answer(document: Any, *fields: str, status: str = "200 OK") -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *fields]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@pytest.fixture
def serving() -> Any:
    """A server that answers its requests in turn, the last answer for ever; all end with the test."""
    upstreams = []

    def serve(*answers: bytes) -> Upstream:
        def script(peer: Peer) -> None:
            while peer.read_request() is not None:
                peer.send(answers[min(len(peer.upstream.requests), len(answers)) - 1])

        upstreams.append(Upstream(script))
        return upstreams[-1]

    yield serve
    for upstream in upstreams:
        upstream.close()
        assert not upstream.failures


def asked(act: Callable[[IssuerClient], Coroutine[Any, Any, Any]], permits: Callable[[str], bool] = LOOPBACK) -> Any:
    async def run() -> Any:
        client = IssuerClient(permits)
        try:
            return await act(client)
        finally:
            await client.aclose()

    return asyncio.run(run())


async def _keys_at(url: str, client: IssuerClient) -> Any:
    return await client.keys(url)


# --- the client ----------------------------------------------------------------------------------------------------
def test_only_public_keys_are_taken_and_cache_control_is_heard(serving: Any) -> None:
    document = {"keys": [*jwks("RS256", "ES256")["keys"], {"kty": "unheard-of"}]}
    upstream = serving(answer(document, "Cache-Control: max-age=120"))
    keys, cache_control = asked(lambda client: client.keys(f"{upstream.url}/jwks?v=1"))
    assert ([key["kty"] for key in keys], cache_control) == (["RSA", "EC"], "max-age=120")
    seen = upstream.requests[0]
    assert seen.target == b"/jwks?v=1"
    assert seen.field("host") == f"127.0.0.1:{upstream.port}".encode()


WRONG = {
    "a redirect": answer(b"", "Location: /elsewhere", status="302 Found"),
    "an error": answer(jwks(), status="500 Oops"),
    "no JSON": answer(b"<html>"),
    "no set": answer(["keys"]),
    "a private key": answer({"keys": [dict(private_key().as_dict(private=True))]}),
    "a shared key": answer({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}),
    "not a kind of key": answer({"keys": "RSA"}),
    "too much": answer(b" " * (MAX_BYTES + 1)),
    "compressed": answer(jwks(), "Content-Encoding: gzip"),
    "no HTTP": b"ho\r\n\r\n",
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_jwk_set_is_not_taken(serving: Any, what: str) -> None:
    upstream = serving(WRONG[what])
    with pytest.raises(IssuerAway):
        asked(lambda client: client.keys(upstream.url))
    assert len(upstream.requests) == 1


def test_addresses_are_judged_after_resolving(serving: Any) -> None:
    upstream = serving(answer(jwks()))
    for url in (upstream.url, f"http://localhost:{upstream.port}/", "http://169.254.169.254/latest/meta-data"):
        with pytest.raises(IssuerAway, match="EGRESS_ALLOW"):
            asked(partial(_keys_at, url), EgressPolicy([]).permits)
    assert not upstream.requests


def test_an_issuer_is_asked_for_its_opinion_with_the_clients_password(serving: Any) -> None:
    upstream = serving(answer({"active": True, "sub": "ada"}), answer({"active": False, "sub": "x"}), answer({}))
    policy = Introspection(url=f"{upstream.url}/i", client_id="a b", client_secret="secret://env/UPSTREAM_X")
    assert asked(lambda client: client.opinion(policy, b"p:w", "t&1")) == {"active": True, "sub": "ada"}
    seen = upstream.requests[0]
    assert seen.field("authorization") == b"Basic YStiOnAlM0F3"  # a+b:p%3Aw
    assert seen.body == b"token=t%261&token_type_hint=access_token"
    assert asked(lambda client: client.opinion(policy, b"p:w", "t")) is None
    with pytest.raises(IssuerAway, match="did not say"):
        asked(lambda client: client.opinion(policy, b"p:w", "t"))


# --- the agent's part ----------------------------------------------------------------------------------------------
class Running:
    """`Issuers` over a store of its own."""

    def __init__(self, directory: Path, *wires: dict[str, Any]) -> None:
        self.store = ConfigStore()
        self.changes = 0
        secrets = SecretReferences("/nowhere", environment={"UPSTREAM_X": "pw"})
        self.path = directory / "issuer-keys.json"
        self.issuers = Issuers(self.store, LOOPBACK, secrets, self.path, self._changed)
        self.put(1, *wires)

    def _changed(self) -> None:
        self.changes += 1

    def put(self, number: int, *wires: dict[str, Any]) -> None:
        records = no_records()
        records["issuer"] = {wire["id"]: encoded_record(wire) for wire in wires}
        self.store.load(Position(number, "t"), records, {})

    def known(self) -> Any:
        _, message = self.issuers.since(None)
        assert message is not None
        return {id: {"keys": each["keys"]} for id, each in message["issuers"].items()}


def play(running: Running, scenario: Callable[[Running], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        task = asyncio.create_task(running.issuers.run())
        try:
            await scenario(running)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def wire(upstream: Upstream, **rules: Any) -> dict[str, Any]:
    return issuer_wire(rules={"jwksUrl": upstream.url, **rules})


def test_keys_are_fetched_told_and_kept_over_a_restart(serving: Any, tmp_path: Path) -> None:
    upstream = serving(answer(jwks()))

    async def fetched(running: Running) -> None:
        await until(lambda: running.known() == {"iss_1": {"keys": jwks()["keys"]}})
        number, message = running.issuers.since(None)
        assert message is not None
        assert running.issuers.since(number) == (number, None)
        await until(running.path.exists)

    running = Running(tmp_path, wire(upstream))
    play(running, fetched)
    assert stat.S_IMODE(running.path.stat().st_mode) == 0o600
    upstream.close()

    async def kept(running: Running) -> None:
        await until(lambda: running.known() == {"iss_1": {"keys": jwks()["keys"]}})

    play(Running(tmp_path, wire(upstream)), kept)

    async def not_of_another_url(running: Running) -> None:
        await until(lambda: running.issuers.without_fresh_keys == 1)
        assert running.known() == {}

    play(Running(tmp_path, issuer_wire(rules={"jwksUrl": f"{upstream.url}/other"})), not_of_another_url)


def test_an_issuer_that_fails_keeps_its_keys_and_is_asked_again(serving: Any, tmp_path: Path) -> None:
    upstream = serving(answer(b"", status="503 Away"), answer(jwks()), answer(jwks("ES256")))

    async def scenario(running: Running) -> None:
        await until(lambda: running.issuers.without_fresh_keys == 1)
        with pytest.raises(InternalFault):
            await running.issuers.issuer_keys({"issuer": "iss_1"})  # it has failed a moment ago
        await until(lambda: running.known() != {})
        assert running.issuers.without_fresh_keys == 0
        asked = [running.issuers.issuer_keys({"issuer": "iss_1"}) for _ in range(3)]
        documents = await asyncio.gather(*asked)
        assert [each["keys"]["keys"][0]["kty"] for each in documents] == ["EC"] * 3
        assert len(upstream.requests) == 3  # all were answered by one fetch

    play(Running(tmp_path, wire(upstream)), scenario)


def test_an_issuer_that_leaves_the_configuration_is_forgotten(serving: Any, tmp_path: Path) -> None:
    upstream = serving(answer(jwks()))

    async def scenario(running: Running) -> None:
        await until(lambda: running.known() != {})
        running.put(2)
        await until(lambda: running.known() == {})
        with pytest.raises(InternalFault):
            await running.issuers.issuer_keys({"issuer": "iss_1"})

    play(Running(tmp_path, wire(upstream)), scenario)


def test_the_keys_of_a_former_url_are_told_to_be_void(serving: Any, tmp_path: Path) -> None:
    upstream = serving(answer(jwks()), answer(b"", status="503 Away"))

    async def scenario(running: Running) -> None:
        await until(lambda: running.known() != {})
        number, message = running.issuers.since(None)
        assert message is not None
        assert message["issuers"]["iss_1"]["url"] == upstream.url
        running.put(2, issuer_wire(rules={"jwksUrl": f"{upstream.url}/moved"}))
        await until(lambda: running.issuers.since(number)[1] is not None)
        assert running.known() == {}

    play(Running(tmp_path, wire(upstream)), scenario)


def test_one_token_is_asked_about_once_at_a_time(serving: Any, tmp_path: Path) -> None:
    upstream = serving(answer({"active": True, "sub": "ada", "exp": int(time.time()) + 60}))
    policy = {"url": upstream.url, "clientId": "gateway", "clientSecret": "secret://env/UPSTREAM_X"}

    async def scenario(running: Running) -> None:
        params = {"issuer": "iss_1", "token": "opaque"}
        results = await asyncio.gather(*(running.issuers.introspect(params) for _ in range(5)))
        assert {each["claims"]["sub"] for each in results} == {"ada"}
        assert len(upstream.requests) == 1
        upstream.close()
        with pytest.raises(InternalFault, match="at the moment"):
            await running.issuers.introspect(params)

    play(Running(tmp_path, issuer_wire(rules={"introspection": policy})), scenario)
