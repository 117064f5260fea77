"""Instances that register with one gateway and are served by another: two hosts on one PostgreSQL."""

import ssl
import threading
import time
from contextlib import ExitStack, closing

import httpx
import pytest
import trustme

from tests.gateway_process import GatewayFactory, GatewayProcess, eventually
from tests.gateway_traffic import create, new_key, panel_api
from tests.name_server import NameServer
from tests.scripted_upstream import OK, Peer, Upstream, replying

SERVICES = "/admin/routing/services"


class Instance:
    """A server that says who it is, and keeps itself registered while it lives."""

    def __init__(self, name: str, gateway: GatewayProcess, token: str, ttl_s: int = 5) -> None:
        self.upstream = Upstream(self._script)
        self._url = f"{gateway.url}/admin/discovery/shop/{name}"
        self._headers = {"Authorization": f"Bearer {token}"}
        self._body = {"url": self.upstream.url, "ttlS": ttl_s}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self.put()
        self._thread.start()

    def put(self) -> None:
        answer = httpx.put(self._url, json=self._body, headers=self._headers, trust_env=False)
        assert answer.status_code < 300, answer.text

    def _beat(self) -> None:
        while not self._ended.wait(1):
            self.put()

    def _script(self, peer: Peer) -> None:
        while peer.read_request() is not None:
            body = self.upstream.url.encode()
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    def leave(self) -> None:
        self.fall_silent()
        assert httpx.delete(self._url, headers=self._headers, trust_env=False).status_code == 204

    def fall_silent(self) -> None:
        self._ended.set()
        self._thread.join(10)

    def close(self) -> None:
        self.fall_silent()
        self.upstream.close()


@pytest.fixture(scope="module")
def gateways(start_module_gateway: GatewayFactory) -> list[GatewayProcess]:
    first = start_module_gateway(database="postgres", NODE_NAME="one")
    second = start_module_gateway(database=first.environment["DATABASE_URL"], NODE_NAME="two")
    return [first, second]


def who_answers(gateway: GatewayProcess, key: str, count: int = 12) -> set[str]:
    with httpx.Client(base_url=gateway.url, headers={"X-API-Key": key}, trust_env=False) as client:
        answers = [client.get("/api/v1/shop/x") for _ in range(count)]
    return {answer.text if answer.status_code == 200 else answer.json()["code"] for answer in answers}


def shown(admin: httpx.Client) -> set[tuple[str, str, str]]:
    health = admin.get(f"{SERVICES}/shop/health").json()
    return {(target["url"], host["host"], host["source"]) for target in health["targets"] for host in target["hosts"]}


def test_instances_come_and_go_on_every_host(gateways: list[GatewayProcess]) -> None:
    first, second = gateways
    with panel_api(first) as admin, ExitStack() as stack:
        create(admin, SERVICES, name="shop", discovery={"registration": {"ttlS": 10}, "static": "never"})
        create(admin, f"{SERVICES}/shop/versions", version="v1", url="http://shop.invalid", weight=1)
        application = create(admin, "/admin/access/applications", name="web", allowedServices=["*"], rateLimit=100_000)
        key = str(new_key(admin, application["id"])["key"])
        token = admin.post(f"{SERVICES}/shop/registration-token").json()["token"]
        revision = admin.get("/admin/health").json()["revision"]
        assert who_answers(second, key, 1) == {"no_healthy_target"}

        one = stack.enter_context(closing(Instance("one", first, token)))
        started = time.monotonic()
        eventually(lambda: who_answers(second, key, 1) == {one.upstream.url})
        assert time.monotonic() - started < 5  # within a second, but for a busy machine
        two = stack.enter_context(closing(Instance("two", second, token)))
        both = {one.upstream.url, two.upstream.url}
        for gateway in gateways:
            eventually(lambda: who_answers(gateway, key) == both)  # noqa: B023  # asked here and now
        everywhere = {(url, host, "http") for url in both for host in ("one", "two")}
        eventually(lambda: shown(admin) == everywhere)
        asked = admin.post(f"{SERVICES}/shop/health-check").json()["targets"]
        assert {(each["url"], each["isHealthy"]) for each in asked} == {(url, True) for url in both}

        two.fall_silent()  # as if its host had died
        eventually(lambda: who_answers(first, key) == {one.upstream.url}, 30)
        one.leave()
        for gateway in gateways:
            eventually(lambda: who_answers(gateway, key) == {"no_healthy_target"})  # noqa: B023
        assert admin.get("/admin/health").json()["revision"] == revision


def test_an_address_behind_a_name_is_spoken_to_by_that_name(gateways: list[GatewayProcess]) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("pay.test").configure_cert(tls)
    certificate = authority.cert_pem.bytes().decode()
    with panel_api(gateways[0]) as admin, ExitStack() as stack:
        names = stack.enter_context(closing(NameServer()))
        upstream = stack.enter_context(closing(Upstream(replying(OK), tls)))
        names.answers["pay.test.", "A"] = ["127.0.0.1"]
        create(
            admin,
            SERVICES,
            name="pay",
            defaultUrl=f"https://pay.invalid:{upstream.port}/base",
            upstreamTls={"caPem": certificate},
            healthChecks={"active": {"path": "/up", "intervalS": 0.5, "timeoutS": 5}},
            discovery={"dns": {"name": "pay.test", "server": names.address}},
        )
        application = create(admin, "/admin/access/applications", name="till", allowedServices=["pay"])
        key = str(new_key(admin, application["id"])["key"])
        eventually(lambda: [seen for seen in upstream.requests if seen.target == b"/up"])
        for gateway in gateways:
            eventually(lambda: ask(gateway, key) == 200)  # noqa: B023  # asked here and now
        seen = next(seen for seen in upstream.requests if seen.target == b"/base/x")
        assert seen.field("host") == f"pay.test:{upstream.port}".encode()
        eventually(lambda: hosts(admin) == [("dns", True, 200)] * 2)


def ask(gateway: GatewayProcess, key: str) -> int:
    return httpx.get(f"{gateway.url}/api/v1/pay/x", headers={"X-API-Key": key}, trust_env=False).status_code


def hosts(admin: httpx.Client) -> list[tuple[str, bool, int]]:
    targets = admin.get(f"{SERVICES}/pay/health").json()["targets"]
    found = [host for target in targets for host in target["hosts"]]
    return [(host["source"], host["isHealthy"], host["lastStatus"]) for host in found]
