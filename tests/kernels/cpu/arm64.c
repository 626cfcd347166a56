/* The compiled products, in every dtype and layout, against sums in double; prints each relative error. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "weights.h"

enum { ROWS, COLUMNS, PANELS, LAYOUTS };
enum { EXPERTS = 3, N = 64, K = 128, M = 46, LEAST_GROUP = 32 };
static const int32_t OFFSETS[EXPERTS + 1] = {0, 5, 5, M};  /* few rows, none, and many */

int panel_width(void);
int grouped_gemm(int, int, int, int, long, long, long, long, int, const int32_t *, const float *, const void *,
                  const uint16_t *, const void *, float *);
int quantised_linear(int, int, int, long, long, long, long, int, const int32_t *, const float *, const int8_t *,
                     const uint16_t *, const void *, float *);

static float x[M * K], bias[EXPERTS * N], weights[EXPERTS][N][K], out[M * N], again[M * N];
static char stored[EXPERTS * N * K * 4];
static uint16_t scales[EXPERTS * N * K / LEAST_GROUP];

static long group_of(int dtype) { return dtype < INT8 ? 1 : dtype == INT8 ? 2 * LEAST_GROUP : LEAST_GROUP; }

static uint16_t upper_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits >> 16;
}

/* Stores `value`, an integer of 4 bits, and returns what it stands for. */
static float store(int dtype, long index, int value) {
    if (dtype == FLOAT32) ((float *)stored)[index] = value;
    if (dtype == BFLOAT16) ((uint16_t *)stored)[index] = upper_half(value);
    if (dtype == FLOAT16) ((_Float16 *)stored)[index] = value;
    if (dtype < INT8) return value;
    long group = index / group_of(dtype);
    float scale = ldexpf(1, -(int)(group % 5));
    scales[group] = upper_half(scale);
    if (dtype == INT8) stored[index] = value;
    else stored[index / 32 * 16 + index % 16] |= (value & 15) << (index % 32 < 16 ? 0 : 4);
    return value * scale;
}

static long place(int dtype, int layout, long e, long n, long k) {
    if (layout == ROWS) return (e * N + n) * K + k;
    if (layout == COLUMNS) return (e * K + k) * N + n;
    long width = panel_width(), panel = (e * N + n) / width * width * K;
    if (dtype == BFLOAT16) return panel + (k / 2 * width + n % width) * 2 + k % 2;
    return panel + k * width + n % width;
}

static double error(void) {
    double wrong = 0, all = 0;
    for (long e = 0; e < EXPERTS; e++)
        for (long m = OFFSETS[e]; m < OFFSETS[e + 1]; m++)
            for (long n = 0; n < N; n++) {
                double sum = bias[e * N + n];
                for (long k = 0; k < K; k++) sum += (double)x[m * K + k] * weights[e][n][k];
                wrong += (out[m * N + n] - sum) * (out[m * N + n] - sum), all += sum * sum;
            }
    return sqrt(wrong / all);
}

static void run(int integers, int dtype, int layout, int threads, float *to) {
    if (integers)
        quantised_linear(dtype, FLOAT32, threads, EXPERTS, N, K, group_of(dtype), 0, OFFSETS, x, (const int8_t *)stored,
                         scales, bias, to);
    else
        grouped_gemm(dtype, layout, FLOAT32, threads, EXPERTS, N, K, group_of(dtype), 0, OFFSETS, x, stored, scales, bias,
                     to);
}

int main(void) {
    for (int i = 0; i < M * K; i++) x[i] = rand() / (float)RAND_MAX - 0.5f;
    for (int i = 0; i < EXPERTS * N; i++) bias[i] = rand() / (float)RAND_MAX;
    for (int dtype = FLOAT32; dtype <= INT4; dtype++)
        for (int layout = ROWS; layout < LAYOUTS; layout++) {
            if (dtype >= INT8 && layout == PANELS) continue;
            memset(stored, 0, sizeof stored);
            for (long e = 0; e < EXPERTS; e++)
                for (long n = 0; n < N; n++)
                    for (long k = 0; k < K; k++)
                        weights[e][n][k] = store(dtype, place(dtype, layout, e, n, k), rand() % 16 - 8);
            for (int integers = 0; integers <= (dtype >= INT8 && layout == ROWS); integers++) {
                run(integers, dtype, layout, 1, out);
                run(integers, dtype, layout, 3, again);
                printf("%d %d %d %g\n", dtype, layout, integers, memcmp(out, again, sizeof out) ? INFINITY : error());
            }
        }
}
