"""The panel's files, collected and compressed once and again when one has changed."""

import fcntl
import io
from pathlib import Path

from django.conf import settings
from django.contrib.staticfiles.finders import get_finders
from django.core.management import call_command

from gateway_project.supervisor import say


def collect_if_stale() -> None:
    """Run ``collectstatic`` unless what stands in STATIC_ROOT is newer than every source file. Several gateways may
    share one source tree, so they take turns. Without these files the gateway serves, but the panel does not."""
    root = Path(settings.STATIC_ROOT)
    if not _is_stale(root / "staticfiles.json"):  # an image brings them along, and may not let us write there
        return
    try:
        _collect_if_stale(root)
    except (OSError, ValueError) as error:
        say(f"the panel's files cannot be collected in {settings.STATIC_ROOT}: {str(error).splitlines()[0]}")


def _collect_if_stale(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_stale(root / "staticfiles.json"):
            call_command("collectstatic", interactive=False, verbosity=0, stderr=io.StringIO())
            (root / "staticfiles.json").touch()


def _is_stale(manifest: Path) -> bool:
    if not manifest.exists():
        return True
    collected_at = manifest.stat().st_mtime
    return any(
        Path(storage.path(name)).stat().st_mtime > collected_at
        for finder in get_finders()
        for name, storage in finder.list([])
    )
