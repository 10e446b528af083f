"""What MkDocs does to pages before they are rendered: long tables of results stand in the page itself.

``<!-- file: PATH -->``, a link to that Markdown file of the repository and ``<!-- end -->`` become the file. On a forge
the link is what readers see; shorter tables are in the pages (`fields`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MARK = re.compile(r"<!-- file: (\S+) -->\n(?:(?!<!--).)*<!-- end -->", re.S)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this for every page."""
    return MARK.sub(lambda match: (ROOT / match[1]).read_text(encoding="utf-8"), markdown)
