"""Secrets managers: AWS Secrets Manager, HashiCorp Vault, Azure Key Vault, Google Secret Manager (A21).

    secret://aws/<name>[#member]                   member: of the JSON document that the secret is
    secret://vault/<mount>/<path>#<name>           the key/value engine, version 2 (or 1)
    secret://azure/<vault>/<name>[#member]
    secret://google/<project>/<name>[/<version>][#member]

Each speaks by its vendor's library, an optional extra that is imported when it is first needed. All of this blocks: it
is for threads of the agent and of the control process, and workers ask the agent. An admin who may write the
configuration chooses the reference, so each manager is off until the operator has said with which prefix names begin.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.secret_references.names import SecretUnavailable, check_reference, parts

logger = logging.getLogger("portcullis.secrets")

TIMEOUT_S = 5.0
RETRY_S = 10.0  # after a failure, while a value is kept
MAX_BYTES = 64 * 1024
_EXTRAS = {
    "aws": ("boto3",),
    "vault": ("hvac",),
    "azure": ("azure.keyvault.secrets", "azure.identity"),
    "google": ("google.cloud.secretmanager",),
}
_NAMES = {
    "aws": "AWS Secrets Manager",
    "vault": "HashiCorp Vault",
    "azure": "Azure Key Vault",
    "google": "Google Secret Manager",
}


class ManagerError(Exception):
    """``str()`` says what went wrong, and nothing of any value."""


@dataclass(frozen=True, slots=True)
class ManagerSettings:
    """``prefixes``: by manager, what names must begin with; a manager without one is off. ``vault_token_file`` is read
    for each request, so that Vault Agent may renew it. Endpoints that are empty are the vendor's own."""

    prefixes: Mapping[str, str] = field(default_factory=dict)
    vault_address: str = ""
    vault_token: str = ""
    vault_token_file: str = ""
    vault_namespace: str = ""
    vault_kv_version: int = 2
    azure_suffix: str = "vault.azure.net"
    google_endpoint: str = ""


def why_not(reference: str, settings: ManagerSettings) -> str | None:
    """Why a manager's reference cannot be used on this host; None: it can."""
    source, name = parts(reference)
    prefix = settings.prefixes.get(source, "")
    if not prefix:
        return f"{_NAMES[source]} is off: set SECRETS_{source.upper()}_PREFIX to what names may begin with"
    if not name.startswith(prefix):
        return f"references to {_NAMES[source]} begin with secret://{source}/{prefix} here"
    if source == "vault" and not settings.vault_address:
        return "HashiCorp Vault needs VAULT_ADDR"
    missing = [module for module in _EXTRAS[source] if not _is_installed(module)]
    if missing:
        return f"{_NAMES[source]} needs the package portcullis[{source}]: {missing[0]} is not installed"
    return None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent
        return False


class Managers:
    """Asks the managers, and keeps what they said for ``renew_s``. For threads. ``now`` gives monotonic seconds."""

    def __init__(self, settings: ManagerSettings, *, renew_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._renew_s = renew_s
        self._now = now
        self._fetch: dict[str, Callable[[str], bytes | str]] = {
            "aws": self._from_aws,
            "vault": self._from_vault,
            "azure": self._from_azure,
            "google": self._from_google,
        }
        self._clients: dict[str, Any] = {}
        self._kept: dict[str, tuple[bytes, float]] = {}  # the value, and when it is due
        self._lock = threading.Lock()

    def resolve(self, reference: str) -> bytes:
        """The value; a stale one rather than none. Raises `SecretUnavailable`."""
        now = self._now()
        kept = self._kept.get(reference)
        if kept is not None and now < kept[1]:
            return kept[0]
        with self._lock:
            kept = self._kept.get(reference)  # by another thread, meanwhile
            if kept is not None and now < kept[1]:
                return kept[0]
            try:
                value = self._look(reference)
            except SecretUnavailable as unavailable:
                if kept is None:
                    raise
                logger.warning("%s; the value from before is used on", unavailable)
                self._kept[reference] = (kept[0], now + RETRY_S)
                return kept[0]
            self._kept[reference] = (value, now + self._renew_s)
            return value

    @property
    def problems(self) -> Mapping[str, str]:
        return {}

    def _look(self, reference: str) -> bytes:
        try:
            check_reference(reference)
        except ValueError as error:
            raise SecretUnavailable(reference, str(error)) from None
        if reason := why_not(reference, self._settings):
            raise SecretUnavailable(reference, reason)
        source, name = parts(reference)
        name, _, member = name.partition("#")
        try:
            value = self._fetch[source](f"{name}#{member}" if source == "vault" else name)
            found = _member(value, member) if member and source != "vault" else value
        except ManagerError as error:
            raise SecretUnavailable(reference, str(error)) from None
        except Exception as error:
            # What a library says of a failure may hold an answer, or the address with its credentials.
            raise SecretUnavailable(reference, f"{_NAMES[source]} failed ({type(error).__name__})") from None
        data = found.encode() if isinstance(found, str) else found
        data = data.rstrip(b"\r\n")
        if not data:
            raise SecretUnavailable(reference, "it is empty")
        if len(data) > MAX_BYTES:
            raise SecretUnavailable(reference, f"it is over the limit of {MAX_BYTES} bytes")
        return data

    # --- each manager ---
    def _from_aws(self, name: str) -> bytes | str:
        """Region, endpoint and credentials are AWS's own settings (AWS_REGION, AWS_ENDPOINT_URL, a role, …)."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import ClientError

        client = self._clients.get("aws")
        if client is None:
            config = Config(connect_timeout=TIMEOUT_S, read_timeout=TIMEOUT_S, retries={"max_attempts": 2})
            client = self._clients["aws"] = boto3.client("secretsmanager", config=config)
        try:
            answer = client.get_secret_value(SecretId=name)
        except ClientError as error:
            raise ManagerError(f"AWS Secrets Manager says {error.response['Error']['Code']}") from None
        found: bytes | str = answer["SecretString"] if "SecretString" in answer else answer["SecretBinary"]
        return found

    def _from_vault(self, name: str) -> bytes | str:
        import hvac
        from hvac.exceptions import VaultError

        settings = self._settings
        token = settings.vault_token
        if settings.vault_token_file:
            try:
                token = Path(settings.vault_token_file).read_text().strip()
            except OSError as error:
                raise ManagerError(f"VAULT_TOKEN_FILE cannot be read ({error.strerror})") from None
        path, _, member = name.partition("#")
        mount, _, path = path.partition("/")
        client = hvac.Client(
            url=settings.vault_address, token=token, namespace=settings.vault_namespace or None, timeout=TIMEOUT_S
        )
        try:
            if settings.vault_kv_version == 2:
                answer = client.secrets.kv.v2.read_secret_version(
                    path, mount_point=mount, raise_on_deleted_version=True
                )
                values = answer["data"]["data"]
            else:
                values = client.secrets.kv.v1.read_secret(path, mount_point=mount)["data"]
        except VaultError as error:
            raise ManagerError(f"HashiCorp Vault says {type(error).__name__}") from None
        if not isinstance(values.get(member), str):
            raise ManagerError("the secret has no text of that name")
        found: str = values[member]
        return found

    def _from_azure(self, name: str) -> bytes | str:
        """Credentials are Azure's own settings (a managed identity, AZURE_CLIENT_ID, …)."""
        from azure.core.exceptions import HttpResponseError
        from azure.identity import DefaultAzureCredential
        from azure.keyvault.secrets import SecretClient

        vault, _, secret = name.partition("/")
        client = self._clients.get(f"azure {vault}")
        if client is None:
            if "azure" not in self._clients:
                self._clients["azure"] = DefaultAzureCredential()
            client = self._clients[f"azure {vault}"] = SecretClient(
                f"https://{vault}.{self._settings.azure_suffix}",
                self._clients["azure"],
                connection_timeout=TIMEOUT_S,
                read_timeout=TIMEOUT_S,
                retry_total=1,
            )
        try:
            found = client.get_secret(secret).value
        except HttpResponseError as error:
            raise ManagerError(f"Azure Key Vault says {error.status_code}") from None
        return found or ""

    def _from_google(self, name: str) -> bytes | str:
        """Credentials are Google's own settings (GOOGLE_APPLICATION_CREDENTIALS, a service account, …)."""
        from google.api_core.exceptions import GoogleAPICallError
        from google.cloud import secretmanager

        client = self._clients.get("google")
        if client is None:
            options = {"api_endpoint": self._settings.google_endpoint} if self._settings.google_endpoint else None
            client = secretmanager.SecretManagerServiceClient(transport="rest", client_options=options)
            self._clients["google"] = client
        project, secret, *version = name.split("/")
        path = f"projects/{project}/secrets/{secret}/versions/{version[0] if version else 'latest'}"
        try:
            found: bytes = client.access_secret_version(name=path, timeout=TIMEOUT_S).payload.data
        except GoogleAPICallError as error:
            raise ManagerError(f"Google Secret Manager says {error.code}") from None
        return found


def _member(value: bytes | str, member: str) -> str:
    try:
        document = json.loads(value)
    except ValueError:
        raise ManagerError("the secret is no JSON document, so it has no members") from None
    if not isinstance(document, dict) or not isinstance(document.get(member), str):
        raise ManagerError("the secret's JSON document has no text of that name")
    found: str = document[member]
    return found
