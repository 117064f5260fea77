"""Which version answers (rules 4 and 5)."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.faults import ClientFault, GatewayFault
from routing.records import ServiceRecord
from routing.selection import address_point, choose_version, requested_version
from tests.wires import service_wire, version_wire


def service(weights: dict[str, int], current: str = "", default_url: str = "", id: str = "svc_1") -> ServiceRecord:
    versions = [version_wire(name, weight) for name, weight in weights.items()]
    return ServiceRecord.from_wire(
        service_wire(id=id, versions=versions, current_version=current, default_url=default_url)
    )


@pytest.mark.parametrize(
    ("path", "header", "accept", "requested"),
    [
        (b"v1", None, None, None),
        (b"v1", None, b"*/*", None),
        (b"v1", None, b"text/html, application/json;q=0.9", None),
        (b"v1", None, b"application/conversion", None),
        (b"v2", None, None, "v2"),
        (b"v1", b"2", None, "v2"),
        (b"v1", b" v2 ", None, "v2"),
        (b"v1", b"v1", None, "v1"),
        (b"v1", b"2024-05-01", None, "2024-05-01"),
        (b"v1", b"", None, None),
        (b"v1", None, b"application/json;version=2", "v2"),
        (b"v1", None, b'application/json; Version = "2"; q=0.5, */*', "v2"),
        (b"v1", None, b"application/json;version=", None),
        (b"v1", None, b"a/b;version=2, c/d;version=v2", "v2"),
        (b"v2", b"2", b"a/b;version=v2", "v2"),
    ],
)
def test_path_header_and_accept_name_a_version(
    path: bytes, header: bytes | None, accept: bytes | None, requested: str | None
) -> None:
    assert requested_version(path, header, accept) == requested


@pytest.mark.parametrize(
    ("path", "header", "accept"),
    [
        (b"v2", b"v3", None),
        (b"v2", b"v1", None),
        (b"v1", b"2", b"a/b;version=3"),
        (b"v1", None, b"a/b;version=1, a/b;version=2"),
    ],
)
def test_names_that_contradict_each_other_are_a_bad_request(
    path: bytes, header: bytes | None, accept: bytes | None
) -> None:
    with pytest.raises(ClientFault) as refusal:
        requested_version(path, header, accept)
    assert refusal.value.code == "bad_request"


@pytest.mark.parametrize("name", ["v2", "2"])
@pytest.mark.parametrize("requested", ["v2", "2"])
def test_a_version_asked_for_answers_in_either_spelling(name: str, requested: str) -> None:
    assert choose_version(service({name: 0}), None, requested, 0).name == name


@pytest.mark.parametrize(
    ("record", "allowed", "requested", "code", "status"),
    [
        pytest.param(service({"v1": 1}), None, "v9", "unknown_version", 404, id="unknown"),
        pytest.param(service({"v1": 1}), None, "", "unknown_version", 404, id="empty"),
        pytest.param(
            service({"v1": 1}), frozenset(("v1",)), "v9", "unknown_version", 404, id="unknown before forbidden"
        ),
        pytest.param(service({"v1": 1}), frozenset(("v2",)), "v1", "version_not_allowed", 403, id="named"),
        pytest.param(service({"v1": 1}), frozenset(("v2",)), None, "version_not_allowed", 403, id="weighted"),
        pytest.param(service({"v1": 1}, "v1"), frozenset(), None, "version_not_allowed", 403, id="none allowed"),
        pytest.param(service({"v1": 0}, "v1"), frozenset(("v2",)), None, "version_not_allowed", 403, id="default"),
        pytest.param(service({}), None, None, "no_healthy_target", 503, id="nothing at all"),
        pytest.param(service({"v1": 0}), None, None, "no_healthy_target", 503, id="no weight and no default"),
    ],
)
def test_a_version_that_cannot_answer_is_refused(
    record: ServiceRecord, allowed: frozenset[str] | None, requested: str | None, code: str, status: int
) -> None:
    with pytest.raises(GatewayFault) as refusal:
        choose_version(record, allowed, requested, 7)
    assert (refusal.value.code, refusal.value.status) == (code, status)
    assert (refusal.value.retry_after_s is not None) == (status == 503)


@pytest.mark.parametrize(
    ("record", "allowed", "answering"),
    [
        pytest.param(service({"v1": 0, "v2": 0}, "v2"), None, "v2", id="no weights: the current version"),
        pytest.param(service({}, "", "http://10.0.0.9"), None, "default", id="no versions: the default URL"),
        pytest.param(
            service({}, "v3", "http://10.0.0.9"), None, "v3", id="the default URL has the current version's name"
        ),
        pytest.param(service({"v1": 5, "v2": 0}, "v2"), None, "v1", id="one weight"),
        pytest.param(service({"v1": 5, "v2": 5}), frozenset(("v2",)), "v2", id="the allowed one of several"),
        pytest.param(
            service({"v1": 5, "v2": 0}, "v2"), frozenset(("v2",)), "v2", id="the default where no weight is allowed"
        ),
    ],
)
def test_a_request_that_names_none_gets_a_version(
    record: ServiceRecord, allowed: frozenset[str] | None, answering: str
) -> None:
    assert choose_version(record, allowed, None, 12345).name == answering


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=4).filter(any), st.integers(0, 2**32 - 1))
def test_the_split_converges_to_the_weights(weights: list[int], seed: int) -> None:
    record = service({f"v{number}": weight for number, weight in enumerate(weights)})
    points = [(seed + number * 0x9E3779B1) & 0xFFFFFFFF for number in range(4000)]
    counts = Counter(choose_version(record, None, None, point).name for point in points)
    for number, weight in enumerate(weights):
        assert counts[f"v{number}"] / 4000 == pytest.approx(weight / sum(weights), abs=0.05)
        assert weight or not counts[f"v{number}"]


@given(st.integers(0, 2**32 - 1), st.dictionaries(st.sampled_from(["v1", "v2", "v3"]), st.integers(0, 9), min_size=1))
def test_a_client_stays_where_it_is(point: int, weights: dict[str, int]) -> None:
    record = service(weights, default_url="http://10.0.0.9")
    assert choose_version(record, None, None, point) is choose_version(record, None, None, point)


def test_more_weight_for_a_version_moves_clients_to_it_only() -> None:
    before, after = service({"v1": 90, "v2": 10}), service({"v1": 70, "v2": 30})
    for point in range(0, 2**32, 2**32 // 1000):
        if choose_version(before, None, None, point).name == "v2":
            assert choose_version(after, None, None, point).name == "v2"


def test_the_split_of_one_service_tells_nothing_of_anothers() -> None:
    one, other = (service({"v1": 1, "v2": 1}, id=id) for id in ("svc_a", "svc_b"))
    points = [number * 0x9E3779B1 & 0xFFFFFFFF for number in range(4000)]
    same = sum(
        choose_version(one, None, None, point).name == choose_version(other, None, None, point).name for point in points
    )
    assert 1800 < same < 2200


def test_addresses_spread_over_all_points() -> None:
    record = service({"v1": 1, "v2": 1})
    counts = Counter(
        choose_version(record, None, None, address_point(f"10.0.{number >> 8}.{number & 255}")).name
        for number in range(2000)
    )
    assert counts["v1"] == pytest.approx(1000, abs=120)
