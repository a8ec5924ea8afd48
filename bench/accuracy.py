"""Worst error of fastloss, PyTorch, optax, scikit-learn and SciPy, in units in the last place.

Losses and gradients of cross-entropy (class indices) and BCE with logits, in float32 and float64,
against exact values.

The exact values are computed in 80-bit long double (64-bit significands, 11 bits more than
float64's) by the forms without cancellation, so they are good to a few thousandths of a float64
ulp, and far better in float32. ``check_reference`` confirms that against mpmath with 60 digits in
every run, and the table says what it found. Where long double is no wider than double, float64 is
left out.

1. the samples: classes, scales, ordinary, confident and hopeless ones;
2. the exact values, and an error in ulp;
3. each library's answer;
4. the table, the picture, the command line.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.table import Table

from _common import (
    ACCENT,
    INK,
    MUTED,
    active_level,
    console,
    load,
    machine,
    own,
    progress_bar,
    pyplot,
    save,
)
from limits import ULP

Long = np.longdouble
Array = np.ndarray
Answer = Callable[[Array, Array], tuple[Any, Any]]
CLASSES = (2, 3, 10, 100, 1_000, 10_000, 100_000)
SCALES = (0.1, 1.0, 5.0, 20.0, 60.0)
KINDS = ("ordinary", "confident", "hopeless")
# The deepest that a sample is confident: exact losses down to 1e-37 in float32, 1e-260 in float64.
DEPTH = {"float32": 85.0, "float64": 600.0}
TITLES = {
    "fastloss": "fastloss",
    "torch": "PyTorch",
    "optax": "optax",
    "scikit-learn": "scikit-learn",
    "scipy": "SciPy",
}


class Sample(NamedTuple):
    """A batch of one kind."""

    loss: str
    kind: str
    classes: int
    scale: float
    x: Array
    target: Array


def samples(loss: str, dtype: str, quick: bool) -> Iterator[Sample]:
    """Batches of every number of classes, scale and kind, the same ones in every run."""
    elements, most = (20_000, 300) if quick else (500_000, 4_000)
    random = np.random.default_rng(20)
    depth = DEPTH[dtype]
    if loss == "cross_entropy":
        for classes in CLASSES:
            rows = min(max(elements // classes, 2), most)
            for scale in SCALES:
                for kind in KINDS:
                    x = scale * random.standard_normal((rows, classes))
                    target = random.integers(classes, size=rows)
                    if kind != "ordinary":
                        # Move the target's logit beyond the rest of the sum, by 0 to ``depth``.
                        row = np.arange(rows)
                        x[row, target] = -np.inf
                        top = x.max(axis=1)
                        rest = top + np.log(np.exp(x - top[:, None]).sum(axis=1))
                        away = random.uniform(0, depth, rows)
                        x[row, target] = rest + (away if kind == "confident" else -away)
                    yield Sample(loss, kind, classes, scale, x.astype(dtype), target)
        return
    for scale in SCALES:
        for kind in KINDS:
            target = random.integers(2, size=elements // 10).astype(dtype)
            if kind == "ordinary":
                x = np.clip(scale * random.standard_normal(target.size), -depth, depth)
            else:
                sign = 2 * target - 1
                x = (
                    random.uniform(0, depth, target.size)
                    * sign
                    * (1 if kind == "confident" else -1)
                )
            yield Sample(loss, kind, 1, scale, x.astype(dtype), target)


def _difference(a: Array, b: Array) -> tuple[Array, Array]:
    """``a - b`` and the rounding error of that, so that their sum is exact (Knuth's two-sum)."""
    with np.errstate(invalid="ignore"):
        near = a - b
        part = near - a
        lost = (a - (near - part)) - (b + part)
    return near, np.where(np.isfinite(near), lost, 0)


def exact_cross_entropy(x: Array, target: Array) -> tuple[Array, Array]:
    """Loss and gradient of each row in long double: the target is left out of the sum."""
    row = np.arange(len(x))
    wide = x.astype(Long)
    at_target = wide[row, target]
    others = wide.copy()
    others[row, target] = -np.inf
    top = others.max(axis=1)
    below, lost = _difference(others, top[:, None])
    powers = np.exp(below) * (1 + lost)  # over exp(top)
    rest = powers.sum(axis=1)
    lead, lost = _difference(at_target, top)  # positive where the target is the largest
    shrink = np.where(lead > 0, np.exp(-np.maximum(lead, 0)) * (1 - lost), 1)
    own = np.where(lead > 0, 1, np.exp(np.minimum(lead, 0)) * (1 + lost))
    inside = rest * shrink  # all but the target; own, the target: both over the larger of the two
    loss = np.where(lead >= 0, np.log1p(inside), np.log(rest + own) - lead)
    total = inside + own
    grad = powers * (shrink / total)[:, None]
    grad[row, target] = -inside / total
    return loss, grad


def exact_bce(x: Array, target: Array) -> tuple[Array, Array]:
    """Loss and gradient of BCE with logits and targets of 0 or 1, in long double."""
    z = np.where(target > 0, -x.astype(Long), x.astype(Long))  # the logit of being wrong
    tail = np.exp(-np.abs(z))
    loss = np.maximum(z, 0) + np.log1p(tail)
    wrong = np.where(z >= 0, 1, tail) / (1 + tail)
    return loss, np.where(target > 0, -wrong, wrong)


EXACT = {
    "cross_entropy": exact_cross_entropy,
    "binary_cross_entropy_with_logits": exact_bce,
}


def ulp_errors(answer: Array, exact: Array, dtype: str) -> Array:
    """Distance in units in the last place of the exact value; infinite for a NaN or infinity.

    Below the smallest normal number the unit stays the smallest one that there is.
    """
    kind = np.finfo(dtype)
    _, exponent = np.frexp(exact)
    exponent = np.maximum(exponent, kind.minexp + 1)
    unit = np.ldexp(Long(1), exponent - 1 - kind.nmant)
    with np.errstate(invalid="ignore"):
        error = np.abs(np.asarray(answer).astype(Long) - exact) / unit
    return np.where(np.isfinite(error), error, np.inf).astype(float)


def check_reference(quick: bool) -> float:
    """Largest error of the long-double values on float64 logits, in float64 ulp, by mpmath."""
    import mpmath

    worst = 0.0
    with mpmath.workdps(60):
        for sample in samples("cross_entropy", "float64", True):
            if sample.classes > (100 if quick else 1_000):
                break
            loss, grad = exact_cross_entropy(sample.x[:2], sample.target[:2])
            for number, target in enumerate(sample.target[:2]):
                row = [mpmath.mpf(float(value)) for value in sample.x[number]]
                top = row[target]
                rest = mpmath.fsum(
                    mpmath.exp(value - top) for place, value in enumerate(row) if place != target
                )
                pairs = [
                    (loss[number], mpmath.log1p(rest)),
                    (grad[number, target], -rest / (1 + rest)),
                ]
                for mine, exact in pairs:
                    wide = mpmath.mpf(float(mine)) + mpmath.mpf(float(mine - Long(float(mine))))
                    error = abs(wide - exact) / abs(exact) * 2**53
                    worst = max(worst, float(error))
    return worst


def fastloss_answers() -> dict[str, Answer]:
    """Fused loss and gradient, per sample."""
    import fastloss

    def answer(name: str) -> Answer:
        both = getattr(fastloss, f"{name}_value_and_grad")
        return lambda x, target: both(x, target, reduction="none")

    return {name: answer(name) for name in EXACT if hasattr(fastloss, name)}


def torch_answers() -> dict[str, Answer]:
    """Losses without reduction, and backward of their sum."""
    import torch

    def answer(name: str) -> Answer:
        function = getattr(torch.nn.functional, name)

        def both(x: Array, target: Array) -> tuple[Array, Array]:
            leaf: Any = torch.from_numpy(x).requires_grad_()
            loss = function(leaf, torch.from_numpy(target), reduction="none")
            loss.sum().backward()
            return loss.detach().numpy(), leaf.grad.numpy()

        return both

    return {name: answer(name) for name in EXACT}


def optax_answers() -> dict[str, Answer]:
    """optax under jit, 64-bit types switched on."""
    import jax
    import optax

    settings: Any = jax.config
    settings.update("jax_enable_x64", True)

    def answer(function: Any) -> Answer:
        def total(x: Any, target: Any) -> Any:
            loss = function(x, target)
            return loss.sum(), loss

        both = jax.jit(jax.grad(total, has_aux=True))

        def call(x: Array, target: Array) -> tuple[Array, Array]:
            grad, loss = both(x, target)
            return np.asarray(loss), np.asarray(grad)

        return call

    return {
        "cross_entropy": answer(optax.softmax_cross_entropy_with_integer_labels),
        "binary_cross_entropy_with_logits": answer(optax.sigmoid_binary_cross_entropy),
    }


def sklearn_answers() -> dict[str, Answer]:
    """The Cython losses under its linear models (a private module)."""
    from sklearn._loss import HalfBinomialLoss, HalfMultinomialLoss

    def cross_entropy(x: Array, target: Array) -> tuple[Array, Array]:
        loss = HalfMultinomialLoss(n_classes=x.shape[1])
        answer: tuple[Array, Array] = loss.loss_gradient(target.astype(x.dtype), x)
        return answer

    return {
        "cross_entropy": cross_entropy,
        "binary_cross_entropy_with_logits": lambda x, t: HalfBinomialLoss().loss_gradient(t, x),
    }


def scipy_answers() -> dict[str, Answer]:
    """log_softmax, log_expit and expit, as their users join them."""
    from scipy import special

    def cross_entropy(x: Array, target: Array) -> tuple[Array, Array]:
        row = np.arange(len(x))
        log_probs = special.log_softmax(x, axis=1)
        grad = np.exp(log_probs)
        grad[row, target] -= 1
        return -log_probs[row, target], grad

    return {
        "cross_entropy": cross_entropy,
        "binary_cross_entropy_with_logits": lambda x, t: (
            -np.where(t > 0, special.log_expit(x), special.log_expit(-x)),
            special.expit(x) - t,
        ),
    }


LIBRARIES: dict[str, Callable[[], dict[str, Answer]]] = {
    "fastloss": fastloss_answers,
    "torch": torch_answers,
    "optax": optax_answers,
    "scikit-learn": sklearn_answers,
    "scipy": scipy_answers,
}


def run(libraries: list[str], quick: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Worst errors by loss, type, quantity, kind and library, and the picture's points."""
    answers = {}
    for name in libraries:
        try:
            answers[name] = LIBRARIES[name]()
        except ImportError as absence:
            console.print(f"[yellow]skipped {TITLES[name]}:[/] {str(absence).splitlines()[0]}")
    dtypes = ["float32"] + (["float64"] if np.finfo(Long).nmant >= 63 else [])
    worst: dict[tuple[str, ...], dict[str, Any]] = {}
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in answers}
    total = len(dtypes) * (len(CLASSES) + 1) * len(SCALES) * len(KINDS)
    random = np.random.default_rng(3)
    with progress_bar() as bar:
        task = bar.add_task("", total=total)
        for dtype in dtypes:
            for loss, exactly in EXACT.items():
                for sample in samples(loss, dtype, quick):
                    bar.update(task, description=f"{loss} {dtype} {sample.classes:,} classes")
                    exact = exactly(sample.x, sample.target)
                    for name, functions in answers.items():
                        if loss not in functions:
                            continue
                        answer = functions[loss](sample.x, sample.target)
                        for quantity, mine, truth in zip(
                            ("loss", "gradient"), answer, exact, strict=True
                        ):
                            error = ulp_errors(np.asarray(mine), truth, dtype)
                            _note(
                                worst,
                                (loss, dtype, quantity, sample.kind, name),
                                error,
                                mine,
                                truth,
                                sample,
                            )
                            if (loss, dtype, quantity) == ("cross_entropy", "float32", "loss"):
                                chosen = random.permutation(error.size)[:12]
                                points[name] += [
                                    (_short(truth[place]), _short(error[place])) for place in chosen
                                ]
                    bar.advance(task)
    rows = [
        dict(zip(("loss", "dtype", "quantity", "kind", "library"), key, strict=True), **found)
        for key, found in worst.items()
    ]
    return rows, points


def _short(value: Any) -> float:
    return float(f"{float(value):.3g}")


def _note(
    worst: dict[tuple[str, ...], dict[str, Any]],
    key: tuple[str, ...],
    error: Array,
    mine: Any,
    truth: Array,
    sample: Sample,
) -> None:
    """Add a batch's errors to the worst ones; numbers below the normal range are kept apart."""
    tiny = np.finfo(key[1]).tiny
    normal = np.abs(truth) >= tiny
    empty = {"ulp": 0.0, "ulp_subnormal": 0.0, "classes": 0, "scale": 0.0, "values": 0, "zeros": 0}
    found = worst.setdefault(key, empty)
    here = float(error[normal].max(initial=0.0))
    if here > found["ulp"]:
        found.update(ulp=here, classes=sample.classes, scale=sample.scale)
    found["ulp_subnormal"] = max(found["ulp_subnormal"], float(error[~normal].max(initial=0.0)))
    found["values"] += int(normal.sum())
    found["zeros"] += int((np.asarray(mine)[normal] == 0).sum())


def other_levels(quick: bool) -> list[dict[str, Any]]:
    """fastloss's rows at the instruction-set levels not in use here, a process for each."""
    rows = []
    active = active_level()
    for level in ("avx512", "avx2", "baseline"):
        if level == active:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "level.json"
            command = [sys.executable, __file__, "--library", "fastloss", "--json", str(path)]
            command += ["--no-levels", *(["--quick"] if quick else [])]
            environment = {**os.environ, "FASTLOSS_ISA": level}
            done = subprocess.run(command, env=environment, capture_output=True, check=False)
            if done.returncode:
                console.print(f"[yellow]left out {level}:[/] not on this processor or not built")
                continue
            for row in load(path)["results"]:
                rows.append({**row, "library": f"fastloss {level}"})
    return rows


def _digits(error: float) -> str:
    if error == 0:
        return "–"
    return f"{error:.2f}" if error < 1_000 else f"{error:.1e}"


def tables(document: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Worst errors, and the share of samples whose loss is answered by 0.0."""
    rows = document["results"]
    libraries = list(dict.fromkeys(row["library"] for row in rows))
    heads = [TITLES.get(name, name) for name in libraries]
    found = {
        (row["loss"], row["dtype"], row["quantity"], row["kind"], row["library"]): row
        for row in rows
    }
    names = {
        "cross_entropy": "cross-entropy",
        "binary_cross_entropy_with_logits": "BCE with logits",
    }
    errors, zeros = [], []
    for loss, dtype, quantity, kind in dict.fromkeys(key[:4] for key in found):
        cells = [found.get((loss, dtype, quantity, kind, name)) for name in libraries]
        label = f"{names[loss]}, {dtype}, {quantity}, {kind}"
        errors.append([label, *(_digits(cell["ulp"]) if cell else "–" for cell in cells)])
        if quantity == "loss" and kind == "confident":
            zeros.append(
                [
                    label,
                    *(f"{cell['zeros'] / cell['values']:.0%}" if cell else "–" for cell in cells),
                ]
            )
    checked = document["settings"]["reference_ulp"]
    return [
        (
            f"Worst error in ulp (exact values good to {checked:.3f} ulp of float64)",
            ["", *heads],
            errors,
        ),
        ("Share of losses answered 0.0 (none is)", ["", *heads], zeros),
    ]


def show(document: dict[str, Any]) -> None:
    """Print the tables."""
    for title, heads, body in tables(document):
        table = Table(title=title, title_justify="left")
        for number, head in enumerate(heads):
            table.add_column(head, justify="left" if number == 0 else "right")
        for line in body:
            table.add_row(*line)
        console.print(table)


def plot(document: dict[str, Any], path: Path) -> None:
    """A panel for each library: error in ulp over the exact loss, both logarithmic."""
    plt = pyplot()
    points = {name: found for name, found in document["points"].items() if found}
    figure, axes = plt.subplots(
        1,
        len(points),
        figsize=(1.2 + 2.75 * len(points), 4.6),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    least, most = 0.01, 3e8
    lost = 2.0**23
    for axis, (name, found) in zip(axes.flat, points.items(), strict=True):
        exact = np.array([loss for loss, _ in found])
        error = np.clip([wrong for _, wrong in found], least, most)
        axis.axhspan(least, ULP, color=MUTED, alpha=0.18, linewidth=0)
        axis.axhline(ULP, color=MUTED, linewidth=0.8)
        axis.axhline(lost, color=MUTED, linewidth=0.8, linestyle=":")
        colour = ACCENT if name == "fastloss" else INK
        axis.scatter(exact, error, s=5, color=colour, alpha=0.45, linewidths=0)
        worst = max(
            row["ulp"]
            for row in document["results"]
            if (row["library"], row["loss"]) == (name, "cross_entropy")
            and (row["dtype"], row["quantity"]) == ("float32", "loss")
        )
        axis.set_title(
            f"{TITLES[name]}\nworst {_digits(worst)} ulp", loc="left", color=colour, weight="bold"
        )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlim(1e-38, 1e3)
        axis.set_ylim(least, most)
        axis.set_xticks([1e-36, 1e-24, 1e-12, 1])
        axis.tick_params(length=0)
    first = axes[0, 0]
    first.set_ylabel("error of the loss, ulp")
    first.text(2e-38, ULP * 1.3, "4 ulp", fontsize=8, color=INK)
    first.text(2e-38, lost * 2.8, "every digit wrong: the answer is 0.0", fontsize=8, color=INK)
    figure.supxlabel("exact loss of the sample (left: confident and right)", fontsize=10)
    figure.suptitle(
        "Cross-entropy in float32: how wrong is the loss of a single sample?",
        x=0.01,
        ha="left",
        fontsize=14,
        weight="bold",
    )
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    figure.savefig(path)
    plt.close(figure)
    console.print(f"wrote {path.name}")


def main(
    quick: Annotated[bool, typer.Option(help="Fewer samples, some seconds.")] = False,
    library: Annotated[
        list[str] | None, typer.Option(help="Only this library (may repeat).")
    ] = None,
    levels: Annotated[bool, typer.Option(help="fastloss at its other levels too.")] = True,
    keep: Annotated[
        bool, typer.Option("--keep", help="Write the results to this processor's file.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    plot_to: Annotated[
        Path | None, typer.Option("--plot", help="Write the picture to this PNG.")
    ] = None,
    load_from: Annotated[
        Path | None, typer.Option("--load", help="Show and draw this JSON file, measure nothing.")
    ] = None,
) -> None:
    """Compare the libraries' losses and gradients with exact values."""
    if load_from is not None:
        document = load(load_from)
    else:
        for name in library or []:
            if name not in LIBRARIES:
                raise typer.BadParameter(f"{name!r}: choose from {', '.join(LIBRARIES)}")
        if keep:
            if quick or library:
                raise typer.BadParameter("--keep is for full runs of all libraries")
            json = own("accuracy", partial=False)
        rows, points = run(library or list(LIBRARIES), quick)
        if levels and (not library or "fastloss" in library):
            rows += other_levels(quick)
        settings = {"quick": quick, "reference_ulp": check_reference(quick) if levels else 0.0}
        document = {"settings": settings, "results": rows, "points": points}
        if json is not None:
            save(json, "accuracy", machine(1), **document)
    show(document)
    if plot_to is not None:
        plot(document, plot_to)


if __name__ == "__main__":
    typer.run(main)
