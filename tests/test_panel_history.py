"""History and tasks in the panel, and the assets it stands on."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.contrib.staticfiles import finders
from django.test import Client

from admin_panel.listing import ROWS_PER_PAGE
from core.models import ConfigRevision, GatewayNode
from core.revisions import revision
from queues.models import QueuedTask
from routing.models import ServiceConfig
from routing.services import set_weights, update_service
from tests.panel_client import (
    BOB,
    HTMX,
    latest_revision,
    make_everything,
    make_queue_route,
    make_service,
    make_task,
    text_of,
)

ROOT = Path(__file__).resolve().parent.parent


def test_a_revision_shows_each_field_before_and_after_with_signs(panel: Client) -> None:
    service = make_service("orders")
    update_service(
        service=service,
        changes={"fallback_url": "http://10.0.0.9", "description": ""},
        **BOB | {"reason": "A second home"},
    )
    text = text_of(panel.get(f"/history/{latest_revision().number}"))
    assert "A second home" in text
    assert "Updated service orders" in text
    assert "Description \N{MINUS SIGN} before All about orders + after —" in text
    assert "Fallback URL \N{MINUS SIGN} before — + after http://10.0.0.9" in text
    assert "Path prefix" not in text


def test_a_document_is_compared_member_by_member(panel: Client) -> None:
    service = make_service("orders")
    secret = {"header": "authorization", "value": "Bearer {secret://env/UPSTREAM_ORDERS_TOKEN}"}
    checks = {"active": {"path": "/up", "intervalS": 5}, "passive": {}}
    update_service(service=service, changes={"health_checks": checks, "upstream_credentials": [secret]}, **BOB)
    checks = {"active": {"path": "/healthz", "intervalS": 5}}
    update_service(service=service, changes={"health_checks": checks, "caching": {}}, **BOB)
    number = latest_revision().number
    set_at = text_of(panel.get(f"/history/{number - 1}"))
    assert "Health checks: active interval (s) \N{MINUS SIGN} before — + after 5" in set_at
    assert "Upstream credentials: 1 header \N{MINUS SIGN} before — + after authorization" in set_at
    changed = text_of(panel.get(f"/history/{number}"))
    assert "Health checks: active path \N{MINUS SIGN} before /up + after /healthz" in changed
    assert "Health checks: passive \N{MINUS SIGN} before on + after —" in changed
    assert "Caching \N{MINUS SIGN} before — + after on" in changed
    assert "interval" not in changed


def test_a_created_object_shows_what_it_has_and_a_deleted_one_what_it_had(panel: Client) -> None:
    service = make_service("orders", v1=100)
    created = text_of(panel.get(f"/history/{latest_revision().number}"))
    assert "Service + after orders" in created
    assert "URL + after http://10.0.0.1:8000" in created
    panel.post(f"/services/{service.pk}/delete")
    deleted = text_of(panel.get(f"/history/{latest_revision().number}"))
    assert "Deleted version orders v1" in deleted
    assert "URL \N{MINUS SIGN} before http://10.0.0.1:8000" in deleted


def test_a_revision_of_several_objects_shows_them_all_and_leads_to_its_neighbours(panel: Client) -> None:
    service = make_service("orders", v1=50, v2=50)
    set_weights(service=service, weights={"v1": 90, "v2": 10}, **BOB)
    make_service("later")
    number = latest_revision().number - 1
    html = panel.get(f"/history/{number}").content.decode()
    assert "orders v1" in html
    assert "orders v2" in html
    assert f'href="/history/{number - 1}"' in html
    assert f'href="/history/{number + 1}"' in html


def test_a_revision_says_which_nodes_do_not_run_it_yet(panel: Client) -> None:
    make_service("orders")
    GatewayNode.objects.create(id="a/0", host="a", slot=0, applied_revision=0)
    assert "not yet: a/0" in text_of(panel.get("/history/1"))


def test_history_is_filtered_by_kind_object_author_and_reason(panel: Client) -> None:
    everything = make_everything()

    def numbers(query: str) -> set[int]:
        found = re.findall(r'class="row-name" href="/history/(\d+)"', panel.get(f"/history?{query}").content.decode())
        return {int(number) for number in found}

    def of_kind(kind: str) -> set[int]:
        return set(ConfigRevision.objects.filter(changes__kind=kind).values_list("number", flat=True))

    assert numbers("kind=version") == of_kind("version")
    assert numbers("kind=api_key") == of_kind("api_key")
    assert numbers(f"object={everything['key'].pk}") == of_kind("api_key")
    assert numbers("q=bob") == numbers("")
    assert numbers("q=INVOICES") == set(
        ConfigRevision.objects.filter(changes__object_name="invoices").values_list("number", flat=True)
    )
    assert numbers("q=nothing+like+it") == set()


def test_older_revisions_are_reached_by_cursor_and_do_not_shift(panel: Client) -> None:
    service = make_service("orders")
    for number in range(ROWS_PER_PAGE):
        update_service(service=service, changes={"description": str(number)}, **BOB)
    first = panel.get("/history").content.decode()
    cursor = re.search(r'\?before=(\d+)"', first)
    assert cursor is not None
    make_service("meanwhile")
    older = panel.get(f"/history?before={cursor[1]}").content.decode()
    assert re.findall(r'href="/history/(\d+)"', older) == ["1"]
    assert older.count("every 5s") == 1  # the header's; what is older stays as it is
    assert panel.get("/history?before=x").status_code == panel.get(f"/history?before={'9' * 40}").status_code == 200


def test_a_row_sent_anew_without_a_change_is_explained(panel: Client) -> None:
    service = make_service("orders")
    with revision(**BOB) as change:
        change.touch(ServiceConfig.objects.get(pk=service.pk))
    assert "Sent to the gateways anew" in text_of(panel.get(f"/history/{latest_revision().number}"))


@pytest.mark.parametrize("number", [0, 999, 10**30])
def test_a_revision_that_is_none_is_told_calmly(panel: Client, number: int) -> None:
    assert panel.get(f"/history/{number}").status_code == 404


# --- tasks ---------------------------------------------------------------------------------------------------------
def test_tasks_show_state_queue_error_and_never_what_was_sent(panel: Client) -> None:
    task = make_task(make_queue_route(), "failed", error="SMTP 550", result={"secret": "in the result"})
    for url in ("/tasks", f"/tasks/{task.id}"):
        html = panel.get(url).content.decode()
        assert "SMTP 550" in html
        assert "Failed" in html
        assert "secret" not in html


def test_tasks_are_filtered_by_state_queue_and_name(panel: Client) -> None:
    queue_route = make_queue_route()
    for state in QueuedTask.State.values:
        make_task(queue_route, state)

    def count(query: str) -> int:
        return len(re.findall(r'class="row-name" href="/tasks/', panel.get(f"/tasks?{query}").content.decode()))

    assert [count(query) for query in ("", "state=failed", "queue=email", "queue=sms", "q=EMAIL", "q=none")] == [
        5, 1, 5, 0, 5, 0,
    ]  # fmt: skip


def test_a_list_of_tasks_renews_itself_and_a_task_that_is_over_does_not(panel: Client) -> None:
    queue_route = make_queue_route()
    running, over = (
        make_task(queue_route, "started"),
        make_task(queue_route, "succeeded", finished_at="2025-01-01T00:00Z"),
    )
    rows = panel.get("/tasks?state=started", headers=HTMX | {"HX-Target": "list"}).content.decode()
    assert re.search(r'hx-get="/tasks\?state=started" hx-trigger="every 5s" hx-target="#list"', rows)
    assert "every 5s" in panel.get(f"/tasks/{running.id}", headers=HTMX | {"HX-Target": "task"}).content.decode()
    assert "every 5s" not in panel.get(f"/tasks/{over.id}", headers=HTMX | {"HX-Target": "task"}).content.decode()


def test_a_queue_route_shows_its_message_its_routes_and_its_tasks(panel: Client) -> None:
    everything = make_everything()
    text = text_of(panel.get(f"/queue-routes/{everything['queue_route'].pk}"))
    for shown in ("email.send", "mail /api/v1/mail", everything["task"].id, "-X POST"):
        assert shown in text


# --- assets --------------------------------------------------------------------------------------------------------
def test_vendored_assets_are_as_their_manifest_has_them_without_any_network() -> None:
    command = [sys.executable, "deploy/vendor_assets.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "The vendored assets are as the manifest has them.\n")


def test_vendored_assets_may_be_passed_on_and_point_nowhere() -> None:
    manifest = json.loads((ROOT / "admin_panel/static/vendor/manifest.json").read_text())
    for package in manifest["packages"]:
        assert package["licence"] in {"MIT", "OFL-1.1", "MPL-2.0"}
        for target in package["files"]:
            content = (ROOT / target).read_bytes()
            assert b"sourceMappingURL" not in content
            assert target.startswith("tests/") is package["tests_only"]


def test_our_own_assets_ask_no_other_host_for_anything() -> None:
    for name in ("tokens.css", "shell.css", "components.css", "forms.css", "panel.js", "elements.js"):
        path = finders.find(f"admin_panel/{name}")
        assert isinstance(path, str)
        assert not re.search(r"https?://|//cdn|eval\(|innerHTML", Path(path).read_text()), name
