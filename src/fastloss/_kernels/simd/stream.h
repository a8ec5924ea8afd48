/* Lines of memory: fetched ahead, and written past the caches.
 *
 * The portable forms fetch nothing and write with memcpy. */

#ifndef FASTLOSS_SIMD_STREAM_H
#define FASTLOSS_SIMD_STREAM_H

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__)
#define fastloss_prefetch(p) __builtin_prefetch((p), 0, 3)
#define fastloss_effect() __asm__ volatile("")
#else
#define fastloss_prefetch(p) ((void)(p))
#define fastloss_effect() ((void)0)
#endif

/* n bytes. GCC leaves out calls of what has no effect, and fetching has none in its eyes. */
static inline void fastloss_prefetch_bytes(const void *p, size_t n) {
    size_t i;
    for (i = 0; i < n; i += 64) fastloss_prefetch((const char *)p + i);
    fastloss_effect();
}

/* Copy past the caches: lines that are written whole need not be read first. */
static inline void fastloss_stream(void *to, const void *from, size_t n) {
#if defined(__SSE2__)
    char *d = (char *)to;
    const char *s = (const char *)from;
    size_t head = (size_t)(-(uintptr_t)d & 63);
    size_t i;
    if (n < 256) {
        memcpy(d, s, n);
        return;
    }
    memcpy(d, s, head);
    d += head;
    s += head;
    n -= head;
    for (i = 0; i + 64 <= n; i += 64) {
#if defined(__AVX512F__)
        _mm512_stream_si512((__m512i *)(d + i), _mm512_loadu_si512((const void *)(s + i)));
#else
        __m128i a = _mm_loadu_si128((const __m128i *)(s + i));
        __m128i b = _mm_loadu_si128((const __m128i *)(s + i + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(s + i + 32));
        __m128i e = _mm_loadu_si128((const __m128i *)(s + i + 48));
        _mm_stream_si128((__m128i *)(d + i), a);
        _mm_stream_si128((__m128i *)(d + i + 16), b);
        _mm_stream_si128((__m128i *)(d + i + 32), c);
        _mm_stream_si128((__m128i *)(d + i + 48), e);
#endif
    }
    memcpy(d + i, s + i, n - i);
#else
    memcpy(to, from, n);
#endif
}

/* `lines` whole cache lines, a constant where it is inlined: past the caches if `stream`. */
static inline void fastloss_put_lines(char *to, const void *from, int lines, int stream) {
#if defined(__SSE2__)
    const char *s = (const char *)from;
    int i;
    if (stream)
#if defined(__AVX512F__)
        for (i = 0; i < 64 * lines; i += 64)
            _mm512_stream_si512((__m512i *)(to + i), _mm512_loadu_si512((const void *)(s + i)));
#else
        for (i = 0; i < 64 * lines; i += 16)
            _mm_stream_si128((__m128i *)(to + i), _mm_loadu_si128((const __m128i *)(s + i)));
#endif
    else
#else
    (void)stream;
#endif
        memcpy(to, from, 64 * (size_t)lines);
}

/* Order streamed lines before whatever tells another thread that they are there. */
static inline void fastloss_stream_end(void) {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

#endif
