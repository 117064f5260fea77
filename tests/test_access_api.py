"""Applications and whitelists over HTTP."""

import pytest
from rest_framework.test import APIClient

from tests.admin_api import problem_of

pytestmark = pytest.mark.django_db
APPLICATIONS = "/admin/access/applications"


@pytest.fixture
def mobile(api: APIClient) -> str:
    return str(api.post(APPLICATIONS, {"name": "mobile", "allowedServices": ["orders"]})["Location"])


def test_an_application_has_these_members(api: APIClient, mobile: str) -> None:
    assert set(api.get(mobile).json()) == {
        *(
            "id",
            "name",
            "description",
            "allowedServices",
            "allowedVersions",
            "endpointMode",
            "rateLimit",
            "priority",
            "isActive",
            "ipAccess",
            "clientCertificates",
            "bundles",
        ),
        *("revision", "createdAt", "updatedAt"),
    }


def test_an_entry_has_these_members_and_the_first_says_what_it_did(api: APIClient, mobile: str) -> None:
    first = api.post(f"{mobile}/whitelist", {"endpointPath": "/api/v1/orders/*", "allowedMethods": ["GET"]})
    second = api.post(f"{mobile}/whitelist", {"endpointPath": "/api/v1/news"})

    assert first.status_code == second.status_code == 201
    assert (first.json()["endpointMode"], "listed" in first.json()["notice"]) == ("listed", True)
    assert set(second.json()) == {
        *("id", "endpointPath", "allowedMethods", "allowedVersions", "rateLimit", "isPublic", "applicationId"),
        *("revision", "createdAt", "updatedAt"),
    }
    assert api.get(mobile).json()["endpointMode"] == "listed"


def test_entries_are_listed_changed_and_deleted_below_their_application(api: APIClient, mobile: str) -> None:
    entry = api.post(f"{mobile}/whitelist", {"endpointPath": "/api/v1/orders/*", "isPublic": True})["Location"]
    other = api.post(APPLICATIONS, {"name": "web"})["Location"]

    assert api.get(f"{mobile}/whitelist?isPublic=true").json()["count"] == 1
    assert api.get(f"{mobile}/whitelist?isPublic=false").json() == {"entries": [], "count": 0, "cursor": None}
    assert api.patch(entry, {"rateLimit": 60}).json()["rateLimit"] == 60
    problem_of(api.get(f"{other}/whitelist/{entry.rpartition('/')[2]}"), 404, "not_found")
    assert api.delete(entry).status_code == 204
    assert api.get(f"{mobile}/whitelist").json()["count"] == 0


def test_an_endpoint_that_is_listed_already_is_a_conflict_at_its_path(api: APIClient, mobile: str) -> None:
    body = {"endpointPath": "/api/v1/orders/*"}
    api.post(f"{mobile}/whitelist", body)

    problem = problem_of(api.post(f"{mobile}/whitelist", body), 409, "conflict")

    assert list(problem["errors"]) == ["endpointPath"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"allowedServices": "orders"}, "allowedServices"),
        ({"allowedServices": [""]}, "allowedServices.0"),
        ({"allowedServices": [5]}, "allowedServices.0"),
        ({"allowedServices": ["Orders"]}, "allowedServices"),
        ({"endpointMode": "some"}, "endpointMode"),
        ({"rateLimit": 0}, "rateLimit"),
        ({"rateLimit": 2**40}, "rateLimit"),
        ({"rateLimit": "5"}, "rateLimit"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(api: APIClient, body: dict[str, object], field: str) -> None:
    problem = problem_of(api.post(APPLICATIONS, {"name": "mobile", **body}), 422, "invalid_field")

    assert list(problem["errors"]) == [field]


def test_deleting_an_application_deletes_its_keys(api: APIClient, mobile: str) -> None:
    application = mobile.rpartition("/")[2]
    key = api.post("/keys", {"name": "k", "applicationId": application})["Location"]

    assert api.delete(mobile).status_code == 204
    problem_of(api.get(key), 404, "not_found")
