"""The public names and their signatures, which code out there relies on."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import fastloss
from fastloss import _kernels, losses

SIGNATURES = {
    "cross_entropy": "(logits, target, *, weight=None, sample_weight=None, ignore_index=-100, "
    "reduction='mean', label_smoothing=0.0, temperature=1.0, softcap=None, z_loss=0.0, axis=None)",
    "nll_loss": "(log_probs, target, *, weight=None, sample_weight=None, ignore_index=-100, "
    "reduction='mean', axis=None)",
    "softmax_focal_loss": "(logits, target, *, alpha=None, gamma=2.0, sample_weight=None, "
    "ignore_index=-100, reduction='mean', axis=None)",
    "binary_cross_entropy": "(probs, target, *, weight=None, sample_weight=None, reduction='mean')",
    "binary_cross_entropy_with_logits": "(logits, target, *, weight=None, pos_weight=None, "
    "sample_weight=None, ignore_index=None, reduction='mean')",
    "kl_div": "(log_probs, target, *, sample_weight=None, reduction='mean', log_target=False)",
    "sigmoid_focal_loss": "(logits, target, *, alpha=0.25, gamma=2.0, sample_weight=None, "
    "ignore_index=None, reduction='mean')",
    "distillation_loss": "(logits, teacher_logits, *, sample_weight=None, temperature=1.0, "
    "direction='forward', reduction='mean', axis=None)",
    "linear_cross_entropy": "(input, linear_weight, target, *, linear_bias=None, weight=None, "
    "sample_weight=None, ignore_index=-100, reduction='mean', label_smoothing=0.0, "
    "temperature=1.0, softcap=None, z_loss=0.0)",
}
OTHERS = {
    "logsumexp": "(a, axis=None, b=None, keepdims=False, return_sign=False, *, out=None)",
    "softmax": "(x, axis=None, *, out=None)",
    "log_softmax": "(x, axis=None, *, out=None)",
    "sigmoid": "(x, *, out=None)",
    "log_sigmoid": "(x, *, out=None)",
    "softplus": "(x, *, out=None)",
    "compare_logits": "(logits, other, target=None, *, ignore_index=-100, temperature=1.0, "
    "axis=None)",
    "score_samples": "(logits, target, *, ignore_index=-100, temperature=1.0, softcap=None, "
    "top_k=0, axis=None)",
    "brier_score": "(logits, target, *, sample_weight=None, ignore_index=-100, reduction='mean', "
    "temperature=1.0, softcap=None, axis=None)",
    "calibration_error": "(logits, target, *, n_bins=15, strategy='uniform', sample_weight=None, "
    "ignore_index=-100, temperature=1.0, softcap=None, axis=None)",
    "fit_temperature": "(logits, target, *, sample_weight=None, ignore_index=-100, axis=None)",
    "StreamingMetrics": "(*, top_k=5, n_bins=15, ignore_index=-100, temperature=1.0, softcap=None, "
    "axis=None)",
    "set_num_threads": "(n)",
    "get_num_threads": "()",
    "show_config": "()",
}
CLASSES = {
    "CrossEntropyLoss": "(weight=None, *, ignore_index=-100, reduction='mean', "
    "label_smoothing=0.0, temperature=1.0, softcap=None, z_loss=0.0, axis=None)",
    "NLLLoss": "(weight=None, *, ignore_index=-100, reduction='mean', axis=None)",
    "SoftmaxFocalLoss": "(*, alpha=None, gamma=2.0, ignore_index=-100, reduction='mean', "
    "axis=None)",
    "DistillationLoss": "(*, temperature=1.0, direction='forward', reduction='mean', axis=None)",
    "BCELoss": "(weight=None, *, reduction='mean')",
    "BCEWithLogitsLoss": "(weight=None, *, pos_weight=None, ignore_index=None, reduction='mean')",
    "KLDivLoss": "(*, reduction='mean', log_target=False)",
    "SigmoidFocalLoss": "(*, alpha=0.25, gamma=2.0, ignore_index=None, reduction='mean')",
}
CALLS = {
    "__call__": "(self, logits, target, sample_weight=None)",
    "value_and_grad": "(self, logits, target, sample_weight=None, *, out=None)",
    "backward": "(self, grad_output, logits, target, sample_weight=None, *, out=None)",
    "grad_and_hess": "(self, logits, target, sample_weight=None, *, out=None)",
}
#: Losses that have second derivatives.
SECOND_ORDER = ("cross_entropy", "binary_cross_entropy_with_logits", "sigmoid_focal_loss")
#: Stubs of the functions, whose types they alone hold.
STUBS = sorted(Path(losses.__file__).parent.glob("*.pyi"))


def signature(function) -> str:
    """The signature without annotations."""
    bare = inspect.signature(function)
    parameters = [p.replace(annotation=p.empty) for p in bare.parameters.values()]
    return str(bare.replace(parameters=parameters, return_annotation=bare.empty))


def with_out(text: str) -> str:
    return text[:-1] + ", out=None)"


@pytest.mark.parametrize("name", SIGNATURES)
def test_losses(name):
    """One signature for three functions; the two that make a gradient take `out`."""
    assert signature(getattr(fastloss, name)) == SIGNATURES[name]
    extended = SIGNATURES[name] if name == "linear_cross_entropy" else with_out(SIGNATURES[name])
    assert signature(getattr(fastloss, f"{name}_value_and_grad")) == extended
    backward = signature(getattr(fastloss, f"{name}_backward"))
    assert backward == extended.replace("(", "(grad_output, ", 1)


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_derivatives(name):
    """The loss's options but the reduction: nothing is reduced."""
    wanted = with_out(SIGNATURES[name].replace("reduction='mean', ", ""))
    wanted = wanted.replace(", reduction='mean'", "")
    assert signature(getattr(fastloss, f"{name}_grad_and_hess")) == wanted


@pytest.mark.parametrize("name", CLASSES)
def test_criteria(name):
    made = getattr(fastloss, name)
    assert signature(made) == CLASSES[name]
    # What a criterion refuses keeps its common name.
    calls = [call for call in CALLS if call != "grad_and_hess" or made._loss.second_order]
    second = made._loss.target
    assert {call: signature(getattr(made, call)) for call in calls} == {
        call: CALLS[call].replace(" target,", f" {second},") for call in calls
    }


@pytest.mark.parametrize("stub", STUBS, ids=lambda path: path.stem)
def test_stubs_have_the_functions_signatures(stub):
    """Each overload has the names and defaults of the function, whose reduction alone differs."""
    module = importlib.import_module(f"fastloss.losses.{stub.stem}")
    seen = set()
    for node in ast.parse(stub.read_text()).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        seen.add(node.name)
        defaults = [
            None if default is None else ast.literal_eval(default)
            for default in node.args.kw_defaults
        ]
        overload = dict(zip((a.arg for a in node.args.kwonlyargs), defaults, strict=True))
        parameters = inspect.signature(getattr(module, node.name)).parameters.values()
        wanted = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        if overload["reduction"] is None:
            assert 'Literal["none"]' in ast.unparse(node).replace("'", '"')
            wanted["reduction"] = None
        assert overload == wanted
        assert [a.arg for a in node.args.args] == [
            p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
    assert seen == {name for name in module.__all__ if name[0].islower()}


def stub_functions(stub: Path) -> dict[str, ast.FunctionDef]:
    """The functions of a stub by name; of a protocol, what it says that a call takes."""
    found = {}
    for node in ast.walk(ast.parse(stub.read_text())):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
            found[node.name] = node
        if isinstance(node, ast.ClassDef) and node.name == "_Evaluate":
            (found["evaluate"],) = node.body
    return found


@pytest.mark.parametrize("name", [*_kernels.KERNELS, "runtime"])
def test_stubs_of_kernels_have_the_kernels_signatures(name):
    """What the compiled functions are called with in Python, as type checkers see it."""
    module = getattr(_kernels, name)
    stub = Path(_kernels.__file__).with_name(f"{name}.pyi")
    functions = stub_functions(stub)
    public = {n: value for n, value in vars(module).items() if not n.startswith("_") and n != "np"}
    assert {n for n, value in public.items() if callable(value)} == set(functions)
    declared = {
        node.target.id for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.AnnAssign) and not node.target.id.startswith("_")
    } - {"evaluate"}  # fmt: skip
    assert {n for n, value in public.items() if not callable(value)} == declared
    for function, node in functions.items():
        parameters = inspect.signature(public[function]).parameters
        names = [a.arg for a in node.args.args if a.arg != "self"]
        assert names == list(parameters)
        defaults = [p.default for p in parameters.values() if p.default is not p.empty]
        assert len(defaults) == len(node.args.defaults)
        for wanted, default in zip(defaults, node.args.defaults, strict=True):
            # "..." stands for what a stub has no word for.
            stated = ast.literal_eval(default)
            assert stated is ... or (stated == wanted and type(stated) is type(wanted))


def test_stub_of_dask_has_the_functions_signatures():
    """The functions that are made from the specifications, as editors see them."""
    dask = pytest.importorskip("fastloss.dask")
    functions = stub_functions(Path(dask.__file__).with_name("_losses.pyi"))
    assert set(functions) == {name for name in dask.__all__ if name.startswith(tuple(SIGNATURES))}
    for name, node in functions.items():
        stated = [*node.args.args, *node.args.kwonlyargs]
        defaults = [ast.literal_eval(default) for default in node.args.kw_defaults]
        made = getattr(dask, name)
        parameters = inspect.signature(made).parameters
        assert [a.arg for a in stated] == list(parameters)
        assert defaults == [p.default for p in parameters.values() if p.default is not p.empty]
        assert signature(made) == SIGNATURES[name.removesuffix("_value_and_grad")]
        assert node.returns is not None
        wanted = "tuple[DaskArray, DaskArray]" if name.endswith("_grad") else "DaskArray"
        assert ast.unparse(node.returns) == wanted


@pytest.mark.parametrize("name", OTHERS)
def test_functions(name):
    assert signature(getattr(fastloss, name)) == OTHERS[name]


def test_every_module_of_functions_has_a_stub():
    assert [stub.stem for stub in STUBS] == [
        "binary", "categorical", "distillation", "divergence", "linear",
    ]  # fmt: skip


MODULES = ["", ".boosting", ".dask", ".data", ".evaluation", ".special"]
MODULES += [f".losses.{stub.stem}" for stub in STUBS] + [".losses.criteria"]


@pytest.mark.parametrize("name", MODULES)
def test_dir_shows_public_names_alone(name):
    if name == ".dask":
        pytest.importorskip("dask")
    module = importlib.import_module(f"fastloss{name}")
    assert set(dir(module)) - {"__version__"} == set(module.__all__)


def test_all_lists_every_public_name():
    names = {*SIGNATURES, *OTHERS, *CLASSES, "StreamingLoss"}
    names |= {f"{name}_{kind}" for name in SIGNATURES for kind in ("value_and_grad", "backward")}
    names |= {f"{name}_grad_and_hess" for name in SECOND_ORDER}
    assert names <= set(fastloss.__all__)
    assert all(hasattr(fastloss, name) for name in fastloss.__all__)
