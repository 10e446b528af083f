"""The style sheet of report.html."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1d2126; --soft: #626a74; --rule: #dde1e6; --tint: #f5f7f9;
  --accent: #1f5fa8; --warn: #9a5b00; --best: #e8f1fb;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #e4e7eb; --soft: #9aa3ad; --rule: #2d333a; --tint: #1b1f25;
    --accent: #7db4f0; --warn: #e3a94f; --best: #1c2d42;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 74rem; padding: 2.5rem clamp(1rem, 4vw, 3rem) 5rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { font-size: 2rem; line-height: 1.15; margin: 0 0 .4rem; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 3.2rem 0 .6rem; padding-top: .9rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1rem; margin: 0 0 .55rem; overflow-wrap: anywhere; }
p, ul, dl { max-width: 46rem; margin: .5rem 0; }
li { margin: .25rem 0; }
.lead { color: var(--soft); font-size: 1.05rem; }
.missing { color: var(--warn); font-weight: 600; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin-top: 1.2rem; font-size: .92rem; }
a { color: var(--accent); text-underline-offset: .18em; text-decoration-thickness: 1px; }
figure { margin: 1.6rem 0; }
figcaption { color: var(--soft); font-size: .85rem; line-height: 1.45; max-width: 52rem; margin-top: .5rem; }
.scroll { overflow-x: auto; max-width: 100%; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; }
table { border-collapse: collapse; font-size: .88rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .7rem; text-align: left; white-space: nowrap; }
th:first-child, td:first-child { padding-left: .25rem; }
thead { border-top: 1.5px solid var(--ink); border-bottom: 1px solid var(--ink); }
thead th { font-weight: 600; vertical-align: bottom; }
thead th.group { text-align: center; padding-bottom: .1rem; }
thead th.group::after { content: ""; display: block; border-bottom: 1px solid var(--rule); margin-top: .15rem; }
tbody { border-bottom: 1px solid var(--rule); }
tbody:last-child { border-bottom: 1.5px solid var(--ink); }
tbody th { font-weight: 400; }
tbody tr:hover { background: var(--tint); }
.pin th:first-child { position: sticky; left: 0; background: var(--paper); }
.num { text-align: right; }
.std, .none { color: var(--soft); }
.best { font-weight: 700; background: var(--best); }
.best .std { font-weight: 400; }
.mark { display: inline-block; width: 0; color: var(--accent); font-weight: 700; }
.warn { color: var(--warn); }
.verdict { font-size: 1.15rem; max-width: 52rem; border-left: 4px solid var(--rule); padding: .1rem 0 .1rem .9rem; }
.verdict.better { border-color: var(--accent); }
.verdict.worse, .verdict.unclear { border-color: var(--warn); }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem 2.6rem; margin: 1.2rem 0 1.6rem; }
.tiles div { display: flex; flex-direction: column; min-width: 9rem; }
.tiles span, .tiles small { color: var(--soft); font-size: .88rem; }
.tiles strong { font-size: 2.2rem; line-height: 1.2; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
[id^="table-examples"] table { width: 100%; }
[id^="table-examples"] :is(th, td) { vertical-align: top; white-space: normal; }
[id^="table-examples"] tbody :is(th, td) {
  unicode-bidi: plaintext; text-align: start; overflow-wrap: break-word; white-space: pre-line;
}
[id^="table-examples"] tbody th { min-width: min(22rem, 55vw); overflow-wrap: anywhere; }
[id^="table-examples"] thead th { text-align: start; }
[id^="table-examples"] .warn { font-weight: 600; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.6rem 2rem; }
.pictures.wide { grid-template-columns: minmax(0, 46rem); }
.pictures figure { margin: 0; min-width: 0; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif !important; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1.2rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
pre {
  background: var(--tint); border: 1px solid var(--rule); border-radius: 6px; padding: .9rem 1rem; overflow-x: auto;
  font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media print {
  :root {
    color-scheme: light;
    --paper: #fff; --ink: #000; --soft: #444; --rule: #bbb; --tint: #fff; --accent: #000; --warn: #000; --best: #eee;
  }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .4rem; }
  tr, .pictures figure { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  h2 { margin-top: 1.8rem; }
  .pictures.pair { grid-template-columns: 1fr 1fr; gap: .8rem 1.2rem; }
  pre { white-space: pre-wrap; }
  .best { print-color-adjust: exact; }
}
"""
