# Cross-entropy with class probabilities, and with smoothed class indices.
#
# Both have a target a[c] = weight[c] * q[c] for every class, q = (1 - smoothing) * p +
# smoothing / C with p the probabilities given, or 1 at the index. With m the largest logit, `rest`
# the sum of the other exponentials relative to it and L = log(1 + rest):
#
#   loss     = sum(a[c] * (m - x[c])) + A * L,  A = sum(a)      two sums of positive terms
#   gradient = p[c] * (A - a[c]) - a[c] * (1 - p[c])            1 - p[c] = rest / (1 + rest) at m
#
# The gradient is the difference of two numbers that may be close: all of this is computed in
# double, whatever the logits' type, so that floats lose nothing. With doubles it is right to a few
# ulp of the larger of the two; for a one-hot target one of them is exactly 0.
#
# Two ways through memory, chosen by the number of classes alone:
#
#   a) rows   more than TILE classes: sample by sample. A row, also a strided one, is loaded into a
#             scratch block of doubles; one beyond that is loaded three times: maximum, sums,
#             gradient
#   b) tiles  LANES samples at a time, turned into a scratch block, class after class

from cython.parallel cimport prange
from libc.stdint cimport int64_t

from .blocks cimport (
    LANES, Sum, Tally, accumulate, add, block_exp, block_max, clear, count, folded, value_of,
)
from .samples cimport (
    OVERLAP, Check, Job, check, class_of, item_size, offset_of, out_overlaps, weighted,
)
from .storage cimport emit, load, narrow, overlap, storage, value_at
from .tiles cimport fix_range, shift_tile, turn, turn_back
from .vecmath cimport (
    INFINITY, NAN, exp_limit, exp_low, exp_magic, exp_scaled, exponent_of, log1p,
)

cdef enum:
    ROW = 2048           # classes of a row that are held at a time
    TILE = 64            # most classes of a tile

ctypedef fused probability:
    float
    double

cdef struct Smoothing:
    double keep          # 1 - smoothing
    double spread        # smoothing / C

# ---- a) rows ---------------------------------------------------------------------------------

# What is known of a row once it is summed.
cdef struct Row:
    double magic
    double low_x
    double shift
    double total         # sum of the exponentials, scaled
    double rest          # the same without the largest
    double own           # the largest alone
    Py_ssize_t largest   # its class
    double mass          # A
    double loss


cdef inline void load_row(
    double *to, const storage *x, Py_ssize_t n, Py_ssize_t stride, double shift
) noexcept nogil:
    """to[:n] = x[:n * stride:stride] - shift."""
    cdef Py_ssize_t c
    if stride == 1:
        load(to, x, n, shift)
    else:
        for c in range(n):
            to[c] = value_at(x, c * stride, shift) - shift


cdef inline void load_target(
    double *to, const probability *p, Py_ssize_t stride, Py_ssize_t t, const double *weight,
    Smoothing smoothing, Py_ssize_t c, Py_ssize_t n
) noexcept nogil:
    """to[:n] = a[c:c + n]."""
    cdef Py_ssize_t i
    if p != NULL:
        for i in range(n):
            to[i] = smoothing.keep * p[(c + i) * stride] + smoothing.spread
    else:
        for i in range(n):
            to[i] = smoothing.spread
        if c <= t < c + n:
            to[t - c] += smoothing.keep
    if weight != NULL:
        for i in range(n):
            to[i] = to[i] * weight[c + i]


cdef void add_loss(
    const double *x, const double *a, Py_ssize_t n, double top, Sum *distance, Sum *mass
) noexcept nogil:
    """Add sum(a * (top - x)) and sum(a) of n classes; a class with a = 0 adds 0."""
    cdef double high[16]
    cdef double low[16]
    cdef double high_mass[16]
    cdef double low_mass[16]
    cdef double part[64]
    cdef double part_mass[64]
    cdef Py_ssize_t i = 0, j, m
    for j in range(16):
        high[j] = low[j] = high_mass[j] = low_mass[j] = 0
    while i < n:
        m = min(n - i, <Py_ssize_t>64)
        for j in range(64):
            part[j] = part_mass[j] = 0
        for j in range(m):
            part[j] = a[i + j] * (top - x[i + j]) if a[i + j] != 0 else 0.0
            part_mass[j] = a[i + j]
        accumulate(&part[0], &high[0], &low[0])
        accumulate(&part_mass[0], &high_mass[0], &low_mass[0])
        i += 64
    for j in range(16):
        distance[0] = add(distance[0], Sum(high[j], low[j]))
        mass[0] = add(mass[0], Sum(high_mass[j], low_mass[j]))


cdef inline Row sum_row(
    const storage *x, const probability *p, const Job *job, Smoothing smoothing, Py_ssize_t t,
    double *xs, double *a
) noexcept nogil:
    """Everything but the gradient; a row of at most ROW classes is left in xs, its target in a."""
    cdef Row row
    cdef Py_ssize_t classes = job.classes, c, i, n, stride = job.inner
    cdef double top = -INFINITY, value, exponent
    cdef Sum rest = Sum(0, 0), distance = Sum(0, 0), mass = Sum(0, 0)
    cdef bint whole = classes <= ROW
    row.largest = 0
    row.shift = 0
    for c in range(0, classes, 2048):
        n = min(classes - c, <Py_ssize_t>ROW)
        load_row(xs, x + c * stride, n, stride, 0)
        value = block_max(xs, n)
        if value > top:
            top = value
            for i in range(n):
                if xs[i] == value:
                    row.largest = c + i
                    break
    if not -exp_limit(top) <= top <= exp_limit(top):
        row.shift = top if -INFINITY < top < INFINITY else NAN
        top = 0
        if whole:
            load_row(xs, x, classes, stride, row.shift)
    exponent = exponent_of(top)
    row.magic = exp_magic(exponent)
    row.low_x = exp_low(exponent)
    for c in range(0, classes, 2048):
        n = min(classes - c, <Py_ssize_t>ROW)
        if not whole:
            load_row(xs, x + c * stride, n, stride, row.shift)
        load_target(a, p, stride, t, job.weight, smoothing, c, n)
        add_loss(xs, a, n, top, &distance, &mass)
        rest = add(
            rest,
            block_exp(xs, xs, n, row.largest - c, row.magic, row.low_x, False),
        )
    row.own = exp_scaled(top, row.magic, row.low_x)
    row.rest = rest.high + rest.low if row.shift == row.shift else NAN
    row.total = row.rest + row.own
    row.mass = value_of(mass)
    row.loss = value_of(distance)
    if row.mass != 0:
        row.loss = row.loss + row.mass * log1p(row.rest / row.own)
    if row.total - row.total != 0:
        row.loss = NAN
    return row


cdef void gradient_block(
    double *xs, const double *a, Py_ssize_t n, Row row, double scale
) noexcept nogil:
    """Logits to gradients, in place."""
    cdef Py_ssize_t i
    cdef double by = 1 / row.total, p
    for i in range(n):
        p = exp_scaled(xs[i], row.magic, row.low_x) * by
        xs[i] = (p * (row.mass - a[i]) - a[i] * (1 - p)) * scale


cdef void rows_item(
    const storage *x, const probability *p, storage *grad, float *losses32, double *losses64,
    const Job *job, Smoothing smoothing, Py_ssize_t start, Py_ssize_t stop, Sum *result
) noexcept nogil:
    cdef double xs[2048]
    cdef double a[2048]
    cdef storage stage[2048]
    cdef Tally tally
    cdef Row row
    cdef Py_ssize_t sample, c, i, n, t, base, stride = job.inner
    cdef double factor, one
    clear(&tally)
    for sample in range(start, stop):
        base = offset_of(job, sample, 0)
        t = -1 if job.target == NULL else class_of(job, sample)
        if job.target != NULL and t < 0:
            one = 0
            if grad != NULL:
                for i in range(min(job.classes, <Py_ssize_t>ROW)):
                    xs[i] = 0
                for c in range(0, job.classes, 2048):
                    n = min(job.classes - c, <Py_ssize_t>ROW)
                    write(grad + base + c * stride, xs, &stage[0], n, stride)
        else:
            factor = 1.0 if job.factor == NULL else job.factor[sample]
            row = sum_row(
                x + base, p + base if p != NULL else p, job, smoothing, t, &xs[0], &a[0]
            )
            one = weighted(factor, row.loss)
            if grad != NULL:
                for c in range(0, job.classes, 2048):
                    n = min(job.classes - c, <Py_ssize_t>ROW)
                    if job.classes > ROW:
                        load_row(&xs[0], x + base + c * stride, n, stride, row.shift)
                        load_target(
                            &a[0], p + base if p != NULL else p, stride, t, job.weight, smoothing,
                            c, n
                        )
                    gradient_block(&xs[0], &a[0], n, row, factor * job.scale)
                    if c <= row.largest < c + n:
                        i = row.largest - c
                        xs[i] = (
                            row.own / row.total * (row.mass - a[i])
                            - a[i] * (row.rest / row.total)
                        ) * (factor * job.scale)
                    write(grad + base + c * stride, &xs[0], &stage[0], n, stride)
        count(&tally, &one, 1)
        if losses32 != NULL:
            losses32[sample] = <float>one
        if losses64 != NULL:
            losses64[sample] = one
    result[0] = folded(&tally)


cdef inline void write(
    storage *grad, const double *g, storage *stage, Py_ssize_t n, Py_ssize_t stride
) noexcept nogil:
    """grad[:n * stride:stride] = g[:n], rounded once."""
    cdef Py_ssize_t c
    if stride == 1:
        emit(grad, g, n, False)
    else:
        narrow(stage, g, n)
        for c in range(n):
            grad[c * stride] = stage[c]


# ---- b) tiles --------------------------------------------------------------------------------

cdef inline void tile_target(
    double *a, const probability *p, double *stage, const Job *job, Smoothing smoothing,
    Py_ssize_t first, Py_ssize_t n, const int64_t *target
) noexcept nogil:
    """a[c * LANES + lane] = weight[c] * q[c] of each lane."""
    cdef Py_ssize_t c, lane
    if p != NULL:
        turn(a, p, stage, job.classes, job.inner, first, n, 0, job.classes, LANES)
        for c in range(job.classes * 64):
            a[c] = smoothing.keep * a[c] + smoothing.spread
    else:
        for c in range(job.classes):
            for lane in range(64):
                a[c * 64 + lane] = smoothing.spread + (smoothing.keep if target[lane] == c else 0.0)
    if job.weight != NULL:
        for c in range(job.classes):
            for lane in range(64):
                a[c * 64 + lane] = a[c * 64 + lane] * job.weight[c]


cdef inline void two_sum(double *high, double *low, double value) noexcept nogil:
    """Add to a number in two parts."""
    cdef double t = high[0] + value
    cdef double z = t - high[0]
    low[0] = low[0] + ((high[0] - (t - z)) + (value - z))
    high[0] = t


# LANES samples, whatever their arrays' types: the arithmetic stands once.
cdef struct Tile:
    double xs[4096]          # logits, then exponentials, then gradients, class-major
    double a[4096]           # targets, class-major
    double top[64]           # m
    int64_t largest[64]      # its class
    int64_t target[64]       # class index, or -1
    double factor[64]        # of the loss; 0 where the sample does not count
    double rest[64]
    double own[64]
    double mass[64]          # A
    double loss[64]


cdef void tile_losses(Tile *tile, Py_ssize_t classes) noexcept nogil:
    """Logits to exponentials, and the losses, factors included."""
    cdef Py_ssize_t lane, c, i
    cdef double exponent[64]
    cdef double shift[64]
    cdef double magic[64]
    cdef double low_x[64]
    cdef double rest_low[64]
    cdef double distance[64]
    cdef double distance_low[64]
    cdef double mass_low[64]
    cdef double e, g
    for c in range(classes):
        for lane in range(64):
            i = c * 64 + lane
            tile.largest[lane] = c if tile.xs[i] > tile.top[lane] else tile.largest[lane]
            tile.top[lane] = tile.xs[i] if tile.xs[i] > tile.top[lane] else tile.top[lane]
    for lane in range(64):
        exponent[lane] = tile.top[lane]
    if fix_range(&exponent[0], &shift[0]):
        shift_tile(&tile.xs[0], classes, LANES, &shift[0])
        for lane in range(64):
            # The maximum less itself: 0, or NaN where it is none.
            tile.top[lane] = tile.top[lane] if shift[lane] == 0 else shift[lane] - shift[lane]
    for lane in range(64):
        magic[lane] = exp_magic(exponent[lane])
        low_x[lane] = exp_low(exponent[lane])
        tile.own[lane] = exp_scaled(tile.top[lane], magic[lane], low_x[lane])
        tile.rest[lane] = rest_low[lane] = distance[lane] = distance_low[lane] = 0
        tile.mass[lane] = mass_low[lane] = 0
    for c in range(classes):
        for lane in range(64):
            i = c * 64 + lane
            g = tile.a[i] * (tile.top[lane] - tile.xs[i])
            two_sum(&distance[lane], &distance_low[lane], 0.0 if tile.a[i] == 0 else g)
            two_sum(&tile.mass[lane], &mass_low[lane], tile.a[i])
            e = exp_scaled(tile.xs[i], magic[lane], low_x[lane])
            tile.xs[i] = e
            two_sum(&tile.rest[lane], &rest_low[lane], 0.0 if tile.largest[lane] == c else e)
    for lane in range(64):
        tile.rest[lane] = tile.rest[lane] + rest_low[lane]
        tile.mass[lane] = tile.mass[lane] + mass_low[lane]
        g = distance[lane] + distance_low[lane]
        # An infinite sum's error term is NaN, and not to be added.
        g = g if distance_low[lane] - distance_low[lane] == 0 else distance[lane]
        e = tile.mass[lane] * log1p(tile.rest[lane] / tile.own[lane])
        g = g + (0.0 if tile.mass[lane] == 0 else e)
        e = tile.rest[lane] + tile.own[lane]
        tile.loss[lane] = g if e - e == 0 else NAN
    for lane in range(64):
        tile.loss[lane] = weighted(tile.factor[lane], tile.loss[lane])


cdef void tile_gradients(
    Tile *tile, Py_ssize_t classes, double scale, const int64_t *targets
) noexcept nogil:
    """Exponentials to gradients; with `targets`, exactly 0 for a sample that has none."""
    cdef Py_ssize_t lane, c, i
    cdef double total[64]
    cdef double p, rest, g
    for lane in range(64):
        total[lane] = tile.rest[lane] + tile.own[lane]
    for c in range(classes):
        for lane in range(64):
            i = c * 64 + lane
            p = tile.xs[i] / total[lane]
            rest = tile.rest[lane] / total[lane] if tile.largest[lane] == c else 1 - p
            g = p * (tile.mass[lane] - tile.a[i]) - tile.a[i] * rest
            tile.xs[i] = g * (tile.factor[lane] * scale)
    if targets != NULL:
        for c in range(classes):
            for lane in range(64):
                i = c * 64 + lane
                tile.xs[i] = tile.xs[i] if tile.target[lane] >= 0 else 0.0


cdef void tiles_item(
    const storage *x, const probability *p, storage *grad, float *losses32, double *losses64,
    const Job *job, Smoothing smoothing, Py_ssize_t start, Py_ssize_t stop, Sum *result
) noexcept nogil:
    cdef Tile tile
    cdef double stage[4096]
    cdef Tally tally
    cdef Py_ssize_t classes = job.classes, first, n, lane
    clear(&tally)
    for first in range(start, stop, 64):
        n = min(stop - first, <Py_ssize_t>LANES)
        for lane in range(64):
            tile.target[lane] = -1
            tile.factor[lane] = lane < n
            tile.top[lane] = -INFINITY if lane < n else 0.0
            tile.largest[lane] = 0
        for lane in range(n):
            if job.target != NULL:
                tile.target[lane] = class_of(job, first + lane)
                tile.factor[lane] = tile.target[lane] >= 0
            if job.factor != NULL and tile.factor[lane] != 0:
                tile.factor[lane] = job.factor[first + lane]
        turn(&tile.xs[0], x, &stage[0], classes, job.inner, first, n, 0, classes, LANES)
        tile_target(&tile.a[0], p, &stage[0], job, smoothing, first, n, &tile.target[0])
        tile_losses(&tile, classes)
        for lane in range(64):
            # An ignored sample has loss 0, whatever its logits made of it.
            if lane >= n or job.target != NULL and tile.target[lane] < 0:
                tile.loss[lane] = 0
        count(&tally, &tile.loss[0], LANES)
        for lane in range(n):
            if losses32 != NULL:
                losses32[first + lane] = <float>tile.loss[lane]
            if losses64 != NULL:
                losses64[first + lane] = tile.loss[lane]
        if grad != NULL:
            tile_gradients(&tile, classes, job.scale, job.target)
            turn_back(
                grad, &tile.xs[0], &stage[0], classes, job.inner, first, n, 0, classes, LANES,
                job.streaming
            )
    result[0] = folded(&tally)


cdef void item(
    const storage *x, const probability *p, storage *grad, float *losses32, double *losses64,
    const Job *job, Smoothing smoothing, Py_ssize_t start, Py_ssize_t stop, Sum *result
) noexcept nogil:
    if job.classes <= TILE:
        tiles_item(x, p, grad, losses32, losses64, job, smoothing, start, stop, result)
    else:
        rows_item(x, p, grad, losses32, losses64, job, smoothing, start, stop, result)


# ---- c) what Python calls --------------------------------------------------------------------

def cross_entropy(
    const storage[:, :, ::1] logits,     # IN   (outer, C, inner)
    const int64_t[:, ::1] target,        # IN   (outer, inner), or None with probabilities
    const probability[:, :, ::1] probabilities,  # IN (outer, C, inner); (0, 0, 0) with indices
    const double[::1] weight,            # IN   (C,) or None
    const double[:, ::1] factor,         # IN   (outer, inner) or None: multiplies each loss
    int64_t ignore_index,
    double smoothing,
    double scale,                        # IN   upstream gradient, one for all samples
    bint mean,                           # IN   whether to divide by the sum of the weights
    float[:, ::1] losses32,              # OUT  (outer, inner) or None
    double[:, ::1] losses64,             # OUT  the same for double logits, or None
    storage[:, :, ::1] grad,             # OUT  (outer, C, inner) or None; may be the logits
    int threads,
):
    """Return (position of a bad target, -1 or OVERLAP; sum of the losses, sum of the weights)."""
    cdef Job job
    cdef Check checked
    cdef Smoothing s
    cdef Sum partial[4096]
    cdef Sum total = Sum(0, 0)
    cdef Tally tally
    cdef Py_ssize_t size, items, i
    cdef const probability *p = NULL
    cdef const storage *x = NULL
    cdef storage *g = NULL
    cdef float *out32 = NULL
    cdef double *out64 = NULL
    job.samples = logits.shape[0] * logits.shape[2]
    job.classes = logits.shape[1]
    job.inner = logits.shape[2]
    if job.samples == 0:
        return -1, 0.0, 0.0
    job.target = &target[0, 0] if target is not None else NULL
    job.weight = &weight[0] if weight is not None and job.classes > 0 else NULL
    job.factor = &factor[0, 0] if factor is not None else NULL
    job.ignore_index = ignore_index
    job.streaming = False
    s.keep = 1 - smoothing
    s.spread = smoothing / job.classes if job.classes > 0 else 0
    if losses32 is not None:
        out32 = &losses32[0, 0]
    if losses64 is not None:
        out64 = &losses64[0, 0]
    if job.classes > 0:
        x = &logits[0, 0, 0]
        if grad is not None:
            g = &grad[0, 0, 0]
        if job.target == NULL:
            p = &probabilities[0, 0, 0]
        size = job.samples * job.classes
        if out_overlaps(g, x, size * <Py_ssize_t>sizeof(storage), &job) or overlap(
            g, size * <Py_ssize_t>sizeof(storage), p, size * <Py_ssize_t>sizeof(probability)
        ):
            return OVERLAP, 0.0, 0.0
    with nogil:
        if job.target != NULL:
            checked = check(&job)
        else:
            checked.bad = -1
            checked.weights = <double>job.samples
            if job.factor != NULL:
                clear(&tally)
                for i in range(job.samples):
                    count(&tally, job.factor + i, 1)
                checked.weights = value_of(folded(&tally))
        if checked.bad < 0 and job.classes > 0:
            if mean:
                scale = scale / checked.weights if checked.weights != 0 else 0
            job.scale = scale
            size = item_size(&job)
            items = (job.samples + size - 1) // size
            if threads > 1 and items > 1:
                for i in prange(items, schedule="dynamic", num_threads=threads):
                    item(
                        x, p, g, out32, out64, &job, s, i * size,
                        min(job.samples, (i + 1) * size), &partial[i],
                    )
            else:
                for i in range(items):
                    item(
                        x, p, g, out32, out64, &job, s, i * size,
                        min(job.samples, (i + 1) * size), &partial[i],
                    )
            for i in range(items):
                total = add(total, partial[i])
    return checked.bad, value_of(total), checked.weights
