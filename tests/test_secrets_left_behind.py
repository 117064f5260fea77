"""Everything that a full run leaves behind is searched for the keys, tokens and passwords that it used.

Files of the gateway (its database, logs and last good snapshot among them), Redis, what the admin API and the metrics
say, and every address that a browser or client was led to: none of them holds a secret, nor the greater part of one.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import redis as redis_client

from tests.gateway_process import GatewayFactory, GatewayProcess, eventually
from tests.gateway_traffic import create, set_up, signed_in, submit
from tests.scripted_upstream import Upstream

PASSWORD, OTHER_PASSWORD = "correct horse battery", "staple of another horse"
REFERENCED = "hush-b4e91c-secret-of-an-upstream"
CARD, MAIL = "4111111111111111", "ada.lovelace@example.com"


@dataclass
class Run:
    """``used``: each secret under the name of what it was."""

    gateway: GatewayProcess
    used: dict[str, str] = field(default_factory=dict)
    led_to: list[str] = field(default_factory=list)  # addresses
    said: list[str] = field(default_factory=list)  # answers that must hold none

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """A request to the gateway's port whose answer may hold what it was asked for."""
        answer = httpx.request(method, f"{self.gateway.url}{path}", trust_env=False, timeout=30, **options)
        self.led_to += [str(answer.url), answer.headers.get("location", "")]
        return answer

    def hear(self, answer: httpx.Response) -> httpx.Response:
        """An answer that shows no secret."""
        fields = [(name, value) for name, value in answer.headers.items() if name != "set-cookie"]  # its own place
        self.said.append(f"{fields} {answer.text}")
        self.led_to += [str(answer.url), answer.headers.get("location", "")]
        return answer


@pytest.fixture
def run(start_gateway: GatewayFactory, redis_server: str) -> Run:
    settings: dict[str, Any] = {
        "REDIS_URL": redis_server,
        "UPSTREAM_TOKEN": REFERENCED,
        "END_USER_APPLICATION": "shop",
        "KEY_PEPPER": "the pepper of this gateway",
        "JWT_ALGORITHM": "EdDSA",
        "LOG_LEVEL": "DEBUG",
        "RATE_LIMIT_MODE": "strict",
    }
    return Run(start_gateway(WORKERS="2", **settings), {"pepper": settings["KEY_PEPPER"], "referenced": REFERENCED})


def test_no_secret_is_in_anything_that_a_full_run_leaves_behind(run: Run) -> None:
    with closing(Upstream()) as upstream:
        _use_everything(run, upstream)
    run.gateway.stop()
    run.used["secret key"] = (run.gateway.var_dir / "secret_key").read_text().strip()
    said = [*(("an answer", text) for text in run.said), *(("an address", text) for text in run.led_to)]
    left = [*_files(run.gateway), *_in_redis(run.gateway), *said]
    assert sum(len(text) for _, text in left) > 200_000, "the run has left too little behind to say anything"
    found = {
        f"{name} in {place}"
        for name, secret in run.used.items()
        for place, text in left
        if _is_in(secret, text) and (name, place) not in _FOUND_BY
    }
    assert found == set()


# Rows of panel sessions are found by what their cookies hold.
_FOUND_BY = {("cookie portcullis_session", f"portcullis.sqlite3{ending}") for ending in ("", "-wal")}


def test_the_search_finds_what_it_looks_for() -> None:
    key = "km_" + secrets.token_hex(24)
    assert _is_in(key, f"GET /?key={key} HTTP/1.1")
    assert _is_in(key, f"…{key[8:]}")
    assert not _is_in(key, key[:13])  # the beginning finds a key's row, and may be shown
    token = "eyJhbGciOiJFZERTQSJ9." + "a" * 40 + "." + "signature" * 9
    assert _is_in(token, "signature" * 9)


def _is_in(secret: str, text: str) -> bool:
    """Whole, or the part of it that must not be known: of a key all but its first 13 characters, of a token its
    signature."""
    if secret in text:
        return True
    if secret.startswith("km_"):
        return secret[13:] in text
    return secret.startswith("eyJ") and secret.rpartition(".")[2] in text


# --- the run -------------------------------------------------------------------------------------------------------
def _use_everything(run: Run, upstream: Upstream) -> None:
    made = set_up(run.gateway)
    run.used |= {"admin key": made["key"], "admin password": made["password"]}
    with run.gateway.admin() as admin:
        _configure(run, admin, upstream)
        _use_keys(run, admin)
        _use_tokens(run, admin)
        _use_panel(run, made)
        _fail(run)
        for path in _PATHS:
            run.hear(admin.get(path)).raise_for_status()
        run.hear(httpx.get(f"{run.gateway.metrics_url}/metrics", trust_env=False))
        where = "/admin/audit/export?format=csv"
        eventually(lambda: "end_user.logout" in run.hear(admin.get(where)).text, what="the logout's line")


_PATHS = (
    "/keys",
    "/admin/audit?limit=500",
    "/admin/revisions?limit=500",
    "/admin/routing/services",
    "/admin/access/applications",
    "/admin/access/issuers",
    "/admin/access/limits",
    "/admin/access/users",
    "/admin/access/end-users",
    "/admin/access/signing-keys",
    "/admin/access/alert-channels",
    "/admin/nodes",
    "/.well-known/jwks.json",
)


def _configure(run: Run, admin: httpx.Client, upstream: Upstream) -> None:
    credentials = [{"header": "Authorization", "value": "Bearer {secret://env/UPSTREAM_TOKEN}"}]
    fields = {"defaultUrl": upstream.url, "implicitRoute": True, "upstreamCredentials": credentials}
    create(admin, "/admin/routing/services", name="orders", **fields)
    create(admin, "/admin/access/applications", name="shop", allowedServices=["*"])
    create(admin, "/admin/access/limits", name="each", rule={"limit": 1000, "mode": "strict", "alert": True})
    rules = {"algorithms": ["HS256"], "secret": "secret://env/UPSTREAM_TOKEN"}
    create(admin, "/admin/access/issuers", name="theirs", issuer="https://login.example.com", rules=rules,
           applicationId=admin.get("/admin/access/applications").json()["applications"][0]["id"])  # fmt: skip
    create(admin, "/admin/access/alert-channels", name="on call", medium="webhook", url="https://alerts.example.com",
           secret="secret://env/UPSTREAM_TOKEN")  # fmt: skip
    token = admin.post("/admin/routing/services/orders/registration-token")
    if token.status_code < 300:
        run.used["registration token"] = token.json()["token"]


def _use_keys(run: Run, admin: httpx.Client) -> None:
    application = admin.get("/admin/access/applications").json()["applications"][0]["id"]
    issued = create(admin, "/keys", name="production", applicationId=application, scopes=["read:data"])
    rotated = admin.post(f"/keys/{issued['id']}/rotate", json={"transitionPeriodDays": 1}).raise_for_status().json()
    run.used |= {"key": issued["key"], "rotated key": rotated["newKey"]["key"]}
    for key in (issued["key"], rotated["newKey"]["key"]):
        answer = run.hear(run.call("GET", "/api/v1/orders/1", headers={"X-API-Key": key}))
        assert answer.status_code == 200, answer.text
        run.hear(run.call("GET", "/api/v1/orders/2", headers={"Authorization": f"Bearer {key}"}))
        run.hear(run.call("POST", "/validate", json={"key": key, "scopes": ["read:data"]}))
        run.hear(run.call("GET", "/api/v1/nowhere", headers={"X-API-Key": key}))
    admin.delete(f"/keys/{issued['id']}").raise_for_status()
    run.hear(run.call("GET", "/api/v1/orders/1", headers={"X-API-Key": issued["key"]}))


def _use_tokens(run: Run, admin: httpx.Client) -> None:
    create(admin, "/admin/access/end-users", username=MAIL, password=PASSWORD, role="passenger")
    tokens = run.call("POST", "/auth/login", json={"username": MAIL, "password": PASSWORD}).raise_for_status().json()
    run.used |= {"user's password": PASSWORD, "access token": tokens["access_token"]}
    run.used |= {"refresh token": tokens["refresh_token"], "device token": tokens["device_token"]}
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    answer = run.hear(run.call("GET", "/api/v1/orders/1", headers=bearer))
    assert answer.status_code == 200, answer.text
    run.hear(run.call("GET", "/auth/profile", headers=bearer))
    changed = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
    later = run.call("POST", "/auth/change-password", json=changed, headers=bearer).raise_for_status().json()
    run.used |= {"other password": OTHER_PASSWORD, "later token": later["access_token"]}
    refreshed = run.call("POST", "/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
    if refreshed.status_code == 200:
        run.used["refreshed token"] = refreshed.json()["access_token"]
    run.hear(run.call("POST", "/auth/refresh", json={"refresh_token": tokens["refresh_token"]}))  # stolen
    again = run.call("POST", "/auth/login", json={"username": MAIL, "password": OTHER_PASSWORD}).json()
    run.used["last token"] = again["access_token"]
    run.hear(run.call("POST", "/auth/logout", headers={"Authorization": f"Bearer {again['access_token']}"}))
    run.hear(run.call("GET", "/api/v1/orders/1", headers={"Authorization": f"Bearer {again['access_token']}"}))


def _use_panel(run: Run, made: dict[str, Any]) -> None:
    with signed_in(run.gateway, made) as browser:
        run.used |= {f"cookie {name}": value for name, value in browser.cookies.items()}
        for path in ("/", "/audit", "/api-keys", "/end-users", "/history", "/token-issuers"):
            run.hear(browser.get(path)).raise_for_status()
        answer = submit(browser, "/api-keys/new", name="by hand", application="shop", expires_in_days="30")
        run.used["key by hand"] = answer.text.partition('id="new-key"')[2].partition('value="')[2].partition('"')[0]
        assert run.used["key by hand"].startswith("km_")
        run.led_to.append(str(answer.url))
        run.hear(browser.get("/api-keys"))


def _fail(run: Run) -> None:
    """What is refused has secrets in it too, and people put them where they do not belong."""
    wrong = {"wrong key": "km_" + secrets.token_hex(24), "wrong password": "a password of mine, typed wrongly"}
    run.used |= wrong
    for headers in ({"X-API-Key": wrong["wrong key"]}, {"Authorization": f"Bearer {wrong['wrong key']}"}):
        for path in ("/api/v1/orders/1", "/keys", "/admin/nodes"):
            run.hear(run.call("GET", path, headers=headers))
    run.hear(run.call("POST", "/validate", json={"key": wrong["wrong key"]}))
    run.hear(run.call("POST", "/auth/login", json={"username": MAIL, "password": wrong["wrong password"]}))
    run.hear(run.call("POST", "/auth/login", json={"username": wrong["wrong password"], "password": "x"}))
    run.hear(run.call("POST", "/setup", json={"name": "x", "email": "x@example.com", "setupToken": wrong["wrong key"]}))
    with httpx.Client(base_url=run.gateway.panel_url, timeout=40, trust_env=False) as browser:
        run.hear(submit(browser, "/login", username="ann@example.com", password=wrong["wrong password"]))
    run.hear(run.call("POST", "/auth/login", content=json.dumps({"password": wrong["wrong password"]})[:-1].encode()))


# --- what is left --------------------------------------------------------------------------------------------------
def _files(gateway: GatewayProcess) -> Iterator[tuple[str, str]]:
    """All but the one file whose purpose is to keep a secret."""
    files = [path for path in gateway.var_dir.rglob("*") if path.is_file() and path.name != "secret_key"]
    assert {"snapshot.bin", "portcullis.sqlite3", "access.log"} <= {path.name for path in files}
    for path in files:
        yield path.name, path.read_bytes().decode("latin-1")


def _in_redis(gateway: GatewayProcess) -> Iterator[tuple[str, str]]:
    with redis_client.Redis.from_url(gateway.environment["REDIS_URL"]) as client:
        for key in client.scan_iter("portcullis:*"):
            value = client.dump(key) or b""
            yield "Redis", f"{key.decode('latin-1')} {value.decode('latin-1')}"
