"""What runs, in the panel: targets and circuits, stored answers, registration tokens."""

import pytest
from django.test import Client
from django.utils import timezone

from core.models import GatewayNode
from routing.models import CachePurge, RegistrationToken, ServiceConfig, TargetStatus
from routing.services import create_target
from tests.panel_client import BOB, latest_revision, make_service, text_of
from tests.scripted_upstream import Upstream

pytestmark = pytest.mark.django_db


def told(service: ServiceConfig, **values: object) -> TargetStatus:
    """What a living host says of the service's first target."""
    now = timezone.now()
    GatewayNode.objects.update_or_create(id="alpha/0", defaults={"host": "alpha", "slot": 0, "seen_at": now})
    row = {"host": "alpha", "service": service, "version": "v1", "url": "http://10.0.0.1:8000", "seen_at": now}
    return TargetStatus.objects.create(**row, **values)


def test_the_page_of_a_service_shows_its_targets_as_each_host_sees_them(panel: Client) -> None:
    service = make_service("orders", v1=100)
    told(service, is_probed=True, is_healthy=False, last_error="it refused the connection", circuit="open")
    for path in (f"/services/{service.pk}", f"/services/{service.pk}/targets"):
        shown = text_of(panel.get(path))
        for words in ("http://10.0.0.1:8000", "alpha", "Unhealthy", "it refused the connection", "Open"):
            assert words in shown


def test_targets_that_no_host_has_used_are_shown_too(panel: Client) -> None:
    service = make_service("orders", v1=100)
    assert "not used by any host yet" in text_of(panel.get(f"/services/{service.pk}/targets"))


def test_targets_are_asked_on_the_spot(panel: Client, settings: object) -> None:
    settings.EGRESS_ALLOW = ["127.0.0.0/8"]  # type: ignore[attr-defined]
    upstream = Upstream()
    service = make_service("orders", v1=100)
    create_target(version=service.versions.get(), url=upstream.url, **BOB)
    shown = text_of(panel.post(f"/services/{service.pk}/health-check"))
    upstream.close()
    assert upstream.url in shown and "200" in shown
    assert len(upstream.requests) == 1


def test_circuits_are_reset_in_a_revision_of_the_admin(panel: Client) -> None:
    service = make_service("orders", v1=100)
    assert "Every worker of every host" in text_of(panel.get(f"/services/{service.pk}/circuits/reset"))
    panel.post(f"/services/{service.pk}/circuits/reset")
    service.refresh_from_db()
    assert (service.circuit_resets, latest_revision().actor_name) == (1, "ann")


def test_stored_answers_are_dropped(panel: Client) -> None:
    service = make_service("orders", v1=100)
    panel.post(f"/services/{service.pk}/purge", {"kind": "service"})
    panel.post(f"/services/{service.pk}/purge", {"kind": "tag", "value": "shop"})
    assert list(CachePurge.objects.order_by("number").values_list("kind", "value", "actor_name")) == [
        ("service", "orders", "ann"),
        ("tag", "shop", "ann"),
    ]
    assert panel.post(f"/services/{service.pk}/purge", {"kind": "all", "value": ""}).status_code == 422
    assert panel.post(f"/services/{service.pk}/purge", {"kind": "prefix", "value": "no path"}).status_code == 422


def test_a_registration_token_is_shown_once_and_kept_nowhere(panel: Client) -> None:
    service = make_service("orders", v1=100)
    assert "Make a registration token?" in text_of(panel.get(f"/services/{service.pk}/registration-token"))
    answer = panel.post(f"/services/{service.pk}/registration-token")
    assert "no-store" in answer["Cache-Control"]
    token = answer.content.decode().partition('value="prt_')[2].partition('"')[0]
    assert len(token) > 30
    kept = RegistrationToken.objects.get()
    assert token not in str(vars(kept))
    assert "Replace the registration token?" in text_of(panel.get(f"/services/{service.pk}/registration-token"))


@pytest.mark.parametrize("path", ["targets", "purge", "circuits/reset", "registration-token"])
def test_what_is_not_there_is_404(panel: Client, path: str) -> None:
    assert panel.get(f"/services/svc_x/{path}").status_code == 404


@pytest.mark.parametrize("path", ["circuits/reset", "purge", "registration-token", "delete"])
def test_a_reason_that_no_table_takes_is_refused(panel: Client, path: str) -> None:
    service = make_service("orders", v1=100)
    answer = panel.post(f"/services/{service.pk}/{path}", {"kind": "service", "reason": "why\x00"})
    assert answer.status_code == 400
    assert "cannot be stored" in text_of(answer)
    assert not CachePurge.objects.exists() and not RegistrationToken.objects.exists()
