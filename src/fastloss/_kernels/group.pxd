# The end of a sample: what its sums come to, for up to LANES samples at once.
#
# One class of a sample is left out of its sum of exponentials: the target where there is one, else
# the largest. With `rest` the sum of the others, and `own` the exponential of that class in the
# same scale, log(1 + rest / own) is the distance from that class's logit to the logarithm of the
# sum.
# Every term is positive and the class is not in `rest`, so nothing cancels: a loss of 1e-37 has all
# its digits. The gradient at a target is -rest / (rest + own) for the same reason.
#
# For compute type float all of this is double, and so exact enough. For double it is pairs of
# doubles: of the 4 ulp that a result may be off, the exponentials in `rest` need two.

from libc.stdint cimport int64_t

from .sums cimport LANES, Sum, add
from .vecmath cimport (
    NAN, exp_pair_scaled, exp_scaled, fma, log1p, log_positive, real, spare_bits,
)

cdef struct Group:
    # One array an entry, of LANES samples. What is known before the sums:
    Py_ssize_t own_class[LANES]  # the class left out; -1: the sample does not count
    double factor[LANES]     # of the loss
    # IN, both scaled alike:
    double rest[LANES]       # sum of the exponentials of the other classes
    double rest_low[LANES]   # what `rest` lost by rounding
    double exponent[LANES]   # K of the sample
    double own_x[LANES]      # logit of the class left out, shifted as the others were
    double shift[LANES]      # what was subtracted from all; NaN: the sample has no finite maximum
    # IN, where an ending asks for it: for each class with its distance from the largest logit,
    double distance[LANES]   # the sum of target times distance, or of exponential times distance
    double others[LANES]     # sum of the targets without the class left out, and what it lost
    double others_low[LANES]
    double own_a[LANES]      # target of the class left out
    # Of scores (see scores.pxi):
    double gap[LANES]        # how far the target is below the largest; NaN: there is none
    double margin[LANES]     # how far it is above the largest of the others
    Py_ssize_t rank[LANES]   # how many of the others are as large
    double spread[LANES]     # sum of exponential times distance**2
    double squares[LANES]    # sum of exponential**2 without the class left out
    int64_t *ranked          # scratch for the likeliest classes
    int64_t *list            # and for those that may be
    # Made by `settle`:
    double own[LANES]        # exponential of the class left out, scaled
    double total[LANES]      # sum over all classes, scaled
    double total_low[LANES]
    double log_rest[LANES]   # log(1 + rest / own)
    double mass[LANES]       # sum of all targets
    double mass_low[LANES]
    # OUT, by the ending: what is written of a class is made of e * by, and of `at` where the class
    # is the one left out (see Written in class_endings.pxi).
    double loss[LANES]       # before its factor
    double by[LANES]         # numerator over total, after `divide`
    double by_low[LANES]     # what `by` lost by rounding
    double at[LANES]
    double bend[LANES]       # what a second derivative has beside mass * p * (1 - p), over p**2


cdef inline bint in_two_parts(real unused, const Group *group, Py_ssize_t i) noexcept nogil:
    """Whether `by`, as two numbers of the compute type, keeps its digits.

    A sum is below 2**86, so that a `by` of 2**-26 over a sum is above 2**-112, and what it lost is
    still a normal float, or half of one. The power of two that the sum is scaled by, which the rows
    beside have a say in, has none here.
    """
    cdef double by_what = group.by[i] * group.total[i]
    if real is float:
        return (by_what >= 1.4901161193847656e-08) | (by_what <= -1.4901161193847656e-08)
    else:
        return True


cdef inline void settle(real unused, Group *group, Py_ssize_t n) noexcept nogil:
    """own, total and log_rest of n <= LANES samples."""
    cdef Py_ssize_t i
    cdef double magic, low, k, q, q_low
    cdef double ratio[LANES]
    cdef double spare = <double>spare_bits(unused)
    cdef Sum own, total
    if real is float:
        for i in range(n):
            magic = 6755399441055744.0 + (spare + 1023 - group.exponent[i])
            low = (group.exponent[i] - spare - 1023) * 0.6931471805599453
            group.own[i] = exp_scaled(group.own_x[i], magic, low)
            ratio[i] = group.rest[i] / group.own[i]
            group.total[i] = group.rest[i] + group.own[i]
        for i in range(n):
            group.log_rest[i] = log1p(ratio[i])
    else:
        for i in range(n):
            magic = 6755399441055744.0 + (spare + 1023 - group.exponent[i])
            low = (group.exponent[i] - spare - 1023) * 0.6931471805599453
            own = exp_pair_scaled(group.own_x[i], magic, low)
            group.own[i] = own.high
            total = add(Sum(group.rest[i], group.rest_low[i]), own)
            group.total[i] = total.high + total.low
            group.total_low[i] = total.low - (group.total[i] - total.high)
            q = group.rest[i] / own.high
            q_low = fma(-q, own.high, group.rest[i]) + (group.rest_low[i] - q * own.low)
            q_low = q_low / own.high
            ratio[i] = q
            group.log_rest[i] = log1p(q) + (q_low / (1 + q) if q_low - q_low == 0 else 0.0)
    for i in range(n):
        if not ratio[i] <= 1e290:
            # The exponential left out underflows: log(rest / own) without forming it.
            k = group.exponent[i] - spare
            group.log_rest[i] = log_positive(group.rest[i]) + k * 1.9082149292705877e-10
            group.log_rest[i] = group.log_rest[i] + (k * 0.6931471803691238 - group.own_x[i])
            if group.total[i] - group.total[i] != 0:
                group.log_rest[i] = NAN


cdef inline void divide(
    real unused, Group *group, Py_ssize_t n, const double *by_what, const double *by_what_low
) noexcept nogil:
    """by = by_what / total to twice the digits; by_what_low may be NULL."""
    cdef Py_ssize_t i
    cdef double q, lost
    if real is float:
        for i in range(n):
            group.by[i] = by_what[i] / group.total[i]
            group.by_low[i] = group.by[i] - <double><float>group.by[i]
    else:
        for i in range(n):
            q = by_what[i] / group.total[i]
            lost = fma(-q, group.total[i], by_what[i]) - q * group.total_low[i]
            if by_what_low != NULL:
                lost = lost + by_what_low[i]
            group.by[i] = q
            group.by_low[i] = lost / group.total[i]
