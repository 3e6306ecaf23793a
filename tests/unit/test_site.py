"""What the site adds to the pages in docs/: its navigation, the code, and that no page asks another host."""

import re
import runpy
from pathlib import Path

import pytest
from support.programs import ROOT

HOOKS = runpy.run_path(str(ROOT / "docs" / "site_hooks.py"))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a.html", '<script src="https://cdn.example/x.js"></script>'),
        ("a.html", '<script src="//cdn.example/x.js"></script>'),
        ("a.html", '<link rel="stylesheet" href="http://fonts.example/css">'),
        ("a.html", '<link rel="preconnect" href="https://fonts.example" crossorigin>'),
        ("a.html", '<img src="a.png" srcset="b.png 1x, https://images.example/b.png 2x">'),
        ("a.html", '<iframe src="HTTPS://pages.example/"></iframe>'),
        ("a.html", '<p style="background: url(https://images.example/b.png)">'),
        ("a.html", "<style>@import 'https://fonts.example/css';</style>"),
        ("a.css", "@font-face { src: url('https://fonts.example/a.woff') }"),
    ],
)
def test_what_a_browser_would_fetch_from_another_host_is_found(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    (found,) = HOOKS["other_hosts"](tmp_path)
    assert re.match(rf"{file}: .*\.example", found)


def test_links_to_click_on_and_own_files_are_none(tmp_path: Path) -> None:
    page = '<a href="https://example.com">a</a> <img src="data:image/png;base64,AA//"> <script src="x.js"></script>'
    page += '<link rel="canonical" href="https://example.com/a.html"> <code>url(https://example.com)</code>'
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "a.css").write_text("body { background: url(images/b.png) } /* https://example.com */")
    assert list(HOOKS["other_hosts"](tmp_path)) == []


def test_each_module_stands_on_the_page_of_its_room() -> None:
    package = ROOT / "src" / "teacherlm"
    listed = {name for room in HOOKS["ROOMS"] for name in re.findall(r"^::: (.*)$", HOOKS["room_page"](room), re.M)}
    files = {file for file in package.rglob("*.py") if file.parent != package}
    assert {str(file.relative_to(package.parent).with_suffix("")) for file in files} == {
        name.replace(".", "/") + ("/__init__" if (package.parent / name.replace(".", "/")).is_dir() else "")
        for name in listed
    }


def test_each_page_stands_in_the_navigation_once() -> None:
    config = HOOKS["MkDocsConfig"]()
    config.docs_dir = str(ROOT / "docs")
    nav = HOOKS["on_config"](config).nav
    pages = [
        page for entry in nav for under in entry.values() for page in ([under] if isinstance(under, str) else under)
    ]
    written = {str(file.relative_to(ROOT / "docs")) for file in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not page.startswith(("api/", "demo/"))} == written
    assert len(pages) == len(set(pages))
    assert pages.index("tutorials/first-run.md") < pages.index("tutorials/cluster.md")  # as index.md has them
