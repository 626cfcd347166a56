// out[m][n] = sum over k of x[m][k] * scale[n][k / group] * weight[n][k], for few rows m and weights of 8 or 4 bits.
//
// With few rows all that counts is how fast weights come out of memory, so a weight is widened as little as possible:
// x is rounded once to 16-bit integers, each block of 32 values by a scale of its own (an error of 2^-16 of the block's
// largest value), and a block of products is an integer sum that becomes a float once.
//
//     weight  int8  row after row; 4-bit: byte i of a block of 16 holds value i in its low half, value i + 16 in its high
//     scale   bf16  (N, K / group)
//     M rows of x, N rows of the weight, K values in each; K and group are multiples of BLOCK.
//
// x86 needs two instructions by name.

#include <float.h>
#include <math.h>
#include <stdlib.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif
#include "weights.h"

#define ROWS_AT_ONCE 4           // of x, for each weight that is read
#define AHEAD 1024               // bytes; prefetched, for the hardware stops at every page
#define CHUNK 128                // rows of the weight that a thread takes at a time
#define WORTH_THREADS (1 << 18)  // products

typedef float floats __attribute__((vector_size(32), aligned(4)));
typedef int32_t ints __attribute__((vector_size(32), aligned(4)));
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

INLINE float total(floats v) {
    return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

// One row of the weight times `rows` rows of x.
INLINE void dot(const int rows, const int bits, const int16_t *x, const float *x_scales, const int8_t *weight,
                const uint16_t *scales, long group, long K, float *out, long N) {
    const long blocks = K / BLOCK, blocks_in_group = group / BLOCK, bytes_in_block = BLOCK * bits / 8;
    floats sums[ROWS_AT_ONCE] = {0};
    for (long first = 0; first < blocks; first += blocks_in_group) {
        const float scale = bf16(*scales++);
        for (long b = first; b < first + blocks_in_group; b++, weight += bytes_in_block) {
            __builtin_prefetch(weight + AHEAD);
            shorts low, high = widen(weight);
            if (bits == 8) {
                low = high;
                high = widen(weight + 16);
            } else {
                low = (high << 12) >> 12;
                high = high >> 4;
            }
#pragma GCC unroll 4
            for (int m = 0; m < rows; m++) {
                const shorts *at = (const shorts *)(x + m * K + b * BLOCK);
                ints products = multiply_pairs(low, at[0]) + multiply_pairs(high, at[1]);
                sums[m] += scale * x_scales[m * blocks + b] * __builtin_convertvector(products, floats);
            }
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < rows; m++) out[m * N] = total(sums[m]);
}

// The same with `rows` and `bits` known to the compiler, and the group where it is a block.
static void dots(long rows, int bits, const int16_t *x, const float *x_scales, const int8_t *weight,
                 const uint16_t *scales, long group, long K, float *out, long N) {
#define CASE(ROWS) \
    case ROWS: \
        if (bits == 8) dot(ROWS, 8, x, x_scales, weight, scales, group, K, out, N); \
        else if (group == BLOCK) dot(ROWS, 4, x, x_scales, weight, scales, BLOCK, K, out, N); \
        else dot(ROWS, 4, x, x_scales, weight, scales, group, K, out, N); \
        break
    switch (rows) {
        CASE(1);
        CASE(2);
        CASE(3);
        CASE(4);
    }
}

// Nearest multiples of each block's scale; a block with an infinity or a NaN makes every product with it NaN.
static void round_to_shorts(const float *x, long count, int16_t *rounded, float *x_scales) {
    for (long b = 0; b < count / BLOCK; b++, x += BLOCK, rounded += BLOCK) {
        float largest = 0, poison = 0;
        for (int i = 0; i < BLOCK; i++) {
            largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
            poison += 0 * x[i];
        }
        x_scales[b] = largest / INT16_MAX + poison;
        const float inverse = poison == 0 && x_scales[b] >= FLT_MIN ? 1 / x_scales[b] : 0;
        for (int i = 0; i < BLOCK; i++) rounded[i] = inverse > 0 ? (int16_t)rintf(x[i] * inverse) : 0;
    }
}

// As `grouped_gemm`, of INT8 or INT4 in rows. Returns 0, or 1 where there is no memory for the rounded x.
int quantised_linear(int dtype, int bias_dtype, int threads, long experts, long N, long K, long group,
                     const int32_t *offsets, const float *x, const int8_t *weight, const uint16_t *scales,
                     const void *bias, float *out) {
    const long row_bytes = K * bits_of(dtype) / 8, groups = K / group, blocks = K / BLOCK, M = offsets[experts];
    const long chunks = (N + CHUNK - 1) / CHUNK;
    int16_t *rounded = malloc(M * K * sizeof *rounded);
    float *x_scales = malloc(M * blocks * sizeof *x_scales);
    if (!rounded || !x_scales) {
        free(rounded);
        free(x_scales);
        return 1;
    }
    round_to_shorts(x, M * K, rounded, x_scales);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (M * N * K > WORTH_THREADS)
    for (long task = 0; task < experts * chunks; task++) {
        const long expert = task / chunks, first = task % chunks * CHUNK, last = smaller(first + CHUNK, N);
        const long start = offsets[expert], end = offsets[expert + 1];
        if (start == end) continue;
        for (long n = first; n < last; n++) {
            const long row = expert * N + n;
            const float added = bias ? element(bias_dtype, bias, row) : 0;
            for (long m = start; m < end; m += ROWS_AT_ONCE)
                dots(smaller(ROWS_AT_ONCE, end - m), bits_of(dtype), rounded + m * K, x_scales + m * blocks,
                     weight + row * row_bytes, scales + row * groups, group, K, out + m * N + n, N);
            if (bias)
                for (long m = start; m < end; m++) out[m * N + n] += added;
        }
    }
    free(rounded);
    free(x_scales);
    return 0;
}
