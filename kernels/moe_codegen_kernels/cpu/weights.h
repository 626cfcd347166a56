/* Weights as they are stored, one vector of LANES at a time, to float32.

   Portable C with GCC's vector extensions: the compiler flags choose the instructions. */

#include <stdint.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

/* The last two are stored as the two before them, and become bfloat16 on their way. */
enum dtype { FLOAT32, BFLOAT16, FLOAT16, INT8, INT4, PAIRED_INT8, PAIRED_INT4 };

/* INT4: a block of 32 values in 16 bytes; byte i holds value i in its low half and value i + 16 in its high half. */
enum { BLOCK = 32 };

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

#define INLINE static inline __attribute__((always_inline))

static const int32_t LANE[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

INLINE long smaller(long a, long b) { return a < b ? a : b; }

INLINE long bits_of(int dtype) {
    return dtype == FLOAT32 ? 32 : dtype < INT8 ? 16 : dtype == INT8 || dtype == PAIRED_INT8 ? 8 : 4;
}

INLINE const char *at(int dtype, const void *w, long index) { return (const char *)w + index * bits_of(dtype) / 8; }

INLINE float bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The floats at w. */
INLINE vector load(int dtype, const void *w) {
    if (dtype == FLOAT32) return *(const vector *)w;
    if (dtype == BFLOAT16) return (vector)(__builtin_convertvector(*(const halves *)w, words) << 16);
#if defined(__AVX512F__)
    return (vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)w));
#elif defined(__F16C__)
    return (vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)w));
#else
    typedef _Float16 float16s __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
    return __builtin_convertvector(*(const float16s *)w, vector);
#endif
}

/* Values index .. index + LANES of those stored at w, without their scale; index is a multiple of LANES. */
INLINE vector load_at(int dtype, const void *w, long index) {
    if (dtype < INT8) return load(dtype, at(dtype, w, index));
    if (bits_of(dtype) == 8)
        return __builtin_convertvector(__builtin_convertvector(*(const bytes *)at(INT8, w, index), integers), vector);
    const char *block = (const char *)w + index / BLOCK * (BLOCK / 2) + index % (BLOCK / 2);
    integers both = __builtin_convertvector(*(const bytes *)block, integers);
    both <<= index % BLOCK < BLOCK / 2 ? 28 : 24;
    return __builtin_convertvector(both >> 28, vector);
}

INLINE float element(int dtype, const void *w, long index) {
    float wide[LANES];
    char narrow[4 * LANES] = {0};
    memcpy(narrow, at(dtype, w, index), bits_of(dtype) / 8);
    *(vector *)wide = load(dtype, narrow);
    return wide[0];
}

/* The sum of all lanes. */
INLINE float total(vector v) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) v += __builtin_shuffle(v, *(const integers *)LANE + half);
    return v[0];
}
