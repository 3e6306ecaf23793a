"""The page: sections of text, charts and tables, and the sample browser, in a single HTML file.

The template escapes all data or embeds it as JSON. The Content-Security-Policy allows only the page's two scripts and
its style sheet, which it names by their digests. The page loads nothing.
"""

import base64
import hashlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from teacherlm.core.limits import PAGE_MISSING, PAGE_ROWS
from teacherlm.core.terminal import LONGEST, cut
from teacherlm.report.sample_browser import embedded_in_pieces, storable

HERE = Path(__file__).resolve().parent

Cell = str | int | float | None | Sequence[float]
"""A cell of a table: a text, a count, a fraction, nothing, or the two ends of an interval."""


@dataclass(frozen=True)
class Part:
    """A part of a section. It may have a text, a chart (`<svg>`), a table, and preformatted text, perhaps folded.

    Attributes:
        members: the numbers of the rows that belong to the nearest row above that has none of these numbers: the single
            seeds of replicates. On the page, a button in that row shows and hides them.
    """

    title: str = ""
    words: str = ""
    picture: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    name: str = ""
    code: str = ""
    folded: str = ""
    members: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """A section of the page. `name` is the fragment of links to it."""

    name: str
    title: str
    parts: list[Part] = field(default_factory=list)


def render(
    title: str, sections: Sequence[Section], missing: Sequence[str], browser: dict[str, Any] | None
) -> Iterator[str]:
    """The page's HTML, in pieces.

    Args:
        missing: sentences about missing results.
        browser: the data of the sample browser (see sample_browser.browse), or None for a page without it.
    """
    unfolds = any(part.members for section in sections for part in section.parts)
    scripts = [read("theme.js"), *([read("unfold.js")] if unfolds else []), *([read("browser.js")] if browser else [])]
    style = read("style.css") + (read("unfold.css") if unfolds else "")
    here = secrets.token_hex()  # a placeholder for the samples, which are written one by one
    shown = {**browser, "samples": None, "json": here} if browser else None
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    html = environment.from_string(read("page.html")).render(
        title=title,
        sections=[Section(s.name, s.title, [bounded(part) for part in s.parts]) for s in sections if s.parts],
        missing=[*missing[:PAGE_MISSING], *more(len(missing) - PAGE_MISSING, "such lines are not on this page")],
        browser=shown,
        scripts=[Markup(script) for script in scripts],
        script_hashes=[digest(script) for script in scripts],
        style=Markup(style),
        style_hash=digest(style),
    )
    before, _, after = html.partition(here)
    yield storable(before)
    if browser:
        yield from map(storable, embedded_in_pieces(browser))
        yield storable(after)


def bounded(part: Part) -> Part:
    """A part for the page, with long tables and long texts cut. The chart is not escaped."""
    words = " ".join([part.words, *more(len(part.rows) - PAGE_ROWS, "rows of this table are not on this page")]).strip()
    head = [cut(cell, LONGEST) for cell in part.head]
    rows = [[cut(cell, LONGEST) if isinstance(cell, str) else cell for cell in row] for row in part.rows[:PAGE_ROWS]]
    return replace(part, picture=Markup(part.picture), words=cut(words, LONGEST), head=head, rows=rows)


def more(count: int, words: str) -> list[str]:
    return [f"{count} more {words}."] if count > 0 else []


def read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """The digest with which a Content-Security-Policy allows a script or a style sheet."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
