"""One self-contained HTML page out of text, tables, figures: no library, no network."""

import html
from collections.abc import Mapping, Sequence

_STYLE = """
:root { --paper: #fdfdfb; --ink: #1d2430; --faint: #e2e4e6; --soft: #5d6673;
  --s0: #2456a6; --s1: #c4512d; --s2: #2d8659; --s3: #8656a8; --s4: #a67c1a; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e5e8ec;
  --faint: #2d333b; --soft: #98a1ad; --s0: #7fa8ee; --s1: #ef8d6c; --s2: #6cc494;
  --s3: #c39be0; --s4: #dcb45a; } }
body { background: var(--paper); color: var(--ink); margin: 2.5rem auto;
  max-width: 62rem; padding: 0 1.2rem; font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin-bottom: .2rem }
h2 { font-size: 1.2rem; margin-top: 2.4rem }
p, figcaption { max-width: 46rem } .soft, figcaption { color: var(--soft) }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr));
  gap: .8rem; margin: 1.4rem 0 } .facts div { border-top: 3px solid var(--s0);
  padding-top: .4rem } .facts b { display: block; font-size: 1.45rem }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr));
  gap: 1.4rem } figure { margin: 0 } svg { width: 100%; height: auto }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif }
table { border-collapse: collapse; font-size: .92rem } td, th { padding: .22rem .8rem;
  text-align: right; border-bottom: 1px solid var(--faint) }
td:first-child, th:first-child { text-align: left }
.strip { display: flex; flex-wrap: wrap; gap: .7rem; margin: .5rem 0 1rem }
.strip figure { width: 84px; text-align: center } .strip img { width: 72px;
  height: 72px; image-rendering: pixelated; border: 1px solid var(--faint) }
.strip figcaption { font-size: .78rem; line-height: 1.25 }
pre { overflow-x: auto; font-size: .82rem }
.strip .query img { border: 3px solid var(--s1) }
"""


def _escape(text: object) -> str:
    return html.escape(str(text))


def facts(pairs: Mapping[str, str]) -> str:
    """A row of large numbers with what each one is."""
    cells = (f"<div><b>{_escape(v)}</b>{_escape(k)}</div>" for k, v in pairs.items())
    return f'<div class="facts">{"".join(cells)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; the first column is text, the others numbers."""

    def line(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_escape(c)}</{tag}>" for c in cells) + "</tr>"

    return (
        "<table>"
        + line(head, "th")
        + "".join(line(row, "td") for row in rows)
        + "</table>"
    )


def figure(picture: str, caption: str) -> str:
    """A chart with the sentence that says what to see in it."""
    return f"<figure>{picture}<figcaption>{_escape(caption)}</figcaption></figure>"


def strip(pictures: Sequence[tuple[str, str]], *, query: bool = False) -> str:
    """Small pictures in a row, each with a caption; the first may be the question."""
    cells = []
    for number, (source, caption) in enumerate(pictures):
        kind = ' class="query"' if query and number == 0 else ""
        cells.append(
            f'<figure{kind}><img src="{source}" alt="{_escape(caption)}">'
            f"<figcaption>{_escape(caption)}</figcaption></figure>"
        )
    return f'<div class="strip">{"".join(cells)}</div>'


def row(*parts: str) -> str:
    """Parts side by side, as far as the window is wide enough."""
    return f'<div class="row">{"".join(parts)}</div>'


def preformatted(text: str) -> str:
    """Text as it is, such as a table in letters of one width."""
    return f"<pre>{_escape(text)}</pre>"


def details(title: str, text: str) -> str:
    """Text as it is, which opens on a click on its title."""
    return f"<details><summary>{_escape(title)}</summary>{preformatted(text)}</details>"


def section(title: str, *parts: str) -> str:
    """A heading and what belongs to it."""
    return f"<h2>{_escape(title)}</h2>{''.join(parts)}"


def paragraph(text: str) -> str:
    """A paragraph of prose."""
    return f"<p>{_escape(text)}</p>"


def document(title: str, subtitle: str, *sections: str) -> str:
    """The whole page."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{_escape(title)}</h1><p class="soft">{_escape(subtitle)}</p>'
        f"{''.join(sections)}</body></html>\n"
    )
