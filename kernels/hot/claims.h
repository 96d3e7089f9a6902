/* Which keys of which tables are being fetched, and by which fetch. See claims.py. */

#include <stdint.h>
#include <string.h>

typedef struct {
    int64_t key, number; /* the number + 1; 0: the cell is empty */
    int64_t table;
} claim;

/* Mirrored by the cdef in _c.py. */
typedef struct {
    uint64_t seed;
    claim *cells;    /* [n_cells] */
    int64_t n_cells; /* a power of two, more than twice n_used */
    int64_t n_used;
} claims;

static inline uint64_t mix64(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static inline uint64_t claim_home(const claims *c, int64_t table, int64_t key) {
    uint64_t both = (uint64_t)key + (uint64_t)table * 0x9e3779b97f4a7c15u;
    return mix64(both ^ c->seed) & (uint64_t)(c->n_cells - 1);
}

/* The cell that a key has, or would have. */
static inline claim *claim_of(const claims *c, int64_t table, int64_t key) {
    uint64_t at = claim_home(c, table, key), mask = (uint64_t)(c->n_cells - 1);
    while (c->cells[at].number && (c->cells[at].key != key || c->cells[at].table != table))
        at = (at + 1) & mask;
    return c->cells + at;
}

/* Claim keys, and tell by which number each is claimed now: one that was from `oldest` on keeps its
   number, others get `next` and those after it, in their order. Returns the next after these. */
int64_t tb_claims_take(claims *c, const int64_t *tables, const int64_t *keys, int64_t n,
                       int64_t oldest, int64_t next, int64_t *numbers) {
    for (int64_t i = 0; i < n; i++) {
        claim *of = claim_of(c, tables[i], keys[i]);
        if (of->number <= oldest) {
            c->n_used += !of->number;
            *of = (claim){keys[i], ++next, tables[i]};
        }
        numbers[i] = of->number - 1;
    }
    return next;
}

/* Give claims up whose numbers are from `first` on, and below `last`. `numbers` tells what they
   were, -1 where there was none. */
void tb_claims_drop(claims *c, const int64_t *tables, const int64_t *keys, int64_t n, int64_t first,
                    int64_t last, int64_t *numbers) {
    uint64_t mask = (uint64_t)(c->n_cells - 1);
    for (int64_t i = 0; i < n; i++) {
        claim *of = claim_of(c, tables[i], keys[i]);
        int64_t number = of->number - 1;
        numbers[i] = -1;
        if (number < first || number >= last) continue;
        numbers[i] = number;
        c->n_used--;
        uint64_t hole = (uint64_t)(of - c->cells);
        for (uint64_t at = (hole + 1) & mask; c->cells[at].number; at = (at + 1) & mask) {
            uint64_t home = claim_home(c, c->cells[at].table, c->cells[at].key);
            if (((at - home) & mask) >= ((at - hole) & mask)) {
                c->cells[hole] = c->cells[at];
                hole = at;
            }
        }
        c->cells[hole].number = 0;
    }
}

/* Put the claims of another table of cells, which is smaller, into these. */
void tb_claims_move(claims *to, const claims *from) {
    for (int64_t at = 0; at < from->n_cells; at++)
        if (from->cells[at].number)
            *claim_of(to, from->cells[at].table, from->cells[at].key) = from->cells[at];
    to->n_used = from->n_used;
}

/* Copy rows of `sizes` bytes each from places in one buffer to places in another. */
void tb_copy_rows(uint8_t *out, const int64_t *to, const uint8_t *rows, const int64_t *from,
                  const int64_t *sizes, int64_t n) {
    for (int64_t i = 0; i < n; i++) memcpy(out + to[i], rows + from[i], (size_t)sizes[i]);
}
