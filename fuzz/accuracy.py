"""The worst error of every function, in units in the last place: what docs/numerics.md quotes.

    python fuzz/accuracy.py --rows 100000 --write

Random rows of every function with its options, in float32 and float64, on each instruction set that
the processor has, against long double (64 bits), whose own error is some thousandths of a float64's
ulp. An ulp is that of the exact result, or of its largest term where docs/numerics.md promises so;
results below the smallest normal number do not count. A row is made of (seed, case, batch) and its
place in the batch alone, and the worst one is kept with them: ``--only CASE --batch N`` makes it
again.

``--write`` puts the numbers into bench/results/worst-errors.json and the table into
docs/numerics.md; tests/test_docs.py holds the two together. The exit status is 1 where a promise is
broken.

1. the cases; 2. one batch; 3. the table, the command line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import common
import over_classes
import over_elements
import over_pairs
import over_scores
from conftest import LEVELS, load_level

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "worst-errors.json"
PAGE = ROOT / "docs" / "numerics.md"
MARKS = "<!-- worst errors -->", "<!-- end of worst errors -->"
TYPES = ("float32", "float64")
Generator = np.random.Generator

# ---- 1. the cases ----------------------------------------------------------------------------

Maker = Callable[[Generator, int, int], dict[str, Any]]


class Promise(NamedTuple):
    """At most so many ulp, for each type; `star`: of the largest term."""

    float32: float
    float64: float
    star: bool = False

    def __str__(self) -> str:
        text = f"{self.float32:g}".replace("0.5", "½")
        if self.float64 != self.float32:
            text += f", float64 {self.float64:g}"
        return text + (" *" if self.star else "")


def ulps(limit: float, wide: float | None = None, star: bool = False) -> Promise:
    return Promise(limit, limit if wide is None else wide, star)


def star(limit: float, wide: float | None = None) -> Promise:
    return ulps(limit, wide, True)


class Case(NamedTuple):
    """A function with options, and what is promised of its results."""

    name: str
    options: str
    kind: str
    promises: dict[str, Promise]
    more: Maker


#: Of most results.
FOUR = ulps(4)


def case(
    name: str, options: str, kind: str, more: Maker, value: Promise = FOUR,
    gradient: Promise | None = None, second: Promise | None = None, **others: Promise,
) -> Case:  # fmt: skip
    """A case; a gradient's promise is that of the value where nothing else is said."""
    promises = {"loss": value, "value": value, "gradient": gradient or value, **others}
    if second is not None:
        promises["second"] = second
    return Case(name, options, kind, promises, more)


def just(**options: Any) -> Maker:
    return lambda rng, samples, classes: options


def weights(*names: str) -> Maker:
    def made(rng: Generator, samples: int, classes: int) -> dict[str, Any]:
        return {
            name: rng.uniform(0.5, 2, classes if name in ("weight", "alpha") else samples)
            for name in names
        }

    return made


def element_weights(*names: str) -> Maker:
    return lambda rng, samples, _: {name: rng.uniform(0.5, 2, samples) for name in names}


CE, BCE, FOCAL = "cross_entropy", "binary_cross_entropy_with_logits", "sigmoid_focal_loss"
DISTIL, SCORE = "distillation_loss", "score_samples"
#: Of class indices: `weight` and `sample_weight` add half an ulp each.
CASES = [
    case(CE, "class indices", "index", just(), second=ulps(6)),
    case(CE, "weight, sample_weight", "index", weights("weight", "sample_weight"), ulps(5),
         second=ulps(6)),
    case(CE, "label_smoothing=0.1", "smooth", just(label_smoothing=0.1), gradient=star(4),
         second=star(6)),
    case(CE, "probabilities", "soft", just(), gradient=star(4), second=star(6)),
    case(CE, "probabilities, label_smoothing=0.1", "soft", just(label_smoothing=0.1),
         gradient=star(4), second=star(6)),
    case(CE, "temperature=0.7", "index", just(temperature=0.7), star(4), second=star(6)),
    case(CE, "softcap=15", "index", just(softcap=15.0), star(4), star(4, 6), star(6, 8)),
    case(CE, "z_loss=0.01", "index", just(z_loss=0.01), star(4, 6), second=star(6)),
    *(case("softmax_focal_loss", f"gamma={g:g}", "focal", just(gamma=g), ulps(4 + 3 * g),
           second=star(6 + 3 * g)) for g in (0.5, 2.0, 5.0)),
    case("nll_loss", "", "nll", just(), ulps(0.5)),
    case("linear_cross_entropy", "exact products", "layer", just()),
    *(case(DISTIL, f"{direction}{more}", "distil", just(direction=direction, **options),
           ulps(8, 10), star(4, 8))
      for direction in ("forward", "reverse")
      for more, options in (("", {}), (", temperature=3", {"temperature": 3.0}))),
    case("compare_logits", "", "compare", just(), kl=ulps(8, 10), reverse_kl=ulps(8, 10),
         log_prob=ulps(4), other_log_prob=ulps(4)),
    case("softmax", "", "softmax", just()),
    case("log_softmax", "", "log_softmax", just()),
    case("logsumexp", "", "logsumexp", just(), star(4)),
    case("logsumexp", "b", "sum", weights("weight"), star(4)),
    *(case(SCORE, more, "score", just(**options), log_prob=own, predicted_log_prob=own,
           entropy=own._replace(float64=5), margin=margin, top_log_probs=own,
           logsumexp=margin if more else star(4))
      for more, options, own, margin in (
          ("", {}, ulps(4), ulps(0.5)),
          ("temperature=0.7", {"temperature": 0.7}, star(4), star(4)),
          ("softcap=15", {"softcap": 15.0}, star(4), star(4, 6)))),
    case("brier_score", "", "brier", just()),
    case(BCE, "targets 0 and 1", "logits hard", just(), second=ulps(5)),
    case(BCE, "targets between", "logits soft", just(), gradient=star(4), second=ulps(5)),
    case(BCE, "weight, pos_weight", "logits hard", element_weights("weight", "pos_weight"),
         ulps(5), second=ulps(6)),
    case("binary_cross_entropy", "targets 0 and 1", "bce hard", just(), star(4)),
    case("binary_cross_entropy", "targets between", "bce soft", just(), star(4)),
    case("kl_div", "", "kl", just(), star(4)),
    case("kl_div", "log_target", "kl log", just(log_target=True), star(4)),
    case(FOCAL, "gamma=0.5", "focal hard", just(gamma=0.5), star(4), second=star(6)),
    case(FOCAL, "gamma=2", "focal hard", just(gamma=2.0), star(4), second=star(6)),
    case(FOCAL, "gamma=5", "focal hard", just(gamma=5.0), star(4, 5), second=star(6)),
    case(FOCAL, "gamma=2, targets between", "focal soft", just(gamma=2.0), star(5), second=star(6)),
    case("sigmoid", "", "sigmoid", just()),
    case("log_sigmoid", "", "log_sigmoid", just()),
    case("softplus", "", "softplus", just()),
]  # fmt: skip
CLASSES = (2, 3, 10, 33, 100, 300)

# ---- 2. one batch ----------------------------------------------------------------------------

#: How many rows, functions that compute quantities of them, and the exact ones with their sizes.
Batch = tuple[int, dict[str, Callable[[Any], Any]], dict[str, tuple[Any, Any]]]


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


def batch(case: Case, rng: Generator, dtype: str) -> Batch:
    first = case.kind.partition(" ")[0]
    if first in ("logits", "bce", "kl", "sigmoid", "log_sigmoid", "softplus") or " " in case.kind:
        return of_elements(case, rng, dtype)
    classes = int(rng.choice(CLASSES))
    samples = max(6000 // classes, 8)
    x, target = logits(rng, samples, classes)
    x = x.astype(dtype)
    options = case.more(rng, samples, classes)
    if case.kind in ("distil", "compare"):
        return of_pairs(case, rng, x, target, options)
    if case.kind in ("score", "brier"):
        return of_scores(case, x, target, options)
    if case.kind == "layer":
        return of_layers(case, rng, dtype, target, classes)
    if case.kind == "sum":
        return of_sums(case, x, options["weight"])
    if case.kind == "soft":
        p = rng.gamma(0.5, size=x.shape)
        target = (p / p.sum(axis=1, keepdims=True)).astype(dtype)
    elif case.kind not in ("softmax", "log_softmax", "logsumexp"):
        options = {"ignore_index": -100, **options}
    problem = over_classes.Problem(case.kind, x, target, 1, options, False)
    return samples, *quantities_over_classes(case, problem, over_classes.Exactly(problem))


def of_elements(case: Case, rng: Generator, dtype: str) -> Batch:
    kind, _, ending = case.kind.partition(" ")
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


def of_pairs(
    case: Case, rng: Generator, x: np.ndarray, target: np.ndarray, options: dict[str, Any]
) -> Batch:
    """The second model is another, or the first a little changed."""
    wide, samples = x.astype(float), len(x)
    noise = rng.standard_normal(x.shape)
    way = rng.integers(5, size=(samples, 1))
    small = 10.0 ** rng.uniform(-7, 0, (samples, 1))
    y = np.where(way == 0, noise * np.abs(wide).max(axis=1, keepdims=True) / 2, wide + noise)
    y = np.where(way == 2, wide + noise * small, y)
    y = np.where(way == 3, wide * (1 + noise * small), y)
    y = np.where(way == 4, wide + 5 + noise * small, y).astype(x.dtype)
    e = over_pairs.Exactly(x, y, 1, options.get("temperature", 1.0))
    unit = float(np.finfo(x.dtype).eps)

    def told(kl: Any) -> tuple[Any, Any]:
        # Divergences below 1e-30 are 0.
        return np.where(kl < 1e-30, 0, kl), kl

    if case.kind == "compare":
        names = ("kl", "reverse_kl", "log_prob", "other_log_prob")
        logs = [np.take_along_axis(a, target[:, None], 1)[:, 0] for a in (e.log_p, e.log_q)]
        exact = dict(zip(names, [told(e.kl), told(e.reverse_kl), *((a, a) for a in logs)],
                         strict=True))  # fmt: skip
        return samples, {
            name: lambda fl, name=name: getattr(fl.compare_logits(x, y, target), name)
            for name in names
        }, exact  # fmt: skip
    t = options.get("temperature", 1.0)
    losses, gradients, sizes = e.loss(options["direction"], t)
    if options["direction"] == "reverse":
        # So that what rounding leaves counts as 4 ulp.
        sizes = np.maximum(sizes, e.rounding(t) / (2 * unit))

    def both(fl: Any) -> Any:
        return fl.distillation_loss_value_and_grad(x, y, reduction="none", **options)

    losses = np.where(losses < 1e-30 * t * t, 0, losses)
    calls = {"loss": lambda fl: both(fl)[0], "gradient": lambda fl: both(fl)[1]}
    return samples, calls, {"loss": (losses, losses), "gradient": (gradients, sizes)}


def of_scores(case: Case, x: np.ndarray, target: np.ndarray, options: dict[str, Any]) -> Batch:
    given = {"ignore_index": -100, **options}
    e = over_scores.Exactly(over_scores.Problem(case.kind, x, target, 1, given, False))
    if case.kind == "brier":
        want = e.brier()
        call = {"value": lambda fl: fl.brier_score(x, target, reduction="none", **options)}
        return len(x), call, {"value": (want, want)}
    top = e.nll.min(axis=-1)
    largest = e.z.max(axis=-1)
    entropy = (e.p * e.nll).sum(axis=-1)
    others = np.where(np.arange(x.shape[1]) == target[:, None], -np.inf, e.z).max(axis=-1)
    own = e.pick(e.z)
    k = min(x.shape[1], 5)
    best = np.sort(e.nll, axis=-1)[:, :k]
    margin = own - others
    margin_size = np.abs(margin)
    if e.changed:
        margin_size = np.maximum(np.abs(own), np.abs(others))
    most = e.most[:, None]
    exact = {
        "log_prob": (-e.pick(e.nll), e.size(e.pick(e.nll))),
        "predicted_log_prob": (-top, e.size(top)),
        "entropy": (entropy, entropy * (1 + 2 * e.most)),
        "logsumexp": (largest + top, np.maximum(np.maximum(np.abs(largest), top), e.most)),
        "margin": (margin, margin_size),
        "top_log_probs": (-best, np.minimum(best * (1 + 2 * most), best + 2 * most)),
    }
    return len(x), {
        name: lambda fl, name=name: getattr(fl.score_samples(x, target, top_k=k, **options), name)
        for name in exact
    }, exact  # fmt: skip


def of_layers(case: Case, rng: Generator, dtype: str, target: np.ndarray, classes: int) -> Batch:
    """Products of small multiples of 1/8 are exact: the loss is that of the logits."""
    samples, features = len(target), int(rng.choice([1, 4, 16]))
    x, w = (
        (rng.integers(-40, 41, shape) / 8).astype(dtype)
        for shape in ((samples, features), (classes, features))
    )
    problem = over_classes.Problem("index", x @ w.T, target, 1, {"ignore_index": -100}, False)
    t = over_classes.Exactly(problem).terms
    call = {"loss": lambda fl: fl.linear_cross_entropy(x, w, target, reduction="none")}
    return samples, call, {"loss": (t.losses, t.loss_sizes)}


def of_sums(case: Case, x: np.ndarray, weight: np.ndarray) -> Batch:
    """logsumexp with weights above 0: its terms are rounded, so that 1 is the least size."""
    wide = common.exact(x)
    top = wide.max(axis=-1, keepdims=True)
    total = np.log((common.exact(weight) * np.exp(wide - top)).sum(axis=-1))
    size = np.maximum(np.maximum(np.abs(top[:, 0]), np.abs(total)), 1)
    call = {"value": lambda fl: fl.logsumexp(x, axis=1, b=weight)}
    return len(x), call, {"value": (top[:, 0] + total, size)}


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
    function = over_classes.NAMES[case.kind]

    def both(fl: Any) -> Any:
        f = getattr(fl, f"{function}_value_and_grad")
        return f(x, target, reduction="none", **options)

    calls = {"loss": lambda fl: both(fl)[0], "gradient": lambda fl: both(fl)[1]}
    t = e.terms
    exact = {"loss": (t.losses, t.loss_sizes), "gradient": (t.gradients, t.gradient_sizes)}
    if "second" in case.promises:
        second = f"{function}_grad_and_hess"
        calls["second"] = lambda fl: getattr(fl, second)(x, target, **options)[1]
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
        promised = case.promises[result]
        lines.append(f"| {name} | {names.get(result, result)} | {promised} | {numbers} |")
    rows = min(one["rows"] for one in report["results"])
    levels = " and ".join(report["levels"])
    lines += ["", f"At least {rows:,} rows each, on {levels}; seed {report['seed']}."]
    return "\n".join(lines)


def broken(report: dict[str, Any]) -> list[str]:
    """Results beyond what is promised of them."""
    lines = []
    for one in report["results"]:
        promise = CASES[one["case"]].promises[one["result"]]
        # Half an ulp is one rounding; a float64's is measured in 64 bits.
        if one["ulp"] > getattr(promise, one["type"]) + 0.001:
            lines.append(f"{one['function']} {one['options']} {one}: {promise} promised")
    return lines


def on_page(text: str, report: dict[str, Any]) -> str:
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{table(report)}\n{MARKS[1]}{after}"


def main() -> int:
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
    over = broken(report)
    print("", *over, f"{len(over)} promises broken", sep="\n")
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
