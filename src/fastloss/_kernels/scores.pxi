# Scores of samples: where the target stands among the other classes, the likeliest classes, and
# sums that tell how spread the probabilities are.
#
# Layout: a) what a call asks for, b) the likeliest classes, c) rows, d) tiles, e) the ending.
#
# The class left out of a sample's sum is its largest. It is looked for before the sum is taken, and
# the same look counts the classes that are as large as the target, and finds the largest of the
# others: the row is in the cache then, and the loop waits for memory anyway.
#
# What an array of the results is not there for is not computed.

from libc.stdint cimport int32_t, int64_t

from .group cimport Group, Ranked
from .samples cimport SCORE, Job, class_of, offset_of
from .storage cimport prefetch_bytes, storage, value_at
from .sums cimport LANES, PARTS, RunningSum, max16, sum_add, sum_begin, sum_end, two_sum, value_of
from .vecmath cimport INFINITY, NAN, exp_negative, exp_scaled, real

cdef enum:
    LOOK = 32            # classes of a row that are looked at a time
    FIND = 128           # classes among which one is looked for
    OFFER = 64           # classes whose largest is compared with the least that is kept
    ABREAST = 16         # samples of a tile that are looked at at a time


# ---- a) what a call asks for -----------------------------------------------------------------

cdef inline bint wants_spread(const Job *job) noexcept nogil:
    """Whether the distances of all classes from the largest are summed."""
    return job.kind == SCORE and (job.entropy != NULL or job.variance != NULL)


cdef inline bint wants_moments(const Job *job) noexcept nogil:
    """Whether squares are summed: of distances, or of exponentials."""
    return job.kind == SCORE and (job.variance != NULL or job.brier != NULL)


cdef inline bint keeps_exponentials(const Job *job) noexcept nogil:
    return wants_spread(job) or wants_moments(job)


cdef inline Py_ssize_t heap_bytes(const Job *job, Py_ssize_t samples) noexcept nogil:
    """Scratch for the likeliest classes of so many samples at a time."""
    return (job.top_k + 1) * samples * sizeof(Ranked) if job.kind == SCORE and job.top_k else 0


cdef inline Ranked *heap_of(const Job *job, const Group *group, Py_ssize_t i) noexcept nogil:
    return group.ranked + i * (job.top_k + 1)


# ---- b) the likeliest classes ----------------------------------------------------------------
#
# A heap of the k best so far, the least of them first: entry i is below i // 2. Entry 0 tells by
# its class how many there are. Most blocks of classes hold none that is larger than the least, and
# one comparison with their maximum passes over them. Of equal logits the first classes count as
# larger. NaNs are passed over.

cdef inline bint beats(Ranked a, Ranked b) noexcept nogil:
    return a.value > b.value or (a.value == b.value and a.which < b.which)


cdef inline void sink(Ranked *heap, Py_ssize_t n, Ranked one) noexcept nogil:
    """Put `one` in the place of the first of n entries."""
    cdef Py_ssize_t i = 1, below = 2
    while below <= n:
        if below < n and beats(heap[below], heap[below + 1]):
            below += 1
        if beats(heap[below], one):
            break
        heap[i] = heap[below]
        i = below
        below = 2 * i
    heap[i] = one


cdef inline void rise(Ranked *heap, Py_ssize_t n, Ranked one) noexcept nogil:
    """Add `one` as the n-th entry."""
    while n > 1 and beats(heap[n // 2], one):
        heap[n] = heap[n // 2]
        n //= 2
    heap[n] = one


cdef void offer(Ranked *heap, Py_ssize_t k, const real *x, Py_ssize_t n, Py_ssize_t c) noexcept nogil:
    """Classes c to c + n, whose logits are x[:n]."""
    cdef Py_ssize_t i = 0, j, m
    cdef real least
    while i < n and heap[0].which < k:
        if x[i] == x[i]:
            heap[0].which += 1
            rise(heap, heap[0].which, Ranked(x[i], c + i))
        i += 1
    if i == n:
        return
    least = <real>heap[1].value
    while i < n:
        m = min(n - i, <Py_ssize_t>OFFER)
        if block_max(x + i, m) > least:
            for j in range(i, i + m):
                if x[j] > least:
                    sink(heap, k, Ranked(x[j], c + j))
                    least = <real>heap[1].value
        i += m


cdef void in_order(Ranked *heap) noexcept nogil:
    """Turn the heap into a list, the largest first."""
    cdef Py_ssize_t n = heap[0].which
    cdef Ranked last
    while n > 1:
        last = heap[n]
        heap[n] = heap[1]
        n -= 1
        sink(heap, n, last)


# ---- c) rows ---------------------------------------------------------------------------------

cdef inline void look(
    const real *x, Py_ssize_t n, Py_ssize_t own, real value, real *top, Py_ssize_t *count
) noexcept nogil:
    """The largest of x[:n] without x[own], and how many of them are `value` or more.

    An `own` outside [0, n) leaves out nothing. NaNs are passed over; of nothing it is -inf.
    """
    cdef real m[LOOK]
    cdef real a[LOOK]
    cdef real many[LOOK]         # compute type double; counts of the same width as what is compared
    cdef int32_t few[LOOK]       # compute type float
    cdef Py_ssize_t whole = n // LOOK, step, i, j
    # The block of `own` comes last: a branch where it turns up would be mispredicted.
    cdef Py_ssize_t held = own // LOOK if 0 <= own < LOOK * whole else 0
    cdef int first = 0, skip, lane
    cdef double total = 0
    if n < LOOK:
        top[0] = <real>(-INFINITY)
        count[0] = 0
        for i in range(n):
            if i != own:
                top[0] = x[i] if x[i] > top[0] else top[0]
                count[0] += x[i] >= value
        return
    for j in range(LOOK):
        m[j] = <real>(-INFINITY)
        many[j] = 0
        few[j] = 0
    for step in range(whole - 1):
        i = LOOK * (step + (step >= held))
        for j in range(LOOK):
            m[j] = x[i + j] if x[i + j] > m[j] else m[j]
            if real is float:
                few[j] = few[j] + (x[i + j] >= value)
            else:
                many[j] = many[j] + (<real>1 if x[i + j] >= value else <real>0)
    i = LOOK * held
    while True:
        skip = <int>(own - i) if 0 <= own - i < LOOK else -1
        for lane in range(LOOK):
            a[lane] = x[i + lane] if (lane >= first) & (lane != skip) else <real>NAN
        for j in range(LOOK):
            m[j] = a[j] if a[j] > m[j] else m[j]
            if real is float:
                few[j] = few[j] + (a[j] >= value)
            else:
                many[j] = many[j] + (<real>1 if a[j] >= value else <real>0)
        if first != 0 or LOOK * whole == n:
            break
        # The rest overlaps what has been looked at.
        i = n - LOOK
        first = <int>(LOOK * (whole + 1) - n)
    for j in range(16):
        m[j] = m[j + 16] if m[j + 16] > m[j] else m[j]
    if real is float:
        top[0] = max16(&m[0])
        for j in range(16):
            few[j] = few[j] + few[j + 16]
        for j in range(1, 16):
            few[0] = few[0] + few[j]
        count[0] = few[0]
    else:
        top[0] = m[0]
        for j in range(1, 16):
            top[0] = m[j] if m[j] > top[0] else top[0]
        for j in range(LOOK):
            total += many[j]
        count[0] = <Py_ssize_t>total


cdef inline Py_ssize_t first_of(const real *x, Py_ssize_t n, real value) noexcept nogil:
    """First of x[:n] that is `value`, which is among them."""
    cdef Py_ssize_t i = 0, j, m
    cdef int32_t hit
    while i + FIND < n:
        hit = 0
        for j in range(FIND):
            hit |= x[i + j] == value
        if hit:
            break
        i += FIND
    m = min(n - i, <Py_ssize_t>FIND)
    return i + find(x + i, <int32_t>m, value)


cdef void stand(
    const storage *x, const Job *job, Py_ssize_t sample, Py_ssize_t i, real *wide, Group *group
) noexcept nogil:
    """own_class, gap, margin and rank of sample i of a group, whose logits are x."""
    cdef Py_ssize_t c = 0, n, classes = job.classes, t = class_of(job, sample)
    cdef Py_ssize_t largest = 0, rank = 0, count = 0
    cdef real value = value_at(x, t, <real>0) if t >= 0 else <real>NAN
    cdef real top = <real>(-INFINITY), most = 0
    cdef const real *xs
    cdef Ranked *heap = heap_of(job, group, i)
    if job.top_k:
        heap[0].which = 0
    while c < classes:
        n = min(classes - c, <Py_ssize_t>CHUNK)
        xs = widened(wide, x + c, n)
        look(xs, n, t - c, value, &most, &count)
        rank += count
        if most > top:
            top = most
            if not value > top:
                largest = c + first_of(xs, n, top)
        if job.top_k:
            offer(heap, job.top_k, xs, n, c)
        c += n
    group.rank[i] = rank
    group.margin[i] = <double>value - <double>top
    group.gap[i] = <double>top - <double>value
    if value > top:
        largest = t
        group.gap[i] = 0
    group.own_class[i] = largest


cdef inline void add_moments(
    const storage *x, real *wide, const real *e, Py_ssize_t n, Py_ssize_t own, real top,
    RunningSum *spread, RunningSum *squares
) noexcept nogil:
    """Add e * (top - x)**2, and e**2 but for e[own]; spread may be NULL, and so may squares.

    For compute type float the squares go to doubles, which hold them whatever e is scaled by.
    """
    cdef const real *xs = widened(wide, x, n)
    cdef real part[LANES]
    cdef real d
    cdef Py_ssize_t i = 0, j, m
    while i < n:
        m = min(n - i, <Py_ssize_t>LANES)
        for j in range(LANES):
            part[j] = 0
        if spread != NULL:
            for j in range(m):
                d = top - xs[i + j]
                d = e[i + j] * d * d
                part[j] = d if e[i + j] != 0 else <real>0
            sum_add(spread, &part[0], 0, -1)
        if squares != NULL:
            for j in range(m):
                part[j] = e[i + j]
            for j in range(m, LANES):
                part[j] = 0
            if 0 <= own - i < LANES:
                part[own - i] = 0
            if real is float:
                for j in range(LANES):
                    squares.high[j % PARTS] += <double>part[j] * <double>part[j]
            else:
                for j in range(LANES):
                    part[j] = part[j] * part[j]
                sum_add(squares, &part[0], 0, -1)
        i += m


cdef inline void moments_begin(RunningSum *spread, RunningSum *squares, real unused) noexcept nogil:
    cdef Py_ssize_t j
    sum_begin(spread, unused)
    sum_begin(squares, unused)
    for j in range(PARTS):
        squares.high[j] = 0


cdef inline void moments_end(
    RunningSum *spread, RunningSum *squares, real unused, Group *group, Py_ssize_t i
) noexcept nogil:
    cdef Py_ssize_t j
    group.spread[i] = value_of(sum_end(spread, unused))
    if real is float:
        group.squares[i] = 0
        for j in range(PARTS):
            group.squares[i] += squares.high[j]
    else:
        group.squares[i] = value_of(sum_end(squares, unused))


cdef void moments_of_row(
    const storage *x, const Job *job, Py_ssize_t i, const real *e, real *wide, Group *group
) noexcept nogil:
    """`spread` and `squares` of sample i of a group, a row whose exponentials are e."""
    cdef RunningSum spread, squares
    cdef Py_ssize_t c = 0, n, own = group.own_class[i]
    cdef real top = value_at(x, own, <real>0)
    moments_begin(&spread, &squares, top)
    while c < job.classes:
        n = min(job.classes - c, <Py_ssize_t>CHUNK)
        add_moments(
            x + c, wide, e + c, n, own - c, top, &spread if job.variance != NULL else NULL,
            &squares if job.brier != NULL else NULL,
        )
        c += n
    moments_end(&spread, &squares, top, group, i)


cdef void moments_of_long_row(
    const storage *x, const Job *job, real *block, real *wide, Group *group
) noexcept nogil:
    """`moments_of_row` where the exponentials have not been kept."""
    cdef RunningSum spread, squares
    cdef Py_ssize_t i = 0, m, own = group.own_class[0]
    cdef real top = value_at(x, own, <real>0)
    moments_begin(&spread, &squares, top)
    while i < job.classes:
        m = min(job.classes - i, <Py_ssize_t>BLOCK)
        sum_block(
            x + i, block, m, -1, <real>group.shift[0], <real>group.exponent[0], True, wide, NULL
        )
        add_moments(
            x + i, wide, block, m, own - i, top, &spread if job.variance != NULL else NULL,
            &squares if job.brier != NULL else NULL,
        )
        i += m
    moments_end(&spread, &squares, top, group, 0)


# ---- d) tiles --------------------------------------------------------------------------------

cdef inline void stand_begin(
    Standing *standing, const storage *x, const Job *job, Py_ssize_t first, Py_ssize_t n,
    Group *group
) noexcept nogil:
    """Of n samples from `first` on."""
    cdef Py_ssize_t lane, t
    for lane in range(LANES):
        standing.target[lane] = -1
        standing.value[lane] = NAN
        standing.second[lane] = -INFINITY
        standing.count[lane] = 0
    for lane in range(n):
        t = class_of(job, first + lane)
        standing.target[lane] = t
        if t >= 0:
            standing.value[lane] = value_at(x, offset_of(job, first + lane, t), <double>0)
        if job.top_k:
            heap_of(job, group, lane)[0].which = 0


cdef void tile_stand(
    const real *xs, Py_ssize_t m, Py_ssize_t width, Py_ssize_t first, real *top, int32_t *largest,
    Standing *standing
) noexcept nogil:
    """`tile_largest`, the largest but for that one, and the classes as large as the target."""
    cdef Py_ssize_t part, lane, i
    cdef int32_t c, k
    cdef real x, less
    cdef real highest[ABREAST]
    cdef real second[ABREAST]
    cdef real value[ABREAST]
    cdef real many[ABREAST]
    cdef int32_t few[ABREAST]
    cdef int32_t which[ABREAST]
    for part in range(LANES // ABREAST):
        lane = ABREAST * part
        for i in range(ABREAST):
            highest[i] = top[lane + i]
            which[i] = largest[lane + i]
            second[i] = <real>standing.second[lane + i]
            value[i] = <real>standing.value[lane + i]
            many[i] = 0
            few[i] = 0
        for c in range(<int32_t>m):
            k = c + <int32_t>first
            for i in range(ABREAST):
                x = xs[c * width + lane + i]
                less = highest[i] if highest[i] < x else x
                which[i] = k if x > highest[i] else which[i]
                highest[i] = x if x > highest[i] else highest[i]
                second[i] = less if less > second[i] else second[i]
                if real is float:
                    few[i] = few[i] + (x >= value[i])
                else:
                    many[i] = many[i] + (<real>1 if x >= value[i] else <real>0)
        for i in range(ABREAST):
            top[lane + i] = highest[i]
            largest[lane + i] = which[i]
            standing.second[lane + i] = second[i]
            standing.count[lane + i] += few[i] + <int32_t>many[i]


cdef void tile_offer(
    const real *xs, Py_ssize_t m, Py_ssize_t width, Py_ssize_t first, Py_ssize_t n, const Job *job,
    Group *group
) noexcept nogil:
    """Classes `first` to first + m <= TILE of n samples to their heaps."""
    cdef real most[LANES]
    cdef real row[TILE]
    cdef Py_ssize_t lane, c
    cdef Ranked *heap
    for lane in range(LANES):
        most[lane] = <real>(-INFINITY)
    tile_max(xs, m, width, &most[0])
    for lane in range(n):
        heap = heap_of(job, group, lane)
        if heap[0].which < job.top_k or most[lane] > heap[1].value:
            for c in range(m):
                row[c] = xs[c * width + lane]
            offer(heap, job.top_k, &row[0], m, first)


cdef inline void stand_end(
    const Standing *standing, const real *top, const int32_t *largest, Group *group
) noexcept nogil:
    cdef Py_ssize_t lane
    cdef double best, other
    for lane in range(LANES):
        best = top[lane]
        other = standing.second[lane] if standing.target[lane] == largest[lane] else best
        group.margin[lane] = standing.value[lane] - other
        group.gap[lane] = best - standing.value[lane]
        if standing.target[lane] == largest[lane]:
            group.gap[lane] = 0
        group.rank[lane] = standing.count[lane] - 1


cdef void tile_moments(
    const real *xs, Py_ssize_t m, Py_ssize_t width, const real *magic, const real *low_x,
    const real *top, const Job *job, Tile *tile, const storage *ahead, Py_ssize_t stride
) noexcept nogil:
    """`tile_exp`, and exponential times distance from `top` and what else is asked for.

    What is added to a sum of `Tile` are two classes at a time, as ever.
    """
    cdef Py_ssize_t lane
    cdef int32_t c
    cdef real a[LANES]
    cdef real d[LANES]
    cdef real two[LANES]
    cdef real apart[LANES]
    cdef real square
    cdef bint spread = job.variance != NULL, squares = job.brier != NULL
    for lane in range(LANES):
        two[lane] = apart[lane] = 0
    for c in range(m):
        prefetch_bytes(ahead + c * stride, LANES * sizeof(storage))
        for lane in range(LANES):
            a[lane] = exp_scaled(xs[lane], magic[lane], low_x[lane])
        for lane in range(LANES):
            d[lane] = top[lane] - xs[lane]
            d[lane] = d[lane] if a[lane] != 0 else <real>0
            apart[lane] = apart[lane] + a[lane] * d[lane]
            two[lane] = two[lane] + (<real>0 if tile.skip[lane] == c else a[lane])
        if c & 1 == 1 or c == m - 1:
            for lane in range(LANES):
                two_sum(<real>0, &tile.high[lane], &tile.low[lane], two[lane])
                two[lane] = 0
            for lane in range(LANES):
                two_sum(<real>0, &tile.distance[lane], &tile.distance_low[lane], apart[lane])
                apart[lane] = 0
        if spread:
            for lane in range(LANES):
                square = a[lane] * d[lane] * d[lane]
                two_sum(<real>0, &tile.spread[lane], &tile.spread_low[lane], square)
        if squares:
            for lane in range(LANES):
                a[lane] = <real>0 if tile.skip[lane] == c else a[lane]
            for lane in range(LANES):
                two_sum(
                    <real>0, &tile.squares[lane], &tile.squares_low[lane],
                    <double>a[lane] * <double>a[lane],
                )
        xs = xs + width


cdef inline void moments_clear(Tile *tile) noexcept nogil:
    cdef Py_ssize_t lane
    for lane in range(LANES):
        tile.spread[lane] = tile.spread_low[lane] = 0
        tile.squares[lane] = tile.squares_low[lane] = 0


cdef inline void moments_settle(const Tile *tile, Group *group) noexcept nogil:
    cdef Py_ssize_t lane
    for lane in range(LANES):
        group.spread[lane] = tile.spread[lane] + tile.spread_low[lane]
        group.squares[lane] = tile.squares[lane] + tile.squares_low[lane]


# ---- e) the ending ---------------------------------------------------------------------------

cdef inline void put(
    const Job *job, void *to, Py_ssize_t first, Py_ssize_t n, const double *value
) noexcept nogil:
    """Write a number for each of n samples, in the type of the results."""
    cdef Py_ssize_t i
    if job.wide:
        for i in range(n):
            (<double *>to)[first + i] = value[i]
    else:
        for i in range(n):
            (<float *>to)[first + i] = <float>value[i]


cdef inline void put_ranked(
    const storage *x, const Job *job, Py_ssize_t sample, Py_ssize_t at, double log_rest,
    Ranked *heap
) noexcept nogil:
    """Write the likeliest classes of a sample, the `at`-th of the call."""
    cdef Py_ssize_t j, c = 0, k = job.top_k, base
    cdef double log_prob
    in_order(heap)
    if heap[0].which < k:
        # NaNs come last, as they do where NumPy sorts.
        base = offset_of(job, sample, 0)
        while heap[0].which < k and c < job.classes:
            log_prob = value_at(x, base + c * job.inner, <double>0)
            if log_prob != log_prob:
                heap[0].which += 1
                heap[heap[0].which] = Ranked(log_prob, c)
            c += 1
    for j in range(k):
        job.top_classes[at * k + j] = heap[1 + j].which
        log_prob = -(heap[1].value - heap[1 + j].value + log_rest) if j else -log_rest
        if job.wide:
            (<double *>job.top_log_probs)[at * k + j] = log_prob
        else:
            (<float *>job.top_log_probs)[at * k + j] = <float>log_prob


cdef void score_ending(
    const storage *x, const Job *job, Py_ssize_t first, Py_ssize_t n, const Group *group
) noexcept nogil:
    """What is asked for of n samples: NaN, and rank -1, where there is no target or no softmax."""
    cdef Py_ssize_t i, at = job.place + first
    cdef double p, q, own, mean
    cdef double of_target[LANES]
    cdef double value[LANES]
    for i in range(n):
        of_target[i] = -(group.gap[i] + group.log_rest[i])
    if job.log_prob != NULL:
        put(job, job.log_prob, at, n, &of_target[0])
    if job.predicted_log_prob != NULL:
        for i in range(n):
            value[i] = -group.log_rest[i]
        put(job, job.predicted_log_prob, at, n, &value[0])
    if job.margin != NULL:
        for i in range(n):
            value[i] = group.margin[i] if of_target[i] == of_target[i] else NAN
        put(job, job.margin, at, n, &value[0])
    if job.entropy != NULL:
        for i in range(n):
            value[i] = group.log_rest[i] + group.distance[i] / group.total[i]
        put(job, job.entropy, at, n, &value[0])
    if job.logsumexp != NULL:
        for i in range(n):
            value[i] = (group.own_x[i] + group.shift[i]) + group.log_rest[i]
        put(job, job.logsumexp, at, n, &value[0])
    if job.brier != NULL:
        # (1 - p)**2 of the target, and p**2 of all others. Where the target is the largest, both
        # are sums without it; where not, p is at most 1/2 and nothing cancels.
        for i in range(n):
            if group.gap[i] == 0 and group.rank[i] == 0:
                q = group.rest[i] / group.total[i]
                value[i] = q * q + group.squares[i] / group.total[i] / group.total[i]
            else:
                p = exp_negative(of_target[i])
                own = group.own[i] / group.total[i]
                value[i] = (1 - p) * (1 - p) + (own * own - p * p)
                value[i] += group.squares[i] / group.total[i] / group.total[i]
            value[i] = value[i] if of_target[i] == of_target[i] else NAN
        put(job, job.brier, at, n, &value[0])
    if job.variance != NULL:
        for i in range(n):
            mean = group.distance[i] / group.total[i]
            value[i] = group.spread[i] / group.total[i] - mean * mean
            value[i] = value[i] if value[i] > 0 or value[i] != value[i] else 0.0
        put(job, job.variance, at, n, &value[0])
    if job.rank != NULL:
        for i in range(n):
            job.rank[at + i] = group.rank[i] if of_target[i] == of_target[i] else -1
    if job.predicted != NULL:
        for i in range(n):
            job.predicted[at + i] = group.own_class[i]
    if job.top_k:
        for i in range(n):
            put_ranked(x, job, first + i, at + i, group.log_rest[i], heap_of(job, group, i))
