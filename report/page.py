"""The page: sections of words, pictures and tables, and the sample browser, as one HTML file that needs nothing else.

What comes from data is escaped by the template or embedded as JSON. The Content-Security-Policy lets the page's own two
scripts and its style sheet run, by their digests, and nothing be loaded.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from sample_browser import embedded

HERE = Path(__file__).resolve().parent

Cell = str | int | float | None | Sequence[float]
"""Of a table: words, a count, a share, nothing, or the two ends of an interval."""


@dataclass(frozen=True)
class Part:
    """A piece of a section: any of words, a picture (`<svg>`), a table, and text as it is, folded away or not."""

    title: str = ""
    words: str = ""
    picture: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    name: str = ""
    code: str = ""
    folded: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the page; `name` is what links to it end with."""

    name: str
    title: str
    parts: list[Part] = field(default_factory=list)


def render(title: str, sections: Sequence[Section], missing: Sequence[str], browser: dict[str, Any] | None) -> str:
    """The page's HTML.

    Args:
        missing: what is not there, a sentence each.
        browser: the sample browser's data (see sample_browser.browse), or None for a page without one.
    """
    scripts = [read("theme.js")] + ([read("browser.js")] if browser else [])
    style = read("style.css")
    parts = [
        Section(s.name, s.title, [Part(**{**vars(p), "picture": Markup(p.picture)}) for p in s.parts]) for s in sections
    ]
    shown = {"left_out": browser["left_out"], "json": Markup(embedded(browser))} if browser else None
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(read("page.html")).render(
        title=title,
        sections=[section for section in parts if section.parts],
        missing=missing,
        browser=shown,
        scripts=[Markup(script) for script in scripts],
        script_hashes=[digest(script) for script in scripts],
        style=Markup(style),
        style_hash=digest(style),
    )


def read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """As a Content-Security-Policy names what may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
