"""Nobody comes in by an identity provider unless a rule says so."""

from typing import Any

import pytest

from access.single_sign_on import AdmissionRules, admitted_roles, claim_values, parse_roles

RULES = AdmissionRules(
    {"gateway-admins": ("admin",), "ops": ("operator", "viewer")}, frozenset({"example.com"}), ("viewer",)
)


@pytest.mark.parametrize(
    ("email", "values", "roles"),
    [
        pytest.param("eve@elsewhere.org", [], (), id="a stranger"),
        pytest.param("", [], (), id="an address that is not verified"),
        pytest.param("example.com", ["x"], ("viewer",), id="only the domain counts"),
        pytest.param("ann@example.com", [], ("viewer",), id="an address of the domain"),
        pytest.param("ann@EXAMPLE.com", [], ("viewer",), id="domains have no case"),
        pytest.param("ann@sub.example.com", [], (), id="a domain below is another"),
        pytest.param("ann@notexample.com", [], (), id="a domain that ends alike"),
        pytest.param("", ["gateway-admins"], ("admin",), id="a group needs no address"),
        pytest.param("ann@example.com", ["ops", "gateway-admins"], ("operator", "viewer", "admin"), id="groups add up"),
        pytest.param("ann@elsewhere.org", ["Ops"], (), id="groups have a case"),
    ],
)
def test_who_comes_in_as_what(email: str, values: list[str], roles: tuple[str, ...]) -> None:
    assert admitted_roles(email, values, RULES) == roles


def test_without_rules_nobody_comes_in() -> None:
    assert admitted_roles("ann@example.com", ["gateway-admins"], AdmissionRules()) == ()


@pytest.mark.parametrize(
    ("claims", "path", "values"),
    [
        ({"groups": ["a", "b", 3, None]}, "groups", ("a", "b")),
        ({"role": "a"}, "role", ("a",)),
        ({"realm_access": {"roles": ["a"]}}, "realm_access.roles", ("a",)),
        ({"https://x.example/roles": ["a"]}, "https://x.example/roles", ("a",)),
        ({"groups": {"a": 1}}, "groups", ()),
        ({}, "groups", ()),
        ({"groups": "x"}, "groups.inner", ()),
    ],
)
def test_a_claim_is_read_by_name_or_by_path(claims: dict[str, Any], path: str, values: tuple[str, ...]) -> None:
    assert claim_values(claims, path) == values


def test_the_mapping_is_read_from_one_line_and_a_mistake_is_named() -> None:
    assert parse_roles("a=admin, cn=ops,dc=x=viewer+operator, a=viewer, ") == {
        "a": ("admin", "viewer"),
        "dc=x": ("viewer", "operator"),
    } | {"cn": ("ops",)}
    assert parse_roles(
        '"cn=ops,dc=x"=viewer+operator,"say ""hi"""= admin , " a "=viewer, plain=admin, 5" nails=viewer'
    ) == {
        "cn=ops,dc=x": ("viewer", "operator"),
        'say "hi"': ("admin",),
        " a ": ("viewer",),
        "plain": ("admin",),
        '5" nails': ("viewer",),
    }
    for wrong in ("admin", "=admin", "a=", "a=b+", "a=b c", '"a,b', '"a,b=viewer', '""=viewer', '"a,b" c=viewer'):
        with pytest.raises(ValueError, match="is not of the form"):
            parse_roles(wrong)
