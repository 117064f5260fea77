"""How the panel's files are stored: named by their contents, and compressed beside."""

from typing import Any

from whitenoise.compress import Compressor
from whitenoise.storage import CompressedManifestStaticFilesStorage


class PanelStorage(CompressedManifestStaticFilesStorage):  # type: ignore[misc]  # WhiteNoise has no types
    """With gzip alone. brotli is there for answers, and WhiteNoise would use it at its slowest level: collecting took
    fifty seconds instead of two, at the first start of every new checkout."""

    def create_compressor(self, **options: Any) -> Compressor:
        return Compressor(use_brotli=False, **options)
