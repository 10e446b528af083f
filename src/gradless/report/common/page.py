"""Report pages: filled from templates, with one style sheet and their pictures in line; nothing is left to load."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from gradless.report.common.pictures import INK

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


@cache
def templates() -> Environment:
    """The templates (``*.html.j2``) beside the modules of `gradless.report`; every value in them is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("gradless", "report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["css"] = Markup(loader.get_source(environment, "common/report.css")[0])
    environment.filters["one_line"] = lambda text: Markup(re.sub(r"\s+", " ", text))
    return environment


def render(template: str, **values: Any) -> str:
    """A page from a template, such as ``bench/page.html.j2``. Halves of surrogate pairs become question marks."""
    text = templates().get_template(template).render(values)
    return text.encode("utf-8", "replace").decode()  # no file can hold such halves


def inlined(pictures: Iterable[tuple[str, str, str]]) -> dict[str, Markup]:
    """Pictures for the middle of a page, by name: own ids, the page's text colour, no declarations, no metadata.

    Args:
        pictures: name, title and SVG of each, as matplotlib writes them.
    """
    return {name: _inline(svg, f"p{number}", title) for number, (name, title, svg) in enumerate(pictures)}


def _inline(svg: str, prefix: str, title: str) -> Markup:
    from markupsafe import Markup

    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    head, _, body = svg.partition(">")
    box = re.search(r'viewBox="([^"]*)"', head)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = body.replace("url(#", f"url(#{prefix}-").replace('xlink:href="#', f'href="#{prefix}-')
    start = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(box[1] if box else "", title)
    return start + Markup(body.replace(INK, "currentColor"))
