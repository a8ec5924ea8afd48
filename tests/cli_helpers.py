"""What the tests of the command line share: data, files, ways to run the command, one check.

A test module that names this one in ``pytest_plugins`` has its fixtures.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.testing import CliRunner

import fastloss
import oracle
from fastloss._scoring import blocks, limits, readers, scorer, totals
from fastloss.cli import app

SAMPLES, CLASSES = 1000, 7
RNG = np.random.default_rng(3)
TARGET = RNG.integers(0, CLASSES, SAMPLES)
LOGITS = (RNG.standard_normal((SAMPLES, CLASSES)) * 2).astype(np.float32)
LOGITS[np.arange(SAMPLES), TARGET] += 2
TARGET[::11] = -100
WEIGHT = RNG.uniform(0.2, 2.0, CLASSES)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 100 rows or so: every file here is read in many of them."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100 * CLASSES * 4)
    monkeypatch.setattr(blocks, "GATHERED_SAMPLES", 150)
    monkeypatch.setattr(limits, "CHUNK_BYTES", 77 * CLASSES * 4)


@pytest.fixture
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


# ---- in this process -------------------------------------------------------------------------


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def run(*arguments):
    return invoke("score", *arguments)


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
    reference = oracle.cross_entropy(LOGITS, TARGET)
    check(report, reference, accuracy())
    assert report["perplexity"] == pytest.approx(math.exp(reference.loss("mean")), rel=1e-5)


def job_of(*names: str, **options) -> scorer.Job:
    """The job of two files, as the command would plan it."""
    request = readers.Request("array", "", None, ())
    sources = [readers.open_source(Path(name), request) for name in names]
    return scorer.plan(*sources, scorer.Options(**options))


def summary_of(job: scorer.Job) -> totals.Summary:
    """The totals of a job, as the command adds them up."""
    summary = totals.Summary(job)
    for _, part in job.blocks(summary.of):
        summary.merge(part)
    return summary


# ---- in a process of its own -----------------------------------------------------------------


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


def check_texts(figure) -> None:
    """No text of a figure lies on another, or outside."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # Of ticks there are some outside the range that is shown; they are not drawn.
    hidden = set()
    for panel in figure.axes:
        for axis in (panel.xaxis, panel.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.majorTicks, *axis.minorTicks):
                if not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    texts = [
        (text.get_text(), text.get_window_extent(canvas.get_renderer()))
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden
    ]
    assert len(texts) > 3
    for at, (text, box) in enumerate(texts):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
        for other, other_box in texts[at + 1 :]:
            assert not box.overlaps(other_box), (text, other)
