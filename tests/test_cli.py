"""The command line: what `fastloss score` reads, prints, writes and refuses.

Layout: a) helpers and files, b) the embedded digits, c) every kind of file, d) every option of the
loss, e) --output and --plot, f) wrong input, g) processes: memory, Ctrl-C, missing extras.

In a) to f) the command runs in this process; the numbers are compared with the oracle.
"""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import fastloss
import oracle

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.testing import CliRunner

from fastloss._scoring import InputError, readers, scorer
from fastloss.cli import app
from fastloss.data import load_digits_logits

# ---- a) helpers and files --------------------------------------------------------------------

SAMPLES, CLASSES = 1000, 7
RNG = np.random.default_rng(3)
TARGET = RNG.integers(0, CLASSES, SAMPLES)
LOGITS = (RNG.standard_normal((SAMPLES, CLASSES)) * 2).astype(np.float32)
LOGITS[np.arange(SAMPLES), TARGET] += 2
TARGET[::11] = -100
WEIGHT = RNG.uniform(0.2, 2.0, CLASSES)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 100 rows or so: every file here is read in many of them."""
    monkeypatch.setattr(scorer, "BLOCK_BYTES", 100 * CLASSES * 4)
    monkeypatch.setattr(readers, "CHUNK_BYTES", 77 * CLASSES * 4)


@pytest.fixture(autouse=True)
def same_threads():
    before = fastloss.get_num_threads()
    yield
    fastloss.set_num_threads(before)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A working directory with the logits and targets as .npy files."""
    monkeypatch.chdir(tmp_path)
    np.save("logits.npy", LOGITS)
    np.save("targets.npy", TARGET)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


def score(*arguments) -> dict:
    """The JSON object of a run that has to succeed."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments) -> str:
    """The one line with which a run ends that has to fail."""
    before = set(Path().iterdir())
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("fastloss: ")
    assert "Traceback" not in result.stderr
    assert set(Path().iterdir()) == before
    return lines[0]


def check(report: dict, reference: oracle.Reference, predicted_right: float) -> None:
    assert report["mean_loss"] == pytest.approx(float(reference.loss("mean")), rel=1e-6)
    assert report["perplexity"] == pytest.approx(math.exp(reference.loss("mean")), rel=1e-5)
    assert report["accuracy"] == pytest.approx(predicted_right, abs=1e-12)
    losses = np.sort(reference.losses.ravel())[::-1]
    shown = [hard["loss"] for hard in report["hardest"]]
    assert shown == pytest.approx(losses[: len(shown)].tolist(), rel=1e-6)


def accuracy(logits=LOGITS, target=TARGET) -> float:
    counted = target != -100
    return float((logits.argmax(axis=1) == target)[counted].mean())


def check_plain(report: dict) -> None:
    """The report of LOGITS and TARGET without options."""
    assert report["samples"] == SAMPLES
    assert report["ignored"] == np.count_nonzero(TARGET == -100)
    assert report["classes"] == CLASSES
    assert report["seconds"] > 0
    check(report, oracle.cross_entropy(LOGITS, TARGET), accuracy())


# ---- b) the embedded digits ------------------------------------------------------------------


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


# ---- c) every kind of file -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f8", "f2", ">f2", "i2"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("few_classes", [0, 64])
def test_npy(files, monkeypatch, dtype, order, few_classes):
    monkeypatch.setattr(scorer, "FEW_CLASSES", few_classes)
    logits = LOGITS.astype(dtype, order=order)
    np.save("other.npy", logits)
    report = score("other.npy", "targets.npy")
    assert report["settings"]["dtype"] == str(np.dtype(dtype))
    check(report, oracle.cross_entropy(logits, TARGET), accuracy(logits))


def test_npy_without_reads_at_an_offset(files, monkeypatch):
    """Where the system has no preadv, rows are taken from the map."""
    monkeypatch.delattr(os, "preadv", raising=False)
    check_plain(score("logits.npy", "targets.npy"))


@pytest.mark.parametrize("target_dtype", ["i1", "i2", ">i4", "u1", "u8"])
def test_target_dtypes(files, target_dtype):
    target = np.where(TARGET < 0, 5, TARGET).astype(target_dtype)
    np.save("other.npy", target)
    check(
        score("logits.npy", "other.npy"),
        oracle.cross_entropy(LOGITS, target),
        accuracy(target=target),
    )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(files, save):
    save("both.npz", logits=LOGITS, labels=TARGET, other=np.ones(3))
    check_plain(score("both.npz"))
    check_plain(score("both.npz", "targets.npy"))
    check_plain(score("logits.npy", "both.npz"))
    save("single.npz", LOGITS)
    check_plain(score("single.npz", "targets.npy"))


def test_npz_member_names(files):
    np.savez("both.npz", x=LOGITS, y=TARGET, z=LOGITS)
    check_plain(score("both.npz", "--logits-name", "x", "--targets-name", "y"))
    line = refused("both.npz")
    assert "'x', 'y', 'z'" in line and "--logits-name" in line
    line = refused("both.npz", "--logits-name", "x", "--targets-name", "t")
    assert "no 't'" in line and "'y'" in line


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_safetensors(files, monkeypatch, dtype):
    monkeypatch.setattr(scorer, "FEW_CLASSES", 0)
    save_file = pytest.importorskip("safetensors.numpy").save_file
    ml_dtypes = pytest.importorskip("ml_dtypes")
    logits = LOGITS.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    save_file({"a": np.zeros(3, np.uint8), "z": logits, "labels": TARGET}, "both.safetensors")
    report = score("both.safetensors", "--logits-name", "z")
    assert report["settings"]["dtype"] == dtype
    check(report, oracle.cross_entropy(logits, TARGET), accuracy(logits.astype(float)))


@pytest.fixture
def table():
    pa = pytest.importorskip("pyarrow")
    return pa.table(
        {
            "id": np.arange(SAMPLES),
            "logits": pa.FixedSizeListArray.from_arrays(LOGITS.ravel(), CLASSES),
            "lists": pa.array(LOGITS.astype(float).tolist()),
            "targets": TARGET,
            "words": ["a"] * SAMPLES,
        }
    )


def test_parquet(files, table):
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(table, "both.parquet", row_group_size=301)
    check_plain(score("both.parquet"))
    check_plain(score("both.parquet", "--logits-name", "lists"))
    check_plain(score("logits.npy", "both.parquet", "--targets-name", "targets"))
    check_plain(score("both.parquet", "targets.npy"))


@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
@pytest.mark.parametrize("compression", [None, "lz4"])
def test_arrow_ipc(files, table, stream, compression):
    pa = pytest.importorskip("pyarrow")
    options = pa.ipc.IpcWriteOptions(compression=compression)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new("both.arrow", table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=170)
    check_plain(score("both.arrow"))
    check_plain(score("both.arrow", "--logits-name", "lists"))


def test_arrow_tensor_and_nested_lists(files):
    pa = pytest.importorskip("pyarrow")
    images = LOGITS.reshape(-1, CLASSES, 4)[:200]
    target = RNG.integers(0, CLASSES, (len(images), 4))
    table = pa.table(
        {
            "logits": pa.FixedShapeTensorArray.from_numpy_ndarray(images),
            "lists": pa.array(images.tolist()),
            "targets": pa.array(target.tolist()),
        }
    )
    with pa.ipc.new_file("both.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=37)
    reference = oracle.cross_entropy(images, target)
    right = float((images.argmax(axis=1) == target).mean())
    check(score("both.arrow"), reference, right)
    check(score("both.arrow", "--logits-name", "lists"), reference, right)


# ---- d) every option of the loss -------------------------------------------------------------


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


# ---- e) --output and --plot ------------------------------------------------------------------


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


# ---- f) wrong input --------------------------------------------------------------------------


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


def test_a_nan_is_no_json(files):
    targets = np.full(LOGITS.shape, 0.5)
    targets[3, 3] = np.nan
    np.save("targets.npy", targets)
    common = ("logits.npy", "targets.npy", "--loss", "bce-with-logits")
    report = score(*common, "--pos-weight", "inf")
    assert report["mean_loss"] is None
    assert report["settings"]["pos_weight"] is None
    assert score(*common)["hardest"][0]["target"] is None


def test_the_output_must_not_be_an_input(files):
    before = Path("targets.npy").read_bytes()
    assert "targets.npy" in refused("logits.npy", "targets.npy", "--output", "targets.npy")
    assert "targets.npy" in refused("logits.npy", "targets.npy", "--output", "./targets.npy")
    assert Path("targets.npy").read_bytes() == before


def safetensors(dtype: str, start: int, stop: int, data: int) -> bytes:
    """A file whose header promises one tensor, and so many bytes of data."""
    tensor = {"dtype": dtype, "shape": [1000, 7], "data_offsets": [start, stop]}
    header = json.dumps({"x": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(data)


def npy_header(header: dict) -> bytes:
    text = repr(header).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


DAMAGED = {
    "empty.npy": b"",
    "text.npy": b"no array at all\n",
    "header.npy": b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4'",
    "minus.npy": npy_header({"descr": "<f4", "fortran_order": False, "shape": (-4, 7)}),
    "huge.npy": npy_header({"descr": "<f4", "fortran_order": False, "shape": (2**62, 2**62)}),
    "code.npy": b"\x93NUMPY\x01\x00\x14\x00__import__('os')   \n",
    "zip.npz": b"PK\x03\x04 and then nothing",
    "table.parquet": b"PAR1 and then nothing PAR1",
    "table.arrow": b"ARROW1\0\0 and then nothing",
    "stream.arrow": b"\xff\xff\xff\xff and then nothing",
    "long.safetensors": b"\xff\xff\xff\0\0\0\0\0{}",
    "broken.safetensors": b"\x03\0\0\0\0\0\0\0{]}",
    "short.safetensors": safetensors("F32", 0, 28000, 100),
    "minus.safetensors": safetensors("F32", -8, 27992, 28000),
    "size.safetensors": safetensors("F32", 0, 27996, 28000),
    "eight.safetensors": safetensors("F8_E4M3", 0, 7000, 7000),
}


@pytest.mark.parametrize(("name", "content"), DAMAGED.items(), ids=DAMAGED)
def test_damaged_files(files, name, content):
    if "arrow" in name or "parquet" in name:
        pytest.importorskip("pyarrow")
    Path(name).write_bytes(content)
    assert name in refused(name, "targets.npy")


def job_of(*names: str) -> scorer.Job:
    request = readers.Request("array", "", None, ())
    sources = [readers.open_source(Path(name), request) for name in names]
    return scorer.plan(*sources, scorer.Options())


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="without preadv the file is mapped")
def test_a_file_that_is_cut_off_while_it_is_read(files):
    job = job_of("logits.npy", "targets.npy")
    os.truncate("logits.npy", 10_000)
    with pytest.raises(InputError, match=r"logits\.npy was cut off"):
        for _ in job.blocks(lambda scores: None):
            pass


def test_files_that_are_cut_off(files):
    np.savez_compressed("whole.npz", logits=LOGITS)
    for source, name in (("logits.npy", "cut.npy"), ("whole.npz", "cut.npz")):
        Path(name).write_bytes(Path(source).read_bytes()[:-500])
        assert name in refused(name, "targets.npy")


def test_a_damaged_member(files):
    """A compressed member whose bytes are wrong is found while it is read."""
    np.savez_compressed("damaged.npz", logits=LOGITS)
    data = bytearray(Path("damaged.npz").read_bytes())
    data[5000:5010] = bytes(10)
    Path("damaged.npz").write_bytes(data)
    assert "damaged.npz:logits" in refused("damaged.npz", "targets.npy", "--output", "out.npy")


def test_pickles_are_never_loaded(files):
    class Bomb:
        def __reduce__(self):
            return (Path("exploded").touch, ())

    np.save("pickle.npy", np.array([Bomb()], object), allow_pickle=True)
    np.savez("pickle.npz", logits=np.array([Bomb()], object))
    assert "pickled" in refused("pickle.npy", "targets.npy")
    assert "pickled" in refused("pickle.npz", "targets.npy")
    assert not Path("exploded").exists()


def test_a_zip_that_holds_something_else(files):
    with zipfile.ZipFile("other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "readme.txt" in refused("other.zip", "targets.npy")


def test_columns_that_do_not_fit(files, table):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(table, "both.parquet")
    assert "string" in refused("both.parquet", "--logits-name", "words")
    assert "'id'" in refused("both.parquet", "--logits-name", "nothing")
    rows = LOGITS.tolist()
    for wrong, text in (
        ([1.0, 2.0], "row 423"),
        (None, "null in row 423"),
        ([None] * 7, "null in row 423"),
    ):
        rows[423] = wrong
        pq.write_table(pa.table({"logits": pa.array(rows), "targets": TARGET}), "rows.parquet")
        assert text in refused("rows.parquet")


# ---- g) processes ----------------------------------------------------------------------------


def start(*arguments, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "fastloss", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


def big_files(gigabytes: int) -> None:
    """Logits and targets that take no room on disk: all zero."""
    rows = gigabytes * 2**30 // 4096
    np.lib.format.open_memmap("big.npy", "w+", np.float32, (rows, 1024))
    np.lib.format.open_memmap("big_targets.npy", "w+", np.int64, (rows,))


def test_python_m_fastloss_prints_the_configuration():
    status, out, err = finish(start())
    assert (status, err) == (0, "")
    assert fastloss.__version__ in out
    status, out, err = finish(start("score", "--json"))
    assert (status, err) == (0, "")
    assert json.loads(out)["samples"] == 1797


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra(tmp_path, missing):
    """The bare form needs NumPy alone; the command says what to install."""
    (tmp_path / f"{missing}.py").write_text(
        f"raise ModuleNotFoundError('No module named {missing}')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    status, out, err = finish(start(env=environment))
    assert (status, err) == (0, "")
    assert fastloss.__version__ in out
    status, out, err = finish(start("score", env=environment))
    assert (status, out) == (2, "")
    assert err.splitlines() == [
        "fastloss: the fastloss command needs typer and rich: pip install 'fastloss[cli]'"
    ]


@pytest.mark.parametrize(
    ("missing", "extra", "arguments"),
    [
        ("pyarrow", "arrow", ["--output", "out.parquet"]),
        ("matplotlib", "plot", ["--plot", "p.png"]),
    ],
)
def test_without_other_extras(tmp_path, missing, extra, arguments):
    (tmp_path / f"{missing}.py").write_text(
        f"raise ModuleNotFoundError('No module named {missing}')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    status, out, err = finish(start("score", *arguments, env=environment, cwd=tmp_path))
    assert (status, out) == (2, "")
    assert f"pip install 'fastloss[{extra}]'" in err
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_stays_bounded(files):
    big_files(2)
    process = start("score", "big.npy", "big_targets.npy", "--output", "out.npy", "--json")
    most = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                most = max(most, int(line.split()[1]) * 1024)
        time.sleep(0.01)
    status, out, err = finish(process)
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report["samples"] == 2**31 // 4096
    assert report["mean_loss"] == pytest.approx(math.log(1024), rel=1e-6)
    assert 0 < most < 300e6


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_half_file(files, number):
    big_files(60)
    before = set(files.iterdir())
    # A shell that runs the tests in the background has them, and what they start, ignore SIGINT.
    handler = signal.signal(number, signal.SIG_DFL)
    process = start("score", "big.npy", "big_targets.npy", "--output", "out.csv", "--plot", "p.png")
    signal.signal(number, handler)
    deadline = time.monotonic() + 60
    while not any(
        path.name.startswith(".fastloss-") and path.stat().st_size > 50_000
        for path in files.iterdir()
    ):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    status, out, err = finish(process)
    assert status == 128 + number
    assert out == ""
    assert len(err.splitlines()) <= 1
    assert set(files.iterdir()) == before
