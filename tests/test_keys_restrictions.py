"""What narrows one key further than its application (K6)."""

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.policies import PolicyError
from keys.restrictions import KeyRestrictions

MONDAY = datetime(2026, 11, 16, tzinfo=UTC).timestamp()
HOUR, DAY = 3600, 86_400


def refusal(
    document: dict[str, Any], address: str | None = "192.0.2.1", at: float = MONDAY, service: str = "orders"
) -> str | None:
    fault = KeyRestrictions.of(document).refusal(address, [service], at)
    return None if fault is None else fault.code


@pytest.mark.parametrize(
    ("ips", "address", "expected"),
    [
        ([], "192.0.2.1", None),
        (["192.0.2.0/24"], "192.0.2.255", None),
        (["192.0.2.0/24"], "192.0.3.0", "ip_not_allowed"),
        (["192.0.2.7", "2001:db8::/32"], "192.0.2.7", None),
        (["192.0.2.7", "2001:db8::/32"], "2001:db8:ffff::1", None),
        (["192.0.2.7", "2001:db8::/32"], "2001:db9::1", "ip_not_allowed"),
        (["::ffff:192.0.2.0/120"], "192.0.2.9", None),
        (["192.0.2.0/24"], "::ffff:192.0.2.9", None),
        (["0.0.0.0/0"], "2001:db8::1", "ip_not_allowed"),
        (["192.0.2.0/24"], "nonsense", "ip_not_allowed"),
        (["192.0.2.0/24"], None, None),
    ],
)
def test_addresses(ips: list[str], address: str | None, expected: str | None) -> None:
    assert refusal({"ips": ips}, address) == expected


OFFICE = {"hours": [{"days": ["mon", "fri"], "start": "09:00", "end": "17:00"}], "timeZone": "UTC"}
NIGHT = {"hours": [{"days": ["sun"], "start": "22:00", "end": "06:00"}], "timeZone": "UTC"}
BERLIN = OFFICE | {"timeZone": "Europe/Berlin"}


@pytest.mark.parametrize(
    ("document", "at", "is_open"),
    [
        (OFFICE, MONDAY + 9 * HOUR - 1, False),
        (OFFICE, MONDAY + 9 * HOUR, True),
        (OFFICE, MONDAY + 17 * HOUR - 1, True),
        (OFFICE, MONDAY + 17 * HOUR, False),
        (OFFICE, MONDAY + DAY + 12 * HOUR, False),
        (OFFICE, MONDAY + 4 * DAY + 12 * HOUR, True),
        (NIGHT, MONDAY - HOUR, True),
        (NIGHT, MONDAY + 6 * HOUR - 1, True),
        (NIGHT, MONDAY + 6 * HOUR, False),
        (NIGHT, MONDAY + DAY - HOUR, False),
        (BERLIN, MONDAY + 8 * HOUR, True),
        (BERLIN, MONDAY + 16 * HOUR, False),
        ({"hours": [{"days": ["tue"]}]}, MONDAY + DAY, True),
        ({"hours": [{"days": ["tue"]}]}, MONDAY + 2 * DAY, False),
    ],
)
def test_hours(document: dict[str, Any], at: float, is_open: bool) -> None:
    assert refusal(document, at=at) == (None if is_open else "key_not_allowed_now")


@given(at=st.floats(0, 4e9), zone=st.sampled_from(["UTC", "America/New_York", "Asia/Kathmandu", "Pacific/Apia"]))
def test_the_clocks_of_the_zone_decide(at: float, zone: str) -> None:
    """Also across the days on which they are changed."""
    local = datetime.fromtimestamp(at, ZoneInfo(zone))
    document = {"hours": [{"days": ["wed"], "start": "01:30", "end": "14:00"}], "timeZone": zone}
    expected = local.weekday() == 2 and (1, 30) <= (local.hour, local.minute) < (14, 0)
    assert (refusal(document, at=at) is None) == expected


def test_whoever_comes_at_another_time_is_told_when_to_come() -> None:
    fault = KeyRestrictions.of(BERLIN).refusal(None, [], MONDAY)
    assert fault is not None
    assert fault.detail == "The key may be used at these times: mon, fri 09:00-17:00 (Europe/Berlin)."


def test_services() -> None:
    assert refusal({"services": ["orders", "mail"]}) is None
    assert refusal({"services": ["mail"]}) == "service_not_allowed"
    of_two = KeyRestrictions.of({"services": ["orders"]}).refusal(None, ["orders", "mail"], MONDAY)
    assert of_two is not None


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"timeZone": "Mars/Olympus"}, ""),
        ({"timeZone": "../../etc/passwd"}, ""),
        ({"timeZone": "America"}, ""),
        ({"timeZone": ""}, ""),
        ({"ips": ["10.0.0.0/33"]}, ""),
        ({"hours": [{"days": []}]}, "hours[0].days"),
        ({"hours": [{"days": ["someday"]}]}, "hours[0].days[0]"),
        ({"hours": [{"days": ["mon"], "start": "25:00"}]}, "hours[0].start"),
        ({"hours": [{"days": ["mon"], "start": "09:00", "end": "09:00"}]}, "hours[0]"),
        ({"quota": {"limit": 0}}, "quota.limit"),
        ({"anything": 1}, ""),
    ],
)
def test_what_is_no_restriction_is_said_at_its_member(document: dict[str, Any], field: str) -> None:
    with pytest.raises(PolicyError) as raised:
        KeyRestrictions.of(document)
    assert raised.value.field == field
