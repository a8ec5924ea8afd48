"""How the figures of the documentation look: one small panel per SVG file.

A panel is drawn at the width of a phone, so that its text stays legible there; on a wide screen
two stand side by side. Text stays text, and colours are CSS variables with a fallback: the site
puts the SVG into the page and sets them for light and dark (docs/conf.py), and elsewhere the
fallback holds.
"""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

FOLDER = Path(__file__).resolve().parent

# Drawn in these colours, which _themed replaces by the variables of the same names.
INK = "#57606a"
GRID = "#d0d7de"
RED = "#d4455a"
BLUE = "#2f6fb3"
GREEN = "#3a8a5f"
GREY = "#98a2ae"
_VARIABLES = {
    INK: "ink",
    GRID: "grid",
    RED: "red",
    BLUE: "blue",
    GREEN: "green",
    GREY: "grey",
}

plt.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "fastloss",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "axes.linewidth": 0.8,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "xtick.color": INK,
        "ytick.color": INK,
        "lines.linewidth": 2,
        "legend.frameon": False,
        "legend.fontsize": 9,
    }
)


def panel(title: str, x: str = "", y: str = "", height: float = 2.9) -> Axes:
    """A new figure with one pair of axes."""
    _, axes = plt.subplots(figsize=(4.3, height), layout="constrained")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.set_axisbelow(True)
    return axes


def save(axes: Axes, name: str, folder: Path = FOLDER) -> None:
    """Write the figure of `axes` to ``folder/name.svg``."""
    text = StringIO()
    axes.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    plt.close(axes.figure)
    (folder / f"{name}.svg").write_text(_themed(text.getvalue(), name), encoding="utf-8")


def _themed(svg: str, name: str) -> str:
    """The SVG without its header, with variables for colours and names of its own for its parts."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        svg = re.sub(colour, f"var(--figure-{variable}, {colour})", svg, flags=re.IGNORECASE)
    svg = re.sub(r'(id="|url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)
    # Places to a hundredth of a point; what a reader reads stays as it is.
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d+\.\d{2})\d+", r"\1", tag[0]), svg)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def main(figures: dict[str, object], folder: Path = FOLDER) -> None:
    """Draw every figure of a script: functions by name, each of which returns its axes."""
    for name, draw in figures.items():
        save(draw(), name, folder)
