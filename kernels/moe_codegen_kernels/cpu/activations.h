/* Activations of float32 values that have just been summed and are still in the cache. */

#include "weights.h"

enum activation { NONE, GELU_TANH, SILU, RELU };

/* e^x to a unit or two in the last place, by the polynomial of the Cephes library's expf; infinite from 88.4 on. */
INLINE vector exponential(vector x) {
    const vector most = (vector){0} + 88.8f, least = most - 176.1f, to_integer = (vector){0} + 12582912.0f; /* 1.5 * 2^23 */
    const words above = (words)(x > most), below = (words)(x < least);
    x = (vector)(((words)x & ~(above | below)) | ((words)most & above) | ((words)least & below));
    const vector shifted = x * 1.44269504f + to_integer, n = shifted - to_integer;
    const vector r = x - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts */
    vector p = (vector){0} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1;
    return p * (vector)(((words)shifted - (words)to_integer + 127) << 23);
}

/* x * sigmoid(t), where tanh-GELU has t = 2 sqrt(2 / pi) (x + 0.044715 x^3), and SiLU x. */
INLINE vector activated(int activation, vector x) {
    if (activation == RELU) return (vector)((words)x & ~(words)(x <= 0));
    vector t = x;
    if (activation == GELU_TANH) t *= 1.5957691216f + 0.0713548163f * (x * x);
    return x / (1 + exponential(-t));
}

/* Rows of `columns`, a multiple of LANES, `stride` apart. */
INLINE void activate(int activation, long rows, long columns, float *values, long stride) {
    if (activation == NONE) return;
    for (long m = 0; m < rows; m++, values += stride)
        for (long n = 0; n < columns; n += LANES) {
            vector *at = (vector *)(values + n);
            *at = activation == GELU_TANH ? activated(GELU_TANH, *at)
                  : activation == SILU    ? activated(SILU, *at)
                                          : activated(RELU, *at);
        }
}
