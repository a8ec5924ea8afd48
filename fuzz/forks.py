"""Forks at random moments of calls with threads, while signals arrive.

    python fuzz/forks.py --count 1000

Two Python threads call with OpenMP's threads, a timer's signals interrupt them some hundred times a
second, and the main thread forks. A child calls alone and with threads of its own, must be right,
and must come to its end; so must a child of a child. Prints how many forks and signals there were.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time

import numpy as np

import fastloss

PATIENCE = 60
"""Seconds that a child may take on a machine that has much else to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    x = np.random.default_rng(0).standard_normal((2048, 64)).astype(np.float32)
    t = np.arange(2048) % 64

    def call() -> float:
        loss, grad = fastloss.cross_entropy_value_and_grad(x, t)
        return float(loss) + float(np.abs(grad).sum(dtype=float))

    fastloss.set_num_threads(2)
    want = call()
    signals = 0

    def count(*_: object) -> None:
        nonlocal signals
        signals += 1

    signal.signal(signal.SIGALRM, count)
    signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
    stop, wrong, calls = threading.Event(), [], [0, 0]

    def work(place: int) -> None:
        while not stop.is_set():
            calls[place] += 1
            if call() != want:
                wrong.append("a call of the parent")

    threads = [threading.Thread(target=work, args=(place,)) for place in (0, 1)]
    for thread in threads:
        thread.start()
    hung = failed = 0
    for number in range(arguments.count):
        time.sleep(rng.uniform(0, 0.003))
        child = os.fork()
        if child == 0:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
                fine = call() == want
                if number % 2:
                    fastloss.set_num_threads(2)
                    fine &= call() == want
                if number % 10 == 0:
                    grandchild = os.fork()
                    if grandchild == 0:
                        os._exit(call() != want)
                    fine &= os.waitpid(grandchild, 0)[1] == 0
                os._exit(not fine)
            finally:
                os._exit(2)
        if number % 3 == 0 and call() != want:
            wrong.append("a call of the parent after a fork")
        end = time.monotonic() + PATIENCE
        while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
            time.sleep(0.001)
        if not ended[0]:
            hung += 1
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        elif ended[1]:
            failed += 1
    stop.set()
    for thread in threads:
        thread.join()
    signal.setitimer(signal.ITIMER_REAL, 0)
    finds = hung + failed + len(wrong)
    print(
        f"{arguments.count} forks amid {sum(calls):,} calls and {signals:,} signals: {hung} hung,"
        f" {failed} failed, {len(wrong)} wrong calls of the parent"
    )
    return int(finds > 0)


if __name__ == "__main__":
    sys.exit(main())
