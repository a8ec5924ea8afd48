"""The figures of the page on LightGBM and XGBoost, from the curves of examples/boosting.py.

They need LightGBM and take some minutes: python docs/figures/gradient_boosting.py
"""

from __future__ import annotations

import runpy
from functools import cache, partial
from pathlib import Path

import numpy as np
from style import BLUE, GREEN, RED, main, panel

ROUNDS, SEEDS = 60, 5
EXPERIMENTS = ("weights", "soft", "focal", "noise")


@cache
def example():
    """The example's names. It imports LightGBM."""
    return runpy.run_path(str(Path(__file__).resolve().parents[2] / "examples" / "boosting.py"))


def draw(name, run=None):
    """Mean over the seeds, and a band of one standard deviation, of each loss."""
    experiment = example()["EXPERIMENTS"][name]
    curves = (run or example()["run"])(name, rounds=ROUNDS, seeds=SEEDS)
    axes = panel(experiment.title, "round", f"{experiment.measure}, held out")
    at = np.arange(1, ROUNDS + 1)
    for colour, (loss, values) in zip((BLUE, RED, GREEN), curves.items(), strict=True):
        mean, spread = values.mean(axis=0), values.std(axis=0)
        axes.plot(at, mean, color=colour, label=loss)
        axes.fill_between(at, mean - spread, mean + spread, color=colour, alpha=0.12, lw=0)
    axes.set(xlim=(1, ROUNDS))
    axes.legend(loc="upper right" if experiment.better == "lower" else "lower right")
    return axes


FIGURES = {f"boosting-{name}": partial(draw, name) for name in EXPERIMENTS}

if __name__ == "__main__":
    main(FIGURES)
