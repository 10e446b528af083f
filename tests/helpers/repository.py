"""Where this repository and the data that lie beside it are."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = Path(os.environ.get("GRADLESS_SHARED_DATA", ROOT.parent / "shared" / "data"))
