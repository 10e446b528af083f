"""A page in a real headless browser: what it holds after rendering, what it complains of, what it asks the net for."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome is installed to render the page")

# Measured inside the browser, in a copy of the page, and left in its DOM.
PROBE = """<script>addEventListener("load", () => {
  const all = (what) => [...document.querySelectorAll(what)], box = (e) => e.getBoundingClientRect();
  const measured = {
    images: all("img").map((e) => e.complete ? e.naturalWidth : 0),
    svgs: all("svg").map((e) => { const b = e.getBBox(); return [box(e).width, box(e).height, b.width, b.height] }),
    outside: all("svg text").filter((e) => {
      const a = box(e), b = box(e.ownerSVGElement); return a.left < b.left - 1 || a.right > b.right + 1 ||
        a.top < b.top - 1 || a.bottom > b.bottom + 1 }).map((e) => e.textContent),
    sections: all("section").map((e) => [e.id, box(e).height]),
    ids: all("[id]").map((e) => e.id),
    resources: performance.getEntriesByType("resource").map((e) => e.name),
    wide: [document.documentElement.scrollWidth, document.documentElement.clientWidth],
    ink: getComputedStyle(document.body).color, paper: getComputedStyle(document.body).backgroundColor,
    cells: all("[id^='table-examples'] tbody th").map((e) => [e.innerText, getComputedStyle(e).unicodeBidi]),
    scripts: all("script").length - 1,
  };
  document.body.setAttribute("data-measured", JSON.stringify(measured));
})</script></body>"""


class Seen(NamedTuple):
    """A rendered page."""

    measured: dict[str, Any]
    """What `PROBE` measured."""
    console: list[str]
    requests: list[str]
    """Addresses that the page, and not the browser for itself, asked for."""


def look(page: Path, scratch: Path, *, width: int = 1280, dark: bool = False) -> Seen:
    """Render a copy of a page, without any net behind it."""
    from html.parser import HTMLParser

    copy, log = scratch / "probed.html", scratch / "net.json"
    copy.write_text(page.read_text().replace("</body>", PROBE))
    done = subprocess.run(
        [
            *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
            *("--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND"),
            *(f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}", "--enable-logging=stderr"),
            *(f"--window-size={width},1600", f"--blink-settings=preferredColorScheme={int(not dark)}"),
            *("--virtual-time-budget=3000", "--dump-dom", copy.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    left: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            left.extend(value for name, value in attrs if name == "data-measured" and value)

    Reader().feed(done.stdout)
    events = json.loads(log.read_text())["events"]
    asked = [event["params"] for event in events if "initiator" in (event.get("params") or {})]
    return Seen(
        json.loads(left[0]),
        [line for line in done.stderr.splitlines() if ":CONSOLE" in line],
        [params["url"] for params in asked if params["initiator"] != "not an origin"],
    )
