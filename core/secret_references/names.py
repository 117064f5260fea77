"""What a ``secret://…`` reference may look like, whoever resolves it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from core.faults import InternalFault

_SEGMENT = r"(?!\.)[A-Za-z0-9._-]{1,200}"
_MEMBER = r"#[A-Za-z0-9_.-]{1,200}"
_FORMS: dict[str, tuple[re.Pattern[str], str]] = {
    "env": (
        re.compile(r"UPSTREAM_[A-Z0-9_]{1,200}"),
        "secret://env/ takes the name of an environment variable that begins with UPSTREAM_, in capitals, digits and"
        " underscores",
    ),
    "file": (
        re.compile(rf"{_SEGMENT}(?:/{_SEGMENT}){{0,8}}"),
        "secret://file/ takes the name of a file below SECRETS_DIR: letters, digits and . _ - in each part, none of"
        " which begins with a dot",
    ),
    "aws": (
        re.compile(rf"[A-Za-z0-9_+=.@-][A-Za-z0-9/_+=.@-]{{0,400}}(?:{_MEMBER})?"),
        "secret://aws/ takes the name of a secret of AWS Secrets Manager, and after a # the member of its JSON document"
        " if it is one",
    ),
    "vault": (
        re.compile(rf"{_SEGMENT}(?:/{_SEGMENT}){{1,12}}{_MEMBER}"),
        "secret://vault/ takes the mount and path of a secret of HashiCorp Vault, and after a # the name of its value:"
        " secret://vault/kv/orders#token",
    ),
    "azure": (
        re.compile(rf"[A-Za-z][A-Za-z0-9-]{{1,23}}/[A-Za-z0-9-]{{1,127}}(?:{_MEMBER})?"),
        "secret://azure/ takes the names of a vault of Azure Key Vault and of a secret in it:"
        " secret://azure/my-vault/orders-token",
    ),
    "google": (
        re.compile(rf"[a-z0-9][a-z0-9:.-]{{3,60}}/[A-Za-z0-9_-]{{1,255}}(?:/(?:latest|[0-9]{{1,9}}))?(?:{_MEMBER})?"),
        "secret://google/ takes a project and the name of a secret of Google Secret Manager, and its version unless it"
        " is the latest: secret://google/my-project/orders-token/3",
    ),
}
MANAGERS = ("aws", "vault", "azure", "google")
_WITH_PATHS = ("aws", "vault")
_DEFAULT_TENANT = "default"  # `core.tenants`, which is Django's
_TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_RETRY_AFTER_S = 5
_FOR_CLIENTS = "A secret that the gateway needs for this is not available."
_REFERENCE = re.compile(r"secret://[a-z0-9-]+/[^\s{}]{1,500}")


def check_reference(reference: str) -> None:
    """Whether the reference is one that could be resolved. Raises ValueError, with a sentence for an admin."""
    source, name = parts(reference)
    if source not in _FORMS:
        raise ValueError(
            "a secret reference begins with secret://env/ or secret://file/, or with a secrets manager's"
            " secret://aws/, secret://vault/, secret://azure/ or secret://google/"
        )
    form, sentence = _FORMS[source]
    if not form.fullmatch(name) or "//" in name or "/../" in f"/{name}/":
        raise ValueError(sentence)


def check_owner(reference: str, tenant_id: str) -> None:
    """Whether a configuration of the tenant may hold the reference, by its name alone: the default tenant any, others
    those under their own name. Raises ValueError, with a sentence for an admin."""
    if tenant_id == _DEFAULT_TENANT:
        return
    source, name = parts(reference)
    path = name.partition("#")[0]
    if not _TENANT.fullmatch(tenant_id):
        raise ValueError("a tenant whose id is not of lower-case letters, digits and hyphens has no secrets")
    if source == "env":
        variable = tenant_id.upper().replace("-", "_")
        owner, _, rest = path.removeprefix("UPSTREAM_").rpartition("__")  # the last: an id may hold two hyphens
        if owner != variable or not rest:
            raise ValueError(
                f"a variable of the tenant {tenant_id} is called UPSTREAM_{variable}__ and a name without __"
            )
    elif source == "file":
        if not path.startswith(f"tenants/{tenant_id}/"):
            raise ValueError(f"a file of the tenant {tenant_id} stands below tenants/{tenant_id}/ in SECRETS_DIR")
    elif source not in _WITH_PATHS:
        raise ValueError("the names of this manager have no levels, so that only the default tenant may refer to it")
    elif not f"/{path}".partition("/tenants/")[2].startswith(f"{tenant_id}/"):
        raise ValueError(f"a name of the tenant {tenant_id} holds tenants/{tenant_id}/")


def parts(reference: str) -> tuple[str, str]:
    """Source and name; an empty source for what is no reference."""
    source, _, name = reference.removeprefix("secret://").partition("/")
    return (source, name) if reference.startswith("secret://") else ("", reference)


def references_in(text: str) -> Iterator[str]:
    """What looks like references in a text."""
    for found in _REFERENCE.finditer(text):
        yield found[0]


class SecretUnavailable(InternalFault):
    """503 ``dependency_unavailable``, which names no reference: clients need not know of them. ``reference`` is what
    could not be resolved, ``reason`` says why, ``str()`` both, for logs and admins; none holds any of the value."""

    def __init__(self, reference: str, reason: str) -> None:
        super().__init__("dependency_unavailable", _FOR_CLIENTS, retry_after_s=_RETRY_AFTER_S)
        self.reference = reference
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reference} cannot be resolved: {self.reason}"
