"""Fetch the panel's third-party assets from the npm registry, with `npm pack`, and write their manifest.

    python deploy/vendor_assets.py           # fetch anew and write files and manifest
    python deploy/vendor_assets.py --check   # compare the files in the tree with the manifest, without any network

Versions are pinned here. What is taken: whole files, without their ``sourceMappingURL`` comment (the manifest storage
of static files would look for the map), and one sprite of those icons that the templates use.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STATIC = "admin_panel/static/vendor"
MANIFEST = ROOT / STATIC / "manifest.json"
SPRITE = f"{STATIC}/tabler-icons/sprite.svg"
_SOURCE_MAP = re.compile(rb"\n?/[/*]# sourceMappingURL=[^\n*]*(?:\*/)?\n?")
_ICON_TAG = re.compile(r"""\{%\s*icon\s+"([a-z0-9-]+)"|icon="([a-z0-9-]+)\"""")


@dataclass(frozen=True)
class Package:
    """One npm package. ``files`` maps paths in the package to paths in this tree."""

    name: str
    version: str
    files: Mapping[str, str] = field(default_factory=dict)
    tests_only: bool = False


PACKAGES = (
    Package(
        "@tabler/core",
        "1.6.1",
        {
            "dist/css/tabler.min.css": f"{STATIC}/tabler/tabler.min.css",
            "dist/js/tabler.min.js": f"{STATIC}/tabler/tabler.min.js",
            "dist/js/tabler-theme.min.js": f"{STATIC}/tabler/tabler-theme.min.js",
        },
    ),
    Package("@tabler/icons", "3.51.0"),
    Package(
        "@fontsource-variable/inter",
        "5.3.0",
        {"files/inter-latin-wght-normal.woff2": f"{STATIC}/fonts/inter-latin-wght-normal.woff2"},
    ),
    Package(
        "@fontsource-variable/jetbrains-mono",
        "5.3.0",
        {"files/jetbrains-mono-latin-wght-normal.woff2": f"{STATIC}/fonts/jetbrains-mono-latin-wght-normal.woff2"},
    ),
    Package("axe-core", "4.14.1", {"axe.min.js": "tests/browser/vendor/axe.min.js"}, tests_only=True),
)


def used_icons() -> list[str]:
    """Names of the icons that templates and template tags ask for."""
    sources = [*ROOT.glob("templates/**/*.html"), *ROOT.glob("admin_panel/**/*.py")]
    found = {name for source in sources for pair in _ICON_TAG.findall(source.read_text()) for name in pair if name}
    return sorted(found)


def fetch(package: Package, into: Path) -> tarfile.TarFile:
    command = ["npm", "pack", "--silent", "--pack-destination", str(into), f"{package.name}@{package.version}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return tarfile.open(into / done.stdout.strip().splitlines()[-1])


def member(archive: tarfile.TarFile, path: str) -> bytes:
    file = archive.extractfile(f"package/{path}")
    if file is None:
        raise SystemExit(f"{path} is no file in the package")
    return file.read()


def without_source_map(path: str, content: bytes) -> bytes:
    return _SOURCE_MAP.sub(b"\n", content) if path.endswith((".js", ".css")) else content


def sprite(archive: tarfile.TarFile, names: list[str]) -> bytes:
    """One SVG with a ``<symbol>`` for each icon, drawn in the colour of the text around it."""
    symbols = []
    for name in names:
        drawing = member(archive, f"icons/outline/{name}.svg").decode()
        shapes = re.sub(r"\s+", " ", drawing[drawing.index(">", drawing.index("<svg")) + 1 : drawing.rindex("</svg>")])
        symbols.append(f'<symbol id="{name}" viewBox="0 0 24 24">{shapes.strip()}</symbol>')
    return ('<svg xmlns="http://www.w3.org/2000/svg">\n' + "\n".join(symbols) + "\n</svg>\n").encode()


def vendor() -> None:
    entries: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for package in PACKAGES:
            archive = fetch(package, Path(scratch))
            contents = {
                target: without_source_map(target, member(archive, path)) for path, target in package.files.items()
            }
            if package.name == "@tabler/icons":
                contents[SPRITE] = sprite(archive, used_icons())
            licence = json.loads(member(archive, "package.json"))["license"]
            entries.append(
                {
                    "name": package.name,
                    "version": package.version,
                    "licence": licence,
                    "tests_only": package.tests_only,
                    "files": {target: hashlib.sha256(content).hexdigest() for target, content in contents.items()},
                }
            )
            for target, content in contents.items():
                (ROOT / target).parent.mkdir(parents=True, exist_ok=True)
                (ROOT / target).write_bytes(content)
    MANIFEST.write_text(json.dumps({"packages": entries}, indent=2) + "\n")


def problems() -> list[str]:
    """What in the tree differs from the manifest, one sentence each."""
    found = []
    for entry in json.loads(MANIFEST.read_text())["packages"]:
        for target, expected in entry["files"].items():
            path = ROOT / target
            if not path.is_file():
                found.append(f"{target} is missing.")
            elif hashlib.sha256(path.read_bytes()).hexdigest() != expected:
                found.append(f"{target} differs from {entry['name']} {entry['version']} as vendored.")
    symbols = set(re.findall(r'<symbol id="([^"]+)"', (ROOT / SPRITE).read_text()))
    lacking = [name for name in used_icons() if name not in symbols]
    return found + [f"The sprite lacks the icon {name}; run deploy/vendor_assets.py." for name in lacking]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the tree with the manifest and fetch nothing")
    if not parser.parse_args().check:
        vendor()
    found = problems()
    print("\n".join(found) or "The vendored assets are as the manifest has them.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
