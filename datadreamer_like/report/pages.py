"""Self-contained HTML pages, without external resources."""

from __future__ import annotations

import html

from datadreamer_like.storage.shown import one_line

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #667085; --rule: #e4e7ec; --ground: #ffffff; --band: #f7f8fa }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --soft: #98a2b3; --rule: #344054; --ground: #14171c; --band: #1b1f26 }
}
body { margin: 2.5rem auto; max-width: 74rem; padding: 0 1.5rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
h1 { font-size: 1.5rem; font-weight: 600; margin: 0 0 1.25rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { font-weight: 600; border-bottom: 2px solid var(--rule); vertical-align: bottom; line-height: 1.25 }
th small { display: block; color: var(--soft); font-weight: 400 }
th, td { padding: .45rem .7rem; text-align: left }
th.right, td.right { text-align: right; white-space: nowrap }
td { border-bottom: 1px solid var(--rule) }
tbody tr:nth-child(even) { background: var(--band) }
figure { margin: 2rem 0 0; padding: .75rem; background: #ffffff; border: 1px solid var(--rule); border-radius: 6px }
figure svg { display: block; width: 100%; height: auto }
.note { color: var(--soft); font-size: .88rem; margin: .6rem 0 0; max-width: 60rem }
"""


def page(title: str, *parts: str) -> str:
    """Returns a self-contained page of pieces of HTML: a table, `figure(svg)`, a paragraph; `title` is plain text."""
    name = html.escape(one_line(title))
    body = "\n".join(parts)
    head = f"<h1>{name}</h1>\n" if title else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{head}{body}\n</body>\n</html>\n"
    )


def figure(svg: str, description: str) -> str:
    """Returns an `<svg>` element as an HTML figure, with a description for screen readers."""
    return f'<figure role="img" aria-label="{html.escape(one_line(description))}">\n{svg}\n</figure>'
