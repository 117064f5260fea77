"""Secrets managers (A21): the vendors' own libraries against small servers that speak as the managers do."""

import base64
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from core.secret_references import SecretUnavailable, check_reference
from core.secret_references.managers import Managers, ManagerSettings, why_not

VALUE = "correct horse battery staple"
ALL = {"aws": "gateway/", "vault": "kv/gateway/", "azure": "acme/", "google": "acme/"}
Answerer = Callable[[str, dict[str, str], bytes], tuple[int, dict[str, str], Any]]


class Manager:
    """A server on loopback. ``answer`` takes path, fields and body and gives status, fields and a JSON document."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answer: Answerer = lambda path, fields, body: (404, {}, {})
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.asked.append(self.path)
                fields = {name.lower(): value for name, value in self.headers.items()}
                status, more, document = outer.answer(self.path, fields, body)
                data = json.dumps(document).encode()
                self.send_response(status)
                for name, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(data)),
                    **more,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager()
    yield manager
    manager.close()


def managers(now: Callable[[], float] = lambda: 0.0, **settings: Any) -> Managers:
    return Managers(ManagerSettings(prefixes=ALL, **settings), renew_s=60, now=now)


def reason(asked: Managers, reference: str) -> str:
    with pytest.raises(SecretUnavailable) as caught:
        asked.resolve(reference)
    assert VALUE not in str(caught.value) + caught.value.detail
    return caught.value.reason


# --- what may be named -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "reference",
    [
        "secret://aws/gateway/orders",
        "secret://aws/gateway/orders#password",
        "secret://vault/kv/gateway/orders#token",
        "secret://azure/acme-vault/orders-token",
        "secret://google/acme-project/orders_token",
        "secret://google/acme-project/orders_token/3#password",
    ],
)
def test_references_to_managers_have_these_forms(reference: str) -> None:
    check_reference(reference)


@pytest.mark.parametrize(
    "reference",
    [
        "secret://aws/",
        "secret://aws/a b",
        "secret://aws//a",
        "secret://aws/a/../b",
        "secret://vault/kv/orders",
        "secret://vault/kv#token",
        "secret://vault/kv/../sys#token",
        "secret://azure/acme",
        "secret://azure/acme.evil.net/x",
        "secret://azure/acme/x/y",
        "secret://google/acme",
        "secret://google/acme/x/newest",
        "secret://gcp/acme/x",
    ],
)
def test_other_references_are_refused(reference: str) -> None:
    with pytest.raises(ValueError, match="secret"):
        check_reference(reference)


def test_a_manager_is_off_until_the_operator_names_a_prefix() -> None:
    off = ManagerSettings()
    assert "SECRETS_AWS_PREFIX" in (why_not("secret://aws/gateway/x", off) or "")
    on = ManagerSettings(prefixes=ALL)
    assert why_not("secret://aws/gateway/x", on) is None
    assert "secret://aws/gateway/" in (why_not("secret://aws/payroll/x", on) or "")
    assert "VAULT_ADDR" in (why_not("secret://vault/kv/gateway/x#y", on) or "")
    assert "begin with" in reason(managers(), "secret://aws/payroll/x")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.secret_references.managers.find_spec", lambda name: None)
    sentence = "AWS Secrets Manager needs the package portcullis[aws]: boto3 is not installed"
    assert why_not("secret://aws/gateway/x", ManagerSettings(prefixes=ALL)) == sentence
    assert reason(managers(), "secret://aws/gateway/x") == sentence


# --- each of them ----------------------------------------------------------------------------------------------------
@pytest.fixture
def aws(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> Manager:
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{manager.port}",
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "example",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    stored = {
        "gateway/plain": {"SecretString": VALUE},
        "gateway/json": {"SecretString": json.dumps({"password": VALUE, "port": 5432})},
        "gateway/octets": {"SecretBinary": base64.b64encode(VALUE.encode()).decode()},
    }

    def answer(path: str, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], Any]:
        assert fields["x-amz-target"] == "secretsmanager.GetSecretValue"
        assert fields["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/")
        name = json.loads(body)["SecretId"]
        if name not in stored:
            return 400, {}, {"__type": "ResourceNotFoundException", "Message": f"no {VALUE}"}
        return 200, {}, {"Name": name, **stored[name]}

    manager.answer = answer
    return manager


def test_aws_secrets_manager_is_asked(aws: Manager) -> None:
    asked = managers()
    for name in ("plain", "json#password", "octets"):
        assert asked.resolve(f"secret://aws/gateway/{name}") == VALUE.encode()
    assert reason(asked, "secret://aws/gateway/none") == "AWS Secrets Manager says ResourceNotFoundException"
    assert "no text of that name" in reason(asked, "secret://aws/gateway/json#port")
    assert "no JSON document" in reason(asked, "secret://aws/gateway/plain#password")


def test_vault_is_asked_with_the_token_that_its_file_has_now(manager: Manager, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")

    def answer(path: str, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], Any]:
        if fields["x-vault-token"] != "second":
            return 403, {}, {"errors": ["permission denied"]}
        if path != "/v1/kv/data/gateway/orders":
            return 404, {}, {"errors": []}
        assert fields["x-vault-namespace"] == "team"
        return 200, {}, {"data": {"data": {"token": VALUE, "number": 1}, "metadata": {"version": 2}}}

    manager.answer = answer
    asked = managers(
        vault_address=f"http://127.0.0.1:{manager.port}", vault_token_file=str(token), vault_namespace="team"
    )
    assert reason(asked, "secret://vault/kv/gateway/orders#token") == "HashiCorp Vault says Forbidden"
    token.write_text("second\n")
    assert asked.resolve("secret://vault/kv/gateway/orders#token") == VALUE.encode()
    assert reason(asked, "secret://vault/kv/gateway/none#token") == "HashiCorp Vault says InvalidPath"
    for name in ("number", "none"):
        assert reason(asked, f"secret://vault/kv/gateway/orders#{name}") == "the secret has no text of that name"


def test_azure_key_vault_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its library speaks TLS only; the credential is a static one, since real ones come from Azure."""
    from azure.core.credentials import AccessToken

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("acme.vault.test").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    manager = Manager(context)

    class Static:
        def get_token(self, *scopes: str, **_: Any) -> AccessToken:
            assert scopes == (f"https://vault.test:{manager.port}/.default",)
            return AccessToken("bearer", 2**31)

    def answer(path: str, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], Any]:
        if fields.get("authorization") != "Bearer bearer":
            resource = f"https://vault.test:{manager.port}"
            challenge = f'Bearer authorization="https://login.vault.test/tenant", resource="{resource}"'
            return 401, {"WWW-Authenticate": challenge}, {}
        if not path.startswith("/secrets/orders-token/"):
            return 404, {}, {"error": {"code": "SecretNotFound", "message": VALUE}}
        return 200, {}, {"value": VALUE, "id": f"https://acme.vault.test:{manager.port}/secrets/orders-token/1"}

    manager.answer = answer
    monkeypatch.setattr("azure.identity.DefaultAzureCredential", Static)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    find = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: find("127.0.0.1", *rest, **more))
    asked = managers(azure_suffix=f"vault.test:{manager.port}")
    try:
        assert asked.resolve("secret://azure/acme/orders-token") == VALUE.encode()
        assert reason(asked, "secret://azure/acme/none") == "Azure Key Vault says 404"
    finally:
        for client in asked._clients.values():
            if hasattr(client, "close"):
                client.close()
        manager.close()


def test_google_secret_manager_is_asked(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    from google.auth.credentials import AnonymousCredentials

    def answer(path: str, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], Any]:
        known = {f"/v1/projects/acme/secrets/orders/versions/{each}:access" for each in ("latest", "3")}
        if path.partition("?")[0] not in known:
            return 404, {}, {"error": {"code": 404, "message": VALUE, "status": "NOT_FOUND"}}
        return 200, {}, {"name": "x", "payload": {"data": base64.b64encode(VALUE.encode()).decode()}}

    manager.answer = answer
    monkeypatch.setattr("google.auth.default", lambda *_, **__: (AnonymousCredentials(), "acme"))  # type: ignore[no-untyped-call]
    asked = managers(google_endpoint=f"http://127.0.0.1:{manager.port}")
    assert asked.resolve("secret://google/acme/orders") == VALUE.encode()
    assert asked.resolve("secret://google/acme/orders/3") == VALUE.encode()
    assert reason(asked, "secret://google/acme/none") == "Google Secret Manager says 404"


# --- kept ------------------------------------------------------------------------------------------------------------
def test_a_value_is_asked_for_again_when_it_is_due_and_kept_when_that_fails(aws: Manager) -> None:
    clock = [0.0]
    asked = managers(lambda: clock[0])
    for at, times in ((0.0, 1), (59.0, 1), (61.0, 2)):
        clock[0] = at
        assert asked.resolve("secret://aws/gateway/plain") == VALUE.encode()
        assert len(aws.asked) == times
    aws.answer = lambda path, fields, body: (400, {}, {"__type": "AccessDeniedException"})
    clock[0] = 200.0
    assert asked.resolve("secret://aws/gateway/plain") == VALUE.encode()
    assert asked.resolve("secret://aws/gateway/plain") == VALUE.encode()
    assert len(aws.asked) == 3  # not at once again
    aws.answer = lambda path, fields, body: (200, {}, {"SecretString": "another"})
    clock[0] = 211.0
    assert asked.resolve("secret://aws/gateway/plain") == b"another"
