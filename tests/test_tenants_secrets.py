"""Which tenant may name which secret of the host: when it is written, and again when it is to be resolved."""

from typing import Any

import pytest
from rest_framework.test import APIClient

from access.alerts import create_channel, send_test
from access.models import AlertChannel, AlertMessage
from access.tasks import send_alert
from access.tokens.records import IssuerRecord
from core.models import Tenant
from core.revisions import Actor
from core.secret_references import check_owner
from gateway_project.agent.compiler import compile_everything
from routing.models import ServiceConfig
from routing.records import ServiceRecord
from tests.admin_api import problem_of
from tests.administrators import client_with
from tests.wires import service_wire

OWN = [
    ("acme", "secret://env/UPSTREAM_ACME__TOKEN"),
    ("acme", "secret://env/UPSTREAM_ACME__ORDERS_TOKEN"),
    ("acme-eu", "secret://env/UPSTREAM_ACME_EU__TOKEN"),
    ("acme--eu", "secret://env/UPSTREAM_ACME__EU__TOKEN"),
    ("acme", "secret://file/tenants/acme/token"),
    ("acme", "secret://vault/kv/gateway/tenants/acme/orders#token"),
    ("acme", "secret://aws/tenants/acme/orders"),
]
ANOTHERS = [
    ("acme", "secret://env/UPSTREAM_ORDERS_TOKEN"),
    ("acme", "secret://env/UPSTREAM_ACME_TOKEN"),
    ("acme", "secret://env/UPSTREAM_ACME__"),
    ("acme", "secret://env/UPSTREAM_ACME___TOKEN"),
    ("acme", "secret://env/UPSTREAM_ACME__EU__TOKEN"),
    ("acme", "secret://env/UPSTREAM_ACME_EU__TOKEN"),
    ("acme--eu", "secret://env/UPSTREAM_ACME__EU_TOKEN"),
    ("acme", "secret://file/token"),
    ("acme", "secret://file/acme/token"),
    ("acme", "secret://file/tenants/acme"),
    ("acme", "secret://file/tenants/acme-eu/token"),
    ("acme", "secret://file/tenants/beta/tenants/acme/token"),
    ("acme", "secret://vault/kv/gateway/orders#token"),
    ("acme", "secret://vault/kv/tenants/beta/tenants/acme/orders#token"),
    ("acme", "secret://aws/gateway/orders#tenants.acme"),
    ("acme", "secret://azure/acme-vault/tenants-acme"),
    ("acme", "secret://google/acme-project/tenants_acme"),
    ("ACME", "secret://env/UPSTREAM_ACME__TOKEN"),
    ("acme_eu", "secret://env/UPSTREAM_ACME_EU__TOKEN"),
    ("", "secret://env/UPSTREAM___TOKEN"),
]
FOREIGN = "secret://env/UPSTREAM_ORDERS_TOKEN"
MINE = "secret://env/UPSTREAM_ACME__TOKEN"


@pytest.mark.parametrize(("tenant", "reference"), OWN)
def test_a_tenant_has_the_secrets_under_its_own_name(tenant: str, reference: str) -> None:
    check_owner(reference, tenant)
    check_owner(reference, "default")


@pytest.mark.parametrize(("tenant", "reference"), ANOTHERS)
def test_no_tenant_but_the_default_one_has_others(tenant: str, reference: str) -> None:
    with pytest.raises(ValueError, match=r"tenant|levels"):
        check_owner(reference, tenant)
    check_owner(reference, "default")


def credentials(reference: str) -> dict[str, Any]:
    return {"upstreamCredentials": [{"header": "X-Token", "value": f"Bearer {{{reference}}}"}]}


def tls(reference: str) -> dict[str, Any]:
    return {"upstreamTls": {"clientCertificate": reference, "clientKey": reference}}


def issuer(reference: str) -> dict[str, Any]:
    rules = {"algorithms": ["HS256"], "secret": reference, "audiences": ["orders"], "applicationClaim": "client_id"}
    host = "theirs" if reference == MINE else "ours"
    return {"name": "theirs", "issuer": f"https://{host}.example.com", "rules": rules}


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/admin/routing/services", lambda each: {"name": "orders"} | credentials(each), "upstreamCredentials"),
        ("/admin/routing/services", lambda each: {"name": "orders"} | tls(each), "upstreamTls"),
        ("/admin/access/issuers", issuer, "rules"),
        (
            "/admin/access/alert-channels",
            lambda each: {"name": "x", "medium": "webhook", "url": "https://a.example.com", "secret": each},
            "secret",
        ),
        ("/admin/access/bundles", lambda each: {"name": "x", "policies": tls(each)}, "policies"),
    ],
    ids=["credentials", "client certificate", "issuer", "alert channel", "bundle"],
)
def test_what_a_tenant_writes_may_name_its_own_secrets_alone(api: APIClient, path: str, body: Any, field: str) -> None:
    theirs = client_with("SUPER_ADMIN", username="far", tenant="acme")
    errors = problem_of(theirs.post(path, body(FOREIGN)), 422, "invalid_field")["errors"]
    assert "UPSTREAM_ACME__" in str(errors[field])
    made = theirs.post(path, body(MINE))
    assert made.status_code == 201, made.content
    ours = api.post(path, body(FOREIGN) | {"name": "ours"})
    assert ours.status_code == 201, ours.content


@pytest.mark.django_db
def test_what_came_into_the_rows_otherwise_is_left_out_and_named_as_a_problem() -> None:
    Tenant.objects.create(id="acme", name="Acme")
    held = [{"header": "X-Token", "value": f"{{{FOREIGN}}}"}]
    row = ServiceConfig.objects.create(tenant_id="acme", name="orders", upstream_credentials=held)
    compiled = compile_everything()
    assert row.pk not in compiled.records["service"]
    assert "UPSTREAM_ACME__" in compiled.problems["service", row.pk]["error"]


def test_a_record_of_a_service_with_anothers_secret_does_not_compile() -> None:
    held = [{"header": "X-Token", "value": f"{{{FOREIGN}}}"}]
    with pytest.raises(ValueError, match="UPSTREAM_ACME__"):
        ServiceRecord.from_wire(service_wire(tenant="acme", upstream_credentials=held))
    ServiceRecord.from_wire(service_wire(upstream_credentials=held))


@pytest.mark.parametrize("member", ["secret", "introspection"])
def test_a_record_of_an_issuer_with_anothers_secret_does_not_compile(member: str) -> None:
    rules: dict[str, Any] = {"algorithms": ["HS256"], "secret": FOREIGN}
    if member == "introspection":
        rules = {"introspection": {"url": "https://x.example.com", "clientId": "a", "clientSecret": FOREIGN}}
    wire = {"id": "iss_1", "name": "x", "issuer": "https://x.example.com", "application": None, "rules": rules}
    with pytest.raises(ValueError, match="UPSTREAM_ACME__"):
        IssuerRecord.from_wire(wire | {"tenant": "acme"})
    IssuerRecord.from_wire(wire | {"tenant": "default"})


@pytest.mark.django_db
def test_an_alert_is_not_signed_with_anothers_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_ORDERS_TOKEN", "hush")
    Tenant.objects.create(id="acme", name="Acme")
    by: dict[str, Any] = {"actor": Actor("command", name="tests", tenant_id="acme"), "source": "command"}
    channel = create_channel(name="x", medium="webhook", url="https://a.example.com", **by)
    AlertChannel.objects.update(secret=FOREIGN)
    message = send_test(channel=channel, **by)
    send_alert.apply([message.pk], throw=True)
    assert "UPSTREAM_ACME__" in AlertMessage.objects.get().error
