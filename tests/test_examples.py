"""The examples run, and do what they say.

`train_digits.py` is run shortened here; on a full run its accuracies are higher still.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastloss
from fastloss.data import load_digits_logits

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="needs the source tree")


def load(name: str):
    """Import an example as a module."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def train_digits():
    pytest.importorskip("sklearn")
    return load("train_digits")


@pytest.mark.parametrize(("task", "least"), [(0, 0.98), (1, 0.95)], ids=["two-class", "ten-class"])
def test_train_digits_learns(train_digits, task, least):
    run = train_digits.train(train_digits.TASKS[task], epochs=20)
    assert run.accuracy >= least
    assert run.train_loss[-1] < 0.1 * run.train_loss[0]
    assert len(run.train_loss) == len(run.test_loss) == 20


def test_train_digits_gradients(train_digits):
    """The gradient that the optimizer gets is that of the whole net's loss."""
    rng = np.random.default_rng(0)
    for task in train_digits.TASKS:
        net = train_digits.Network(5, 4, task.outputs, rng)
        net.parameters[:] = [p.astype(np.float64) for p in net.parameters]
        x, target = rng.standard_normal((6, 5)), task.target(np.arange(6))

        def loss(net=net, x=x, task=task, target=target) -> float:
            return float(task.criterion(net.forward(x), target))

        _, grad = task.criterion.value_and_grad(net.forward(x), target)
        for parameter, gradient in zip(net.parameters, net.backward(grad), strict=True):
            at = tuple(rng.integers(0, n) for n in parameter.shape)
            values = []
            for step in (1e-5, -1e-5):
                parameter[at] += step
                values.append(loss())
                parameter[at] -= step
            assert gradient[at] == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_train_digits_from_the_command_line(train_digits, tmp_path):
    pytest.importorskip("matplotlib")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "train_digits.py", "--epochs", "2", "--plot", "curves.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "closed loop or not" in done.stdout and "which digit" in done.stdout
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_make_digits_logits_makes_what_the_package_carries(tmp_path):
    pytest.importorskip("sklearn")
    path = tmp_path / "digits.npz"
    load("make_digits_logits").main(path)
    with np.load(path) as made:
        logits, labels = load_digits_logits()
        np.testing.assert_array_equal(made["labels"], labels)
        # The optimizer stops at a tolerance, so that another machine's rounding shows.
        np.testing.assert_allclose(made["logits"], logits, atol=0.01)
        assert float(fastloss.cross_entropy(made["logits"], labels)) == pytest.approx(
            float(fastloss.cross_entropy(logits, labels)), rel=0.01
        )


def test_language_model(tmp_path, monkeypatch):
    """The logits are log-probabilities, and the command reads them as the example says."""
    pytest.importorskip("typer")
    pytest.importorskip("rich")
    from typer.testing import CliRunner

    from fastloss.cli import app

    monkeypatch.chdir(tmp_path)
    module = load("language_model")
    # A vocabulary that takes less room than the whole one.
    monkeypatch.setattr(module, "WORDS", 200)
    module.main(Path("model"))
    tokens = np.load("model/tokens.npy")
    logits = np.load("model/trigram.npy")
    kept = tokens >= 0
    np.testing.assert_allclose(np.exp(logits[kept]).sum(axis=-1), 1, rtol=1e-4)
    assert 50 < len(tokens) < 300 and (tokens[:, 0] >= 0).all()

    def run(*words: str) -> dict:
        result = CliRunner().invoke(app, [*words, "--shift", "1", "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    common = ("model/tokens.npy", "--group-by", "model/documents.csv")
    report = run("score", "model/trigram.npy", *common)
    assert 5 < report["perplexity"] < 200
    assert len({group["group"] for group in report["groups"]}) == len(tokens)
    half = run("compare", "model/trigram.npy", "model/trigram-float16.npy", *common)
    assert 0 < half["kl"]["mean"] < 1e-5
    assert half["same_prediction"] > 0.99
    bigram = run("compare", "model/trigram.npy", "model/bigram.npy", *common)
    assert bigram["accuracy_a"] > bigram["accuracy_b"]
    fit = run("calibrate", "model/trigram.npy", "model/tokens.npy")
    assert 1 < fit["temperature"] < 2 and fit["loss"] < fit["loss_before"]
