// out[m][n] = sum over k of x[m][k] * scale[n][k / group] * weight[n][k], for few rows m and weights of 8 or 4 bits.
//
// With few rows all that counts is how fast weights come out of memory, so as little as possible is done to each: x is
// rounded once to 16-bit integers, a row by one scale (an error of 2^-16 of the row's largest value, where bfloat16 makes
// one of 2^-9 of each), and the products of a unit are an integer sum that becomes a float once.
//
//     weight  int8  row after row; 4-bit: byte i of a block of 16 holds value i in its low half, value i + 16 in its high
//     scale   bf16  (N, K / group)
//     M rows of x, N rows of the weight, K values in each; K is a multiple of UNIT, N of AT_ONCE, group of
//     UNIT, or BLOCK itself with 4 bits.
//
// x86 needs three instructions by name.

#include <float.h>
#include <math.h>
#include <stdlib.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif
#include "weights.h"

#define UNIT (2 * BLOCK)
#define PARTS 4                  // vectors of 16-bit values in a unit
#define AT_ONCE 4                // rows of the weight, far apart: memory is read faster as a few long streams than as one
#define ROWS_AT_ONCE 2           // of x, for each weight that is read
#define CHUNK 128                // rows of the weight that a thread takes at a time
#define WORTH_THREADS (1 << 18)  // products

typedef float floats __attribute__((vector_size(32), aligned(4)));
typedef int32_t ints __attribute__((vector_size(32), aligned(4)));
typedef uint32_t pairs __attribute__((vector_size(32), aligned(4)));
typedef int16_t shorts __attribute__((vector_size(32), aligned(2)));
typedef int8_t chars __attribute__((vector_size(16), aligned(1)));

INLINE shorts widen(const int8_t *at) {
#ifdef __AVX2__
    return (shorts)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)at));
#else
    return __builtin_convertvector(*(const chars *)at, shorts);
#endif
}

// Products of neighbours, added in pairs.
INLINE ints multiply_pairs(shorts a, shorts b) {
#ifdef __AVX2__
    return (ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    ints left = (ints)a, right = (ints)b;
    return ((left << 16) >> 16) * ((right << 16) >> 16) + (left >> 16) * (right >> 16);
#endif
}

// A unit of the weight; of 4-bit values part i holds half-byte i of each 16-bit word of its two blocks.
INLINE void load_unit(int dtype, const int8_t *weight, shorts parts[PARTS]) {
    const shorts fours = *(const shorts *)weight;
    for (int i = 0; i < PARTS; i++) parts[i] = dtype == INT8 ? widen(weight + 16 * i) : (fours << (12 - 4 * i)) >> 12;
}

// The scale of a unit, or those of its two blocks, each in half of the lanes: a bfloat16 is the upper half of a float.
INLINE floats load_scale(int is_paired, const uint16_t *scales) {
    if (!is_paired) return (floats)((pairs)((shorts){0} + (int16_t)*scales) << 16);
#ifdef __AVX2__
    const __m256i halves = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 0, 1, -1, -1, 0, 1, -1, -1, 0, 1,
                                            -1, -1, 2, 3, -1, -1, 2, 3, -1, -1, 2, 3, -1, -1, 2, 3);
    return (floats)_mm256_shuffle_epi8((__m256i)_mm256_broadcast_ss((const float *)scales), halves);
#else
    uint32_t both;
    memcpy(&both, scales, sizeof both);
    return (floats)((((pairs){0} + both) << (pairs){16, 16, 16, 16, 0, 0, 0, 0}) & 0xffff0000u);
#endif
}

INLINE float total(floats v) {
    return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

// AT_ONCE rows of the weight, `apart` from one another, times `rows` rows of x. Unrolled, its sums stay in registers.
INLINE void dot(int rows, int dtype, int is_paired, const int16_t *x, const float *x_scales, const int8_t *weight,
                const uint16_t *scales, long apart, long group, long K, float *out, long N) {
    const long between = apart * K * bits_of(dtype) / 8, scales_between = apart * (K / group);
    const long units_of_a_scale = is_paired ? 1 : group / UNIT;
    floats sums[AT_ONCE][ROWS_AT_ONCE] = {0};
    for (long first = 0; first < K / UNIT; first += units_of_a_scale, scales += 1 + is_paired) {
        floats scale[AT_ONCE];
#pragma GCC unroll 4
        for (int n = 0; n < AT_ONCE; n++) scale[n] = load_scale(is_paired, scales + n * scales_between);
        for (long u = first; u < first + units_of_a_scale; u++, weight += UNIT * bits_of(dtype) / 8) {
#pragma GCC unroll 4
            for (int n = 0; n < AT_ONCE; n++) {
                shorts parts[PARTS];
                load_unit(dtype, weight + n * between, parts);
#pragma GCC unroll 2
                for (int m = 0; m < rows; m++) {
                    const shorts *at = (const shorts *)(x + m * K + u * UNIT);
                    ints products = {0};
                    for (int i = 0; i < PARTS; i++) products += multiply_pairs(parts[i], at[i]);
                    sums[n][m] += scale[n] * __builtin_convertvector(products, floats);
                }
            }
        }
    }
#pragma GCC unroll 2
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
        for (int n = 0; n < AT_ONCE; n++) out[m * N + n * apart] = x_scales[m] * total(sums[n][m]);
}

// The same with what chooses instructions known to the compiler.
static void dots(long rows, int dtype, const int16_t *x, const float *x_scales, const int8_t *weight,
                 const uint16_t *scales, long apart, long group, long K, float *out, long N) {
#define CASE(ROWS, DTYPE, IS_PAIRED) \
    dot(ROWS, DTYPE, IS_PAIRED, x, x_scales, weight, scales, apart, group, K, out, N)
#define CASES(ROWS) \
    if (dtype == INT8) CASE(ROWS, INT8, 0); \
    else if (group == BLOCK) CASE(ROWS, INT4, 1); \
    else CASE(ROWS, INT4, 0)
    if (rows == 1) { CASES(1); } else { CASES(2); }
#undef CASES
#undef CASE
}

// A unit of x in the order in which `load_unit` gives 4-bit weights: bytes are even or odd in their words.
INLINE void reorder(const int16_t *from, int16_t *to) {
    for (int block = 0; block < 2; block++)
        for (int half = 0; half < 2; half++)
            for (int word = 0; word < BLOCK / 4; word++) {
                const int16_t *values = from + block * BLOCK + half * BLOCK / 2 + 2 * word;
                int16_t *even = to + half * BLOCK / 2 + block * BLOCK / 4 + word, *odd = even + BLOCK;
                *even = values[0];
                *odd = values[1];
            }
}

// Nearest multiples of each row's scale; a row with an infinity or a NaN makes every product with it NaN.
static void round_to_shorts(int dtype, const float *x, long M, long K, int16_t *rounded, float *x_scales) {
    for (long m = 0; m < M; m++, x += K, rounded += K) {
        int32_t largest = 0;  // the magnitudes' bits, which are ordered as they are
        for (long k = 0; k < K; k++) {
            int32_t bits;
            memcpy(&bits, x + k, sizeof bits);
            bits &= INT32_MAX;
            largest = bits > largest ? bits : largest;
        }
        float magnitude;
        memcpy(&magnitude, &largest, sizeof magnitude);
        x_scales[m] = isfinite(magnitude) ? magnitude / INT16_MAX : NAN;
        const float factor = x_scales[m] >= FLT_MIN ? 1 / x_scales[m] : 0;
        for (long k = 0; k < K; k += UNIT) {
            int16_t in_order[UNIT] = {0};
            if (factor > 0)
                for (int i = 0; i < UNIT; i++) in_order[i] = (int16_t)rintf(x[k + i] * factor);
            if (dtype == INT4) reorder(in_order, rounded + k);
            else memcpy(rounded + k, in_order, sizeof in_order);
        }
    }
}

// As `grouped_gemm`, of INT8 or INT4 in rows. Returns 0, or 1 where there is no memory for the rounded x.
int quantised_linear(int dtype, int bias_dtype, int threads, long experts, long N, long K, long group,
                     const int32_t *offsets, const float *x, const int8_t *weight, const uint16_t *scales,
                     const void *bias, float *out) {
    const long row_bytes = K * bits_of(dtype) / 8, groups = K / group, M = offsets[experts];
    const long chunks = (N + CHUNK - 1) / CHUNK;
    int16_t *rounded = malloc(M * K * sizeof *rounded);
    float *x_scales = malloc(M * sizeof *x_scales);
    if (!rounded || !x_scales) {
        free(rounded);
        free(x_scales);
        return 1;
    }
    round_to_shorts(dtype, x, M, K, rounded, x_scales);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (M * N * K > WORTH_THREADS)
    for (long task = 0; task < experts * chunks; task++) {
        const long expert = task / chunks, first = task % chunks * CHUNK, last = smaller(first + CHUNK, N);
        const long start = offsets[expert], end = offsets[expert + 1];
        if (start == end) continue;
        const long apart = (last - first) / AT_ONCE;
        for (long n = first; n < first + apart; n++) {
            const long row = expert * N + n;
            for (long m = start; m < end; m += ROWS_AT_ONCE)
                dots(smaller(ROWS_AT_ONCE, end - m), dtype, rounded + m * K, x_scales + m,
                     weight + row * row_bytes, scales + row * groups, apart, group, K, out + m * N + n, N);
        }
        if (bias)
            for (long m = start; m < end; m++)
                for (long n = first; n < last; n++) out[m * N + n] += element(bias_dtype, bias, expert * N + n);
    }
    free(rounded);
    free(x_scales);
    return 0;
}
