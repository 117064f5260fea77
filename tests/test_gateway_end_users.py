"""End users on a whole gateway with two workers: what one logs in to on the gateway's port both workers take, and what
ends a token ends it on both within a second."""

import json
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from tests.gateway_process import GatewayFactory, GatewayProcess, eventually
from tests.gateway_traffic import NO_LIMIT, connect_to, create, echo, panel_api, traffic
from tests.raw_http import Client, CutShort, request
from tests.scripted_upstream import Peer, Upstream

PASSWORD = "correct horse battery"
PATH = "/api/v1/orders/1"
WORKERS = ("worker-0", "worker-1")
_numbers = count()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with closing(Upstream(echo)) as upstream:
        yield upstream


def with_shop(gateway: GatewayProcess, upstream: Upstream) -> GatewayProcess:
    with panel_api(gateway) as admin:
        create(admin, "/admin/routing/services", name="orders", defaultUrl=upstream.url, implicitRoute=True)
        create(admin, "/admin/access/applications", name="shop", allowedServices=["*"], rateLimit=NO_LIMIT)
    return gateway


@pytest.fixture(scope="module")
def gateway(start_module_gateway: GatewayFactory, upstream: Upstream) -> GatewayProcess:
    gateway = start_module_gateway(WORKERS="2", END_USER_APPLICATION="shop", AUTH_FAILURES_PER_MINUTE="1000000")
    return with_shop(gateway, upstream)


@pytest.fixture(scope="module")
def workers(gateway: GatewayProcess) -> Iterator[list[Client]]:
    """A connection to each worker."""
    clients = [connect_to(gateway, name) for name in WORKERS]
    yield clients
    for client in clients:
        client.socket.close()


class User:
    """An end user with a session."""

    def __init__(self, gateway: GatewayProcess, role: str = "passenger") -> None:
        self.gateway = gateway
        self.username = f"user{next(_numbers)}@example.com"
        with panel_api(gateway) as admin:
            fields = {"username": self.username, "password": PASSWORD, "role": role}
            self.id = create(admin, "/admin/access/end-users", **fields)["id"]
        self.tokens = self.log_in()

    def log_in(self) -> dict[str, Any]:
        tokens: dict[str, Any] = self.post("login", username=self.username, password=PASSWORD).raise_for_status().json()
        return tokens

    def post(self, what: str, /, token: str = "", **fields: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"{self.gateway.url}/auth/{what}"
        return httpx.post(url, json=fields or None, headers=headers, timeout=20, trust_env=False)

    @property
    def token(self) -> str:
        return str(self.tokens["access_token"])

    @property
    def get(self) -> bytes:
        return request("GET", PATH, f"Authorization: Bearer {self.token}")


def statuses(workers: list[Client], user: User) -> list[int]:
    return [client.send(user.get).answer().status for client in workers]


def refused_soon(workers: list[Client], user: User) -> None:
    """Within a second, on a machine that has nothing else to do."""
    eventually(lambda: statuses(workers, user) == [401, 401], 10, "the refusal on both workers")


def change(gateway: GatewayProcess, user: User, **changes: Any) -> None:
    with panel_api(gateway) as admin:
        admin.patch(f"/admin/access/end-users/{user.id}", json=changes).raise_for_status()


ENDS: dict[str, Callable[[GatewayProcess, User], Any]] = {
    "logout": lambda gateway, user: user.post("logout", token=user.token).raise_for_status(),
    "deactivated": lambda gateway, user: change(gateway, user, isActive=False),
    "another role": lambda gateway, user: change(gateway, user, role="staff"),
    "password changed": lambda gateway, user: user.post(
        "change-password", token=user.token, current_password=PASSWORD, new_password=PASSWORD + "!"
    ).raise_for_status(),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_what_ends_a_token_ends_it_on_every_worker(
    gateway: GatewayProcess, workers: list[Client], end: Callable[[GatewayProcess, User], Any]
) -> None:
    user, bystander = User(gateway), User(gateway)
    assert statuses(workers, user) == statuses(workers, bystander) == [200, 200]
    end(gateway, user)
    refused_soon(workers, user)
    assert statuses(workers, bystander) == [200, 200]


def test_a_refresh_token_that_comes_twice_ends_what_came_from_it(
    gateway: GatewayProcess, workers: list[Client]
) -> None:
    user = User(gateway)
    former = user.tokens["refresh_token"]
    user.tokens = user.post("refresh", refresh_token=former).raise_for_status().json()
    assert statuses(workers, user) == [200, 200]
    assert user.post("refresh", refresh_token=former).status_code == 401
    refused_soon(workers, user)


def test_an_event_stream_ends_with_the_session(gateway: GatewayProcess) -> None:
    def endless(peer: Peer) -> None:
        assert peer.read_request() is not None
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            peer.send(b"9\r\ndata: 1\n\n\r\n")
            time.sleep(0.05)

    user = User(gateway)
    with closing(Upstream(endless)) as upstream, panel_api(gateway) as admin, connect_to(gateway, WORKERS[0]) as client:
        create(admin, "/admin/routing/services", name="events", defaultUrl=upstream.url, implicitRoute=True)
        client.send(request("GET", "/api/v1/events/all", f"Authorization: Bearer {user.token}"))
        answer, pieces = client.begin_answer()
        assert (answer.status, next(pieces)) == (200, b"data: 1\n\n")
        user.post("logout", token=user.token).raise_for_status()
        with pytest.raises((CutShort, OSError)):
            for _ in pieces:
                pass


def test_what_an_upstream_sees_is_no_token(gateway: GatewayProcess, workers: list[Client], upstream: Upstream) -> None:
    user = User(gateway)
    assert statuses(workers, user) == [200, 200]
    assert "authorization" not in upstream.requests[-1].names


def test_who_must_change_the_password_can_call_nothing(gateway: GatewayProcess, workers: list[Client]) -> None:
    user = User(gateway)
    change(gateway, user, mustChangePassword=True)
    user.tokens = user.log_in()
    assert user.tokens["user"]["must_change_password"] is True
    answers = [client.send(user.get).answer() for client in workers]
    assert [(answer.status, answer.code) for answer in answers] == [(403, "password_change_required")] * 2


def test_published_keys_prove_tokens(gateway: GatewayProcess) -> None:
    user = User(gateway)
    urls = [f"{base}/.well-known/jwks.json" for base in (gateway.url, gateway.panel_url)]
    answers = [httpx.get(url, trust_env=False) for url in urls]
    assert answers[0].json() == answers[1].json()
    assert answers[0].headers["cache-control"] == "public, max-age=300"
    again = httpx.get(urls[0], headers={"If-None-Match": answers[0].headers["etag"]}, trust_env=False)
    assert again.status_code == 304
    assert not {"d", "p", "q", "k"} & {name for key in answers[0].json()["keys"] for name in key}

    token = jwt.decode(user.token, KeySet.import_key_set(answers[0].json()), algorithms=["ES256"])
    assert token.header["typ"] == "at+jwt"
    claims = token.claims
    assert set(claims) >= {"iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp", "roles", "scope", "application"}
    assert (claims["sub"], claims["roles"]) == (user.id, ["passenger"])


def test_keys_rotate_while_traffic_runs(gateway: GatewayProcess, workers: list[Client]) -> None:
    with panel_api(gateway) as admin:
        create(admin, "/admin/access/end-user-roles", name="unlimited")
    users = [User(gateway, "unlimited")]

    def make(client: int, number: int) -> bytes:
        return users[number % len(users)].get

    with traffic(gateway, make, clients=2) as flow, panel_api(gateway) as admin:
        for _ in range(3):
            create(admin, "/admin/access/signing-keys/rotate", atOnce=True)
            users.append(User(gateway, "unlimited"))
            flow.goes_on()
    assert flow.statuses() == {200}
    assert len({json.loads(_header(user.token))["kid"] for user in users}) == 4


def _header(token: str) -> bytes:
    part = token.partition(".")[0]
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_nothing_that_a_revoked_key_signed_counts(gateway: GatewayProcess, workers: list[Client]) -> None:
    user = User(gateway)
    with panel_api(gateway) as admin:
        keys = admin.get("/admin/access/signing-keys").json()["keys"]
        (signing,) = [key for key in keys if key["state"] == "signing"]
        assert "sealed" not in signing
        admin.post(f"/admin/access/signing-keys/{signing['id']}/revoke").raise_for_status()
    refused_soon(workers, user)
    user.tokens = user.post("refresh", refresh_token=user.tokens["refresh_token"]).raise_for_status().json()
    assert statuses(workers, user) == [200, 200]


def test_encrypted_tokens_of_a_shared_secret_pass_once_there_is_the_application(
    start_gateway: GatewayFactory, upstream: Upstream
) -> None:
    """And the secret stays in the settings."""
    secret = "a secret that is long enough for HS256"
    gateway = start_gateway(END_USER_APPLICATION="shop", JWT_SECRET=secret, JWT_ENCRYPTION="true")
    with panel_api(gateway) as admin:
        create(admin, "/admin/routing/services", name="orders", defaultUrl=upstream.url, implicitRoute=True)
    user = User(gateway)
    assert user.token.count(".") == 4
    headers = {"Authorization": f"Bearer {user.token}"}
    get = partial(httpx.get, headers=headers, trust_env=False)

    refusal = get(gateway.url + PATH)
    assert (refusal.status_code, refusal.json()["code"]) == (403, "service_not_allowed")
    assert "END_USER_APPLICATION" in refusal.json()["detail"]
    with panel_api(gateway) as admin:
        create(admin, "/admin/access/applications", name="shop", allowedServices=["*"])
    answer = get(gateway.url + PATH)
    assert answer.status_code == 200
    assert answer.headers["ratelimit-policy"] == '"role-passenger";q=1000;w=3600'  # and no limit that nobody set
    assert "r=49" in answer.headers["ratelimit"]
    assert get(gateway.url + "/auth/profile").json()["username"] == user.username
    assert get(gateway.url + "/.well-known/jwks.json").json() == {"keys": []}
    gateway.stop()  # so that the last good snapshot is written
    left = [path for path in gateway.var_dir.rglob("*") if path.is_file()]
    assert any(path.name == "snapshot.bin" for path in left)
    assert [path for path in left if secret.encode() in path.read_bytes()] == []
