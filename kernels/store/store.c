/* What stored tables need besides pooling. See the Python module of each part. */

#include <stdlib.h>

#include "hash.h"
#include "rows.h"
#include "table.h"

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

/* Give the numbers of keys' rows in the segments, UNSEEN where there is none; changes are not looked
   at. Returns as `locate`. */
int64_t tb_find(const table *t, const int64_t *keys, int64_t n, int64_t *positions, int64_t *bad) {
    table base = *t;
    base.changes = NULL;
    place ring[PROBE_AHEAD];
    for (int64_t i = 0; i < n + PROBE_AHEAD; i++) {
        place *p = ring + i % PROBE_AHEAD;
        const int64_t now = i - PROBE_AHEAD;
        if (now >= 0 && now < n) {
            if (t->segment_rows)
                positions[now] = keys[now];
            else {
                const int64_t row = probe(p->segment, p->home, (uint64_t)keys[now]);
                if (row == BAD_INDEX) {
                    *bad = now;
                    return DAMAGED;
                }
                positions[now] = row == UNSEEN ? UNSEEN : p->segment->first_row + row;
            }
        }
        if (i < n) {
            const int64_t problem = find_place(&base, keys[i], p);
            if (problem != FOUND) {
                *bad = i;
                return problem;
            }
        }
    }
    return FOUND;
}

/* So many rows are found before they are read. */
enum { FETCH_ROWS = 512, READ_AHEAD = 16 };

/* Copy keys' rows as they are stored to `encoded` [n, row_bytes], or as floats to `decoded` [n, dim];
   the other is NULL. Returns as `locate`. */
int64_t tb_fetch(table *t, const int64_t *keys, int64_t n, uint8_t *encoded, float *decoded,
                 int64_t *bad) {
    const uint8_t *rows[FETCH_ROWS];
    for (int64_t start = 0; start < n; start += FETCH_ROWS) {
        const int64_t count = n - start < FETCH_ROWS ? n - start : FETCH_ROWS;
        const int64_t problem = locate(t, keys + start, count, rows, bad);
        if (problem != FOUND) {
            *bad += start;
            return problem;
        }
        for (int64_t i = 0; i < count; i++) {
            if (i + READ_AHEAD < count)
                for (int64_t byte = 0; byte < t->row_bytes; byte += 64)
                    __builtin_prefetch(rows[i + READ_AHEAD] + byte);
            if (encoded)
                memcpy(encoded + (start + i) * t->row_bytes, rows[i], (size_t)t->row_bytes);
            else
                tb_decode(rows[i], 1, t->dim, (int)t->dtype, decoded + (start + i) * t->dim);
        }
    }
    return FOUND;
}

/* Deltas: see delta.py. */

enum { FIRST_ENTRIES = 16 };

void tb_delta_free(delta *d) {
    if (!d) return;
    for (int i = 0; i < DELTA_PARTS; i++) free(d->parts[i].entries);
    for (int64_t i = 0; i < d->n_chunks; i++) {
        free(d->chunks[i]);
        free(d->keys[i]);
    }
    free(d->chunks);
    free(d->keys);
    free(d);
}

/* Returns NULL if there is no memory. */
delta *tb_delta_new(int64_t row_bytes) {
    delta *d = calloc(1, sizeof *d);
    if (!d) return NULL;
    d->row_bytes = row_bytes;
    for (int i = 0; i < DELTA_PARTS; i++) {
        d->parts[i].mask = FIRST_ENTRIES - 1;
        d->parts[i].entries = calloc(FIRST_ENTRIES, sizeof(delta_entry));
        if (!d->parts[i].entries) {
            tb_delta_free(d);
            return NULL;
        }
    }
    return d;
}

static int grow_part(delta_part *part) {
    const uint64_t mask = 2 * part->mask + 1;
    delta_entry *entries = calloc((size_t)mask + 1, sizeof *entries);
    if (!entries) return 0;
    for (uint64_t i = 0; i <= part->mask; i++) {
        const delta_entry entry = part->entries[i];
        if (!entry.row) continue;
        uint64_t at = mix64((uint64_t)entry.key) / DELTA_PARTS & mask;
        while (entries[at].row) at = (at + 1) & mask;
        entries[at] = entry;
    }
    free(part->entries);
    part->entries = entries;
    part->mask = mask;
    return 1;
}

static int grow_chunks(delta *d) {
    uint8_t **chunks = realloc(d->chunks, (size_t)(d->n_chunks + 1) * sizeof *chunks);
    if (chunks) d->chunks = chunks;
    int64_t **keys = realloc(d->keys, (size_t)(d->n_chunks + 1) * sizeof *keys);
    if (keys) d->keys = keys;
    if (!chunks || !keys) return 0;
    chunks[d->n_chunks] = NULL;
    if (posix_memalign((void **)&chunks[d->n_chunks], 64, (size_t)(CHUNK_ROWS * d->row_bytes)))
        return 0;
    keys[d->n_chunks] = malloc(CHUNK_ROWS * sizeof **keys);
    if (!keys[d->n_chunks]) {
        free(chunks[d->n_chunks]);
        return 0;
    }
    d->n_chunks++;
    return 1;
}

/* Put rows [n, row_bytes] at their keys, one after the other. Returns the number of rows put: fewer
   than n if there is no memory for more, or no row number. */
int64_t tb_delta_put(delta *d, const int64_t *keys, const uint8_t *rows, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        if (i + PROBE_AHEAD < n)
            __builtin_prefetch(delta_home(d, mix64((uint64_t)keys[i + PROBE_AHEAD])));
        const uint64_t hash = mix64((uint64_t)keys[i]);
        int64_t row = delta_probe(d, keys[i], hash);
        if (row == UNSEEN) {
            delta_part *part = d->parts + hash % DELTA_PARTS;
            if (2 * (part->n + 1) > (int64_t)part->mask + 1 && !grow_part(part)) return i;
            if (d->n_rows == d->n_chunks * CHUNK_ROWS && !grow_chunks(d)) return i;
            if (d->n_rows == UINT32_MAX) return i;
            row = d->n_rows++;
            uint64_t at = hash / DELTA_PARTS & part->mask;
            while (part->entries[at].row) at = (at + 1) & part->mask;
            part->entries[at] = (delta_entry){keys[i], (uint32_t)row + 1, 0};
            part->n++;
            d->keys[row / CHUNK_ROWS][row % CHUNK_ROWS] = keys[i];
        }
        memcpy(delta_row(d, row), rows + i * d->row_bytes, (size_t)d->row_bytes);
    }
    return n;
}

/* Give the numbers of keys' rows, UNSEEN where there is none. */
void tb_delta_find(const delta *d, const int64_t *keys, int64_t n, int64_t *rows) {
    for (int64_t i = 0; i < n; i++) {
        if (i + PROBE_AHEAD < n)
            __builtin_prefetch(delta_home(d, mix64((uint64_t)keys[i + PROBE_AHEAD])));
        rows[i] = delta_probe(d, keys[i], mix64((uint64_t)keys[i]));
    }
}

/* Copy n rows and their keys, from one on. */
void tb_delta_copy(const delta *d, int64_t first, int64_t n, int64_t *keys, uint8_t *rows) {
    for (int64_t i = 0; i < n; i++) {
        keys[i] = d->keys[(first + i) / CHUNK_ROWS][(first + i) % CHUNK_ROWS];
        memcpy(rows + i * d->row_bytes, delta_row(d, first + i), (size_t)d->row_bytes);
    }
}

int64_t tb_delta_bytes(const delta *d) {
    int64_t bytes = (int64_t)sizeof *d + d->n_chunks * CHUNK_ROWS * (d->row_bytes + 8);
    for (int i = 0; i < DELTA_PARTS; i++)
        bytes += ((int64_t)d->parts[i].mask + 1) * (int64_t)sizeof(delta_entry);
    return bytes;
}

int64_t tb_delta_len(const delta *d) { return d->n_rows; }
