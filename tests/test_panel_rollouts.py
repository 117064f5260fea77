"""Gradual rollouts, and who still calls deprecated versions, in the panel."""

import time
from typing import Any

import pytest
from django.test import Client

from routing.models import Rollout, ServiceConfig, VersionUse
from routing.services import set_weights, update_version
from routing.traffic import Use, add_uses
from tests.panel_client import BOB, errors_at, latest_revision, make_everything, make_service, text_of

FORM: dict[str, Any] = {
    "version": "v2",
    "percents": "10, 50, 100",
    "hold_s": "60",
    "interval_s": "5",
    "min_samples": "20",
    "max_error_increase": "0.5",
    "max_latency_ratio": "",
    "max_wait_s": "",
    "reason": "ticket 9",
}


@pytest.fixture
def service(db: None) -> ServiceConfig:
    return make_service("orders", v1=100, v2=0)


def weights(service: ServiceConfig) -> dict[str, int]:
    return dict(service.versions.values_list("version", "weight"))


@pytest.fixture
def rollout(panel: Client, service: ServiceConfig) -> Rollout:
    saved = panel.post(f"/services/{service.pk}/rollouts/new", FORM)
    made = Rollout.objects.get()
    assert saved["Location"] == f"/rollouts/{made.pk}"
    return made


def test_a_rollout_is_started_by_a_form(service: ServiceConfig, rollout: Rollout) -> None:
    assert rollout.plan == {
        "version": "v2",
        "steps": [{"percent": share, "holdS": 60.0} for share in (10.0, 50.0, 100.0)],
        "intervalS": 5.0,
        "minSamples": 20,
        "maxErrorIncrease": 0.5,
        "maxLatencyRatio": None,
        "maxWaitS": 3600.0,
    }
    assert weights(service) == {"v1": 90, "v2": 10}
    assert (latest_revision().actor_name, latest_revision().reason) == ("ann", "ticket 9")


def test_the_form_begins_with_the_defaults(panel: Client, service: ServiceConfig) -> None:
    html = panel.get(f"/services/{service.pk}/rollouts/new").content.decode()
    for name, value in (("percents", "5, 25, 100"), ("min_samples", "100"), ("max_latency_ratio", "1.5")):
        assert f'name="{name}" value="{value}"' in html, name


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"percents": "10, 5"}, "percents"),
        ({"percents": ""}, "percents"),
        ({"percents": "ten"}, "percents"),
        ({"percents": "10, 500"}, "percents"),
        ({"min_samples": "0"}, "min_samples"),
        ({"max_latency_ratio": "0.5"}, "max_latency_ratio"),
        ({"interval_s": "soon"}, "interval_s"),
        ({"version": "v1"}, "version"),
        ({"version": "v9"}, "version"),
    ],
)
def test_what_is_wrong_stands_at_its_field(
    panel: Client, service: ServiceConfig, changes: dict[str, str], field: str
) -> None:
    answer = panel.post(f"/services/{service.pk}/rollouts/new", FORM | changes)
    assert answer.status_code == 422
    assert errors_at(answer, field)
    assert not Rollout.objects.exists()


def test_a_second_one_is_refused_in_words(panel: Client, service: ServiceConfig, rollout: Rollout) -> None:
    answer = panel.post(f"/services/{service.pk}/rollouts/new", FORM)
    assert answer.status_code == 409
    assert "has a rollout of v2 already" in text_of(answer)


def test_the_service_and_the_rollout_say_how_far_it_is(panel: Client, service: ServiceConfig, rollout: Rollout) -> None:
    assert "Step 1 of 3" in text_of(panel.get(f"/services/{service.pk}"))
    page = panel.get(f"/rollouts/{rollout.pk}")
    assert 'hx-select="#rollout"' in page.content.decode()
    text = text_of(page)
    for said in (
        "v2 new 10 0 of 20",
        "10 % 1 min now",
        "100 % 1 min to come",
        "at most 0.5 percentage point",
        "p95 not judged",
    ):
        assert said in text, text


def test_it_is_paused_resumed_promoted_and_aborted(panel: Client, service: ServiceConfig, rollout: Rollout) -> None:
    def act(name: str) -> str:
        dialog = panel.get(f"/rollouts/{rollout.pk}/{name}")
        assert "<dialog" in dialog.content.decode()
        assert panel.post(f"/rollouts/{rollout.pk}/{name}")["Location"] == f"/rollouts/{rollout.pk}"
        rollout.refresh_from_db()
        return rollout.status

    assert [act("pause"), act("resume"), act("promote")] == ["paused", "running", "running"]
    assert weights(service) == {"v1": 50, "v2": 50}
    assert act("abort") == "aborted"
    assert weights(service) == {"v1": 100, "v2": 0}
    page = panel.get(f"/rollouts/{rollout.pk}")
    assert "aborted by hand" in text_of(page)
    assert "hx-select" not in page.content.decode()
    refused = panel.post(f"/rollouts/{rollout.pk}/abort")
    assert refused.status_code == 409
    assert "was aborted" in text_of(refused)
    assert panel.get(f"/rollouts/{rollout.pk}/explode").status_code == 404


def test_a_rollout_that_an_admin_has_overtaken_takes_no_decision(
    panel: Client, service: ServiceConfig, rollout: Rollout
) -> None:
    set_weights(service=service, weights={"v1": 1}, **BOB)
    refused = panel.post(f"/rollouts/{rollout.pk}/promote")
    assert refused.status_code == 409
    assert "was changed to 1 by hand" in text_of(refused)


def test_the_service_lists_who_still_calls_deprecated_versions(panel: Client, service: ServiceConfig) -> None:
    assert "Who still calls" not in text_of(panel.get(f"/services/{service.pk}"))
    update_version(version=service.versions.get(version="v1"), changes={"lifecycle": "deprecated"}, **BOB)
    add_uses([Use(service.pk, "v1", "app_gone", "", 3, time.time(), "192.0.2.9")])
    text = text_of(panel.get(f"/services/{service.pk}"))
    assert "v1 deprecated" in text
    assert "v1 deleted, or none none 3" in text
    assert "from 192.0.2.9" in text
    VersionUse.objects.all().delete()
    assert "Who still calls" not in text_of(panel.get(f"/services/{service.pk}"))


def test_callers_are_named_and_linked(panel: Client) -> None:
    everything = make_everything()
    html = panel.get(f"/services/{everything['service'].pk}").content.decode()
    assert f'href="/applications/{everything["application"].pk}"' in html
    assert f'href="/api-keys/{everything["key"].pk}"' in html
