"""A real OpenID Connect provider (npm ``oidc-provider``) on loopback: tokens by JWKS, introspection, logins with PKCE.

Its packages, and a node for it where the system's is too old, are fixed by lock files and installed on demand, outside
what is under version control.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import platform
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
from joserfc.jwk import ECKey, RSAKey

from gateway_project.processes import ROOT
from tests.private_servers import PrivateServer

_HERE = Path(__file__).parent
_INSTALL_TIMEOUT_S = 300
_TRIES = 3


def packages() -> Path:
    """Where ``provider.mjs`` stands beside its packages. Skips the test, with the reason, where they cannot be had."""
    directory = _installed("oidc-provider", _HERE)
    shutil.copy(_HERE / "provider.mjs", directory)
    return directory


@cache
def node() -> str:
    """A program that runs oidc-provider: the system's node or, where that is too old (Debian 12 has 18), the one of
    ``node/package-lock.json``. Skips the test where neither can be had."""
    # URL.parse is the youngest that the provider calls.
    judged = subprocess.run(["node", "-e", "process.exit(URL.parse ? 0 : 1)"], capture_output=True, check=False)
    if judged.returncode == 0:
        return "node"
    for found in _installed("node", _HERE / "node").glob("node_modules/node-*/bin/node"):
        return str(found)
    pytest.skip(f"node is too old for oidc-provider, and there is none for {platform.machine()} in its place")


def _installed(name: str, pins: Path) -> Path:
    """The directory where npm has installed what the lock file in ``pins`` names."""
    if not _has_npm():
        pytest.skip("node and npm are not installed: no OpenID Connect provider to test with")
    pinned = (pins / "package-lock.json").read_bytes()
    directory = ROOT / ".tool-var" / f"{name}-{hashlib.sha256(pinned).hexdigest()[:16]}"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not (directory / "installed").exists():
            _install(directory, pins)
    return directory


def _has_npm() -> bool:
    return shutil.which("node") is not None and shutil.which("npm") is not None


def _install(directory: Path, pins: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(pins / name, directory)
    own_cache = directory / "npm-cache"  # of its own: one that others write to at the same time breaks
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", f"--cache={own_cache}"]
    for _ in range(_TRIES):
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S)
        if done.returncode == 0:
            (directory / "installed").touch()
            shutil.rmtree(own_cache, ignore_errors=True)
            return
    pytest.skip(f"npm cannot install {directory.name}: {done.stderr[-500:]}")


class OidcProvider(PrivateServer):
    """``accounts``: claims by person, ``sub`` among them, and ``token`` for what only access tokens say. ``clients`` as
    OpenID Connect registers them. The confidential client ``machine`` (secret ``machine-secret``) gets access tokens by
    ``token``, and introspects."""

    name: ClassVar[str] = "oidc-provider"

    def __init__(
        self,
        *,
        clients: list[dict[str, Any]] | None = None,
        accounts: list[dict[str, Any]] | None = None,
        scopes: tuple[str, ...] = ("orders:read", "orders:write"),
        token_claims: dict[str, Any] | None = None,
        algorithm: str = "RS256",
        token_ttl_s: int = 600,
        requires_pkce: bool = True,
    ) -> None:
        self._packages = packages()
        super().__init__()
        self.scopes = scopes
        self.algorithm = algorithm
        machine = {
            "client_id": "machine",
            "token_endpoint_auth_method": "client_secret_post",
            "client_secret": "machine-secret",
            "grant_types": ["client_credentials"],
            "redirect_uris": [],
            "response_types": [],
            "scope": " ".join(scopes),
        }
        self._told: dict[str, Any] = {
            "issuer": self.url,
            "port": self.port,
            "clients": [machine, *(clients or [])],
            "accounts": accounts or [{"sub": "ada", "email": "ada@example.com", "email_verified": True, "name": "Ada"}],
            "scopes": list(scopes),
            "tokenClaims": token_claims or {},
            "tokenTtl": token_ttl_s,
            "requiresPkce": requires_pkce,
            "algorithm": algorithm,
        }
        self._keys = [_new_key(algorithm)]
        # Id tokens are signed with RS256 unless their client asks otherwise.
        self._login_keys = [] if algorithm == "RS256" else [_new_key("RS256")]

    def add_client(self, client: dict[str, Any]) -> None:
        """Before it starts."""
        self._told["clients"].append(client)

    @classmethod
    def is_installed(cls) -> bool:
        return _has_npm()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def jwks_url(self) -> str:
        return f"{self.url}/jwks"

    @property
    def introspection_url(self) -> str:
        return f"{self.url}/token/introspection"

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/.well-known/openid-configuration", timeout=3) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def command(self) -> list[str]:
        told = self.directory / "told.json"
        told.write_text(json.dumps({**self._told, "keys": [*self._keys, *self._login_keys]}))
        return [node(), str(self._packages / "provider.mjs"), str(told)]

    def rotate(self, *, keep_old: bool = False) -> None:
        """Sign with a new key from now on; the provider starts anew, so opaque tokens are forgotten."""
        self._keys = [_new_key(self.algorithm), *(self._keys if keep_old else [])]
        if self.is_running:
            self.restart()

    def token(self, *, resource: str | None = None, scope: str = "", client: tuple[str, str] | None = None) -> str:
        """An access token of a machine: a JWT for ``resource`` (its ``aud``), without one an opaque token."""
        form = {"grant_type": "client_credentials", "scope": scope or " ".join(self.scopes)}
        if resource is not None:
            form["resource"] = resource
        return str(self._post("/token", form, client or ("machine", "machine-secret"))["access_token"])

    def revoke(self, token: str) -> None:
        """Revoke an opaque token."""
        self._post("/token/revocation", {"token": token}, ("machine", "machine-secret"))

    def _post(self, path: str, form: dict[str, str], client: tuple[str, str]) -> dict[str, Any]:
        data = urllib.parse.urlencode({**form, "client_id": client[0], "client_secret": client[1]}).encode()
        request = urllib.request.Request(self.url + path, data=data)
        request.add_header("content-type", "application/x-www-form-urlencoded")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path}: {error.code} {error.read().decode()[:500]}") from None
        document: dict[str, Any] = json.loads(body) if body else {}
        return document


def _new_key(algorithm: str) -> dict[str, Any]:
    key = ECKey.generate_key("P-256") if algorithm.startswith("ES") else RSAKey.generate_key(2048)
    return {**key.as_dict(private=True), "kid": key.thumbprint(), "use": "sig", "alg": algorithm}
