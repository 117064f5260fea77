"""What becomes of limits in Redis when Redis is away, slow, unwilling or somebody else, and that they come back."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme

from access.limits.charges import Charge
from access.limits.shared import link
from access.limits.shared.address import RedisAddress
from access.limits.shared.limits import SharedLimits
from tests.gateway_process import eventually
from tests.private_servers import PrivateRedis, free_port
from tests.shared_limits import admitted, ask, asynchronous, figures, rule, until, until_up, workers

PATIENT_S = 1.0  # more than a busy machine takes for one answer, less than a test can spend on every request


@contextmanager
def client_of(server: PrivateRedis, **more: Any) -> Iterator[Any]:
    with redis.Redis(port=server.port, **more) as client:
        yield client


@asynccontextmanager
async def limits_at(url: str, wait_s: float = PATIENT_S) -> AsyncIterator[SharedLimits]:
    """A worker that need not be connected."""
    limits = SharedLimits(url, wait_s=wait_s, digest_key=b"k")
    try:
        yield limits
    finally:
        await limits.close()


# --- away ---
@pytest.mark.parametrize("how", ["kill", "freeze"])
@asynchronous
async def test_an_outage_costs_no_request_more_than_the_timeout_once(private_redis: PrivateRedis, how: str) -> None:
    charge = Charge(rule(100, window_s=2_678_400), "a", 1)
    async with workers(private_redis.url, wait_s=PATIENT_S) as (limits,):
        assert await admitted(limits, charge, 5) == 5
        getattr(private_redis, how)()
        began = time.monotonic()
        for _ in range(50):
            assert await ask(limits, charge) is None
        assert time.monotonic() - began < 20 * PATIENT_S  # if all had waited it would be 50
        assert not limits.is_up
        assert sum(figures(limits)[reason] for reason in ("late", "away")) >= 50
        if how == "kill":
            private_redis.start()
        else:
            private_redis.thaw()
        await until_up(limits)
        assert await admitted(limits, charge, 5) == 5


@asynchronous
async def test_replies_that_come_late_are_nobody_elses(private_redis: PrivateRedis) -> None:
    policy = rule(1, window_s=2_678_400)
    async with workers(private_redis.url, wait_s=0.5) as (limits,):
        private_redis.freeze()
        late = [ask(limits, Charge(policy, f"late{number}", 1)) for number in range(20)]
        assert await asyncio.gather(*late) == [None] * 20
        private_redis.thaw()
        await until_up(limits)
        for number in range(20):
            assert await admitted(limits, Charge(policy, f"late{number}", 1), 1) == 0  # was carried out all the same
            assert await admitted(limits, Charge(policy, f"new{number}", 1), 1) == 1


@asynchronous
async def test_a_redis_that_hangs_for_long_is_connected_to_anew(
    private_redis: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_HANGING_S", 0.1)
    monkeypatch.setattr(link, "_CONNECT_S", 0.2)
    charge = Charge(rule(100), "a", 1)
    async with workers(private_redis.url, wait_s=0.5) as (limits,):
        private_redis.freeze()
        assert await ask(limits, charge) is None
        await asyncio.sleep(0.5)
        assert await ask(limits, charge) is None
        private_redis.thaw()
        await until_up(limits)
        assert await admitted(limits, charge, 1) == 1


@asynchronous
async def test_an_idle_worker_notices_that_redis_hangs(
    private_redis: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_IDLE_S", 0.05)
    async with workers(private_redis.url, wait_s=0.2) as (limits,):
        private_redis.freeze()
        await until(lambda: not limits.is_up, "that Redis hangs")
        private_redis.thaw()
        await until_up(limits)


@asynchronous
async def test_requests_wait_for_the_first_connection(private_redis: PrivateRedis) -> None:
    async with limits_at(private_redis.url, wait_s=10) as limits:
        assert await admitted(limits, Charge(rule(3), "a", 1), 5) == 3


@asynchronous
async def test_without_any_redis_there_is_no_answer_and_no_waiting() -> None:
    async with limits_at(f"redis://127.0.0.1:{free_port()}") as limits:
        answers = [ask(limits, Charge(rule(3), "a", 1)) for _ in range(10)]
        assert await asyncio.gather(*answers) == [None] * 10
        assert not limits.is_up


@asynchronous
async def test_no_more_calls_wait_than_there_is_room_for(
    private_redis: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "MAX_CALLS", 10)
    charge = Charge(rule(1000), "a", 1)
    async with workers(private_redis.url) as (limits,):
        answers = await asyncio.gather(*(ask(limits, charge) for _ in range(15)))
        assert [answer is None for answer in answers] == [False] * 10 + [True] * 5
        assert await admitted(limits, charge, 10) == 10


# --- forgetful ---
@asynchronous
async def test_a_script_that_redis_has_forgotten_is_told_again(private_redis: PrivateRedis) -> None:
    charge = Charge(rule(100), "a", 1)
    async with workers(private_redis.url) as (limits,):
        with client_of(private_redis) as client:
            for _ in range(2):
                client.script_flush()
                assert await admitted(limits, charge, 10) == 10
                assert await admitted(limits, charge, 10) == 10


@asynchronous
async def test_places_that_redis_has_forgotten_are_told_again(private_redis: PrivateRedis) -> None:
    charge = Charge(rule(3, "concurrency"), "a", 1)
    async with workers(private_redis.url, 2) as (holder, other):
        assert await admitted(holder, charge, 3) == 3
        holder.give_back(charge)
        private_redis.kill()
        await until(lambda: not holder.is_up and not other.is_up, "Redis is away")
        holder.give_back(charge)  # nobody hears that
        (private_redis.directory / "appendonlydir").rename(private_redis.directory / "lost")
        private_redis.start()
        await until_up(holder)
        await until_up(other)
        await ask(holder, charge._replace(bucket="b"))  # leaves after what holder has to say
        assert await admitted(other, charge, 3) == 2


@asynchronous
async def test_a_release_that_redis_has_not_heard_is_said_when_it_is_back(private_redis: PrivateRedis) -> None:
    charge = Charge(rule(1, "concurrency"), "a", 1)
    async with workers(private_redis.url, 2, wait_s=0.5) as (holder, other):
        assert await admitted(holder, charge, 1) == 1
        private_redis.freeze()
        holder.give_back(charge)
        assert await ask(holder, charge) is None  # perhaps it is counted, perhaps not
        private_redis.thaw()
        await until_up(holder)
        await ask(holder, charge._replace(bucket="b"))
        await until_up(other)
        assert await admitted(other, charge, 1) == 1


@asynchronous
async def test_a_slice_outlives_redis(private_redis: PrivateRedis) -> None:
    charge = Charge(rule(1000, window_s=2_678_400, mode="leased"), "a", 1)
    async with workers(private_redis.url) as (limits,):
        assert await admitted(limits, charge, 1) == 1
        private_redis.kill()
        await until(lambda: not limits.is_up, "Redis is away")
        verdict = limits.leased(charge, time.monotonic())
        assert verdict is not None and verdict.allowed
        for _ in range(50):
            limits.leased(charge, time.monotonic())
        assert limits.leased(charge, time.monotonic()) is None
        assert await ask(limits, charge) is None


# --- unwilling ---
def full(client: redis.Redis) -> None:
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1")


def demoted(client: redis.Redis) -> None:
    client.replicaof("127.0.0.1", 1)


def locked(client: redis.Redis) -> None:
    client.config_set("requirepass", "other")
    client.client_kill_filter(skipme=True)


UNWILLING = {
    "full": (full, "OOM", [("config_set", "maxmemory", "0")]),
    "replica": (demoted, "READONLY", [("replicaof", "no", "one")]),
    "locked": (locked, "NOAUTH|closes", [("config_set", "requirepass", "")]),
}


@pytest.mark.parametrize("case", UNWILLING)
@asynchronous
async def test_a_redis_that_refuses_is_away(
    private_redis: PrivateRedis, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, says, mend = UNWILLING[case]
    charge = Charge(rule(100), "a", 1)
    async with workers(private_redis.url) as (limits,):
        with client_of(private_redis) as client:
            spoil(client)
            for _ in range(20):
                assert await ask(limits, charge) is None
                await asyncio.sleep(0.02)
            warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
            assert len(warnings) == 1
            assert any(word in warnings[0] for word in says.split("|"))
            for word, *arguments in mend:
                getattr(client, word)(*arguments)
        await until_up(limits)
        assert await admitted(limits, charge, 1) == 1


@asynchronous
async def test_a_wrong_password_is_said_once_and_not_repeated(
    private_redis: PrivateRedis, caplog: pytest.LogCaptureFixture
) -> None:
    with client_of(private_redis) as client:
        client.config_set("requirepass", "right-secret")
        async with limits_at(f"redis://:wrong-secret@127.0.0.1:{private_redis.port}/0") as limits:
            for _ in range(20):
                assert await ask(limits, Charge(rule(3), "a", 1)) is None
                await asyncio.sleep(0.02)
    warnings = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "WRONGPASS" in warnings[0]
    assert "secret" not in caplog.text


@asynchronous
async def test_a_bucket_that_somebody_has_spoiled_harms_no_other(
    private_redis: PrivateRedis, caplog: pytest.LogCaptureFixture
) -> None:
    policy = rule(5)
    async with workers(private_redis.url) as (limits,):
        await ask(limits, Charge(policy, "spoiled", 1))
        with client_of(private_redis) as client:
            (key,) = client.keys(f"*{policy.key}*")
            client.delete(key)
            client.rpush(key, "nonsense")
        spoiled, fine = Charge(policy, "spoiled", 1), Charge(policy, "fine", 1)
        answers = await asyncio.gather(*(ask(limits, charge) for charge in (fine, spoiled, fine, spoiled, fine)))
        assert [answer is None for answer in answers] == [False, True, False, True, False]
        assert limits.is_up
        assert "WRONGTYPE" in caplog.text


# --- somebody else ---
@pytest.mark.parametrize(
    "says",
    [b"-LOADING Redis is loading the dataset in memory\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n" * 20, b""],
    ids=["loading", "http", "too much", "nothing"],
)
@asynchronous
async def test_what_is_no_ready_redis_is_away(says: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(says)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, limits_at(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/2") as limits:
        for _ in range(10):
            assert await ask(limits, Charge(rule(3), "a", 1)) is None
    warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(warnings) == 1, caplog.text


# --- where it is ---
@asynchronous
async def test_user_password_and_database_are_those_of_the_url(private_redis: PrivateRedis) -> None:
    categories = ["-@all", "+@connection", "+@scripting", "+@hash", "+@sortedset"]
    commands = ["+time", "+get", "+set", "+pexpire"]
    with client_of(private_redis) as client:
        client.acl_setuser(
            "gate", True, passwords=["+p@ss/w"], keys=["portcullis:*"], categories=categories, commands=commands
        )
        async with workers(f"redis://gate:p%40ss%2Fw@127.0.0.1:{private_redis.port}/3") as (limits,):
            for algorithm in ("token_bucket", "sliding_window", "sliding_log", "quota", "concurrency"):
                charge = Charge(rule(3, algorithm), "a", 1)
                assert await admitted(limits, charge, 5) == 3
                limits.give_back(charge)
                assert await admitted(limits, charge, 1) == 1
        assert client.dbsize() == 0
    with client_of(private_redis, db=3) as client:
        assert client.dbsize() > 0


@asynchronous
async def test_a_unix_socket_will_do(private_redis: PrivateRedis) -> None:
    path = private_redis.directory / "redis.sock"
    async with limits_at(f"unix://{path}?db=1") as limits:
        assert await ask(limits, Charge(rule(3), "a", 1)) is None
        server = await asyncio.start_unix_server(partial(relay, private_redis.port), path)
        async with server:
            await until_up(limits)
            assert await admitted(limits, Charge(rule(3), "a", 1), 5) == 3
            await limits.close()


async def relay(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """To a real Redis and back."""
    from_redis, to_redis = await asyncio.open_connection("127.0.0.1", port)

    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()

    try:
        await asyncio.gather(pass_on(reader, to_redis), pass_on(from_redis, writer))
    except (OSError, asyncio.CancelledError):
        writer.close()
        to_redis.close()


@asynchronous
async def test_tls_is_verified(private_redis: PrivateRedis, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = await asyncio.start_server(partial(relay, private_redis.port), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    async with server:
        async with workers(f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path}/ca.pem") as (limits,):
            assert await admitted(limits, Charge(rule(3), "a", 1), 5) == 3
        async with workers(f"rediss://localhost:{port}/0?ssl_cert_reqs=none") as (limits,):
            assert limits.is_up
        async with limits_at(f"rediss://localhost:{port}/0", wait_s=5) as limits:
            assert await ask(limits, Charge(rule(3), "a", 1)) is None
    assert "certificate verify failed" in caplog.text


class ClusterNode(PrivateRedis):
    def command(self) -> list[str]:
        return [*super().command(), "--cluster-enabled", "yes", "--cluster-node-timeout", "500"]


@asynchronous
async def test_in_a_cluster_the_node_that_has_the_keys_is_found() -> None:
    first, second = ClusterNode(), ClusterNode()
    try:
        with redis.Redis(port=first.start().port) as one, redis.Redis(port=second.start().port) as two:
            slot = int(one.execute_command("CLUSTER", "KEYSLOT", b"{limits}"))
            one.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, slot - 1, slot + 1, 16383)
            two.execute_command("CLUSTER", "ADDSLOTS", slot)
            two.execute_command("CLUSTER", "MEET", "127.0.0.1", first.port)
            node: Any
            for node in (one, two):
                eventually(partial(is_whole, node), what="the cluster")
            async with workers(first.url, 2) as (here, there):
                charges = [Charge(rule(10), "a", 1), Charge(rule(3, "sliding_log"), "b", 1)]
                answers = await asyncio.gather(*(ask(each, *charges) for each in (here, there) * 3))
                assert sum(all(verdict.allowed for verdict in answer or ()) for answer in answers) == 3
            assert (one.execute_command("DBSIZE"), two.execute_command("DBSIZE")) == (0, 3)
    finally:
        first.destroy()
        second.destroy()


def is_whole(node: Any) -> bool:
    return "cluster_state:ok" in str(node.execute_command("CLUSTER", "INFO"))


# --- URLs ---
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", ("localhost", 6379, "", "", "", 0, False)),
        ("redis://h", ("h", 6379, "", "", "", 0, False)),
        ("redis://u:p%25@h:1/2", ("h", 1, "", "u", "p%", 2, False)),
        ("rediss://:p@[::1]:1/?db=3", ("::1", 1, "", "", "p", 3, True)),
        ("unix://u:p@/run/redis.sock?db=4", ("", 6379, "/run/redis.sock", "u", "p", 4, False)),
    ],
    ids=["nothing", "host", "all", "ipv6", "unix"],
)
def test_addresses(url: str, expected: tuple[Any, ...]) -> None:
    address = RedisAddress.from_url(url)
    told = (address.host, address.port, address.path, address.username, address.password, address.database)
    assert (*told, address.is_tls) == expected if not address.path else (*told[1:], address.is_tls) == expected[1:]
    assert "p%" not in repr(address)


@pytest.mark.parametrize("url", ["redis://h:secret", "http://secret", "redis://h/secret", "redis://[secret"])
def test_what_is_no_address_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="REDIS_URL") as caught:
        RedisAddress.from_url(url)
    assert "secret" not in str(caught.value)
