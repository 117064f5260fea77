"""References are resolved on the host, within bounds, and anew when a file has changed; no text tells a value."""

import os
from pathlib import Path

import pytest

from core.secret_references import LOOK_S, MAX_BYTES, SecretReferences, SecretUnavailable, check_reference


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def references(tmp_path: Path, clock: Clock) -> SecretReferences:
    (tmp_path / "secrets").mkdir()
    environment = {"UPSTREAM_TOKEN": "hush", "SECRET_KEY": "gateway's own", "UPSTREAM_EMPTY": ""}
    return SecretReferences(tmp_path / "secrets", environment=environment, now=clock)


def reason(references: SecretReferences, reference: str) -> str:
    with pytest.raises(SecretUnavailable) as caught:
        references.resolve(reference)
    fault = caught.value
    assert (fault.code, fault.status) == ("dependency_unavailable", 503)
    assert reference in str(fault) and "secret:" not in fault.detail
    return fault.reason


def test_a_variable_that_begins_with_upstream_is_resolved(references: SecretReferences) -> None:
    assert references.resolve("secret://env/UPSTREAM_TOKEN") == b"hush"
    assert references.problems == {}


@pytest.mark.parametrize(
    "reference",
    [
        "secret://env/SECRET_KEY",
        "secret://env/upstream_token",
        "secret://env/UPSTREAM_",
        "secret://env/UPSTREAM_TOKEN\n",
        "secret://env/XUPSTREAM_TOKEN",
        "secret://env/",
        "secret://vault/a",
        "secret://file/",
        "secret://file//etc/passwd",
        "secret://file/../own",
        "secret://file/a/../../own",
        "secret://file/.hidden",
        "secret://file/a/.",
        "secret://file/a//b",
        "secret://file/a\\b",
        "secret://file/%2e%2e/own",
        "secret://file/a\0b",
        "env/UPSTREAM_TOKEN",
        "https://example.com/",
        "",
    ],
)
def test_what_is_out_of_bounds_is_refused_when_written_and_when_resolved(
    references: SecretReferences, reference: str, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text("hush")
    with pytest.raises(ValueError):
        check_reference(reference)
    assert "hush" not in reason(references, reference)


def test_a_variable_that_is_not_set_or_empty_says_so(references: SecretReferences) -> None:
    assert reason(references, "secret://env/UPSTREAM_OTHER") == "the environment variable is not set"
    assert reason(references, "secret://env/UPSTREAM_EMPTY") == "the environment variable is not set"
    assert set(references.problems) == {"secret://env/UPSTREAM_OTHER", "secret://env/UPSTREAM_EMPTY"}


def test_a_file_is_taken_without_the_line_end_at_its_end(references: SecretReferences, tmp_path: Path) -> None:
    (tmp_path / "secrets/orders").mkdir()
    (tmp_path / "secrets/orders/token").write_bytes(b"two\nlines \r\n")
    assert references.resolve("secret://file/orders/token") == b"two\nlines "


def test_a_changed_file_is_read_again_and_looked_at_seldom(
    references: SecretReferences, tmp_path: Path, clock: Clock
) -> None:
    file = tmp_path / "secrets/token"
    file.write_text("first")
    assert references.resolve("secret://file/token") == b"first"
    replacement = tmp_path / "secrets/token.new"
    replacement.write_text("other")
    replacement.replace(file)
    clock.at += LOOK_S / 2
    assert references.resolve("secret://file/token") == b"first"
    clock.at += LOOK_S
    assert references.resolve("secret://file/token") == b"other"


def test_a_file_that_goes_is_gone_and_one_that_comes_is_there(
    references: SecretReferences, tmp_path: Path, clock: Clock
) -> None:
    file = tmp_path / "secrets/token"
    assert reason(references, "secret://file/token") == "the file cannot be read (No such file or directory)"
    file.write_text("here")
    clock.at += LOOK_S
    assert references.resolve("secret://file/token") == b"here"
    assert references.problems == {}
    file.unlink()
    clock.at += LOOK_S
    assert "No such file" in reason(references, "secret://file/token")


def test_links_are_followed_within_the_directory_as_kubernetes_lays_them(
    references: SecretReferences, tmp_path: Path, clock: Clock
) -> None:
    secrets = tmp_path / "secrets"
    for day, value in (("..monday", "old"), ("..tuesday", "new")):
        (secrets / day).mkdir()
        (secrets / day / "token").write_text(value)
    (secrets / "..data").symlink_to("..monday")
    (secrets / "token").symlink_to("..data/token")
    assert references.resolve("secret://file/token") == b"old"
    (secrets / "..data_tmp").symlink_to("..tuesday")
    (secrets / "..data_tmp").replace(secrets / "..data")
    clock.at += LOOK_S
    assert references.resolve("secret://file/token") == b"new"


def test_a_link_out_of_the_directory_is_refused(references: SecretReferences, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("hush")
    (tmp_path / "secrets/token").symlink_to(tmp_path / "own")
    assert reason(references, "secret://file/token") == "the file is a link that leads out of SECRETS_DIR"


def test_a_file_with_a_setting_of_the_gateway_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret_key").write_text("hush")
    (tmp_path / "alias").symlink_to("secret_key")
    references = SecretReferences(tmp_path, [tmp_path / "secret_key"])
    for name in ("secret_key", "alias"):
        assert reason(references, f"secret://file/{name}") == "the file holds a setting of the gateway itself"


def test_what_is_no_plain_small_file_is_refused(references: SecretReferences, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "secrets/pipe")
    (tmp_path / "secrets/folder").mkdir()
    (tmp_path / "secrets/large").write_bytes(b"x" * (MAX_BYTES + 1))
    (tmp_path / "secrets/blank").write_text("\n")
    assert reason(references, "secret://file/pipe") == "it is not a file"
    assert reason(references, "secret://file/folder") == "the file cannot be read (Is a directory)"
    assert reason(references, "secret://file/large") == f"the file is over the limit of {MAX_BYTES} bytes"
    assert reason(references, "secret://file/blank") == "it is empty"


def test_what_the_configuration_no_longer_has_is_forgotten(references: SecretReferences) -> None:
    references.resolve("secret://env/UPSTREAM_TOKEN")
    reason(references, "secret://env/UPSTREAM_OTHER")
    references.forget({"secret://env/UPSTREAM_TOKEN"})
    assert references.problems == {}
