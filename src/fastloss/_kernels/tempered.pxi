# Logits that are changed before the softmax is taken of them: temperature and softcap.
#
#   z = softcap * tanh(x / softcap) / temperature
#
# Samples of a huge weight come this way as well, where floats would do for others, and scores that
# are asked for in double.
#
# Some samples at a time are turned into rows of z, in double whatever the logits' type, and the
# other traversals do the rest there: the gradient takes the place of z, and is multiplied by dz/dx
# on its way to memory.

from .operands cimport FLOAT64
from .samples cimport Job, offset_of
from .storage cimport emit, load, storage, value_at
from .sums cimport LANES, Sum, add
from .tempers cimport TEMPERS, temper_of
from .vecmath cimport INFINITY, exp_negative, exp_tail, fma, real
from .workspace cimport lines

cdef enum:
    HELD = 4096          # elements that are changed at a time, or one sample


cdef inline bint tempered(const Job *job) noexcept nogil:
    """Whether the softmax is taken of something else than floats over a temperature, or logits."""
    return (
        job.temperature != job.temper.temperature or job.softcap != 0 or job.precise
    )


cdef inline bint floats_do(const Job *job) noexcept nogil:
    """Whether logits that are floats need not be divided by the temperature (see tempers.pxd).

    Class probabilities that a float has lost would count where weights over T are above 1.
    """
    return (
        2.0**-TEMPERS <= job.temperature <= 2.0**TEMPERS and job.softcap == 0
        and not job.precise and job.second == NULL
        and (job.kind != SOFT or job.heaviest <= job.temperature)
    )


cdef inline bint divides(const Job *job) noexcept nogil:
    """Whether a product with a reciprocal would not do: for doubles, or where it has no digits."""
    return (
        job.type == FLOAT64
        or not 1e-300 < job.temperature < 1e300
        or (job.softcap != 0 and not 1e-300 < job.softcap < 1e300)
    )


cdef inline Py_ssize_t held_samples(const Job *job) noexcept nogil:
    return min(max(HELD // max(job.classes, 1), <Py_ssize_t>1), <Py_ssize_t>LANES)


cdef inline Job job_of_held(const Job *job, Py_ssize_t n) noexcept nogil:
    """What is left to do on n samples whose z are rows."""
    cdef Job rest = job[0]
    rest.samples = n
    rest.inner = 1
    rest.temperature = 1
    rest.temper = temper_of(1, <double>0)
    rest.softcap = 0
    rest.narrow = False
    rest.curve = 1
    rest.floor = -INFINITY
    rest.heavy = False
    rest.precise = False
    rest.streaming = False
    return rest


# Scratch of a thread: rows of some samples, where they are needed, and that of the traversal.
cdef struct TemperedSpace:
    double *z            # logits, then z, then gradients
    double *slope        # dz/dx, with softcap
    double *bend         # the second derivative of z, where those of the loss are asked for
    double *second       # second derivatives of the loss
    double *probabilities
    char *rest


cdef inline Py_ssize_t tempered_space(
    TemperedSpace *space, char *scratch, const Job *job, bint written_too
) noexcept nogil:
    """Lay out a thread's scratch; return how many bytes it takes."""
    cdef Job rest = job_of_held(job, held_samples(job))
    cdef Py_ssize_t at = 0, held = lines(held_samples(job) * job.classes * sizeof(double))
    cdef RowSpace rows
    cdef TileSpace tiles
    cdef SecondSpace second
    space.z = <double *>(scratch + at)
    at += held
    space.slope = <double *>(scratch + at)
    at += held if job.softcap != 0 else 0
    space.bend = <double *>(scratch + at)
    at += held if job.softcap != 0 and job.second != NULL else 0
    space.second = <double *>(scratch + at)
    at += held if job.second != NULL else 0
    space.probabilities = <double *>(scratch + at)
    at += held if job.p32 != NULL or job.p64 != NULL else 0
    space.rest = scratch + at
    if makes_second(job):
        return at + second_space(&second, space.rest, &rest, sizeof(double))
    if job.classes < FIRST_ROW:
        return at + tiles_space(&tiles, space.rest, &rest, sizeof(double))
    return at + rows_space(&rows, space.rest, &rest, written_too, sizeof(double))


cdef inline void gather(
    double *to, const storage *x, const Job *job, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """Rows of n samples."""
    cdef Py_ssize_t i, c, at, classes = job.classes
    if job.inner == 1:
        load(to, x + first * classes, n * classes, <double>0)
        return
    for i in range(n):
        at = offset_of(job, first + i, 0)
        for c in range(classes):
            to[i * classes + c] = value_at(x, at + c * job.inner, <double>0)


cdef inline void scatter(
    storage *out, const double *values, const Job *job, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """Write rows to where their samples lie."""
    cdef Py_ssize_t i, c, at, classes = job.classes
    if job.inner == 1:
        emit(out + first * classes, values, n * classes, job.streaming)
        return
    for i in range(n):
        at = offset_of(job, first + i, 0)
        for c in range(classes):
            emit(out + at + c * job.inner, values + i * classes + c, 1, False)


cdef inline void change_by(
    double *z, double *slope, double *bend, Py_ssize_t n, double temperature, double cap,
    bint exact, bint slopes
) noexcept nogil:
    """`change`, with the two choices known where it is compiled."""
    cdef Py_ssize_t i
    cdef double s, e, r, q, gap, lost
    cdef double by_cap = 1 / cap, by_temperature = 1 / temperature, scale = cap / temperature
    for i in range(n):
        s = z[i] / cap if exact else z[i] * by_cap
        s = -s if s < 0 else s
        r = -2 * s
        e = exp_negative(r)
        gap = 1 - e
        gap = -(r + r * r * exp_tail(r, r * r)) if r > -0.34 else gap
        if exact:
            # What the quotient s lost, twice.
            lost = 2 * fma(-s, cap, z[i] if z[i] >= 0 else -z[i]) / cap
            lost = lost * e if lost - lost == 0 else 0.0
            gap = gap + lost
            e = e - lost
            q = gap / (1 + e)
            r = q * scale
            if slopes:
                slope[i] = 4 * e / ((1 + e) * (1 + e)) / temperature
        else:
            r = 1 / (1 + e)
            q = gap * r
            if slopes:
                slope[i] = 4 * e * r * r * by_temperature
            r = q * scale
        r = -r if z[i] < 0 else r
        if slopes and bend != NULL:
            bend[i] = -2 * slope[i] * q / cap
            bend[i] = -bend[i] if z[i] < 0 else bend[i]
        z[i] = z[i] if z[i] - z[i] != 0 else r


cdef void change(
    double *z, double *slope, double *bend, Py_ssize_t n, double temperature, double cap,
    bint exact
) noexcept nogil:
    """z[:n], logits, to what the softmax is taken of; with softcap slope = dz/dx.

    slope and bend, the derivative of that, may be NULL. What is not `exact` is some ulp of a double
    off, which does for logits that are floats, and takes a quarter of the divisions.

    tanh(s) for s >= 0 is (1 - e) / (1 + e), e = exp(-2 s); near 0 1 - e is formed as -expm1(-2 s).
    An infinite logit stays what it is: -inf masks its class.
    """
    cdef Py_ssize_t i
    cdef double by = 1 / temperature
    if cap != 0:
        if slope == NULL and exact:
            change_by(z, slope, bend, n, temperature, cap, True, False)
        elif slope == NULL:
            change_by(z, slope, bend, n, temperature, cap, False, False)
        elif exact:
            change_by(z, slope, bend, n, temperature, cap, True, True)
        else:
            change_by(z, slope, bend, n, temperature, cap, False, True)
    elif temperature != 1 and exact:
        for i in range(n):
            z[i] = z[i] / temperature
    elif temperature != 1:
        for i in range(n):
            z[i] = z[i] * by


cdef void times_slope(double *g, const double *slope, Py_ssize_t n) noexcept nogil:
    """Gradients with respect to z to those with respect to x; where nothing comes in, 0 stays 0."""
    cdef Py_ssize_t i
    for i in range(n):
        g[i] = g[i] * slope[i] if g[i] != 0 else 0.0


cdef void second_by_slope(
    double *h, const double *g, const double *slope, const double *bend, Py_ssize_t n,
    double temperature, double cap
) noexcept nogil:
    """Second derivatives with respect to z, and gradients g, to those with respect to x.

    Without softcap their scale holds one of the two factors of dz/dx already.  What is 0 stays so:
    an ignored sample's slope may be NaN.
    """
    cdef Py_ssize_t i
    if cap == 0:
        for i in range(n):
            h[i] = h[i] / temperature
    else:
        for i in range(n):
            h[i] = h[i] * slope[i] * slope[i] if h[i] != 0 else 0.0
            h[i] = h[i] + (g[i] * bend[i] if g[i] != 0 else 0.0)


cdef void curve_held(
    double *h, const double *g, Py_ssize_t n, double curve, double floor
) noexcept nogil:
    """Second derivatives times `curve`, and none below the floor but where there is no gradient."""
    cdef Py_ssize_t i
    for i in range(n):
        h[i] = h[i] * curve
    if floor > -INFINITY:
        for i in range(n):
            h[i] = floor if (h[i] < floor) & ((h[i] != 0) | (g[i] != 0)) else h[i]


cdef void tempered_item(
    const storage *x, storage *out, real *losses, const Job *job, Py_ssize_t start,
    Py_ssize_t stop, Sum *result, char *scratch
) noexcept nogil:
    """Samples start to stop."""
    cdef Py_ssize_t first = start, n, i, count, most = held_samples(job)
    cdef TemperedSpace space
    cdef double *z
    cdef double *p
    cdef double *written
    cdef double part_losses[LANES]
    cdef Sum part
    cdef Job rest
    cdef bint sloped = out != NULL or job.second != NULL
    tempered_space(&space, scratch, job, out != NULL)
    z = space.z
    p = space.probabilities
    written = z if out != NULL else <double *>NULL
    result[0] = Sum(0, 0)
    while first < stop:
        n = min(stop - first, most)
        count = n * job.classes
        rest = job_of_held(job, n)
        rest.place = job.place + first
        if job.target != NULL:
            rest.target = job.target + first
        if job.factor != NULL:
            rest.factor = job.factor + first
        if job.p32 != NULL:
            gather(p, job.p32, job, first, n)
        elif job.p64 != NULL:
            gather(p, job.p64, job, first, n)
        if job.p32 != NULL or job.p64 != NULL:
            rest.p32 = NULL
            rest.p64 = p
        if job.second != NULL:
            rest.second = space.second
        gather(z, x, job, first, n)
        rest.x, rest.type = z, FLOAT64
        change(
            z, space.slope if sloped else <double *>NULL,
            space.bend if job.second != NULL else <double *>NULL, count, job.temperature,
            job.softcap, divides(job),
        )
        if makes_second(&rest):
            second_item(z, written, &rest, 0, n, &part, space.rest, <double>0)
        elif job.classes < FIRST_ROW:
            tiles_item(z, written, &part_losses[0], &rest, 0, n, &part, space.rest)
        else:
            rows_item(z, written, &part_losses[0], &rest, 0, n, &part, space.rest)
        result[0] = add(result[0], part)
        if losses != NULL and not makes_second(&rest):
            for i in range(n):
                losses[first + i] = <real>part_losses[i]
        if job.second != NULL:
            second_by_slope(
                space.second, z, space.slope, space.bend, count, job.temperature, job.softcap
            )
            if makes_second(job):
                curve_held(space.second, z, count, job.curve, job.floor)
            scatter(<storage *>job.second, space.second, job, first, n)
        if out != NULL:
            if job.softcap != 0:
                times_slope(z, space.slope, count)
            scatter(out, z, job, first, n)
        first += n
