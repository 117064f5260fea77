"""What a run says: bars with their figures, and the file that keeps them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import machine

TIMES = "\N{MULTIPLICATION SIGN}"
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure must not be above. ``aim`` is what we would like."""

    name: str
    figure: float
    limit: float
    unit: str
    aim: float | None = None

    @property
    def is_met(self) -> bool:
        return self.figure <= self.limit

    def line(self) -> str:
        verdict = "met" if self.is_met else "not met"
        aim = f", aim {self.aim:g}" if self.aim is not None else ""
        return f"  {verdict:8} {self.figure:8.2f} {self.unit:3}  bar {self.limit:g}{aim}: {self.name}"


def say(text: str = "") -> None:
    print(text, flush=True)


def table(titles: Sequence[str], rows: Iterable[Sequence[str | float]]) -> str:
    """Names to the left, figures with two decimals to the right."""
    cells = [list(titles), *([f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        figures = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join((first.ljust(widths[0]), *figures)))
    return "\n".join(lines)


def report(kind: str, results: dict[str, Any], bars: Iterable[Bar]) -> None:
    """Print the bars, and keep all of it as ``results/<kind>.json``, in place of the run before."""
    bars = list(bars)
    say()
    for bar in bars:
        say(bar.line())
    document = {
        "kind": kind,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "machine": machine.description(),
        "results": results,
        "bars": [{**asdict(bar), "figure": round(bar.figure, 4), "met": bar.is_met} for bar in bars],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{kind}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=2) + "\n")
    temporary.replace(path)
    say(f"  kept in {path.relative_to(machine.ROOT)}")


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=machine.ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
