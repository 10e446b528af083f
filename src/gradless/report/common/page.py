"""A page with everything in it: no scripts, and nothing to load."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from gradless.report.common.pictures import INK
from gradless.report.common.style import CSS


def assemble(title: str, kind: str, lead: str, parts: Sequence[tuple[str, str, str]]) -> str:
    """A page without scripts and without anything to load.

    Args:
        title: its heading, escaped here.
        kind: what it is a page of, for the window's title.
        lead: HTML below the heading.
        parts: id, heading and HTML of every section.
    """
    nav = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in parts)
    sections = "".join(f'<section id="{name}"><h2>{heading}</h2>{body}</section>' for name, heading, body in parts)
    title = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>'
        f"{title} · {kind}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{CSS}</style></head>\n<body><header><h1>{title}</h1>{lead}<nav>{nav}</nav></header>\n"
        f"<main>{sections}</main></body></html>\n"
    )


def definitions(facts: Mapping[str, str]) -> str:
    """Names and values as a list; everything escaped."""
    return "<dl>" + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items()) + "</dl>"


def inline(svg: str, prefix: str, title: str) -> str:
    """An SVG for the middle of a page: own ids, the page's text colour, no declarations, no metadata."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, body = svg[: svg.index(">")], svg[svg.index(">") + 1 :]
    box = re.search(r'viewBox="([^"]*)"', head)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = body.replace("url(#", f"url(#{prefix}-").replace('xlink:href="#', f'href="#{prefix}-')
    body = body.replace(INK, "currentColor")
    return f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{html.escape(title)}">{body}'
