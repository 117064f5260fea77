"""Whose key it is (rules 11 and 17)."""

from contextlib import suppress
from typing import Any

import pytest

from core.faults import GatewayFault, InternalFault, PolicyDenied
from core.shards import ShardMap
from keys.credential import Digester, generate
from keys.records import KeyRecord
from keys.verify import authenticate

PREFIX = b"km_"
DIGESTER = Digester(b"pepper for tests")
NOW = 1_700_000_000.0


def record(key: str, **changes: Any) -> KeyRecord:
    wire: dict[str, Any] = {
        "id": "key_1",
        "tenant": "default",
        "digest": DIGESTER(key.encode()).hex(),
        "application": "app_1",
        "expires_at": None,
        "scopes": [],
    }
    return KeyRecord.from_wire(wire | changes)


def keys_of(*records: KeyRecord) -> ShardMap[KeyRecord]:
    return ShardMap[KeyRecord]().changed({each.digest: each for each in records}, [])


def refusal(keys: ShardMap[KeyRecord], key: bytes, is_feed_fresh: bool = True) -> GatewayFault:
    with pytest.raises(GatewayFault) as raised:
        authenticate(keys, DIGESTER, key, PREFIX, NOW, is_feed_fresh)
    return raised.value


@pytest.mark.parametrize("is_feed_fresh", [True, False])
@pytest.mark.parametrize("expires_at", [None, NOW + 0.001])
def test_a_live_key_opens_its_record(expires_at: float | None, is_feed_fresh: bool) -> None:
    key = generate("km_").key
    live = record(key, expires_at=expires_at)
    assert authenticate(keys_of(live), DIGESTER, key.encode(), PREFIX, NOW, is_feed_fresh) is live


def test_every_invalid_key_gets_the_same_answer() -> None:
    mine, expired, unknown = (generate("km_").key for _ in range(3))
    keys = keys_of(record(mine), record(expired, expires_at=NOW))
    refusals = [
        refusal(keys, key)
        for key in (
            unknown.encode(),
            expired.encode(),
            mine[:-1].encode(),
            mine.swapcase().encode(),
            b"",
            b"\xff" * 9000,
        )
    ]
    assert {type(fault) for fault in refusals} == {PolicyDenied}
    assert len({(fault.code, fault.detail, fault.headers) for fault in refusals}) == 1
    assert refusals[0].status == 401
    assert refusals[0].headers[0][0] == b"www-authenticate"


def test_while_the_feed_is_silent_a_key_that_may_be_new_is_no_401() -> None:
    fault = refusal(keys_of(), generate("km_").key.encode(), is_feed_fresh=False)
    assert isinstance(fault, InternalFault)
    assert (fault.code, fault.status, fault.retry_after_s) == ("dependency_unavailable", 503, 1)


def test_while_the_feed_is_silent_typing_errors_and_expired_keys_are_a_401_still() -> None:
    key = generate("km_").key
    keys = keys_of(record(key, expires_at=NOW - 1))
    for wrong in (key.encode(), key[:-1].encode(), key.swapcase().encode(), generate("other_").key.encode()):
        assert refusal(keys, wrong, is_feed_fresh=False).code == "invalid_credentials"


def test_no_answer_repeats_the_key() -> None:
    key = generate("km_").key
    for is_feed_fresh in (True, False):
        fault = refusal(keys_of(), key.encode(), is_feed_fresh)
        assert key[3:] not in f"{fault.detail} {fault.headers} {fault.members}"


def test_every_key_costs_one_digest_whatever_is_wrong_with_it() -> None:
    digests = 0

    class Counted(Digester):
        def __call__(self, key: bytes) -> bytes:
            nonlocal digests
            digests += 1
            return super().__call__(key)

    right, expired, unknown = (generate("km_").key for _ in range(3))
    keys = keys_of(record(right), record(expired, expires_at=NOW))
    digester = Counted(b"pepper for tests")
    for number, key in enumerate((right, expired, unknown, right[:-1], "nonsense", ""), 1):
        with suppress(GatewayFault):
            authenticate(keys, digester, key.encode(), PREFIX, NOW, is_feed_fresh=True)
        assert digests == number, key
