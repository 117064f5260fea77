"""Lists of addresses (A12): what they hold, whoever writes them and however long they are."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.networks import AddressRules, NetworkSet, compile_addresses
from access.policies import IpAccess

_numbers = st.integers(0, 2**32 - 1)
_networks = st.builds(
    lambda number, length: str(ip_network((number, length), strict=False)), _numbers, st.integers(4, 32)
)


def rules(allow: tuple[str, ...] = (), deny: tuple[str, ...] = ()) -> AddressRules:
    return AddressRules(IpAccess(allow=allow, deny=deny))


@given(st.lists(_networks, max_size=30), _numbers)
def test_a_set_holds_what_one_of_its_networks_holds(networks: list[str], number: int) -> None:
    address = ip_address(number)
    assert NetworkSet(networks).holds(address) == any(address in ip_network(network) for network in networks)


@pytest.mark.parametrize(
    ("client", "passes"),
    [
        ("10.1.2.3", True),
        ("10.1.9.1", False),
        ("::ffff:10.1.2.3", True),
        ("::ffff:10.1.9.1", False),
        ("11.0.0.1", False),
        ("2001:db8::1", True),
        ("2001:db8:0:1::1", True),
        ("2001:db9::1", False),
        ("fe80::1%eth0", False),
        ("", False),
    ],
)
def test_deny_comes_before_allow_and_what_allow_does_not_name_is_refused(client: str, passes: bool) -> None:
    assert rules(("10.0.0.0/8", "2001:db8::/32"), ("10.1.9.0/24",)).permits(client) is passes


def test_without_allow_everybody_passes_whom_deny_does_not_name() -> None:
    only_denied = rules(deny=("::ffff:192.0.2.0/120", "2001:db8::1"))
    assert only_denied.permits("192.0.1.255") and only_denied.permits("2001:db8::2") and only_denied.permits("")
    assert not only_denied.permits("192.0.2.9")
    assert not only_denied.permits("2001:db8::1")


def test_a_list_that_names_nothing_is_none() -> None:
    assert compile_addresses(IpAccess()) is None
    assert compile_addresses(None) is None


def test_equal_lists_are_compiled_once() -> None:
    first, second = (compile_addresses(IpAccess(deny=("192.0.2.1",))) for _ in range(2))
    assert first is second
