/* Each expert's rows times its matrix, in float32, on weights of 4 to 32 bits that are read from memory once.

       out_RN[r] = bias_EN[e] + sum over k of x_RK[r][k] * W_e[n][k],   r in offsets_E[e] .. offsets_E[e + 1]

   Three ways a matrix can lie in memory:
       ROWS     W[e][n][k]                   a layer's own layout
       COLUMNS  W[e][k][n]                   the same tensor seen from the backward pass, which needs its transpose
       PANELS   W[e][n / PANEL][k][PANEL]    packed: what the loop below reads, in the order in which it reads it

   Three ways to go about it, by the rows an expert has:
       few, ROWS      a dot product a row and column: weights go from memory through registers
       few, PANELS    register tiles straight from the packed weights, widened on the way
       many, or 8 or 4 bits
                      a block of weights is widened into panels in the cache, then multiplied with all rows
                      (the loops of Goto and van de Geijn, doi 10.1145/1356052.1356053)

   Each element of the output is summed by one thread in one order, so the number of threads does not change a bit. */

#include "weights.h"

enum layout { ROWS, COLUMNS, PANELS };

enum {
    PANEL = 2 * LANES,     /* columns of a register tile */
    TILE_ROWS = 6,         /* rows of a register tile: 12 sums, as many as AVX2's 16 registers allow */
    MOST_PANELS = 4,       /* side by side where rows are few: more streams from memory, more sums that do not wait */
    DOT_ROWS = 16,         /* at most so many rows by dot products */
    DIRECT_ROWS = 36,      /* at most so many rows straight from packed weights */
    CHUNK = 128,           /* columns a thread takes at a time */
    BLOCK_K = 256,         /* with CHUNK: a block of panels fits the L2 cache, one panel the L1 cache */
    BLOCK_ROWS = 96,       /* rows of x that stay in the L2 cache beside it */
    DIRECT_BYTES = 1 << 14, /* of a packed panel at a time, which with as much that follows fit the L1 cache */
    LINE = 4 * PANEL,      /* bytes asked for at a time: of AVX2 a cache line, of AVX-512 two that arrive together */
    PREFETCH_BYTES = 2048, /* how far ahead of the multiplication the packed weights of very few rows are asked for */
    WORTH_A_TEAM = 1 << 16 /* multiplications below which one thread is faster */
};

/* All experts' matrices: values of `columns` a row, and with 8 or 4 bits `groups` scales, one for each `group`. */
struct matrices {
    const void *values;
    const uint16_t *scales;
    long columns, groups;
    uint32_t group;
};

/* ---- weights to float32 ---- */

/* A bfloat16 is the upper half of a float32: a word that holds two becomes two floats by a shift and a mask. */
INLINE void load_paired(const void *w, vector pair[2]) {
    words both = *(const words *)w;
    pair[0] = (vector)(both << 16);
    pair[1] = (vector)(both & 0xffff0000u);
}

/* Row k of a panel. Packed bfloat16 lies in pairs (column j, column LANES + j). */
INLINE void load_panel(int dtype, const void *w, vector row[2]) {
    if (dtype == BFLOAT16) {
        load_paired(w, row);
    } else {
        row[0] = load(dtype, w);
        row[1] = load(dtype, at(dtype, w, LANES));
    }
}

/* Values k .. k + LANES of row n, counted over all experts. */
INLINE vector load_row(int dtype, const struct matrices *w, long n, long k) {
    vector values = load_at(dtype, w->values, n * w->columns + k);
    if (dtype < INT8) return values;
    return bf16(w->scales[n * w->groups + (uint32_t)k / w->group]) * values;
}

/* ---- register tiles: out[m][0 .. panels * PANEL) += x[m] . panels ---- */

/* `beside` bytes lie between panels. What is needed later is asked for meanwhile: from `next` on, a line for each `every`
   values of k; NULL where everything is in the cache. */
INLINE void tile(int rows, int panels, int dtype, const char *next, long every, const float *x, long x_stride,
                 const char *w, long beside, long k_count, float *out, long out_stride) {
    vector sums[TILE_ROWS][MOST_PANELS][2];
    for (int m = 0; m < rows; m++)
        for (int p = 0; p < panels; p++) sums[m][p][0] = sums[m][p][1] = (vector){0};
    for (long k = 0, line; k < k_count;) {
        for (int p = 0; next && p < panels; p++) __builtin_prefetch(next + p * beside);
        next += next ? LINE : 0;
        for (line = smaller(k + every, k_count); k < line; k++) {
#pragma GCC unroll 4
            for (int p = 0; p < panels; p++) {
                vector values[2];
                load_panel(dtype, at(dtype, w + p * beside, k * PANEL), values);
#pragma GCC unroll 6
                for (int m = 0; m < rows; m++) {
                    sums[m][p][0] += x[m * x_stride + k] * values[0];
                    sums[m][p][1] += x[m * x_stride + k] * values[1];
                }
            }
        }
    }
    for (int m = 0; m < rows; m++)
        for (int p = 0; p < panels; p++) {
            float *to = out + m * out_stride + p * PANEL;
            *(vector *)to += sums[m][p][0];
            *(vector *)(to + LANES) += sums[m][p][1];
        }
}

/* All rows against one panel, in tiles as even as they can be. While its panel comes `from_memory`, each tile asks for
   its share of the one that follows it there, so that memory and arithmetic take their time at once. */
INLINE void tiles(int dtype, int from_memory, const float *x, long x_stride, long rows, const char *w, long k_count,
                  float *out, long out_stride) {
    const long count = (rows + TILE_ROWS - 1) / TILE_ROWS, row_bytes = PANEL * bits_of(dtype) / 8;
    const long every = from_memory ? count * LINE / row_bytes : k_count;
    const char *next = w + k_count * row_bytes;
    for (long left = count, take; left > 0; left--, rows -= take) {
        take = (rows + left - 1) / left;
        switch (take) {
#define CASE(ROWS) \
    case ROWS: \
        tile(ROWS, 1, dtype, from_memory ? next : NULL, every, x, x_stride, w, 0, k_count, out, out_stride); \
        break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#undef CASE
        }
        x += take * x_stride;
        out += take * out_stride;
        next += k_count * row_bytes / count;
    }
}

/* ---- filling panels ---- */

typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t lanes __attribute__((vector_size(16)));
#define LOW (lanes){0, 4, 1, 5}
#define HIGH (lanes){2, 6, 3, 7}
#define FIRST (lanes){0, 1, 4, 5}
#define SECOND (lanes){2, 3, 6, 7}

/* W[n][k] -> panel[k][n], four rows at a time: more would fall on each other in the cache, their stride being even. */
INLINE void transpose(int dtype, const struct matrices *w, long first, long k_first, long k_count, float *panel) {
    for (int n = 0; n < PANEL; n += 4)
        for (long k = 0; k < k_count; k += LANES) {
            float wide[4][LANES];
            for (int i = 0; i < 4; i++) *(vector *)wide[i] = load_row(dtype, w, first + n + i, k_first + k);
            for (int i = 0; i < LANES; i += 4) {
                quad a = *(quad *)&wide[0][i], b = *(quad *)&wide[1][i];
                quad c = *(quad *)&wide[2][i], d = *(quad *)&wide[3][i];
                quad ab_low = __builtin_shuffle(a, b, LOW), ab_high = __builtin_shuffle(a, b, HIGH);
                quad cd_low = __builtin_shuffle(c, d, LOW), cd_high = __builtin_shuffle(c, d, HIGH);
                float *to = panel + (k + i) * PANEL + n;
                *(quad *)to = __builtin_shuffle(ab_low, cd_low, FIRST);
                *(quad *)(to + PANEL) = __builtin_shuffle(ab_low, cd_low, SECOND);
                *(quad *)(to + 2 * PANEL) = __builtin_shuffle(ab_high, cd_high, FIRST);
                *(quad *)(to + 3 * PANEL) = __builtin_shuffle(ab_high, cd_high, SECOND);
            }
        }
}

/* Columns n .. n + PANEL of the expert and k_count values of k from k on, as one panel in float32. */
INLINE void fill_panel(int dtype, int layout, const struct matrices *w, long expert, long n, long n_count, long k,
                       long k_total, long k_count, float *panel) {
    if (layout == ROWS) {
        transpose(dtype, w, expert * n_count + n, k, k_count, panel);
    } else if (layout == COLUMNS) {
        for (long i = 0; i < k_count; i++)
            for (int half = 0; half < PANEL; half += LANES)
                *(vector *)(panel + i * PANEL + half) = load_row(dtype, w, expert * k_total + k + i, n + half);
    } else {
        const char *from = at(dtype, w->values, (expert * n_count + n) * k_total + k * PANEL);
        for (long i = 0; i < k_count; i++)
            load_panel(dtype, at(dtype, from, i * PANEL), (vector *)(panel + i * PANEL));
    }
}

/* ---- dot products ---- */

/* bfloat16 weights arrive as even and odd values of k; x is put in the same order once. */
INLINE void pair_up(const float *x, float *paired, long k_count) {
    for (long k = 0; k < k_count; k += 2 * LANES)
        for (int lane = 0; lane < LANES; lane++) {
            paired[k + lane] = x[k + 2 * lane];
            paired[k + LANES + lane] = x[k + 2 * lane + 1];
        }
}

/* Four columns, `apart` from one another: memory is read faster as a few long streams than as one. w_stride lies
   between their weights. */
INLINE void dot(int rows, int dtype, const float *x, long x_stride, const void *w, long w_stride, long k_count,
                float *out, long out_stride, long apart) {
    vector sums[3][4];
    for (int m = 0; m < rows; m++)
        for (int n = 0; n < 4; n++) sums[m][n] = (vector){0};
    for (long k = 0; k < k_count; k += 2 * LANES) {
#pragma GCC unroll 4
        for (int n = 0; n < 4; n++) {
            vector pair[2];
            if (dtype == BFLOAT16) {
                load_paired(at(dtype, w, n * w_stride + k), pair);
            } else {
                pair[0] = load(dtype, at(dtype, w, n * w_stride + k));
                pair[1] = load(dtype, at(dtype, w, n * w_stride + k + LANES));
            }
#pragma GCC unroll 3
            for (int m = 0; m < rows; m++) {
                sums[m][n] += pair[0] * *(const vector *)(x + m * x_stride + k);
                sums[m][n] += pair[1] * *(const vector *)(x + m * x_stride + k + LANES);
            }
        }
    }
    for (int m = 0; m < rows; m++)
        for (int n = 0; n < 4; n++)
            for (int lane = 0; lane < LANES; lane++) out[m * out_stride + n * apart] += sums[m][n][lane];
}

INLINE void dots(int dtype, const float *x, long x_stride, long rows, const void *w, long w_stride, long k_count,
                 float *out, long out_stride, long apart) {
    for (long left = (rows + 2) / 3, take; left > 0; left--, rows -= take) {
        take = (rows + left - 1) / left;
        switch (take) {
#define CASE(ROWS) case ROWS: dot(ROWS, dtype, x, x_stride, w, w_stride, k_count, out, out_stride, apart); break;
            CASE(1) CASE(2) CASE(3)
#undef CASE
        }
        x += take * x_stride;
        out += take * out_stride;
    }
}

/* ---- one expert, columns first .. last ---- */

INLINE void columns_of(int dtype, int layout, long expert, long rows, long n_count, long k_count, const float *x,
                       const struct matrices *matrices, float *out, long first, long last) {
    const char *w = at(dtype, matrices->values, expert * n_count * k_count);
    _Alignas(64) float scratch[CHUNK * BLOCK_K];
    for (long m = 0; m < rows; m++)
        for (long n = first; n < last; n++) out[m * n_count + n] = 0;
    if (layout == ROWS && dtype < INT8 && rows <= DOT_ROWS) {
        const long deepest = CHUNK * BLOCK_K / rows & -2 * LANES; /* rows of x fit where a block of panels does */
        for (long k = 0; k < k_count; k += deepest) {
            long depth = smaller(deepest, k_count - k);
            const float *x_k = x + k;
            if (dtype == BFLOAT16) {
                for (long m = 0; m < rows; m++) pair_up(x + m * k_count + k, scratch + m * depth, depth);
                x_k = scratch;
            }
            const long apart = (last - first) / 4;
            for (long n = first; n < first + apart; n++)
                dots(dtype, x_k, dtype == BFLOAT16 ? depth : k_count, rows, at(dtype, w, n * k_count + k),
                     apart * k_count, depth, out + n, n_count, apart);
        }
    } else if (layout == PANELS && rows <= DIRECT_ROWS) {
        const long row_bytes = PANEL * bits_of(dtype) / 8, beside = k_count * row_bytes;
        for (long n = first, width; n < last; n += width) {
            long panels = (last - n) / PANEL;
            width = rows == 1 && panels >= 4 ? 4 * PANEL : rows <= 3 && panels >= 2 ? 2 * PANEL : PANEL;
            for (long k = 0; k < k_count; k += DIRECT_BYTES / row_bytes) {
                const float *x_k = x + k;
                const char *w_k = at(dtype, w, n * k_count + k * PANEL);
                long depth = smaller(DIRECT_BYTES / row_bytes, k_count - k);
                float *out_n = out + n;
#define CASE(ROWS, PANELS) \
    tile(ROWS, PANELS, dtype, w_k + PREFETCH_BYTES, LINE / row_bytes, x_k, k_count, w_k, beside, depth, out_n, n_count)
                if (width == 4 * PANEL) CASE(1, 4);
                else if (width == PANEL) tiles(dtype, 1, x_k, k_count, rows, w_k, depth, out_n, n_count);
                else if (rows == 1) CASE(1, 2);
                else if (rows == 2) CASE(2, 2);
                else CASE(3, 2);
#undef CASE
            }
        }
    } else {
        for (long k = 0; k < k_count; k += BLOCK_K) {
            long depth = smaller(BLOCK_K, k_count - k);
            for (long n = first; n < last; n += PANEL)
                fill_panel(dtype, layout, matrices, expert, n, n_count, k, k_count, depth,
                           scratch + (n - first) * BLOCK_K);
            for (long m = 0; m < rows; m += BLOCK_ROWS)
                for (long n = first; n < last; n += PANEL)
                    tiles(FLOAT32, 0, x + m * k_count + k, k_count, smaller(BLOCK_ROWS, rows - m),
                          (const char *)(scratch + (n - first) * BLOCK_K), depth, out + m * n_count + n, n_count);
        }
    }
}

INLINE void add_bias(int dtype, const void *bias, long rows, long n_count, float *out, long first, long last) {
    for (long n = first; n < last; n++) {
        float added = element(dtype, bias, n);
        for (long m = 0; m < rows; m++) out[m * n_count + n] += added;
    }
}

/* ---- what Python calls ---- */

int panel_width(void) { return PANEL; }

/* n_count, and k_count but for COLUMNS, are multiples of PANEL; everything is contiguous; offsets[0] is 0.
   INT8 and INT4: no PANELS; `group` values of a stored row share one of the bfloat16 `scales`. */
void grouped_gemm(int dtype, int layout, int bias_dtype, int threads, long experts, long n_count, long k_count,
                  long group, const int32_t *offsets, const float *x, const void *w, const uint16_t *scales,
                  const void *bias, float *out) {
    const long columns = layout == COLUMNS ? n_count : k_count;
    const struct matrices matrices = {w, scales, columns, columns / group, group};
    long chunks = (n_count + CHUNK - 1) / CHUNK;
    if (offsets[experts] * n_count * k_count < WORTH_A_TEAM) threads = 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long task = 0; task < experts * chunks; task++) {
        long expert = task / chunks, first = task % chunks * CHUNK, last = smaller(first + CHUNK, n_count);
        long start = offsets[expert], rows = offsets[expert + 1] - offsets[expert];
        if (rows == 0) continue;
        const float *x_rows = x + start * k_count;
        float *out_rows = out + start * n_count;
#define CASE(DTYPE, LAYOUT) \
    columns_of(DTYPE, LAYOUT, expert, rows, n_count, k_count, x_rows, &matrices, out_rows, first, last)
#define PLAIN(DTYPE) if (layout == ROWS) CASE(DTYPE, ROWS); else CASE(DTYPE, COLUMNS)
#define PLAIN_OR_PACKED(DTYPE) if (layout == PANELS) CASE(DTYPE, PANELS); else PLAIN(DTYPE)
        if (dtype == FLOAT32) { PLAIN_OR_PACKED(FLOAT32); }
        else if (dtype == BFLOAT16) { PLAIN_OR_PACKED(BFLOAT16); }
        else if (dtype == FLOAT16) { PLAIN_OR_PACKED(FLOAT16); }
        else if (dtype == INT8) { PLAIN(INT8); }
        else { PLAIN(INT4); }
#undef PLAIN_OR_PACKED
#undef PLAIN
#undef CASE
        if (bias) add_bias(bias_dtype, at(bias_dtype, bias, expert * n_count), rows, n_count, out_rows, first, last);
    }
}
