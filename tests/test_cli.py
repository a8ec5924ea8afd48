"""The command line: what `fastloss score` reads, prints, writes and refuses.

Layout: a) the embedded digits, b) every option of the loss, c) what is not finite, d) --output and
--plot, e) wrong input. The files themselves are in test_readers.py, processes in
test_cli_processes.py. The command runs in this process; the numbers are compared with the oracle.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

import fastloss
import oracle
from fastloss._scoring import scorer
from fastloss._scoring.distributions import LogHistogram
from fastloss._scoring.plots.score import make_figure
from fastloss._scoring.sources import ArraySource, FileSource
from fastloss.data import load_digits_logits

pytest.register_assert_rewrite("cli_helpers")

from cli_helpers import (
    CLASSES,
    LOGITS,
    RNG,
    SAMPLES,
    TARGET,
    WEIGHT,
    accuracy,
    check,
    check_plain,
    check_texts,
    invoke,
    job_of,
    refused,
    run,
    score,
    summary_of,
)

pytest_plugins = ("cli_helpers",)
pytestmark = pytest.mark.usefixtures("small_blocks", "same_threads")


# ---- a) the embedded digits ------------------------------------------------------------------


def test_digits_in_json():
    report = score()
    logits, labels = load_digits_logits()
    assert (report["samples"], report["ignored"], report["classes"]) == (1797, 0, 10)
    check(report, oracle.cross_entropy(logits, labels), accuracy(logits, labels))
    assert report["settings"]["threads"] == fastloss.get_num_threads()
    assert report["settings"]["instruction_set"] in ("baseline", "avx2", "avx512")
    assert report["settings"]["version"] == fastloss.__version__


def test_digits_for_people():
    result = run()
    assert result.exit_code == 0
    assert result.stderr == ""
    logits, labels = load_digits_logits()
    reference = oracle.cross_entropy(logits, labels)
    for text in (
        "handwritten digits",
        "1,797",
        f"{reference.loss('mean'):.6g}",
        "97.11%",
        "perplexity",
        "samples/s",
        "thread",
        "hardest samples",
        f"│ {int(np.argmax(reference.losses)):>6} │",
    ):
        assert text in result.stdout


def test_digits_data():
    logits, labels = load_digits_logits()
    assert (logits.shape, logits.dtype) == ((1797, 10), np.float32)
    assert (labels.shape, labels.dtype) == ((1797,), np.uint8)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    data = Path(fastloss.__file__).parent / "data" / "digits.npz"
    assert data.stat().st_size < 100_000


# ---- b) every option of the loss -------------------------------------------------------------


def test_options_of_cross_entropy(files):
    np.save("weight.npy", WEIGHT)
    sample_weight = RNG.uniform(0, 2, SAMPLES)
    np.save("sample_weight.npy", sample_weight)
    options = {"weight": WEIGHT, "sample_weight": sample_weight, "label_smoothing": 0.1}
    report = score(
        *("logits.npy", "targets.npy"),
        *("--weight", "weight.npy"),
        *("--sample-weight", "sample_weight.npy"),
        *("--label-smoothing", 0.1),
    )
    check(report, oracle.cross_entropy(LOGITS, TARGET, **options), accuracy())
    assert report["settings"]["weight"] == "weight.npy"
    assert report["settings"]["label_smoothing"] == 0.1


def test_ignore_index(files):
    target = np.abs(TARGET) % CLASSES
    np.save("targets.npy", target)
    report = score("logits.npy", "targets.npy", "--ignore-index", 2)
    kept = target != 2
    assert report["ignored"] == np.count_nonzero(~kept)
    check(
        report,
        oracle.cross_entropy(LOGITS, target, ignore_index=2),
        accuracy(LOGITS[kept], target[kept]),
    )


@pytest.mark.parametrize("axis", [0, -2])
def test_class_axis_first(files, axis):
    np.save("turned.npy", LOGITS.T)
    np.savez("turned.npz", np.ascontiguousarray(LOGITS.T))
    check_plain(score("turned.npy", "targets.npy", "--axis", axis))
    check_plain(score("turned.npz", "targets.npy", "--axis", axis))


def test_class_axis_last_of_three(files):
    logits = LOGITS.reshape(50, 20, CLASSES)
    target = TARGET.reshape(50, 20)
    np.save("logits.npy", logits)
    np.save("targets.npy", target)
    check_plain(score("logits.npy", "targets.npy", "--axis", -1))


def test_images(files):
    logits = np.moveaxis(LOGITS.reshape(20, 10, 5, CLASSES), -1, 1)
    np.save("logits.npy", logits)
    np.save("targets.npy", TARGET.reshape(20, 10, 5))
    check_plain(score("logits.npy", "targets.npy"))
    table = run("logits.npy", "targets.npy").stdout
    hardest = np.argmax(oracle.cross_entropy(LOGITS, TARGET).losses)
    assert ", ".join(map(str, np.unravel_index(hardest, (20, 10, 5)))) in table


def test_one_sample(files):
    np.save("logits.npy", LOGITS[1])
    np.save("targets.npy", TARGET[1])
    check(
        score("logits.npy", "targets.npy"),
        oracle.cross_entropy(LOGITS[1:2], TARGET[1:2]),
        float(LOGITS[1].argmax() == TARGET[1]),
    )


def test_class_probabilities(files):
    probs = oracle.softmax(RNG.standard_normal(LOGITS.shape)).astype(np.float32)
    np.save("targets.npy", probs)
    report = score("logits.npy", "targets.npy", "--label-smoothing", 0.3)
    check(
        report,
        oracle.cross_entropy(LOGITS, probs, label_smoothing=0.3),
        accuracy(target=probs.argmax(axis=1)),
    )


def test_nll(files):
    log_probs = oracle.log_softmax(LOGITS).astype(np.float32)
    np.save("logits.npy", log_probs)
    np.save("weight.npy", WEIGHT)
    report = score("logits.npy", "targets.npy", "--loss", "nll", "--weight", "weight.npy")
    check(report, oracle.nll_loss(log_probs, TARGET, weight=WEIGHT), accuracy())


@pytest.mark.parametrize("weight_shape", [(CLASSES,), (SAMPLES, CLASSES), (SAMPLES, 1), ()])
def test_bce_with_logits(files, weight_shape):
    target = (RNG.random(LOGITS.shape) < 0.3).astype(np.float32)
    weight = RNG.uniform(0.2, 2, weight_shape)
    np.save("targets.npy", target)
    np.save("weight.npy", weight)
    np.save("pos_weight.npy", WEIGHT)
    right = float(((LOGITS > 0) == target).mean())
    common = ("logits.npy", "targets.npy", "--loss", "bce-with-logits", "--weight", "weight.npy")
    for given, pos_weight in (("pos_weight.npy", WEIGHT), ("2.5", 2.5)):
        reference = oracle.binary_cross_entropy_with_logits(
            LOGITS, target, weight=weight, pos_weight=pos_weight
        )
        report = score(*common, "--pos-weight", given)
        check(report, reference, right)
        assert (report["samples"], report["classes"]) == (LOGITS.size, 2)


def test_bce_of_a_list_of_logits(files):
    np.save("logits.npy", LOGITS[:, 0])
    np.save("targets.npy", TARGET % 2)
    check(
        score("logits.npy", "targets.npy", "--loss", "bce-with-logits"),
        oracle.binary_cross_entropy_with_logits(LOGITS[:, 0], TARGET % 2),
        float(((LOGITS[:, 0] > 0) == TARGET % 2).mean()),
    )


def test_threads_and_top(files):
    report = score("logits.npy", "targets.npy", "--threads", 1, "--top", 17)
    assert report["settings"]["threads"] == 1
    assert len(report["hardest"]) == 17
    check_plain(report)
    losses = oracle.cross_entropy(LOGITS, TARGET).losses
    samples = [hard["sample"] for hard in report["hardest"]]
    assert samples == np.argsort(-losses, kind="stable")[:17].tolist()
    for hard in report["hardest"]:
        assert hard["target"] == TARGET[hard["sample"]]
        assert hard["predicted"] == LOGITS[hard["sample"]].argmax()
        assert hard["log_prob"] == pytest.approx(-losses[hard["sample"]], rel=1e-6)
    assert score("logits.npy", "targets.npy", "--top", 0)["hardest"] == []
    assert "hardest" not in run("logits.npy", "targets.npy", "--top", 0).stdout


def test_any_number_of_threads_gives_the_same_bits(files):
    reports = [score("logits.npy", "targets.npy", "--threads", n) for n in (1, 2, 3, 7)]
    assert len({report["mean_loss"] for report in reports}) == 1
    assert all(report["hardest"] == reports[0]["hardest"] for report in reports)
    assert fastloss.get_num_threads() == 7


def test_everything_ignored_and_nothing_at_all(files):
    np.save("targets.npy", np.full(SAMPLES, -100))
    report = score("logits.npy", "targets.npy")
    assert (report["samples"], report["ignored"]) == (SAMPLES, SAMPLES)
    assert report["mean_loss"] is report["accuracy"] is None
    assert report["hardest"] == []
    np.save("logits.npy", LOGITS[:0])
    np.save("targets.npy", TARGET[:0])
    assert score("logits.npy", "targets.npy", "--output", "o.npy")["samples"] == 0
    assert len(np.load("o.npy")) == 0


# ---- c) what is not finite -------------------------------------------------------------------


def test_what_is_not_finite(files):
    logits = LOGITS.copy()
    logits[500, 2] = np.nan
    target = np.where(TARGET < 0, 0, TARGET)
    logits[3, target[3]] = -np.inf
    np.save("logits.npy", logits)
    np.save("targets.npy", target)
    report = score("logits.npy", "targets.npy")
    assert report["mean_loss"] is None and report["perplexity"] is None
    assert report["non_finite"] == 2
    assert [hard["sample"] for hard in report["hardest"][:2]] == [3, 500]
    assert report["hardest"][0]["loss"] is None
    assert "2 samples not finite" in run("logits.npy", "targets.npy").stdout


@pytest.fixture
def wrong_rows():
    """Logits of three classes whose first rows have no prediction; the class of all is 0."""
    logits = np.zeros((40, 3))
    logits[:, 0] = 1
    logits[0] = np.nan
    logits[1] = -np.nan
    logits[2, 0] = np.inf
    logits[3, 2] = np.inf
    logits[4] = -np.inf
    logits[5, 1] = -np.inf  # a masked class: nothing is wrong with this one
    np.save("targets.npy", np.zeros(40, int))
    return logits


@pytest.mark.parametrize("dtype", ["f2", "bfloat16", "f4", ">f4", "f8"])
def test_rows_without_a_prediction_are_never_right(files, wrong_rows, dtype):
    if dtype == "bfloat16":
        logits = wrong_rows.astype(pytest.importorskip("ml_dtypes").bfloat16)
        source = ArraySource("logits", logits)
        targets = ArraySource("targets", np.zeros(40, int))
        job = scorer.plan(source, targets, scorer.Options())
        summary = summary_of(job)
        assert (summary.non_finite, summary.correct) == (5, 35)
        return
    np.save("logits.npy", wrong_rows.astype(dtype))
    report = score("logits.npy", "targets.npy", "--output", "out.npy")
    assert report["non_finite"] == 5
    assert report["accuracy"] == 35 / 40
    assert [hard["predicted"] for hard in report["hardest"]] == [None] * 5
    assert np.load("out.npy")["predicted"].tolist() == [-1] * 5 + [0] * 35
    assert "none" in run("logits.npy", "targets.npy").stdout


def test_log_probs_without_a_prediction_are_never_right(files, wrong_rows):
    """A NaN beside the target's log-probability leaves the loss a number."""
    wrong_rows[6, 2] = np.nan
    np.save("logits.npy", wrong_rows)
    report = score("logits.npy", "targets.npy", "--loss", "nll", "--plot", "p.svg")
    # In row 3 and in row 6 the loss is a number, but there is no prediction.
    assert report["non_finite"] == 6
    assert report["accuracy"] == 34 / 40


def test_binary_logits_that_are_nan_are_never_right(files):
    logits, target = LOGITS.copy(), (LOGITS > 0).astype(np.int8)
    logits[3, :2] = np.nan
    logits[4, 0], target[4, 0] = np.inf, 1  # its limit is a loss of 0
    np.save("logits.npy", logits)
    np.save("targets.npy", target)
    report = score("logits.npy", "targets.npy", "--loss", "bce-with-logits")
    assert report["non_finite"] == 2
    assert report["accuracy"] == (LOGITS.size - 2) / LOGITS.size


def test_what_is_ignored_may_be_anything(files):
    logits = LOGITS.copy()
    logits[TARGET == -100] = np.nan
    np.save("logits.npy", logits)
    report = score("logits.npy", "targets.npy", "--strict")
    assert report["non_finite"] == 0
    check_plain(report)


def test_strict(files):
    assert run("logits.npy", "targets.npy", "--strict").exit_code == 0
    logits = LOGITS.copy()
    logits[[1, 500, 501]] = np.nan
    np.save("logits.npy", logits)
    assert run("logits.npy", "targets.npy").exit_code == 0
    result = run("logits.npy", "targets.npy", "--strict", "--json", "--output", "out.npy")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["non_finite"] == 3
    assert result.stderr == "fastloss: 3 samples not finite\n"
    assert len(np.load("out.npy")) == SAMPLES


@pytest.mark.filterwarnings("error")  # a warning would be a line on standard error
def test_log_probs_that_are_none(files):
    """Whoever passes logits to nll gets a report, too."""
    np.save("logits.npy", np.full((SAMPLES, CLASSES), 1000.0))
    result = run("logits.npy", "targets.npy", "--loss", "nll", "--plot", "p.png")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "-1000" in result.stdout and "inf" in result.stdout


def test_a_nan_is_no_json(files):
    targets = np.full(LOGITS.shape, 0.5)
    targets[3, 3] = np.nan
    np.save("targets.npy", targets)
    common = ("logits.npy", "targets.npy", "--loss", "bce-with-logits")
    report = score(*common, "--pos-weight", "inf")
    assert report["mean_loss"] is None
    assert report["settings"]["pos_weight"] is None
    assert score(*common)["hardest"][0]["target"] is None


# ---- d) --output and --plot ------------------------------------------------------------------


def read_output(path) -> dict[str, list]:
    if path.endswith(".npy"):
        records = np.load(path)
        return {name: records[name].tolist() for name in records.dtype.names}
    if path.endswith(".parquet"):
        return pytest.importorskip("pyarrow.parquet").read_table(path).to_pydict()
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


@pytest.mark.parametrize("name", ["out.npy", "out.csv", "out.parquet"])
def test_output(files, name):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    Path(name).write_text("what was here before")
    score("logits.npy", "targets.npy", "--output", name)
    columns = read_output(name)
    assert list(columns) == [
        *("sample", "target", "predicted", "loss", "log_prob", "confidence", "entropy", "rank")
    ]
    losses = oracle.cross_entropy(LOGITS, TARGET).losses
    assert columns["sample"] == list(range(SAMPLES))
    assert columns["target"] == TARGET.tolist()
    assert columns["predicted"] == LOGITS.argmax(axis=1).tolist()
    np.testing.assert_allclose(columns["loss"], losses, rtol=1e-6)
    ignored = TARGET == -100
    assert np.isnan(np.array(columns["log_prob"])[ignored]).all()
    np.testing.assert_allclose(
        np.array(columns["log_prob"])[~ignored], -losses[~ignored], rtol=1e-6
    )
    assert {path.name for path in files.iterdir()} == {"logits.npy", "targets.npy", name}
    if os.name == "posix":
        mask = os.umask(0)
        os.umask(mask)
        assert Path(name).stat().st_mode & 0o777 == 0o666 & ~mask


def test_output_of_binary_losses(files):
    target = RNG.random(LOGITS.shape).astype(np.float32)
    np.save("targets.npy", target)
    score("logits.npy", "targets.npy", "--loss", "bce-with-logits", "--output", "out.npy",
          "--pos-weight", "3")  # fmt: skip
    columns = read_output("out.npy")
    unweighted = oracle.binary_cross_entropy_with_logits(LOGITS, target)
    np.testing.assert_allclose(columns["log_prob"], -unweighted.losses.ravel(), rtol=1e-5)
    np.testing.assert_array_equal(columns["target"], target.ravel().astype(float))
    assert columns["predicted"] == (LOGITS > 0).astype(int).ravel().tolist()


def test_plot(files):
    pytest.importorskip("matplotlib")
    score("logits.npy", "targets.npy", "--plot", "p.png")
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")
    # Targets that leave nothing to draw.
    np.save("targets.npy", np.full(SAMPLES, -100))
    score("logits.npy", "targets.npy", "--plot", "p.svg")
    assert "<svg" in Path("p.svg").read_text()


def test_the_plot_of_a_file_with_a_strange_name(files):
    """Between dollars, matplotlib reads mathematics; and its font lacks most of the world's."""
    pytest.importorskip("matplotlib")
    name = "$\\frac$_{名}.npy"
    Path("logits.npy").rename(name)
    result = run(name, "targets.npy", "--plot", "p.png")
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize("classes", [CLASSES, 500])
def test_what_the_plot_is_drawn_from(files, classes):
    """The histograms of a job against those of all samples at once."""
    # Classes that no target has: a block has fewer samples than there are classes.
    logits = np.concatenate([LOGITS, np.full((SAMPLES, classes - CLASSES), -9, "f4")], axis=1)
    np.save("logits.npy", logits)
    summary = summary_of(job_of("logits.npy", "targets.npy"))
    losses_in, classes_in, calibration = summary.losses, summary.by_class, summary.calibration
    kept = TARGET != -100
    losses = oracle.cross_entropy(logits, TARGET).losses[kept]
    edges = 10.0 ** np.linspace(*LogHistogram.DECADES, LogHistogram.BINS + 1)
    assert losses_in.counts.sum() == kept.sum()
    # A float32 loss can fall on the other side of an edge than its exact value.
    assert np.abs(losses_in.counts - np.histogram(losses, edges)[0]).sum() <= 2
    assert classes_in.counts.tolist() == np.bincount(TARGET[kept], minlength=classes).tolist()
    np.testing.assert_allclose(
        classes_in.sums, np.bincount(TARGET[kept], losses, classes), rtol=1e-6
    )
    probs = oracle.softmax(logits[kept])
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == TARGET[kept]
    counts, believed, correct = calibration.bins()
    assert counts.sum() == kept.sum()
    assert 10 <= len(counts) <= 15
    assert counts.min() >= 10 and counts.max() < 3 * kept.sum() / 15
    # The bins hold the samples in the order of their confidence.
    order, ends = np.argsort(confidence), np.cumsum(counts)
    for start, end, mean, share in zip(ends - counts, ends, believed, correct, strict=True):
        part = order[start:end]
        assert mean == pytest.approx(confidence[part].mean(), rel=1e-3)
        assert share == pytest.approx(right[part].mean(), abs=1.5 / len(part))
    gap = (np.abs(believed - correct) * counts).sum() / kept.sum()
    assert calibration.equal_mass_error == pytest.approx(gap)


def sources(logits, targets) -> scorer.Job:
    return scorer.plan(
        ArraySource("logits", np.asarray(logits, np.float32)),
        ArraySource("targets", targets),
        scorer.Options(),
    )


def job_to_draw(name: str) -> scorer.Job:
    rng = np.random.default_rng(5)
    if name == "digits":
        return sources(*load_digits_logits())
    if name == "binary":
        logits = rng.standard_normal(5000).astype(np.float32) * 3
        right = rng.random(5000) < fastloss.sigmoid(0.7 * logits)
        return scorer.plan(
            ArraySource("logits", logits),
            ArraySource("targets", right.astype(int)),
            scorer.Options(loss="bce-with-logits"),
        )
    if name == "vocabulary":
        logits = rng.standard_normal((600, 32_000))
        targets = rng.zipf(1.3, 600) % 32_000
        logits[np.arange(600), targets] += rng.uniform(0, 14, 600)
        return sources(logits, targets)
    if name == "ten samples":
        return sources(rng.standard_normal((10, 10)), rng.integers(0, 10, 10))
    if name == "a sample for each class":
        return sources(rng.standard_normal((20, 20)), np.arange(20))
    if name == "all alike":
        return sources(np.tile([2, 1, 0, -1], (500, 1)), np.zeros(500, int))
    if name == "all zero":
        return sources(np.tile([0, -np.inf], (500, 1)), np.zeros(500, int))
    if name == "narrow":
        return sources(rng.standard_normal((3000, 30)) / 20, rng.integers(0, 30, 3000))
    assert name == "wide"
    logits = rng.standard_normal((5000, 20))
    targets = rng.integers(0, 20, 5000)
    logits[np.arange(5000), targets] += rng.uniform(0, 60, 5000)
    logits[7] = np.nan
    return sources(logits, targets)


@pytest.mark.parametrize(
    "name",
    [
        *("digits", "binary", "vocabulary", "ten samples", "a sample for each class"),
        *("all alike", "all zero", "narrow", "wide"),
    ],
)
def test_no_text_of_a_plot_lies_on_another(name):
    pytest.importorskip("matplotlib")
    check_texts(make_figure(summary_of(job_to_draw(name))))


def bars(panel) -> list:
    return [patch for patch in panel.patches if patch.get_width()]


def test_a_class_is_drawn_from_ten_samples_on():
    pytest.importorskip("matplotlib")
    targets = np.repeat(np.arange(5), [9, 10, 200, 1, 30])
    job = sources(np.random.default_rng(0).standard_normal((250, 6)), targets)
    _, panel, *_ = make_figure(summary_of(job)).axes
    shown = {label.get_text() for label in panel.get_yticklabels()}
    assert shown == {"1 (10)", "2 (200)", "4 (30)"}
    assert len(bars(panel)) == 3
    assert any("without 2 of fewer than 10" in text.get_text() for text in panel.texts)


def test_a_panel_without_classes_is_left_out():
    pytest.importorskip("matplotlib")
    job = sources(np.random.default_rng(0).standard_normal((90, 30)), np.arange(90) % 30)
    figure = make_figure(summary_of(job))
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    assert titles[0] == "Distribution of losses" and titles[1].startswith("Calibration")
    assert len(figure.axes) == 3
    check_texts(figure)


def test_a_large_vocabulary_has_many_bins_of_calibration():
    """Nearly all of its probabilities are below 1/15, one bin of equal width."""
    rng = np.random.default_rng(1)
    job = sources(rng.standard_normal((3000, 2000)), rng.integers(0, 2000, 3000))
    counts, confidence, _ = summary_of(job).calibration.bins()
    assert confidence.max() < 1 / 15
    assert len(counts) >= 10


# ---- e) wrong input --------------------------------------------------------------------------


def test_wrong_class_index(files):
    target = TARGET.copy()
    target[777] = 99
    np.save("targets.npy", target)
    line = refused("logits.npy", "targets.npy", "--output", "out.csv", "--plot", "p.png")
    assert "targets.npy: class index 99 at position (777,) is outside [0, 7)" in line
    np.save("logits.npy", LOGITS.reshape(50, 20, CLASSES))
    np.save("targets.npy", target.reshape(50, 20))
    assert "(38, 17)" in refused("logits.npy", "targets.npy", "--axis", 2)


def test_classes_numbered_from_1(files):
    np.save("targets.npy", np.where(TARGET == -100, -100, TARGET + 1))
    line = refused("logits.npy", "targets.npy")
    assert "class index 7 at" in line
    assert line.endswith("classes are numbered from 0")


def test_targets_before_logits(files):
    line = refused("targets.npy", "logits.npy")
    assert line.endswith("LOGITS come first, then TARGETS")


@pytest.mark.parametrize("command", ["score", "compare", "calibrate"])
def test_a_pattern_that_the_shell_has_expanded(files, command):
    names = ["shards/1.npy", "shards/2.npy", "shards/3.npy", "shards/4.npy", "targets.npy"]
    result = invoke(command, *names)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    more = "2 arguments too many, from shards/4.npy on (expected A, B, TARGETS)"
    if command != "compare":
        more = "3 arguments too many, from shards/3.npy on (expected LOGITS, TARGETS)"
    assert line.startswith(f"fastloss: {more}: put a pattern in quotes, as in 'shards/*.npy'")


def test_shapes_that_do_not_fit(files):
    np.save("targets.npy", TARGET[:-1])
    line = refused("logits.npy", "targets.npy")
    assert "(1000, 7)" in line and "(999,)" in line and "(1000,)" in line
    np.save("targets.npy", LOGITS[:, :3])
    assert "(1000, 3)" in refused("logits.npy", "targets.npy")
    line = refused("logits.npy", "targets.npy", "--loss", "bce-with-logits")
    assert "(1000, 7)" in line and "(1000, 3)" in line
    np.save("targets.npy", TARGET)
    np.save("weight.npy", WEIGHT[:-1])
    assert "(6,)" in refused("logits.npy", "targets.npy", "--weight", "weight.npy")
    assert "(7,)" in refused("logits.npy", "targets.npy", "--weight", "weight.npy")
    np.save("sample_weight.npy", np.ones(3))
    line = refused("logits.npy", "targets.npy", "--sample-weight", "sample_weight.npy")
    assert "(3,)" in line and "(1000,)" in line
    line = refused("logits.npy", "logits.npy", "--loss", "bce-with-logits")
    assert "both the logits and the targets" in line


def test_dtypes_that_do_not_fit(files):
    np.save("targets.npy", TARGET.astype(float))
    assert "float64" in refused("logits.npy", "targets.npy")
    np.save("targets.npy", TARGET)
    np.save("logits.npy", LOGITS.astype(complex))
    assert "complex128" in refused("logits.npy", "targets.npy")
    np.save("logits.npy", np.full((SAMPLES, CLASSES), "a"))
    refused("logits.npy", "targets.npy")


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--axis", 2, "2 dimensions"),
        ("--label-smoothing", 1.5, "[0, 1]"),
        ("--label-smoothing", "nan", "[0, 1]"),
        ("--threads", 0, "--threads 0"),
        ("--threads", 99999999, "--threads 99999999"),
        ("--ignore-index", 10**30, str(10**30)),
        ("--top", -1, "--top -1"),
        ("--pos-weight", 2, "cross-entropy has no --pos-weight"),
        ("--output", "out.txt", ".parquet"),
        ("--output", "out", ".parquet"),
        ("--output", "no/such/folder/out.csv", "no/such/folder/out.csv"),
        ("--plot", "p.xyz", ".png"),
        ("--plot", "no/such/folder/p.png", "no/such/folder/p.png"),
        ("--weight", "nowhere.npy", "nowhere.npy: No such file"),
    ],
)
def test_wrong_options(files, option, value, text):
    if option == "--plot":
        pytest.importorskip("matplotlib")
    assert text in refused("logits.npy", "targets.npy", option, value)


@pytest.mark.parametrize("option", ["--ignore-index", "--axis", "--label-smoothing"])
def test_options_of_another_loss(files, option):
    line = refused("logits.npy", "logits.npy", "--loss", "bce-with-logits", option, 0)
    assert f"bce-with-logits has no {option}" in line


def test_unknown_loss_and_option(files):
    for arguments in (["--loss", "hinge"], ["--nonsense"]):
        result = run("logits.npy", "targets.npy", *arguments)
        assert result.exit_code == 2
        assert arguments[-1].strip("-") in result.stderr
        assert "Traceback" not in result.stderr


def test_files_that_are_missing(files):
    assert "cannot read nowhere.npy" in refused("nowhere.npy", "targets.npy")
    assert "cannot read nowhere.npy" in refused("logits.npy", "nowhere.npy")
    assert "TARGETS is missing" in refused("logits.npy")


def test_names_where_there_are_none(files):
    line = refused("logits.npy", "targets.npy", "--logits-name", "x")
    assert "logits.npy is a .npy" in line and "--logits-name" in line
    assert "LOGITS is missing" in refused("--targets-name", "x")


def test_the_output_must_not_be_an_input(files):
    before = Path("targets.npy").read_bytes()
    assert "targets.npy" in refused("logits.npy", "targets.npy", "--output", "targets.npy")
    assert "targets.npy" in refused("logits.npy", "targets.npy", "--output", "./targets.npy")
    assert Path("targets.npy").read_bytes() == before


def test_the_output_must_replace_nothing_but_a_file(files):
    Path("out.csv").mkdir()
    assert "out.csv: it is a directory" in refused(
        "logits.npy", "targets.npy", "--output", "out.csv"
    )
    if hasattr(os, "mkfifo"):
        os.mkfifo("out.npy")
        line = refused("logits.npy", "targets.npy", "--output", "out.npy")
        assert "out.npy: it is a pipe" in line


@pytest.mark.parametrize("target", [7, -1])
def test_a_binary_target_of_another_class(files, target):
    targets = np.ones(LOGITS.shape, np.int16)
    targets[700, 3] = target
    np.save("targets.npy", targets)
    line = refused("logits.npy", "targets.npy", "--loss", "bce-with-logits", "--plot", "p.png")
    assert f"targets.npy: target {target} at position (700, 3) is not 0 or 1" in line


def test_memory_that_is_not_there(files, monkeypatch):
    def take(source, size):
        raise MemoryError(f"{size} bytes")

    monkeypatch.setattr(FileSource, "_take", take)
    assert "not enough memory" in refused("logits.npy", "targets.npy", "--output", "out.npy")


def test_version():
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"{fastloss.__version__}\n")
