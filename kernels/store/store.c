/* What stored tables need besides pooling. See the Python module of each part. */

#include <stdlib.h>

#include "hash.h"
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

enum { OUTSIDE = -1, NO_GROUP = -2, NO_MEMORY = -3 };

/* Find the distinct keys: see unique.py. `segment_rows` is 0 for keys, which are hashed.

   Places are first in the order of appearance, and are moved to that of groups at the end. Returns
   the number of distinct keys; or OUTSIDE, the row being in *bad; or NO_GROUP, the segment being
   there; or NO_MEMORY. */
int64_t tb_unique(const int64_t *keys, int64_t n, int64_t n_segments, int64_t segment_rows,
                  int64_t rows, const int32_t *group_of, int64_t n_groups, uint64_t seed,
                  int64_t *found, int64_t *splits, int32_t *slots, int64_t *bad) {
    int bits = 4;
    while ((int64_t)1 << bits < 2 * n) bits++;
    const uint64_t mask = ((uint64_t)1 << bits) - 1;
    int32_t *places = calloc((size_t)mask + 1, sizeof *places); /* 1 more; 0 is empty */
    int64_t *first = malloc((size_t)(n + 1) * sizeof *first);
    int32_t *groups = malloc((size_t)(n + 1) * sizeof *groups);
    int64_t *next = calloc((size_t)n_groups + 1, sizeof *next);
    int64_t n_found = 0, result = NO_MEMORY;
    if (!places || !first || !groups || !next) goto done;
    for (int64_t i = 0; i < n; i++) {
        const int64_t key = keys[i];
        uint64_t at = mix64((uint64_t)key ^ seed) >> (64 - bits);
        int32_t place;
        while ((place = places[at]) && first[place - 1] != key) at = (at + 1) & mask;
        if (!place) {
            int64_t segment;
            if (segment_rows) {
                if ((uint64_t)key >= (uint64_t)rows) {
                    *bad = key;
                    result = OUTSIDE;
                    goto done;
                }
                segment = key / segment_rows;
            } else
                segment = hash_segment(mix64((uint64_t)key), n_segments);
            const int32_t group = group_of[segment];
            if (group < 0 || group >= n_groups) {
                *bad = segment;
                result = NO_GROUP;
                goto done;
            }
            splits[group]++;
            first[n_found] = key;
            groups[n_found] = group;
            places[at] = place = (int32_t)++n_found;
        }
        slots[i] = place - 1;
    }
    for (int64_t group = 0; group + 1 < n_groups; group++) next[group + 1] = next[group] + splits[group];
    for (int64_t i = 0; i < n_found; i++) {
        const int64_t place = next[groups[i]]++;
        found[place] = first[i];
        groups[i] = (int32_t)place;
    }
    for (int64_t i = 0; i < n; i++) slots[i] = groups[slots[i]];
    result = n_found;
done:
    free(places);
    free(first);
    free(groups);
    free(next);
    return result;
}
