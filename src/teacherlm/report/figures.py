"""Charts as inline SVG. matplotlib draws them, and the page's style sheet sets the colours of text and axes.

The same numbers give the same bytes, because there is no date and ids come from a fixed salt. Styles are converted to
attributes, which the page's Content-Security-Policy allows and its style sheet can override.
"""

import importlib.util
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from teacherlm.core.terminal import printable


@contextmanager
def library_settings() -> Iterator[None]:
    """Let matplotlib read its default settings, and not a file `matplotlibrc` in the current folder.

    Anybody may have put such a file there, and its settings can make matplotlib start other programs (`text.usetex`).
    """
    found = importlib.util.find_spec("matplotlib")
    assert found is not None and found.origin is not None  # matplotlib is a dependency, and a package with files
    package = Path(found.origin).parent
    before = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir(package / "mpl-data")
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


with library_settings():
    import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")
"""Okabe and Ito's colours, which colour-blind people can distinguish, on white and on black."""
FOREGROUND = "#010203"
"""Placeholder for the colour of the page's text."""
SVG = "http://www.w3.org/2000/svg"
LONGEST_LABEL = 100
XLINK = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name, x and y values, and the lengths of its error bars below and above, if any."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    below: Sequence[float] | None = None
    above: Sequence[float] | None = None


def draw(lines: Sequence[Line], x_label: str, y_label: str, chance: float | None = None) -> str:
    """A chart of the lines as an `<svg>` element. Names and labels may be any text.

    Args:
        chance: the y value of a dotted horizontal line, if there is one.
    """
    settings = {
        "svg.hashsalt": printable(f"{x_label} {y_label}"),
        "svg.fonttype": "none",
        "font.size": 10,
        "text.color": FOREGROUND,
        "axes.edgecolor": FOREGROUND,
        "axes.labelcolor": FOREGROUND,
        "xtick.color": FOREGROUND,
        "ytick.color": FOREGROUND,
        "text.parse_math": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
    }
    x_label, y_label = printable(x_label, LONGEST_LABEL), printable(y_label, LONGEST_LABEL)
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for number, line in enumerate(map(drawable, lines)):
            colour, shift = COLOURS[number % len(COLOURS)], 0.0
            few = dict(marker="o", markersize=4) if len(line.x) < 40 else {}
            if line.below is not None:
                shift = (
                    0.012 * (number - (len(lines) - 1) / 2) * (max(line.x, default=0) or 1)
                )  # error bars must not overlap
                few |= dict(yerr=[line.below, line.above], capsize=3, elinewidth=1)
            x = [value + shift for value in line.x]
            axes.errorbar(x, line.y, color=colour, label=printable(line.name, LONGEST_LABEL), linewidth=1.5, **few)
        if chance is not None:
            axes.axhline(chance, color=FOREGROUND, linewidth=0.8, linestyle=":")
        axes.xaxis.get_major_locator().set_params(integer=True)  # x values are epochs or steps
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=8)
        return as_element(figure)


LARGEST_X, LARGEST_Y = 1e12, 1e100


def drawable(line: Line) -> Line:
    """The line without points whose values are too large to compute an axis."""
    kept = [n for n, (x, y) in enumerate(zip(line.x, line.y)) if abs(x) <= LARGEST_X and abs(y) <= LARGEST_Y]
    bars = [None if bar is None else [min(bar[n], LARGEST_Y) for n in kept] for bar in (line.below, line.above)]
    return Line(line.name, [line.x[n] for n in kept], [line.y[n] for n in kept], *bars)


def as_element(figure: Figure) -> str:
    file = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    wanted = {link.removeprefix("#") for element in root.iter() for link in links(element)}
    for element in root.iter():
        style = element.attrib.pop("style", "")
        for name, value in re.findall(r"([\w-]+)\s*:\s*([^;]+)", style):
            element.set(name, value.strip())
        for name, value in element.attrib.items():
            if value == FOREGROUND:
                element.set(name, "currentColor")
        if element.get("id") not in wanted:
            element.attrib.pop("id", None)
        if XLINK in element.attrib:
            element.set("href", element.attrib.pop(XLINK))
        element.attrib.pop("font-family", None)
    root.set("stroke-linejoin", "round")
    root.set("role", "img")
    root.attrib.pop("height")
    root.attrib.pop("width")
    return ElementTree.tostring(root, encoding="unicode")


def links(element: ElementTree.Element) -> list[str]:
    found = [element.get(XLINK, ""), *re.findall(r"url\((#[^)]+)\)", " ".join(element.attrib.values()))]
    return [link for link in found if link]
