"""Issuers of tokens in the admin API: what is stored is what gateways can run on."""

from typing import Any

import pytest

from access.models import Application, TokenIssuer
from access.services import create_application, delete_application
from core.faults import ClientFault
from core.models import ConfigChange
from core.revisions import Actor
from gateway_project.agent.compiler import compile_everything
from tests.token_makers import jwks, private_key

pytestmark = pytest.mark.django_db
URL = "/admin/access/issuers"
ADMIN = Actor("command", "", "test")


@pytest.fixture
def application() -> Application:
    return create_application(name="web", actor=ADMIN, source="command")


def wanted(application: Application, **changes: Any) -> dict[str, Any]:
    rules = {"jwksUrl": "https://login.example.com/jwks", "audiences": ["orders"]}
    return {
        "name": "login",
        "issuer": "https://login.example.com",
        "applicationId": application.pk,
        "rules": rules,
    } | changes


def test_an_issuer_is_made_read_changed_and_deleted(api: Any, application: Application) -> None:
    made = api.post(URL, wanted(application))
    assert made.status_code == 201, made.json()
    found = api.get(made["Location"]).json()
    assert (found["issuer"], found["applicationId"]) == ("https://login.example.com", application.pk)
    assert found["rules"]["algorithms"] == ["RS256"]
    changed = api.patch(made["Location"], {"rules": {"jwks": jwks("ES256"), "algorithms": ["ES256"]}})
    assert changed.status_code == 200, changed.json()
    assert compile_everything().records["issuer"].keys() >= {found["id"]}
    assert [row["name"] for row in api.get(f"{URL}?search=login").json()["issuers"]] == ["login"]
    assert api.delete(made["Location"]).status_code == 204
    assert not TokenIssuer.objects.exists()


@pytest.mark.parametrize(
    ("rules", "field"),
    [
        ({}, "rules"),
        ({"jwksUrl": "ftp://login.example.com/jwks"}, "rules.jwksUrl"),
        ({"jwksUrl": "https://user:pass@login.example.com/jwks"}, "rules.jwksUrl"),
        ({"jwks": {"keys": []}}, "rules.jwks"),
        ({"jwks": jwks("ES256")}, "rules.jwks"),
        ({"jwks": {"keys": [private_key().as_dict(private=True)]}}, "rules.jwks"),
        ({"algorithms": ["none"], "jwksUrl": "https://x.example/"}, "rules.algorithms[0]"),
        ({"algorithms": ["HS256", "RS256"], "jwksUrl": "https://x.example/"}, "rules"),
        ({"algorithms": ["HS256"], "secret": "in plain words"}, "rules.secret"),
        ({"jwksUrl": "https://x.example/", "headers": [{"claim": "a", "header": "Host"}]}, "rules"),
    ],
    ids=["no keys", "ftp", "userinfo", "empty", "another kind", "private", "none", "mixed", "plain secret", "host"],
)
def test_what_gateways_could_not_run_on_is_refused(
    api: Any, application: Application, rules: dict[str, Any], field: str
) -> None:
    answer = api.post(URL, wanted(application, rules=rules))
    assert answer.status_code == 422, answer.json()
    assert list(answer.json()["errors"]) == [field]


def test_names_and_issuers_are_unique_and_an_application_is_needed(
    api: Any, application: Application, settings: Any
) -> None:
    assert api.post(URL, wanted(application)).status_code == 201
    assert api.post(URL, wanted(application, issuer="https://other.example")).status_code == 409
    assert api.post(URL, wanted(application, name="other")).status_code == 409
    settings.JWT_ISSUER = "https://environment.example"
    assert api.post(URL, wanted(application, name="env", issuer=settings.JWT_ISSUER)).status_code == 409
    none = api.post(URL, wanted(application, name="x", issuer="https://x.example", applicationId=None))
    assert list(none.json()["errors"]) == ["applicationId"]
    gone = api.post(URL, wanted(application, name="x", issuer="https://x.example", applicationId="app_none"))
    assert list(gone.json()["errors"]) == ["applicationId"]


def test_no_two_issuers_of_a_tenant_are_shown_the_same_opaque_tokens(api: Any, application: Application) -> None:
    def introspecting(number: int, **changes: Any) -> dict[str, Any]:
        asked = {"url": "https://x.example/", "clientId": "gateway", "clientSecret": "secret://env/UPSTREAM_X"}
        issuer = f"https://{number}.example"
        return wanted(application, name=f"n{number}", issuer=issuer, rules={"introspection": asked | changes})

    first = api.post(URL, introspecting(1))
    assert first.status_code == 201, first.json()
    refused = api.post(URL, introspecting(2))
    assert (refused.status_code, list(refused.json()["errors"])) == (409, ["rules.introspection.tokenPrefix"])
    second = api.post(URL, introspecting(2, tokenPrefix="at_"))
    assert second.status_code == 201, second.json()
    assert api.post(URL, introspecting(3, tokenPrefix="at_")).status_code == 409
    assert api.patch(second["Location"], {"rules": introspecting(2)["rules"]}).status_code == 409
    assert api.post(URL, introspecting(4) | {"isActive": False}).status_code == 201
    assert api.patch(first["Location"], {"isActive": False}).status_code == 200
    assert api.patch(second["Location"], {"rules": introspecting(2)["rules"]}).status_code == 200
    assert api.patch(first["Location"], {"isActive": True}).status_code == 409
    assert api.post(URL, introspecting(5, tokenPrefix="two words")).status_code == 422


def test_an_application_whose_tokens_are_taken_is_not_deleted(api: Any, application: Application) -> None:
    assert api.post(URL, wanted(application)).status_code == 201
    with pytest.raises(ClientFault, match="login"):
        delete_application(application=application, actor=ADMIN, source="command")


def test_revisions_hold_references_and_no_secrets(api: Any, application: Application) -> None:
    rules = {"algorithms": ["HS256"], "secret": "secret://env/UPSTREAM_TOKENS"}
    assert api.post(URL, wanted(application, rules=rules)).status_code == 201
    change = ConfigChange.objects.filter(kind="issuer").get()
    assert change.after is not None
    assert change.after["rules"]["secret"] == "secret://env/UPSTREAM_TOKENS"


def test_the_settings_may_name_an_issuer(settings: Any, db: None) -> None:
    settings.JWT_ISSUER, settings.JWKS_ENDPOINT = "https://environment.example", "https://environment.example/jwks"
    compiled = compile_everything()
    assert not compiled.problems
    assert b"https://environment.example/jwks" in compiled.records["issuer"]["iss_environment"]
