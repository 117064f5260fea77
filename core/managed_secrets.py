"""Secret references in processes that run Django: the settings of managers, and what an admin may refer to."""

from functools import cache
from typing import Any

from django.conf import settings

from core.secret_references import SecretReferences, check_owner
from core.secret_references.managers import Managers, ManagerSettings, why_not
from core.secret_references.names import MANAGERS, parts, references_in
from core.validation import FieldErrors, texts_in


def manager_settings() -> ManagerSettings:
    return ManagerSettings(
        prefixes={name: getattr(settings, f"SECRETS_{name.upper()}_PREFIX") for name in MANAGERS},
        vault_address=settings.VAULT_ADDR,
        vault_token=settings.VAULT_TOKEN,
        vault_token_file=settings.VAULT_TOKEN_FILE,
        vault_namespace=settings.VAULT_NAMESPACE,
        vault_kv_version=settings.VAULT_KV_VERSION,
        azure_suffix=settings.AZURE_KEYVAULT_SUFFIX,
        google_endpoint=settings.GOOGLE_SECRET_MANAGER_ENDPOINT,
    )


@cache
def managers() -> Managers:
    """One for each process. It blocks: for threads."""
    return Managers(manager_settings(), renew_s=settings.SECRETS_RENEW_MINUTES * 60)


def host_references() -> SecretReferences:
    """Resolves every kind of reference, and may wait for a manager: for threads."""
    return SecretReferences(settings.SECRETS_DIR, settings.OWN_SECRET_FILES, managed=managers())


def check_references(before: dict[str, Any] | None, after: dict[str, Any], tenant_id: str) -> None:
    """Of a row of the tenant that is about to be stored: references that it did not hold before must be its own, and
    ones that this host could resolve. Raises ClientFault ``invalid_field``."""
    known = set(_references(before or {}))
    errors = FieldErrors()
    for name, value in after.items():
        for reference in _references(value):
            if reference not in known and (reason := _why_not(reference, tenant_id)):
                errors.add(name, f"{reference}: {reason}.")
    errors.raise_any()


def _why_not(reference: str, tenant_id: str) -> str | None:
    try:
        check_owner(reference, tenant_id)
    except ValueError as error:
        return str(error)
    return why_not(reference, manager_settings()) if parts(reference)[0] in MANAGERS else None


def _references(document: Any) -> list[str]:
    texts = [text for text in texts_in(document) if "secret://" in text]
    return [each for text in texts for each in references_in(text)]
