"""What MkDocs does beside reading docs/*.md: the navigation, the API reference, the demo's report, and no other host.

mkdocs.yml names this file. The report is the page that `make demo` made: REPORT, or that in runs/sample/limit-48/.
"""

import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "teacherlm"
ROOMS = ("core", "catalog", "runtime", "dataset", "enhance", "finetune", "scoring", "report", "atlas", "chain")
"""From the bottom to the top, as docs/explanation/architecture.md has them."""
SECTIONS = {
    "Tutorials": "tutorials",
    "How to": "how-to",
    "Reference": "reference",
    "Explanation": "explanation",
    "Measurements": "measurements",
}
DEMO = """\
# The demo's report

This is the page that `make demo` wrote on the machine where this site was built. It is a file that needs no server and
no network: [open it alone](report.html). Its numbers differ a little from machine to machine, because processors round
differently.

<iframe src="report.html" title="The report of make demo" style="width: 100%; height: 80vh; border: 1px solid #ccc">
</iframe>
"""
ASKING = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "iframe": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "video": ("src", "poster"),
    "audio": ("src",),
    "link": ("href",),
}
"""The attributes for which a browser fetches something without a click."""
OTHER_HOST = re.compile(r"(?:^|[\s,])(?:https?:)?//", re.IGNORECASE)
IN_STYLES = re.compile(r"(?:@import\s+|url\()\s*[\"']?((?:https?:)?//[^\"')\s]+)", re.IGNORECASE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    docs = Path(config.docs_dir)
    order = re.findall(r"\]\(([^)#]+\.md)", (docs / "index.md").read_text(encoding="utf-8"))
    nav: list[Any] = [{"Start": "index.md"}]
    for title, folder in SECTIONS.items():
        pages = {f"{folder}/{file.name}" for file in (docs / folder).glob("*.md")}
        listed = [page for page in dict.fromkeys(order) if page in pages]
        nav.append({title: [*listed, *sorted(pages - set(listed))]})
    nav += [{"Code": [f"api/{room}.md" for room in ROOMS]}, {"Demo": "demo/index.md"}, {"Glossary": "glossary.md"}]
    config.nav = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for room in ROOMS:
        files.append(File.generated(config, f"api/{room}.md", content=room_page(room)))
    files.append(File.generated(config, "demo/index.md", content=DEMO))
    files.append(File.generated(config, "demo/report.html", abs_src_path=str(report())))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    asked = sorted(set(other_hosts(Path(config.site_dir))))
    if asked:
        raise PluginError("the site would ask other hosts: " + "; ".join(asked[:10]))


def room_page(room: str) -> str:
    """The modules of a room, each with what its docstrings say."""
    parts = [f"# teacherlm.{room}\n"]
    for file in sorted((PACKAGE / room).rglob("*.py")):
        module = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        parts.append(f"::: {module}\n")
    return "\n".join(parts)


def report() -> Path:
    """The page of a run of the demo.

    Raises:
        PluginError: there is none.
    """
    file = Path(os.environ.get("REPORT") or ROOT / "runs" / "sample" / "limit-48" / "report" / "index.html").resolve()
    if not file.is_file():
        raise PluginError(f"{file}: no report of the demo is there; make docs runs the demo first")
    return file


def other_hosts(site: Path) -> Iterator[str]:
    """FILE: ADDRESS of what a browser would fetch from another host to show the pages of a site."""
    for file in sorted(site.rglob("*")):
        if file.suffix == ".css":
            yield from (f"{file.name}: {address}" for address in IN_STYLES.findall(file.read_text(encoding="utf-8")))
        elif file.suffix == ".html":
            reader = Reader()
            reader.feed(file.read_text(encoding="utf-8"))
            yield from (f"{file.name}: {address}" for address in reader.found)


class Reader(HTMLParser):
    """Collects the addresses of other hosts that a page has a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.in_style = tag == "style"
        given = {name: value or "" for name, value in attrs}
        if tag == "link" and given.get("rel") in ("canonical", "prev", "next", "alternate"):
            return  # these name a page and fetch nothing
        self.found += [given[name] for name in ASKING.get(tag, ()) if OTHER_HOST.search(given.get(name, ""))]
        self.found += IN_STYLES.findall(given.get("style", ""))

    def handle_endtag(self, tag: str) -> None:
        self.in_style = False

    def handle_data(self, data: str) -> None:
        if self.in_style:
            self.found += IN_STYLES.findall(data)
