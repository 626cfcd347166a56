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
// Portable C with GCC's vector extensions; x86 needs two instructions by name.

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define BLOCK 32
#define ROWS_AT_ONCE 4           // of x, for each weight that is read
#define AHEAD 1024               // bytes; prefetched, for the hardware stops at every page
#define CHUNK 128                // rows of the weight that a thread takes at a time
#define WORTH_THREADS (1 << 18)  // products
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(32), aligned(4)));
typedef int32_t ints __attribute__((vector_size(32), aligned(4)));
typedef int16_t shorts __attribute__((vector_size(32), aligned(2)));
typedef int8_t bytes __attribute__((vector_size(16), aligned(1)));

INLINE shorts widen(const int8_t *at) {
#ifdef __AVX2__
    return (shorts)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)at));
#else
    return __builtin_convertvector(*(const bytes *)at, shorts);
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

INLINE float bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
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

// Each of `count` experts times its rows bounds[i] .. bounds[i + 1] of x; weight and scale hold all experts.
// Returns 0, or 1 where there is no memory for the rounded x.
int quantised_linear(int bits, int threads, long count, long N, long K, long group, const long *experts,
                     const long *bounds, const int8_t *weight, const uint16_t *scales, const float *x, float *out) {
    const long row_bytes = K * bits / 8, groups = K / group, blocks = K / BLOCK, M = bounds[count];
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
    for (long task = 0; task < count * chunks; task++) {
        const long i = task / chunks, first = task % chunks * CHUNK, end = first + CHUNK < N ? first + CHUNK : N;
        for (long n = first; n < end; n++)
            for (long m = bounds[i]; m < bounds[i + 1]; m += ROWS_AT_ONCE) {
                const long rows = bounds[i + 1] - m < ROWS_AT_ONCE ? bounds[i + 1] - m : ROWS_AT_ONCE;
                const long row = experts[i] * N + n;
                dots(rows, bits, rounded + m * K, x_scales + m * blocks, weight + row * row_bytes,
                     scales + row * groups, group, K, out + m * N + n, N);
            }
    }
    free(rounded);
    free(x_scales);
    return 0;
}

// out[n][k] = scale[n][k / group] * weight[n][k]
void dequantise(int bits, int threads, long N, long K, long group, const int8_t *weight, const uint16_t *scales,
                float *out) {
    const long blocks = K / BLOCK, bytes_in_block = BLOCK * bits / 8;
#pragma omp parallel for num_threads(threads) if (N * K > WORTH_THREADS)
    for (long n = 0; n < N; n++)
        for (long b = 0; b < blocks; b++) {
            const int8_t *from = weight + (n * blocks + b) * bytes_in_block;
            const float scale = bf16(scales[(n * K + b * BLOCK) / group]);
            float *to = out + n * K + b * BLOCK;
            if (bits == 8)
                for (int i = 0; i < BLOCK; i++) to[i] = scale * from[i];
            else
                for (int i = 0; i < BLOCK / 2; i++) {
                    to[i] = scale * ((int8_t)(from[i] << 4) >> 4);
                    to[i + BLOCK / 2] = scale * (from[i] >> 4);
                }
        }
}
