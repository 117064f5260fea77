"""The gateway as a whole in the panel: maintenance of everything, and what the list of services says at a glance."""

import pytest
from django.test import Client
from django.utils import timezone

from core.models import GatewayNode
from routing.models import TargetStatus
from routing.rollouts import start_rollout
from routing.services import gateway_policies, update_gateway
from tests.panel_client import BOB, HTMX, latest_revision, make_service, text_of

pytestmark = pytest.mark.django_db
BANNER = "Maintenance of the whole gateway"


def test_maintenance_of_everything_begins_and_ends_here_and_is_said_on_every_page(panel: Client) -> None:
    page = panel.get("/gateway")
    assert "Start maintenance" in text_of(page)
    assert BANNER not in text_of(page)
    typed = {"revision": "0", "message": "Back at noon.", "retry_after_s": "600", "reason": "New disks"}
    assert panel.post("/gateway", typed).status_code == 302
    assert gateway_policies().maintenance == {"message": "Back at noon.", "retryAfterS": 600}
    assert latest_revision().reason == "New disks"
    for path in ("/", "/services", "/gateway"):
        assert BANNER in text_of(panel.get(path))
        assert BANNER in text_of(panel.get(path, headers=HTMX))
    assert "End maintenance" in text_of(panel.get("/gateway/maintenance/end"))
    assert panel.post("/gateway/maintenance/end").status_code == 302
    assert gateway_policies().maintenance is None
    assert BANNER not in text_of(panel.get("/"))


def test_of_two_who_begin_it_the_second_sees_what_the_first_said(panel: Client) -> None:
    update_gateway(changes={"maintenance": {"message": "Theirs"}}, **BOB)
    answer = panel.post("/gateway", {"revision": "0", "message": "Mine", "retry_after_s": "300"})
    assert answer.status_code == 412
    assert "Theirs" in text_of(answer)
    assert "Mine" in text_of(answer)


def test_a_message_that_is_too_long_is_refused_at_its_field(panel: Client) -> None:
    answer = panel.post("/gateway", {"revision": "0", "message": "m" * 501, "retry_after_s": "300"})
    assert answer.status_code == 422
    assert gateway_policies().maintenance is None


def test_the_list_of_services_says_which_are_unwell_and_which_are_rolling_out(panel: Client) -> None:
    service, calm = make_service("orders", v1=100, v2=0), make_service("calm", v1=100)
    make_service("unknown", v1=100)
    GatewayNode.objects.create(id="host/0", host="host", slot=0)
    for row, version, host, fields in (
        (service, "v1", "host", {"is_healthy": False, "circuit": "open"}),
        (service, "v2", "host", {}),
        (service, "v2", "gone", {"is_healthy": False}),  # a host that lives no more has no say
        (calm, "v1", "host", {}),
    ):
        TargetStatus.objects.create(
            host=host, service=row, version=version, url="http://10.0.0.1:8000", seen_at=timezone.now(), **fields
        )
    start_rollout(service=service, plan={"version": "v2", "steps": [{"percent": 30}, {"percent": 100}]}, **BOB)
    shown = text_of(panel.get("/services"))
    assert "1 of 2 unhealthy 1 open circuit" in shown
    assert "rollout to v2" in shown
    assert "1 well" in shown
    assert "not used yet" in shown
