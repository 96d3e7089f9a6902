/* Finding rows of a stored table: see table.py, index.py and delta.py. */

#ifndef TB_TABLE_H
#define TB_TABLE_H

#include <stddef.h>
#include <stdint.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "hash.h"

enum { BUCKET_KEYS = 7, DELTA_PARTS = 256, CHUNK_ROWS = 8192 };

/* One cache line of an index: the keys of rows base, base + 1, ... of its segment. Keys that hash to
   this bucket are here or, as it was full, in one of the `spill` buckets that follow. */
typedef struct {
    uint64_t keys[BUCKET_KEYS];
    uint32_t base;
    uint16_t count, spill;
} bucket;

/* Mirrored by the cdef in _c.py, as are table and delta. */
typedef struct {
    const uint8_t *rows; /* [n_rows, row_bytes]; NULL in a segment that is not open */
    const bucket *buckets;
    int64_t n_rows, first_row; /* the latter counted through all segments */
    int64_t home_buckets, n_buckets;
} segment;

typedef struct {
    int64_t key;
    uint32_t row; /* 1 more; 0 is empty */
    uint32_t unused;
} delta_entry;

/* A part of a delta's index: open addressing, at most half full. It grows alone, so that no put has
   to wait until millions of keys have moved. */
typedef struct {
    delta_entry *entries;
    uint64_t mask;
    int64_t n;
} delta_part;

typedef struct {
    delta_part parts[DELTA_PARTS];
    uint8_t **chunks; /* [CHUNK_ROWS, row_bytes] each; rows never move */
    int64_t **keys;   /* [CHUNK_ROWS] each */
    int64_t n_chunks, n_rows, row_bytes;
} delta;

typedef struct {
    const segment *segments;
    int64_t n_segments;
    int64_t segment_rows; /* 0 if there are keys */
    int64_t rows, dim, row_bytes, dtype;
    const uint8_t *default_row;
    const delta *changes; /* looked up first; NULL for none */
    int64_t unseen;       /* keys that took the default row, so far */
} table;

enum { FOUND = -1, OUTSIDE_TABLE = -2, NOT_OPEN = -3, DAMAGED = -4 };
enum { UNSEEN = -1, BAD_INDEX = -2 };

static inline int bucket_slot(const bucket *b, uint64_t key) {
#if defined(__AVX512F__)
    const __m512i keys = _mm512_load_si512((const void *)b);
    unsigned found = _mm512_cmpeq_epi64_mask(keys, _mm512_set1_epi64((int64_t)key));
#else
    unsigned found = 0;
    for (int i = 0; i < BUCKET_KEYS; i++) found |= (unsigned)(b->keys[i] == key) << i;
#endif
    found &= (1u << (b->count < BUCKET_KEYS ? b->count : BUCKET_KEYS)) - 1;
    return found ? __builtin_ctz(found) : -1;
}

static inline const bucket *home_bucket(const segment *s, uint64_t hash) {
    return s->buckets + ((hash & 0xffffffff) * (uint64_t)s->home_buckets >> 32);
}

/* Return the row of a key in its segment, or UNSEEN, or BAD_INDEX if the index makes no sense. */
static inline int64_t probe(const segment *s, const bucket *b, uint64_t key) {
    const bucket *last = b + b->spill;
    if (last >= s->buckets + s->n_buckets) return BAD_INDEX;
    for (; b <= last; b++) {
        const int slot = bucket_slot(b, key);
        if (slot >= 0) {
            const int64_t row = (int64_t)b->base + slot;
            return row < s->n_rows ? row : BAD_INDEX;
        }
    }
    return UNSEEN;
}

static inline const delta_entry *delta_home(const delta *d, uint64_t hash) {
    const delta_part *part = d->parts + hash % DELTA_PARTS;
    return part->entries + (hash / DELTA_PARTS & part->mask);
}

static inline uint8_t *delta_row(const delta *d, int64_t row) {
    return d->chunks[row / CHUNK_ROWS] + row % CHUNK_ROWS * d->row_bytes;
}

/* Return the number of a key's row, or UNSEEN. */
static inline int64_t delta_probe(const delta *d, int64_t key, uint64_t hash) {
    const delta_part *part = d->parts + hash % DELTA_PARTS;
    for (uint64_t at = hash / DELTA_PARTS & part->mask;; at = (at + 1) & part->mask) {
        const delta_entry *entry = part->entries + at;
        if (!entry->row) return UNSEEN;
        if (entry->key == key) return (int64_t)entry->row - 1;
    }
}

/* Where a key may be: what is worked out, and prefetched, some keys before it is read. */
typedef struct {
    uint64_t hash;
    const segment *segment;
    const bucket *home;
} place;

/* Enough to hide a miss behind others, few enough that none is evicted before it is read. */
enum { PROBE_AHEAD = 16 };

/* Returns FOUND, or what is wrong. */
static inline int64_t find_place(const table *t, int64_t key, place *p) {
    if (!t->segment_rows || t->changes) p->hash = mix64((uint64_t)key);
    if (t->changes) __builtin_prefetch(delta_home(t->changes, p->hash));
    if (t->segment_rows) {
        if ((uint64_t)key >= (uint64_t)t->rows) return OUTSIDE_TABLE;
        p->segment = t->segments + (t->n_segments == 1 ? 0 : key / t->segment_rows);
        return p->segment->rows ? FOUND : NOT_OPEN;
    }
    p->segment = t->segments + hash_segment(p->hash, t->n_segments);
    if (!p->segment->rows) return NOT_OPEN;
    p->home = home_bucket(p->segment, p->hash);
    __builtin_prefetch(p->home);
    return FOUND;
}

/* Find the addresses of keys' rows.

   Returns FOUND; or, with the position of the first such key in *bad: OUTSIDE_TABLE, NOT_OPEN (its
   segment), or DAMAGED (its segment's index). */
static inline int64_t locate(table *t, const int64_t *keys, int64_t n, const uint8_t **rows,
                             int64_t *bad) {
    place ring[PROBE_AHEAD];
    int64_t unseen = 0;
    for (int64_t i = 0; i < n + PROBE_AHEAD; i++) {
        place *p = ring + i % PROBE_AHEAD;
        const int64_t now = i - PROBE_AHEAD;
        if (now >= 0 && now < n) {
            const int64_t key = keys[now];
            const int64_t changed = t->changes ? delta_probe(t->changes, key, p->hash) : UNSEEN;
            if (changed != UNSEEN)
                rows[now] = delta_row(t->changes, changed);
            else if (t->segment_rows)
                rows[now] = p->segment->rows + (key - p->segment->first_row) * t->row_bytes;
            else {
                const int64_t row = probe(p->segment, p->home, (uint64_t)key);
                if (row == BAD_INDEX) {
                    *bad = now;
                    return DAMAGED;
                }
                unseen += row == UNSEEN;
                rows[now] = row == UNSEEN ? t->default_row : p->segment->rows + row * t->row_bytes;
            }
        }
        if (i < n) {
            const int64_t problem = find_place(t, keys[i], p);
            if (problem != FOUND) {
                *bad = i;
                return problem;
            }
        }
    }
    if (unseen) __atomic_fetch_add(&t->unseen, unseen, __ATOMIC_RELAXED);
    return FOUND;
}

#endif
