"""What an installed package has to be: typed, light to import, documented, its extras optional.

Layout: a) what is installed, b) docstrings, c) imports, d) extras that are missing, e) the README
and the settings, where the source tree is at hand.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import struct
import subprocess
import sys
import tomllib
from importlib import metadata, resources
from pathlib import Path

import pytest

import fastloss

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = sorted(name for name in fastloss.__all__ if inspect.isfunction(getattr(fastloss, name)))


BLOCK = """
import os, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == os.environ["MISSING"]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def run(
    code: str, *arguments: str, missing: str = "nothing", check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run code in a Python of its own, where the library `missing` can't be imported."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code, *arguments],
        env=os.environ | {"MISSING": missing},
        capture_output=True,
        text=True,
        timeout=120,
        check=check,
    )


# ---- a) what is installed --------------------------------------------------------------------


def test_types_are_declared():
    assert resources.files(fastloss).joinpath("py.typed").is_file()


def test_all_is_what_is_public():
    for name in fastloss.__all__:
        getattr(fastloss, name)  # some are imported only now
    public = {
        name
        for name, value in vars(fastloss).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert sorted(fastloss.__all__) == fastloss.__all__
    assert public == set(fastloss.__all__)


def test_version_and_requirements():
    distribution = metadata.metadata("fastloss")
    assert fastloss.__version__ == distribution["Version"]
    required = [r for r in metadata.requires("fastloss") or [] if "extra ==" not in r]
    assert len(required) == 1
    assert required[0].startswith("numpy")


def test_command_is_declared():
    (command,) = metadata.entry_points(group="console_scripts", name="fastloss")
    assert command.value == "fastloss.__main__:main"


# ---- b) docstrings ---------------------------------------------------------------------------


def sections(docstring: str) -> dict[str, str]:
    """The sections of a numpydoc docstring by title."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", inspect.cleandoc(docstring), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_are_numpydoc(name):
    """All parameters are described; a gradient's function refers to its loss for the same ones."""
    function = getattr(fastloss, name)
    found = sections(function.__doc__)
    loss = re.sub("_value_and_grad$|_backward$|_grad_and_hess$", "", name)
    parameters = list(inspect.signature(function).parameters)
    described = re.findall(r"^(\w[\w, ]*) :", found.get("Parameters", ""), flags=re.MULTILINE)
    assert [part for group in described for part in group.split(", ")] == parameters
    assert ">>>" in found["Examples"]
    if name not in ("set_num_threads", "show_config"):
        assert found["Returns"].strip()
    for other in re.findall(
        r"^[a-z]\w*[\w, ]* : see `(\w+)`$", function.__doc__, flags=re.MULTILINE
    ):
        assert hasattr(fastloss, other)
    if loss != name:
        assert f" : see `{loss}`" in found["Parameters"]
    elif parameters:
        assert found["Raises"].strip()


# ---- c) imports ------------------------------------------------------------------------------


def test_import_needs_nothing_but_numpy():
    """Every module that the import loads is NumPy's, fastloss's or the standard library's."""
    code = (
        "import sys, json; before = set(sys.modules); import fastloss;"
        "print(json.dumps(sorted({m.partition('.')[0] for m in set(sys.modules) - before})))"
    )
    loaded = set(json.loads(run(code).stdout)) - set(sys.stdlib_module_names)
    # Cython's modules share two of their making; an editable installation has an import hook.
    loaded = {m for m in loaded if not m.startswith(("_cython", "cython_runtime", "_editable"))}
    assert loaded == {"fastloss", "numpy"}


def test_import_loads_what_a_training_loop_calls():
    """The rest, and what is slow to import, comes when it is asked for."""
    code = (
        "import sys, json, numpy; before = set(sys.modules); import fastloss;"
        "loaded = set(sys.modules) - before;"
        "fastloss.cross_entropy([[1.0, 2.0]], [0]); called = set(sys.modules) - before - loaded;"
        "fastloss.softmax; print(json.dumps([*map(sorted, (loaded, called))]))"
    )
    loaded, called = json.loads(run(code).stdout)
    assert "fastloss.losses.categorical" in loaded
    later = {"fastloss.evaluation", "fastloss.special", "fastloss.losses.linear", "dataclasses"}
    later |= {"numpy.typing", "pathlib", "importlib.metadata", "concurrent.futures"}
    assert not later & set(loaded)
    assert not [name for name in called if name.startswith("fastloss")]
    assert "numpy.ma" not in called


@pytest.mark.parametrize("module", sorted(fastloss._MODULES))
def test_names_that_are_imported_later(module):
    names = fastloss._MODULES[module].split()
    assert names == sorted(names)
    found = importlib.import_module(f"fastloss.{module}")
    assert {name for name in found.__all__ if name in fastloss.__all__} == set(names)
    for name in names:
        assert getattr(fastloss, name) is getattr(found, name)


def test_modules_are_there_without_an_import():
    code = "import fastloss; fastloss.special.softmax, fastloss.evaluation.score_samples"
    run(f"{code}; import fastloss.losses.linear; fastloss.losses.linear.linear_cross_entropy")


def test_modules_that_have_to_be_imported_say_so():
    code = "import fastloss; fastloss.dask.cross_entropy"
    last = run(code, check=False).stderr.strip().splitlines()[-1]
    assert last.startswith("AttributeError: ") and last.endswith("import fastloss.dask")
    run("import fastloss; from fastloss import data; import fastloss.data")
    with pytest.raises(AttributeError, match="no attribute 'cross_entropi'"):
        _ = fastloss.cross_entropi


def test_module_prints_the_configuration():
    result = subprocess.run(
        [sys.executable, "-m", "fastloss"], capture_output=True, text=True, timeout=120, check=True
    )
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert lines["fastloss"] == fastloss.__version__
    assert lines["instruction_set"] in lines["instruction_sets_built"].split(", ")


# ---- d) extras that are missing --------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [
        ("fastloss.cli", "typer", "cli"),
        ("fastloss.cli", "rich", "cli"),
        ("fastloss.dask", "dask", "dask"),
        ("fastloss.torch", "torch", "torch"),
    ],
)
def test_missing_library_names_the_extra(module, missing, extra):
    result = run(f"import {module}", missing=missing, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert f"pip install 'fastloss[{extra}]'" in last


def test_module_without_the_command_lines_libraries():
    """``python -m fastloss`` works without typer; with arguments it says what to install."""
    code = "import runpy; runpy.run_module('fastloss', run_name='__main__')"
    assert run(code, missing="typer").stdout.startswith("fastloss ")
    result = run(code, "score", missing="typer", check=False)
    assert result.returncode == 2
    assert "pip install 'fastloss[cli]'" in result.stderr
    assert "Traceback" not in result.stderr


HEADER = (
    b'{"logits": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [0, 4]},'
    b' "targets": {"dtype": "I64", "shape": [1], "data_offsets": [4, 12]}}'
)
BFLOAT16 = struct.pack("<Q", len(HEADER)) + HEADER + bytes(12)


@pytest.mark.parametrize(
    ("arguments", "content", "missing", "extra"),
    [
        (["x.parquet"], b"PAR1", "pyarrow", "arrow"),
        (["x.safetensors"], BFLOAT16, "ml_dtypes", "safetensors"),
        (["--plot", "x.png"], None, "matplotlib", "plot"),
        (["--output", "x.parquet"], None, "pyarrow", "arrow"),
    ],
)
def test_command_names_the_extra(arguments, content, missing, extra, tmp_path):
    pytest.importorskip("typer")
    pytest.importorskip("rich")
    *options, name = arguments
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code = "from fastloss.cli import main; main()"
    result = run(code, "score", *options, str(tmp_path / name), missing=missing, check=False)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert f"pip install 'fastloss[{extra}]'" in line


# ---- e) the source tree ----------------------------------------------------------------------

needs_tree = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="needs the source tree"
)


@needs_tree
def test_readme_opens_with_two_commands():
    """The first two `sh` blocks are one command each: the main job, then the tests."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    job, tests = blocks[:2]
    assert job.count("\n") == tests.count("\n") == 1
    assert job.rstrip().endswith("fastloss score")
    assert tests.rstrip().endswith("pytest -n auto")


@needs_tree
def test_readme_links_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@needs_tree
def test_every_extra_is_in_the_readme():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for extra in settings["project"]["optional-dependencies"]:
        assert f"`{extra}`" in (ROOT / "README.md").read_text()


@needs_tree
def test_every_public_name_is_in_the_documentation():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = re.findall(r"^\.\. auto\w+:: (\w+)$", pages, flags=re.MULTILINE)
    assert sorted(documented) == fastloss.__all__
    # `ast` reads what cannot be imported without the libraries of the extras.
    for module in ("boosting", "dask/__init__", "data/__init__", "torch"):
        source = Path(fastloss.__file__).parent / f"{module}.py"
        assigned = [
            node
            for node in ast.parse(source.read_text("utf-8")).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        name = module.partition("/")[0]
        pattern = rf"^\.\. auto\w+:: fastloss\.{name}\.(\w+)$"
        documented = re.findall(pattern, pages, flags=re.MULTILINE)
        assert sorted(documented) == ast.literal_eval(assigned[0].value), module
