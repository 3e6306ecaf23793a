"""A run's page in a real browser, from the disk: nothing is fetched, nothing fails, hostile texts are only texts."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.programs import ROOT, program, warm_python
from support.replicates import write_seed
from support.report_runs import write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RLO = "\u202e"
HOSTILE = [
    "<script>document.title = 'pwned'; fetch('http://127.0.0.1:9/')</script> The end.",
    "</script><img src=x onerror=\"document.title = 'pwned'\"> <!-- </script",
    "\"double\" 'single' `back` & &amp; &lt;b&gt; \\u003c \\",
    f"{RLO}turned{RLO} around \u200f and \u2066isolated",
    "one line of a megabyte " * 45_000 + "ends here.",
    "{{ 7 * 7 }} ${7 * 7} \u2028 \u2029 \x00 javascript:alert(1)",
]
PLAIN = [f"Plain reason {number}. So the answer is (A)." for number in range(100)]
RUNS = ("tiny_cot_tail_teacher_seed0", "tiny_text_seed0")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        message = "there is no Chromium on this machine; install Debian's: bash tests/support/browser/install.sh"
        root = os.environ.get("CI") == "true" and os.getuid() == 0
        pytest.fail(message) if root else pytest.skip(message)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve samples with two kinds of texts each, half of them hostile; two students."""
    texts = {"cot": [*HOSTILE, *PLAIN[:6]], "error": PLAIN[6:18]}
    return write_run(tmp_path_factory.mktemp("runs") / "creak" / "all", texts, RUNS)


@pytest.fixture
def watched(browser: "Browser") -> Iterator[Callable[..., "Page"]]:
    """Open a page from the disk, and check at the end that it requested nothing else and printed nothing to the
    console."""
    said: list[str] = []
    pages = []

    def open_page(path: Path, fragment: str = "", **options: str) -> "Page":
        page = browser.new_page(**options)
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: request.url == path.as_uri() or said.append(f"request: {request.url}"))
        page.goto(path.as_uri() + fragment)
        pages.append(page)
        return page

    yield open_page
    titles = [page.title() for page in pages]
    for page in pages:
        page.close()
    assert said == []
    assert "pwned" not in titles


def report(folder: Path) -> Path:
    done = subprocess.run([warm_python(), *program("report"), folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "report" / "index.html"


@pytest.fixture(scope="module")
def page_file(folder: Path) -> Path:
    return report(folder)


def ids(page: "Page") -> list[str]:
    return page.locator("#rows article").evaluate_all("rows => rows.map(row => row.id)")


def test_the_page_of_a_real_run(watched: Callable[..., "Page"], tiny_llama: Path, tmp_path: Path) -> None:
    """The chain itself, as make demo runs it, with a tiny student."""
    small = {"STUDENT": tiny_llama, "LIMIT": 8, "EPOCHS": 2, "NUM_TOKENS": 8, "BATCH": 4, "RUNS": tmp_path}
    environment = {**os.environ, "PYTHON": warm_python(), "LAUNCHER": "local"}
    environment |= {name: str(value) for name, value in small.items()}
    command = ["bash", ROOT / "slurm" / "chain.sh", "sample"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "sample" / "limit-8"
    page = watched(folder / "report" / "index.html")
    assert page.locator("#missing").count() == 0
    assert page.locator("svg").count() == 3
    run = "tiny_cot_tail_tiny_batch4_seed0"
    result = json.loads((folder / "evaluate" / run / "checkpoint-4" / "sample.json").read_text())
    row = page.locator("#accuracy-sample tr", has_text="checkpoint-4")
    assert f"{result['value']:.4f}" in row.inner_text()
    assert page.locator("#count").inner_text() == "88 of 88 samples, page 1 of 2"
    assert page.locator("#train-1 .text").count() == 1


def test_search_and_filters(watched: Callable[..., "Page"], page_file: Path, folder: Path) -> None:
    page = watched(page_file)
    assert len(ids(page)) == 50
    page.fill("#search", "plain REASON 3.")
    assert ids(page) == ["train-10"]
    page.fill("#search", "")
    page.select_option("#set", "train")
    assert ids(page) == [f"train-{number}" for number in range(1, 13)]
    page.select_option("#source", label="teacher_seed0: cot")
    page.select_option("#flag", "cut")
    quality = [json.loads(line) for line in (folder / "enhance/teacher_seed0/CREAK_quality.jsonl").open()]
    cut = [f"train-{n}" for n, said in enumerate(quality, 1) if "cut" in said["flags"].get("cot", [])]
    assert ids(page) == cut and cut
    page.select_option("#flag", "")
    page.fill("#min", "1000")
    assert ids(page) == ["train-5"]
    page.fill("#min", "")
    page.fill("#max", str(len(PLAIN[0])))
    short = [n for n, text in enumerate([*HOSTILE, *PLAIN[:6]], 1) if len(text) <= len(PLAIN[0])]
    assert ids(page) == [f"train-{n}" for n in short] and len(short) < 12


def test_right_wrong_and_flipped_answers(watched: Callable[..., "Page"], page_file: Path, folder: Path) -> None:
    page = watched(page_file)
    for student, run in enumerate(RUNS):
        paths = [folder / "evaluate" / name / "creak_samples.jsonl" for name in ("tiny", f"{run}/checkpoint-6")]
        before, after = ([json.loads(line) for line in path.open()] for path in paths)
        right = [(b["acc"] == 1, a["acc"] == 1) for b, a in zip(before, after)]
        page.select_option("#student", str(student))
        expected = {
            "right": sum(a for _, a in right),
            "wrong": sum(not a for _, a in right),
            "flipped": sum(b != a for b, a in right),
            "flipped-right": sum(a and not b for b, a in right),
            "flipped-wrong": sum(b and not a for b, a in right),
        }
        for outcome, count in expected.items():
            page.select_option("#outcome", outcome)
            assert page.locator("#count").inner_text().startswith(f"{count} of "), outcome
        numbers = {f"test-creak-{n}" for n, (b, a) in enumerate(right) if b and not a}
        assert set(ids(page)) == numbers
        assert page.locator("#rows .right").count() == page.locator("#rows .wrong").count() == len(numbers)


def test_sorting_pages_and_the_link_of_a_sample(watched: Callable[..., "Page"], page_file: Path) -> None:
    page = watched(page_file)
    page.select_option("#sort", "longest")
    assert ids(page)[0] == "train-5"
    page.select_option("#sort", "order")
    assert page.locator("#before").is_disabled()
    page.click("#after")
    assert ids(page)[0] == "test-creak-38" and page.locator("#after").is_disabled()
    page.click("#before")
    page.click("#train-2 a")
    assert page.url.endswith("#train-2")
    assert page.locator("#train-2 button").inner_text() == "less"
    other = watched(page_file, "#test-creak-45")
    assert other.locator("#test-creak-45 button").inner_text() == "less"
    assert other.locator("#test-creak-45").evaluate("one => one.getBoundingClientRect().top < innerHeight")
    assert ids(watched(page_file, "#no-such-sample"))[0] == "train-1"


def test_hostile_texts_are_shown_as_texts(watched: Callable[..., "Page"], page_file: Path) -> None:
    page = watched(page_file)
    for number, text in enumerate(HOSTILE, 1):
        page.click(f"#train-{number} button")
        assert page.locator(f"#train-{number} .text").first.evaluate("one => one.textContent") == text
        assert page.locator(f"#train-{number} .text *").count() == 0
        page.click(f"#train-{number} button")
    assert page.locator("img, iframe, object").count() == 0
    page.fill("#search", "onerror=")
    assert ids(page) == ["train-2"]


def test_right_to_left_marks_turn_only_their_own_text(watched: Callable[..., "Page"], page_file: Path) -> None:
    page = watched(page_file)
    page.click("#train-4 button")
    styles = page.locator("#train-4 .text").evaluate_all("all => all.map(one => getComputedStyle(one).unicodeBidi)")
    assert styles == ["isolate", "isolate"]


def background(page: "Page") -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_light_dark_and_print(watched: Callable[..., "Page"], page_file: Path) -> None:
    light, dark = "rgb(255, 255, 255)", "rgb(22, 24, 27)"
    page = watched(page_file, color_scheme="light")
    assert background(page) == light
    page.click("#theme")
    assert background(page) == dark
    assert page.locator("svg text").first.evaluate("one => getComputedStyle(one).fill") == "rgb(230, 230, 230)"
    page.emulate_media(media="print")
    assert background(page) == light and not page.locator("nav").is_visible()
    page = watched(page_file, color_scheme="dark")
    assert background(page) == dark
    page.click("#theme")
    assert background(page) == light


def test_thousands_of_samples(watched: Callable[..., "Page"], tmp_path: Path) -> None:
    """docs/measurements/report.md has the times of 10,000. Only another order of growth exceeds these limits."""
    texts = [f"Reason {number} of many. So the answer is (A)." for number in range(5_000)]
    page = watched(report(write_run(tmp_path / "creak" / "all", {"cot": texts}, RUNS)))
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 20_000
    assert page.locator("#count").inner_text() == "5060 of 5060 samples, page 1 of 102"
    page.fill("#search", "reason 4876 of")
    assert ids(page) == ["train-4877"]


def test_names_of_runs_are_texts_too(watched: Callable[..., "Page"], tmp_path: Path) -> None:
    name = 'tiny_<img src=x onerror=alert(1)> & "quoted" $x$ {{ 7 }}'
    page = watched(report(write_run(tmp_path / "creak" / "<b>all", None, (name, "tiny_other"))))
    assert page.locator("h1").inner_text() == "creak/<b>all"
    assert page.locator("svg text", has_text=name).count() == 3
    assert page.locator("#accuracy-creak td", has_text=f"{name}, checkpoint-3").count() == 1
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("kind", ["empty", "half"])
def test_pages_of_nothing_and_of_half_a_run(watched: Callable[..., "Page"], tmp_path: Path, kind: str) -> None:
    if kind == "half":
        write_run(tmp_path / "creak" / "all", {"cot": PLAIN[:4]}, ())
    folder = tmp_path / "creak" / "all"
    folder.mkdir(parents=True, exist_ok=True)
    page = watched(report(folder))
    assert page.locator("#missing li").count() == 1
    assert page.locator("#rows article").count() == (0 if kind == "empty" else 50)
    page.click("#theme")


def test_a_row_of_several_seeds_unfolds(watched: Callable[..., "Page"], tmp_path: Path) -> None:
    folder = write_run(tmp_path / "creak" / "all", None, ())
    for seed in (0, 1, 2):
        write_seed(folder, "tiny_<b>text", seed)
    file = report(folder)
    page = watched(file)
    table = page.locator("#accuracy-creak")
    last = table.locator("button", has_text="tiny_<b>text, checkpoint-6 (3 seeds)")
    below = table.locator("tr.member", has_text="checkpoint-6")
    assert below.count() == 3 and not any(row.is_visible() for row in below.all())
    assert last.get_attribute("aria-expanded") == "false"
    last.focus()
    page.keyboard.press("Enter")
    assert [row.is_visible() for row in table.locator("tr.member").all()] == [False] * 3 + [True] * 3
    assert last.get_attribute("aria-expanded") == "true"
    last.click()
    assert not any(row.is_visible() for row in below.all())
    page.emulate_media(media="print")
    assert all(row.is_visible() for row in below.all())
    without = watched(file, java_script_enabled=False)
    assert all(row.is_visible() for row in without.locator("#accuracy-creak tr.member").all())
