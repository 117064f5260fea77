"""End users while the database is away: what was revoked stays so, through restarts of everything on the host."""

import os
import signal

import httpx
import pytest

from tests.gateway_process import GatewayFactory, GatewayProcess, eventually, migrate
from tests.gateway_traffic import NO_LIMIT, connect_to, create, panel_api
from tests.private_servers import PrivatePostgres
from tests.raw_http import Answer, request
from tests.scripted_upstream import Upstream

pytestmark = pytest.mark.private_postgres
PASSWORD = "correct horse battery"
WORKERS = ("worker-0", "worker-1")


def log_in(gateway: GatewayProcess, username: str) -> httpx.Response:
    body = {"username": username, "password": PASSWORD}
    return httpx.post(f"{gateway.url}/auth/login", json=body, timeout=20, trust_env=False)


def each_worker(gateway: GatewayProcess, token: str) -> list[Answer]:
    answers = []
    for name in WORKERS:
        with connect_to(gateway, name) as client:
            answers.append(client.send(request("GET", "/api/v1/orders/1", f"Authorization: Bearer {token}")).answer())
    return answers


def come_back(gateway: GatewayProcess, name: str, former: int) -> None:
    eventually(lambda: gateway.children().get(name) not in (None, former) and gateway.is_ready(), 60, f"a new {name}")


def test_a_host_that_starts_without_the_database_revives_no_token(
    start_gateway: GatewayFactory, private_postgres: PrivatePostgres, upstream: Upstream
) -> None:
    migrate(private_postgres.url)
    gateway = start_gateway(database=private_postgres.url, WORKERS="2", END_USER_APPLICATION="shop")
    with panel_api(gateway) as admin:
        create(admin, "/admin/routing/services", name="orders", defaultUrl=upstream.url, implicitRoute=True)
        create(admin, "/admin/access/applications", name="shop", allowedServices=["*"], rateLimit=NO_LIMIT)
        for name in ("ann", "bob"):
            create(admin, "/admin/access/end-users", username=name, password=PASSWORD, role="passenger")
    ann, bob = (log_in(gateway, name).raise_for_status().json()["access_token"] for name in ("ann", "bob"))
    httpx.post(f"{gateway.url}/auth/logout", headers={"Authorization": f"Bearer {ann}"}, trust_env=False)

    def statuses() -> list[int]:
        return [answer.status for token in (ann, bob) for answer in each_worker(gateway, token)]

    ended = [401, 401, 200, 200]
    eventually(lambda: statuses() == ended, what="the end of one token alone")
    kept = gateway.var_dir / "revocations.bin"
    eventually(lambda: kept.exists() and b"ses_" in kept.read_bytes(), what="the file of revocations")
    snapshot = gateway.var_dir / "snapshot.bin"
    eventually(lambda: snapshot.exists() and b"sig_" in snapshot.read_bytes(), 60, "the last good snapshot")

    private_postgres.kill()
    assert log_in(gateway, "bob").status_code == 503  # no outage is a 401
    assert statuses() == ended
    for name in ("agent", *WORKERS):
        former = gateway.children()[name]
        os.kill(former, signal.SIGKILL)
        come_back(gateway, name, former)
    assert statuses() == ended

    private_postgres.start()
    eventually(lambda: log_in(gateway, "bob").status_code == 200, 40, "a login")
    assert statuses() == ended
