/* The processor: which micro-architecture level of x86-64 it has. And the compiler's name.
 *
 * Layout: a) what a level needs, b) judging a processor, c) reading the one at hand, d) the
 * compiler.
 *
 * A level's compiler options permit the compiler any instruction of the level. So all of its
 * features are looked for: in the processor (CPUID) and, where there are registers to save, in the
 * operating system (XCR0). The lists are those of the System V psABI for x86-64, section 3.1.1,
 * and XSAVE, which compilers add to level 3.
 *
 * To add a level of another architecture: a function here that tells whether the processor has it.
 */

#ifndef FASTLOSS_CPU_H
#define FASTLOSS_CPU_H

#include <stdint.h>

/* ---- a) what a level needs ------------------------------------------------------------------ */

/* What a processor has, or what a level needs. */
typedef struct {
    uint32_t leaf1_ecx; /* CPUID 1 */
    uint32_t leaf7_ebx; /* CPUID 7, subleaf 0 */
    uint32_t ext1_ecx;  /* CPUID 0x80000001 */
    uint32_t xcr0;      /* registers that the operating system saves */
} fastloss_cpu;

#define FASTLOSS_BIT(n) ((uint32_t)1 << (n))

/* Levels 2, 3 and 4. What level 1 needs, every x86-64 processor has. */
static const fastloss_cpu fastloss_levels[] = {
    {
        .leaf1_ecx = FASTLOSS_BIT(0)     /* SSE3 */
                     | FASTLOSS_BIT(9)   /* SSSE3 */
                     | FASTLOSS_BIT(13)  /* CMPXCHG16B */
                     | FASTLOSS_BIT(19)  /* SSE4.1 */
                     | FASTLOSS_BIT(20)  /* SSE4.2 */
                     | FASTLOSS_BIT(23), /* POPCNT */
        .ext1_ecx = FASTLOSS_BIT(0),     /* LAHF, SAHF */
    },
    {
        .leaf1_ecx = FASTLOSS_BIT(12)    /* FMA */
                     | FASTLOSS_BIT(22)  /* MOVBE */
                     | FASTLOSS_BIT(26)  /* XSAVE */
                     | FASTLOSS_BIT(27)  /* OSXSAVE */
                     | FASTLOSS_BIT(28)  /* AVX */
                     | FASTLOSS_BIT(29), /* F16C */
        .leaf7_ebx = FASTLOSS_BIT(3)     /* BMI1 */
                     | FASTLOSS_BIT(5)   /* AVX2 */
                     | FASTLOSS_BIT(8),  /* BMI2 */
        .ext1_ecx = FASTLOSS_BIT(5),     /* LZCNT */
        .xcr0 = FASTLOSS_BIT(1)          /* SSE registers */
                | FASTLOSS_BIT(2),       /* AVX registers */
    },
    {
        .leaf7_ebx = FASTLOSS_BIT(16)    /* AVX512F */
                     | FASTLOSS_BIT(17)  /* AVX512DQ */
                     | FASTLOSS_BIT(28)  /* AVX512CD */
                     | FASTLOSS_BIT(30)  /* AVX512BW */
                     | FASTLOSS_BIT(31), /* AVX512VL */
        .xcr0 = FASTLOSS_BIT(5)          /* mask registers */
                | FASTLOSS_BIT(6)        /* upper halves of ZMM0 to 15 */
                | FASTLOSS_BIT(7),       /* ZMM16 to 31 */
    },
};

/* ---- b) judging a processor ----------------------------------------------------------------- */

/* Whether a register has all bits of a mask. */
static inline int fastloss_has(uint32_t value, uint32_t mask) {
    return (value & mask) == mask;
}

/* Highest level of which the processor, and the system, have every feature. */
static inline int fastloss_x86_64_level_of(fastloss_cpu cpu) {
    int level = 1;
    for (int i = 0; i < (int)(sizeof fastloss_levels / sizeof *fastloss_levels); i++) {
        const fastloss_cpu *needs = &fastloss_levels[i];
        if (!(fastloss_has(cpu.leaf1_ecx, needs->leaf1_ecx) &&
              fastloss_has(cpu.leaf7_ebx, needs->leaf7_ebx) &&
              fastloss_has(cpu.ext1_ecx, needs->ext1_ecx) && fastloss_has(cpu.xcr0, needs->xcr0)))
            break;
        level = i + 2;
    }
    return level;
}

/* ---- c) reading the processor at hand ------------------------------------------------------- */

#if defined(__x86_64__) || defined(_M_X64)

#define FASTLOSS_X86_64 1

#if defined(__GNUC__) || defined(__clang__)

#include <cpuid.h>

/* eax, ebx, ecx and edx of a leaf's subleaf 0; zeros for a leaf that the processor lacks. */
static inline void fastloss_cpuid(uint32_t leaf, uint32_t registers[4]) {
    registers[0] = registers[1] = registers[2] = registers[3] = 0;
    /* __get_cpuid_max says whether the leaf exists: of one beyond the last, Intel's processors
     * return the last. */
    if (__get_cpuid_max(leaf & 0x80000000, 0) >= leaf)
        __cpuid_count(leaf, 0, registers[0], registers[1], registers[2], registers[3]);
}

static inline uint32_t fastloss_xgetbv(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

#else /* MSVC */

#include <immintrin.h>
#include <intrin.h>

static inline void fastloss_cpuid(uint32_t leaf, uint32_t registers[4]) {
    int found[4];
    registers[0] = registers[1] = registers[2] = registers[3] = 0;
    __cpuid(found, (int)(leaf & 0x80000000));
    if ((uint32_t)found[0] < leaf) return;
    __cpuidex(found, (int)leaf, 0);
    for (int i = 0; i < 4; i++) registers[i] = (uint32_t)found[i];
}

static inline uint32_t fastloss_xgetbv(void) {
    return (uint32_t)_xgetbv(0);
}

#endif

static inline fastloss_cpu fastloss_read_cpu(void) {
    fastloss_cpu cpu = {0, 0, 0, 0};
    uint32_t registers[4];
    fastloss_cpuid(1, registers);
    cpu.leaf1_ecx = registers[2];
    fastloss_cpuid(7, registers);
    cpu.leaf7_ebx = registers[1];
    fastloss_cpuid(0x80000001, registers);
    cpu.ext1_ecx = registers[2];
    /* Without OSXSAVE, XGETBV is no valid instruction. */
    if (fastloss_has(cpu.leaf1_ecx, FASTLOSS_BIT(27))) cpu.xcr0 = fastloss_xgetbv();
    return cpu;
}

#else

#define FASTLOSS_X86_64 0

static inline fastloss_cpu fastloss_read_cpu(void) {
    fastloss_cpu cpu = {0, 0, 0, 0};
    return cpu;
}

#endif

/* ---- d) the compiler ------------------------------------------------------------------------ */

#if defined(__clang__)
#define FASTLOSS_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define FASTLOSS_COMPILER "gcc " __VERSION__
#elif defined(_MSC_VER)
#define FASTLOSS_COMPILER "MSVC"
#else
#define FASTLOSS_COMPILER "unknown"
#endif

#endif
