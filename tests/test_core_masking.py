"""What logs and audit details must not hold is masked (A22), and nothing else."""

import io
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import masking
from core.masking import CLASSES, Masker, is_card_number
from keys.credential import generate

MASKER = Masker()
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1c2VyIn0.c2lnbmF0dXJl-_x"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        pytest.param("/k/km_0123456789" + "a" * 38, "/k/km_0123456789***", id="a key"),
        pytest.param(f"token {JWT}, then", "token eyJ***, then", id="a JWT"),
        pytest.param(f"/cb/{JWT}/x", "/cb/eyJ***/x", id="a JWT in a path"),
        pytest.param("Authorization: Bearer opaque-token-1", "Authorization: Bearer ***", id="a bearer"),
        pytest.param("authorization: BASIC dXNlcjpwYXNz", "authorization: BASIC ***", id="a password"),
        pytest.param("rt_" + "x" * 40, "rt_***", id="a refresh token"),
        pytest.param("prt_" + "x" * 40, "prt_***", id="a registration token"),
        pytest.param("redis://user:hush@cache:6379/0", "redis://***@cache:6379/0", id="a password in a URL"),
        pytest.param("Cookie: sid=1; b=2", "Cookie: ***", id="a cookie"),
        pytest.param("{'Set-Cookie': 'sid=1; Path=/'}", "{'Set-Cookie': '***'}", id="a cookie in a dictionary"),
        pytest.param("/users/ann.lee%2Bx%40mail.example.com/", "/users/***@***/", id="an encoded address"),
        pytest.param("<ann@example.org>", "<***@***>", id="an e-mail address"),
        pytest.param("card 4111 1111 1111 1111.", "card ***.", id="a card"),
        pytest.param("/pay/4111-1111-1111-1111/x", "/pay/***/x", id="a card in a path"),
        pytest.param("/pay/378282246310005", "/pay/***", id="a card of 15 digits"),
        pytest.param("/cb/token%3DeyJhbGciOi.x.y", "/cb/token%3DeyJ***", id="a token behind an encoded character"),
        pytest.param("/x/%20Bearer%20opaque-token-1", "/x/%20Bearer%20***", id="an encoded bearer"),
        pytest.param("/x/%22rt_" + "x" * 40 + "%22", "/x/%22rt_***%22", id="an encoded refresh token"),
        pytest.param("/pay/n%3D4111%2D1111%2D1111%2D1111", "/pay/n%3D***", id="an encoded card"),
    ],
)
def test_what_is_secret_or_personal_is_masked(text: str, masked: str) -> None:
    assert MASKER.mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "/api/v1/orders/4111111111111112",
        "/at/1700000000000/2024-11-20T10:00:00Z",
        "0.4111111111111111",
        "req_4111111111111111",
        'Bearer realm="portcullis"',
        "https://example.com/a@b",
        "key_01hzx and km_short",
        "/api/v1/orders/7",
        "the cookie policy",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert MASKER.mask(text) == text


@given(st.text(max_size=300))
def test_masking_twice_is_masking_once(text: str) -> None:
    once = MASKER.mask(text)
    assert MASKER.mask(once) == once


@given(st.text(alphabet="ab /.:=", max_size=20), st.text(alphabet="ab /.:=", max_size=20))
def test_no_key_survives_wherever_it_stands(before: str, after: str) -> None:
    key = generate("km_").key
    assert key not in MASKER.mask(f"{before} {key} {after}")


@given(st.integers(0, 10**15 - 1))
def test_one_check_digit_in_ten_makes_a_card_number(number: int) -> None:
    assert sum(is_card_number(f"{number:015}{last}".encode()) for last in range(10)) == 1


_SECRETS = (
    *(
        "km_0123456789abcdef",
        "7key0123456789abcdef",
        JWT,
        "Bearer opaque-token",
        "Bearer%20opaque-token",
        "rt_" + "x" * 20,
    ),
    *("redis://u:hush@cache", "Cookie: sid=1", "ann@example.org", "ann%40example.org", "4111111111111111"),
    *("4111-1111-1111-1111", "4111%201111%2d1111 1111", "378282246310005", "4111111111111112", "order-77"),
)
_MASKERS = (
    MASKER,
    *(Masker((each,)) for each in CLASSES),
    Masker(),
    Masker((), patterns=(r"order-\d+|7",)),
    Masker(()),
)


@pytest.mark.parametrize(
    "masker", [*_MASKERS, Masker(key_prefix="7key"), Masker(key_prefix="77"), Masker(key_prefix="")]
)
@given(st.lists(st.one_of(st.sampled_from((*_SECRETS, "/", "7", "\n", "x", ".")), st.text(max_size=4)), max_size=5))
def test_octets_are_masked_as_texts_are(masker: Masker, pieces: list[str]) -> None:
    data = "".join(pieces).encode("latin-1", "replace")
    assert masker.mask_octets(data) == masker.mask(data.decode("latin-1")).encode("latin-1", "replace")


def test_the_operator_says_what_is_masked() -> None:
    text = f"ann@example.org {JWT} 4111111111111111 order-77"
    assert Masker(("cards",)).mask(text) == f"ann@example.org {JWT} *** order-77"
    assert Masker((), patterns=(r"order-\d+",)).mask(text).endswith("***")
    assert Masker(()).mask(text) == text
    with pytest.raises(ValueError, match="no RE2 expression"):
        Masker(CLASSES, patterns=("(",))


@pytest.fixture
def own_factory() -> Iterator[None]:
    factory, installed = logging.getLogRecordFactory(), masking._installed
    yield
    logging.setLogRecordFactory(factory)
    masking._installed = installed


def test_every_logger_masks_messages_arguments_and_traces(own_factory: None) -> None:
    masking.install(Masker())
    written = io.StringIO()
    logger = logging.getLogger("somebody.elses")
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    try:
        logger.error("refused %s from %s", JWT, "ann@example.org")
        logger.error("kept %d%%", 5)
        try:
            raise RuntimeError(f"Bearer {JWT}")
        except RuntimeError:
            logger.exception("it failed")
    finally:
        logger.removeHandler(handler)
    text = written.getvalue()
    assert "refused eyJ*** from ***@***" in text
    assert "kept 5%" in text
    assert "RuntimeError: Bearer eyJ***" in text
    assert JWT not in text
