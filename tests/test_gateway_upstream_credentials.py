"""Secrets of upstreams through a whole gateway: they reach the service, and no file, answer or log of ours."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import httpx

from tests.gateway_process import GatewayFactory, eventually
from tests.gateway_traffic import create, new_key
from tests.scripted_upstream import Upstream

HUSH = "hush-b4e91c"


def test_a_secret_reaches_its_service_and_stands_nowhere_else(start_gateway: GatewayFactory, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "token").write_text(HUSH + "\n")
    (secrets / "pepper").write_text("the pepper of this gateway")
    gateway = start_gateway(
        UPSTREAM_USER=f"user-{HUSH}", SECRETS_DIR=str(secrets), KEY_PEPPER_FILE=str(secrets / "pepper")
    )
    credentials = [
        {"header": "Authorization", "value": "Bearer {secret://file/token}"},
        {"header": "X-User", "value": "{secret://env/UPSTREAM_USER}"},
    ]
    with closing(Upstream()) as upstream, gateway.admin() as admin:
        fields = {"defaultUrl": upstream.url, "upstreamCredentials": credentials}
        create(admin, "/admin/routing/services", name="orders", **fields)
        application = create(admin, "/admin/access/applications", name="shop", allowedServices=["*"])["id"]
        key = new_key(admin, application)["key"]

        answer = httpx.get(f"{gateway.url}/api/v1/orders/1", headers={"X-API-Key": key}, trust_env=False, timeout=20)
        assert answer.status_code == 200, answer.text
        assert upstream.requests[-1].field("authorization") == f"Bearer {HUSH}".encode()
        assert upstream.requests[-1].field("x-user") == f"user-{HUSH}".encode()

        own = [{"header": "X-Own", "value": "{secret://file/pepper}"}]
        admin.patch("/admin/routing/services/orders", json={"upstreamCredentials": own}).raise_for_status()
        answer = httpx.get(f"{gateway.url}/api/v1/orders/1", headers={"X-API-Key": key}, trust_env=False, timeout=20)
        assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
        assert "pepper" not in answer.text, "which secret it is, no client needs to know"

        def problems() -> str:
            return str([node["problems"] for node in admin.get("/admin/nodes").json()["nodes"]])

        eventually(lambda: "secret://file/pepper" in problems(), 20, "the problem among the node's")
        assert "a setting of the gateway itself" in problems()
        said = [admin.get(path).text for path in ("/admin/revisions", "/admin/routing/services", "/admin/nodes")]
        gateway.stop()
    files = [path for path in gateway.var_dir.rglob("*") if path.is_file()]
    assert {"snapshot.bin", "portcullis.sqlite3"} <= {path.name for path in files}
    for text in [*said, *(path.read_bytes().decode("latin-1") for path in files)]:
        assert HUSH not in text
        assert "the pepper" not in text
