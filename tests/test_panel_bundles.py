"""Bundles in the panel, and the policies of applications (A12, A16, A23, A26)."""

import pytest
from django.test import Client

from access.models import Application, PolicyBundle
from access.policies import APPLICATION_POLICIES
from access.services import create_application
from admin_panel.policy_words import TITLES
from routing.bundles import BUNDLE_POLICIES, create_bundle
from routing.services import gateway_policies, update_service
from tests.panel_client import BOB, errors_at, make_service, text_of

pytestmark = pytest.mark.django_db
CORS = {"origins": ["https://app.example.com"]}


@pytest.fixture
def edge() -> PolicyBundle:
    return create_bundle(name="edge", policies={"cors": CORS}, **BOB)


def test_a_bundle_is_made_shown_and_deleted(panel: Client) -> None:
    assert "Bundles" in text_of(panel.get("/bundles"))
    made = panel.post("/bundles/new", {"name": "outer", "description": "For the internet", "limits": ""})
    row = PolicyBundle.objects.get()
    assert made.status_code in (302, 204), text_of(made)
    page = text_of(panel.get(f"/bundles/{row.pk}"))
    assert "For the internet" in page and "Nothing yet" in page
    assert panel.post(f"/bundles/{row.pk}/delete").status_code in (302, 204)
    assert not PolicyBundle.objects.exists()


def test_a_bundles_policies_have_the_forms_of_services(panel: Client, edge: PolicyBundle) -> None:
    page = panel.get(f"/bundles/{edge.pk}")
    for name in BUNDLE_POLICIES:
        assert TITLES[name][0] in text_of(page)
        assert panel.get(f"/bundles/{edge.pk}/policies/{name}").status_code == 200
    url = f"/bundles/{edge.pk}/policies/ip_access"
    saved = panel.post(url, {"allow": "10.0.0.0/8, 2001:db8::1", "deny": ""})
    assert saved.status_code in (302, 204), text_of(saved)
    edge.refresh_from_db()
    assert edge.policies == {"cors": CORS, "ip_access": {"allow": ["10.0.0.0/8", "2001:db8::1"]}}
    refused = panel.post(url, {"allow": "nonsense"})
    assert refused.status_code == 422
    assert "nonsense" in text_of(refused)
    assert panel.post(f"{url}/remove").status_code in (302, 204)
    edge.refresh_from_db()
    assert edge.policies == {"cors": CORS}


def test_a_bundle_is_picked_by_name_and_shows_who_has_it(panel: Client, edge: PolicyBundle) -> None:
    service = make_service("orders", v1=100)
    update_service(service=service, changes={"bundles": ["edge"]}, **BOB)
    application = create_application(name="mobile", **BOB)
    typed = {"name": "mobile", "endpoint_mode": "all", "priority": "5", "is_active": "on"}
    refused = panel.post(f"/applications/{application.pk}/edit", typed | {"bundles": "nowhere"})
    assert errors_at(refused, "bundles")
    assert panel.post(f"/applications/{application.pk}/edit", typed | {"bundles": "edge"}).status_code in (302, 204)
    page = text_of(panel.get(f"/bundles/{edge.pk}"))
    assert "orders" in page and "mobile" in page
    assert panel.get("/suggestions/bundles?q=ed").json() == {"names": ["edge"]}
    kept = panel.post(f"/bundles/{edge.pk}/delete")
    assert "cannot be deleted" in text_of(kept)
    assert PolicyBundle.objects.exists()


@pytest.mark.parametrize("name", list(APPLICATION_POLICIES))
def test_an_applications_policies_have_pages(panel: Client, name: str) -> None:
    application = create_application(name="mobile", **BOB)
    assert TITLES[name][0] in text_of(panel.get(f"/applications/{application.pk}"))
    url = f"/applications/{application.pk}/policies/{name}"
    assert TITLES[name][0] in text_of(panel.get(url))
    rows = {"accepted__fingerprint": "", "accepted__subject": "", "accepted__san": "robot.test"}
    typed = {"ip_access": {"deny": "192.0.2.0/24"}, "client_certificates": rows}
    saved = panel.post(url, typed[name])
    assert saved.status_code in (302, 204), text_of(saved)
    document = getattr(Application.objects.get(), name)
    accepted = {"fingerprint": "", "subject": "", "san": "robot.test"}
    assert document in ({"deny": ["192.0.2.0/24"]}, {"accepted": [accepted]})
    assert panel.post(f"{url}/remove").status_code in (302, 204)
    assert getattr(Application.objects.get(), name) is None


def test_the_gateways_own_list_has_a_page(panel: Client) -> None:
    assert "Every address is let in." in text_of(panel.get("/gateway"))
    assert panel.post("/gateway/addresses", {"allow": "10.0.0.0/8", "deny": ""}).status_code in (302, 204)
    assert gateway_policies().ip_access == {"allow": ["10.0.0.0/8"]}
    assert "10.0.0.0/8" in text_of(panel.get("/gateway"))
    assert panel.post("/gateway/addresses", {"allow": "10.0.0.300"}).status_code == 422
    assert panel.post("/gateway/addresses", {"allow": "", "deny": ""}).status_code in (302, 204)
    assert gateway_policies().ip_access is None
