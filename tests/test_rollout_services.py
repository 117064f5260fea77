"""Rollouts as admins and agents decide them: what each decision makes of weights, row and history."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from core.faults import ClientFault
from core.models import ConfigRevision
from routing.compile import compile_service, phase
from routing.judging import LATENCY_S, Numbers, judge, latency_bucket, total
from routing.models import Rollout, ServiceConfig, ServiceVersion, VersionTraffic, VersionUse
from routing.records import ServiceRecord
from routing.rollouts import (
    abort_rollout,
    advance_rollouts,
    pause_rollout,
    promote_rollout,
    resume_rollout,
    start_rollout,
)
from routing.services import create_service, create_version, delete_service, delete_version, set_weights, update_version
from routing.traffic import Traffic, Use, add_uses, numbers_of, prune, store_traffic
from tests.admin_api import ANN, SERVICES, problem_of

pytestmark = pytest.mark.django_db
URL = "http://orders.internal:7000"
PLAN: dict[str, Any] = {
    "version": "v2",
    "steps": [{"percent": 5, "holdS": 60}, {"percent": 25, "holdS": 60}, {"percent": 100, "holdS": 60}],
    "minSamples": 100,
}


@pytest.fixture
def service() -> ServiceConfig:
    service = create_service(name="orders", **ANN)
    for name, weight in (("v1", 60), ("v2", 0), ("v3", 30)):
        create_version(service=service, version=name, url=URL, weight=weight, **ANN)
    return service


@pytest.fixture
def rollout(service: ServiceConfig) -> Rollout:
    return start_rollout(service=service, plan=PLAN, **ANN)


def weights(service: ServiceConfig) -> dict[str, int]:
    return dict(service.versions.values_list("version", "weight"))


def count(rollout: Rollout, version: str, requests: int, errors: int = 0, seconds: float = 0.02) -> None:
    """As an agent would have stored it."""
    latency = [0] * (len(LATENCY_S) + 1)
    latency[latency_bucket(seconds)] = requests
    numbers = Numbers(requests, errors, tuple(latency))
    began = int(timezone.now().timestamp())
    store_traffic("host", [Traffic(rollout.service_id, version, phase(rollout), began, numbers)])


def wait(rollout: Rollout, seconds: float) -> None:
    """As if the step had begun, and been judged, that much earlier."""
    past = timezone.now() - timedelta(seconds=seconds)
    Rollout.objects.filter(pk=rollout.pk).update(step_began_at=past, judged_at=past)


def advanced(rollout: Rollout) -> Rollout:
    advance_rollouts()
    rollout.refresh_from_db()
    return rollout


def latest() -> ConfigRevision:
    revision = ConfigRevision.objects.first()
    assert revision is not None
    return revision


# --- the judge's decisions --------------------------------------------------------------------------------------------
def test_a_rollout_begins_with_its_first_step(service: ServiceConfig, rollout: Rollout) -> None:
    assert weights(service) == {"v1": 38, "v2": 3, "v3": 19}
    assert rollout.before == {"v1": 60, "v2": 0, "v3": 30}
    revision = latest()
    assert (revision.actor_name, revision.reason) == ("ann", "rollout of v2 begins: 5 %")
    assert {change.kind for change in revision.changes.all()} == {"version", "rollout"}
    wire = compile_service(service)
    assert wire["phase"] == f"{rollout.pk}/0"


def test_good_numbers_promote_step_by_step_to_the_end(service: ServiceConfig, rollout: Rollout) -> None:
    ways = []
    for _ in PLAN["steps"]:
        count(rollout, "v2", 200)
        count(rollout, "v1", 3000, 9)
        wait(rollout, 61)
        rollout = advanced(rollout)
        ways.append(latest().reason.partition(":")[0])
    assert ways == ["5 % → 25 %", "25 % → 100 %", "100 %, done"]
    assert (rollout.status, rollout.step) == ("completed", 2)
    assert weights(service) == {"v1": 0, "v2": 100, "v3": 0}
    assert rollout.outcome == latest().reason
    assert (latest().actor_kind, latest().actor_id, latest().source) == ("rollout", rollout.pk, "agent")
    assert compile_service(service)["phase"] == ""


def test_a_step_lasts_as_long_as_it_is_to_hold(service: ServiceConfig, rollout: Rollout) -> None:
    count(rollout, "v2", 200)
    count(rollout, "v1", 3000)
    wait(rollout, 30)
    before = ConfigRevision.objects.count()
    rollout = advanced(rollout)
    assert (rollout.step, rollout.judgement.partition(":")[0]) == (0, "good at 5 %")
    assert ConfigRevision.objects.count() == before  # looking is no change


def test_failing_is_rolled_back_to_the_weights_of_before(service: ServiceConfig, rollout: Rollout) -> None:
    count(rollout, "v2", 312, 13)
    count(rollout, "v1", 900, 2)
    rollout = advanced(rollout)
    assert weights(service) == {"v1": 60, "v2": 0, "v3": 30}
    assert (rollout.status, rollout.ended_at is not None) == ("rolled_back", True)
    assert latest().reason == rollout.outcome == "rolled back: 4.2 % errors against 0.2 %, 312 requests"


def test_slowness_is_rolled_back(service: ServiceConfig, rollout: Rollout) -> None:
    count(rollout, "v2", 312, seconds=0.5)
    count(rollout, "v1", 900)
    assert advanced(rollout).outcome.startswith("rolled back: p95 ")


def test_requests_of_an_earlier_step_do_not_count(service: ServiceConfig, rollout: Rollout) -> None:
    count(rollout, "v2", 5000)
    count(rollout, "v1", 5000)
    wait(rollout, 61)
    rollout = advanced(rollout)
    wait(rollout, 61)
    rollout = advanced(rollout)
    assert (rollout.step, rollout.status) == (1, "running")
    assert "0 of 100 requests to v2" in rollout.judgement


def test_the_others_are_those_of_earlier_steps_where_the_present_one_leaves_them_too_little(
    service: ServiceConfig, rollout: Rollout
) -> None:
    count(rollout, "v1", 5000, 500)
    rollout = promote_rollout(rollout=rollout, is_full=False, **ANN)
    rollout = promote_rollout(rollout=rollout, is_full=False, **ANN)
    count(rollout, "v2", 200, 20)
    wait(rollout, 61)
    assert advanced(rollout).outcome.startswith("100 %, done: 10.0 % errors (stable 10.0 %)")


def test_too_few_requests_wait_and_then_pause(service: ServiceConfig, rollout: Rollout) -> None:
    wait(rollout, 61)
    assert advanced(rollout).status == "running"
    wait(rollout, 61 + 3600)
    rollout = advanced(rollout)
    assert (rollout.status, weights(service)["v2"]) == ("paused", 3)
    assert latest().reason.startswith("paused: 0 of 100 requests to v2 after 1 h")
    rollout = resume_rollout(rollout=rollout, **ANN)
    assert (rollout.status, rollout.outcome) == ("running", "")


def test_it_is_judged_once_an_interval(service: ServiceConfig, rollout: Rollout) -> None:
    rollout = advanced(rollout)
    judged_at = rollout.judged_at
    assert judged_at is not None
    assert advanced(rollout).judged_at == judged_at
    wait(rollout, 11)
    again = advanced(rollout).judged_at
    assert again is not None and again > judged_at


# --- admins beside it -------------------------------------------------------------------------------------------------
def change_weight(service: ServiceConfig) -> None:
    set_weights(service=service, weights={"v1": 1}, **ANN)


def retire(service: ServiceConfig) -> None:
    update_version(version=service.versions.get(version="v2"), changes={"lifecycle": "retired"}, **ANN)


def switch_off(service: ServiceConfig) -> None:
    update_version(version=service.versions.get(version="v3"), changes={"is_active": False}, **ANN)


def delete(service: ServiceConfig) -> None:
    delete_version(version=service.versions.get(version="v3"), **ANN)


def add(service: ServiceConfig) -> None:
    create_version(service=service, version="v4", url=URL, weight=5, **ANN)


@pytest.mark.parametrize(
    ("interfere", "words"),
    [
        (change_weight, "the weight of v1 was changed to 1 by hand"),
        (retire, "v2 was switched off or retired"),
        (switch_off, "v3 was switched off or retired"),
        (delete, "v3 was deleted"),
        (add, "v4 takes a share now"),
    ],
)
@pytest.mark.parametrize("is_paused", [False, True])
def test_a_change_by_hand_ends_it_and_stands(
    service: ServiceConfig, rollout: Rollout, interfere: Any, words: str, is_paused: bool
) -> None:
    if is_paused:
        rollout = pause_rollout(rollout=rollout, **ANN)
    interfere(service)
    present = weights(service)
    with pytest.raises(ClientFault, match=words):
        abort_rollout(rollout=rollout, **ANN)
    rollout = advanced(rollout)
    assert (rollout.status, rollout.outcome) == ("superseded", f"superseded: {words}")
    assert weights(service) == present
    assert latest().reason == f"superseded: {words}"


def test_an_abort_restores_the_weights_of_before(service: ServiceConfig, rollout: Rollout) -> None:
    rollout = abort_rollout(rollout=rollout, **{**ANN, "reason": "the mail says so"})
    assert (rollout.status, weights(service)) == ("aborted", {"v1": 60, "v2": 0, "v3": 30})
    assert latest().reason == "the mail says so"
    for use_case in (abort_rollout, pause_rollout, resume_rollout, promote_rollout):
        with pytest.raises(ClientFault, match="was aborted"):
            use_case(rollout=rollout, **ANN)


def test_a_paused_one_is_not_judged(service: ServiceConfig, rollout: Rollout) -> None:
    rollout = pause_rollout(rollout=rollout, **ANN)
    count(rollout, "v2", 500, 500)
    count(rollout, "v1", 500)
    wait(rollout, 61)
    assert advanced(rollout).status == "paused"
    with pytest.raises(ClientFault, match="paused already"):
        pause_rollout(rollout=rollout, **ANN)
    rollout = resume_rollout(rollout=rollout, **ANN)
    wait(rollout, 11)
    assert advanced(rollout).status == "rolled_back"


def test_a_promotion_by_hand_goes_to_the_next_step_or_to_the_end(service: ServiceConfig, rollout: Rollout) -> None:
    rollout = promote_rollout(rollout=rollout, **ANN)
    assert (rollout.step, rollout.status, weights(service)["v2"]) == (1, "running", 25)
    rollout = promote_rollout(rollout=rollout, is_full=True, **ANN)
    assert (rollout.step, rollout.status) == (2, "completed")
    assert weights(service) == {"v1": 0, "v2": 100, "v3": 0}


def test_a_decision_that_was_taken_meanwhile_is_not_taken_again(
    service: ServiceConfig, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    count(rollout, "v2", 500)
    count(rollout, "v1", 500)
    wait(rollout, 61)

    def judge_slowly(*args: Any) -> Any:
        promote_rollout(rollout=rollout, **ANN)  # an admin is faster
        return judge(*args)

    monkeypatch.setattr("routing.rollouts.judge", judge_slowly)
    rollout = advanced(rollout)
    assert (rollout.step, weights(service)["v2"]) == (1, 25)
    assert latest().reason == "promoted by hand"


# --- what cannot begin ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"version": "v9"}, "version"),
        ({"version": 5}, "version"),
        ({"steps": []}, "steps"),
        ({"steps": [{"percent": 20}, {"percent": 10}]}, "body"),
        ({"minSamples": 0}, "minSamples"),
        ({"unknown": 1}, "body"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(service: ServiceConfig, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ClientFault) as fault:
        start_rollout(service=service, plan=PLAN | changes, **ANN)
    assert fault.value.code == "invalid_field"
    assert list(fault.value.members["errors"]) == [field]
    assert weights(service)["v2"] == 0


@pytest.mark.parametrize("changes", [{"lifecycle": "retired"}, {"is_active": False}])
def test_a_version_that_answers_nobody_cannot_be_rolled_out(service: ServiceConfig, changes: dict[str, Any]) -> None:
    update_version(version=service.versions.get(version="v2"), changes=changes, **ANN)
    with pytest.raises(ClientFault, match="version"):
        start_rollout(service=service, plan=PLAN, **ANN)


def test_there_must_be_something_to_compare_with(service: ServiceConfig) -> None:
    set_weights(service=service, weights={"v1": 0, "v3": 0}, **ANN)
    with pytest.raises(ClientFault) as fault:
        start_rollout(service=service, plan=PLAN, **ANN)
    assert "No other version" in fault.value.members["errors"]["version"][0]


def test_a_current_version_without_weight_counts_as_the_one_that_answers(service: ServiceConfig) -> None:
    set_weights(service=service, weights={"v1": 0, "v3": 0}, **ANN)
    ServiceConfig.objects.filter(pk=service.pk).update(current_version="v1")
    rollout = start_rollout(service=service, plan=PLAN, **ANN)
    assert weights(service) == {"v1": 95, "v2": 5, "v3": 0}
    abort_rollout(rollout=rollout, **ANN)
    assert weights(service) == {"v1": 0, "v2": 0, "v3": 0}


def test_a_second_one_is_refused_while_the_first_is_open(service: ServiceConfig, rollout: Rollout) -> None:
    with pytest.raises(ClientFault) as fault:
        start_rollout(service=service, plan=PLAN | {"version": "v3"}, **ANN)
    assert (fault.value.code, fault.value.members["rollout"]) == ("conflict", rollout.pk)
    abort_rollout(rollout=rollout, **ANN)
    start_rollout(service=service, plan=PLAN | {"version": "v3"}, **ANN)


def test_rollouts_go_with_their_service(service: ServiceConfig, rollout: Rollout) -> None:
    delete_service(service=service, **ANN)
    assert not Rollout.objects.exists()
    assert {"rollout", "version", "service"} <= {change.kind for change in latest().changes.all()}


# --- the admin API ----------------------------------------------------------------------------------------------------
ROLLOUTS = f"{SERVICES}/orders/rollouts"


def test_the_api_starts_shows_and_ends_a_rollout(api: APIClient, service: ServiceConfig) -> None:
    started = api.post(ROLLOUTS, PLAN, headers={"X-Change-Reason": "ticket 7"})
    assert started.status_code == 201, started.content
    assert started["X-Config-Revision"]
    document = started.json()
    assert (document["status"], document["step"], document["plan"]["steps"][0]["percent"]) == ("running", 0, 5)
    count(Rollout.objects.get(), "v2", 200, 3)
    shown = api.get(started["Location"]).json()
    assert shown["comparison"][0] == {
        "version": "v2",
        "role": "canary",
        "weight": 3,
        "requests": 200,
        "failed": 3,
        "errorPercent": 1.5,
        "p95Ms": pytest.approx(20, rel=0.25),
    }
    assert [each["role"] for each in shown["comparison"]] == ["canary", "stable", "stable"]
    problem_of(api.post(ROLLOUTS, PLAN), 409, "conflict")
    for verb, status in (("pause", "paused"), ("resume", "running"), ("promote", "running"), ("abort", "aborted")):
        answer = api.post(f"{started['Location']}/{verb}")
        assert (answer.status_code, answer.json()["status"]) == (200, status), answer.content
    problem_of(api.post(f"{started['Location']}/abort"), 409, "conflict")
    listed = api.get(f"{ROLLOUTS}?status=aborted").json()
    assert (listed["count"], listed["rollouts"][0]["comparison"]) == (1, None)
    problem_of(api.get(f"{ROLLOUTS}?status=odd"), 422, "invalid_field")
    problem_of(api.get(f"{ROLLOUTS}/rol_none"), 404, "not_found")
    problem_of(api.get(f"{SERVICES}/nobody/rollouts"), 404, "not_found")


def test_the_api_refuses_a_plan_at_its_member(api: APIClient, service: ServiceConfig) -> None:
    steps = [{"percent": 5}, {"percent": 500}]
    problem = problem_of(api.post(ROLLOUTS, PLAN | {"steps": steps}), 422, "invalid_field")
    assert list(problem["errors"]) == ["steps[1].percent"]
    problem_of(api.post(ROLLOUTS, [PLAN]), 422, "invalid_field")


def test_the_api_tells_how_versions_fare(api: APIClient, service: ServiceConfig, rollout: Rollout) -> None:
    count(rollout, "v2", 200, 3)
    path = f"{SERVICES}/orders/traffic"
    told = api.get(f"{path}?windowS=600").json()
    assert told["isMeasured"]
    assert [(each["version"], each["weight"], each["requests"], each["failed"]) for each in told["versions"]] == [
        ("v1", 38, 0, 0),
        ("v2", 3, 200, 3),
        ("v3", 19, 0, 0),
    ]
    assert told["versions"][0]["p95Ms"] is None
    for wrong in ("windowS=9", "windowS=x", "window=60"):
        problem_of(api.get(f"{path}?{wrong}"), 422, "invalid_field")


def test_a_full_promotion_by_the_api(api: APIClient, service: ServiceConfig) -> None:
    started = api.post(ROLLOUTS, PLAN)
    answer = api.post(f"{started['Location']}/promote", {"full": True}).json()
    assert (answer["status"], weights(service)["v2"]) == ("completed", 100)


# --- who calls --------------------------------------------------------------------------------------------------------
def use(application: str, last: float, requests: int = 1, service: str = "svc", address: str = "192.0.2.1") -> Use:
    return Use(service, "v1", application, "", requests, last, address)


def test_hosts_add_up_what_callers_did_and_the_latest_use_stays() -> None:
    add_uses([use("a", 1_800_000_000, 3), use("b", 1_800_000_000)])
    add_uses([use("a", 1_800_000_060, 4, address="192.0.2.9")])
    add_uses([use("a", 1_800_000_030, 5, address="192.0.2.5")])
    row = VersionUse.objects.get(application_id="a")
    assert (row.requests, row.last_used_at.timestamp(), row.address) == (12, 1_800_000_060, "192.0.2.9")
    assert row.first_used_at.timestamp() == 1_800_000_000
    assert VersionUse.objects.get(application_id="b").requests == 1


def test_the_api_lists_the_callers_of_a_version(api: APIClient, service: ServiceConfig) -> None:
    now = timezone.now().timestamp()
    add_uses([use(f"app_{number}", now - number, number + 1, service.pk) for number in range(5)])
    path = f"{SERVICES}/orders/versions/v1/callers"
    first = api.get(f"{path}?limit=2").json()
    assert (first["count"], [each["applicationId"] for each in first["callers"]]) == (5, ["app_0", "app_1"])
    second = api.get(f"{path}?limit=2&cursor={first['cursor']}").json()
    assert [each["applicationId"] for each in second["callers"]] == ["app_2", "app_3"]
    most = api.get(f"{path}?ordering=-requests").json()["callers"][0]
    assert (most["requests"], most["address"], most["application"], most["key"]) == (5, "192.0.2.1", None, None)
    problem_of(api.get(f"{SERVICES}/orders/versions/v9/callers"), 404, "not_found")


def test_old_traffic_and_old_callers_are_forgotten(service: ServiceConfig) -> None:
    now = int(timezone.now().timestamp())
    numbers = Numbers(1, 0)
    store_traffic("host", [Traffic(service.pk, "v1", "", began, numbers) for began in (now - 90_000, now)])
    add_uses([use("new", now), use("old", now - 91 * 86_400)])
    prune()
    assert VersionTraffic.objects.count() == 1
    assert [row.application_id for row in VersionUse.objects.all()] == ["new"]


def test_what_an_open_rollout_is_compared_with_is_kept(service: ServiceConfig, rollout: Rollout) -> None:
    """A last step may last for a week, and leaves the others no traffic of their own."""
    yesterday = int(timezone.now().timestamp()) - 90_000
    latency = [0] * (len(LATENCY_S) + 1)
    latency[latency_bucket(0.02)] = 1000
    store_traffic("host", [Traffic(service.pk, "v1", phase(rollout), yesterday, Numbers(1000, 50, tuple(latency)))])
    for _ in range(2):
        promote_rollout(rollout=rollout, **ANN)
    rollout.refresh_from_db()
    count(rollout, "v2", 1000, 40)
    prune()
    wait(rollout, 90_000)
    assert advanced(rollout).status == "completed"
    prune()
    assert not VersionTraffic.objects.filter(version="v1").exists()


def test_several_hosts_and_buckets_add_up(service: ServiceConfig) -> None:
    numbers = Numbers(10, 1)
    for host in ("a", "b"):
        store_traffic(host, [Traffic(service.pk, "v1", "p", began, numbers) for began in (10, 20)])
        store_traffic(host, [Traffic(service.pk, "v1", "p", 20, total([numbers, numbers]))])  # the sum has grown
    found = numbers_of(service.pk, ["p"])
    assert (found["v1"].requests, found["v1"].errors) == (60, 6)


def test_only_services_that_are_measured_say_so(service: ServiceConfig) -> None:
    assert all(each.measured for each in ServiceRecord.from_wire(compile_service(service)).versions.values())
    ServiceVersion.objects.filter(version="v3").update(weight=0)
    alone = ServiceRecord.from_wire(compile_service(ServiceConfig.objects.get(pk=service.pk)))
    assert all(each.measured is None and each.is_plain for each in alone.versions.values())
