"""What all plots share: figures without a window, captions, ticks that never collide."""

from __future__ import annotations

import io
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloss._scoring import InputError

FORMATS = (".png", ".svg", ".pdf")
BLUE, ORANGE, GREY = "#2b6ca3", "#d9722b", "#6b6b6b"


def import_matplotlib() -> Any:
    """Import matplotlib's figure, or say which extra brings it."""
    # Its remarks about a font cache are no lines for standard error.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError(
            "--plot needs matplotlib: pip install 'fastloss[plot]', or matplotlib"
        ) from error
    return Figure


def check_plot_name(path: Path) -> None:
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--plot {path}: expected a name that ends in {', '.join(FORMATS)}")


def save(figure: Any, path: Path, kind: str) -> None:
    """Save a figure to ``path`` as a ``kind`` ("png", "svg" or "pdf")."""
    # Not into the file itself: where a disk is full, matplotlib fails in ways of its own.
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters in a file's name that the font lacks
        figure.savefig(picture, format=kind, dpi=130)
    path.write_bytes(picture.getbuffer())


def new_figure(width: float, height: float) -> Any:
    """A figure of its own, without pyplot: no window system, no state left behind."""
    figure = import_matplotlib()(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    return figure


def short_label(label: str, most: int = 60) -> str:
    return label if len(label) <= most else "…" + label[1 - most :]


def caption(panel: Any, title: str, text: str) -> None:
    """A title, and below it a line that explains the panel."""
    panel.set_title(title, loc="left", pad=24)
    panel.annotate(
        text,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 7),
        textcoords="offset points",
        fontsize=9,
        color=GREY,
    )


def nothing(panel: Any, title: str, text: str) -> None:
    """A panel that has nothing to show, and why; a panel that is often empty is left out."""
    caption(panel, title, text)
    panel.spines[:].set_visible(False)
    panel.set(xticks=[], yticks=[])


def set_log_ticks(axis: Any, low: float, high: float) -> None:
    """Numbers at powers of ten, few enough to be read; at 1, 2 and 5 on a short axis."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    decades = range(first, last + 1)
    step = -(-len(decades) // 7)
    ticks = [float(f"1e{n}") for n in decades if n % max(1, step) == 0]
    if math.log10(high / low) < 3:
        ticks = [
            tick
            for n in range(first - 1, last + 1)
            for digit in (1, 2, 5)
            if low <= (tick := float(f"{digit}e{n}")) <= high
        ]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([_plain(tick) for tick in ticks]))
    minor = [float(f"{digit}e{n}") for n in range(first - 1, last + 1) for digit in range(2, 10)]
    axis.set_minor_locator(FixedLocator(minor) if len(minor) <= 80 else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float) -> str:
    """A number as people write it: 0.05, 20, and 10⁻⁷ where that would be long."""
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    digit, exponent = f"{value:.0e}".split("e")
    power = f"10^{{{int(exponent)}}}"
    return f"${power}$" if digit == "1" else rf"${digit}\times{power}$"


def interval(share: NDArray[Any], counts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """How far off a few samples may be by chance: Wilson's interval of one standard error.

    Unlike the standard error itself it isn't empty where all samples are right. Wilson, "Probable
    inference, the law of succession, and statistical inference", JASA 1927.
    """
    centre = (share + 0.5 / counts) / (1 + 1 / counts)
    half = np.sqrt(share * (1 - share) / counts + 0.25 / counts**2) / (1 + 1 / counts)
    return np.minimum(share, centre - half), np.maximum(share, centre + half)


def locator(most: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, steps=[1, 2, 5, 10])


def percent_formatter() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda share, place: f"{100 * share:.4g}%")
