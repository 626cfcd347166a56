// out[m][n] = sum over k of x[m][k] * scale[n][k / group] * weight[n][k], for few rows m and weights of 8 or 4 bits.
//
// With few rows all that counts is how fast weights come out of memory, so as little as possible is done to each: x is
// rounded once to 16-bit integers, a row by one scale (an error of 2^-16 of the row's largest value, where bfloat16 makes
// one of 2^-9 of each), and the products of a unit are an integer sum that becomes a float once.
//
//     weight  int8  row after row; 4-bit: byte i of a block of 16 holds value i in its low half, value i + 16 in its high
//     scale   bf16  (N, K / group)
//     M rows of x, N rows of the weight, K values in each; K is a multiple of UNIT, N of LANES, and so is group of UNIT,
//     or, with 4 bits, UNIT of group.
//
// x86 needs a few instructions by name.

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include "activations.h"

#define PARTS 4                     // vectors of 16-bit values in a unit
#define UNIT (PARTS * 2 * LANES)    // values
#define AT_ONCE 4                   // rows of the weight, far apart: memory is read faster as a few long streams than as one
#define ROWS_AT_ONCE (LANES >= 16 ? 4 : 2)  // of x, for each weight that is read: as many sums as registers allow
#define CHUNK 128                   // rows of the weight that a thread takes at a time
#define WORTH_THREADS (1 << 18)     // products

typedef int16_t shorts __attribute__((vector_size(4 * LANES), aligned(2)));
typedef int8_t chars __attribute__((vector_size(2 * LANES), aligned(1)));

INLINE shorts widen(const int8_t *at) {
#if defined(__AVX512BW__)
    return (shorts)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)at));
#elif defined(__AVX2__)
    return (shorts)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)at));
#else
    return __builtin_convertvector(*(const chars *)at, shorts);
#endif
}

// sums + products of neighbours, added in pairs.
INLINE integers add_pairs(integers sums, shorts a, shorts b) {
#if defined(__AVX512VNNI__)
    return (integers)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return sums + (integers)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return sums + (integers)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    integers left = (integers)a, right = (integers)b;
    return sums + ((left << 16) >> 16) * ((right << 16) >> 16) + (left >> 16) * (right >> 16);
#endif
}

// A unit of the weight; of 4-bit values part i holds half-byte i of each 16-bit word.
INLINE void load_unit(int dtype, const int8_t *weight, shorts parts[PARTS]) {
    const shorts fours = *(const shorts *)weight;
    for (int i = 0; i < PARTS; i++)
        parts[i] = dtype == INT8 ? widen(weight + 2 * LANES * i) : (fours << (12 - 4 * i)) >> 12;
}

// The scales of a unit, each in its share of the lanes: a bfloat16 is the upper half of a float.
INLINE vector load_scales(int count, const uint16_t *scales) {
    if (count == 1) return (vector)((words)((shorts){0} + (int16_t)*scales) << 16);
#if defined(__AVX2__)
    // Bytes of the float from those of all scales, the lower two from none.
    const words which = *(const words *)LANE / (LANES / count), bytes = (2 * which + 1) << 24 | which << 17 | 0x8080;
    int64_t all = 0;
    memcpy(&all, scales, count * sizeof *scales);
#if defined(__AVX512BW__)
    return (vector)_mm512_shuffle_epi8(_mm512_set1_epi64(all), (__m512i)bytes);
#else
    return (vector)_mm256_shuffle_epi8(_mm256_set1_epi64x(all), (__m256i)bytes);
#endif
#else
    vector spread;
    for (int i = 0; i < LANES; i++) spread[i] = bf16(scales[i / (LANES / count)]);
    return spread;
#endif
}

// AT_ONCE rows of the weight, `apart` from one another, times `rows` rows of x. Unrolled, its sums stay in registers.
// A unit has `shares` scales, or a scale one or several units.
INLINE void dot(int rows, int dtype, int shares, const int16_t *x, const float *x_scales, const int8_t *weight,
                const uint16_t *scales, long apart, long group, long K, float *out, long N) {
    const long between = apart * K * bits_of(dtype) / 8, scales_between = apart * (K / group);
    const long units_of_a_scale = shares > 1 ? 1 : group / UNIT;
    vector sums[AT_ONCE][ROWS_AT_ONCE] = {0};
    for (long first = 0; first < K / UNIT; first += units_of_a_scale, scales += shares) {
        vector scale[AT_ONCE];
#pragma GCC unroll 4
        for (int n = 0; n < AT_ONCE; n++) scale[n] = load_scales(shares, scales + n * scales_between);
        for (long u = first; u < first + units_of_a_scale; u++, weight += UNIT * bits_of(dtype) / 8) {
#pragma GCC unroll 4
            for (int n = 0; n < AT_ONCE; n++) {
                shorts parts[PARTS];
                load_unit(dtype, weight + n * between, parts);
#pragma GCC unroll 4
                for (int m = 0; m < rows; m++) {
                    const shorts *at = (const shorts *)(x + m * K + u * UNIT);
                    integers products = {0};
                    for (int i = 0; i < PARTS; i++) products = add_pairs(products, parts[i], at[i]);
                    sums[n][m] += scale[n] * __builtin_convertvector(products, vector);
                }
            }
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
        for (int n = 0; n < AT_ONCE; n++) out[m * N + n * apart] = x_scales[m] * total(sums[n][m]);
}

// The same with what chooses instructions known to the compiler.
static void dots(long rows, int dtype, const int16_t *x, const float *x_scales, const int8_t *weight,
                 const uint16_t *scales, long apart, long group, long K, float *out, long N) {
    const long shares = group < UNIT ? UNIT / group : 1;
#define CASE(ROWS, DTYPE, SHARES) \
    dot(ROWS, DTYPE, SHARES, x, x_scales, weight, scales, apart, group, K, out, N)
#define CASES(ROWS) \
    if (dtype == INT8) CASE(ROWS, INT8, 1); \
    else if (shares == 4 && LANES >= 16) CASE(ROWS, INT4, LANES >= 16 ? 4 : 1); \
    else if (shares == 2 && LANES >= 8) CASE(ROWS, INT4, LANES >= 8 ? 2 : 1); \
    else CASE(ROWS, INT4, 1)
    if (rows == 1) { CASES(1); }
    else if (rows == 2) { CASES(2); }
    else if (rows == 3) { CASES(ROWS_AT_ONCE < 3 ? 2 : 3); }
    else { CASES(ROWS_AT_ONCE); }
#undef CASES
#undef CASE
}

// A unit of x in the order in which `load_unit` gives 4-bit weights.
INLINE void reorder(const int16_t *from, int16_t *to) {
    for (int part = 0; part < PARTS; part++)
        for (int word = 0; word < 2 * LANES; word++) {
            const int byte = 2 * word + part / 2, half = part % 2;
            *to++ = from[byte / (BLOCK / 2) * BLOCK + half * (BLOCK / 2) + byte % (BLOCK / 2)];
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

int quantised_unit(void) { return UNIT; }

// As `grouped_gemm`, of INT8 or INT4 in rows. Returns 0, or 1 where there is no memory for the rounded x.
int quantised_linear(int dtype, int bias_dtype, int threads, long experts, long N, long K, long group,
                     int activation, const int32_t *offsets, const float *x, const int8_t *weight, const uint16_t *scales,
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
        activate(activation, end - start, last - first, out + start * N + first, N);
    }
    free(rounded);
    free(x_scales);
    return 0;
}
