"""Count instructions per element of a few calls under an emulator that counts.

``python count.py COMMAND...``: the command that starts the emulated Python and writes
"instructions N" to standard error at its end, as run.sh makes it.  Every call is made once in one
process and more often in another; the difference leaves out what starting Python takes.  The exit
status is 1 where a count is above its limit: a loop that is not vectorised takes several times as
many.
"""

from __future__ import annotations

import re
import subprocess
import sys

REPEATS = 20
#: Shape, whether the gradient is asked for, and the most instructions per element: a tenth above
#: what gcc 12 made. Of the 7 for a long row's exponentials and sum, the polynomial takes 4: NEON
#: multiplies and adds into one of the operands, so that each constant is copied first.
CALLS = [
    ((8, 32_000), False, 7.8),
    ((8, 32_000), True, 10.5),
    ((64, 1_000), False, 9.2),
    ((64, 1_000), True, 12.1),
]
WORKER = """
import sys
import numpy as np
import fastloss
repeats, samples, classes, gradient = map(int, sys.argv[1:])
x = np.random.default_rng(0).normal(size=(samples, classes)).astype(np.float32)
target = np.arange(samples)
out = np.empty_like(x)
for _ in range(repeats):
    if gradient:
        fastloss.cross_entropy_value_and_grad(x, target, out=out)
    else:
        fastloss.cross_entropy(x, target)
"""


def instructions(command: list[str], repeats: int, shape: tuple[int, int], gradient: bool) -> int:
    """Instructions of a process that makes a call so many times."""
    arguments = [str(int(value)) for value in (repeats, *shape, gradient)]
    done = subprocess.run(
        [*command, "-c", WORKER, *arguments], capture_output=True, text=True, check=False
    )
    found = re.search(r"^instructions (\d+)$", done.stderr, re.MULTILINE)
    if done.returncode or not found:
        raise SystemExit(f"the counted process failed:\n{done.stderr[-2000:]}")
    return int(found.group(1))


def main() -> None:
    """Print a line per call."""
    command = sys.argv[1:]
    if not command:
        raise SystemExit("usage: count.py COMMAND...")
    above = 0
    for shape, gradient, most in CALLS:
        once, often = (instructions(command, 1 + n, shape, gradient) for n in (0, REPEATS))
        each = (often - once) / REPEATS / (shape[0] * shape[1])
        what = "value and gradient" if gradient else "forward"
        above += each > most
        print(
            f"{shape[0]:>4} x {shape[1]:<7,} {what:<19} {each:6.2f} instructions (at most {most})"
        )
    if above:
        raise SystemExit(f"{above} above their limits")


if __name__ == "__main__":
    main()
