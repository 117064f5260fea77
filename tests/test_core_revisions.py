"""One transaction is one revision; followers and admins rely on its number."""

import threading
from typing import Any

import pytest
from django.db import connection, transaction

from access.models import Application
from access.services import create_application, create_entry, delete_application, update_application
from core.faults import ClientFault
from core.models import ConfigChange, ConfigRevision
from core.revisions import Actor, locked, observed, revision
from keys.services import create_key
from tests.admin_api import ANN

pytestmark = pytest.mark.django_db


def _numbers() -> list[int]:
    return list(ConfigRevision.objects.order_by("number").values_list("number", flat=True))


def test_each_use_case_is_one_revision_with_everything_that_it_changed() -> None:
    application = create_application(name="mobile", **ANN)
    create_entry(application=application, endpoint_path="/api/v1/orders", **ANN)

    assert _numbers() == [1, 2]
    changes = ConfigChange.objects.filter(revision=2).values_list("kind", "operation")
    assert list(changes) == [("whitelist_entry", "create"), ("application", "update")]


def test_use_cases_inside_a_revision_join_it() -> None:
    with revision(**ANN, reason="a batch") as change:
        first = create_application(name="first", **ANN)
        second = create_application(name="second", **ANN)

    assert first.revision == second.revision == change.number
    assert _numbers() == [change.number]
    assert ConfigRevision.objects.get().reason == "a batch"


def test_a_revision_that_changes_nothing_is_not_made() -> None:
    application = create_application(name="mobile", **ANN)

    unchanged = update_application(application=application, changes={"name": "mobile"}, **ANN)

    assert unchanged.revision == application.revision
    assert _numbers() == [1]


def test_a_failure_inside_a_revision_leaves_nothing_behind() -> None:
    def twice() -> None:
        with revision(**ANN):
            create_application(name="first", **ANN)
            create_application(name="first", **ANN)

    with pytest.raises(ClientFault):
        twice()

    assert not Application.objects.exists()
    assert not _numbers()
    assert create_application(name="first", **ANN).revision == 1


def test_the_row_carries_the_number_that_last_changed_it() -> None:
    application = create_application(name="mobile", **ANN)
    changed = update_application(application=application, changes={"rate_limit": 5}, **ANN)

    assert (application.revision, changed.revision) == (1, 2)
    assert Application.objects.get().revision == 2


def test_before_and_after_are_kept_and_later_mutation_does_not_reach_them() -> None:
    application = create_application(name="mobile", allowed_services=["orders"], **ANN)
    with revision(**ANN) as change:
        row = locked(application)
        before = row.recorded()
        row.allowed_services.append("email")
        assert change.save(row, before)

    recorded = ConfigChange.objects.get(revision=2)
    assert recorded.before is not None and recorded.after is not None
    assert recorded.before["allowed_services"] == ["orders"]
    assert recorded.after["allowed_services"] == ["orders", "email"]


def test_no_hash_and_no_digest_enters_the_history() -> None:
    issued = create_key(name="k", owner="mobile", **ANN)

    recorded = repr(list(ConfigChange.objects.values_list("before", "after")))
    for secret in (issued.key, issued.row.hash, issued.row.digest):
        assert secret not in recorded


def test_deleting_records_every_row_that_goes() -> None:
    application = create_application(name="mobile", **ANN)
    create_entry(application=application, endpoint_path="/api/v1/orders", **ANN)
    create_key(name="k", application=application, **ANN)

    delete_application(application=application, **ANN)

    last = ConfigChange.objects.filter(revision=_numbers()[-1])
    assert [(change.kind, change.operation, change.after) for change in last] == [
        ("whitelist_entry", "delete", None),
        ("api_key", "delete", None),
        ("application", "delete", None),
    ]


def test_a_row_that_somebody_else_changed_is_stale_and_says_which_revision_it_has_now() -> None:
    application = create_application(name="mobile", **ANN)
    update_application(application=application, changes={"rate_limit": 5}, if_revision=1, **ANN)

    with pytest.raises(ClientFault) as raised:
        update_application(application=application, changes={"rate_limit": 6}, if_revision=1, **ANN)

    assert raised.value.code == "stale_revision"
    assert raised.value.members == {"current": 2}
    assert Application.objects.get().rate_limit == 5


def test_a_row_that_somebody_else_deleted_is_not_found() -> None:
    application = create_application(name="mobile", **ANN)
    delete_application(application=Application.objects.get(), **ANN)

    with pytest.raises(ClientFault) as raised:
        update_application(application=application, changes={"rate_limit": 6}, **ANN)

    assert raised.value.code == "not_found"


def test_whoever_observes_learns_the_numbers_that_were_committed() -> None:
    with observed() as numbers:
        application = create_application(name="mobile", **ANN)
        update_application(application=application, changes={"name": "mobile"}, **ANN)
        update_application(application=application, changes={"rate_limit": 9}, **ANN)
        with pytest.raises(ClientFault):
            create_application(name="mobile", **ANN)

    assert numbers == [1, 2]


@pytest.mark.django_db(transaction=True)
def test_a_follower_that_has_seen_a_number_has_seen_all_below_it_however_many_write() -> None:
    writers, each = 4, 10
    seen: list[list[int]] = []
    is_over = threading.Event()

    def write(name: str) -> None:
        for number in range(each):
            create_application(name=f"{name} {number}", actor=Actor("user", name=name), source="api")
        connection.close()

    def follow() -> None:
        while not is_over.is_set():
            seen.append(_numbers())
        connection.close()

    follower = threading.Thread(target=follow)
    threads = [threading.Thread(target=write, args=(f"writer {number}",)) for number in range(writers)]
    follower.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    is_over.set()
    follower.join()

    assert _numbers() == list(range(1, writers * each + 1))
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in seen)


@pytest.mark.django_db(transaction=True)
def test_of_two_admins_who_save_at_once_one_is_told() -> None:
    application = create_application(name="mobile", **ANN)
    outcomes: list[Any] = []
    barrier = threading.Barrier(2)

    def save(limit: int) -> None:
        barrier.wait()
        try:
            changes = {"rate_limit": limit}
            outcomes.append(
                update_application(application=application, changes=changes, if_revision=1, **ANN).rate_limit
            )
        except ClientFault as fault:
            outcomes.append(fault.code)
        connection.close()

    threads = [threading.Thread(target=save, args=(limit,)) for limit in (5, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(map(str, outcomes)) in (["5", "stale_revision"], ["6", "stale_revision"])
    assert Application.objects.get().rate_limit in outcomes


@pytest.mark.django_db(transaction=True)
def test_a_transaction_that_is_rolled_back_around_a_revision_takes_it_along() -> None:
    with transaction.atomic():
        create_application(name="mobile", **ANN)
        transaction.set_rollback(True)

    assert not _numbers()
