"""The speed that every loss is held to, and the cells in which a run misses it.

The numbers stand at the top, each once. ``losing`` names the cells in which another library is
faster; ``compare_limits``, ``roofline_limits`` and ``latency_limits`` hold the results of a script
against the limits. A limit whose cells were not measured is left out. This module imports no other
script, so that each can show its own limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from _common import Cell, geometric_mean, median, medians, seconds, size_name

Document = Mapping[str, Any]

# Times the speed of the fastest other library, in each cell: forward, value_and_grad.
ANY_LOSS = (1.5, 2.0)
BY_LOSS: dict[str, tuple[float, float]] = {
    "cross_entropy": (2.0, 4.0),
    "binary_cross_entropy_with_logits": (2.0, 4.0),
    # Forward it reads one number of each row, like everybody.
    "nll_loss": (1.0, 2.0),
    # The time is the matmuls'. The other ways are the three lines around our own loss, and PyTorch.
    "linear_cross_entropy": (1.0, 1.0),
}
# Few classes and segmentation.
BY_CELL: dict[Cell, tuple[float, float]] = {
    ("cross_entropy", (1_000_000, 10)): (2.0, 4.5),
    ("cross_entropy", (8, 21, 512, 512)): (2.0, 4.5),
}
MODES = ("forward", "value_and_grad")

# PyTorch eager, value_and_grad, cells of a million numbers and more: each, geometric mean.
EAGER, EAGER_MEAN = 10.0, 18.0
EAGER_LOSSES = ("cross_entropy", "binary_cross_entropy", "binary_cross_entropy_with_logits")
LARGE = 1_000_000
# Without out=: over the call with out= and the time that fresh pages take.
NEW_ARRAY = 1.1

# Share of the speed of a copy (value_and_grad) or read (forward) of the same logits.
SHARES: dict[tuple[int, ...], dict[str, float]] = {
    (8_192, 8_192): {"value_and_grad": 0.9, "forward": 0.6},
    (65_536, 1_000): {"value_and_grad": 0.9, "forward": 0.6},
    (1_024, 128_256): {"value_and_grad": 0.8},
}
BASE = {"value_and_grad": "copy", "forward": "read"}
# Share of the AVX-512 level's speed. AMD's family 26 has twice the lanes of family 25.
LEVELS = {"avx2": 0.75, "baseline": 0.12}
LEVELS_WIDE = {"avx2": 0.5, "baseline": 0.12}
WIDE_FAMILIES = {("AuthenticAMD", "26")}
# Share of linear speed-up, up to the memory's bandwidth.
SCALING = 0.9
HALVES = 1.0  # time of float16 and bfloat16 over that of float32
GROWTH = 1.6  # most over least time per element
BEYOND = 32 * 2**20  # bytes beside the gradient that count as constant

# Small calls: times ``x.max(axis=-1)`` of 32 × 10, and seconds of the first call of a process.
SMALL = 2.0
FIRST_CALL = 1e-3

# Accuracy, in units in the last place.
ULP = 4.0
# Two threads beside a process that holds one of two processors: time over that of one thread.
BUSY = 3.0
# Instructions of a call: growth over the committed count that is let pass.
COUNT_GROWTH = 0.05


class Limit(NamedTuple):
    """A limit, what it asks, what was measured, in which cell, and whether it is met."""

    limit: str
    asked: str
    measured: str
    where: str
    met: bool | None


def asked(loss: str, shape: Iterable[int], mode: str) -> float:
    """How many times as fast as the fastest other library a cell has to be."""
    pair = BY_CELL.get((loss, tuple(shape)), BY_LOSS.get(loss, ANY_LOSS))
    return pair[MODES.index(mode)]


def against_fastest(document: Document) -> dict[tuple[Cell, str], tuple[float, str]]:
    """``(cell, mode)`` to the fastest other library's time over fastloss's, and its name."""
    found = medians(document["results"])
    answer: dict[tuple[Cell, str], tuple[float, str]] = {}
    for (loss, shape, mode, peer), took in found.items():
        mine = found.get((loss, shape, mode, "fastloss"))
        if mine is None or peer.startswith("fastloss"):
            continue
        key = ((loss, shape), mode)
        answer[key] = min(answer.get(key, (math.inf, "")), (took / mine, peer))
    return answer


def losing(document: Document) -> list[str]:
    """A line for each cell in which another library is faster, the worst first."""
    behind = sorted(
        (ratio, loss, size_name(shape), mode, peer)
        for ((loss, shape), mode), (ratio, peer) in against_fastest(document).items()
        if ratio < 1
    )
    return [
        f"{loss} {size}, {mode}: {peer} takes {ratio:.2f} of the time"
        for ratio, loss, size, mode, peer in behind
    ]


def bridge_losing(document: Document) -> list[str]:
    """A line for each call and training step in which fastloss.torch is slower than PyTorch."""
    found = medians(document["results"])
    behind = sorted(
        (found[loss, shape, mode, "torch"] / took, loss, size_name(shape), mode)
        for (loss, shape, mode, peer), took in found.items()
        if peer == "fastloss-torch" and found.get((loss, shape, mode, "torch"), math.inf) < took
    )
    return [
        f"{loss} {size}, {mode}: PyTorch takes {ratio:.2f} of fastloss.torch's time"
        for ratio, loss, size, mode in behind
    ]


def compare_limits(document: Document) -> list[Limit]:
    """What ``compare.py`` decides: every loss against the fastest library, and PyTorch."""
    rows: list[Limit] = []
    ratios = against_fastest(document)
    for loss in dict.fromkeys(loss for (loss, _), _ in ratios):
        for mode in MODES:
            cells = {
                shape: found
                for ((name, shape), which), found in ratios.items()
                if (name, which) == (loss, mode)
            }
            # Cells with a limit of their own get a line of their own.
            for special in (False, True):
                held = {
                    shape: found
                    for shape, found in cells.items()
                    if ((loss, shape) in BY_CELL) == special
                }
                if not held:
                    continue
                shape, (ratio, peer) = min(held.items(), key=lambda item: item[1])
                number = asked(loss, shape, mode)
                rows.append(
                    Limit(
                        f"{loss}{', few classes,' if special else ''} {mode} / fastest peer",
                        f"≥ {number:g}×",
                        f"{ratio:.2f}×",
                        f"{'worst of ' + str(len(held)) + ': ' if len(held) > 1 else ''}"
                        f"{size_name(shape)}, {peer}",
                        ratio >= number,
                    )
                )
    return rows + _eager_limits(document) + _new_array_limits(document)


def _eager_limits(document: Document) -> list[Limit]:
    found = medians(document["results"])
    eager = {
        f"{loss} {size_name(shape)}": took / found[loss, shape, mode, "fastloss"]
        for (loss, shape, mode, peer), took in found.items()
        if (mode, peer) == ("value_and_grad", "torch")
        and math.prod(shape) >= LARGE
        and loss in EAGER_LOSSES
        and (loss, shape, mode, "fastloss") in found
    }
    if not eager:
        return []
    where = min(eager, key=lambda cell: eager[cell])
    mean = geometric_mean(eager.values())
    return [
        Limit(
            "value_and_grad / PyTorch eager, large",
            f"≥ {EAGER:g}×",
            f"{eager[where]:.2f}×",
            f"worst of {len(eager)}: {where}",
            eager[where] >= EAGER,
        ),
        Limit(
            "value_and_grad / PyTorch eager, mean",
            f"≥ {EAGER_MEAN:g}×",
            f"{mean:.2f}×",
            f"geometric mean of {len(eager)} large cells",
            mean >= EAGER_MEAN,
        ),
    ]


def _new_array_limits(document: Document) -> list[Limit]:
    found = medians(document["results"])
    costs = {
        (loss, shape): (
            took
            / (
                found[loss, shape, mode, "fastloss"]
                + found[loss, shape, mode, "fastloss-fresh-pages"]
            )
        )
        for (loss, shape, mode, peer), took in found.items()
        if (mode, peer) == ("value_and_grad", "fastloss-new-array")
        and math.prod(shape) >= LARGE
        and (loss, shape, mode, "fastloss-fresh-pages") in found
    }
    if not costs:
        return []
    worst = max(costs, key=lambda cell: costs[cell])
    return [
        Limit(
            "value_and_grad without out= / with it and fresh pages",
            f"≤ {NEW_ARRAY:g}",
            f"{costs[worst]:.2f}",
            f"worst of {len(costs)}: {worst[0]} {size_name(worst[1])}",
            costs[worst] <= NEW_ARRAY,
        )
    ]


def latency_limits(document: Document) -> list[Limit]:
    """What ``latency.py`` decides: small calls, and the first one of a process."""
    rows = []
    took = {(row["group"], row["call"]): median(row) for row in document["results"]}
    # The yardstick is the maximum over rows of 32 × 10, for both groups.
    yard = next(
        (
            time
            for (group, call), time in took.items()
            if "32 × 10" in group and call == "NumPy: x.max(axis=-1)"
        ),
        None,
    )
    for (group, call), time in took.items():
        if call == "value_and_grad, out=" and yard:
            rows.append(
                Limit(
                    f"{group}, value_and_grad / x.max(axis=-1) of 32 × 10",
                    f"≤ {SMALL:g}",
                    f"{time / yard:.2f}",
                    f"{seconds(time)} and {seconds(yard)}",
                    time <= SMALL * yard,
                )
            )
        elif call == "the first call of a process":
            rows.append(
                Limit(
                    f"{group}, first call after import",
                    f"≤ {seconds(FIRST_CALL)}",
                    seconds(time),
                    "",
                    time <= FIRST_CALL,
                )
            )
    return rows


def roofline_limits(document: Document) -> list[Limit]:
    """What ``roofline.py`` decides: memory, types, growth, threads and instruction sets."""
    parts: tuple[Callable[[Document], list[Limit]], ...] = (
        _share_limits,
        _half_limits,
        _growth_limits,
        _memory_limits,
        _scaling_limits,
        _level_limits,
    )
    return [row for part in parts for row in part(document)]


def _share_limits(document: Document) -> list[Limit]:
    rows = []
    floor = {(tuple(row["shape"]), row["what"]): median(row) for row in document.get("floor", [])}
    for shape, shares in SHARES.items():
        for mode, number in shares.items():
            base = BASE[mode]
            if (shape, mode) in floor and (shape, base) in floor:
                share = floor[shape, base] / floor[shape, mode]
                rows.append(
                    Limit(
                        f"{mode}, share of the {base}'s speed",
                        f"≥ {number:g}",
                        f"{share:.2f}",
                        size_name(shape),
                        share >= number,
                    )
                )
    return rows


def _half_limits(document: Document) -> list[Limit]:
    rows = []
    kinds = {
        row["dtype"]: (median(row), row["shape"])
        for row in document.get("dtypes", [])
        if row["mode"] == "value_and_grad"
    }
    for dtype in ("float16", "bfloat16"):
        if {dtype, "float32"} <= kinds.keys():
            ratio = kinds[dtype][0] / kinds["float32"][0]
            rows.append(
                Limit(
                    f"{dtype} value_and_grad, time over float32's",
                    f"≤ {HALVES:g}",
                    f"{ratio:.2f}",
                    size_name(kinds[dtype][1]),
                    ratio < HALVES + 0.005,
                )
            )
    return rows


def _growth_limits(document: Document) -> list[Limit]:
    rows = []
    for section, span in (("growth", "elements"), ("classes", "classes")):
        for mode in MODES:
            points = [row for row in document.get(section, []) if row["mode"] == mode]
            if section == "classes":
                points = [row for row in points if row["classes"] >= 100]
            if len(points) > 1:
                costs = {row[span]: median(row) / row["elements"] for row in points}
                ratio = max(costs.values()) / min(costs.values())
                slow, fast = (end(costs, key=lambda n: costs[n]) for end in (max, min))
                rows.append(
                    Limit(
                        f"{mode}, most over least ns/element, {span}",
                        f"≤ {GROWTH:g}",
                        f"{ratio:.2f}",
                        f"{min(costs):,} to {max(costs):,}; most at {slow:,}, least at {fast:,}",
                        ratio <= GROWTH,
                    )
                )
    return rows


def _memory_limits(document: Document) -> list[Limit]:
    rows = []
    for mode in MODES:
        taken = [row for row in document.get("memory", []) if row["mode"] == mode]
        if taken:
            row = max(taken, key=_beyond)
            rows.append(
                Limit(
                    f"{mode}, memory beyond the gradient",
                    "constant",
                    f"{_beyond(row) / 2**20:.1f} MiB",
                    f"worst: {row['dtype']}, {row['logits_bytes'] / 2**30:.2g} GiB of logits",
                    _beyond(row) < BEYOND,
                )
            )
    return rows


def _beyond(row: Mapping[str, Any]) -> int:
    """Bytes that a call took beside its gradient."""
    return max(0, int(row["growth_bytes"] - row["gradient_bytes"]))


def _scaling_limits(document: Document) -> list[Limit]:
    rows = []
    points = document.get("threads", [])
    for mode in MODES:
        took = {
            (tuple(row["shape"]), row["threads"]): median(row)
            for row in points
            if row["mode"] == mode
        }
        shares = {
            (shape, count): took[shape, 1] / (time * count)
            for (shape, count), time in took.items()
            if count > 1 and (shape, 1) in took
        }
        if shares:
            worst = min(shares, key=lambda key: shares[key])
            rows.append(
                Limit(
                    f"{mode}, share of linear speed-up over threads",
                    f"≥ {SCALING:g} up to the bandwidth",
                    f"{shares[worst]:.2f}",
                    f"worst: {size_name(worst[0])}, {worst[1]} threads",
                    shares[worst] >= SCALING,
                )
            )
    return rows


def _level_limits(document: Document) -> list[Limit]:
    rows = []
    processor = document["machine"].get("processor", {})
    wide = (processor.get("vendor"), processor.get("family")) in WIDE_FAMILIES
    costs = {
        (row["level"], tuple(row["shape"]), row["mode"]): median(row)
        for row in document.get("levels", [])
    }
    for level, number in (LEVELS_WIDE if wide else LEVELS).items():
        for mode in MODES:
            shares = {
                shape: best / costs[level, shape, mode]
                for (which, shape, kind), best in costs.items()
                if which == "avx512" and kind == mode and (level, shape, mode) in costs
            }
            if shares:
                worst = min(shares, key=lambda shape: shares[shape])
                rows.append(
                    Limit(
                        f"{level} {mode}, share of avx512's speed",
                        f"≥ {number:g}",
                        f"{shares[worst]:.2f}",
                        f"worst: {size_name(worst)}",
                        shares[worst] >= number,
                    )
                )
    return rows
