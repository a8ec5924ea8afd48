# Exponentials of logits over a temperature, without dividing the logits: e**(x / T).
#
# x / T would be rounded, and its rounding error is as large as the exponent is. But
#
#   x / T = k ln 2 + (x - k T ln 2) / T
#
# with k the integer nearest to x / (T ln 2): x - k T ln 2 is formed like the x - k ln 2 of
# vecmath.pxd, with T ln 2 in parts, and only what is left is divided by T. T = 1 gives the numbers
# that are used there.

from libc.stdint cimport uint64_t

from .vecmath cimport (
    EXP_TABLE, FMA, Pair, Temper, bits32, bits64, double_of, exp_reduced, float_of, mul_add,
    product_low, real,
)

cdef enum:
    # Temperatures from 2**-TEMPERS to 2**TEMPERS are computed with in float.
    TEMPERS = 40


cdef inline double shortened(double x, int bits) noexcept nogil:
    """x without all but the first bits of its mantissa."""
    return double_of(bits64(x) & ~((<uint64_t>1 << (53 - bits)) - 1))


cdef inline Temper temper_of(double temperature, real unused) noexcept nogil:
    cdef Temper t
    cdef Pair ln2
    t.temperature = temperature
    t.inverse = 1 / temperature
    t.log2e = 1.4426950408889634 / temperature
    ln2.high = temperature * 0.6931471805599453
    ln2.low = product_low(temperature, 0.6931471805599453, ln2.high)
    ln2.low += temperature * 2.3190468138462996e-17
    if real is float:
        # Its last digit is 1: x log2(e) / T is never halfway between two integers then, and what
        # it is rounded to does not depend on `magic`, which the samples beside have a say in.
        t.log2e = float_of(bits32(<float>t.log2e) | 1)
        if FMA:
            t.ln2[0] = <float>ln2.high
            t.ln2[1] = <float>((ln2.high - t.ln2[0]) + ln2.low)
            t.ln2[2] = 0
            if EXP_TABLE:
                t.table[0] = <float>(EXP_TABLE * t.log2e)
                t.table[1] = <float>(-t.ln2[0] / EXP_TABLE)
                t.table[2] = <float>(-t.ln2[1] / EXP_TABLE)
                t.table[3] = <float>t.inverse
        else:
            t.ln2[0] = shortened(ln2.high, 12)
            t.ln2[1] = shortened(ln2.high - t.ln2[0], 12)
            t.ln2[2] = <float>((ln2.high - t.ln2[0]) - t.ln2[1] + ln2.low)
    else:
        t.ln2[0] = shortened(ln2.high, 40)
        t.ln2[1] = (ln2.high - t.ln2[0]) + ln2.low
        t.ln2[2] = 0
    return t


cdef inline real exp_tempered(
    real x, real magic, real low, real log2e, real first, real second, real third, real inverse
) noexcept nogil:
    """e**(x / T) * 2**(SPARE - K), as `exp_scaled` is it of x: at most 2 ulp off.

    low: that of `exp_low`, times T; first, second, third: the parts of T ln 2.
    """
    cdef real k, p, r
    x = low if x < low else x
    k = mul_add(x, log2e, magic)
    p = k - magic
    r = mul_add(p, -first, x)
    r = mul_add(p, -second, r)
    if real is float:
        if not FMA:
            r = mul_add(p, -third, r)
    return exp_reduced(r * inverse, k)


cdef inline real exp_over(real x, real magic, real low, const Temper *temper) noexcept nogil:
    """`exp_tempered` with a temper's numbers."""
    return exp_tempered(
        x, magic, low, <real>temper.log2e, <real>temper.ln2[0], <real>temper.ln2[1],
        <real>temper.ln2[2], <real>temper.inverse,
    )
