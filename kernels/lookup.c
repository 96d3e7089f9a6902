/* Pooled embedding lookup: all lookups of one side of a batch in one call. See lookup.py.

   Work goes in units: some bags of one lookup. *Staging* a unit finds the rows of its ids and lays
   down their addresses bag by bag: ids come position by position, often a multiple of 4 KB apart,
   which a cache cannot hold. *Pooling* then reads the rows, and prefetches those that are some
   addresses ahead. Bags come filled up to one length, by one id with weight 0: that one is read once.

   A row is pooled in pieces of 128, 64, ... 1 numbers; each piece width, type of row and pooling has
   its own loop, in which the sum of a bag stays in registers. A loop over a dimension known only at
   run time is 2 to 4 times slower. Vectors are as wide as the machine's, since wider ones spill. */

#include <stdint.h>
#include <stdlib.h>

#include "store/rows.h"
#include "store/table.h"

enum { COPY, SUM, WEIGHTED_SUM, MAX, WEIGHTED_MAX };
enum { DONE = -1, NO_MEMORY = -2 };

/* A unit is of about so many ids, and bytes of rows, as those of several pieces are read again; it is
   a bag at least. Rows are prefetched so many addresses ahead; 4 to 32 are alike. Bags of rows that
   have fewer bytes are not trimmed: their reading costs less than mispredicting bags' lengths, a fifth
   less at 64 bytes; at 256 and more, trimming gains a tenth. */
enum { UNIT_IDS = 2048, UNIT_BYTES = 512 * 1024, AHEAD = 16, TRIM_BYTES = 128 };

/* Mirrored by the cdef in lookup.py. Counts and strides are of elements, not of bytes. */
typedef struct {
    table *table;
    int64_t first_id, n_ids;
    int64_t first_weight; /* read by the weighted poolings only */
    int64_t offset;       /* first column of out */
    int64_t pooling;      /* of the enum above */
    float divisor;        /* n_ids for a mean, else 1 */
} lookup;

typedef struct {
    const int64_t *ids;   /* [n_ids, n] */
    const float *weights; /* [n_weights, n] */
    int64_t n;
    float *out;           /* row r at out + r * out_stride */
    int64_t out_stride;
} batch;

/* Bags [row, row + n_rows) of a lookup, from a position of the bag on. */
typedef struct {
    const lookup *l;
    int64_t position, row, n_rows;
    int64_t n_ids;        /* of each bag: 1 if rows are copied side by side */
    const uint8_t **rows; /* [n_rows, n_ids], and AHEAD more that may be prefetched */
    int64_t *ids;         /* [n_rows, n_ids]; only where they have to be searched for */
    float *weights;       /* [n_rows, n_ids] */
    int32_t *lengths;     /* [n_rows]: with weights, rows and weights of bags are so many */
} unit;

/* Find the rows of a dense table of one piece. Returns as `locate` in store/table.h. */
static int64_t stage_plain(const batch *b, unit *u) {
    const table *t = u->l->table;
    const uint8_t *first = t->segments->rows;
    uint64_t outside = 0;
    for (int64_t k = 0; k < u->n_ids; k++) {
        const int64_t *ids = b->ids + (u->l->first_id + u->position + k) * b->n + u->row;
        for (int64_t r = 0; r < u->n_rows; r++) {
            outside |= (uint64_t)ids[r] >= (uint64_t)t->rows;
            u->rows[r * u->n_ids + k] = first + (uint64_t)ids[r] * (uint64_t)t->row_bytes;
        }
    }
    return outside ? OUTSIDE_TABLE : FOUND;
}

/* Find the rows of any table. Returns as `locate`. */
static int64_t stage_any(const batch *b, unit *u) {
    for (int64_t k = 0; k < u->n_ids; k++) {
        const int64_t *ids = b->ids + (u->l->first_id + u->position + k) * b->n + u->row;
        for (int64_t r = 0; r < u->n_rows; r++) u->ids[r * u->n_ids + k] = ids[r];
    }
    int64_t bad;
    return locate(u->l->table, u->ids, u->n_rows * u->n_ids, u->rows, &bad);
}

/* Leave out the ids at the end of each bag that repeat the one before them and change nothing, bit for
   bit: a weight of 0 times the same row is added, or the same number compared, once as good as twice.
   Returns how many ids are left. */
static int64_t trim(unit *u) {
    const int any_weight = u->l->pooling == WEIGHTED_MAX;
    const int narrow = u->l->table->row_bytes < TRIM_BYTES;
    int64_t n = 0;
    for (int64_t r = 0; r < u->n_rows; r++) {
        const uint8_t *const *rows = u->rows + r * u->n_ids;
        const float *weights = u->weights + r * u->n_ids;
        int64_t length = u->n_ids;
        while (!narrow && length > 1 && rows[length - 1] == rows[length - 2] &&
               !memcmp(weights + length - 1, weights + length - 2, sizeof *weights) &&
               (any_weight || weights[length - 1] == 0))
            length--;
        if (n != r * u->n_ids)
            for (int64_t k = 0; k < length; k++) {
                u->rows[n + k] = rows[k];
                u->weights[n + k] = weights[k];
            }
        u->lengths[r] = (int32_t)length;
        n += length;
    }
    return n;
}

/* Fill in `rows`, `weights` and `lengths`. Returns 0 if an id has no row. */
static int stage(const batch *b, unit *u) {
    const lookup *l = u->l;
    const table *t = l->table;
    const int plain = t->segment_rows && t->n_segments == 1 && t->segments->rows && !t->changes;
    if ((plain ? stage_plain(b, u) : stage_any(b, u)) != FOUND) return 0;
    int64_t n = u->n_rows * u->n_ids;
    if (l->pooling == WEIGHTED_SUM || l->pooling == WEIGHTED_MAX) {
        for (int64_t k = 0; k < u->n_ids; k++) {
            const float *weights = b->weights + (l->first_weight + k) * b->n + u->row;
            for (int64_t r = 0; r < u->n_rows; r++) u->weights[r * u->n_ids + k] = weights[r];
        }
        n = trim(u);
    }
    for (int64_t i = n; i < n + AHEAD; i++) u->rows[i] = u->rows[n - 1];
    return 1;
}

/* A row's scale comes after its numbers, often in the next line. */
#define PREFETCH(row, D)                                                                           \
    do {                                                                                           \
        for (int64_t i = 0; i < (D) * item; i += 64)                                               \
            __builtin_prefetch((row) + column * item + i, 0, 3);                                   \
        if (dtype == INT8) __builtin_prefetch((row) + u->l->table->dim + 3, 0, 3);                 \
    } while (0)

#define LOAD(x, row, W, N)                                                                         \
    do {                                                                                           \
        const uint8_t *from = (row) + column * item;                                               \
        const float scale = dtype == INT8 ? row_scale(row, u->l->table->dim) : 1;                  \
        for (int i = 0; i < (N); i++) (x)[i] = load_##W(dtype, from + i * (W) * item, scale);      \
    } while (0)

#define DEFINE_PIECE(D, W) DEFINE_PIECE_(D, W)
#define DEFINE_PIECE_(D, W)                                                                        \
    static inline __attribute__((always_inline)) void pool_##D(                                    \
        int pooling, int dtype, const unit *u, int64_t column, float *restrict out,                \
        int64_t out_stride) {                                                                      \
        enum { N = (D) / (W) };                                                                    \
        const int64_t item = item_bytes(dtype);                                                    \
        const uint8_t *const *row = u->rows;                                                       \
        const float *weight = u->weights;                                                          \
        const int weighted = pooling == WEIGHTED_SUM || pooling == WEIGHTED_MAX;                   \
        const float divisor = u->l->divisor;                                                       \
        int64_t n_ids = pooling == COPY ? 1 : u->n_ids;                                            \
        for (int64_t r = 0; r < u->n_rows; r++, row += n_ids, weight += n_ids, out += out_stride) {\
            if (weighted) n_ids = u->lengths[r];                                                   \
            PREFETCH(row[AHEAD], D);                                                               \
            f##W sum[N], x[N];                                                                     \
            LOAD(sum, row[0], W, N);                                                               \
            if (pooling == WEIGHTED_SUM)                                                           \
                for (int i = 0; i < N; i++) sum[i] *= weight[0];                                   \
            if (pooling == WEIGHTED_MAX)                                                           \
                for (int i = 0; i < N; i++) sum[i] += weight[0];                                   \
            for (int64_t k = 1; k < n_ids; k++) {                                                  \
                PREFETCH(row[k + AHEAD], D);                                                       \
                LOAD(x, row[k], W, N);                                                             \
                for (int i = 0; i < N; i++) {                                                      \
                    if (pooling == SUM) sum[i] += x[i];                                            \
                    if (pooling == WEIGHTED_SUM) sum[i] += x[i] * weight[k];                       \
                    if (pooling == WEIGHTED_MAX) x[i] += weight[k];                                \
                    if (pooling == MAX || pooling == WEIGHTED_MAX) { /* a NaN stays, as in numpy */\
                        i##W take = (i##W)(x[i] > sum[i]) | (i##W)(x[i] != x[i]);                  \
                        sum[i] = (f##W)(((i##W)x[i] & take) | ((i##W)sum[i] & ~take));             \
                    }                                                                              \
                }                                                                                  \
            }                                                                                      \
            if ((pooling == SUM || pooling == WEIGHTED_SUM) && divisor != 1)                       \
                for (int i = 0; i < N; i++) sum[i] /= divisor;                                     \
            for (int i = 0; i < N; i++) ((f##W *)out)[i] = sum[i];                                 \
        }                                                                                          \
    }                                                                                              \
    static inline __attribute__((always_inline)) void pools_##D(                                   \
        int dtype, const unit *u, int64_t column, float *out, int64_t out_stride) {                \
        switch (u->l->pooling) {                                                                   \
        case COPY: pool_##D(COPY, dtype, u, column, out, out_stride); break;                       \
        case SUM: pool_##D(SUM, dtype, u, column, out, out_stride); break;                         \
        case WEIGHTED_SUM: pool_##D(WEIGHTED_SUM, dtype, u, column, out, out_stride); break;       \
        case MAX: pool_##D(MAX, dtype, u, column, out, out_stride); break;                         \
        default: pool_##D(WEIGHTED_MAX, dtype, u, column, out, out_stride);                        \
        }                                                                                          \
    }                                                                                              \
    static void piece_##D(const unit *u, int64_t column, float *out, int64_t out_stride) {         \
        switch (u->l->table->dtype) {                                                              \
        case FP32: pools_##D(FP32, u, column, out, out_stride); break;                             \
        case FP16: pools_##D(FP16, u, column, out, out_stride); break;                             \
        case BF16: pools_##D(BF16, u, column, out, out_stride); break;                             \
        default: pools_##D(INT8, u, column, out, out_stride);                                      \
        }                                                                                          \
    }

#if LANES >= 8
#define EIGHT 8
#else
#define EIGHT 4
#endif

DEFINE_PIECE(1, 1)
DEFINE_PIECE(2, 2)
DEFINE_PIECE(4, 4)
DEFINE_PIECE(8, EIGHT)
DEFINE_PIECE(16, LANES)
DEFINE_PIECE(32, LANES)
DEFINE_PIECE(64, LANES)
DEFINE_PIECE(128, LANES)

/* Eight vectors at most: half of the registers where there are fewest. */
#define TRY_PIECE(D)                                                                               \
    while ((D) <= 8 * LANES && dim - column >= (D)) {                                              \
        piece_##D(u, column, out + column, b->out_stride);                                         \
        column += (D);                                                                             \
    }

static void pool(const batch *b, const unit *u) {
    const int64_t dim = u->l->table->dim;
    float *out = b->out + u->row * b->out_stride + u->l->offset + u->position * dim;
    int64_t column = 0;
    TRY_PIECE(128) TRY_PIECE(64) TRY_PIECE(32) TRY_PIECE(16)
    TRY_PIECE(8) TRY_PIECE(4) TRY_PIECE(2) TRY_PIECE(1)
}

/* One lookup is done after the other: going through the rows in tiles gains 5 % where tables are
   small, and loses 30 % where they are large and no longer stay in the caches. */
static int look_up(const batch *b, const lookup *l, unit *u) {
    u->l = l;
    u->n_ids = l->pooling == COPY ? 1 : l->n_ids;
    int64_t most = UNIT_BYTES / l->table->row_bytes;
    most = (most < UNIT_IDS ? most : UNIT_IDS) / u->n_ids;
    if (most == 0) most = 1;
    for (u->position = 0; u->position < l->n_ids; u->position += u->n_ids)
        for (u->row = 0; u->row < b->n; u->row += u->n_rows) {
            u->n_rows = b->n - u->row < most ? b->n - u->row : most;
            if (!stage(b, u)) return 0;
            pool(b, u);
        }
    return 1;
}

/* Look up rows [0, n) of all lookups.

   Returns DONE, or NO_MEMORY, or the index of a lookup that has an id without a row (outside a dense
   table, in a segment that is not open, in a damaged index): `out` is half written then, and nothing
   outside any table was read. */
int64_t tb_lookup(const lookup *lookups, int64_t n_lookups, const int64_t *ids,
                  const float *weights, int64_t n, float *out, int64_t out_stride) {
    const batch b = {ids, weights, n, out, out_stride};
    int64_t most_ids = UNIT_IDS;
    for (int64_t i = 0; i < n_lookups; i++)
        if (most_ids < lookups[i].n_ids) most_ids = lookups[i].n_ids;
    unit u;
    u.rows = malloc((size_t)(most_ids + AHEAD) * sizeof *u.rows +
                    (size_t)most_ids * (sizeof *u.ids + sizeof *u.weights + sizeof *u.lengths));
    if (!u.rows) return NO_MEMORY;
    u.ids = (int64_t *)(u.rows + most_ids + AHEAD);
    u.weights = (float *)(u.ids + most_ids);
    u.lengths = (int32_t *)(u.weights + most_ids);
    int64_t i = 0;
    while (i < n_lookups && look_up(&b, lookups + i, &u)) i++;
    free(u.rows);
    return i == n_lookups ? DONE : i;
}
