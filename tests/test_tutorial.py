"""The values that a PyTorch tutorial prints, to its four decimals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

TUTORIAL = json.loads(Path(__file__).with_name("tutorial_values.json").read_text())


def cases(name):
    return [
        pytest.param(TUTORIAL[name], case, id=f"case{i}")
        for i, case in enumerate(TUTORIAL[name]["cases"])
    ]


def check(loss, case):
    for reduction in ("none", "sum", "mean"):
        # Printed with four decimals: half a unit of the last one, and the printed value's own.
        np.testing.assert_allclose(loss(reduction), case[reduction], rtol=0, atol=0.51e-4)


def array(values, dtype):
    return None if values is None else np.array(values, dtype)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.mark.parametrize(("data", "case"), cases("cross_entropy"))
def test_cross_entropy(fl, dtype, data, case):
    def loss(reduction):
        criterion = fl.CrossEntropyLoss(weight=array(case["weight"], dtype), reduction=reduction)
        return criterion(array(data["logits"], dtype), np.array(data["target"]))

    check(loss, case)


@pytest.mark.parametrize(("data", "case"), cases("nll_loss"))
def test_nll_loss(fl, dtype, data, case):
    def loss(reduction):
        criterion = fl.NLLLoss(weight=array(case["weight"], dtype), reduction=reduction)
        return criterion(array(data["log_probs"], dtype), np.array(data["target"]))

    check(loss, case)


@pytest.mark.parametrize(("data", "case"), cases("binary_cross_entropy"))
def test_binary_cross_entropy(fl, dtype, data, case):
    def loss(reduction):
        criterion = fl.BCELoss(weight=array(case["weight"], dtype), reduction=reduction)
        probs = fl.sigmoid(array(data["logits_before_sigmoid"], dtype))
        return criterion(probs, array(data["target"], dtype))

    check(loss, case)


@pytest.mark.parametrize(("data", "case"), cases("binary_cross_entropy_with_logits"))
def test_binary_cross_entropy_with_logits(fl, dtype, data, case):
    def loss(reduction):
        criterion = fl.BCEWithLogitsLoss(
            weight=array(case["weight"], dtype),
            pos_weight=array(case["pos_weight"], dtype),
            reduction=reduction,
        )
        return criterion(array(data["logits"], dtype), array(data["target"], dtype))

    check(loss, case)
