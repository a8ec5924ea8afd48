"""Fit the polynomials of ``src/fastloss/_kernels/vecmath.pxd``.

Prints, for each function and precision, coefficients rounded one after the other to the working
precision (lowest power first, the rest refitted each time) and the largest relative error of the
rounded polynomial.  Least squares at Chebyshev points in 60 digits does the fitting.

Run it with ``python bench/fit_polynomials.py`` (needs mpmath and NumPy).
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np

mpmath.mp.dps = 60
Real = mpmath.mpf


def least_squares(
    function: Callable[[Real], Real],
    weight: Callable[[Real], Real],
    powers: list[int],
    low: float,
    high: float,
    points: int = 160,
) -> list[Real]:
    """Coefficients of ``powers`` that minimise the weighted squares at Chebyshev points.

    At these points least squares comes close to the smallest largest error.
    """
    middle, radius = (Real(low) + Real(high)) / 2, (Real(high) - Real(low)) / 2
    nodes = [
        middle - radius * mpmath.cos(mpmath.pi * (2 * i + 1) / (2 * points)) for i in range(points)
    ]
    matrix = mpmath.matrix(points, len(powers))
    right = mpmath.matrix(points, 1)
    for i, x in enumerate(nodes):
        for j, power in enumerate(powers):
            matrix[i, j] = weight(x) * x**power
        right[i] = weight(x) * function(x)
    answer = mpmath.lu_solve(matrix.T * matrix, matrix.T * right)
    return [answer[i] for i in range(len(powers))]


def fit_rounded(
    function: Callable[[Real], Real],
    weight: Callable[[Real], Real],
    powers: list[int],
    low: float,
    high: float,
    dtype: type,
) -> tuple[list[float], float]:
    """Fit, round the lowest power to ``dtype``, refit the others, and so on."""
    fixed: list[Real] = []
    done: list[int] = []
    left = list(powers)
    while left:

        def remainder(x: Real) -> Real:
            return function(x) - sum(c * x**p for c, p in zip(fixed, done, strict=True))

        coefficients = least_squares(remainder, weight, left, low, high)
        fixed.append(Real(float(dtype(float(coefficients[0])))))
        done.append(left.pop(0))
    grid = [Real(low) + (Real(high) - Real(low)) * i / 4001 for i in range(4002)]
    worst = max(
        abs(weight(x) * (sum(c * x**p for c, p in zip(fixed, done, strict=True)) - function(x)))
        for x in grid
        if x != 0
    )
    return [float(c) for c in fixed], float(worst)


def show(name: str, coefficients: list[float], worst: float) -> None:
    """Print one fit, coefficients from the lowest power up."""
    print(f"{name}: largest weighted error 2^{float(mpmath.log(worst, 2)):.1f}")
    for value in coefficients:
        print(f"    {value!r}")


def main() -> None:
    """Print every polynomial of vecmath.pxd."""
    half = float(mpmath.log(2) / 2) * 1.001
    # exp(r) = 1 + r + r**2 * q(r); the error counts relative to exp(r).
    for dtype, degree in ((np.float32, 4), (np.float64, 9)):

        def exp_tail(r: Real) -> Real:
            return (mpmath.exp(r) - 1 - r) / r**2 if abs(r) > 1e-12 else Real(1) / 2 + r / 6

        show(
            f"exp {dtype.__name__}",
            *fit_rounded(
                exp_tail,
                lambda r: r**2 / mpmath.exp(r) if r else Real(10) ** -30,
                list(range(degree + 1)),
                -half,
                half,
                dtype,
            ),
        )

    # The same with a table of powers of two: of 8 entries, and of 16.
    for entries, degree in ((8, 2), (16, 1)):
        show(
            f"exp float32, {entries} entries",
            *fit_rounded(
                exp_tail,
                lambda r: r**2 / mpmath.exp(r) if r else Real(10) ** -30,
                list(range(degree + 1)),
                -half / entries,
                half / entries,
                np.float32,
            ),
        )

    # log(1 + f) = f - f**2 / 2 + f**3 * q(f), relative to log(1 + f).
    def log_tail(f: Real) -> Real:
        if abs(f) < 1e-12:
            return Real(1) / 3 - f / 4
        return (mpmath.log1p(f) - f + f**2 / 2) / f**3

    show(
        "log float32",
        *fit_rounded(
            log_tail,
            lambda f: abs(f**3 / mpmath.log1p(f)) if f else Real(10) ** -30,
            list(range(9)),
            float(mpmath.sqrt(0.5)) - 1.0001,
            float(mpmath.sqrt(2)) - 0.9999,
            np.float32,
        ),
    )

    # log((1 + s) / (1 - s)) = 2 s + s**3 * q(s**2) with s = f / (2 + f).
    edge = float((mpmath.sqrt(2) - 1) / (mpmath.sqrt(2) + 1)) * 1.001

    def atanh_tail(z: Real) -> Real:
        s = mpmath.sqrt(z)
        return (2 * mpmath.atanh(s) - 2 * s) / s**3 if z > 1e-20 else Real(2) / 3 + 2 * z / 5

    show(
        "log float64",
        *fit_rounded(
            atanh_tail,
            lambda z: (
                mpmath.sqrt(z) ** 3 / (2 * mpmath.atanh(mpmath.sqrt(z)))
                if z > 0
                else Real(10) ** -30
            ),
            list(range(7)),
            1e-12,
            edge**2,
            np.float64,
        ),
    )


if __name__ == "__main__":
    main()
