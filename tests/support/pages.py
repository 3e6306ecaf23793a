"""Read the pages of the report."""

from collections.abc import Callable
from pathlib import Path

from lxml import html

RUNS = ("tiny_cot_tail_teacher_seed0", "tiny_text_seed0")


def page_of(inside: Callable, folder: Path) -> html.HtmlElement:
    result = inside("report", folder)
    assert result.returncode == 0, result.stderr
    return html.fromstring((folder / "report" / "index.html").read_text(encoding="utf-8"))


def table(page: html.HtmlElement, name: str) -> list[list[list[float] | str]]:
    """The body of a table. Each cell is given by its numbers with all digits, or else by its text."""
    cells = [row.xpath("./td") for row in page.xpath(f"//table[@id='{name}']/tbody/tr")]
    return [
        [[float(value) for value in cell.xpath(".//data/@value")] or cell.text_content() for cell in row]
        for row in cells
    ]


def missing(page: html.HtmlElement) -> list[str]:
    return [item.text_content() for item in page.xpath("//section[@id='missing']//li")]


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)

    return change
