"""Applications, whitelists and API keys in the panel."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone

from access.models import Application, EndpointWhitelist
from access.services import create_application, create_entry, update_application
from core.models import ConfigChange
from keys.models import ApiKey
from keys.services import create_key, find_live_key
from tests.panel_client import BOB, HTMX, errors_at, latest_revision, make_admin, make_service, signed_in, text_of


def make_application(name: str = "mobile", **fields: Any) -> Application:
    return create_application(name=name, **fields, **BOB)


def make_key(application: Application, name: str = "production") -> ApiKey:
    return create_key(name=name, application=application, **BOB).row


# --- applications --------------------------------------------------------------------------------------------------
def test_an_application_is_made_with_what_it_may_call(panel: Client) -> None:
    typed = {
        "name": "mobile",
        "allowed_services": "billing, orders",
        "allowed_versions": "*",
        "endpoint_mode": "all",
        "priority": 5,
    }
    panel.post("/applications/new", typed | {"rate_limit": "60", "is_active": "on"})
    row = Application.objects.get()
    assert (row.allowed_services, row.allowed_versions, row.rate_limit) == (["billing", "orders"], ["*"], 60)


def test_of_two_admins_the_second_sees_both_lists_of_services(panel: Client) -> None:
    row = make_application(allowed_services=["billing"])
    began = row.revision
    update_application(application=row, changes={"allowed_services": ["billing", "orders"]}, **BOB)
    typed = {
        "name": "mobile",
        "allowed_services": "search",
        "allowed_versions": "*",
        "endpoint_mode": "all",
        "priority": 5,
    }
    answer = panel.post(f"/applications/{row.pk}/edit", typed | {"revision": began, "is_active": "on"})
    assert answer.status_code == 412
    assert "Allowed services billing billing, orders search" in text_of(answer)
    row.refresh_from_db()
    assert row.allowed_services == ["billing", "orders"]


def test_names_that_nothing_has_are_pointed_out(panel: Client) -> None:
    make_service("billing")
    row = make_application(allowed_services=["billing", "gone"])
    text = text_of(panel.get(f"/applications/{row.pk}"))
    assert "Nothing is named gone" in text


def test_the_first_entry_that_is_not_public_binds_the_whitelist_and_the_admin_is_told(panel: Client) -> None:
    row = make_application(allowed_services=["*"])
    url = f"/applications/{row.pk}/whitelist/new"
    assert "may call only what is listed" in text_of(panel.get(url))
    panel.post(url, {"endpoint_path": "/api/v1/status", "is_public": "on"})
    assert Application.objects.get().endpoint_mode == "all"
    panel.post(url, {"endpoint_path": "/api/v1/billing/*", "allowed_methods": ["GET"], "rate_limit": "5"})
    assert Application.objects.get().endpoint_mode == "listed"
    assert "The whitelist is binding from now on" in text_of(panel.get("/applications", headers=HTMX))
    text = text_of(panel.get(f"/applications/{row.pk}"))
    assert "Only what is listed here may be called" in text
    assert "/api/v1/status public any" in text
    assert "/api/v1/billing/* GET any 5/min" in text


def test_an_entry_with_nothing_ticked_allows_any_method_and_version(panel: Client) -> None:
    row = make_application()
    panel.post(f"/applications/{row.pk}/whitelist/new", {"endpoint_path": "/api/v1/x"})
    entry = EndpointWhitelist.objects.get()
    assert (entry.allowed_methods, entry.allowed_versions) == (["*"], ["*"])


def test_a_method_that_stands_in_no_list_survives_an_edit(panel: Client) -> None:
    entry = create_entry(
        application=make_application(), endpoint_path="/api/v1/x", allowed_methods=["GET", "PURGE"], **BOB
    ).entry
    url = f"/whitelist/{entry.pk}/edit"
    assert re.search(r'value="PURGE"[^>]*checked', panel.get(url).content.decode())
    typed = {"revision": entry.revision, "endpoint_path": "/api/v1/y", "allowed_methods": ["GET", "PURGE"]}
    panel.post(url, typed)
    entry.refresh_from_db()
    assert (entry.endpoint_path, entry.allowed_methods) == ("/api/v1/y", ["GET", "PURGE"])


def test_a_bad_entry_is_refused_at_its_field(panel: Client) -> None:
    url = f"/applications/{make_application().pk}/whitelist/new"
    answer = panel.post(url, {"endpoint_path": "/api/{v}x", "rate_limit": "0"})
    assert "whole segment" in errors_at(answer, "endpoint_path")
    assert "at least 1" in errors_at(answer, "rate_limit")


def test_deleting_the_last_entry_of_a_binding_list_warns(panel: Client) -> None:
    row = make_application()
    entry = create_entry(application=row, endpoint_path="/api/v1/x", **BOB).entry
    assert "may then call nothing at all" in text_of(panel.get(f"/whitelist/{entry.pk}/delete"))
    panel.post(f"/whitelist/{entry.pk}/delete")
    assert "The list is binding and empty" in text_of(panel.get(f"/applications/{row.pk}"))


def test_deleting_an_application_says_how_many_live_keys_stop(panel: Client) -> None:
    row = make_application()
    make_key(row)
    panel.post(f"/api-keys/{make_key(row, 'old').pk}/revoke")
    assert "2 API keys go with it, 1 of them live" in text_of(panel.get(f"/applications/{row.pk}/delete"))
    panel.post(f"/applications/{row.pk}/delete")
    assert not ApiKey.objects.exists()


# --- keys ----------------------------------------------------------------------------------------------------------
def create(panel: Client, **fields: str) -> str:
    """The page that answers to the making of a key."""
    typed = {"name": "production", "application": "mobile", "expires_in_days": "90"}
    answer = panel.post("/api-keys/new", typed | fields, headers=HTMX)
    assert answer.status_code == 200
    assert answer["Cache-Control"] == "no-store"
    assert answer["HX-Push-Url"] == "false"
    return answer.content.decode()


def key_in(html: str) -> str:
    found = re.search(r'id="new-key"[^>]*value="(km_\w+)"', html)
    assert found is not None
    return found[1]


def test_the_key_stands_in_the_one_answer_and_nowhere_else(panel: Client) -> None:
    make_application()
    secret = key_in(create(panel))
    live = find_live_key(secret, admin=False)
    assert live is not None
    shown = [panel.get(url, headers=HTMX).content.decode() for url in ("/", "/api-keys", f"/api-keys/{live.pk}")]
    shown += [panel.get(f"/history/{latest_revision().number}").content.decode()]
    shown += [str(row.get_decoded()) for row in Session.objects.all()]
    shown += [str(list(panel.cookies.values()))]
    shown += [str(change.after) for change in ConfigChange.objects.all()]
    assert not any(secret in text or secret[13:] in text for text in shown)


def test_a_key_lives_as_long_as_chosen_and_one_without_end_comes_with_a_warning(panel: Client) -> None:
    make_application()
    create(panel)
    ends = ApiKey.objects.get().expires_at
    assert ends is not None
    assert timedelta(days=89) < ends - timezone.now() <= timedelta(days=90)
    assert "never expires" in create(panel, name="eternal", expires_in_days="never")
    assert ApiKey.objects.get(name="eternal").expires_at is None


@pytest.mark.parametrize(
    ("wrong", "field", "sentence"),
    [
        ({"application": "nobody"}, "application", "There is no application named nobody."),
        ({"name": ""}, "name", "This field cannot be blank."),
        ({"expires_in_days": "-5"}, "expires_in_days", "Select a valid choice"),
    ],
)
def test_what_is_wrong_with_a_new_key_stands_at_its_field(
    panel: Client, wrong: dict[str, str], field: str, sentence: str
) -> None:
    make_application()
    typed = {"name": "production", "application": "mobile", "expires_in_days": "90"}
    answer = panel.post("/api-keys/new", typed | wrong)
    assert answer.status_code == 422
    assert sentence in errors_at(answer, field)
    assert not ApiKey.objects.exists()


def test_a_key_is_suspended_activated_and_revoked_for_good_with_a_reason(panel: Client) -> None:
    key = make_key(make_application())
    for action, status in (("suspend", "suspended"), ("activate", "active"), ("revoke", "revoked")):
        assert action.capitalize() in text_of(panel.get(f"/api-keys/{key.pk}/{action}"))
        panel.post(f"/api-keys/{key.pk}/{action}", {"reason": f"to {action}"})
        key.refresh_from_db()
        assert (key.status, latest_revision().reason) == (status, f"to {action}")
    refused = panel.post(f"/api-keys/{key.pk}/activate", headers=HTMX)
    assert refused.status_code == 409
    assert "final" in text_of(refused)


def test_whose_key_it_is_is_told_by_its_beginning_or_the_whole_of_it(panel: Client) -> None:
    issued = create_key(name="production", application=make_application(), **BOB)
    for pasted in (issued.key, issued.key[:13], issued.row.lookup_id, f"  {issued.key} "):
        text = text_of(panel.post("/api-keys/whose", {"key": pasted}))
        assert "Key production" in text
        assert "Belongs to mobile" in text
        assert issued.key[13:] not in text
    assert "Too short" in text_of(panel.post("/api-keys/whose", {"key": issued.key[:12]}))
    assert "not one of this gateway" in text_of(panel.post("/api-keys/whose", {"key": "km_" + "0" * 10}))


def test_keys_are_filtered_by_what_they_are_good_for(panel: Client) -> None:
    row = make_application()
    for name in ("live", "suspended", "revoked", "expired"):
        make_key(row, name)
    ApiKey.objects.filter(name="expired").update(expires_at=timezone.now() - timedelta(days=1))
    for status in ("suspended", "revoked"):
        ApiKey.objects.filter(name=status).update(status=status)

    def names(query: str) -> set[str]:
        return set(
            re.findall(r'class="row-name" href="[^"]*">(\w+)<', panel.get(f"/api-keys?{query}").content.decode())
        )

    assert names("state=live") == {"live"}
    assert names("state=suspended") == {"suspended"}
    assert names("state=ended") == {"revoked", "expired"}
    assert names("q=mobile") == {"live", "suspended", "revoked", "expired"}
    assert "It expired" in text_of(panel.get(f"/api-keys/{ApiKey.objects.get(name='expired').pk}"))


def test_what_somebody_does_bears_their_name(panel: Client) -> None:
    other = signed_in(make_admin("eve"))
    other.post("/applications/new", {"name": "web", "endpoint_mode": "all", "priority": 5})
    assert latest_revision().actor_name == "eve"
