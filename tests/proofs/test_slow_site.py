"""The site as `make docs` builds it, in a browser, from the disk: `make prove ONLY=site`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    report = folder / "report.html"
    report.write_text("<!DOCTYPE html><title>demo</title><h1>sample/limit-48</h1>")
    environment = {**os.environ, "REPORT": str(report), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--site-dir", folder / "built"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "built"


def test_the_search_works_and_nothing_is_fetched(site: Path) -> None:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    asked: list[str] = []
    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((site / "index.html").as_uri())
        page.click("input.md-search__input")
        page.keyboard.type("manifest")
        page.wait_for_selector(".md-search-result__item")
        page.goto((site / "demo" / "index.html").as_uri())
        assert page.frame_locator("article iframe").locator("h1").inner_text() == "sample/limit-48"
        page.goto((site / "api" / "core.html").as_uri())
        assert "one_line" in page.locator("article").inner_text()
        browser.close()
    assert errors == []
    assert [address for address in asked if not address.startswith(("file:", "data:", "blob:"))] == []


def test_a_link_that_leads_nowhere_ends_the_building(site: Path, tmp_path: Path) -> None:
    for name in ("docs", "src", "mkdocs.yml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    with open(tmp_path / "docs" / "glossary.md", "a") as file:
        file.write("\n[nowhere](nowhere.md) [no heading](glossary.md#none)\n")
    environment = {**os.environ, "REPORT": str(site / "demo" / "report.html"), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-P", "-m", "mkdocs", "build"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "nowhere.md" in done.stderr and "#none" in done.stderr
