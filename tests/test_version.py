"""One version, written once and found everywhere, without a search at import."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fastloss
from fastloss import _config

ROOT = Path(__file__).resolve().parents[1]

needs_tree = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="needs the source tree"
)


def test_version_is_a_release_number():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|(a|b|rc)\d+)?", fastloss.__version__)


def test_configuration_shows_the_same_version():
    assert _config.config()["fastloss"] == fastloss.__version__


def test_import_does_not_search_the_metadata():
    """`importlib.metadata` takes longer to import than all of fastloss does."""
    code = (
        "import sys, numpy; before = set(sys.modules); import fastloss; fastloss.__version__;"
        "print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    loaded = result.stdout.split()
    assert "fastloss" in loaded
    assert not [name for name in loaded if name.startswith("importlib.metadata")]


@needs_tree
def test_version_has_one_source():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in settings["project"]["dynamic"]
    (rule,) = settings["tool"]["dynamic-metadata"]
    assert rule["field"] == "version"
    assert f'__version__ = "{fastloss.__version__}"' in (ROOT / rule["input"]).read_text()


@needs_tree
def test_citation_and_changelog_name_the_version():
    """A version under development has its changes under Unreleased, and the last one is cited."""
    changes = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (\S+)(?: - (\d{4}-\d\d-\d\d))?$", changes, re.MULTILINE)
    dated = [version for version, date in headings if date]
    if ".dev" in fastloss.__version__:
        assert headings[0] == ("Unreleased", "")
        assert fastloss.__version__.partition(".dev")[0] not in dated
    else:
        assert dated[0] == fastloss.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^version: {re.escape(dated[0])}$", citation, re.MULTILINE)
