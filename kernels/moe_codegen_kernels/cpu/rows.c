/* Rows of an expert layer on their way to the products and back.

       routing_plan   order_R, inverse_R, offsets_E: routed rows put together by expert, in a stable order
       gather         out_RD[r] = hidden_TD[order_R[r] / top_k], as float32
       combine        out_TD[t] = sum over k of weights_TK[t][k] * rows_RD[inverse_R[t * top_k + k]], rounded once

   One call each: with few tokens the time of every small operation counts. */

#include "weights.h"

enum { WORTH_A_TEAM = 1 << 16 }; /* values below which one thread is faster */

/* Rounded to nearest even. */
INLINE void store(int dtype, vector values, char *to) {
    if (dtype == FLOAT32) {
        *(vector *)to = values;
    } else if (dtype == BFLOAT16) {
        const words bits = (words)values, is_nan = (words)(values != values);
        const words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        *(halves *)to = __builtin_convertvector((rounded & ~is_nan) | (0x7fc0 & is_nan), halves);
    } else {
#if defined(__AVX512F__)
        _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)values, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
        _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT));
#else
        typedef _Float16 float16s __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
        *(float16s *)to = __builtin_convertvector(values, float16s);
#endif
    }
}

/* Floats at `from`, of which only `count` are there. */
INLINE vector load_some(int dtype, const char *from, long count) {
    char whole[4 * LANES] = {0};
    if (count >= LANES) return load(dtype, from);
    memcpy(whole, from, count * bits_of(dtype) / 8);
    return load(dtype, whole);
}

INLINE void store_some(int dtype, vector values, char *to, long count) {
    char whole[4 * LANES];
    if (count >= LANES) {
        store(dtype, values, to);
    } else {
        store(dtype, values, whole);
        memcpy(to, whole, count * bits_of(dtype) / 8);
    }
}

/* Any other id is of no expert: its row comes after all others. */
INLINE int is_expert(int64_t id, long experts) { return id >= 0 && id < experts; }

void routing_plan(long rows, long experts, const int64_t *ids, int32_t *order, int32_t *inverse, int32_t *offsets) {
    memset(offsets, 0, (experts + 1) * sizeof *offsets);
    for (long slot = 0; slot < rows; slot++)
        if (is_expert(ids[slot], experts)) offsets[ids[slot] + 1]++;
    int32_t next = 0; /* row of no expert, after this loop; until all are placed, offsets[e + 1] is the next row of e */
    for (long e = 0; e < experts; e++) {
        const int32_t count = offsets[e + 1];
        offsets[e + 1] = next;
        next += count;
    }
    for (long slot = 0; slot < rows; slot++) {
        const int32_t row = is_expert(ids[slot], experts) ? offsets[ids[slot] + 1]++ : next++;
        order[row] = slot;
        inverse[slot] = row;
    }
}

void gather(int dtype, int threads, long rows, long columns, long top_k, const int32_t *order, const void *hidden,
            float *out) {
#pragma omp parallel for num_threads(threads) if (rows * columns > WORTH_A_TEAM)
    for (long r = 0; r < rows; r++) {
        const char *from = at(dtype, hidden, order[r] / top_k * columns);
        for (long n = 0; n < columns; n += LANES) {
            const long left = columns - n;
            const vector values = dtype == FLOAT32    ? load_some(FLOAT32, at(FLOAT32, from, n), left)
                                  : dtype == BFLOAT16 ? load_some(BFLOAT16, at(BFLOAT16, from, n), left)
                                                      : load_some(FLOAT16, at(FLOAT16, from, n), left);
            store_some(FLOAT32, values, (char *)(out + r * columns + n), left);
        }
    }
}

/* Rows from offsets[experts] on are of no expert and add nothing. */
void combine(int dtype, int threads, long tokens, long columns, long top_k, long experts, const int32_t *offsets,
             const int32_t *inverse, const float *weights, const float *rows, void *out) {
    const int32_t routed = offsets[experts];
#pragma omp parallel for num_threads(threads) if (tokens * top_k * columns > WORTH_A_TEAM)
    for (long t = 0; t < tokens; t++)
        for (long n = 0; n < columns; n += LANES) {
            const long left = columns - n;
            vector sum = {0};
            for (long k = t * top_k; k < (t + 1) * top_k; k++)
                if (inverse[k] < routed)
                    sum += weights[k] * load_some(FLOAT32, (const char *)(rows + inverse[k] * columns + n), left);
            char *to = (char *)at(dtype, out, t * columns + n);
            if (dtype == FLOAT32) store_some(FLOAT32, sum, to, left);
            else if (dtype == BFLOAT16) store_some(BFLOAT16, sum, to, left);
            else store_some(FLOAT16, sum, to, left);
        }
}
