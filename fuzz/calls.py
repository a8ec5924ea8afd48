"""Random whole calls of every public function, held to exact numbers and to each other.

    python fuzz/calls.py --seconds 60 --seed 1 [--level avx2] [--family classes] [--only 1234]

Each problem is made of (seed, its number) alone, so that `--only` repeats it. It is some ten to
fifty calls, which are held

a) to an oracle in long double, to the bound that the documentation promises, or to the error that
   it promises; an error must leave `out` as it was;
b) to each other: the same bits in one pass and in two, for any layout, byte order, alignment, `out`
   and number of threads, and for samples in another order, or a part of them;
c) on each instruction set that this processor has, from the same numbers.

Prints each find, and at the end how many calls of which function were made; the exit status is 1
after a find. Layout: over_classes.py, over_elements.py, over_pairs.py, over_scores.py and others.py
hold the families of functions, common.py what they share.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
import warnings
from typing import Any

import numpy as np

import common
import others
import over_classes
import over_elements
import over_pairs
import over_scores
from conftest import LEVELS, load_level

FAMILIES = {
    "classes": over_classes,
    "elements": over_elements,
    "pairs": over_pairs,
    "scores": over_scores,
    "others": others,
}
#: What the problems are of, in turn.
MOSTLY = [
    over_classes, over_elements, over_pairs, over_classes,
    over_scores, over_elements, over_classes, others,
]  # fmt: skip


def family_of(number: int, only: str | None) -> Any:
    if only is not None:
        return FAMILIES[only]
    return MOSTLY[number % len(MOSTLY)]


def one_problem(levels: list[common.Package], seed: int, number: int, family: Any) -> None:
    problem = family.make(np.random.default_rng([seed, number]))
    spot: dict[str, Any] = {}
    for fl in levels:
        label = f"--seed {seed} --only {number}"
        try:
            family.run(fl, problem, np.random.default_rng([seed, number, 2]), spot, label)
        except common.Found as error:
            raise common.Found(f"{fl.level}: {error}") from None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--level", choices=LEVELS, help="this instruction set alone")
    parser.add_argument("--family", choices=FAMILIES, help="these functions alone")
    parser.add_argument("--first", type=int, default=0, help="number of the first problem")
    parser.add_argument("--only", type=int, help="the problem of this number alone")
    parser.add_argument("--worst", action="store_true", help="print the worst errors, in ulp")
    parser.add_argument("--finds", type=int, default=20, help="stop after so many")
    arguments = parser.parse_args()
    levels = []
    for level in [arguments.level] if arguments.level else LEVELS:
        try:
            levels.append(common.Package(load_level(level), level))
        except ImportError:
            if arguments.level:
                raise
    warnings.simplefilter("error")  # no call warns
    first = arguments.first if arguments.only is None else arguments.only
    finds, number = 0, first
    end = time.monotonic() + arguments.seconds
    stopped: list[int] = []
    for number_of_signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number_of_signal, lambda name, _: stopped.append(name))
    while time.monotonic() < end and not stopped:
        family = family_of(number, arguments.family)
        try:
            one_problem(levels, arguments.seed, number, family)
        except Exception as error:
            finds += 1
            problem = family.make(np.random.default_rng([arguments.seed, number]))
            print(
                f"--seed {arguments.seed} --only {number}: {family.described(problem)}\n  {error}",
                flush=True,
            )
            if not isinstance(error, common.Found):
                traceback.print_exc()
            if finds >= arguments.finds:
                break
        number += 1
        if arguments.only is not None:
            break
    names = ", ".join(fl.level for fl in levels)
    print(f"{number - first:,} problems on {names}, {common.calls.total():,} calls, {finds} finds:")
    print(", ".join(f"{name} {count:,}" for name, count in sorted(common.calls.items())))
    for key, (ulps, label) in sorted(common.worst.items()) if arguments.worst else ():
        print(f"  {' '.join(key):45} {ulps:8.3f} ulp  {label}")
    return int(finds > 0)


if __name__ == "__main__":
    sys.exit(main())
