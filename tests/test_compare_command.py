"""`fastloss compare`: two models on the same samples, against float64 NumPy and SciPy.

Layout: a) numbers, b) intervals, c) inputs, d) limits for CI, e) files and plots, f) wrong input.
"""

from __future__ import annotations

import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest

import oracle
from fastloss._scoring import blocks, comparison, quantiles
from fastloss._scoring.plots import compare as compare_plot
from fastloss._scoring.sources import ArraySource

pytest.register_assert_rewrite("cli_helpers")

from cli_helpers import CLASSES, LOGITS, SAMPLES, TARGET, check_texts, finish, invoke, start

pytest_plugins = ("cli_helpers",)
pytestmark = pytest.mark.usefixtures("small_blocks", "same_threads")

OTHER = (LOGITS + np.random.default_rng(8).standard_normal(LOGITS.shape) * 0.3).astype(np.float32)
KEPT = TARGET != -100
LOG_P, LOG_Q = oracle.log_softmax(LOGITS.astype(float)), oracle.log_softmax(OTHER.astype(float))
KL = (np.exp(LOG_P) * (LOG_P - LOG_Q)).sum(1)
AT = np.arange(SAMPLES), np.where(KEPT, TARGET, 0)
LOSS_A, LOSS_B = -LOG_P[AT][KEPT], -LOG_Q[AT][KEPT]


@pytest.fixture
def pair(files):
    np.save("other.npy", OTHER)
    return files


def compare(*arguments) -> dict:
    result = invoke("compare", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments) -> str:
    before = set(Path().iterdir())
    result = invoke("compare", *arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = result.stderr.splitlines()
    assert set(Path().iterdir()) == before
    return line


def check_divergence(report: dict, kl) -> None:
    assert report["kl"]["mean"] == pytest.approx(kl.mean(), rel=1e-5)
    for name, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1)):
        assert report["kl"][name] == pytest.approx(np.quantile(kl, share), rel=1e-4)


# ---- a) numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("gathered", [1, 150])
@pytest.mark.parametrize("threads", [1, 2])
def test_comparison_with_targets(pair, monkeypatch, gathered, threads):
    monkeypatch.setattr(blocks, "GATHERED_SAMPLES", gathered)
    report = compare("logits.npy", "other.npy", "targets.npy", "--threads", threads)
    assert (report["samples"], report["ignored"]) == (SAMPLES, (~KEPT).sum())
    assert report["non_finite"] == 0
    check_divergence(report, KL[KEPT])
    reverse = (np.exp(LOG_Q) * (LOG_Q - LOG_P)).sum(1)[KEPT]
    assert report["reverse_kl"]["mean"] == pytest.approx(reverse.mean(), rel=1e-5)
    right_a, right_b = LOG_P.argmax(1) == TARGET, LOG_Q.argmax(1) == TARGET
    same = (LOG_P.argmax(1) == LOG_Q.argmax(1))[KEPT].mean()
    assert report["same_prediction"] == pytest.approx(same, abs=1e-12)
    assert report["accuracy_a"] == pytest.approx(right_a[KEPT].mean(), abs=1e-12)
    assert report["accuracy_b"] == pytest.approx(right_b[KEPT].mean(), abs=1e-12)
    assert report["mean_loss_a"] == pytest.approx(LOSS_A.mean(), rel=1e-6)
    assert report["mean_loss_b"] == pytest.approx(LOSS_B.mean(), rel=1e-6)
    assert report["perplexity_b"] == pytest.approx(np.exp(LOSS_B.mean()), rel=1e-6)
    difference = LOSS_B - LOSS_A
    assert report["mean_loss_difference"]["value"] == pytest.approx(difference.mean(), rel=1e-4)
    assert report["worse"] == pytest.approx((difference > 0).mean(), abs=2 / SAMPLES)
    change = np.exp(-LOSS_B) - np.exp(-LOSS_A)
    found = report["target_probability_change"]
    assert found["mean"] == pytest.approx(change.mean(), rel=1e-4)
    assert found["rms"] == pytest.approx(np.sqrt(np.square(change).mean()), rel=1e-5)
    assert found["p01"] == pytest.approx(np.quantile(change, 0.01), rel=1e-4)
    order = np.flatnonzero(KEPT)[np.argsort(-KL[KEPT])][:5]
    assert [one["sample"] for one in report["most_changed"]] == order.tolist()
    assert report["most_changed"][0]["kl"] == pytest.approx(KL[order[0]], rel=1e-5)


def test_the_divergence_against_scipy(pair):
    special = pytest.importorskip("scipy.special")
    p, q = special.softmax(LOGITS.astype(float), 1), special.softmax(OTHER.astype(float), 1)
    check_divergence(compare("logits.npy", "other.npy"), special.rel_entr(p, q).sum(1))


def test_comparison_without_targets(pair):
    report = compare("logits.npy", "other.npy")
    check_divergence(report, KL)
    assert report["mean_loss_difference"] is report["accuracy_a"] is None
    assert report["where_worse"]["parts"] == []
    text = invoke("compare", "logits.npy", "other.npy").stdout
    assert "same prediction" in text and "mean loss" not in text


def test_half_precision_against_single(pair):
    """Differences far below the resolution of the losses themselves."""
    half = LOGITS.astype(np.float16)
    np.save("half.npy", half)
    log_q = oracle.log_softmax(half.astype(float))
    report = compare("logits.npy", "half.npy")
    check_divergence(report, (np.exp(LOG_P) * (LOG_P - log_q)).sum(1))
    assert report["settings"]["dtype_b"] == "float16"


def test_many_samples_are_counted_in_bins(pair, monkeypatch):
    monkeypatch.setattr(quantiles, "MOST_KEPT", 100)
    report = compare("logits.npy", "other.npy")
    bound = report["kl"]["relative_error"]
    assert bound == quantiles.RELATIVE_ERROR < 1e-3
    ordered = np.sort(KL)
    for name, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
        exact = ordered[math.floor(share * (SAMPLES - 1))]
        assert report["kl"][name] == pytest.approx(exact, rel=bound * 1.01)
    assert report["kl"]["max"] == pytest.approx(KL.max(), rel=1e-5)
    assert "quantiles to 0.05%" in " ".join(
        invoke("compare", "logits.npy", "other.npy").stdout.split()
    )


def test_a_model_against_itself(pair):
    np.save("same.npy", LOGITS)
    report = compare("logits.npy", "same.npy", "targets.npy", "--plot", "p.png")
    assert report["kl"]["max"] == 0
    assert report["same_prediction"] == 1
    difference = report["mean_loss_difference"]
    assert (difference["value"], difference["low"], difference["high"]) == (0, 0, 0)
    assert "no difference" in invoke("compare", "logits.npy", "same.npy", "targets.npy").stdout


def test_what_is_not_finite(pair):
    other = OTHER.copy()
    other[3] = np.nan
    other[5, 0] = -np.inf  # KL(A || B) is infinite
    np.save("other.npy", other)
    target = np.where(KEPT, TARGET, 1)
    target[5] = 1
    np.save("targets.npy", target)
    report = compare("logits.npy", "other.npy", "targets.npy")
    assert report["non_finite"] == 1
    assert report["kl"]["mean"] is report["kl"]["max"] is None
    assert report["kl"]["median"] == pytest.approx(np.median(KL), rel=0.05)
    result = invoke("compare", "logits.npy", "other.npy", "--fail-above", "kl=9")
    assert result.exit_code == 1
    assert result.stderr == "fastloss: kl is inf, above 9; 1 sample not finite\n"


# ---- b) intervals ----------------------------------------------------------------------------


def test_the_interval_over_samples(pair):
    stats = pytest.importorskip("scipy.stats")
    report = compare("logits.npy", "other.npy", "targets.npy")["mean_loss_difference"]
    expected = stats.ttest_rel(LOSS_B, LOSS_A).confidence_interval(0.95)
    assert report["low"] == pytest.approx(expected.low, rel=1e-4)
    assert report["high"] == pytest.approx(expected.high, rel=1e-4)
    assert (report["unit"], report["confidence"]) == ("sample", 0.95)


def test_the_interval_over_groups(pair):
    """The cluster-robust standard error of the mean, written out."""
    stats = pytest.importorskip("scipy.stats")
    groups = np.sqrt(np.arange(SAMPLES)).astype(int)
    np.save("groups.npy", groups)
    report = compare("logits.npy", "other.npy", "targets.npy", "--group-by", "groups.npy")
    difference, of = LOSS_B - LOSS_A, groups[KEPT]
    names = np.unique(of)
    mean = difference.mean()
    rest = np.array([(difference[of == g] - mean).sum() for g in names])
    error = math.sqrt(np.square(rest).sum() * len(names) / (len(names) - 1)) / len(difference)
    half = stats.t.ppf(0.975, len(names) - 1) * error
    found = report["mean_loss_difference"]
    assert found["unit"] == "group"
    assert found["low"] == pytest.approx(mean - half, rel=1e-4)
    assert found["high"] == pytest.approx(mean + half, rel=1e-4)
    for group in report["groups"]:
        inside = of == group["group"]
        assert group["samples"] == inside.sum()
        if inside.any():
            value = difference[inside].mean()
            assert group["mean_loss_difference"] == pytest.approx(value, rel=1e-4, abs=1e-6)
            assert group["mean_kl"] == pytest.approx(KL[KEPT][inside].mean(), rel=1e-5)


def test_groups_that_repeat_widen_the_interval(pair):
    """Each sample eight times over is no new evidence; the groups say so."""
    for name in ("logits", "other", "targets"):
        np.save(f"{name}8.npy", np.repeat(np.load(f"{name}.npy"), 8, axis=0))
    np.save("groups.npy", np.repeat(np.arange(SAMPLES), 8))
    once = compare("logits.npy", "other.npy", "targets.npy")["mean_loss_difference"]
    report = compare(*("logits8.npy", "other8.npy", "targets8.npy", "--group-by", "groups.npy"))[
        "mean_loss_difference"
    ]
    for end in ("value", "low", "high"):
        assert report[end] == pytest.approx(once[end], rel=1e-3)


def test_one_sample_has_no_interval(pair):
    for name in ("logits", "other", "targets"):
        np.save(f"{name}.npy", np.load(f"{name}.npy")[1:2])
    report = compare("logits.npy", "other.npy", "targets.npy", "--plot", "p.png")
    assert report["mean_loss_difference"]["low"] is None
    text = invoke("compare", "logits.npy", "other.npy", "targets.npy").stdout
    assert "too few samples" in text


# ---- c) inputs -------------------------------------------------------------------------------


def test_shards_columns_and_names(pair):
    Path("a").mkdir()
    for number in range(8):
        np.savez(f"a/{number}.npz", logits=LOGITS[number * 125 : (number + 1) * 125])
    np.savez("both.npz", x=OTHER, targets=TARGET)
    report = compare("a", "both.npz", "--b-name", "x", "--targets-name", "targets", "--targets",
                     "both.npz")  # fmt: skip
    assert report["mean_loss_b"] == pytest.approx(LOSS_B.mean(), rel=1e-6)
    options = [word for n in range(8) for word in ("--a", f"a/{n}.npz")]
    report = compare(*options, "--b", "other.npy", "--targets", "targets.npy")
    assert report["mean_loss_a"] == pytest.approx(LOSS_A.mean(), rel=1e-6)


@pytest.mark.parametrize("shift", [0, 1])
def test_tokens(pair, shift):
    shape = (25, 40)
    np.save("logits.npy", LOGITS.reshape(*shape, CLASSES))
    np.save("other.npy", OTHER.reshape(*shape, CLASSES))
    np.save("targets.npy", TARGET.reshape(shape))
    report = compare("logits.npy", "other.npy", "targets.npy", "--shift", shift)
    target = TARGET.reshape(shape)[:, shift:]
    kl = KL.reshape(shape)[:, : 40 - shift][target != -100]
    check_divergence(report, kl)
    line = refused("logits.npy", "other.npy")
    assert "say with --axis which axis holds the classes" in line
    check_divergence(compare("logits.npy", "other.npy", "--axis", -1), KL)


def test_classes_first_and_one_long_text(pair):
    np.save("a.npy", LOGITS.T)
    np.save("b.npy", np.ascontiguousarray(OTHER.T))
    check_divergence(compare("a.npy", "b.npy", "--axis", 0), KL)
    report = compare("logits.npy", "other.npy", "targets.npy", "--shift", 1)
    check_divergence(report, KL[:-1][TARGET[1:] != -100])


# ---- d) limits for CI ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "fails"),
    [
        ("kl=10", False),
        ("kl=0.0001", True),
        ("kl.max=0.0001", True),
        ("kl.p99=100", False),
        ("different=0", True),
        ("mean_loss_difference=1", False),
        ("mean_loss_difference.high=-1", True),
    ],
)
def test_limits(pair, limit, fails):
    common = ("compare", "logits.npy", "other.npy", "targets.npy", "--json", "--output", "o.npy")
    result = invoke(*common, "--fail-above", limit)
    assert result.exit_code == int(fails), result.output
    # The results are there either way.
    assert json.loads(result.stdout)["samples"] == SAMPLES
    assert len(np.load("o.npy")) == SAMPLES
    name = limit.partition("=")[0]
    assert result.stderr.startswith(f"fastloss: {name} is ") == fails
    assert len(result.stderr.splitlines()) == int(fails)


def test_several_limits_and_wrong_ones(pair):
    both = ("--fail-above", "kl=0", "--fail-above", "different=0")
    result = invoke("compare", "logits.npy", "other.npy", *both)
    assert result.exit_code == 1
    assert result.stderr.count("above 0") == 2
    for wrong in ("kl", "kl=", "kl=x", "kl=nan", "nothing=1"):
        line = refused("logits.npy", "other.npy", "--fail-above", wrong)
        assert f"--fail-above {wrong}: expected NAME=NUMBER with one of kl, kl.mean" in line
    line = refused("logits.npy", "other.npy", "--fail-above", "mean_loss_difference=1")
    assert "needs TARGETS" in line


# ---- e) files and plots ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.npy", "out.csv"])
def test_output(pair, name):
    np.save("groups.npy", np.arange(SAMPLES) % 3)
    compare("logits.npy", "other.npy", "targets.npy", "--output", name, "--group-by",
            "groups.npy", "--output-groups", "g.csv")  # fmt: skip
    if name.endswith(".npy"):
        out = np.load(name)
    else:
        with open(name, newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows[1]["same_prediction"] in ("True", "False")
        out = {key: np.array([float(r[key]) for r in rows]) for key in ("kl", "log_prob_b")}
    np.testing.assert_allclose(out["kl"][KEPT], KL[KEPT], rtol=1e-4)
    np.testing.assert_allclose(out["log_prob_b"][KEPT], -LOSS_B, rtol=1e-5)
    with open("g.csv", newline="") as file:
        groups = list(csv.DictReader(file))
    assert [group["group"] for group in groups] == ["0", "1", "2"]
    assert sum(int(group["samples"]) for group in groups) == KEPT.sum()


def job_to_draw(name: str) -> comparison.Job:
    rng = np.random.default_rng(5)
    samples, classes = {"vocabulary": (600, 32_000), "ten": (10, 10)}.get(name, (2000, 12))
    a = rng.standard_normal((samples, classes)).astype(np.float32)
    target = rng.integers(0, classes, samples)
    a[np.arange(samples), target] += rng.uniform(0, 9, samples)
    b = a + (0 if name == "same" else 0.2) * rng.standard_normal(a.shape).astype(np.float32)
    if name == "half":
        b = a.astype(np.float16)
    if name == "alike":
        a[:], b[:], target[:] = np.arange(12), np.arange(12)[::-1], 3
    if name == "broken":
        b[:] = np.nan
    groups = None
    if name.startswith("groups"):
        names = np.array([f"a group with a rather long name {i}" for i in range(40)])
        groups = ArraySource("groups", names[rng.integers(0, 40, samples)])
    targets = None if name.endswith("without targets") else ArraySource("targets", target)
    sources = ArraySource("a" * 200, a), ArraySource("$\\frac$_{b}", b)
    return comparison.plan(*sources, targets, None, 0, -100, groups)


NAMES = (
    *("plain", "vocabulary", "ten", "same", "half", "alike", "broken", "groups"),
    *("without targets", "groups without targets"),
)


@pytest.mark.parametrize("name", NAMES)
def test_no_text_of_a_plot_lies_on_another(name):
    pytest.importorskip("matplotlib")
    job = job_to_draw(name)
    found = comparison.Comparison(job)
    for _, part in job.blocks(found.of):
        found.merge(part)
    check_texts(compare_plot.make_figure(found))


def test_what_the_plot_is_drawn_from(pair):
    job = job_to_draw("plain")
    found = comparison.Comparison(job)
    for _, part in job.blocks(found.of):
        found.merge(part)
    by, parts = found.where_worse()
    assert by == "class" and len(parts) == 12
    assert [value for *_, value in parts] == sorted((p[2] for p in parts), reverse=True)
    assert found.losses.sum() == 2000
    assert found.losses.sum(axis=1).argmax() == pytest.approx(
        comparison.Comparison.places(np.array([found.loss_a / 2000]))[0], abs=20
    )


# ---- f) wrong input --------------------------------------------------------------------------


def test_models_that_do_not_fit(pair):
    np.save("short.npy", OTHER[:-1])
    line = refused("logits.npy", "short.npy", "targets.npy")
    assert "(1000, 7)" in line and "(999, 7)" in line and "the same samples" in line
    np.save("wide.npy", np.zeros((SAMPLES, 9), np.float32))
    line = refused("logits.npy", "wide.npy")
    assert "(1000, 9)" in line and "the same classes" in line
    np.save("cube.npy", np.zeros((SAMPLES, 7, 2), np.float32))
    assert "samples and classes" in refused("logits.npy", "cube.npy")
    np.save("short.npy", TARGET[:-1])
    assert "(999,)" in refused("logits.npy", "other.npy", "short.npy")
    np.save("probs.npy", np.abs(LOGITS))
    assert "no class probabilities" in refused("logits.npy", "other.npy", "probs.npy")


def test_wrong_words(pair):
    assert "A is missing" in refused()
    assert "B is missing" in refused("logits.npy")
    assert "can't be both A and B" in refused("logits.npy", "logits.npy")
    assert "A is given twice" in refused("logits.npy", "other.npy", "--a", "other.npy")
    wrong = TARGET.copy()
    wrong[777] = 70
    np.save("targets.npy", wrong)
    line = refused("logits.npy", "other.npy", "targets.npy", "--output", "o.npy", "--plot", "p.png")
    assert "targets.npy: class index 70 at position (777,) is outside [0, 7)" in line
    assert "--top -1" in refused("logits.npy", "other.npy", "--top", "-1")
    assert "it is an input" in refused("logits.npy", "other.npy", "--output", "other.npy")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_stays_bounded(files):
    """Two files of 2 GB that take no room on disk."""
    rows = 2**31 // 4096
    for name in ("a.npy", "b.npy"):
        np.lib.format.open_memmap(name, "w+", np.float32, (rows, 1024))
    np.lib.format.open_memmap("t.npy", "w+", np.int64, (rows,))
    process = start("compare", "a.npy", "b.npy", "t.npy", "--json", "--threads", "2")
    most = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        most = max([most, *(int(s.split()[1]) for s in status.splitlines() if "RssAnon" in s)])
        time.sleep(0.01)
    status, out, err = finish(process)
    assert (status, err) == (0, "")
    assert json.loads(out)["samples"] == rows
    assert 0 < most < 300_000


def test_the_same_bits_for_any_number_of_threads(pair):
    common = ("logits.npy", "other.npy", "targets.npy", "--threads")
    reports = [compare(*common, n) for n in (1, 2, 5)]
    for report in reports:
        for key in ("seconds", "settings"):
            del report[key]
    assert reports[0] == reports[1] == reports[2]


def test_help_names_every_command():
    text = invoke("--help").stdout
    assert all(name in text for name in ("score", "compare", "calibrate"))
