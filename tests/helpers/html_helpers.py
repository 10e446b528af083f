"""A page as its tags."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser
from pathlib import Path


class Tags(HTMLParser):
    """Checks that tags nest, and collects ids and what would be loaded."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open, self.ids, self.loaded, self.names, self.links = [], [], [], Counter(), []

    def handle_startendtag(self, tag, attrs):
        self.attributes(tag, attrs)

    def handle_starttag(self, tag, attrs):
        self.attributes(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def attributes(self, tag, attrs):
        self.names[tag] += 1
        for name, value in attrs:
            self.ids += [value] if name == "id" else []
            self.links += [value] if name in ("href", "xlink:href") else []
            self.loaded += [value] if name in ("src", "srcset", "data", "poster") else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(path: Path) -> tuple[str, Tags]:
    text, tags = path.read_text(), Tags()
    tags.feed(text)
    tags.close()
    return text, tags
