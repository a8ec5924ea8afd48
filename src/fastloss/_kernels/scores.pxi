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

from libc.math cimport nextafter, nextafterf
from libc.stdint cimport int16_t, int32_t, int64_t, uint64_t
from libc.string cimport memcpy

from .group cimport Group
from .samples cimport SCORE, Job, class_of, logit_at, offset_of
from .storage cimport narrow, prefetch_bytes, storage, value_at
from .sums cimport (
    LANES, PARTS, RunningSum, Sum, add, sum_add, sum_begin, sum_end, two_sum, value_of,
)
from .tempers cimport exp_over
from .vecmath cimport INFINITY, NAN, exp_negative, fma, real

cdef extern from "simd/look.h" nogil:
    const int LOOK_AT_FLOATS "FASTLOSS_LOOK"
    float look_at_floats "fastloss_look"(
        const float *x, Py_ssize_t n, Py_ssize_t own, float value, Py_ssize_t *count
    ) noexcept
    uint64_t larger_floats "fastloss_larger"(const float *x, float least) noexcept
    int lowest "fastloss_lowest"(uint64_t mask) noexcept

cdef enum:
    LOOK = 32            # classes of a row that are looked at a time
    FIND = 128           # classes among which one is looked for
    OFFER = 64           # classes whose largest is compared with the least that is kept
    FEW = 128            # most likeliest classes that are kept in order
    RANK = 32            # classes on the list that are compared at a time
    LISTED = FEW + 2 * OFFER + RANK
    BOUND = 24           # most likeliest classes that a bound is looked for first
    INSERT = 8           # most likeliest classes of a tile that are kept by insertion
    ABREAST = 16         # samples of a tile that are looked at at a time


# ---- a) what a call asks for -----------------------------------------------------------------

cdef inline bint wants_spread(const Job *job) noexcept nogil:
    """Whether the distances of all classes from the largest are summed."""
    return job.kind == SCORE and (job.entropy != NULL or job.variance != NULL)


cdef inline bint wants_variance(const Job *job) noexcept nogil:
    """Whether the squares of those distances are summed."""
    return job.kind == SCORE and job.variance != NULL


cdef inline bint wants_squares(const Job *job) noexcept nogil:
    """Whether the squares of the exponentials are summed."""
    return job.kind == SCORE and job.brier != NULL


cdef inline bint wants_moments(const Job *job) noexcept nogil:
    return wants_spread(job) or wants_squares(job)


# ---- b) the likeliest classes ----------------------------------------------------------------
#
# The k best so far, and the least of them: most blocks of classes hold none that is larger, and one
# comparison with their maximum passes over them. What is larger is put on a list, and where that is
# long enough each entry is compared with all others: how many are better is its place. That takes
# no branch that a processor could mispredict. Many classes are a heap instead, the least first:
# entry i is below (i - 1) // 2. Few of a tile are kept in order lane by lane. Of equal logits the
# first classes count as larger. NaNs and -inf are passed over, and filled in last.

# In scratch: how many there are, then their logits, then their classes.
cdef struct Ranked:
    int64_t *n
    double *value
    int64_t *which


cdef inline Py_ssize_t ranked_bytes(const Job *job, Py_ssize_t samples) noexcept nogil:
    """Scratch for so many samples at a time."""
    return (2 * job.top_k + 1) * samples * 8 if job.kind == SCORE and job.top_k else 0


cdef inline Ranked ranked_of(const Job *job, const Group *group, Py_ssize_t i) noexcept nogil:
    """Where the likeliest classes of sample i of a group are."""
    cdef Ranked r
    r.n = group.ranked + i * (2 * job.top_k + 1)
    r.value = <double *>(r.n + 1)
    r.which = r.n + 1 + job.top_k
    return r


cdef inline bint beats(Ranked r, Py_ssize_t i, double value, int64_t which) noexcept nogil:
    """Whether entry i is better than a class."""
    return r.value[i] > value or (r.value[i] == value and r.which[i] < which)


cdef inline bint ranks(Py_ssize_t k) noexcept nogil:
    """Whether so many classes are found by comparing all with all."""
    return k <= FEW


cdef inline bint inserts(Py_ssize_t k) noexcept nogil:
    """Whether so many classes of a tile are found by insertion."""
    return k <= INSERT


cdef inline Py_ssize_t list_bytes(const Job *job) noexcept nogil:
    """Scratch for the list, or for the lists of a tile."""
    if job.kind != SCORE or job.top_k == 0:
        return 0
    return max(<Py_ssize_t>(2 * LISTED * 8), <Py_ssize_t>(INSERT * LANES * 12))


cdef void choose(
    Ranked r, Py_ssize_t k, const real *value, const int64_t *which, Py_ssize_t n
) noexcept nogil:
    """The k best of a list, in order. What is equal comes in the order of the list.

    The list is filled up to a whole number of RANK by what is no better than anything.
    """
    cdef Py_ssize_t first = 0, i, j
    cdef int32_t lane, at
    cdef real a
    cdef real v[RANK]
    cdef int32_t place[RANK]
    while first < n:
        for i in range(RANK):
            v[i] = value[first + i]
            place[i] = 0
        # Of what is before these, equals are better.
        for j in range(first):
            a = value[j]
            for i in range(RANK):
                place[i] = place[i] + (a >= v[i])
        for j in range(first, min(n, first + RANK)):
            a = value[j]
            at = <int32_t>(j - first)
            for lane in range(RANK):
                place[lane] = place[lane] + ((a > v[lane]) | ((a == v[lane]) & (at < lane)))
        for j in range(first + RANK, n):
            a = value[j]
            for i in range(RANK):
                place[i] = place[i] + (a > v[i])
        for i in range(min(n - first, <Py_ssize_t>RANK)):
            if place[i] < k:
                r.value[place[i]] = v[i]
                r.which[place[i]] = which[first + i]
        first += RANK
    r.n[0] = min(n, k)


cdef inline uint64_t larger(const real *x, Py_ssize_t n, real least) noexcept nogil:
    """Which of x[:n], n <= OFFER, are larger."""
    cdef uint64_t mask = 0
    cdef Py_ssize_t i
    if n == OFFER:
        if real is float:
            if LOOK_AT_FLOATS:
                return larger_floats(x, least)
        if not block_max(x, n) > least:
            return 0
    for i in range(n):
        mask |= <uint64_t>(x[i] > least) << i
    return mask


cdef inline real just_below_kth(
    Py_ssize_t k, const real *x, Py_ssize_t n, int parts
) noexcept nogil:
    cdef Py_ssize_t i, j
    cdef real m[RANK]
    cdef real a, kth = <real>INFINITY
    cdef int32_t place[RANK]
    for j in range(parts):
        m[j] = <real>(-INFINITY)
        place[j] = 0
    for i in range(n // parts):
        for j in range(parts):
            m[j] = x[i * parts + j] if x[i * parts + j] > m[j] else m[j]
    for i in range(parts):
        a = m[i]
        for j in range(parts):
            place[j] = place[j] + (a > m[j])
    for j in range(parts):
        a = m[j] if place[j] < k else kth
        kth = a if a < kth else kth
    if real is float:
        return nextafterf(kth, <float>(-INFINITY))
    else:
        return nextafter(kth, -INFINITY)


cdef real bound_of(Py_ssize_t k, const real *x, Py_ssize_t n) noexcept nogil:
    """A number that at least k of x[:n], n >= 2 * RANK, are larger than, and not many more.

    Just below the k-th of the maxima of some parts.
    """
    if k <= INSERT:
        return just_below_kth(k, x, n, RANK // 2)
    return just_below_kth(k, x, n, RANK)


cdef void offer_few(
    Ranked r, Py_ssize_t k, const real *x, Py_ssize_t n, Py_ssize_t c, real *value, int64_t *which
) noexcept nogil:
    """`offer` of few; value, which: the list."""
    cdef Py_ssize_t i = 0, j, m, held = r.n[0], listed = 0
    cdef bint bounded = held == k
    cdef real least = <real>r.value[k - 1] if bounded else <real>(-INFINITY)
    cdef uint64_t mask
    if held == 0 and k <= BOUND and n >= 2 * RANK:
        least = bound_of(k, x, n)
        bounded = True
    while i < n:
        m = min(n - i, <Py_ssize_t>OFFER)
        mask = larger(x + i, m, least)
        if mask and listed == 0:
            for j in range(held):
                value[j] = <real>r.value[j]
                which[j] = r.which[j]
            listed = held
        while mask:
            j = lowest(mask)
            value[listed] = x[i + j]
            which[listed] = c + i + j
            listed += 1
            mask &= mask - 1
        i += m
        # A choice where it gives a better bound, and before the list is too long.
        if listed > held and (i == n or listed >= (k + OFFER if bounded else k)):
            for j in range(RANK):
                value[listed + j] = <real>(-INFINITY)
            choose(r, k, value, which, listed)
            listed = 0
            held = r.n[0]
            if held == k:
                bounded = True
                least = <real>r.value[k - 1]
    if listed > held:
        for j in range(RANK):
            value[listed + j] = <real>(-INFINITY)
        choose(r, k, value, which, listed)


cdef inline void sink(Ranked r, Py_ssize_t n, double value, int64_t which) noexcept nogil:
    """Put a class in the place of the first of n entries of a heap."""
    cdef Py_ssize_t i = 0, below = 1
    while below < n:
        if below + 1 < n and beats(r, below, r.value[below + 1], r.which[below + 1]):
            below += 1
        if beats(r, below, value, which):
            break
        r.value[i] = r.value[below]
        r.which[i] = r.which[below]
        i = below
        below = 2 * i + 1
    r.value[i] = value
    r.which[i] = which


cdef inline void rise(Ranked r, double value, int64_t which) noexcept nogil:
    """Add a class to a heap."""
    cdef Py_ssize_t i = r.n[0]
    r.n[0] = i + 1
    while i > 0 and beats(r, (i - 1) // 2, value, which):
        r.value[i] = r.value[(i - 1) // 2]
        r.which[i] = r.which[(i - 1) // 2]
        i = (i - 1) // 2
    r.value[i] = value
    r.which[i] = which


cdef inline double least_of(const Job *job, Ranked r) noexcept nogil:
    """The least of the k."""
    return r.value[job.top_k - 1] if ranks(job.top_k) else r.value[0]


cdef void offer_many(
    Ranked r, Py_ssize_t k, const real *x, Py_ssize_t n, Py_ssize_t c
) noexcept nogil:
    """`offer` of more than a few."""
    cdef Py_ssize_t i = 0, j, m
    while i < n and r.n[0] < k:
        if x[i] > <real>(-INFINITY):
            rise(r, x[i], c + i)
        i += 1
    while i < n:
        m = min(n - i, <Py_ssize_t>OFFER)
        if block_max(x + i, m) > r.value[0]:
            for j in range(i, i + m):
                if x[j] > r.value[0]:
                    sink(r, k, x[j], c + j)
        i += m


cdef inline void offer(
    const Job *job, const Group *group, Ranked r, const real *x, Py_ssize_t n, Py_ssize_t c
) noexcept nogil:
    """Classes c to c + n, whose logits are x[:n], to the likeliest of a sample."""
    if ranks(job.top_k):
        offer_few(
            r, job.top_k, x, n, c, <real *>(group.list + LISTED), group.list
        )
    else:
        offer_many(r, job.top_k, x, n, c)


cdef inline void in_order(Ranked r, Py_ssize_t k) noexcept nogil:
    """Turn a heap into a list, the largest first."""
    cdef Py_ssize_t n = r.n[0]
    cdef double value
    cdef int64_t which
    while n > 1 and not ranks(k):
        n -= 1
        value, which = r.value[n], r.which[n]
        r.value[n], r.which[n] = r.value[0], r.which[0]
        sink(r, n, value, which)


# ---- c) rows ---------------------------------------------------------------------------------

cdef inline real look(
    const real *x, Py_ssize_t n, Py_ssize_t own, real value, Py_ssize_t *count
) noexcept nogil:
    """The largest of x[:n] without x[own], and how many of them are `value` or more.

    An `own` outside [0, n) leaves out nothing. NaNs are passed over; of nothing it is -inf.
    """
    cdef real m[LOOK]
    cdef real a[LOOK]
    cdef real few[LOOK]
    cdef real top = <real>(-INFINITY)
    cdef Py_ssize_t whole = n // LOOK, step, i, j
    # The block of `own` comes last: a branch where it turns up would be mispredicted.
    cdef Py_ssize_t held = own // LOOK if 0 <= own < LOOK * whole else 0
    cdef int first = 0, skip, lane
    cdef real total = 0
    count[0] = 0
    if n < LOOK:
        for i in range(n):
            if i != own:
                top = x[i] if x[i] > top else top
                count[0] += x[i] >= value
        return top
    if real is float:
        if LOOK_AT_FLOATS:
            return look_at_floats(x, n, own, value, count)
    for j in range(LOOK):
        m[j] = top
        few[j] = 0
    for step in range(whole - 1):
        i = LOOK * (step + (step >= held))
        for j in range(LOOK):
            m[j] = x[i + j] if x[i + j] > m[j] else m[j]
            few[j] = few[j] + (<real>1 if x[i + j] >= value else <real>0)
    i = LOOK * held
    while True:
        skip = <int>(own - i) if 0 <= own - i < LOOK else -1
        for lane in range(LOOK):
            a[lane] = x[i + lane] if (lane >= first) & (lane != skip) else <real>NAN
        for j in range(LOOK):
            m[j] = a[j] if a[j] > m[j] else m[j]
            few[j] = few[j] + (<real>1 if a[j] >= value else <real>0)
        if first != 0 or LOOK * whole == n:
            break
        # The rest overlaps what has been looked at.
        i = n - LOOK
        first = <int>(LOOK * (whole + 1) - n)
    for j in range(LOOK):
        top = m[j] if m[j] > top else top
        total += few[j]
    count[0] = <Py_ssize_t>total
    return top


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


cdef real look_at(
    const storage *x, Py_ssize_t n, Py_ssize_t own, real value, real *wide, Py_ssize_t *count
) noexcept nogil:
    """`look` at x[:n], n <= CHUNK, as it lies in memory: at halves as integers, unwidened."""
    cdef int16_t m[LANES]
    cdef int16_t below[LANES]    # the largest that is less than `value`
    cdef int16_t few[LANES]
    cdef int16_t last[LANES]
    cdef int16_t key, least = -32768, top = -32768, after = -32768
    cdef const int16_t *bits
    cdef Py_ssize_t i = 0, j
    if storage is float or storage is double:
        return look(widened(wide, x, n), n, own, value, count)
    else:
        if value == value:
            narrow(<storage *>&key, &value, 1)
            # 0 and -0 are equal.
            least = ordered(key) if value != 0 else -1
        for j in range(LANES):
            m[j] = below[j] = -32768
            few[j] = 0
            last[j] = -1
        while i < n:
            bits = <const int16_t *>(x + i)
            if n - i < LANES:
                memcpy(&last[0], bits, (n - i) * sizeof(int16_t))
                bits = &last[0]
            for j in range(LANES):
                key = ordered(bits[j])
                m[j] = key if key > m[j] else m[j]
                few[j] = few[j] + (1 if key >= least else 0)
                key = key if key < least else -32768
                below[j] = key if key > below[j] else below[j]
            i += LANES
        count[0] = 0
        for j in range(LANES):
            top = m[j] if m[j] > top else top
            after = below[j] if below[j] > after else after
            count[0] += few[j]
        key = ordered(top)
        if value_at(<const storage *>&key, 0, value) != value_at(<const storage *>&key, 0, value):
            # Among integers a NaN may be the largest.
            return look(widened(wide, x, n), n, own, value, count)
        if 0 <= own < n:
            count[0] -= 1
            if count[0] == 0:
                key = ordered(after)
        return value_at(<const storage *>&key, 0, value)


cdef inline real max_or(real a, real b, bint both) noexcept nogil:
    return b if both and b > a else a


cdef void stand(
    const storage *x, const Job *job, Py_ssize_t sample, Py_ssize_t i, real *wide, Group *group
) noexcept nogil:
    """own_class, gap, margin and rank of sample i of a group, whose logits are x."""
    cdef Py_ssize_t c = 0, n, classes = job.classes, t = class_of(job, sample)
    cdef Py_ssize_t largest = 0, rank = 0, count = 0
    cdef real value = value_at(x, t, <real>0) if t >= 0 else <real>NAN
    cdef real top = <real>(-INFINITY), most
    cdef Ranked ranked = ranked_of(job, group, i)
    if job.top_k:
        ranked.n[0] = 0
    while c < classes:
        n = min(classes - c, <Py_ssize_t>CHUNK)
        most = look_at(x + c, n, t - c, value, wide, &count)
        rank += count
        if most > top:
            top = most
            if not value > top:
                largest = c + first_of(widened(wide, x + c, n), n, top)
        if job.top_k:
            if ranked.n[0] < job.top_k or not max_or(most, value, c <= t < c + n) <= least_of(
                job, ranked
            ):
                offer(job, group, ranked, widened(wide, x + c, n), n, c)
        c += n
    group.rank[i] = rank
    group.margin[i] = <double>value - <double>top
    group.gap[i] = <double>top - <double>value
    if value > top or (value == top and t < largest):
        # Of classes that are alike the first, also where the others are in a later chunk.
        largest = t
        group.gap[i] = 0
    group.own_class[i] = largest


# ---- d) tiles --------------------------------------------------------------------------------

cdef inline void stand_begin(
    Standing *standing, const storage *x, const real *xs, const Job *job, Py_ssize_t first,
    Py_ssize_t n, Py_ssize_t width, Group *group
) noexcept nogil:
    """Of n samples from `first` on; xs: a tile that holds all their classes, or NULL."""
    cdef Py_ssize_t lane, t
    cdef int32_t *which
    cdef real *value = <real *>&standing.value[0]
    for lane in range(n):
        t = class_of(job, first + lane)
        standing.target[lane] = <int32_t>t
        if t < 0:
            value[lane] = <real>NAN
        elif xs != NULL:
            value[lane] = xs[t * width + lane]
        else:
            value[lane] = value_at(x, offset_of(job, first + lane, t), <real>0)
    for lane in range(n, LANES):
        standing.target[lane] = -1
        value[lane] = <real>NAN
    if job.top_k:
        for lane in range(n):
            ranked_of(job, group, lane).n[0] = 0
    if job.top_k and inserts(job.top_k):
        value = <real *>group.list
        which = <int32_t *>(value + job.top_k * LANES)
        for lane in range(job.top_k * LANES):
            value[lane] = <real>(-INFINITY)
            which[lane] = -1


cdef void tile_stand(
    const real *xs, Py_ssize_t m, Py_ssize_t width, Py_ssize_t first, real *top, int32_t *largest,
    Standing *standing
) noexcept nogil:
    """`tile_largest`, the largest but for that one, and the classes as large as the target.

    With first = 0 it begins.
    """
    cdef Py_ssize_t part, lane, i
    cdef int32_t c, k
    cdef real x, less
    cdef real *values = <real *>&standing.value[0]
    cdef real *seconds = <real *>&standing.second[0]
    cdef real highest[ABREAST]
    cdef real second[ABREAST]
    cdef real value[ABREAST]
    cdef int32_t count[ABREAST]
    cdef int32_t which[ABREAST]
    for part in range(LANES // ABREAST):
        lane = ABREAST * part
        for i in range(ABREAST):
            highest[i] = top[lane + i]
            value[i] = values[lane + i]
        if first == 0:
            for i in range(ABREAST):
                which[i] = count[i] = 0
                second[i] = <real>(-INFINITY)
        else:
            for i in range(ABREAST):
                which[i] = largest[lane + i]
                count[i] = standing.count[lane + i]
                second[i] = seconds[lane + i]
        for c in range(<int32_t>m):
            k = c + <int32_t>first
            for i in range(ABREAST):
                x = xs[c * width + lane + i]
                less = highest[i] if highest[i] < x else x
                # Not a choice of two, of which compilers make a branch and a store.
                which[i] = which[i] + ((k - which[i]) & -<int32_t>(x > highest[i]))
                highest[i] = x if x > highest[i] else highest[i]
                second[i] = less if less > second[i] else second[i]
                count[i] = count[i] + (x >= value[i])
        for i in range(ABREAST):
            top[lane + i] = highest[i]
            largest[lane + i] = which[i]
            seconds[lane + i] = second[i]
            standing.count[lane + i] = count[i]


cdef void tile_insert(
    const real *xs, Py_ssize_t m, Py_ssize_t width, Py_ssize_t first, Py_ssize_t k, real *value,
    int32_t *which
) noexcept nogil:
    """Classes `first` to first + m to the k likeliest of each lane.

    Place j of lane i is at value[j * LANES + i], the largest first.
    """
    cdef Py_ssize_t part, i, j, at
    cdef int32_t c, w, kept
    cdef int32_t any
    cdef real v, above
    cdef real x[ABREAST]
    for part in range(LANES // ABREAST):
        for c in range(<int32_t>m):
            w = c + <int32_t>first
            at = (k - 1) * LANES + ABREAST * part
            any = 0
            for i in range(ABREAST):
                x[i] = xs[c * width + ABREAST * part + i]
                any |= -<int32_t>(x[i] > value[at + i])
            if not any:
                continue
            for j in range(k - 1):
                for i in range(ABREAST):
                    v = value[at + i]
                    above = value[at - LANES + i]
                    kept = w if x[i] > v else which[at + i]
                    v = x[i] if x[i] > v else v
                    which[at + i] = which[at - LANES + i] if x[i] > above else kept
                    value[at + i] = above if x[i] > above else v
                at -= LANES
            for i in range(ABREAST):
                v = value[at + i]
                which[at + i] = w if x[i] > v else which[at + i]
                value[at + i] = x[i] if x[i] > v else v


cdef inline void tile_inserted(
    const Job *job, Py_ssize_t n, Group *group, real unused
) noexcept nogil:
    """The likeliest classes of n samples, from where `tile_insert` has put them."""
    cdef const real *value = <const real *>group.list
    cdef const int32_t *which = <const int32_t *>(value + job.top_k * LANES)
    cdef Py_ssize_t lane, j
    cdef Ranked ranked
    for lane in range(n):
        ranked = ranked_of(job, group, lane)
        for j in range(job.top_k):
            ranked.value[j] = value[j * LANES + lane]
            ranked.which[j] = which[j * LANES + lane]
            ranked.n[0] += which[j * LANES + lane] >= 0


cdef void tile_offer(
    const real *xs, Py_ssize_t m, Py_ssize_t width, Py_ssize_t first, Py_ssize_t n, const Job *job,
    Group *group
) noexcept nogil:
    """Classes `first` to first + m <= TILE to the likeliest of n samples."""
    cdef real most[LANES]
    cdef real row[TILE]
    cdef Py_ssize_t lane, c
    cdef Ranked ranked
    cdef real *value = <real *>group.list
    if inserts(job.top_k):
        tile_insert(
            xs, m, width, first, job.top_k, value, <int32_t *>(value + job.top_k * LANES)
        )
        return
    for lane in range(LANES):
        most[lane] = <real>(-INFINITY)
    tile_max(xs, m, width, &most[0])
    for lane in range(n):
        ranked = ranked_of(job, group, lane)
        if ranked.n[0] < job.top_k or most[lane] > least_of(job, ranked):
            for c in range(m):
                row[c] = xs[c * width + lane]
            offer(job, group, ranked, &row[0], m, first)


cdef inline void stand_end(
    const Standing *standing, const real *top, const int32_t *largest, Group *group
) noexcept nogil:
    cdef Py_ssize_t lane
    cdef const real *value = <const real *>&standing.value[0]
    cdef const real *second = <const real *>&standing.second[0]
    cdef double other
    for lane in range(LANES):
        other = second[lane] if standing.target[lane] == largest[lane] else top[lane]
        group.margin[lane] = <double>value[lane] - other
        group.gap[lane] = <double>top[lane] - <double>value[lane]
    for lane in range(LANES):
        group.gap[lane] = 0 if standing.target[lane] == largest[lane] else group.gap[lane]
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
        # As good a beginning as 0, and no call to memset.
        two[lane] = apart[lane] = <real>(-0.0)
    for c in range(m):
        prefetch_bytes(ahead + c * stride, LANES * sizeof(storage))
        for lane in range(LANES):
            a[lane] = exp_over(xs[lane], magic[lane], low_x[lane], &job.temper)
        for lane in range(LANES):
            d[lane] = distance_of(top[lane], xs[lane])
            apart[lane] = apart[lane] + a[lane] * d[lane]
            two[lane] = two[lane] + (<real>0 if tile.skip[lane] == c else a[lane])
        if c & 1 == 1 or c == m - 1:
            for lane in range(LANES):
                two_sum(<real>0, &tile.high[lane], &tile.low[lane], two[lane])
                two_sum(<real>0, &tile.distance[lane], &tile.distance_low[lane], apart[lane])
                two[lane] = apart[lane] = <real>(-0.0)
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


cdef void put_ranked(
    const Job *job, Py_ssize_t sample, Py_ssize_t at, double log_rest, Ranked ranked
) noexcept nogil:
    """Write the likeliest classes of a sample, the `at`-th of the call."""
    cdef Py_ssize_t j, c, k = job.top_k, n, base, turn
    cdef double log_prob, value
    in_order(ranked, k)
    n = ranked.n[0]
    base = offset_of(job, sample, 0)
    # NaNs come last, as they do where NumPy sorts.
    for turn in range(2 if n < k else 0):
        c = 0
        while n < k and c < job.classes:
            value = logit_at(job, base + c * job.inner)
            if value != value if turn else value == -INFINITY:
                ranked.value[n] = value
                ranked.which[n] = c
                n += 1
            c += 1
    for j in range(k):
        job.top_classes[at * k + j] = ranked.which[j]
        log_prob = (ranked.value[0] - ranked.value[j]) * job.temper.inverse
        log_prob = -(log_prob + log_rest) if j else -log_rest
        if job.wide:
            (<double *>job.top_log_probs)[at * k + j] = log_prob
        else:
            (<float *>job.top_log_probs)[at * k + j] = <float>log_prob


cdef inline double over_square(
    real unused, const Group *group, Py_ssize_t i, double a
) noexcept nogil:
    """(a**2 + squares) / total**2, where a is the sum `rest`, or the exponential left out."""
    cdef Sum over = product(a, a), under = product(group.total[i], group.total[i])
    cdef double q
    if real is double:
        under.low += 2 * group.total[i] * group.total_low[i]
        if a == group.rest[i]:
            over.low += 2 * a * group.rest_low[i]
    over = add(over, Sum(group.squares[i], 0))
    q = over.high / under.high
    return q + (fma(-q, under.high, over.high) + (over.low - q * under.low)) / under.high


cdef void score_ending(
    real unused, const Job *job, Py_ssize_t first, Py_ssize_t n, const Group *group
) noexcept nogil:
    """What is asked for of n samples: NaN, and rank -1, where there is no target or no softmax."""
    cdef Py_ssize_t i, at = job.place + first
    cdef double p, mean
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
        # are sums without it; where not, p is at most 1/2, and nothing cancels in
        # 1 - 2 p + the squares of all.
        for i in range(n):
            if group.gap[i] == 0 and group.rank[i] == 0:
                value[i] = over_square(unused, group, i, group.rest[i])
            else:
                p = exp_negative(of_target[i])
                value[i] = (1 - 2 * p) + over_square(unused, group, i, group.own[i])
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
            put_ranked(job, first + i, at + i, group.log_rest[i], ranked_of(job, group, i))
