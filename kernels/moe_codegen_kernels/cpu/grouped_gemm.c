/* Each expert's rows times its matrix, with sums in float32, on weights of 4 to 32 bits that are read from memory once.

       out_RN[r] = f(bias_EN[e] + sum over k of x_RK[r][k] * W_e[n][k]),   r in offsets_E[e] .. offsets_E[e + 1]

   What is multiplied are words of 32 bits: a float32, or two bfloat16 of neighbouring k where the processor multiplies
   and adds such pairs (AVX512-BF16), for which x is rounded to bfloat16 and subnormal values count as 0. Everywhere else
   weights become float32 on their way, and x stays as it is.

   Three ways a matrix can lie in memory:
       ROWS     W[e][n][k]                   a layer's own layout
       COLUMNS  W[e][k][n]                   the same tensor seen from the backward pass, which needs its transpose
       PANELS   W[e][n / PANEL][k][PANEL]    packed: what the loop below reads, in the order in which it reads it;
                                             of bfloat16 [k / 2][PANEL][2], words

   Two ways to go about it, by the rows an expert has:
       few, ROWS      a dot product a row and column: weights go from memory through registers
       others         register tiles of a panel, straight from packed weights, or from a block of weights that was made
                      into panels in the cache (the loops of Goto and van de Geijn, doi 10.1145/1356052.1356053)

   Each element of the output is summed by one thread in one order, so the number of threads does not change a bit. */

#include <stdlib.h>
#include "activations.h"

enum layout { ROWS, COLUMNS, PANELS };

#if defined(__AVX512BF16__)
enum { MULTIPLIES_PAIRS = 1 };
#else
enum { MULTIPLIES_PAIRS = 0 };
#endif

enum {
    PANEL = 2 * LANES,       /* columns of a register tile */
#if defined(__AVX512F__)
    TILE_ROWS = 12,          /* rows of a register tile, of two sums each: what 32 registers allow */
    DOT_ROWS = 12,           /* at most so many rows by dot products */
#else
    TILE_ROWS = 6,
    DOT_ROWS = 16,
#endif
    MOST_PANELS = 4,         /* side by side where rows are few: more streams from memory, more sums that do not wait */
    DOT_WORDS = 1 << 15,     /* of x at a time, which stay in the L2 cache */
    WIDENED_ROWS = 36,       /* at most so many rows straight from packed weights that have to be widened */
    CHUNK = 128,             /* columns a thread takes at a time */
    PANEL_BYTES = 1 << 14,   /* of a panel at a time: as much as stays in the L1 cache beside x and what follows */
    BLOCK_K = PANEL_BYTES / PANEL / 4, /* words of a panel in as many bytes; with CHUNK: a block that fits the L2 cache */
    BLOCK_TILES = 16,        /* tiles whose x stays in the L2 cache beside it */
    LINE = 64,               /* bytes that come from memory at once */
    AHEAD = 2048,            /* bytes between what very few rows multiply and what they ask memory for */
    WORTH_A_TEAM = 1 << 16   /* multiplications below which one thread is faster */
};

/* All experts' matrices: values of `columns` a row, and with 8 or 4 bits `groups` scales, one for each `group`. */
struct matrices {
    const void *values;
    const uint16_t *scales;
    long columns, groups;
    uint32_t group;
};

/* ---- words ---- */

/* Whether what is multiplied are pairs of bfloat16. */
INLINE int as_pairs(int dtype) { return MULTIPLIES_PAIRS && (dtype == BFLOAT16 || dtype >= PAIRED_INT8); }

/* Words of a row of k_count values. */
INLINE long words_of(int dtype, long k_count) { return as_pairs(dtype) ? (k_count + 1) / 2 : k_count; }

/* Where registers are just enough, GCC else moves sums that a step adds to twice. */
#if defined(__AVX2__)
#define STAYS_IN_ITS_REGISTER(sum) __asm__("" : "+x"(sum))
#else
#define STAYS_IN_ITS_REGISTER(sum) (void)(sum)
#endif

/* Two vectors of neighbouring values, rounded to bfloat16. */
INLINE words in_pairs(vector first, vector second) {
#if defined(__AVX512BF16__)
    return (words)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
#else
    (void)second;
    return (words)first; /* is not called */
#endif
}

INLINE vector multiply_add(int dtype, words x, words w, vector sum) {
#if defined(__AVX512BF16__)
    if (as_pairs(dtype)) return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x);
#else
    (void)dtype;
#endif
    return sum + (vector)x * (vector)w;
}

/* A bfloat16 is the upper half of a float32: a word that holds two becomes two floats by a shift and a mask. */
INLINE words widened(words both, int which) {
    if (which) return both & 0xffff0000u;
    return both << 16;
}

/* Words index .. index + LANES of a row of x; past its end they are 0. */
INLINE words x_words(int dtype, const float *x, long index, long k_count) {
    const long each = as_pairs(dtype) ? 2 : 1, left = k_count - index * each;
    float end[2 * LANES] = {0};
    x = left < each * LANES ? memcpy(end, x + index * each, left * sizeof *x) : x + index * each;
    return as_pairs(dtype) ? in_pairs(*(const vector *)x, *(const vector *)(x + LANES)) : *(const words *)x;
}

/* ---- x in the order in which it is read ---- */

INLINE long tiles_of(long rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS; }

INLINE int takes_dots(int dtype, int layout, long rows) { return layout == ROWS && dtype < INT8 && rows <= DOT_ROWS; }

/* For dot products row after row; bfloat16 that is widened arrives as even and odd values of k, and so does its x. */
INLINE void arrange_row(int dtype, const float *x, long k_count, uint32_t *to) {
    for (long i = 0; i < words_of(dtype, k_count); i += LANES) *(words *)(to + i) = x_words(dtype, x, i, k_count);
    if (dtype == BFLOAT16 && !as_pairs(dtype))
        for (long k = 0; k < k_count; k += 2 * LANES)
            for (int lane = 0; lane < LANES; lane++) {
                memcpy(to + k + lane, x + k + 2 * lane, 4);
                memcpy(to + k + LANES + lane, x + k + 2 * lane + 1, 4);
            }
}

/* For tiles word after word, of each all rows of the tile. */
INLINE void arrange_tile(int dtype, const float *x, long rows, long k_count, uint32_t *to) {
    const long count = words_of(dtype, k_count);
    for (long i = 0; i < count; i += LANES)
        for (long m = 0; m < rows; m++) {
            words some = x_words(dtype, x + m * k_count, i, k_count);
            for (long lane = 0; lane < smaller(LANES, count - i); lane++) to[(i + lane) * rows + m] = some[lane];
        }
}

/* ---- register tiles: out[m][0 .. panels * PANEL) += x[m] . panels ---- */

/* A block of weights that will be needed later: `rows` of `row_bytes`, `stride` bytes apart, of which the first byte to
   be asked for is row[asked]. */
struct later {
    const char *row;
    long rows, row_bytes, stride, asked;
};

INLINE void ask(struct later *later) {
    __builtin_prefetch(later->row + later->asked);
    later->asked += LINE;
    if (later->asked >= later->row_bytes) {
        later->row += later->stride;
        later->asked = 0;
    }
}

/* A step of a tile: one word of each column, but two of packed bfloat16 that has to be widened. */
INLINE int step_words(int dtype) { return dtype == BFLOAT16 && !as_pairs(dtype) ? 2 : 1; }

INLINE long step_bytes(int dtype) { return PANEL * (dtype == FLOAT16 ? 2 : 4); }

/* Word i of a step; both halves of the columns. */
INLINE void load_step(int dtype, const char *w, int i, words step[2]) {
    for (int half = 0; half < 2; half++)
        if (dtype == FLOAT16) step[half] = (words)load(FLOAT16, w + half * 2 * LANES);
        else step[half] = ((const words *)w)[half];
    if (step_words(dtype) == 2)
        for (int half = 0; half < 2; half++) step[half] = widened(step[half], i);
}

/* `beside` bytes lie between panels; meanwhile `lines` of what is needed later are asked for. */
INLINE void tile(int rows, int panels, int dtype, const uint32_t *x, const char *w, long beside, long steps,
                 float *out, long out_stride, struct later *later, long lines) {
    struct later asking = panels > 1 ? (struct later){0} : *later; /* in registers */
    vector sums[TILE_ROWS][MOST_PANELS][2];
    for (int m = 0; m < rows; m++)
        for (int p = 0; p < panels; p++) sums[m][p][0] = sums[m][p][1] = (vector){0};
    for (long s = 0, due = 0; s < steps; s++, w += step_bytes(dtype), x += rows * step_words(dtype)) {
        if (panels > 1)
            for (int p = 0; p < panels; p++)
                for (int line = 0; line < step_bytes(dtype); line += LINE)
                    __builtin_prefetch(w + p * beside + AHEAD + line);
        else
            for (due += lines; due >= steps; due -= steps) ask(&asking);
#pragma GCC unroll 4
        for (int p = 0; p < panels; p++) {
#pragma GCC unroll 2
            for (int i = 0; i < step_words(dtype); i++) {
                words step[2];
                load_step(dtype, w + p * beside, i, step);
#pragma GCC unroll 12
                for (int m = 0; m < rows; m++) {
                    words word = (words){0} + x[i * rows + m];
                    for (int half = 0; half < 2; half++) {
                        sums[m][p][half] = multiply_add(dtype, word, step[half], sums[m][p][half]);
                        if (step_words(dtype) == 2) STAYS_IN_ITS_REGISTER(sums[m][p][half]);
                    }
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
    if (panels == 1) *later = asking;
}

/* Tiles first .. last of an expert's, each with `share` lines of what is needed later. */
static void tiles(int dtype, long first, long last, long rows, const uint32_t *x, long x_row_words, long word,
                  const char *w, long steps, float *out, long out_stride, struct later *later, long share) {
    const long count = tiles_of(rows);
    for (long t = first; t < last; t++) {
        const long start = rows * t / count, take = rows * (t + 1) / count - start;
        const uint32_t *x_tile = x + start * x_row_words + word * take;
        float *out_tile = out + start * out_stride;
#define TAKE(ROWS, DTYPE) \
    case ROWS: tile(ROWS, 1, DTYPE, x_tile, w, 0, steps, out_tile, out_stride, later, share); break;
#define UP_TO_SIX(DTYPE) TAKE(1, DTYPE) TAKE(2, DTYPE) TAKE(3, DTYPE) TAKE(4, DTYPE) TAKE(5, DTYPE) TAKE(6, DTYPE)
#if defined(__AVX512F__)
#define UP_TO_ALL(DTYPE) \
    UP_TO_SIX(DTYPE) TAKE(7, DTYPE) TAKE(8, DTYPE) TAKE(9, DTYPE) TAKE(10, DTYPE) TAKE(11, DTYPE) TAKE(12, DTYPE)
#else
#define UP_TO_ALL UP_TO_SIX
#endif
        if (dtype == FLOAT32)
            switch (take) { UP_TO_ALL(FLOAT32) }
        else if (dtype == BFLOAT16)
            switch (take) { UP_TO_ALL(BFLOAT16) }
        else
            switch (take) { UP_TO_ALL(FLOAT16) }
#undef UP_TO_ALL
#undef UP_TO_SIX
#undef TAKE
    }
}

/* ---- filling panels ---- */

/* Values k .. k + LANES of row n, counted over all experts, as float32. */
INLINE vector load_row(int dtype, const struct matrices *w, long n, long k) {
    vector values = load_at(dtype, w->values, n * w->columns + k);
    if (dtype < INT8) return values;
    return bf16(w->scales[n * w->groups + (uint32_t)k / w->group]) * values;
}

/* Words word .. word + LANES of row n. */
INLINE words row_words(int dtype, const struct matrices *w, long n, long word) {
    if (!as_pairs(dtype)) return (words)load_row(dtype, w, n, word);
    if (dtype == BFLOAT16) return *(const words *)at(dtype, w->values, n * w->columns + 2 * word);
    return in_pairs(load_row(dtype, w, n, 2 * word), load_row(dtype, w, n, 2 * word + LANES));
}

/* LANES rows of as many words, transposed in place: rounds that interleave the rows' upper half with the lower one. */
INLINE void transpose(words block[LANES]) {
    const integers lane = *(const integers *)LANE, low = (lane >> 1) + (lane & 1) * LANES;
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
        words mixed[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            mixed[2 * i] = __builtin_shuffle(block[i], block[i + LANES / 2], low);
            mixed[2 * i + 1] = __builtin_shuffle(block[i], block[i + LANES / 2], low + LANES / 2);
        }
        memcpy(block, mixed, sizeof mixed);
    }
}

/* A panel's words word .. word + count of columns n .. n + PANEL of the expert. */
INLINE void fill_panel(int dtype, int layout, const struct matrices *w, long expert, long n, long n_count, long word,
                       long k_count, long count, uint32_t *panel) {
    if (layout == ROWS) {
        const long row = expert * n_count + n;
        for (long i = 0; i < count; i += LANES)
            for (int half = 0; half < PANEL; half += LANES) {
                words block[LANES];
#pragma GCC unroll 16
                for (int j = 0; j < LANES; j++) block[j] = row_words(dtype, w, row + half + j, word + i);
                transpose(block);
#pragma GCC unroll 16
                for (int j = 0; j < LANES; j++) *(words *)(panel + (i + j) * PANEL + half) = block[j];
            }
    } else if (layout == COLUMNS) {
        for (long i = 0; i < count; i++)
            for (int half = 0; half < PANEL; half += LANES) {
                words *to = (words *)(panel + i * PANEL + half);
                if (as_pairs(dtype)) {
                    const long k = 2 * (word + i);
                    const halves *even = (const halves *)at(dtype, w->values, (expert * k_count + k) * n_count + n + half);
                    *to = __builtin_convertvector(*even, words);
                    if (k + 1 < k_count)
                        *to |= __builtin_convertvector(*(const halves *)((const uint16_t *)even + n_count), words) << 16;
                } else {
                    *to = (words)load_row(dtype, w, expert * k_count + word + i, n + half);
                }
            }
    } else {
        const int each = step_words(dtype);
        const char *from = at(dtype, w->values, (expert * n_count + n) * k_count + word * PANEL);
        for (long i = 0; i < count; i += each, from += step_bytes(dtype))
            for (int j = 0; j < each; j++) load_step(dtype, from, j, (words *)(panel + (i + j) * PANEL));
    }
}

/* ---- dot products ---- */

/* Four columns, `apart` from one another: memory is read faster as a few long streams than as one. w_stride values lie
   between their weights. */
INLINE void dot(int rows, int dtype, const uint32_t *x, long x_stride, const char *w, long w_stride, long count,
                float *out, long out_stride, long apart) {
    const int vectors = as_pairs(dtype) ? 1 : 2; /* of words in 2 * LANES values */
    vector sums[3][4];
    for (int m = 0; m < rows; m++)
        for (int n = 0; n < 4; n++) sums[m][n] = (vector){0};
    for (long i = 0; i < count; i += vectors * LANES, w += 2 * LANES * bits_of(dtype) / 8) {
#pragma GCC unroll 4
        for (int n = 0; n < 4; n++) {
            const char *from = at(dtype, w, n * w_stride);
            words some[2];
            if (as_pairs(dtype)) {
                some[0] = *(const words *)from;
            } else if (dtype == BFLOAT16) {
                for (int j = 0; j < 2; j++) some[j] = widened(*(const words *)from, j);
            } else {
                some[0] = (words)load(dtype, from);
                some[1] = (words)load(dtype, at(dtype, from, LANES));
            }
#pragma GCC unroll 3
            for (int m = 0; m < rows; m++)
#pragma GCC unroll 2
                for (int j = 0; j < vectors; j++)
                    sums[m][n] = multiply_add(dtype, *(const words *)(x + m * x_stride + i + j * LANES), some[j],
                                              sums[m][n]);
        }
    }
    for (int m = 0; m < rows; m++)
        for (int n = 0; n < 4; n++) out[m * out_stride + n * apart] += total(sums[m][n]);
}

INLINE void dots(int dtype, const uint32_t *x, long x_stride, long rows, const char *w, long w_stride, long count,
                 float *out, long out_stride, long apart) {
    for (long left = (rows + 2) / 3, take; left > 0; left--, rows -= take) {
        take = (rows + left - 1) / left;
        switch (take) {
#define CASE(ROWS) case ROWS: dot(ROWS, dtype, x, x_stride, w, w_stride, count, out, out_stride, apart); break;
            CASE(1) CASE(2) CASE(3)
#undef CASE
        }
        x += take * x_stride;
        out += take * out_stride;
    }
}

/* ---- a chunk: one expert, columns first .. last ---- */

struct chunk {
    long expert, first, last;
};

/* Where words word .. word + count of a panel's columns, from n on, lie in memory. */
INLINE struct later block_at(int dtype, int layout, const struct matrices *w, long expert, long n, long n_count,
                             long word, long k_count, long count) {
    const long k = as_pairs(dtype) ? 2 * word : word, depth = as_pairs(dtype) ? 2 * count : count;
    const long row = (expert * n_count + n) * k_count, bits = bits_of(dtype);
    if (layout == ROWS)
        return (struct later){at(dtype, w->values, row + k), PANEL, depth * bits / 8, k_count * bits / 8, 0};
    if (layout == COLUMNS)
        return (struct later){at(dtype, w->values, (expert * k_count + k) * n_count + n), depth, PANEL * bits / 8,
                              n_count * bits / 8, 0};
    return (struct later){at(dtype, w->values, row + k * PANEL), 1, depth * PANEL * bits / 8, 0, 0};
}

/* Up to three rows of packed weights: panels side by side, for more sums and more streams from memory. */
INLINE void side_by_side(int dtype, long rows, long n_count, const uint32_t *x, long all_words, const char *w,
                         float *out, long columns) {
    const int each = step_words(dtype);
    const long bytes = step_bytes(dtype), beside = all_words / each * bytes, block = PANEL_BYTES / bytes * each;
    struct later none = {0};
    for (long n = 0, panels; n < columns; n += panels * PANEL) {
        panels = (columns - n) / PANEL;
        panels = rows == 1 && panels >= 4 ? 4 : panels >= 2 ? 2 : 1;
        for (long i = 0; i < all_words; i += block) {
            const uint32_t *x_i = x + i * rows;
            const char *w_i = w + n / PANEL * beside + i / each * bytes;
            const long steps = smaller(block, all_words - i) / each;
            switch (4 * rows + panels) {
#define CASE(ROWS, PANELS) \
    case 4 * ROWS + PANELS: tile(ROWS, PANELS, dtype, x_i, w_i, beside, steps, out + n, n_count, &none, 0); break;
                CASE(1, 1) CASE(1, 2) CASE(1, 4) CASE(2, 1) CASE(2, 2) CASE(3, 1) CASE(3, 2)
#undef CASE
            }
        }
    }
}

/* out = out + x . the chunk's weights. `next` is what the same thread takes after it, or NULL. */
INLINE void columns_of(int dtype, int layout, const struct chunk *chunk, const struct chunk *next, long rows,
                       long n_count, long k_count, const uint32_t *x, const struct matrices *matrices, float *out) {
    const long expert = chunk->expert, first = chunk->first, last = chunk->last, all_words = words_of(dtype, k_count);
    const char *w = at(dtype, matrices->values, expert * n_count * k_count);
    if (takes_dots(dtype, layout, rows)) {
        const long deepest = DOT_WORDS / rows & -2 * LANES;
        const long apart = (last - first) / 4, values = as_pairs(dtype) ? 2 : 1;
        for (long i = 0; i < all_words; i += deepest)
            for (long n = first; n < first + apart; n++)
                dots(dtype, x + i, all_words, rows, at(dtype, w, n * k_count + i * values), apart * k_count,
                     smaller(deepest, all_words - i), out + n, n_count, apart);
        return;
    }
    const int is_ready = layout == PANELS && (dtype == FLOAT32 || as_pairs(dtype));
    const int is_direct = is_ready || (layout == PANELS && rows <= WIDENED_ROWS);
    if (is_direct && rows <= 3) {
        side_by_side(dtype, rows, n_count, x, all_words, at(dtype, w, first * k_count), out + first, last - first);
        return;
    }
    _Alignas(64) uint32_t scratch[CHUNK * BLOCK_K];
    const int panel_dtype = is_direct ? dtype : as_pairs(dtype) ? BFLOAT16 : FLOAT32;
    const int each = step_words(panel_dtype);
    const long block = PANEL_BYTES / step_bytes(panel_dtype) * each, count = tiles_of(rows);
    for (long word = 0; word < all_words; word += block) {
        const long depth = smaller(block, all_words - word), after = word + depth;
        if (!is_direct)
            for (long n = first; n < last; n += PANEL)
                fill_panel(dtype, layout, matrices, expert, n, n_count, word, k_count, depth,
                           scratch + (n - first) * BLOCK_K);
        for (long t = 0, until; t < count; t = until) {
            until = smaller(t + BLOCK_TILES, count);
            for (long n = first; n < last; n += PANEL) {
                /* What comes after this panel: of packed ones the next, else the same one's block that is filled next. */
                struct later later = {0};
                if (t == 0 && is_direct && n + PANEL < last)
                    later = block_at(dtype, layout, matrices, expert, n + PANEL, n_count, word, k_count, depth);
                else if (t == 0 && after < all_words)
                    later = block_at(dtype, layout, matrices, expert, is_direct ? first : n, n_count, after, k_count,
                                     smaller(block, all_words - after));
                else if (t == 0 && next)
                    later = block_at(dtype, layout, matrices, next->expert, next->first + (is_direct ? 0 : n - first),
                                     n_count, 0, k_count, smaller(block, all_words));
                const char *panel = is_direct ? block_at(dtype, layout, matrices, expert, n, n_count, word, k_count, 0).row
                                              : (const char *)(scratch + (n - first) * BLOCK_K);
                tiles(panel_dtype, t, until, rows, x, all_words, word, panel, depth / each, out + n, n_count, &later,
                      later.rows * later.row_bytes / LINE / until);
            }
        }
    }
}

/* The next chunk of an expert with rows that no thread has taken; past the last one `expert` is `experts`. */
static void take_chunk(long *taken, long experts, const int32_t *offsets, long n_count, struct chunk *chunk) {
    const long chunks = (n_count + CHUNK - 1) / CHUNK;
    do {
        long task;
#pragma omp atomic capture
        task = (*taken)++;
        chunk->expert = smaller(task / chunks, experts);
        chunk->first = task % chunks * CHUNK;
        chunk->last = smaller(chunk->first + CHUNK, n_count);
    } while (chunk->expert < experts && offsets[chunk->expert] == offsets[chunk->expert + 1]);
}

/* ---- what Python calls ---- */

int panel_width(void) { return PANEL; }

int multiplies_pairs(void) { return MULTIPLIES_PAIRS; }

/* n_count, and k_count but for COLUMNS, are multiples of PANEL; everything is contiguous; offsets[0] is 0.
   INT8 and INT4: no PANELS; `group` values of a stored row share one of the bfloat16 `scales`. Paired: ROWS, where pairs
   are multiplied.
   Returns 0, or 1 where there is no memory for the arranged x. */
int grouped_gemm(int dtype, int layout, int bias_dtype, int threads, long experts, long n_count, long k_count,
                 long group, int activation, const int32_t *offsets, const float *x, const void *w,
                 const uint16_t *scales, const void *bias, float *out) {
    const long columns = layout == COLUMNS ? n_count : k_count, row_words = words_of(dtype, k_count);
    const struct matrices matrices = {w, scales, columns, columns / group, group};
    long taken = 0;
    uint32_t *arranged = aligned_alloc(LINE, (offsets[experts] * row_words * sizeof *arranged / LINE + 2) * LINE);
    if (!arranged) return 1;
    if (offsets[experts] * n_count * k_count < WORTH_A_TEAM) threads = 1;
#define OF_DTYPE(FUNCTION, ...) \
    if (dtype == FLOAT32) FUNCTION(FLOAT32, __VA_ARGS__); \
    else if (dtype == BFLOAT16 || dtype >= PAIRED_INT8) FUNCTION(BFLOAT16, __VA_ARGS__); \
    else FUNCTION(FLOAT16, __VA_ARGS__)
#pragma omp parallel num_threads(threads)
    {
        for (long expert = 0; expert < experts; expert++) {
            const long start = offsets[expert], rows = offsets[expert + 1] - start;
            const float *x_rows = x + start * k_count;
            uint32_t *to = arranged + start * row_words;
            if (takes_dots(dtype, layout, rows)) {
#pragma omp for nowait
                for (long m = 0; m < rows; m++) {
                    OF_DTYPE(arrange_row, x_rows + m * k_count, k_count, to + m * row_words);
                }
            } else {
                const long count = tiles_of(rows);
#pragma omp for nowait
                for (long t = 0; t < count; t++) {
                    const long m = rows * t / count, take = rows * (t + 1) / count - m;
                    OF_DTYPE(arrange_tile, x_rows + m * k_count, take, k_count, to + m * row_words);
                }
            }
        }
#pragma omp barrier
        struct chunk chunk, next;
        take_chunk(&taken, experts, offsets, n_count, &next);
        while (chunk = next, chunk.expert < experts) {
            take_chunk(&taken, experts, offsets, n_count, &next);
            const struct chunk *after = next.expert < experts ? &next : NULL;
            const long start = offsets[chunk.expert], rows = offsets[chunk.expert + 1] - start;
            const uint32_t *x_rows = arranged + start * row_words;
            float *out_rows = out + start * n_count, biases[CHUNK] = {0};
            for (long n = chunk.first; bias && n < chunk.last; n++)
                biases[n - chunk.first] = element(bias_dtype, bias, chunk.expert * n_count + n);
            for (long m = 0; m < rows; m++)
                memcpy(out_rows + m * n_count + chunk.first, biases, (chunk.last - chunk.first) * sizeof *out);
#define CASE(DTYPE, LAYOUT) \
    columns_of(DTYPE, LAYOUT, &chunk, after, rows, n_count, k_count, x_rows, &matrices, out_rows)
#define PLAIN(DTYPE) if (layout == ROWS) CASE(DTYPE, ROWS); else CASE(DTYPE, COLUMNS)
#define PLAIN_OR_PACKED(DTYPE) if (layout == PANELS) CASE(DTYPE, PANELS); else PLAIN(DTYPE)
            if (dtype == FLOAT32) { PLAIN_OR_PACKED(FLOAT32); }
            else if (dtype == BFLOAT16) { PLAIN_OR_PACKED(BFLOAT16); }
            else if (dtype == FLOAT16) { PLAIN_OR_PACKED(FLOAT16); }
            else if (dtype == INT8) { PLAIN(INT8); }
            else if (dtype == INT4) { PLAIN(INT4); }
            else if (dtype == PAIRED_INT8) CASE(PAIRED_INT8, ROWS);
            else CASE(PAIRED_INT4, ROWS);
#undef PLAIN_OR_PACKED
#undef PLAIN
#undef CASE
            activate(activation, rows, chunk.last - chunk.first, out_rows + chunk.first, n_count);
        }
    }
    free(arranged);
    return 0;
}
