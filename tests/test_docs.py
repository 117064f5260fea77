"""What the documents say agrees with the source: links, paths, settings, errors, keys, metrics, rules."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from core.faults import KINDS
from gateway_project.management.commands.demo import curl_lines
from gateway_project.processes import ROOT
from keys.credential import KEY_PATTERN, generate

README = ROOT / "README.md"
DOCS = ROOT / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
SOURCE_FOLDERS = ("access", "admin_panel", "core", "deploy", "gateway_project", "keys", "queues", "routing")
BESIDE_THE_GATEWAY = "## Beside the gateway"  # what follows in docs/settings.md is read by make and the demo

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|sh|lock|png|yml|txt))`")


def prose(document: Path) -> str:
    """The text without what stands in fences: code is not to be read as Markdown."""
    return _FENCE.sub("", document.read_text())


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, punctuation gone, spaces to hyphens."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]


def section(document: Path, title: str) -> str:
    after = document.read_text().split(f"\n## {title}\n")[1]
    return after.split("\n## ")[0]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"`([A-Z][A-Z0-9_]{2,})`", text))


def source_files() -> list[Path]:
    return [path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*.py")]


# --- links and paths -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in _LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_is_named_exists(document: Path) -> None:
    missing = [path for path in _PATH.findall(document.read_text()) if not (ROOT / path).exists()]
    assert not missing


def test_the_index_names_every_document() -> None:
    linked = set(_LINK.findall((DOCS / "README.md").read_text()))
    assert {path.name for path in DOCS.glob("*.md")} - {"README.md"} <= linked


def test_comments_refer_to_decisions_and_rules_that_exist() -> None:
    text = "\n".join(path.read_text() for path in [*source_files(), *(ROOT / "tests").rglob("*.py")])
    decisions = {path.name[:4] for path in (DOCS / "adr").glob("0*.md")}
    assert set(re.findall(r"docs/adr/(\d{4})", text)) <= decisions
    rules = set(re.findall(r"^(\d+)\. ", (DOCS / "rules.md").read_text(), re.MULTILINE))
    referred = {number for group in re.findall(r"\brules? (\d+(?:(?:, | and )\d+)*)", text) for number in group.split()}
    assert {number.strip(",") for number in referred} - {"and"} <= rules


# --- settings ------------------------------------------------------------------------------------------------------
def settings_read() -> set[str]:
    """The names that gateway_project's settings read from the environment."""
    files = ("settings.py", "identity_settings.py")
    calls = [each for file in files for each in ast.walk(ast.parse((ROOT / "gateway_project" / file).read_text()))]
    return {
        str(argument.value)
        for call in calls
        if isinstance(call, ast.Call) and re.match(r"env\.|_name$|_domains$|_either_url$", ast.unparse(call.func))
        for argument in call.args[: 2 if ast.unparse(call.func) == "_either_url" else 1]
        if isinstance(argument, ast.Constant) and re.fullmatch(r"[A-Z][A-Z0-9_]{2,}", str(argument.value))
    }


def test_every_setting_is_documented_and_every_documented_one_is_read() -> None:
    documented = (DOCS / "settings.md").read_text().split(BESIDE_THE_GATEWAY)[0]
    table = {name for row in rows(documented) for name in names_in(row[0])}
    assert table == settings_read() - {"PORTCULLIS_TESTING", "TEST_DATABASE_NAME"}
    assert {name for row in rows(section(README, "Settings")) for name in names_in(row[0])} <= table


def test_documented_defaults_are_those_of_the_source() -> None:
    source = (ROOT / "gateway_project/settings.py").read_text()
    numbers = re.findall(r'env\.number\("(\w+)", ([\d_ *]+),', source)
    defaults = {name: eval(value) for name, value in numbers}
    assert defaults
    documented = {row[0].strip("`"): row[1] for row in rows((DOCS / "settings.md").read_text())}
    assert {name: documented[name] for name in defaults} == {name: str(value) for name, value in defaults.items()}


def test_what_is_beside_the_gateway_is_read_somewhere() -> None:
    table = (DOCS / "settings.md").read_text().split(BESIDE_THE_GATEWAY)[1]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in tracked.stdout.splitlines() if name.endswith((".py", ".sh"))]
    source = "\n".join(path.read_text() for path in files if path.exists())
    unread = {name for row in rows(table) for name in names_in(row[0]) if name not in source}
    assert unread <= {"SSL_CERT_FILE", "SSL_CERT_DIR"}  # OpenSSL reads these


# --- errors, keys, metrics -----------------------------------------------------------------------------------------
def test_every_error_code_is_documented_with_its_status() -> None:
    codes = {code: str(kind.status) for code, kind in KINDS.items()}
    documented = {row[0].strip("`"): row[1] for row in rows((DOCS / "errors.md").read_text()) if row[0][:1] == "`"}
    assert documented == codes
    overview = {code: row[0] for row in rows(section(README, "Errors")) for code in re.findall(r"`(\w+)`", row[1])}
    assert overview == codes


@pytest.mark.parametrize("document", [README, DOCS / "keys.md"], ids=["README.md", "docs/keys.md"])
def test_the_published_expression_finds_keys(document: Path) -> None:
    assert f"\n```\n{KEY_PATTERN}\n```\n" in document.read_text()
    assert re.search(KEY_PATTERN, f'"apiKey": "{generate("km_").key}"')


def test_every_metric_is_documented() -> None:
    source = "\n".join(path.read_text() for path in source_files())
    metrics = set(re.findall(r'"((?:api_gateway|portcullis)_[a-z_]+)"', source)) - {"portcullis_config"}
    metrics -= {"portcullis_session", "portcullis_csrf", "portcullis_device"}  # the panel's cookies
    documented = set(re.findall(r"`([a-z_]+)`", section(DOCS / "operations.md", "Metrics")))
    assert metrics
    assert metrics <= documented


def test_every_field_of_the_access_log_is_shown() -> None:
    source = (ROOT / "gateway_project/dataplane/access_log.py").read_text()
    shown = section(DOCS / "operations.md", "Access log")
    assert all(f'"{name}":' in shown for name in re.findall(r'"(\w+)":', source))


def test_the_five_requests_are_those_of_make_run() -> None:
    urls = re.compile(r"http://\S+")
    printed = [url for line in curl_lines("http://127.0.0.1:4200", "km_x") for url in urls.findall(line)]
    shown = urls.findall(section(README, "Five requests"))
    assert shown[: len(printed)] == printed
