"""The worst error of every function, in units in the last place: what docs/numerics.md quotes.

    python fuzz/accuracy.py --rows 100000 --write

Random rows of every function with its options, in float32 and float64, on each instruction set that
the processor has, against long double (64 bits), whose own error is some thousandths of a float64's
ulp. An ulp is that of the exact result, or of its largest term where docs/numerics.md promises so;
results below the smallest normal number do not count. A row is made of (seed, case, batch) and its
place in the batch alone, and the worst one is kept with them: ``--only CASE --batch N`` makes it
again.

``--write`` puts the numbers into bench/results/worst-errors.json and the table into
docs/numerics.md; tests/test_docs.py holds the two together.

1. the cases; 2. one batch; 3. the table, the command line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import common
import over_classes
import over_elements
from conftest import LEVELS, load_level

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "worst-errors.json"
PAGE = ROOT / "docs" / "numerics.md"
MARKS = "<!-- worst errors -->", "<!-- end of worst errors -->"
TYPES = ("float32", "float64")
Generator = np.random.Generator

# ---- 1. the cases ----------------------------------------------------------------------------


class Case(NamedTuple):
    """A function with options, and what is promised of its results in ulp."""

    name: str
    options: str
    promised: str
    kind: str
    more: Callable[[Generator, int, int], dict[str, Any]]


def none(rng: Generator, samples: int, classes: int) -> dict[str, Any]:
    return {}


def just(**options: Any) -> Callable[[Generator, int, int], dict[str, Any]]:
    return lambda rng, samples, classes: options


def weights(*names: str) -> Callable[[Generator, int, int], dict[str, Any]]:
    def made(rng: Generator, samples: int, classes: int) -> dict[str, Any]:
        return {
            name: rng.uniform(0.5, 2, classes if name in ("weight", "alpha") else samples)
            for name in names
        }

    return made


def element_weights(*names: str) -> Callable[[Generator, int, int], dict[str, Any]]:
    return lambda rng, samples, _: {name: rng.uniform(0.5, 2, samples) for name in names}


def focal(gamma: float, **options: Any) -> Callable[[Generator, int, int], dict[str, Any]]:
    return just(gamma=gamma, **options)


CE, BCE = "cross_entropy", "binary_cross_entropy_with_logits"
CASES = [
    Case(CE, "class indices", "4", "index", none),
    Case(CE, "weight, sample_weight", "4 + ½ each", "index", weights("weight", "sample_weight")),
    Case(CE, "label_smoothing=0.1", "4; gradient *", "smooth", just(label_smoothing=0.1)),
    Case(CE, "probabilities", "4; gradient *", "soft", none),
    Case(CE, "probabilities, label_smoothing=0.1", "4; gradient *", "soft",
         just(label_smoothing=0.1)),
    Case(CE, "temperature=0.7", "4; float64 *", "index", just(temperature=0.7)),
    Case(CE, "softcap=15", "4; float64 *, gradient 6", "index", just(softcap=15.0)),
    Case(CE, "z_loss=0.01", "4 *, float64 6", "index", just(z_loss=0.01)),
    Case("softmax_focal_loss", "gamma=0.5", "5.5", "focal", focal(0.5)),
    Case("softmax_focal_loss", "gamma=2", "10", "focal", focal(2.0)),
    Case("softmax_focal_loss", "gamma=5", "19", "focal", focal(5.0)),
    Case("nll_loss", "", "½", "nll", none),
    Case("softmax", "", "4", "softmax", none),
    Case("log_softmax", "", "4", "log_softmax", none),
    Case("logsumexp", "", "4 *", "logsumexp", none),
    Case("score_samples", "", "4", "score", none),
    Case(BCE, "targets 0 and 1", "4", "logits hard", none),
    Case(BCE, "targets between", "4; gradient *", "logits soft", none),
    Case(BCE, "weight, pos_weight", "4 + ½ each", "logits hard",
         element_weights("weight", "pos_weight")),
    Case("binary_cross_entropy", "targets 0 and 1", "4 *", "bce hard", none),
    Case("binary_cross_entropy", "targets between", "4 *", "bce soft", none),
    Case("kl_div", "", "4 *", "kl", none),
    Case("kl_div", "log_target", "4", "kl log", just(log_target=True)),
    Case("sigmoid_focal_loss", "gamma=0.5", "4 *", "focal hard", focal(0.5)),
    Case("sigmoid_focal_loss", "gamma=2", "4 *", "focal hard", focal(2.0)),
    Case("sigmoid_focal_loss", "gamma=5", "5 *", "focal hard", focal(5.0)),
    Case("sigmoid_focal_loss", "gamma=2, targets between", "5 *", "focal soft", focal(2.0)),
    Case("sigmoid", "", "4", "sigmoid", none),
    Case("log_sigmoid", "", "4", "log_sigmoid", none),
    Case("softplus", "", "4", "softplus", none),
]  # fmt: skip
#: What is promised of second derivatives.
SECOND = {CE: "6 *", BCE: "5 + ½ each", "sigmoid_focal_loss": "6 *"}
CLASSES = (2, 3, 10, 33, 100, 300)

# ---- 2. one batch ----------------------------------------------------------------------------


def logits(rng: Generator, samples: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of several scales; ordinary, confident and hopeless targets."""
    x = rng.standard_normal((samples, classes)) * rng.choice([0.1, 1, 5, 20, 60], (samples, 1))
    target = rng.integers(0, classes, samples)
    way = rng.integers(5, size=samples)
    target = np.where(way == 1, x.argmax(axis=1), target)
    target = np.where(way == 2, x.argmin(axis=1), target)
    rows = np.flatnonzero(way == 3)
    x[rows, target[rows]] = x[rows].max(axis=1) + rng.uniform(0, 80, rows.size)
    return x, target


def batch(case: Case, rng: Generator, dtype: str) -> tuple[int, dict, dict]:
    """How many rows, functions that compute quantities of them, and the exact ones with sizes."""
    kind, _, ending = case.kind.partition(" ")
    if case.kind in over_classes.KINDS:
        classes = int(rng.choice(CLASSES))
        samples = max(6000 // classes, 8)
        x, target = logits(rng, samples, classes)
        x = x.astype(dtype)
        if case.kind == "soft":
            p = rng.gamma(0.5, size=x.shape)
            target = (p / p.sum(axis=1, keepdims=True)).astype(dtype)
        options = case.more(rng, samples, classes)
        problem = over_classes.Problem(
            case.kind, x, target, 1, {"ignore_index": -100, **options}
            if case.kind not in ("softmax", "log_softmax", "logsumexp", "score", "soft")
            else options, False,
        )  # fmt: skip
        e = over_classes.Exactly(problem)
        return samples, *quantities_over_classes(case, problem, e)
    samples = 3000
    kinds = {"float32": 80.0, "float64": 600.0}
    x = rng.standard_normal(samples) * rng.choice([0.01, 1, 5, 20], samples)
    x = np.where(rng.random(samples) < 0.2, rng.uniform(-1, 1, samples) * kinds[dtype], x)
    target = rng.integers(0, 2, samples) if ending == "hard" else rng.random(samples).astype(dtype)
    options = case.more(rng, samples, 0)
    if kind == "bce":
        x = rng.random(samples)
        x = np.where(rng.random(samples) < 0.3, 10.0 ** rng.uniform(-30, 0, samples), x)
    elif kind == "kl":
        x = -np.abs(x)
        near = (x * (1 + rng.standard_normal(samples) * 0.01)).clip(-60)
        target = (near if ending == "log" else np.exp(near)).astype(dtype)
        options = {**options}
    x = x.astype(dtype)
    if case.kind in over_elements.FUNCTIONS:
        wide = common.exact(x)
        want = {
            "sigmoid": lambda: over_elements._sigmoid(wide),
            "softplus": lambda: over_elements._softplus(wide),
            "log_sigmoid": lambda: -over_elements._softplus(-wide),
        }[case.kind]()
        return samples, {"value": lambda fl: getattr(fl, case.name)(x)}, {"value": (want, want)}
    kind = "kl log" if case.kind == "kl log" else kind
    e = over_elements.exactly(over_elements.Problem(kind, x, target, options, False))

    def both(fl: Any) -> Any:
        f = getattr(fl, f"{case.name}_value_and_grad")
        return f(x, target, reduction="none", **options)

    calls = {"loss": lambda fl: both(fl)[0], "gradient": lambda fl: both(fl)[1]}
    exact = {"loss": (e.losses, e.loss_sizes), "gradient": (e.gradients, e.gradient_sizes)}
    if e.hess is not None:
        calls["second"] = lambda fl: getattr(fl, f"{case.name}_grad_and_hess")(
            x, target, **options
        )[1]
        exact["second"] = e.hess, e.hess_sizes
    return samples, calls, exact


def quantities_over_classes(
    case: Case, problem: over_classes.Problem, e: over_classes.Exactly
) -> tuple[dict, dict]:
    x, target, options = problem.x, problem.target, problem.options
    if case.kind in ("softmax", "log_softmax"):
        want = e.p if case.kind == "softmax" else -e.nll
        return {"value": lambda fl: getattr(fl, case.name)(x, axis=1)}, {"value": (want, want)}
    if case.kind == "logsumexp":
        top, rest = e.wide.max(axis=-1), e.nll.min(axis=-1)
        size = np.maximum(np.abs(top), rest)
        return {"value": lambda fl: fl.logsumexp(x, axis=1)}, {"value": (top + rest, size)}
    if case.kind == "score":
        own = -np.take_along_axis(e.nll, target[:, None], axis=1)[:, 0]
        top = -e.nll.min(axis=1)
        entropy = (e.p * e.nll).sum(axis=1)
        calls = {
            "log_prob": lambda fl: fl.score_samples(x, target).log_prob,
            "predicted_log_prob": lambda fl: fl.score_samples(x, target).predicted_log_prob,
            "entropy": lambda fl: fl.score_samples(x, target).entropy,
        }
        exact = {"log_prob": own, "predicted_log_prob": top, "entropy": entropy}
        return calls, {name: (want, want) for name, want in exact.items()}
    function = over_classes.NAMES[case.kind]

    def both(fl: Any) -> Any:
        f = getattr(fl, f"{function}_value_and_grad")
        return f(x, target, reduction="none", **options)

    calls = {"loss": lambda fl: both(fl)[0], "gradient": lambda fl: both(fl)[1]}
    t = e.terms
    exact = {"loss": (t.losses, t.loss_sizes), "gradient": (t.gradients, t.gradient_sizes)}
    if function == CE and "softcap" not in options and "temperature" not in options:
        calls["second"] = lambda fl: fl.cross_entropy_grad_and_hess(x, target, **options)[1]
        exact["second"] = e.second_derivatives()
    return calls, exact


def errors(got: np.ndarray, want: np.ndarray, size: np.ndarray) -> np.ndarray:
    """In ulp of the larger of the exact number and `size`; 0 below the normal numbers."""
    info = np.finfo(got.dtype)
    with np.errstate(all="ignore"):
        known = np.maximum(np.abs(want), np.abs(size)).astype(np.float64)
        scale = np.spacing(known.astype(got.dtype)).astype(np.float64)
        error = np.abs(common.exact(got) - want).astype(np.float64) / scale
    return np.where((np.abs(want) >= info.smallest_normal) & (known < info.max), error, 0.0)


# ---- 3. the table, the command line ----------------------------------------------------------


def measured(
    cases: list[int], rows: int, seed: int, only: int | None
) -> dict[str, list[dict[str, Any]]]:
    levels = {}
    for level in LEVELS:
        try:
            levels[level] = load_level(level)
        except ImportError:
            continue
    found = []
    for number in cases:
        case = CASES[number]
        for dtype in TYPES:
            done, part = 0, only or 0
            worst: dict[str, dict[str, Any]] = {}
            start = time.monotonic()
            while done < rows:
                rng = np.random.default_rng([seed, number, part])
                with np.errstate(all="ignore"):
                    samples, calls, exact = batch(case, rng, dtype)
                for level, fl in levels.items():
                    for name, call in calls.items():
                        want, size = exact[name]
                        error = errors(call(fl), want, size)
                        error = error.reshape(samples, -1).max(axis=1)
                        row = int(error.argmax())
                        known = worst.setdefault(name, {"ulp": -1.0})
                        if error[row] > known["ulp"]:
                            known.update(
                                ulp=round(float(error[row]), 3), level=level, batch=part, row=row
                            )
                done, part = done + samples, part + 1
                if only is not None:
                    break
            for name, one in worst.items():
                found.append({"case": number, "function": case.name, "options": case.options,
                              "type": dtype, "result": name, "rows": done, **one})  # fmt: skip
            print(
                f"{case.name} {case.options} {dtype}: "
                + ", ".join(f"{name} {one['ulp']:.2f}" for name, one in worst.items())
                + f" ({time.monotonic() - start:.0f} s)",
                flush=True,
            )
    return {"seed": seed, "levels": list(levels), "results": found}


def table(report: dict[str, Any]) -> str:
    """Markdown: a line for each function, options and result."""
    lines = [
        "| function | result | promised | worst, float32 | worst, float64 |",
        "| --- | --- | --- | --- | --- |",
    ]
    cells: dict[tuple[int, str], dict[str, float]] = {}
    for one in report["results"]:
        cells.setdefault((one["case"], one["result"]), {})[one["type"]] = one["ulp"]
    names = {"second": "second derivative"}
    for (number, result), ulps in cells.items():
        case = CASES[number]
        name = f"`{case.name}`" + (f", {case.options}" if case.options else "")
        numbers = " | ".join(f"{ulps[dtype]:.2f}" for dtype in TYPES)
        promised = SECOND[case.name] if result == "second" else case.promised
        lines.append(f"| {name} | {names.get(result, result)} | {promised} | {numbers} |")
    rows = min(one["rows"] for one in report["results"])
    levels = " and ".join(report["levels"])
    lines += ["", f"At least {rows:,} rows each, on {levels}; seed {report['seed']}."]
    return "\n".join(lines)


def on_page(text: str, report: dict[str, Any]) -> str:
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{table(report)}\n{MARKS[1]}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="of each case and type")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the case of this number alone")
    parser.add_argument("--batch", type=int, help="this batch alone")
    parser.add_argument("--write", action="store_true", help="keep the numbers and the table")
    arguments = parser.parse_args()
    cases = list(range(len(CASES))) if arguments.only is None else [arguments.only]
    report = measured(cases, arguments.rows, arguments.seed, arguments.batch)
    print(table(report))
    if arguments.write:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
        PAGE.write_text(on_page(PAGE.read_text(), report))


if __name__ == "__main__":
    main()
