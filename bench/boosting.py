"""The objective of gradient boosting: against hand-written NumPy, and its share of a round.

    python bench/boosting.py                    # needs lightgbm and xgboost for the rounds
    python bench/boosting.py --threads 1 --budget 2

Part a) times one call of the objective, labels in and derivatives out: `fastloss.boosting` beside
what people write by hand in NumPy, on 300,000 × 8 scores and on 1,000,000 binary ones, in the
layout and type of each library. Both make what the library gets, second derivatives with its
factor. Part b) boosts some rounds with the built-in objective, with ours and with the hand-written
one, and says what share of a round the objective is.
"""

from __future__ import annotations

import argparse
import time

import _common

ROWS, CLASSES, BINARY = 300_000, 8, 1_000_000
FEATURES, ROUNDS, LEAVES = 20, 5, 31


class Labels:
    """A dataset that holds labels alone."""

    def __init__(self, labels):
        self.labels = labels

    def get_label(self):
        return self.labels

    def get_weight(self):
        return None


def by_hand(np, classes, factor):
    """The objective as examples on the web have it, without losses of digits that they take."""

    def softmax(scores, dataset):
        labels = dataset.get_label().astype(int)
        e = np.exp(scores - scores.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        hess = factor * p * (1 - p)
        p[np.arange(len(labels)), labels] -= 1
        return p, hess

    def sigmoid(scores, dataset):
        p = 1 / (1 + np.exp(-scores))
        return p - dataset.get_label(), p * (1 - p)

    def focal(scores, dataset, alpha=0.25, gamma=2.0):
        t = dataset.get_label()
        p = 1 / (1 + np.exp(-scores))
        q = np.where(t == 1, 1 - p, p)  # probability of the wrong answer
        sign = np.where(t == 1, -1.0, 1.0)
        a = np.where(t == 1, alpha, 1 - alpha)
        log = -np.log1p(-q)
        r = 1 - q
        slope = q**gamma + gamma * q ** (gamma - 1) * r * log
        bend = (
            gamma * q ** (gamma - 1) * r * (2 - log)
            + gamma * (gamma - 1) * q ** (gamma - 2) * r * r * log
        )
        return sign * a * slope * q, a * (slope * q * r + bend * q * q)

    return {"cross-entropy": softmax, "BCE": sigmoid, "focal": focal}


def objectives(budget):
    import numpy as np

    import fastloss
    from fastloss import boosting

    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal((ROWS, CLASSES)), rng.integers(0, CLASSES, ROWS)
    binary = rng.standard_normal(BINARY) * 2
    right = Labels((rng.random(BINARY) < 0.3).astype(np.float32))
    labels = Labels(labels.astype(np.float32))
    cases = {
        ("lightgbm", "cross-entropy"): (np.asfortranarray(scores), labels),
        ("lightgbm", "BCE"): (binary, right),
        ("lightgbm", "focal"): (binary, right),
        ("xgboost", "cross-entropy"): (scores.astype(np.float32), labels),
        ("xgboost", "BCE"): (binary.astype(np.float32), right),
        ("xgboost", "focal"): (binary.astype(np.float32), right),
    }
    criteria = {
        "cross-entropy": fastloss.CrossEntropyLoss(),
        "BCE": fastloss.BCEWithLogitsLoss(),
        "focal": fastloss.SigmoidFocalLoss(),
    }
    rows = []
    for (library, name), (x, dataset) in cases.items():
        factor = CLASSES / (CLASSES - 1) if library == "lightgbm" else 2.0
        try:
            ours = getattr(boosting, library)(criteria[name])
        except ImportError as error:
            print(f"left out: {error}")
            continue
        theirs = by_hand(np, CLASSES, factor)[name]
        for got, want in zip(ours(x, dataset), theirs(x, dataset), strict=True):
            difference = np.abs(got.reshape(x.shape) - want).max()
            assert name == "focal" or difference < 1e-4, (name, difference)
        found = _common.measure(
            {
                "fastloss": lambda x=x, d=dataset, f=ours: f(x, d),
                "by hand": lambda x=x, d=dataset, f=theirs: f(x, d),
            },
            rounds=50, budget=budget,
        )  # fmt: skip
        rows.append((library, name, x, found["fastloss"].median, found["by hand"].median))
    print("objective                                     fastloss     by hand    times")
    for library, name, x, ours, theirs in rows:
        what = f"{library}: {name}, {_common.size_name(x.shape)} {x.dtype}"
        print(
            f"{what:45} {_common.seconds(ours):>9}   {_common.seconds(theirs):>9}"
            f"   {_common.times(theirs / ours):>6}"
        )


class Timed:
    """An objective that adds up its time."""

    def __init__(self, objective):
        self.objective, self.spent = objective, 0.0

    def __call__(self, *arguments):
        started = time.perf_counter()
        result = self.objective(*arguments)
        self.spent += time.perf_counter() - started
        return result


def rounds(threads):
    import numpy as np

    import fastloss
    from fastloss import boosting

    rng = np.random.default_rng(0)
    criterion = fastloss.CrossEntropyLoss()
    x = rng.standard_normal((ROWS, FEATURES)).astype(np.float32)
    y = np.digitize(x[:, 0] + x[:, 1] * x[:, 2], np.linspace(-1.5, 1.5, CLASSES - 1))

    def train_lightgbm(objective):
        import lightgbm

        own = isinstance(objective, str)
        data = lightgbm.Dataset(x, y, free_raw_data=False).construct()
        settings = {
            "objective": objective if own else "none", "num_class": CLASSES,
            "num_leaves": LEAVES, "num_threads": threads, "verbosity": -1, "metric": "None",
        }  # fmt: skip
        model = lightgbm.Booster(settings, data)

        def go():
            for _ in range(ROUNDS):
                model.update(fobj=None if own else objective)

        return go

    def train_xgboost(objective):
        import xgboost

        own = isinstance(objective, str)
        settings = {
            "num_class": CLASSES, "max_leaves": LEAVES, "nthread": threads, "tree_method": "hist",
            **({"objective": objective} if own else {"base_score": 0}),
        }  # fmt: skip
        data = xgboost.QuantileDMatrix(x, y, nthread=threads)
        model = xgboost.Booster(settings, [data])

        def go():
            for i in range(ROUNDS):
                model.update(data, i, fobj=None if own else objective)

        return go

    print("\nround                                 seconds     objective's share")
    for library, train, built_in, factor in (
        ("lightgbm", train_lightgbm, "multiclass", CLASSES / (CLASSES - 1)),
        ("xgboost", train_xgboost, "multi:softprob", 2.0),
    ):
        try:
            ours = Timed(getattr(boosting, library)(criterion))
        except ImportError as error:
            print(f"left out: {error}")
            continue
        theirs = Timed(by_hand(np, CLASSES, factor)["cross-entropy"])
        for name, objective in (("built in", built_in), ("fastloss", ours), ("by hand", theirs)):
            go = train(objective)
            started = time.perf_counter()
            go()
            each = (time.perf_counter() - started) / ROUNDS
            share = (
                f"{objective.spent / ROUNDS / each:6.1%}" if isinstance(objective, Timed) else ""
            )
            print(f"{f'{library}: {name}':35} {_common.seconds(each):>9}   {share:>10}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=4.0, help="seconds for each objective")
    parser.add_argument("--no-rounds", action="store_true", help="time the objectives alone")
    arguments = parser.parse_args()
    _common.pin(arguments.threads)
    objectives(arguments.budget)
    if not arguments.no_rounds:
        rounds(arguments.threads)


if __name__ == "__main__":
    main()
