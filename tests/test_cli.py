"""The command line: what `fastloss score` reads, prints, writes and refuses.

Layout: a) the embedded digits, b) every option of the loss, c) what is not finite, d) --output and
--plot, e) wrong input. The files themselves are in test_readers.py, processes in
test_cli_processes.py. The command runs in this process; the numbers are compared with the oracle.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

import fastloss
import oracle
from fastloss._scoring import scorer
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
    job_of,
    refused,
    run,
    score,
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
    assert [hard["sample"] for hard in report["hardest"][:2]] == [3, 500]
    assert report["hardest"][0]["loss"] is None
    assert "2 samples not finite" in run("logits.npy", "targets.npy").stdout


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
    assert list(columns) == ["sample", "target", "predicted", "loss", "log_prob"]
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


def test_what_the_plot_is_drawn_from(files):
    """The histograms of a job against those of all samples at once."""
    job = job_of("logits.npy", "targets.npy")
    summary = scorer.Summary(job, distributions=True)
    for _, part in job.blocks(summary.of):
        summary.merge(part)
    data = summary.distributions
    kept = TARGET != -100
    losses = oracle.cross_entropy(LOGITS, TARGET).losses[kept]
    edges = 10.0 ** np.linspace(*data.DECADES, len(data.log_loss_counts) + 1)
    assert data.log_loss_counts.sum() == kept.sum()
    # A float32 loss can fall on the other side of an edge than its exact value.
    assert np.abs(data.log_loss_counts - np.histogram(losses, edges)[0]).sum() <= 2
    assert data.class_counts.tolist() == np.bincount(TARGET[kept]).tolist()
    np.testing.assert_allclose(data.class_losses, np.bincount(TARGET[kept], losses), rtol=1e-6)
    probs = oracle.softmax(LOGITS[kept])
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == TARGET[kept]
    bins = np.minimum((confidence * data.CONFIDENCE_BINS).astype(int), data.CONFIDENCE_BINS - 1)
    gap = sum(abs((right - confidence)[bins == b].sum()) for b in range(data.CONFIDENCE_BINS))
    assert data.calibration_error == pytest.approx(gap / kept.sum(), rel=1e-5)


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
    assert "is a directory" in refused(".", "targets.npy")


def test_names_where_there_are_none(files):
    line = refused("logits.npy", "targets.npy", "--logits-name", "x")
    assert "logits.npy is a .npy" in line and "--logits-name" in line
    assert "LOGITS is missing" in refused("--targets-name", "x")


def test_the_output_must_not_be_an_input(files):
    before = Path("targets.npy").read_bytes()
    assert "targets.npy" in refused("logits.npy", "targets.npy", "--output", "targets.npy")
    assert "targets.npy" in refused("logits.npy", "targets.npy", "--output", "./targets.npy")
    assert Path("targets.npy").read_bytes() == before
