"""A Griffe extension: sections called "Example:" are shown as examples, with their prompts, as "Examples:" are.

Without it they are paragraphs, in which Markdown takes the printed list ``[1, 2]`` for a reference.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the section in the docstring of every object that is collected."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Griffe calls this for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
