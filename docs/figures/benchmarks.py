"""The figures that show measurements, from the files in bench/results.

Run it to draw them again after a new measurement: python docs/figures/benchmarks.py.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
from style import BLUE, GREY, INK, RED, main, panel

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"

# Results lie in a folder for each processor, or all in one; these are the ones that the pages name.
PROCESSORS = ("amd-zen-5", "intel-xeon-16-cores", ".")

LIBRARIES = {
    "fastloss": "fastloss",
    "optax": "optax, jit",
    "torch-compile": "torch.compile",
    "torch": "PyTorch",
    "scikit-learn": "scikit-learn",
    "scipy": "SciPy",
    "numpy": "NumPy by hand",
}


def results(name: str) -> dict:
    """What a benchmark wrote to a file of this name."""
    paths = (RESULTS / processor / name for processor in PROCESSORS)
    return json.loads(next(path for path in paths if path.is_file()).read_text())


def speed(loss: str, shape: list[int], title: str):
    """Value and gradient on one core, in calls of PyTorch eager."""
    times = {
        row["peer"]: row["timing"]["median"]
        for row in results("compare-1-thread.json")["results"]
        if (row["loss"], row["shape"], row["mode"]) == (loss, shape, "value_and_grad")
    }
    axes = panel(title, height=2.4)
    names = [name for name in LIBRARIES if name in times]
    for at, name in enumerate(names):
        ratio = times["torch"] / times[name]
        own = name == "fastloss"
        axes.barh(-at, ratio, 0.7, color=RED if own else GREY)
        axes.annotate(
            f"{ratio:.0f}×" if ratio >= 9.95 else f"{ratio:.1f}×",
            (ratio, -at),
            (4, 0),
            textcoords="offset points",
            va="center",
            weight="bold" if own else "normal",
        )
    axes.set_yticks(-np.arange(len(names)), [LIBRARIES[name] for name in names])
    axes.margins(x=0.12)
    axes.set(xticks=[])
    axes.tick_params(left=False)
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    return axes


def accuracy(library: str, title: str, colour: str):
    """Error of single losses in ulp over their size."""
    points = results("accuracy.json")["points"][library]
    exact, error = np.array(points).T
    axes = panel(title, "exact loss of the sample", "error, ulp")
    # A fifth of the points shows the same, in a file of a fifth of the size.
    axes.plot(exact[::5], np.maximum(error[::5], 1e-2), ".", color=colour, ms=3)
    axes.axhline(4, color=INK, lw=0.8, ls="--")
    axes.set(xscale="log", yscale="log", xlim=(1e-38, 1e3), ylim=(5e-3, 1e9))
    axes.set_xticks([1e-36, 1e-24, 1e-12, 1], ["1e-36", "1e-24", "1e-12", "1"])
    axes.set_yticks([1e-2, 1, 1e2, 1e4, 1e6, 1e8], ["0.01", "1", "100", "1e4", "1e6", "1e8"])
    axes.minorticks_off()
    axes.text(1e-37, 7, "4 ulp", color=INK)
    return axes


def threads():
    """Time per element over the number of threads."""
    rows = results("threads-16-cores.json")["threads"]
    axes = panel("Value and gradient on 16 cores", "threads", "ns per element")
    for shape, colour in (([65536, 128], BLUE), ([8192, 8192], RED)):
        counts, times = zip(
            *(
                (row["threads"], 1e9 * row["timing"]["median"] / row["elements"])
                for row in rows
                if row["shape"] == shape and row["mode"] == "value_and_grad"
            ),
            strict=True,
        )
        axes.plot(counts, times, "o-", color=colour, label=f"{shape[0]:,} × {shape[1]:,}")
    axes.set(xscale="log", yscale="log")
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.set_yticks([0.1, 0.2, 0.5, 1], ["0.1", "0.2", "0.5", "1"])
    axes.minorticks_off()
    axes.legend()
    return axes


FIGURES = {
    "speed-classes": partial(
        speed, "cross_entropy", [65536, 1000], "Cross-entropy, 65,536 × 1,000"
    ),
    "speed-vocabulary": partial(
        speed, "cross_entropy", [1024, 128256], "Cross-entropy, 1,024 × 128,256"
    ),
    "speed-bce": partial(
        speed, "binary_cross_entropy_with_logits", [10_000_000], "BCE with logits, 10,000,000"
    ),
    "speed-small": partial(speed, "cross_entropy", [32, 10], "Cross-entropy, 32 × 10"),
    "threads": threads,
    "accuracy-fastloss": partial(accuracy, "fastloss", "fastloss", RED),
    "accuracy-torch": partial(accuracy, "torch", "PyTorch", GREY),
}

if __name__ == "__main__":
    main(FIGURES)
