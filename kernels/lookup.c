/* Pooled embedding lookup: all lookups of one side of a batch in one call. See lookup.py.

   Work goes in units: some bags of one lookup. *Staging* a unit checks its ids and turns them into
   addresses bag by bag: ids come position by position, often a multiple of 4 KB apart, which a cache
   cannot hold. *Pooling* then reads the rows, and prefetches those that are some addresses ahead.

   A row is pooled in pieces of 128, 64, ... 1 floats; each piece width has its own loop, in which the
   sum of a bag stays in registers. A loop over a dimension known only at run time is 2 to 4 times
   slower. Vectors are as wide as the machine's, since wider ones spill. */

#include <stdint.h>
#include <stdlib.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

enum { COPY, SUM, WEIGHTED_SUM, MAX, WEIGHTED_MAX };
enum { DONE = -1, NO_MEMORY = -2 };

/* A unit is of about so many ids, and bytes of rows, as those of several pieces are read again; it is
   a bag at least. Rows are prefetched so many addresses ahead; 4 to 32 are alike. */
enum { UNIT_IDS = 2048, UNIT_BYTES = 512 * 1024, AHEAD = 16 };

/* Mirrored by the cdef in lookup.py. Counts and strides are of elements, not of bytes. */
typedef struct {
    const float *table;   /* [rows, dim] */
    int64_t rows, dim;
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
    int64_t n_ids;      /* of each bag: 1 if rows are copied side by side */
    const float **rows; /* [n_rows, n_ids], and AHEAD more that may be prefetched */
    float *weights;     /* [n_rows, n_ids] */
} unit;

/* Fill in `rows` and `weights`. Returns 0 if an id is outside its table. */
static int stage(const batch *b, unit *u) {
    const lookup *l = u->l;
    uint64_t outside = 0;
    for (int64_t k = 0; k < u->n_ids; k++) {
        const int64_t *ids = b->ids + (l->first_id + u->position + k) * b->n + u->row;
        for (int64_t r = 0; r < u->n_rows; r++) {
            outside |= (uint64_t)ids[r] >= (uint64_t)l->rows;
            u->rows[r * u->n_ids + k] = l->table + (uint64_t)ids[r] * (uint64_t)l->dim;
        }
    }
    int64_t n = u->n_rows * u->n_ids;
    for (int64_t i = n; i < n + AHEAD; i++) u->rows[i] = u->rows[n - 1];
    if (l->pooling == WEIGHTED_SUM || l->pooling == WEIGHTED_MAX)
        for (int64_t k = 0; k < u->n_ids; k++) {
            const float *weights = b->weights + (l->first_weight + k) * b->n + u->row;
            for (int64_t r = 0; r < u->n_rows; r++) u->weights[r * u->n_ids + k] = weights[r];
        }
    return !outside;
}

#define PREFETCH(row, D)                                                                           \
    for (int i = 0; i < (D); i += 16) __builtin_prefetch((row) + column + i, 0, 3)

#define DEFINE_PIECE(D, WIDTH)                                                                     \
    typedef float v##D __attribute__((vector_size(4 * (WIDTH)), aligned(4), may_alias));           \
    typedef int32_t m##D __attribute__((vector_size(4 * (WIDTH)), aligned(4), may_alias));         \
    static inline __attribute__((always_inline)) void pool_##D(                                    \
        int pooling, const unit *u, int64_t column, float *restrict out, int64_t out_stride) {     \
        enum { N = (D) / (WIDTH) };                                                                \
        const float *const *row = u->rows;                                                         \
        const float *weight = u->weights;                                                          \
        const int64_t n_ids = pooling == COPY ? 1 : u->n_ids;                                      \
        const float divisor = u->l->divisor;                                                       \
        for (int64_t r = 0; r < u->n_rows; r++, row += n_ids, weight += n_ids, out += out_stride) {\
            PREFETCH(row[AHEAD], D);                                                               \
            v##D sum[N];                                                                           \
            for (int i = 0; i < N; i++) sum[i] = ((const v##D *)(row[0] + column))[i];             \
            if (pooling == WEIGHTED_SUM)                                                           \
                for (int i = 0; i < N; i++) sum[i] *= weight[0];                                   \
            if (pooling == WEIGHTED_MAX)                                                           \
                for (int i = 0; i < N; i++) sum[i] += weight[0];                                   \
            for (int64_t k = 1; k < n_ids; k++) {                                                  \
                PREFETCH(row[k + AHEAD], D);                                                       \
                for (int i = 0; i < N; i++) {                                                      \
                    v##D x = ((const v##D *)(row[k] + column))[i];                                 \
                    if (pooling == SUM) sum[i] += x;                                               \
                    if (pooling == WEIGHTED_SUM) sum[i] += x * weight[k];                          \
                    if (pooling == WEIGHTED_MAX) x += weight[k];                                   \
                    if (pooling == MAX || pooling == WEIGHTED_MAX) { /* a NaN stays, as in numpy */\
                        m##D take = (m##D)(x > sum[i]) | (m##D)(x != x);                           \
                        sum[i] = (v##D)(((m##D)x & take) | ((m##D)sum[i] & ~take));                \
                    }                                                                              \
                }                                                                                  \
            }                                                                                      \
            if ((pooling == SUM || pooling == WEIGHTED_SUM) && divisor != 1)                       \
                for (int i = 0; i < N; i++) sum[i] /= divisor;                                     \
            for (int i = 0; i < N; i++) ((v##D *)out)[i] = sum[i];                                 \
        }                                                                                          \
    }                                                                                              \
    static void piece_##D(const unit *u, int64_t column, float *out, int64_t out_stride) {         \
        switch (u->l->pooling) {                                                                   \
        case COPY: pool_##D(COPY, u, column, out, out_stride); break;                              \
        case SUM: pool_##D(SUM, u, column, out, out_stride); break;                                \
        case WEIGHTED_SUM: pool_##D(WEIGHTED_SUM, u, column, out, out_stride); break;              \
        case MAX: pool_##D(MAX, u, column, out, out_stride); break;                                \
        default: pool_##D(WEIGHTED_MAX, u, column, out, out_stride);                               \
        }                                                                                          \
    }

#define NARROWER(D) ((D) < LANES ? (D) : LANES)

DEFINE_PIECE(1, 1)
DEFINE_PIECE(2, 2)
DEFINE_PIECE(4, 4)
DEFINE_PIECE(8, NARROWER(8))
DEFINE_PIECE(16, NARROWER(16))
DEFINE_PIECE(32, NARROWER(32))
DEFINE_PIECE(64, NARROWER(64))
DEFINE_PIECE(128, NARROWER(128))

/* Eight vectors at most: half of the registers where there are fewest. */
#define TRY_PIECE(D)                                                                               \
    while ((D) <= 8 * LANES && u->l->dim - column >= (D)) {                                        \
        piece_##D(u, column, out + column, b->out_stride);                                         \
        column += (D);                                                                             \
    }

static void pool(const batch *b, const unit *u) {
    float *out = b->out + u->row * b->out_stride + u->l->offset + u->position * u->l->dim;
    int64_t column = 0;
    TRY_PIECE(128) TRY_PIECE(64) TRY_PIECE(32) TRY_PIECE(16)
    TRY_PIECE(8) TRY_PIECE(4) TRY_PIECE(2) TRY_PIECE(1)
}

/* One lookup is done after the other: going through the rows in tiles gains 5 % where tables are
   small, and loses 30 % where they are large and no longer stay in the caches. */
static int look_up(const batch *b, const lookup *l, unit *u) {
    u->l = l;
    u->n_ids = l->pooling == COPY ? 1 : l->n_ids;
    int64_t most = UNIT_BYTES / (4 * l->dim);
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

   Returns DONE, or NO_MEMORY, or the index of a lookup that has an id outside its table: `out` is
   half written then, and nothing outside any table was read. */
int64_t tb_lookup(const lookup *lookups, int64_t n_lookups, const int64_t *ids,
                  const float *weights, int64_t n, float *out, int64_t out_stride) {
    const batch b = {ids, weights, n, out, out_stride};
    int64_t most_ids = UNIT_IDS;
    for (int64_t i = 0; i < n_lookups; i++)
        if (most_ids < lookups[i].n_ids) most_ids = lookups[i].n_ids;
    unit u;
    u.rows = malloc((size_t)(most_ids + AHEAD) * sizeof *u.rows + (size_t)most_ids * sizeof *weights);
    if (!u.rows) return NO_MEMORY;
    u.weights = (float *)(u.rows + most_ids + AHEAD);
    int64_t i = 0;
    while (i < n_lookups && look_up(&b, lookups + i, &u)) i++;
    free(u.rows);
    return i == n_lookups ? DONE : i;
}
