"""Tokens of others are judged by their issuer's rules, and by nothing that they say of themselves (RFC 8725)."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwe
from joserfc.jwk import OctKey, RSAKey

from access.policies import Access, ClaimRule
from access.tokens.identity import Identity
from access.tokens.judging import check_claims, check_form, identity_of, introspected_lifetime, lifetime
from access.tokens.keys import KeySet, UnknownKey, decrypted, decryption_key, published_keys, shared_key
from access.tokens.parsing import EncryptedToken, Refused, SignedToken, parse
from access.tokens.records import IssuerRecord
from access.tokens.requirements import Requirement, all_of
from access.tokens.revocations import Revocations
from core.faults import PolicyDenied
from core.policies import read
from tests.token_makers import (
    AUDIENCE,
    ISSUER,
    claims,
    jwks,
    octets_of,
    part,
    private_key,
    public_jwk,
    shared_token,
    token,
)
from tests.wires import issuer_wire

SECRET = b"a shared secret of 32 octets or more"
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


def issuer(**rules: Any) -> IssuerRecord:
    said = {"jwksUrl": f"{ISSUER}/jwks", "audiences": [AUDIENCE], "leewayS": 5, **rules}
    return IssuerRecord.from_wire(issuer_wire(issuer=ISSUER, rules=said))


def keys_of(record: IssuerRecord, document: Any = None) -> KeySet:
    return published_keys(document or jwks(*record.rules.algorithms), record.rules.algorithms)


def judged(sent: bytes, record: IssuerRecord | None = None, keys: KeySet | None = None) -> Identity:
    """What a worker does with a token, without the network."""
    record = record or issuer()
    parsed = parse(sent)
    assert isinstance(parsed, SignedToken)
    check_form(record, parsed)
    (keys_of(record) if keys is None else keys).verify(parsed)
    check_claims(record, parsed.claims)
    issued_at, expires_at = lifetime(record, parsed.claims, time.time())
    return identity_of(record, parsed.claims, "app_1", issued_at, expires_at)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_right_token_says_who_its_bearer_is(algorithm: str) -> None:
    said = claims(roles=["editor"], scope="orders:read orders:write", permissions=["ship"], jti="j1", sid="s1")
    identity = judged(token(said, algorithm), issuer(algorithms=[algorithm]))
    assert (identity.user, identity.subject, identity.application_id) == ("login:ada", "ada", "app_1")
    assert identity.roles == ("editor",)
    assert identity.permissions == {"ship"}
    assert identity.scopes == {"orders:read", "orders:write"}
    assert (identity.token_id, identity.session_id) == ("j1", "s1")
    assert identity.expires_at == said["exp"] + 5


def test_a_token_by_a_shared_secret_is_taken() -> None:
    record = issuer(algorithms=["HS256"], jwksUrl="", secret="secret://env/UPSTREAM_SECRET")
    assert judged(shared_token(SECRET), record, shared_key(SECRET, ["HS256"])).subject == "ada"
    with pytest.raises(ValueError, match="shorter"):
        shared_key(b"too short", ["HS256"])


# --- attacks -------------------------------------------------------------------------------------------------------
def confused() -> bytes:
    """Signed with HMAC under the issuer's public key, as if that were a shared secret."""
    pem = RSAKey.import_key(public_jwk()).as_pem(private=False)
    return shared_token(pem, kid="RS256-0")


def other_key() -> bytes:
    return token(key=private_key("RS256", 1))


def with_header(**members: Any) -> bytes:
    return token(header=members)


def unsigned(algorithm: str) -> bytes:
    return part({"alg": algorithm}) + b"." + part(claims()) + b"."


def padded_signature() -> bytes:
    return token() + b"=="


def loose_bits() -> bytes:
    """The same octets, spelled otherwise: the last character has bits that mean nothing."""
    head, _, signed = token().rpartition(b".")
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet[alphabet.index(signed[-1]) | 1]
    assert octets_of(signed[:-1] + bytes([last])) == octets_of(signed)
    return head + b"." + signed[:-1] + bytes([last])


def raw_claims(text: str) -> bytes:
    return token(text.encode())


def said(**changes: Any) -> bytes:
    return token(claims(**changes))


def now_plus(seconds: float) -> int:
    return int(time.time() + seconds)


def body_swapped() -> bytes:
    head, _, signed = token().split(b".")
    return b".".join((head, part(claims(sub="root")), signed))


ATTACKS: dict[str, Callable[[], bytes]] = {
    "alg none": lambda: unsigned("none"),
    "alg None in capitals": lambda: unsigned("NONE"),
    "alg none with a signature": lambda: with_header(alg="none"),
    "no alg": lambda: with_header(alg=None),
    "alg a number": lambda: with_header(alg=256),
    "HMAC under the public key": confused,
    "another algorithm of the same key": lambda: token(algorithm="PS256", key=private_key("RS256")),
    "an algorithm that the issuer does not use": lambda: token(algorithm="ES256"),
    "another key": other_key,
    "kid leads to a file": lambda: with_header(kid="../../../../dev/null"),
    "kid is SQL": lambda: with_header(kid="x' UNION SELECT 'secret"),
    "kid is a URL": lambda: with_header(kid="https://evil.example/jwks.json"),
    "kid is no text": lambda: with_header(kid=["RS256-0"]),
    "kid is very long": lambda: with_header(kid="x" * 501),
    "jku": lambda: with_header(jku="https://evil.example/jwks.json"),
    "x5u": lambda: with_header(x5u="https://evil.example/cert.pem"),
    "jwk": lambda: token(header={"jwk": public_jwk(which=1)}, key=private_key("RS256", 1)),
    "x5c": lambda: with_header(x5c=["MIIB"]),
    "crit": lambda: with_header(crit=["exp"], exp=now_plus(600)),
    "b64 false": lambda: with_header(b64=False, crit=["b64"]),
    "padded signature": padded_signature,
    "signature with loose bits": loose_bits,
    "no signature": lambda: token().rpartition(b".")[0] + b".",
    "truncated": lambda: token()[:-10],
    "two parts": lambda: token().rpartition(b".")[0],
    "four parts": lambda: token() + b".x",
    "another body": body_swapped,
    "body in plain base64": lambda: token().replace(b"-", b"+").replace(b"_", b"/") + b"+",
    "huge": lambda: said(filler="x" * 9000),
    "exp as a string": lambda: said(exp=str(now_plus(600))),
    "exp as a list": lambda: said(exp=[now_plus(600)]),
    "exp true": lambda: said(exp=True),
    "exp infinite": lambda: raw_claims(json.dumps(claims(exp=1)).replace('"exp": 1', '"exp": 1e999')),
    "exp NaN": lambda: raw_claims(json.dumps(claims(exp=1)).replace('"exp": 1', '"exp": NaN')),
    "exp null": lambda: raw_claims(json.dumps(claims() | {"exp": None})),
    "no exp": lambda: said(exp=None),
    "expired": lambda: said(exp=now_plus(-6)),
    "not yet valid": lambda: said(nbf=now_plus(30)),
    "nbf as a string": lambda: said(nbf=str(now_plus(-30))),
    "issued in the future": lambda: said(iat=now_plus(30)),
    "another audience": lambda: said(aud="billing"),
    "audiences without ours": lambda: said(aud=["billing", "mail"]),
    "an audience within another": lambda: said(aud="orders2"),
    "no audience": lambda: said(aud=None),
    "another issuer": lambda: said(iss="https://evil.example"),
    "the issuer with a slash": lambda: said(iss=ISSUER + "/"),
    "no subject": lambda: said(sub=None),
    "subject of control bytes": lambda: said(sub="ada\r\nx-role: admin"),
    "subject is no text": lambda: said(sub={"name": "ada"}),
    "half a surrogate": lambda: said(sub="\ud800"),
    "members twice": lambda: raw_claims(json.dumps(claims())[:-1] + ', "sub": "root"}'),
    "header members twice": lambda: part(b'{"alg":"RS256","alg":"none"}') + b"." + part(claims()) + b".",
    "claims are a list": lambda: raw_claims("[]"),
    "claims are deep": lambda: raw_claims('{"a":' + "[" * 2000 + "]" * 2000 + "}"),
    "claims are no UTF-8": lambda: token(b'{"sub":"\xff"}'),
    "empty": lambda: b"",
    "dots": lambda: b"..",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused(attack: str) -> None:
    sent = ATTACKS[attack]()
    with pytest.raises((Refused, UnknownKey)):
        judged(sent)


@pytest.mark.parametrize(
    "members",
    [{"use": "enc"}, {"key_ops": ["sign"]}, {"key_ops": []}, {"alg": "RS512"}, {"alg": "HS256"}, {"kty": "oct"}],
    ids=str,
)
def test_a_key_that_is_not_meant_for_it_verifies_nothing(members: dict[str, Any]) -> None:
    with pytest.raises((Refused, UnknownKey)):
        judged(token(), keys=published_keys({"keys": [public_jwk(**members)]}, ["RS256"]))


def test_a_short_rsa_key_verifies_nothing() -> None:
    short = rsa.generate_private_key(65537, 1024)
    modulus = part(short.public_key().public_numbers().n.to_bytes(128))
    document = {"keys": [{"kty": "RSA", "n": modulus.decode(), "e": "AQAB", "kid": "RS256-0"}]}
    signed = token().rpartition(b".")[0]
    sent = signed + b"." + part(short.sign(signed, PKCS1v15(), SHA256()))
    with pytest.raises((Refused, UnknownKey)):
        judged(sent, keys=published_keys(document, ["RS256"]))


@pytest.mark.parametrize(
    "members",
    [
        *({"kty": []}, {"kty": None}, {"n": 5}, {"n": "A" * 4000}, {"e": {}}, {"use": []}, {"key_ops": 7}, {"alg": []}),
        *({"kid": 3}, {"kty": "OKP", "crv": "Ed448"}, {"kty": "EC", "crv": "secp256k1"}, {"kty": "EC", "crv": []}),
    ],
    ids=str,
)
def test_a_key_that_is_none_is_left_out(members: dict[str, Any]) -> None:
    keys = published_keys({"keys": [public_jwk(**members), public_jwk("ES256")]}, ["RS256", "ES256"])
    assert len(keys) == 1


def test_a_set_with_a_private_or_shared_key_is_refused() -> None:
    for key in (private_key().as_dict(private=True), {"kty": "oct", "k": "c2VjcmV0"}):
        with pytest.raises(ValueError, match="private or shared"):
            published_keys({"keys": [key]}, ["RS256"])


def test_typ_and_age_count_where_the_rules_ask() -> None:
    access_tokens = issuer(typ="at+jwt")
    assert judged(token(header={"typ": "application/AT+JWT"}), access_tokens).subject == "ada"
    with pytest.raises(Refused):
        judged(token(), access_tokens)
    with pytest.raises(Refused):
        judged(said(iat=now_plus(-100)), issuer(maxAgeS=60))
    with pytest.raises(Refused):
        judged(said(iat=None), issuer(maxAgeS=60))


def test_the_clock_may_be_wrong_by_the_leeway() -> None:
    assert judged(said(exp=now_plus(-2), nbf=now_plus(3), iat=now_plus(3))).subject == "ada"


def test_an_expired_token_is_told_from_an_invalid_one() -> None:
    with pytest.raises(Refused) as refused:
        judged(said(exp=now_plus(-60)))
    assert refused.value.status == "expired"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_token_with_any_character_changed_is_taken(data: st.DataObject) -> None:
    record = issuer(algorithms=["ES256"])
    sent = bytearray(token(algorithm="ES256"))
    place = data.draw(st.integers(0, len(sent) - 1))
    sent[place] = data.draw(st.integers(0, 255).filter(lambda octet: octet != sent[place]))
    with pytest.raises((Refused, UnknownKey)):
        judged(bytes(sent), record)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_whatever_comes_is_refused_and_no_failure(octets: bytes) -> None:
    for sent in (octets, b".".join((part(octets), part(octets), part(octets))), token(octets)):
        with pytest.raises((Refused, UnknownKey)):
            judged(sent)


def test_a_token_without_kid_is_verified_by_the_keys_that_fit() -> None:
    document = {"keys": [public_jwk("ES256"), public_jwk("RS256", 1), public_jwk("RS256")]}
    assert judged(with_header(kid=None), keys=published_keys(document, ["RS256"])).subject == "ada"
    with pytest.raises(UnknownKey):
        judged(with_header(kid="another"), keys=published_keys(document, ["RS256"]))


# --- encrypted -----------------------------------------------------------------------------------------------------
KEY_TEXT = part(b"k" * 32)


def sealed(inside: bytes, algorithm: str = "dir", key: bytes = b"k" * 32, **header: Any) -> bytes:
    members = {"alg": algorithm, "enc": "A256GCM", "cty": "JWT", **header}
    names = [members["alg"], members["enc"], *([members["zip"]] if "zip" in members else [])]
    return jwe.encrypt_compact(members, inside, OctKey.import_key(key), algorithms=names).encode()


@pytest.mark.parametrize("algorithm", ["dir", "A256KW"])
def test_an_encrypted_token_is_opened_and_judged(algorithm: str) -> None:
    parsed = parse(sealed(token(), algorithm))
    assert isinstance(parsed, EncryptedToken)
    assert judged(decrypted(parsed, decryption_key(KEY_TEXT))).subject == "ada"


def test_what_cannot_be_opened_is_refused() -> None:
    parsed = parse(sealed(token(), key=b"x" * 32))
    assert isinstance(parsed, EncryptedToken)
    with pytest.raises(Refused):
        decrypted(parsed, decryption_key(KEY_TEXT))
    others = (
        sealed(token(), zip="DEF"),
        sealed(token(), "A128KW", b"k" * 16),
        sealed(token(), enc="A256CBC-HS512", key=b"k" * 64),
    )
    for sent in others:
        with pytest.raises(Refused):
            parse(sent)
    with pytest.raises(ValueError, match="32 octets"):
        decryption_key(part(b"k" * 16))


# --- claims --------------------------------------------------------------------------------------------------------
def test_claims_become_roles_scopes_and_headers_by_mapping() -> None:
    record = issuer(
        rolesClaim="realm_access.roles",
        scopeClaim="https://example.com/scp",
        roleMap={"ops": "operator", "staff": "operator"},
        headers=[{"claim": "email", "header": "X-User-Email"}, {"claim": "groups", "header": "X-Gateway-Groups"}],
    )
    said = claims(
        email="ada@example.com",
        groups=["a,b", "c%", 7, True],
        realm_access={"roles": ["ops", "staff", "unknown"]},
        **{"https://example.com/scp": ["orders:read"]},
    )
    identity = judged(token(said), record)
    assert identity.roles == ("operator",)
    assert identity.scopes == {"orders:read"}
    assert identity.upstream_lines == b"x-user-email: ada@example.com\r\nx-gateway-groups: a%2Cb,c%25,7,true\r\n"


def test_a_claim_that_could_end_its_line_is_refused() -> None:
    record = issuer(headers=[{"claim": "email", "header": "X-User-Email"}])
    with pytest.raises(Refused):
        judged(said(email="a@example.com\r\nx-role: admin"), record)


@pytest.mark.parametrize("name", ["Authorization", "X-Forwarded-For", "Host", "X-Gateway-Application", "Cookie"])
def test_no_claim_takes_the_place_of_a_field_that_the_gateway_needs(name: str) -> None:
    with pytest.raises(ValueError, match="needs it"):
        issuer(headers=[{"claim": "email", "header": name}])


@pytest.mark.parametrize(
    ("rule", "value", "is_met"),
    [
        ({"claim": "plan"}, "gold", True),
        ({"claim": "plan"}, None, False),
        ({"claim": "plan", "values": ["gold", "silver"]}, "gold", True),
        ({"claim": "plan", "values": ["gold"]}, "lead", False),
        ({"claim": "plan", "values": ["gold"]}, ["lead", "gold"], True),
        ({"claim": "plan", "values": [1]}, True, False),
        ({"claim": "plan", "values": [True]}, True, True),
    ],
    ids=str,
)
def test_the_issuers_rules_for_claims_hold(rule: dict[str, Any], value: Any, is_met: bool) -> None:
    record = issuer(claims=[rule])
    if is_met:
        assert judged(said(plan=value), record).subject == "ada"
    else:
        with pytest.raises(Refused):
            judged(said(plan=value), record)


def test_an_active_opaque_token_need_not_say_when_it_expires() -> None:
    now = time.time()
    assert introspected_lifetime(issuer(), {"active": True}, now) == (0.0, float("inf"))
    with pytest.raises(Refused):
        introspected_lifetime(issuer(), {"active": True, "exp": now - 60}, now)


# --- what routes ask for -------------------------------------------------------------------------------------------
def identity(**changes: Any) -> Identity:
    record = issuer()
    said = claims(scope="orders:read", roles=["editor"], plan="gold", **changes)
    return identity_of(record, said, "app_1", 0.0, time.time() + 60)


@pytest.mark.parametrize(
    ("policy", "key_scopes", "has_token", "code"),
    [
        ({}, (), False, ""),
        ({}, None, True, ""),
        ({"credentials": "token"}, (), False, "missing_credentials"),
        ({"credentials": "token"}, None, True, ""),
        ({"credentials": "key"}, None, True, "missing_credentials"),
        ({"credentials": "both"}, (), False, "missing_credentials"),
        ({"credentials": "both"}, None, True, "missing_credentials"),
        ({"credentials": "both"}, (), True, ""),
        ({"scopes": ["orders:read"]}, None, True, ""),
        ({"scopes": ["orders:write"]}, None, True, "insufficient_scope"),
        ({"scopes": ["orders:read"]}, ("orders:*",), False, ""),
        ({"scopes": ["orders:read"]}, ("orders:read",), False, ""),
        ({"scopes": ["orders:read"]}, (), False, "insufficient_scope"),
        ({"scopes": ["orders:write"], "credentials": "both"}, ("orders:write",), True, "insufficient_scope"),
        ({"roles": ["editor", "admin"]}, None, True, ""),
        ({"roles": ["admin"]}, None, True, "insufficient_role"),
        ({"roles": ["editor"]}, (), False, "insufficient_role"),
        ({"issuers": ["login"]}, None, True, ""),
        ({"issuers": ["other"]}, None, True, "insufficient_scope"),
        ({"issuers": ["other"]}, (), False, ""),
        ({"claims": [{"claim": "plan", "values": ["gold"]}]}, None, True, ""),
        ({"claims": [{"claim": "plan", "values": ["lead"]}]}, None, True, "insufficient_scope"),
        ({"claims": [{"claim": "plan"}]}, (), False, "insufficient_scope"),
    ],
    ids=str,
)
def test_a_route_gets_what_it_asks_for(
    policy: dict[str, Any], key_scopes: tuple[str, ...] | None, has_token: bool, code: str
) -> None:
    required = Requirement.of(read(Access, policy))
    user = identity() if has_token else None
    if not code:
        required.judge(key_scopes, user)
        return
    with pytest.raises(PolicyDenied) as denied:
        required.judge(key_scopes, user)
    assert denied.value.code == code


def test_a_challenge_names_the_scopes() -> None:
    with pytest.raises(PolicyDenied) as denied:
        Requirement.of(Access(scopes=("b", "a"))).judge((), None)
    ((_, challenge),) = denied.value.headers
    assert challenge == b'Bearer realm="portcullis", error="insufficient_scope", scope="a b"'


def test_several_requirements_must_all_be_met() -> None:
    both = all_of(
        [
            Requirement.of(Access(credentials="key", roles=("editor",))),
            Requirement.of(Access(credentials="token", roles=("admin",), claims=(ClaimRule(claim="plan"),))),
        ]
    )
    assert both is not None
    assert both.credentials == "both"
    with pytest.raises(PolicyDenied, match="admin"):
        both.judge((), identity())
    assert all_of([]) is None


# --- revocations ---------------------------------------------------------------------------------------------------
def own(**changes: Any) -> Identity:
    record = issuer()
    return identity_of(record, claims(**changes), "app_1", changes.get("iat", 100.0), time.time() + 60)


def test_a_session_a_token_or_a_user_can_be_revoked() -> None:
    revocations = Revocations()
    revocations.take(
        {
            "number": 3,
            "whole": True,
            "rows": [
                ["session", "s1", 0, 900],
                ["token", "j1", 0, 900],
                ["user", "ada", 200, 900],
                ["token", "", 0, 900],
            ],
        }
    )
    assert revocations.is_revoked(own(sub="bob", sid="s1"))
    assert revocations.is_revoked(own(sub="bob", jti="j1"))
    assert revocations.is_revoked(own(sub="ada", iat=199.9))
    assert not revocations.is_revoked(own(sub="ada", iat=200.0))
    assert not revocations.is_revoked(own(sub="bob", sid="s2", jti="j2"))
    revocations.take({"number": 4, "whole": False, "rows": [["session", "s2", 0, 900]]})
    assert revocations.is_revoked(own(sub="bob", sid="s2"))
    assert revocations.is_revoked(own(sub="bob", sid="s1"))
    assert revocations.number == 4


def test_revocations_are_forgotten_when_nothing_they_concern_can_live() -> None:
    revocations = Revocations()
    rows = [["session", f"s{number}", 0, 100 + number] for number in range(2000)]
    revocations.take({"number": 1, "whole": True, "rows": rows})
    revocations.forget(1100)
    assert len(revocations) == 999
    assert revocations.is_revoked(own(sid="s1999"))
