"""Services, versions and targets in the panel."""

import re
from typing import Any

import pytest
from django.test import Client

from access.services import create_application
from core.models import ConfigChange, ConfigRevision
from routing.models import ServiceConfig, ServiceTarget, ServiceVersion
from routing.services import create_route, create_target, set_weights, update_service
from tests.panel_client import BOB, HTMX, errors_at, latest_revision, make_service, text_of

URL = "http://10.0.0.1:8000"


def test_a_new_service_is_one_revision_by_the_admin_with_the_reason(panel: Client) -> None:
    saved = panel.post("/services/new", {"name": "orders", "default_url": URL, "reason": "Split the monolith"})
    service = ServiceConfig.objects.get(name="orders")
    assert saved["Location"] == f"/services/{service.pk}"
    revision = latest_revision()
    assert (revision.actor_kind, revision.actor_name, revision.source) == ("user", "ann", "panel")
    assert revision.reason == "Split the monolith"
    assert [change.operation for change in revision.changes.all()] == ["create"]


def test_a_save_is_followed_by_a_toast_that_waits_for_the_nodes(panel: Client) -> None:
    panel.post("/services/new", {"name": "orders"})
    html = panel.get("/services", headers=HTMX).content.decode()
    number = latest_revision().number
    assert f'hx-get="/history/{number}/acknowledged"' in html
    assert "no node is running" in text_of(panel.get(f"/history/{number}/acknowledged"))


def test_what_is_wrong_stands_at_its_field_and_nothing_is_saved(panel: Client) -> None:
    answer = panel.post("/services/new", {"name": "No good", "default_url": "ftp://x", "request_timeout_ms": "soon"})
    assert answer.status_code == 422
    assert errors_at(answer, "request_timeout_ms") == "Enter a whole number."
    answer = panel.post("/services/new", {"name": "No good", "default_url": "ftp://x"})
    assert "lower-case letters" in errors_at(answer, "name")
    assert "http://" in errors_at(answer, "default_url")
    assert answer["HX-Push-Url"] == "false"
    assert 'value="No good"' in answer.content.decode()
    assert not ServiceConfig.objects.exists()


def test_a_taken_name_is_refused_at_the_name(panel: Client) -> None:
    make_service("orders")
    assert "exists already" in errors_at(panel.post("/services/new", {"name": "orders"}), "name")


def form_of(client: Client, url: str) -> dict[str, str]:
    """What a browser would send if nothing were typed."""
    html = client.get(url).content.decode()
    form = html[html.index('id="form"') :]
    return {
        found[1]: found[2]
        for found in re.finditer(r'<input type="(?:text|hidden|number)" name="(\w+)"(?: value="([^"]*)")?', form)
        if found[2]
    }


def test_an_edit_carries_the_rows_revision(panel: Client) -> None:
    service = make_service("orders")
    typed = form_of(panel, f"/services/{service.pk}/edit")
    assert typed["revision"] == str(service.revision)
    assert panel.post(f"/services/{service.pk}/edit", typed | {"description": "Mine"}).status_code == 302
    service.refresh_from_db()
    assert (service.description, service.name) == ("Mine", "orders")


def test_saving_what_stands_there_makes_no_revision(panel: Client) -> None:
    service = make_service("orders")
    before = ConfigRevision.objects.count()
    url = f"/services/{service.pk}/edit"
    panel.post(url, form_of(panel, url))
    assert ConfigRevision.objects.count() == before
    assert "Nothing to save" in text_of(panel.get("/services", headers=HTMX))


def test_of_two_admins_the_second_sees_both_versions_and_overwrites_nothing(panel: Client) -> None:
    service = make_service("orders")
    url = f"/services/{service.pk}/edit"
    typed = form_of(panel, url)
    update_service(
        service=service,
        changes={"description": "Theirs", "path_prefix": "/v2"},
        **BOB | {"reason": "Moved", "source": "panel"},
    )
    answer = panel.post(url, typed | {"description": "Mine"})
    assert answer.status_code == 412
    text = text_of(answer)
    assert "bob changed it" in text
    assert "“Moved”" in text
    assert "Description All about orders Theirs Mine" in text
    assert "Path prefix — /v2 —" in text
    service.refresh_from_db()
    assert service.description == "Theirs"
    fresh = re.search(r'name="revision" value="(\d+)"', answer.content.decode())
    assert fresh is not None
    assert int(fresh[1]) == service.revision
    assert panel.post(url, typed | {"revision": fresh[1], "description": "Both"}).status_code == 302


def test_a_service_deleted_meanwhile_is_told_calmly(panel: Client) -> None:
    service = make_service("orders")
    url = f"/services/{service.pk}/edit"
    typed = form_of(panel, url)
    panel.post(f"/services/{service.pk}/delete")
    answer = panel.post(url, typed)
    assert answer.status_code == 404
    assert "There is no such service" in text_of(answer)


def weights_of(service: ServiceConfig, **weights: Any) -> dict[str, str]:
    fields = {}
    for version in service.versions.filter(is_active=True):
        fields[f"revision-{version.pk}"] = str(version.revision)
        fields[f"weight-{version.pk}"] = str(weights.get(version.version, version.weight))
    return fields


def test_all_weights_are_saved_in_one_revision(panel: Client) -> None:
    service = make_service("orders", v1=100, v2=0)
    panel.post(f"/services/{service.pk}/weights", weights_of(service, v1=60, v2=40))
    assert dict(service.versions.values_list("version", "weight")) == {"v1": 60, "v2": 40}
    assert latest_revision().changes.count() == 2


def test_weights_that_somebody_changed_meanwhile_are_not_overwritten(panel: Client) -> None:
    service = make_service("orders", v1=100, v2=0)
    typed = weights_of(service, v1=50, v2=50)
    set_weights(service=service, weights={"v2": 10}, **BOB)
    answer = panel.post(f"/services/{service.pk}/weights", typed)
    assert answer.status_code == 412
    assert "You wanted v1: 50, v2: 50" in text_of(answer)
    assert dict(service.versions.values_list("version", "weight")) == {"v1": 100, "v2": 10}


@pytest.mark.parametrize("weight", ["-1", "10001", "many", "", "1e3", "9" * 30])
def test_a_weight_that_is_none_is_refused(panel: Client, weight: str) -> None:
    service = make_service("orders", v1=100)
    answer = panel.post(f"/services/{service.pk}/weights", weights_of(service, v1=weight))
    assert answer.status_code == 422
    assert "from 0 to 10000" in text_of(answer)
    assert service.versions.get().weight == 100


def test_the_split_is_drawn_to_scale(panel: Client) -> None:
    service = make_service("orders", v1=3, v2=1)
    html = panel.get(f"/services/{service.pk}").content.decode()
    assert re.search(r'<rect[^>]*x="0.000%"[^>]*width="75.000%"', html)
    assert re.search(r'<rect[^>]*x="75.000%"[^>]*width="25.000%"', html)


def test_the_first_version_is_offered_all_the_traffic_and_later_ones_none(panel: Client) -> None:
    service = make_service("orders")
    assert 'name="weight" value="100"' in panel.get(f"/services/{service.pk}/versions/new").content.decode()
    panel.post(
        f"/services/{service.pk}/versions/new",
        {"version": "v1", "url": URL, "weight": 100, "lifecycle": "supported", "is_active": "on"},
    )
    assert 'name="weight" value="0"' in panel.get(f"/services/{service.pk}/versions/new").content.decode()


def test_a_version_is_edited_switched_and_deleted_with_its_targets(panel: Client) -> None:
    service = make_service("orders", v1=100)
    version = service.versions.get()
    typed = {
        "revision": version.revision,
        "url": "http://10.0.0.9",
        "weight": 5,
        "lifecycle": "supported",
        "is_active": "on",
    }
    panel.post(f"/versions/{version.pk}/edit", typed)
    panel.post(f"/versions/{version.pk}/switch", {"active": "false"})
    version.refresh_from_db()
    assert (version.url, version.weight, version.is_active, version.version) == ("http://10.0.0.9", 5, False, "v1")
    panel.post(f"/versions/{version.pk}/targets/new", {"url": "http://10.0.0.9:81", "weight": 100, "is_active": "on"})
    assert "Its 1 target goes with it" in text_of(panel.get(f"/versions/{version.pk}/delete"))
    panel.post(f"/versions/{version.pk}/delete")
    assert not ServiceVersion.objects.exists()
    assert not ServiceTarget.objects.exists()


def test_a_target_is_added_edited_and_deleted(panel: Client) -> None:
    version = make_service("orders", v1=100).versions.get()
    answer = panel.post(f"/versions/{version.pk}/targets/new", {"url": "http://10.0.0.9:81/path", "weight": 100})
    assert "scheme, a host and a port" in errors_at(answer, "url")
    target = create_target(version=version, url="http://10.0.0.9:81", **BOB)
    edited = {"revision": target.revision, "url": "http://10.0.0.9:82", "weight": 100}
    panel.post(f"/targets/{target.pk}/edit", edited)
    target.refresh_from_db()
    assert (target.url, target.is_active) == ("http://10.0.0.9:82", False)
    panel.post(f"/targets/{target.pk}/delete")
    assert not ServiceTarget.objects.exists()


def test_deleting_says_what_goes_with_it_and_is_refused_while_routes_lead_there(panel: Client) -> None:
    service = make_service("orders", v1=60, v2=40)
    url = f"/services/{service.pk}/delete"
    assert "go 2 versions and 0 targets" in text_of(panel.get(url))
    route = create_route(name="old", path="/api/old", service=service, **BOB)
    assert "while routes lead to it" in text_of(panel.get(url))
    refused = panel.post(url, headers=HTMX)
    assert refused.status_code == 409
    assert refused["HX-Retarget"] == "#dialog-slot"
    assert ServiceConfig.objects.exists()
    panel.post(f"/routes/{route.pk}/delete")
    assert panel.post(url)["Location"] == "/services"
    assert not ServiceConfig.objects.exists()


def test_a_service_is_switched_off_and_on_and_the_dialog_says_whom_it_hits(panel: Client) -> None:
    service = make_service("orders")
    create_application(name="mobile", allowed_services=["*"], **BOB)
    assert "1 application may use it: mobile" in text_of(panel.get(f"/services/{service.pk}/switch"))
    for wanted in (False, True):
        panel.post(f"/services/{service.pk}/switch", {"active": str(wanted).lower()})
        service.refresh_from_db()
        assert service.is_active is wanted


def test_the_list_is_searched_filtered_and_sorted_by_its_url(panel: Client) -> None:
    for name in ("alpha", "beta", "gamma"):
        make_service(name)
    panel.post(f"/services/{ServiceConfig.objects.get(name='beta').pk}/switch", {"active": "false"})

    def names(query: str) -> list[str]:
        html = panel.get(f"/services?{query}", headers={"HX-Request": "true", "HX-Target": "list"}).content.decode()
        assert "<h1" not in html
        return re.findall(r'class="row-name" href="[^"]*">(\w+)<', html)

    assert names("") == ["alpha", "beta", "gamma"]
    assert names("sort=-name") == ["gamma", "beta", "alpha"]
    assert names("sort=-changed")[0] == "beta"
    assert names("q=ALPH") == ["alpha"]
    assert names("state=inactive") == ["beta"]
    assert names("q=%00&sort=nonsense&page=99&state=odd") == ["alpha", "beta", "gamma"]


def test_a_long_list_is_paged(panel: Client) -> None:
    for number in range(53):
        ServiceConfig.objects.create(name=f"s{number:03}")
    text = text_of(panel.get("/services?page=2"))
    assert "51\N{EN DASH}53 of 53" in text
    assert "s052" in text


def test_names_are_proposed_those_that_begin_so_first(panel: Client) -> None:
    for name in ("orders", "reorders", "billing"):
        make_service(name)
    assert panel.get("/suggestions/services?q=orders").json() == {"names": ["orders", "reorders"]}
    assert panel.get("/suggestions/nonsense?q=x").json() == {"names": []}


def test_recent_changes_of_a_service_count_its_versions_in(panel: Client) -> None:
    service = make_service("orders", v1=100)
    assert ConfigChange.objects.count() == 2
    set_weights(service=service, weights={"v1": 5}, **BOB)
    text = text_of(panel.get(f"/services/{service.pk}"))
    assert "Created version orders v1" in text
    assert "Updated version orders v1 : weight" in text
