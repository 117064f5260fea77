"""Which limits hold for a request, whose budget it takes from, and quotas as a worker counts them (A10)."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.limits.charges import Charge, LimitPolicy, compiled, quota_policy
from access.limits.headers import Told, refusal_of_all
from access.limits.periods import period_of
from access.limits.quotas import MOST, QuotaBook, Row
from access.limits.records import Held, LimitIndex, LimitRecord, Place
from access.policies import LimitRule
from tests.wires import limit_wire

BASE = LimitPolicy.of("app_1", "default", 1000, 3600)
PLACE = Place("default", "app_1", "web", ("orders",), "", "/api/v1/orders/*", b"GET", b"/api/v1/orders/7")


def held(place: Place = PLACE, cost: int = 1, **rule: Any) -> Held:
    index = LimitIndex().changed([LimitRecord.from_wire(limit_wire(**rule))], [])
    plan = index.plan(place, BASE, cost)
    assert plan is not None
    (only,) = (*plan.everybody, *plan.by_role)
    return only


# --- subjects ---
@pytest.mark.parametrize(
    ("per", "key", "user", "roles", "expected"),
    [
        (["key"], "key_1", "me:7", [], "key:key_1"),
        (["key"], "", "me:7", [], "user:me:7"),
        (["key"], "", "", [], "ip:2001:db8::/64"),
        (["user"], "key_1", "me:7", [], "user:me:7"),
        (["user"], "key_1", "", [], "key:key_1"),
        (["user"], "", "", [], "ip:2001:db8::/64"),
        (["ip"], "key_1", "me:7", [], "ip:2001:db8::/64"),
        (["gateway"], "key_1", "me:7", [], ""),
        (["role"], "", "me:7", ["staff", "admin"], "role:staff"),
        (["role"], "key_1", "", [], "role:"),
        (["tenant", "application"], "key_1", "", [], "tenant:default application:app_1"),
        (["service", "user"], "key_1", "me:7", [], "service:orders user:me:7"),
        (["key", "endpoint"], "key_1", "", [], "endpoint:/api/v1/orders/* key:key_1"),
    ],
)  # fmt: skip
def test_whose_budget_a_request_takes_from(
    per: list[str], key: str, user: str, roles: list[str], expected: str
) -> None:
    assert held(per=per).bucket(key, user, roles, "2001:db8::5") == expected


def test_without_an_application_its_budget_is_the_address_s() -> None:
    nobody = PLACE._replace(application_id="", application="")
    assert held(nobody, per=["application"]).bucket("", "", [], "192.0.2.1") == "ip:192.0.2.1"


def test_an_endpoint_is_the_limit_s_own_pattern_where_it_has_one() -> None:
    limit = held(per=["endpoint"], paths=["/api/v1/*/7", "/api/v1/orders/*"])
    assert limit.bucket("key_1", "", [], "192.0.2.1") == "endpoint:/api/v1/orders/*"


def test_a_role_that_the_limit_names_goes_before_others() -> None:
    assert held(per=["role"], roles=["admin"]).bucket("", "me:7", ["staff", "admin"], "") == "role:admin"


@pytest.mark.parametrize("user", ["me:" + "x" * 500, "me:a\x00b", "me:\ud800", "me:a\nb"])
def test_whatever_a_token_calls_its_user_the_bucket_has_a_name_that_can_be_kept(user: str) -> None:
    named = held(per=["user"]).bucket("", user, [], "192.0.2.1")
    assert re.fullmatch(r"user:#[0-9a-f]{32}", named)
    assert named != held(per=["user"]).bucket("", user + "x", [], "192.0.2.1")


def test_however_much_a_bucket_s_name_says_it_can_be_kept() -> None:
    path = "/" + "x" * 450
    place = PLACE._replace(path=path.encode(), services=tuple(f"service-{number}" for number in range(30)))
    limit = held(place, per=["tenant", "application", "service", "endpoint", "user", "ip"], paths=[path])
    assert len(limit.bucket("", "me:" + "y" * 140, [], "192.0.2.1")) <= 300


def test_a_cost_beyond_the_whole_budget_takes_all_of_it() -> None:
    assert held(cost=50, limit=100, burst=10).cost == 10
    assert held(cost=50, limit=100).cost == 50


# --- what holds ---
SELECTORS = st.fixed_dictionaries(
    {},
    optional={
        "services": st.sampled_from([["orders"], ["mail"], ["mail", "orders"]]),
        "routes": st.sampled_from([["r1"], ["r2"]]),
        "applications": st.sampled_from([["app_1"], ["web"], ["app_2"], ["app_1", "web"]]),
        "methods": st.sampled_from([["GET"], ["POST"]]),
        "paths": st.sampled_from([["/api/v1/orders/*"], ["/api/v1/mail/*"], ["/api/v1/{x}/7", "/api/v1/orders/7"]]),
    },
)


def naively(rule: dict[str, Any], place: Place) -> bool:
    paths = {"/api/v1/orders/*", "/api/v1/{x}/7", "/api/v1/orders/7"}
    return (
        bool(not rule.get("services") or set(rule["services"]) & set(place.services))
        and bool(not rule.get("routes") or place.route in rule["routes"])
        and bool(not rule.get("applications") or {"app_1", "web"} & set(rule["applications"]))
        and bool(not rule.get("methods") or place.method.decode() in rule["methods"])
        and bool(not rule.get("paths") or paths & set(rule["paths"]))
    )


@given(st.lists(SELECTORS, max_size=8), st.sampled_from(["", "r1"]))
def test_the_index_finds_what_a_look_at_all_of_them_finds(rules: list[dict[str, Any]], route: str) -> None:
    place = PLACE._replace(route=route)
    wires = [limit_wire(f"lim_{number}", **rule) for number, rule in enumerate(rules)]
    index = LimitIndex().changed([LimitRecord.from_wire(wire) for wire in wires], [])
    plan = index.plan(place, BASE, 1)
    found = [each.policy.id for each in plan.everybody] if plan is not None else []
    assert found == [f"lim_{number}" for number, rule in enumerate(rules) if naively(rule, place)]


def test_another_tenant_s_limits_hold_nowhere_else() -> None:
    index = LimitIndex().changed([LimitRecord.from_wire(limit_wire(tenant="ten_2", per=["gateway"]))], [])
    assert index.plan(PLACE, BASE, 1) is None


def test_limits_that_hold_elsewhere_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    holds = LimitRecord.holds

    def look(self: LimitRecord, place: Place) -> bool:
        looked.append(self.id)
        return holds(self, place)

    monkeypatch.setattr(LimitRecord, "holds", look)
    wires = [limit_wire(f"lim_a{number}", applications=[f"app_{number}"]) for number in range(300)]
    wires += [limit_wire(f"lim_s{number}", services=[f"s{number}"]) for number in range(300)]
    wires += [limit_wire(f"lim_p{number}", paths=[f"/api/v1/p{number}/*"]) for number in range(300)]
    index = LimitIndex().changed([LimitRecord.from_wire(wire) for wire in wires], [])
    plan = index.plan(PLACE, BASE, 1)
    assert plan is not None and looked == ["lim_a1"]


# --- what a refusal says ---
def test_a_refusal_waits_for_all_that_refused_and_names_them() -> None:
    daily = quota_policy("q", 10, "day", name="daily")
    told = [Told(BASE, 5, 3), Told(daily, 0, 500, refused=True), Told(BASE, 0, 7, refused=True)]
    fault = refusal_of_all(told)
    assert (fault.code, fault.retry_after_s) == ("quota_exceeded", 500)
    assert fault.members == {"violated-policies": ["daily", "default"]}
    assert dict(fault.headers)[b"ratelimit"] == b'"default";r=5;t=3,"daily";r=0;t=500,"default";r=0;t=7'


# --- quotas ---
NOW = 1_795_186_227.0  # 2026-11-20


class Store:
    """What all workers have told."""

    def __init__(self) -> None:
        self.used: dict[tuple[str, ...], int] = {}

    def answer(self, book: QuotaBook, rows: list[Row]) -> None:
        for _, *place, cost in rows:
            self.used[tuple(place)] = self.used.get(tuple(place), 0) + cost
        book.answered(rows, [self.used[tuple(place)] for _, *place, _ in rows])


def take(book: QuotaBook, store: Store, charge: Charge, now: float = NOW) -> bool:
    """One request, which waits for the store where it must."""
    for _ in range(20):
        look = book.look(charge, now)
        if look is not None:
            if look.allowed:
                book.make(charge, now)
            return look.allowed
        book.want(charge, now, "default")
        store.answer(book, book.rows(is_urgent=True))
    raise AssertionError("it asks for ever")


def quota(limit: int, cost: int = 1, **rule: Any) -> Charge:
    return Charge(compiled("lim_1", "daily", LimitRule(limit=limit, algorithm="quota", **rule)), "key:key_1", cost)


def test_one_worker_counts_exactly() -> None:
    book, store, charge = QuotaBook(), Store(), quota(25)
    assert sum(take(book, store, charge) for _ in range(40)) == 25
    store.answer(book, book.rows())
    assert list(store.used.values()) == [25]


def test_a_bucket_that_was_charged_and_given_back_may_be_forgotten() -> None:
    book, store, charge = QuotaBook(), Store(), quota(5)
    assert take(book, store, charge)
    book.give_back(charge, NOW)
    for number in range(MOST):
        place = book.want(charge._replace(bucket=f"key:{number}"), NOW, "default")
        book.answered([("default", *place, 0)], [0])
    assert book.rows() == []


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=200), st.integers(1, 60))
def test_several_workers_overshoot_by_less_than_was_left_when_they_were_told(
    steps: list[tuple[int, bool]], limit: int
) -> None:
    """Each worker holds back; what is beyond the limit is what others had not told."""
    books, store, charge = [QuotaBook(3) for _ in range(3)], Store(), quota(limit)
    admitted = 0
    for worker, tells in steps:
        admitted += take(books[worker], store, charge)
        if tells:
            store.answer(books[worker], books[worker].rows())
    assert admitted <= 2 * limit
    for book in books:
        store.answer(book, book.rows())
    assert sum(store.used.values()) == admitted, "nothing is told twice, nothing is lost"


def test_a_period_that_ends_gives_a_new_budget_and_the_former_is_told_still() -> None:
    book, store, charge = QuotaBook(), Store(), quota(3)
    end = period_of("day", NOW).end
    assert [take(book, store, charge, end - 1.0) for _ in range(4)] == [True, True, True, False]
    assert take(book, store, charge, float(end))
    store.answer(book, book.rows())
    assert sorted(store.used.items()) == [
        (("lim_1", "key:key_1", "2026-11-20"), 3),
        (("lim_1", "key:key_1", "2026-11-21"), 1),
    ]


def test_a_refusal_says_when_the_period_ends() -> None:
    book, store, charge = QuotaBook(), Store(), quota(1)
    take(book, store, charge)
    look = book.look(charge, NOW)
    assert look is not None and not look.allowed
    assert look.wait_ns == (period_of("day", NOW).end - NOW) * 10**9


def test_what_nobody_has_taken_is_told_again() -> None:
    book, store, charge = QuotaBook(), Store(), quota(10)
    take(book, store, charge)
    rows = book.rows()
    book.make(charge, NOW)
    assert book.rows() == [], "one message at a time about a bucket"
    book.unanswered(rows, NOW)
    store.answer(book, book.rows())
    assert list(store.used.values()) == [2]


def test_what_is_given_back_was_not_used() -> None:
    book, store, charge = QuotaBook(), Store(), quota(2)
    assert take(book, store, charge)
    book.give_back(charge, NOW)
    assert [take(book, store, charge) for _ in range(3)] == [True, True, False]


def test_while_nobody_answers_each_worker_keeps_to_its_share() -> None:
    book, charge = QuotaBook(4), quota(8)
    place = book.want(charge, NOW, "default")
    book.unanswered(book.rows(), NOW)
    assert not book.is_waiting([place]) and book.is_alone(charge, NOW)
    allowed = 0
    while (look := book.look(charge, NOW)) is not None and look.allowed:
        book.make(charge, NOW)
        allowed += 1
    assert allowed == 2
    assert book.look(charge, NOW + 5.0) is None, "then it asks again"


def test_the_book_is_bounded_and_forgets_only_what_is_told() -> None:
    book, store = QuotaBook(), Store()
    first = quota(5)
    take(book, store, first)
    for number in range(MOST + 5):
        charge = first._replace(bucket=f"key:{number}")
        book.want(charge, NOW, "default")
        book.answered(rows := book.rows(is_urgent=True), [0] * len(rows))
    assert len(book) <= MOST
    look = book.look(first, NOW)
    assert look is not None and look.remaining == 3, "what is not told is kept"
