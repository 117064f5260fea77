"""Client addresses (rule 24), failure buckets (rule 10) and where the gateway may connect to (rule 25)."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.addresses import EgressPolicy, TrustedProxies, failure_bucket

PROXIES = TrustedProxies(["10.0.0.0/8", "192.0.2.7", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        pytest.param("203.0.113.9", [b"198.51.100.1"], "203.0.113.9", id="a stranger is not believed"),
        pytest.param("10.0.0.1", [], "10.0.0.1", id="a proxy that says nothing"),
        pytest.param("10.0.0.1", [b"198.51.100.1"], "198.51.100.1", id="one proxy"),
        pytest.param("10.0.0.1", [b"1.1.1.1, 198.51.100.1"], "198.51.100.1", id="what clients write is not believed"),
        pytest.param("10.0.0.1", [b"198.51.100.1, 192.0.2.7,10.1.1.1"], "198.51.100.1", id="a chain of proxies"),
        pytest.param("10.0.0.1", [b"198.51.100.1", b"10.1.1.1"], "198.51.100.1", id="several fields"),
        pytest.param("10.0.0.1", [b"10.0.0.3, 10.0.0.2"], "10.0.0.3", id="nothing but proxies"),
        pytest.param("10.0.0.1", [b"198.51.100.1, unknown"], "10.0.0.1", id="garbage ends the walk"),
        pytest.param("10.0.0.1", [b"198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2", id="garbage behind a proxy"),
        pytest.param("10.0.0.1", [b"198.51.100.1,"], "10.0.0.1", id="an empty element is garbage"),
        pytest.param("10.0.0.1", [b"\xff\xfe"], "10.0.0.1", id="no text at all"),
        pytest.param("10.0.0.1", [b"9" * 4000], "10.0.0.1", id="too long"),
        pytest.param("10.0.0.1", [b"198.51.100.1:4711"], "198.51.100.1", id="with a port"),
        pytest.param("10.0.0.1", [b"[2001:db8::1]:4711"], "2001:db8::1", id="IPv6 with a port"),
        pytest.param("10.0.0.1", [b"2001:DB8:0::1"], "2001:db8::1", id="one spelling for each address"),
        pytest.param("10.0.0.1", [b"::ffff:198.51.100.1"], "198.51.100.1", id="IPv4-mapped"),
        pytest.param("::ffff:10.0.0.1", [b"198.51.100.1"], "198.51.100.1", id="a mapped proxy"),
        pytest.param("fd00::1", [b"198.51.100.1"], "198.51.100.1", id="an IPv6 proxy"),
        pytest.param("", [b"198.51.100.1"], "", id="no peer"),
        pytest.param("10.0.0.1", [b'fe80::1%\xe9"'], "fe80::1", id="a zone, in which anything may stand"),
    ],
)
def test_the_client_is_read_from_the_right_through_trusted_proxies(
    peer: str, forwarded_for: list[bytes], client: str
) -> None:
    assert PROXIES.client(peer, forwarded_for) == client


def test_without_trusted_proxies_the_peer_is_the_client() -> None:
    assert TrustedProxies([]).client("10.0.0.1", [b"198.51.100.1"]) == "10.0.0.1"


def test_a_chain_without_end_is_not_followed_to_its_end() -> None:
    assert PROXIES.client("10.0.0.1", [b"198.51.100.1" + b", 10.0.0.2" * 1000]) == "10.0.0.2"


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_whatever_is_written_the_client_is_an_address(forwarded_for: list[bytes]) -> None:
    assert ip_address(PROXIES.client("10.0.0.1", forwarded_for))


@given(st.lists(st.ip_addresses(v=4).map(str), min_size=1, max_size=6))
def test_a_client_cannot_choose_its_address(hops: list[str]) -> None:
    told = ", ".join([*hops, "198.51.100.1"]).encode()
    assert PROXIES.client("10.0.0.1", [told]) == "198.51.100.1"


@pytest.mark.parametrize(
    ("address", "bucket"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("::ffff:198.51.100.1", "198.51.100.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::/64", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("", ""),
    ],
)
def test_failures_are_counted_by_address_and_ipv6_by_network(address: str, bucket: str) -> None:
    assert failure_bucket(address) == bucket
    assert failure_bucket(bucket) == bucket


# --- egress ---


def spellings(inner: IPv4Address) -> list[str]:
    """An IPv4 address and the IPv6 ones that may lead to it."""
    number = int(inner)
    prefixes = [0xFFFF << 32, 0, 0xFFFF << 48, 0x64FF9B << 96, 0x64FF9B0001 << 80]
    six_to_four = 0x2002 << 112 | number << 80 | 1
    teredo_client = 0x20010000 << 96 | 0x08080808 << 64 | (number ^ 0xFFFFFFFF)
    teredo_server = 0x20010000 << 96 | number << 64 | (0x08080808 ^ 0xFFFFFFFF)
    numbers = [*(prefix | number for prefix in prefixes), six_to_four, teredo_client, teredo_server]
    return [str(inner), *(str(IPv6Address(each)) for each in numbers), f"::ffff:{inner}", f"64:ff9b::{inner}"]


NEVER = [
    *("169.254.169.254", "169.254.0.1", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    *("224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1", "0.0.0.0", "0.1.2.3"),
]
WIDE_OPEN = EgressPolicy(["0.0.0.0/0", "::/0"])
GUARDED = EgressPolicy([])


@pytest.mark.parametrize("address", [spelling for each in NEVER for spelling in spellings(IPv4Address(each))])
def test_link_local_metadata_multicast_and_unspecified_are_never_permitted(address: str) -> None:
    assert not WIDE_OPEN.permits(address)
    assert not GUARDED.permits(address)


@pytest.mark.parametrize(
    "address",
    ["fe80::1", "fe80::1%eth0", "febf::1", "fd00:ec2::254", "fd20:ce::254", "ff02::1", "::", "fd00:c1::a9fe:a9fe"],
)
def test_their_ipv6_kin_is_never_permitted(address: str) -> None:
    assert not WIDE_OPEN.permits(address)


@given(st.integers(0, 0xFFFF), st.data())
def test_link_local_is_never_permitted_in_any_notation(low: int, data: st.DataObject) -> None:
    inner = IPv4Address(0xA9FE0000 | low)
    notation = data.draw(st.sampled_from(spellings(inner)))
    assert not WIDE_OPEN.permits(notation)
    assert not WIDE_OPEN.permits(ip_address(notation).exploded.upper())
    for number in (f"{int(inner)}", f"{int(inner):#x}", f"0{int(inner):o}"):
        assert not WIDE_OPEN.permits(number), "what is no resolved address is not permitted either"


@given(st.integers(0, 2**118 - 1))
def test_ipv6_link_local_is_never_permitted(low: int) -> None:
    assert not WIDE_OPEN.permits(str(IPv6Address(0x3FA << 118 | low)))


PRIVATE = ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "198.18.0.1", "192.0.2.1"]


@pytest.mark.parametrize(
    "address", [*PRIVATE, "::1", "fc00::1", "fd12::1", "fec0::1", "2001:db8::1", "64:ff9b:1::808:808"]
)
def test_private_addresses_need_the_operators_word(address: str) -> None:
    assert not GUARDED.permits(address)
    assert WIDE_OPEN.permits(address)
    assert EgressPolicy([address]).permits(address)


@pytest.mark.parametrize("inner", PRIVATE)
def test_ipv4_inside_ipv6_is_judged_by_the_inner_address(inner: str) -> None:
    listed = EgressPolicy([inner])
    for spelling in (f"::ffff:{inner}", f"64:ff9b::{inner}", f"::{inner}"):
        assert not GUARDED.permits(spelling)
        assert listed.permits(spelling)


def test_an_embedding_that_only_the_operator_knows_needs_the_operators_word() -> None:
    assert not GUARDED.permits("64:ff9b:1:a9fe:a9:fe00:808:808")


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_global_addresses_are_permitted(address: str) -> None:
    assert GUARDED.permits(address)


@pytest.mark.parametrize(
    "address", ["", "localhost", "example.com", "1.2.3", "1.2.3.4/32", "[::1]", "0x7f.1", "%", "127.1"]
)
def test_what_is_no_address_is_not_permitted(address: str) -> None:
    assert not WIDE_OPEN.permits(address)
