"""The form of API keys."""

import hashlib
import hmac
import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys.credential import KEY_PATTERN, Digester, generate, is_well_formed, lookup_id

PREFIXES = st.sampled_from(["km_", "", "acme-live_"])


@given(PREFIXES)
def test_a_new_key_is_well_formed_and_found_by_its_lookup_id(prefix: str) -> None:
    credential = generate(prefix)
    assert credential.key.startswith(prefix)
    assert len(credential.key) == len(prefix) + 48
    assert is_well_formed(credential.key.encode(), prefix.encode())
    assert lookup_id(credential.key) == credential.lookup_id == credential.key[len(prefix) :][:10]


def test_secret_scanners_find_a_key_by_the_published_pattern() -> None:
    key = generate("km_").key
    assert re.findall(KEY_PATTERN, f'API_KEY="{key}" # not km_short') == [key]


def test_keys_are_drawn_evenly_from_the_whole_alphabet() -> None:
    counts = Counter(character for _ in range(300) for character in generate("").key[:42])
    assert set(counts) == set(string.ascii_letters + string.digits)
    expected = 300 * 42 / 62
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 150  # 61 degrees of freedom: beyond by chance once in 10**9 runs


def test_no_two_keys_are_alike() -> None:
    assert len({generate("km_").lookup_id for _ in range(1000)}) == 1000


KEY = generate("km_").key


@given(st.integers(0, len(KEY) - 1), st.characters(codec="latin-1"))
def test_one_wrong_character_is_always_detected(position: int, character: str) -> None:
    corrupted = KEY[:position] + character + KEY[position + 1 :]
    assert is_well_formed(corrupted.encode("latin-1"), b"km_") == (corrupted == KEY)


@given(st.integers(0, len(KEY) - 2))
def test_neighbours_swapped_are_always_detected(position: int) -> None:
    swapped = KEY[:position] + KEY[position + 1] + KEY[position] + KEY[position + 2 :]
    assert is_well_formed(swapped.encode(), b"km_") == (swapped == KEY)


@pytest.mark.parametrize(
    "text",
    ["", "km_", KEY[:-1], KEY + "0", KEY[3:], KEY.swapcase(), "xx_" + KEY[3:], KEY + "\n"],
    ids=["nothing", "a prefix", "cut", "longer", "no prefix", "other case", "another prefix", "a line"],
)
def test_what_is_no_key_is_not_well_formed(text: str) -> None:
    assert not is_well_formed(text.encode(), b"km_")


@given(st.binary(max_size=60))
def test_any_bytes_may_be_asked_about(text: bytes) -> None:
    assert not is_well_formed(text, b"km_")


def test_the_form_is_stable() -> None:
    """Keys handed out once must stay valid for ever."""
    assert is_well_formed(b"km_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef4CaIvC", b"km_")


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_the_digest_is_hmac_sha_256(pepper: bytes, key: bytes) -> None:
    assert Digester(pepper)(key) == hmac.digest(pepper, key, hashlib.sha256)


def test_a_digester_serves_many_keys() -> None:
    digest = Digester(b"pepper")
    assert digest(b"a") == digest(b"a") != digest(b"b")
