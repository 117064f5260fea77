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
