"""The examples that score a column of a frame, with pandas and with Polars."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import fastloss
from fastloss.data import load_digits_logits

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="needs the source tree")


def load(name: str):
    """Import an example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def want():
    """The loss of every image, the images and labels with them."""
    logits, labels = load_digits_logits()
    return logits, labels, fastloss.cross_entropy(logits, labels, reduction="none")


def test_pandas(want, capsys):
    pd = pytest.importorskip("pandas")
    example = load("pandas_column")
    logits, labels, losses = want
    classes = list("abcdefghij")
    frame = pd.DataFrame(logits, columns=classes).assign(label=labels.astype(float))
    frame.index = frame.index[::-1] * 10
    frame.loc[30, "label"] = np.nan
    got = example.losses(frame, classes, "label")
    assert got.index.equals(frame.index) and got[30] == 0
    np.testing.assert_array_equal(got.drop(30), losses[frame.index != 30])

    doubtful = example.main()
    np.testing.assert_array_equal(doubtful.index, np.argsort(-losses)[:5])
    assert "predicted" in capsys.readouterr().out


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_polars(want, engine, capsys):
    pl = pytest.importorskip("polars")
    example = load("polars_column")
    logits, labels, losses = want
    frame = pl.LazyFrame(
        {"logits": pl.Series(logits, dtype=pl.Array(pl.Float32, 10)), "label": labels}
    )
    scored = example.with_losses(frame.filter(pl.col("label") != 3)).collect(engine=engine)
    assert scored.schema["loss"] == pl.Float32
    np.testing.assert_array_equal(scored["loss"].to_numpy(), losses[labels != 3])

    by_label = example.main()
    hardest = max(range(10), key=lambda label: losses[labels == label].mean())
    assert by_label["label"][0] == hardest
    assert "mean loss" in capsys.readouterr().out
