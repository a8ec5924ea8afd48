"""What `fastloss score` adds up, against float64 NumPy and scikit-learn.

Layout: a) ranks, Brier score, calibration, b) groups, c) quantiles of a stream, d) intervals.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

import fastloss
import oracle
from fastloss._scoring import blocks, quantiles
from fastloss._scoring.distributions import Ranks
from fastloss._scoring.statistics import Moments, student_quantile

pytest.register_assert_rewrite("cli_helpers")

from cli_helpers import CLASSES, LOGITS, RNG, SAMPLES, TARGET, job_of, refused, run, score

pytest_plugins = ("cli_helpers",)
pytestmark = pytest.mark.usefixtures("small_blocks", "same_threads")

KEPT = TARGET != -100
PROBS = oracle.softmax(LOGITS.astype(np.float64))
ONE_HOT = np.eye(CLASSES)[np.where(KEPT, TARGET, 0)]
OWN = np.take_along_axis(LOGITS, np.abs(TARGET)[:, None] % CLASSES, 1)
RANK = (OWN <= LOGITS).sum(1) - 1


# ---- a) ranks, Brier score, calibration ------------------------------------------------------


def calibration_error(confidence, right, bins=15) -> float:
    """Guo et al. 2017, equation 3, written as a loop."""
    total = 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            total += inside.sum() * abs(right[inside].mean() - confidence[inside].mean())
    return total / len(confidence)


@pytest.mark.parametrize("gathered", [1, 150, 4096])
def test_scores_of_classes(files, monkeypatch, gathered):
    monkeypatch.setattr(blocks, "GATHERED_SAMPLES", gathered)
    report = score("logits.npy", "targets.npy")
    rank = RANK[KEPT]
    assert report["top5_accuracy"] == pytest.approx((rank < 5).mean(), abs=1e-12)
    assert report["rank"]["mean"] == pytest.approx(rank.mean(), abs=1e-12)
    assert report["rank"]["median"] == np.quantile(rank, 0.5, method="inverted_cdf")
    assert report["rank"]["p90"] == np.quantile(rank, 0.9, method="inverted_cdf")
    assert report["rank"]["max"] == rank.max()
    assert report["rank"]["mean_reciprocal"] == pytest.approx((1 / (rank + 1)).mean())
    brier = np.square(PROBS - ONE_HOT).sum(1)[KEPT].mean()
    assert report["brier_score"] == pytest.approx(brier, rel=1e-6)
    confidence, right = PROBS.max(1)[KEPT], (PROBS.argmax(1) == TARGET)[KEPT]
    assert report["calibration_error"] == pytest.approx(
        calibration_error(confidence, right), abs=1e-6
    )
    assert report["mean_confidence"] == pytest.approx(confidence.mean(), rel=1e-6)
    losses = -np.log(PROBS[KEPT, TARGET[KEPT]])
    for name, share in (("min", 0), ("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1)):
        assert report["loss_quantiles"][name] == pytest.approx(np.quantile(losses, share), rel=1e-5)
    histogram = report["loss_histogram"]
    counts = np.histogram(losses, histogram["edges"])[0]
    assert np.abs(counts - histogram["counts"]).sum() <= 2
    assert sum(histogram["counts"]) + histogram["below"] + histogram["zero"] == KEPT.sum()
    bins = report["calibration"]
    assert sum(part["samples"] for part in bins) == KEPT.sum()
    gap = sum(p["samples"] * abs(p["confidence"] - p["accuracy"]) for p in bins) / KEPT.sum()
    assert report["calibration_error_equal_mass"] == pytest.approx(gap)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_the_brier_score_keeps_its_digits(files, dtype):
    logits = (LOGITS * np.linspace(0, 8, SAMPLES)[:, None]).astype(dtype)
    np.save("logits.npy", logits)
    log_probs = oracle.log_softmax(logits.astype(np.longdouble))
    label = np.where(KEPT, TARGET, 0)
    others = np.exp(log_probs)
    others[np.arange(SAMPLES), label] = 0
    exact = (np.square(others.sum(1)) + np.square(others).sum(1))[KEPT].astype(float)
    job = job_of("logits.npy", "targets.npy")
    found = np.concatenate([s.brier for s, _ in job.blocks(lambda scores: None)])
    np.testing.assert_allclose(found[KEPT], exact, rtol=1e-14 if dtype == "f8" else 5e-7)
    mean = score("logits.npy", "targets.npy")["brier_score"]
    assert mean == pytest.approx(exact.mean(), rel=1e-6)


def test_the_same_as_the_functions(files):
    report = score("logits.npy", "targets.npy")
    brier = fastloss.brier_score(LOGITS, TARGET)
    assert report["brier_score"] == pytest.approx(float(brier), rel=1e-6)
    error = fastloss.calibration_error(LOGITS, TARGET).expected
    assert report["calibration_error"] == pytest.approx(float(error), abs=1e-7)


def test_scores_against_scikit_learn(files):
    metrics = pytest.importorskip("sklearn.metrics")
    report = score("logits.npy", "targets.npy")
    labels = range(CLASSES)
    known = PROBS[KEPT], TARGET[KEPT]
    assert report["mean_loss"] == pytest.approx(
        metrics.log_loss(known[1], known[0], labels=labels), rel=1e-6
    )
    assert report["top5_accuracy"] == pytest.approx(
        metrics.top_k_accuracy_score(known[1], known[0], k=5, labels=labels)
    )


def test_classes_by_loss(files):
    report = score("logits.npy", "targets.npy")
    losses = -np.log(PROBS[np.arange(SAMPLES), np.where(KEPT, TARGET, 0)])
    means = {c: losses[KEPT & (c == TARGET)].mean() for c in range(CLASSES)}
    hardest = sorted(means, key=lambda c: -means[c])
    assert [part["class"] for part in report["classes_by_loss"]] == hardest
    for part in report["classes_by_loss"]:
        assert part["mean_loss"] == pytest.approx(means[part["class"]], rel=1e-6)
        assert part["samples"] == (part["class"] == TARGET).sum()


def test_scores_of_a_binary_loss(files):
    target = (RNG.random(LOGITS.shape) < 0.3).astype(np.int8)
    np.save("targets.npy", target)
    report = score("logits.npy", "targets.npy", "--loss", "bce-with-logits", "--output", "out.npy")
    prob = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    assert report["perplexity"] is report["top5_accuracy"] is report["rank"] is None
    # Over both classes, from 0 to 2.
    brier = 2 * np.square(prob - target).mean()
    assert report["brier_score"] == pytest.approx(brier, rel=1e-6)
    confidence = np.maximum(prob, 1 - prob)
    error = calibration_error(confidence.ravel(), ((LOGITS > 0) == target).ravel())
    assert report["calibration_error"] == pytest.approx(error, abs=1e-6)
    out = np.load("out.npy")
    entropy = -(prob * np.log(prob) + (1 - prob) * np.log1p(-prob))
    np.testing.assert_allclose(out["entropy"], entropy.ravel(), rtol=1e-4)
    np.testing.assert_allclose(out["confidence"], confidence.ravel(), rtol=1e-5)
    places = np.unravel_index(out["sample"], LOGITS.shape)
    np.testing.assert_array_equal(out["index_0"], places[0])
    np.testing.assert_array_equal(out["index_1"], places[1])


def test_the_report_for_people_says_what_json_says(files):
    report = score("logits.npy", "targets.npy")
    text = " ".join(run("logits.npy", "targets.npy").stdout.split())
    for shown in (
        f"median {report['loss_quantiles']['median']:.3g}",
        f"{report['top5_accuracy']:.2%}",
        f"{report['calibration_error']:.2%} in 15 bins of equal width",
        f"{report['calibration_error_equal_mass']:.2%} in bins of equal counts",
        f"{report['brier_score']:.4g}",
        f"mean {report['rank']['mean']:.3g}",
        "classes, hardest first: 5 of 7",
        f"{report['classes_by_loss'][0]['mean_loss']:.5g}",
        f"{report['calibration'][0]['accuracy']:.2%}",
    ):
        assert shown in text, shown


def test_ranks_of_many_classes():
    """Of few samples the ranks are kept, of many they are counted: the same either way."""
    whole = Ranks(50)
    ranks = RNG.integers(0, 50, 200)
    for part in (ranks[:10], ranks[10:150], ranks[150:]):
        block = Ranks(50)
        block.add(part)
        whole.merge(block)
    assert whole.counts.tolist() == np.bincount(ranks, minlength=50).tolist()
    assert whole.share_within(5) == (ranks < 5).mean()


# ---- b) groups -------------------------------------------------------------------------------

NAMES = np.array(["news", "code", "été", "mail, with a comma"])
GROUP = NAMES[(np.arange(SAMPLES) // 7) % 4]
GROUP[:5] = "five"


def write_groups(kind: str) -> tuple[str, ...]:
    if kind == "npy":
        np.save("groups.npy", GROUP)
        return ("--group-by", "groups.npy")
    if kind == "bytes":
        np.save("groups.npy", np.char.encode(GROUP, "utf-8"))
        return ("--group-by", "groups.npy")
    if kind in ("csv", "csv column"):
        with open("groups.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["number", "group"])
            writer.writerows(enumerate(GROUP))
        return ("--group-by", "groups.csv" if kind == "csv" else "groups.csv:group")
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    column = pa.array(GROUP.tolist())
    if kind == "dictionary":
        column = column.dictionary_encode()
    pq.write_table(pa.table({"topic": column, "targets": TARGET}), "table.parquet")
    return ("--group-by", "topic" if kind == "column of the targets" else "table.parquet:topic")


@pytest.mark.parametrize(
    "kind",
    ["npy", "bytes", "csv", "csv column", "parquet", "dictionary", "column of the targets"],
)
@pytest.mark.parametrize("gathered", [1, 150])
def test_groups(files, monkeypatch, kind, gathered):
    monkeypatch.setattr(blocks, "GATHERED_SAMPLES", gathered)
    option = write_groups(kind)
    targets = "table.parquet" if kind == "column of the targets" else "targets.npy"
    report = score("logits.npy", targets, *option, "--output-groups", "g.json")
    check_groups(report["groups"])
    assert json.loads(Path("g.json").read_text("utf-8")) == report["groups"]


def check_groups(groups: list[dict]) -> None:
    order = sorted(set(GROUP), key=lambda name: np.flatnonzero(name == GROUP)[0])
    assert [group["group"] for group in groups] == order
    for group in groups:
        inside = KEPT & (group["group"] == GROUP)
        losses = -np.log(PROBS[inside, TARGET[inside]])
        assert group["samples"] == inside.sum()
        assert group["mean_loss"] == pytest.approx(losses.mean(), rel=1e-6)
        assert group["perplexity"] == pytest.approx(np.exp(losses.mean()), rel=1e-6)
        right = PROBS[inside].argmax(1) == TARGET[inside]
        assert group["accuracy"] == pytest.approx(right.mean(), abs=1e-12)


def test_groups_as_csv_and_for_people(files):
    option = write_groups("npy")
    result = run("logits.npy", "targets.npy", *option, "--output-groups", "g.csv")
    assert result.exit_code == 0, result.output
    with open("g.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    numbers = {"samples": int, "mean_loss": float, "perplexity": float, "accuracy": float}
    check_groups([{**r, **{n: kind(r[n]) for n, kind in numbers.items()}} for r in rows])
    assert "groups, hardest first: 5 of 5" in result.stdout
    assert "mail, with a comma" in result.stdout


def test_groups_with_weights_and_smoothing(files):
    """The mean loss is weighted, the perplexity is the model's."""
    weight = RNG.uniform(0.1, 2, SAMPLES)
    np.save("weight.npy", weight)
    groups = np.arange(SAMPLES) % 3
    np.save("groups.npy", groups)
    report = score(
        *("logits.npy", "targets.npy", "--group-by", "groups.npy"),
        *("--sample-weight", "weight.npy", "--label-smoothing", 0.1),
    )
    losses = oracle.cross_entropy(LOGITS, TARGET, label_smoothing=0.1).losses.astype(float)
    plain = -np.log(PROBS[np.arange(SAMPLES), np.where(KEPT, TARGET, 0)])
    for group in report["groups"]:
        inside = KEPT & (groups == group["group"])
        mean = (losses * weight)[inside].sum() / weight[inside].sum()
        assert group["mean_loss"] == pytest.approx(mean, rel=1e-6)
        assert group["perplexity"] == pytest.approx(np.exp(plain[inside].mean()), rel=1e-6)
    assert report["perplexity"] == pytest.approx(np.exp(plain[KEPT].mean()), rel=1e-6)


def test_groups_of_rows_and_of_binary_losses(files):
    groups = np.arange(SAMPLES) % 4
    np.save("groups.npy", groups)
    np.save("targets.npy", (LOGITS > 0.5).astype(np.int8))
    report = score(
        *("logits.npy", "targets.npy", "--group-by", "groups.npy"), *("--loss", "bce-with-logits")
    )
    losses = oracle.binary_cross_entropy_with_logits(LOGITS, LOGITS > 0.5).losses
    for group in report["groups"]:
        inside = losses[groups == group["group"]]
        assert group["samples"] == inside.size
        assert group["mean_loss"] == pytest.approx(float(inside.mean()), rel=1e-6)
        assert group["perplexity"] is None


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        (np.arange(SAMPLES - 1), "groups.npy has shape (999,), expected (1000,)"),
        (np.zeros((SAMPLES, 7), int), "groups.npy has shape (1000, 7), expected (1000,)"),
        (np.int64(3), "groups.npy has shape ()"),
        (np.zeros(SAMPLES), "groups are integers or names"),
    ],
)
def test_groups_that_do_not_fit(files, groups, text):
    np.save("groups.npy", groups)
    assert text in refused("logits.npy", "targets.npy", "--group-by", "groups.npy")


def test_wrong_options_of_groups(files):
    common = ("logits.npy", "targets.npy")
    line = refused(*common, "--group-by", "nowhere")
    assert "--group-by nowhere is neither a file nor a column; targets.npy is a .npy" in line
    assert "needs --group-by" in refused(*common, "--output-groups", "g.csv")
    np.save("groups.npy", np.zeros(SAMPLES, int))
    both = (*common, "--group-by", "groups.npy", "--output-groups")
    assert "ends in .csv or .json" in refused(*both, "g.txt")
    assert "groups.npy: it is an input" in refused(*both, "groups.npy")
    assert "g.csv can't be two results" in refused(*both, "g.csv", "--output", "g.csv")
    assert "has 'a', 'b'" in refused(*common, "--group-by", make_csv("a,b\n1,2\n"))
    assert "no 'c'" in refused(*common, "--group-by", make_csv("a,b\n1,2\n") + ":c")


def make_csv(text: str) -> str:
    Path("made.csv").write_text(text)
    return "made.csv"


# ---- c) quantiles of a stream ----------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 1000, 10**9])
@pytest.mark.parametrize("sign", [1, 0, -1])
def test_quantiles_of_a_stream(monkeypatch, kept, sign):
    monkeypatch.setattr(quantiles, "MOST_KEPT", kept)
    values = RNG.standard_normal(5000) ** 9
    values[:400] = 0
    values = values if not sign else sign * np.abs(values)
    found = quantiles.Quantiles()
    for part in np.split(values, [1, 10, 900, 1200, 1200, 4000]):
        found.add(part)
    assert found.exact == (kept == 10**9)
    for share in (0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1):
        if found.exact:
            assert found.quantile(share) == pytest.approx(np.quantile(values, share), rel=1e-12)
            continue
        exact = np.sort(values)[math.floor(share * (len(values) - 1))]
        assert found.quantile(share) == pytest.approx(exact, rel=quantiles.RELATIVE_ERROR)
    edges = np.array([-2.0, -0.5, 0.25, 3])
    counts = np.histogram(values, edges)[0]
    # Edges are powers of two, which bins have as edges, too.
    edges = np.array([-2.0, -0.5, 0.25, 4])
    counts = np.histogram(values, edges)[0]
    assert found.histogram(edges).tolist() == counts.tolist()


def test_quantiles_of_what_is_infinite_or_nothing(monkeypatch):
    found = quantiles.Quantiles()
    assert math.isnan(found.quantile(0.5))
    for kept in (0, 100):
        monkeypatch.setattr(quantiles, "MOST_KEPT", kept)
        found = quantiles.Quantiles()
        found.add(np.array([1.0, 2.0, np.inf, np.inf, np.inf]))
        assert found.quantile(0.5) == found.quantile(1) == math.inf
        assert found.quantile(0) == 1


# ---- d) intervals ----------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 29, 30, 299, 300, 301, 5000, 10**9])
def test_the_quantile_of_student(freedom):
    stats = pytest.importorskip("scipy.stats")
    for share in (0.9, 0.975, 0.995):
        assert student_quantile(freedom, share) == pytest.approx(
            stats.t.ppf(share, freedom), rel=1e-9
        )


def test_moments_of_blocks():
    values = RNG.standard_normal(1000) * 1e-3 + 1e6
    found = Moments()
    for part in np.split(values, [0, 1, 400, 400, 999]):
        block = Moments()
        block.add(part)
        found.merge(block)
    assert found.mean == pytest.approx(values.mean(), rel=1e-15)
    expected = values.std(ddof=1) / math.sqrt(1000)
    assert found.standard_error == pytest.approx(expected, rel=1e-6)
    one = Moments()
    one.add(np.ones(1))
    assert math.isnan(one.standard_error)
