"""What applications may call (rule 5), and what anybody may (rule 6)."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.policy import PublicIndex, authorize
from access.records import ApplicationRecord
from core.faults import PolicyDenied
from tests.test_core_path_trie import naive_rank
from tests.wires import application_wire, entry_wire

DEFAULT_LIMIT = (1000, 3600)


def application(*entries: dict[str, Any], **changes: Any) -> ApplicationRecord:
    return ApplicationRecord.from_wire(application_wire(entries=list(entries), **changes), DEFAULT_LIMIT)


def listed(*entries: dict[str, Any], **changes: Any) -> ApplicationRecord:
    return application(*entries, endpoint_mode="listed", **changes)


def refusal(
    record: ApplicationRecord, path: bytes, method: bytes = b"GET", destination: str = "orders"
) -> PolicyDenied:
    with pytest.raises(PolicyDenied) as denied:
        authorize(record, destination, path, method)
    assert denied.value.status == 403
    return denied.value


@pytest.mark.parametrize("services", [[], ["users"], ["orders2"]])
def test_a_service_that_is_not_allowed_is_refused_by_name(services: list[str]) -> None:
    denied = refusal(application(services=services), b"/api/v1/orders/1")
    assert denied.code == "service_not_allowed"
    assert "orders" in denied.detail and "web" in denied.detail


@pytest.mark.parametrize("services", [["*"], ["orders"], ["users", "orders"]])
def test_an_allowed_service_is_open_where_every_endpoint_is(services: list[str]) -> None:
    record = application(services=services)
    assert authorize(record, "orders", b"/api/v1/orders/1", b"DELETE") is record.grant


def test_a_listed_application_without_entries_may_call_nothing() -> None:
    denied = refusal(listed(), b"/api/v1/orders/1")
    assert denied.code == "endpoint_not_whitelisted"
    assert "/api/v1/orders/1" in denied.detail


def test_only_whitelisted_paths_and_methods_pass() -> None:
    record = listed(entry_wire("wle_1", "/api/v1/orders/{id}", methods=["GET", "PUT"]))
    assert authorize(record, "orders", b"/api/v1/orders/1", b"PUT") is record.entries[0].grant
    assert refusal(record, b"/api/v1/orders").code == "endpoint_not_whitelisted"
    assert refusal(record, b"/api/v1/orders/1/x").code == "endpoint_not_whitelisted"
    denied = refusal(record, b"/api/v1/orders/1", b"DELETE")
    assert denied.code == "method_not_whitelisted"
    assert "GET, PUT" in denied.detail and "DELETE" in denied.detail


def test_the_most_specific_entry_decides_alone() -> None:
    record = listed(
        entry_wire("wle_1", "/api/v1/orders/*"), entry_wire("wle_2", "/api/v1/orders/secret", methods=["GET"])
    )
    assert authorize(record, "orders", b"/api/v1/orders/other", b"DELETE")
    assert authorize(record, "orders", b"/api/v1/orders/secret", b"GET")
    assert refusal(record, b"/api/v1/orders/secret", b"DELETE").code == "method_not_whitelisted"


def test_the_method_decides_among_entries_that_differ_in_names_only() -> None:
    record = listed(
        entry_wire("wle_1", "/api/v1/orders/{id}", methods=["GET"], rate_limit=5),
        entry_wire("wle_2", "/api/v1/orders/{order}", methods=["PUT"], rate_limit=7),
    )
    assert authorize(record, "orders", b"/api/v1/orders/1", b"GET").limit.limit == 5
    assert authorize(record, "orders", b"/api/v1/orders/1", b"PUT").limit.limit == 7


def test_an_entry_without_methods_allows_none() -> None:
    record = listed(entry_wire("wle_1", "/api/v1/orders", methods=[]))
    assert refusal(record, b"/api/v1/orders").code == "method_not_whitelisted"


def test_where_every_endpoint_is_allowed_an_entry_sets_terms_of_its_own() -> None:
    record = application(entry_wire("wle_1", "/api/v1/orders/*", methods=["POST"], rate_limit=5))
    assert authorize(record, "orders", b"/api/v1/orders/1", b"POST").limit.limit == 5
    assert authorize(record, "orders", b"/api/v1/orders/1", b"GET") is record.grant


def test_limits_go_from_the_entry_over_the_application_to_the_default() -> None:
    entries = (entry_wire("wle_1", "/api/a", rate_limit=5), entry_wire("wle_2", "/api/b"))
    plain, own = application(*entries), application(*entries, rate_limit=20)
    limits = {
        (record.grant.limit.limit, path): authorize(record, "orders", path, b"GET").limit
        for record in (plain, own)
        for path in (b"/api/a", b"/api/b", b"/api/c")
    }
    found = {key: (limit.key, limit.name, limit.limit, limit.window_s) for key, limit in limits.items()}
    assert found == {
        (1000, b"/api/a"): ("wle_1", "endpoint", 5, 60),
        (1000, b"/api/b"): ("app_1", "default", 1000, 3600),
        (1000, b"/api/c"): ("app_1", "default", 1000, 3600),
        (20, b"/api/a"): ("wle_1", "endpoint", 5, 60),
        (20, b"/api/b"): ("app_1", "application", 20, 60),
        (20, b"/api/c"): ("app_1", "application", 20, 60),
    }


@pytest.mark.parametrize(
    ("of_application", "of_entry", "granted"),
    [
        (["*"], ["*"], None),
        (["*"], ["v1"], {"1", "v1"}),
        (["2"], ["*"], {"2", "v2"}),
        (["v1", "v2"], ["2", "v3"], {"2", "v2"}),
        (["beta", "v1"], ["beta"], {"beta"}),
        ([], ["*"], set()),
        (["*"], [], set()),
    ],
)
def test_versions_of_application_and_entry_intersect(
    of_application: list[str], of_entry: list[str], granted: set[str] | None
) -> None:
    record = application(entry_wire("wle_1", "/api/a", versions=of_entry), versions=of_application)
    assert authorize(record, "orders", b"/api/a", b"GET").versions == granted


@pytest.mark.parametrize(
    ("entries", "changes", "sentence"),
    [
        ([entry_wire("wle_1", "api/a")], {}, "begin with a slash"),
        ([entry_wire("wle_1", "/api/../a")], {}, "dot segment"),
        ([entry_wire("wle_1", "/api/a", rate_limit=0)], {}, "at least one request"),
        ([], {"rate_limit": 0}, "at least one request"),
    ],
)
def test_an_application_that_does_not_compile_says_why(
    entries: list[dict[str, Any]], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        application(*entries, **changes)


def test_records_from_one_wire_are_equal() -> None:
    entries = (entry_wire("wle_1", "/api/a", is_public=True),)
    assert application(*entries) == application(*entries)


# --- public entries ---


def public(id: str, path: str, **changes: Any) -> dict[str, Any]:
    return entry_wire(id, path, is_public=True, **changes)


def index_of(*records: ApplicationRecord) -> PublicIndex:
    index = PublicIndex()
    for record in records:
        index.load(record)
    return index


def found(index: PublicIndex, path: bytes, method: bytes = b"GET", destination: str = "orders") -> str | None:
    match = index.find(path, method, destination, tenant_id="default")
    return match[1].id if match else None


def test_an_empty_index_lets_nobody_in() -> None:
    assert found(PublicIndex(), b"/api/a") is None


def test_only_public_entries_let_anybody_in() -> None:
    record = application(public("wle_1", "/api/a", rate_limit=5), entry_wire("wle_2", "/api/b"))
    index = index_of(record)
    match = index.find(b"/api/a", b"GET", "orders", tenant_id="default")
    assert match == (record, record.entries[0])
    assert match[1].grant.limit.limit == 5
    assert found(index, b"/api/b") is None


def test_the_most_specific_then_oldest_public_entry_decides() -> None:
    index = index_of(
        application(public("wle_3", "/api/{x}"), id="app_1"),
        application(public("wle_2", "/api/{y}"), public("wle_1", "/api/*"), id="app_2"),
    )
    assert found(index, b"/api/a") == "wle_2"
    assert found(index, b"/api/a/b") == "wle_1"


def test_a_public_entry_counts_only_for_the_services_of_its_application() -> None:
    index = index_of(
        application(public("wle_1", "/api/a"), services=["users"], id="app_1"),
        application(public("wle_2", "/api/*"), services=["orders"], id="app_2"),
    )
    assert found(index, b"/api/a", destination="orders") == "wle_2"
    assert found(index, b"/api/a", destination="users") == "wle_1"
    assert found(index, b"/api/a", destination="other") is None


def test_a_public_entry_that_does_not_take_the_method_hides_wider_ones() -> None:
    index = index_of(application(public("wle_1", "/api/*"), public("wle_2", "/api/a", methods=["GET"])))
    assert found(index, b"/api/a", b"GET") == "wle_2"
    assert found(index, b"/api/a", b"POST") is None
    assert found(index, b"/api/b", b"POST") == "wle_1"


PATTERNS = st.sampled_from(["/api/*", "/api/{x}", "/api/{y}", "/api/a", "/api/a/*", "/api/{x}/b"])
ROWS = st.lists(
    st.tuples(PATTERNS, st.sampled_from([["*"], ["GET"], ["POST"]]), st.booleans(), st.integers(0, 2)), max_size=8
)
SERVICES = ["*", "orders", "users"]


def applications_of(rows: list[tuple[str, list[str], bool, int]]) -> list[ApplicationRecord]:
    return [
        application(
            *(
                entry_wire(f"wle_{serial}", path, methods=methods, is_public=is_public)
                for serial, (path, methods, is_public, owner) in enumerate(rows)
                if owner == number
            ),
            id=f"app_{number}",
            services=[service],
        )
        for number, service in enumerate(SERVICES)
    ]


def scanned(records: list[ApplicationRecord], path: bytes, method: bytes) -> str | None:
    ranked = sorted(
        (rank, entry.id, entry.accepts(method))
        for record in records
        if record.services is None or "orders" in record.services
        for entry in record.entries
        if entry.is_public and (rank := naive_rank(entry.path, path))
    )
    return next((id for rank, id, accepts in ranked if accepts and rank == ranked[0][0]), None)


@given(
    ROWS, st.sampled_from([b"/api/a", b"/api/b", b"/api/a/b", b"/api/c/b", b"/api/"]), st.sampled_from([b"GET", b"PUT"])
)
def test_the_public_index_equals_a_scan_of_all_entries(
    rows: list[tuple[str, list[str], bool, int]], path: bytes, method: bytes
) -> None:
    records = applications_of(rows)
    index = index_of(*records)
    assert found(index, path, method) == scanned(records, path, method)
    again = applications_of(rows)  # equal, not the same
    without = index.changed([], [again[0]])
    assert found(without, path, method) == scanned(records[1:], path, method)
    assert found(without.changed([again[0]], []), path, method) == scanned(records, path, method)
    assert found(index, path, method) == scanned(records, path, method)


@given(
    ROWS, st.sampled_from([b"/api/a", b"/api/b", b"/api/a/b", b"/api/c/b", b"/api/"]), st.sampled_from([b"GET", b"PUT"])
)
def test_a_whitelist_equals_a_scan_of_its_entries(
    rows: list[tuple[str, list[str], bool, int]], path: bytes, method: bytes
) -> None:
    record = listed(
        *(entry_wire(f"wle_{serial}", path, methods=methods) for serial, (path, methods, _, _) in enumerate(rows))
    )
    ranked = sorted((rank, entry.accepts(method)) for entry in record.entries if (rank := naive_rank(entry.path, path)))
    if any(accepts for rank, accepts in ranked if rank == ranked[0][0]):
        assert authorize(record, "orders", path, method)
    else:
        assert refusal(record, path, method).code == (
            "method_not_whitelisted" if ranked else "endpoint_not_whitelisted"
        )


@pytest.mark.parametrize("priority", [-1, 10])
def test_a_priority_that_is_none_does_not_compile(priority: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 9"):
        application(priority=priority)
