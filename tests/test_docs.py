"""The documentation holds together: its code runs, its links lead somewhere, its figures are drawn.

pytest runs the examples of each page as a doctest (`--doctest-glob`); here is what makes sure that
no block escapes it. Layout: a) pages, b) links, c) measurements,
d) figures.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

import fastloss

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
FIGURES = DOCS / "figures"

pytestmark = pytest.mark.skipif(not (DOCS / "conf.py").is_file(), reason="needs the source tree")

TESTED = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
PAGES = [*TESTED, ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", ROOT / "examples" / "README.md"]
SCRIPTS = ("explained", "howto", "benchmarks", "gradient_boosting")


#: Languages of blocks; `cython` is shown, and tests/test_cython.py builds the like.
LANGUAGES = ("python", "console", "sh", "cython")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and content."""
    return re.findall(r"(?ms)^```([^\n]*)\n(.*?)^```$", page.read_text("utf-8"))


# ---- a) pages --------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_python_block_is_an_example_that_runs(page):
    for language, content in blocks(page):
        assert language.startswith("{") or language in LANGUAGES, language
        if language == "python":
            assert page in TESTED, "pytest does not run this page"
            assert content.startswith(">>> "), content
            # Without it, doctest would take the fence for output.
            assert content.endswith("\n\n"), content


def test_every_page_is_in_the_contents():
    index = (DOCS / "index.md").read_text("utf-8")
    listed = re.findall(r"(?s)```\{toctree\}\n(?::[^\n]*\n)*\n(.*?)```", index)
    pages = {line.strip() for block in listed for line in block.splitlines() if line.strip()}
    found = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")}
    assert pages - {"Home <self>"} == found - {"index"}


# ---- b) links --------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    text = page.read_text("utf-8")
    for included in re.findall(r"^```\{include\} (\S+)$", text, re.MULTILINE):
        text += (page.parent / included).read_text("utf-8")
    headings = re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


# ---- c) measurements -------------------------------------------------------------------------


def test_the_worst_errors_are_those_that_were_measured(monkeypatch):
    """The table of docs/numerics.md is what fuzz/accuracy.py makes of its own results."""
    results = ROOT / "bench" / "results" / "worst-errors.json"
    if not (ROOT / "fuzz").is_dir() or not results.is_file():
        pytest.skip("needs the whole source tree")
    monkeypatch.syspath_prepend(str(ROOT / "fuzz"))
    accuracy = importlib.import_module("accuracy")
    page = (DOCS / "numerics.md").read_text("utf-8")
    report = json.loads(results.read_text("utf-8"))
    assert accuracy.on_page(page, report) == page
    assert accuracy.broken(report) == []
    # Every function has a row there, or a promise of another kind above.
    endings = ("_value_and_grad", "_backward", "_grad_and_hess")
    for name in fastloss.__all__:
        if name[0].islower() and not name.endswith((*endings, "config", "num_threads")):
            assert f"`{name}`" in page, name


# ---- d) figures ------------------------------------------------------------------------------


def texts(svg: str) -> list[str]:
    return re.findall(r">([^<>]+)</(?:text|tspan)>", svg)


@pytest.fixture
def load_script(monkeypatch):
    """Import a script of docs/figures as it imports its neighbours."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(FIGURES))

    def load(script: str):
        spec = importlib.util.spec_from_file_location(f"figures_{script}", FIGURES / f"{script}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.modules.pop("style", None)


def test_figures_are_those_of_the_scripts_and_pages(load_script):
    pytest.importorskip("sklearn")
    drawn = {figure for script in SCRIPTS for figure in load_script(script).FIGURES}
    files = {path.stem for path in FIGURES.glob("*.svg")}
    shown = {
        Path(target).stem
        for page in DOCS.rglob("*.md")
        for target in re.findall(r"!\[[^\]]+\]\(([^)]*figures/[^)]+)\)", page.read_text("utf-8"))
    }
    assert drawn == files == shown


@pytest.mark.parametrize(
    "script",
    # Boosting takes minutes.
    [*SCRIPTS[:-1], pytest.param(SCRIPTS[-1], marks=pytest.mark.slow)],
)
def test_figures_say_what_the_scripts_draw(load_script, script, tmp_path):
    """Numbers and labels of the committed files are those of a new drawing."""
    if script in ("howto", "gradient_boosting"):
        pytest.importorskip("sklearn")
    if script == "gradient_boosting":
        pytest.importorskip("lightgbm")
    if script == "benchmarks" and not (ROOT / "bench" / "results").is_dir():
        pytest.skip("needs the measurements")
    module = load_script(script)
    module.main(module.FIGURES, tmp_path)
    for figure in module.FIGURES:
        new = texts((tmp_path / f"{figure}.svg").read_text("utf-8"))
        assert new, figure
        assert texts((FIGURES / f"{figure}.svg").read_text("utf-8")) == new, figure


@pytest.mark.parametrize("figure", sorted(FIGURES.glob("*.svg")), ids=lambda path: path.stem)
def test_figures_follow_the_theme_and_stay_small(figure):
    svg = figure.read_text("utf-8")
    assert svg.startswith("<svg ")
    assert "<script" not in svg and "<image" not in svg
    for before, colour in re.findall(r"(.{20})(#[0-9a-f]{6})", svg):
        # White is for letters on a bar.
        assert "--figure-" in before or colour == "#ffffff", before + colour
    assert len(svg) < 60_000
