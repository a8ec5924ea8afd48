"""`fastloss calibrate`: the temperature, against SciPy's minimiser and `fit_temperature`.

Layout: a) the temperature, b) inputs, c) files and plots, d) wrong input.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import fastloss
import oracle
from fastloss._scoring import tempering
from fastloss.data import load_digits_logits

pytest.register_assert_rewrite("cli_helpers")

from cli_helpers import CLASSES, LOGITS, SAMPLES, TARGET, check_texts, invoke

pytest_plugins = ("cli_helpers",)
pytestmark = pytest.mark.usefixtures("small_blocks", "same_threads")


def calibrate(*arguments) -> dict:
    result = invoke("calibrate", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments) -> str:
    before = set(Path().iterdir())
    result = invoke("calibrate", *arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = result.stderr.splitlines()
    assert set(Path().iterdir()) == before
    return line


def best(logits, target) -> tuple[float, float]:
    """The temperature and loss that SciPy's minimiser finds in float64."""
    optimize = pytest.importorskip("scipy.optimize")
    kept = target != -100
    x, at = logits[kept].astype(float), target[kept]

    def loss(u: float) -> float:
        return -oracle.log_softmax(x * np.exp(u))[np.arange(len(at)), at].mean()

    found = optimize.minimize_scalar(
        loss, bounds=(-7, 7), method="bounded", options={"xatol": 1e-9}
    )
    return float(np.exp(-found.x)), float(found.fun)


# ---- a) the temperature ----------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 0.05, 20, 300])
@pytest.mark.parametrize("dtype", ["f4", "f2", "f8"])
def test_the_best_temperature(files, scale, dtype):
    logits = (LOGITS * scale).astype(dtype)
    np.save("logits.npy", logits)
    temperature, loss = best(logits, TARGET)
    report = calibrate("logits.npy", "targets.npy")
    assert report["temperature"] == pytest.approx(temperature, rel=1e-5)
    assert report["loss"] == pytest.approx(loss, rel=1e-6)
    before = oracle.cross_entropy(logits.astype(float), TARGET).loss("mean")
    assert report["loss_before"] == pytest.approx(float(before), rel=1e-6)
    assert report["steps"] < 15
    assert (report["samples"], report["ignored"]) == (SAMPLES, (TARGET == -100).sum())


def test_the_same_as_the_function():
    report = calibrate()
    logits, labels = load_digits_logits()
    expected = fastloss.fit_temperature(logits, labels)
    for name in ("temperature", "loss", "loss_before"):
        assert report[name] == pytest.approx(getattr(expected, name), rel=1e-6)
    for name in ("calibration_error", "calibration_error_before"):
        assert report[name] == pytest.approx(getattr(expected, name), abs=1e-6)
    text = invoke("calibrate").stdout
    assert f"{report['temperature']:.6g}" in text
    assert f"{report['calibration_error']:.2%}" in text


def test_any_number_of_threads_gives_the_same_bits(files):
    reports = [calibrate("logits.npy", "targets.npy", "--threads", n) for n in (1, 2, 5)]
    assert len({report["temperature"] for report in reports}) == 1
    assert len({report["calibration_error"] for report in reports}) == 1


def test_what_is_not_finite_is_left_out(files):
    logits = LOGITS.copy()
    logits[[3, 500]] = np.nan
    np.save("logits.npy", logits)
    report = calibrate("logits.npy", "targets.npy")
    target = TARGET.copy()
    target[[3, 500]] = -100
    assert report["non_finite"] == (TARGET[[3, 500]] != -100).sum()
    assert report["temperature"] == pytest.approx(best(LOGITS, target)[0], rel=1e-5)
    assert "not finite" in invoke("calibrate", "logits.npy", "targets.npy").stdout


# ---- b) inputs -------------------------------------------------------------------------------


def test_shards_and_tokens(files):
    expected, _ = best(LOGITS, TARGET)
    Path("x").mkdir()
    for number in range(8):
        np.savez(f"x/{number}.npz", logits=LOGITS[number * 125 : (number + 1) * 125])
    assert calibrate("x", "targets.npy")["temperature"] == pytest.approx(expected, rel=1e-5)
    np.save("logits.npy", LOGITS.reshape(25, 40, CLASSES))
    np.save("targets.npy", TARGET.reshape(25, 40))
    report = calibrate("logits.npy", "targets.npy")
    assert report["temperature"] == pytest.approx(expected, rel=1e-5)
    # The target of each token's logits stands at the next.
    tokens = np.roll(TARGET.reshape(25, 40), 1, axis=1)
    np.save("targets.npy", tokens)
    shifted = LOGITS.reshape(25, 40, CLASSES)[:, :-1].reshape(-1, CLASSES)
    expected, _ = best(shifted, tokens[:, 1:].ravel())
    report = calibrate("logits.npy", "targets.npy", "--shift", 1)
    assert report["temperature"] == pytest.approx(expected, rel=1e-5)


def test_files_of_streams_are_opened_for_every_pass(files, table):
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(table, "both.parquet", row_group_size=300)
    report = calibrate("both.parquet")
    assert report["temperature"] == pytest.approx(best(LOGITS, TARGET)[0], rel=1e-5)


# ---- c) files and plots ----------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F", "classes first", "images"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_scaled_log_probabilities(files, order, dtype):
    logits = LOGITS.astype(dtype)
    axis = 1
    if order == "images":
        logits = np.ascontiguousarray(np.moveaxis(logits.reshape(50, 20, CLASSES), -1, 1))
        np.save("targets.npy", TARGET.reshape(50, 20))
    options = []
    if order == "classes first":
        logits, axis, options = np.ascontiguousarray(logits.T), 0, ["--axis", 0]
    np.save("logits.npy", np.asarray(logits, order="F" if order == "F" else "C"))
    report = calibrate("logits.npy", "targets.npy", "--output", "scaled.npy", *options)
    scaled = np.load("scaled.npy")
    assert scaled.dtype == (np.float64 if dtype == "f8" else np.float32)
    expected = oracle.log_softmax(logits.astype(float) / report["temperature"], axis=axis)
    assert scaled.shape == expected.shape
    np.testing.assert_allclose(scaled, expected, rtol=1e-5, atol=1e-6)
    # They are a model of their own, whose best temperature is 1.
    again = calibrate("scaled.npy", "targets.npy", *options)
    assert again["temperature"] == pytest.approx(1, rel=1e-4)


def test_the_plot(files):
    pytest.importorskip("matplotlib")
    calibrate("logits.npy", "targets.npy", "--plot", "p.png")
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("samples", [12, 1000])
@pytest.mark.parametrize("scale", [0.05, 1, 100])
def test_no_text_of_the_plot_lies_on_another(samples, scale):
    pytest.importorskip("matplotlib")
    from fastloss._scoring.layout import lay_out
    from fastloss._scoring.plots.calibrate import make_figure
    from fastloss._scoring.sources import ArraySource

    def run(temperature: float) -> tempering.Pass:
        logits = ArraySource("logits", LOGITS[:samples] * np.float32(scale))
        targets = ArraySource("targets", TARGET[:samples])
        job = tempering.Job(lay_out(logits, targets), -100)
        return tempering.run_pass(job, temperature, lambda count: None)

    temperature, steps, before = tempering.fit(run, CLASSES)
    fit = tempering.Fit(temperature, steps, before, run(temperature))
    figure = make_figure(fit, "x" * 90)
    check_texts(figure)
    # The same axes, so that the two diagrams can be compared.
    one, _, two, _ = figure.axes
    assert one.get_xlim() == two.get_xlim() == one.get_ylim() == two.get_ylim()


# ---- d) wrong input --------------------------------------------------------------------------


def test_samples_without_a_best_temperature(files):
    np.save("targets.npy", LOGITS.argmax(axis=1))
    assert "the lower the temperature" in refused("logits.npy", "targets.npy", "--output", "o.npy")
    np.save("targets.npy", LOGITS.argmin(axis=1))
    assert "the higher the temperature" in refused("logits.npy", "targets.npy", "--plot", "p.png")
    np.save("targets.npy", np.full(SAMPLES, -100))
    assert "no sample has a finite loss" in refused("logits.npy", "targets.npy")


def test_a_loss_that_falls_slower_and_slower(files):
    """Newton's method takes even steps there, and reaches no end."""
    np.save("logits.npy", np.tile([2.0, 0.0, -1.0], (50, 1)))
    np.save("targets.npy", np.zeros(50, int))
    assert "the lower the temperature" in refused("logits.npy", "targets.npy")


def test_wrong_words(files):
    assert "TARGETS is missing" in refused("logits.npy")
    assert "ends in .npy" in refused("logits.npy", "targets.npy", "--output", "o.csv")
    assert "it is an input" in refused("logits.npy", "targets.npy", "--output", "logits.npy")
    np.save("probs.npy", np.abs(LOGITS))
    assert "no class probabilities" in refused("logits.npy", "probs.npy")
    wrong = TARGET.copy()
    wrong[999] = 7
    np.save("targets.npy", wrong)
    line = refused("logits.npy", "targets.npy", "--output", "o.npy")
    assert "class index 7 at position (999,)" in line


def test_files_that_change_between_passes(files, monkeypatch):
    passes = []
    run_pass = tempering.run_pass

    def changing(job, temperature, *rest):
        passes.append(temperature)
        if len(passes) == 2:
            np.save("logits.npy", LOGITS * 2)
            os.utime("logits.npy", ns=(1, 1))
        return run_pass(job, temperature, *rest)

    monkeypatch.setattr(tempering, "run_pass", changing)
    line = refused("logits.npy", "targets.npy", "--output", "o.npy")
    assert "logits.npy changed while it was read" in line
