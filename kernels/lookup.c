/* Pooled embedding lookup: all lookups of one side of a batch in one call. See lookup.py.

   A row of any dimension is cut into pieces of 128, 64, ... 1 floats, and each piece width has its
   own loop, in which the sum of a bag stays in registers: a loop over a dimension known only at run
   time is 2 to 4 times slower. Vectors are as wide as the machine's, since wider ones spill. */

#include <stdint.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

enum { COPY, SUM, WEIGHTED_SUM, MAX, WEIGHTED_MAX };

/* Mirrored by the cdef in lookup.py. Counts and strides are of elements, not of bytes. */
typedef struct {
    const float *table;   /* [rows, dim] */
    int64_t rows, dim;
    int64_t first_id, n_ids;
    int64_t first_weight; /* read by the weighted poolings only */
    int64_t offset;       /* first column of out */
    int64_t pooling;      /* of the enum above */
    float divisor;        /* n_ids for a mean, else 1 */
    int32_t ahead;        /* bags to prefetch ahead; 0 for a table that caches hold */
} lookup;

/* A table's row at `column`. Integers, as an id that is to be prefetched is not yet checked. */
static inline uintptr_t at(const lookup *l, int64_t id, int64_t column) {
    return (uintptr_t)l->table + 4 * ((uintptr_t)id * (uintptr_t)l->dim + (uintptr_t)column);
}

static inline void prefetch_bag(const lookup *l, const int64_t *ids, int64_t stride, int64_t column,
                                int64_t n_floats) {
    for (int64_t k = 0; k < l->n_ids; k++) {
        uintptr_t row = at(l, ids[k * stride], column);
        for (int64_t byte = 0; byte < 4 * n_floats; byte += 64)
            __builtin_prefetch((const void *)(row + (uintptr_t)byte), 0, 3);
    }
}

/* Rows [begin, end) of one lookup and one piece. `ids` and `weights` point to the first matrix row
   of the bag, whose positions are `stride` apart; `out` to the piece's column in row 0. */
#define PIECE_ARGUMENTS                                                                            \
    const lookup *restrict l, const int64_t *restrict ids, const float *restrict weights,          \
        int64_t stride, int64_t begin, int64_t end, float *restrict out, int64_t out_stride,       \
        int64_t column

#define LOAD(V, id, i) (((const V *)at(l, (id), column))[i])

#define DEFINE_PIECE(D, WIDTH)                                                                     \
    typedef float v##D __attribute__((vector_size(4 * (WIDTH)), aligned(4), may_alias));           \
    typedef int32_t m##D __attribute__((vector_size(4 * (WIDTH)), aligned(4), may_alias));         \
    static inline __attribute__((always_inline)) void bags_##D(int pooling, PIECE_ARGUMENTS) {     \
        enum { N = (D) / (WIDTH) };                                                                \
        for (int64_t row = begin; row < end; row++) {                                              \
            if (l->ahead && row + l->ahead < stride)                                               \
                prefetch_bag(l, ids + row + l->ahead, stride, column, (D));                        \
            v##D sum[N];                                                                           \
            for (int i = 0; i < N; i++) sum[i] = LOAD(v##D, ids[row], i);                          \
            if (pooling == WEIGHTED_SUM)                                                           \
                for (int i = 0; i < N; i++) sum[i] *= weights[row];                                \
            if (pooling == WEIGHTED_MAX)                                                           \
                for (int i = 0; i < N; i++) sum[i] += weights[row];                                \
            for (int64_t k = 1; pooling != COPY && k < l->n_ids; k++) {                            \
                int64_t at_k = k * stride + row;                                                   \
                for (int i = 0; i < N; i++) {                                                      \
                    v##D x = LOAD(v##D, ids[at_k], i);                                             \
                    if (pooling == SUM) sum[i] += x;                                               \
                    if (pooling == WEIGHTED_SUM) sum[i] += x * weights[at_k];                      \
                    if (pooling == WEIGHTED_MAX) x += weights[at_k];                               \
                    if (pooling == MAX || pooling == WEIGHTED_MAX) {                               \
                        m##D take = (m##D)(x > sum[i]) | (m##D)(x != x);                           \
                        sum[i] = (v##D)(((m##D)x & take) | ((m##D)sum[i] & ~take));                \
                    }                                                                              \
                }                                                                                  \
            }                                                                                      \
            if ((pooling == SUM || pooling == WEIGHTED_SUM) && l->divisor != 1)                    \
                for (int i = 0; i < N; i++) sum[i] /= l->divisor;                                  \
            v##D *to = (v##D *)(out + row * out_stride);                                           \
            for (int i = 0; i < N; i++) to[i] = sum[i];                                            \
        }                                                                                          \
    }                                                                                              \
    static void piece_##D(PIECE_ARGUMENTS) {                                                       \
        switch (l->pooling) {                                                                      \
        case COPY: bags_##D(COPY, PIECE_VALUES); break;                                            \
        case SUM: bags_##D(SUM, PIECE_VALUES); break;                                              \
        case WEIGHTED_SUM: bags_##D(WEIGHTED_SUM, PIECE_VALUES); break;                            \
        case MAX: bags_##D(MAX, PIECE_VALUES); break;                                              \
        default: bags_##D(WEIGHTED_MAX, PIECE_VALUES);                                             \
        }                                                                                          \
    }

#define PIECE_VALUES l, ids, weights, stride, begin, end, out, out_stride, column
#define NARROWER(D) ((D) < LANES ? (D) : LANES)

DEFINE_PIECE(1, 1)
DEFINE_PIECE(2, 2)
DEFINE_PIECE(4, 4)
DEFINE_PIECE(8, NARROWER(8))
DEFINE_PIECE(16, NARROWER(16))
DEFINE_PIECE(32, NARROWER(32))
DEFINE_PIECE(64, NARROWER(64))
DEFINE_PIECE(128, NARROWER(128))

#define TRY_PIECE(D)                                                                               \
    while ((D) <= 8 * LANES && l->dim - column >= (D)) {                                           \
        piece_##D(l, ids, weights, stride, begin, end, out + column, out_stride, column);          \
        column += (D);                                                                             \
    }

static void all_pieces(const lookup *l, const int64_t *ids, const float *weights, int64_t stride,
                       int64_t begin, int64_t end, float *out, int64_t out_stride) {
    int64_t column = 0;
    TRY_PIECE(128) TRY_PIECE(64) TRY_PIECE(32) TRY_PIECE(16)
    TRY_PIECE(8) TRY_PIECE(4) TRY_PIECE(2) TRY_PIECE(1)
}

static int in_range(const lookup *l, const int64_t *ids, int64_t stride, int64_t begin,
                    int64_t end) {
    uint64_t outside = 0;
    for (int64_t k = 0; k < l->n_ids; k++)
        for (int64_t row = begin; row < end; row++)
            outside |= (uint64_t)ids[k * stride + row] >= (uint64_t)l->rows;
    return !outside;
}

/* Look up rows [0, n). `ids` is [n_ids, n], `weights` [n_weights, n], both C-ordered; row r of
   `out` starts at out + r * out_stride. Rows go in tiles whose part of `out` the first-level cache
   holds, as neighbouring lookups of small dimension write to the same cache lines.

   Returns -1, or the index of a lookup that has an id outside its table; `out` is then half
   written, and nothing outside any table was read. */
int64_t tb_lookup(const lookup *lookups, int64_t n_lookups, const int64_t *ids,
                  const float *weights, int64_t n, float *out, int64_t out_stride, int64_t tile) {
    for (int64_t begin = 0; begin < n; begin += tile) {
        int64_t end = begin + tile < n ? begin + tile : n;
        for (int64_t i = 0; i < n_lookups; i++) {
            const lookup *l = lookups + i;
            const int64_t *first = ids + l->first_id * n;
            if (!in_range(l, first, n, begin, end)) return i;
            if (l->pooling == COPY)
                for (int64_t k = 0; k < l->n_ids; k++) {
                    lookup one = *l;
                    one.n_ids = 1;
                    all_pieces(&one, first + k * n, 0, n, begin, end,
                               out + l->offset + k * l->dim, out_stride);
                }
            else
                all_pieces(l, first, weights + l->first_weight * n, n, begin, end,
                           out + l->offset, out_stride);
        }
    }
    return -1;
}
