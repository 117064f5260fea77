"""docs/permissions.md: which role may use which endpoint, written from `gateway_project.endpoints`."""

from collections.abc import Iterable, Sequence

from access.administration.builtin import BUILTIN_ROLES
from core.permissions import ACTIONS, RESOURCES
from gateway_project.endpoints import Endpoint, endpoints

_HEAD = """# Who may do what

`manage.py permissions` writes this page from the program itself, and a test holds it to that. How roles, administrators
and their keys are kept stands in [administrators](administrators.md).

A permission is `admin:<resource>:<action>`; `admin:keys:*` is every action on keys, `admin:*` everything. A caller has
the permissions of all roles of their account together; an admin key has those of its scopes that its user has as well,
at the moment of the request. Without the permission the answer is 403 `insufficient_scope`; without a valid credential
it is 401 (in the panel: the sign-in page); another tenant's object is 404, as one that does not exist.

## Resources
"""
_COLUMNS = ("Permission", *BUILTIN_ROLES)
_ALL = "the installation's: administrators of the default tenant alone"


def permissions_page() -> str:
    found = endpoints()
    api = [endpoint for endpoint in found if not endpoint.is_page and not endpoint.open_to]
    pages = [endpoint for endpoint in found if endpoint.is_page and not endpoint.open_to and endpoint.method == "GET"]
    parts = [
        _HEAD,
        _table(("Resource", "What", *ACTIONS), _resources()),
        "\n## REST\n\nOwn roles do what their permissions say; `●` marks what the built-in roles may.\n",
        _table(
            ("Endpoint", "Permission", *BUILTIN_ROLES), [_row(each, f"`{each.method} {each.path}`") for each in api]
        ),
        "\n## Panel\n\nA page and what is done on it. What one may not open is not offered either.\n",
        _table(("Page", *_COLUMNS), [_row(each, f"`{each.path}`") for each in pages]),
        "\n## Without a permission\n",
        _table(("Endpoint", "Open to"), _open(found)),
    ]
    return "\n".join(parts)


def _resources() -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for name, resource in sorted(RESOURCES.items()):
        purpose = resource.purpose + (f" ({_ALL})" if resource.of_all else "")
        rows.append((f"`{name}`", purpose, *("●" if action in resource.actions else "" for action in ACTIONS)))
    return rows


def _row(endpoint: Endpoint, name: str) -> Sequence[str]:
    marks = ("●" if endpoint.allows(permissions) else "" for _, permissions in BUILTIN_ROLES.values())
    needed = ", ".join(f"`{permission}`" for permission in endpoint.permissions) or "any administrator"
    return (name, needed, *marks)


def _open(found: Iterable[Endpoint]) -> list[Sequence[str]]:
    by_path: dict[str, tuple[list[str], str]] = {}
    for endpoint in found:
        if endpoint.open_to:
            by_path.setdefault(endpoint.path, ([], endpoint.open_to))[0].append(endpoint.method)
    return [(f"`{' '.join(methods)} {path}`", open_to) for path, (methods, open_to) in by_path.items()]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
