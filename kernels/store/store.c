/* What stored tables need besides pooling. See the Python module of each part. */

#include "rows.h"

/* Store rows; fp32 needs no such thing. Returns -1, or the first row that is not finite as int8. */
int64_t tb_encode(const float *rows, int64_t n, int64_t dim, int dtype, uint8_t *out) {
    if (dtype == INT8) {
        for (int64_t r = 0; r < n; r++)
            if (!to_int8(rows + r * dim, dim, out + r * (dim + 4))) return r;
    } else if (dtype == FP16) {
        to_fp16s(rows, n * dim, out);
    } else {
        for (int64_t i = 0; i < n * dim; i++) {
            uint16_t half = to_bf16(rows[i]);
            memcpy(out + 2 * i, &half, sizeof half);
        }
    }
    return -1;
}

#define NAME_(prefix, width) prefix##width
#define NAME(prefix, width) NAME_(prefix, width)
#define WIDE(prefix) NAME(prefix, LANES)

#define DECODE(TYPE, BYTES)                                                                        \
    int64_t i = 0;                                                                                 \
    for (; i + LANES <= n; i += LANES)                                                             \
        *(WIDE(f) *)(out + i) = WIDE(load_##TYPE##_)(rows + (BYTES) * i);                          \
    for (; i < n; i++) out[i] = load_##TYPE##_1(rows + (BYTES) * i)[0];

static void decode_fp16(const uint8_t *rows, int64_t n, float *out) { DECODE(fp16, 2) }
static void decode_bf16(const uint8_t *rows, int64_t n, float *out) { DECODE(bf16, 2) }
static void decode_int8(const uint8_t *rows, int64_t n, float scale, float *out) {
    DECODE(int8, 1)
    for (i = 0; i < n; i++) out[i] *= scale;
}

void tb_decode(const uint8_t *rows, int64_t n, int64_t dim, int dtype, float *out) {
    switch (dtype) {
    case FP32: memcpy(out, rows, (size_t)(n * dim) * sizeof *out); break;
    case FP16: decode_fp16(rows, n * dim, out); break;
    case BF16: decode_bf16(rows, n * dim, out); break;
    default:
        for (int64_t r = 0; r < n; r++, rows += dim + 4)
            decode_int8(rows, dim, row_scale(rows, dim), out + r * dim);
    }
}
