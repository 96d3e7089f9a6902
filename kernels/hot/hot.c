/* The hot rows of one table: which are held, and which come in. See rows.py and plain.py, which says
   the same in Python, decision for decision; slots.py is of rows that lie elsewhere.

   Everything lies in arrays that the caller owns. A key's *cell* tells its *slot*; cells are probed
   one after the other and hold 32 bits of the key's hash, so that a miss reads one cache line. Keys
   are taken some at a time, and what a step needs was prefetched by the step before. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "claims.h"

/* Slots that one search for a victim looks at: a group has its period, and one line of memory.
   CHUNK keys are under way at once. A row's first lines are prefetched; the machine fetches on. */
enum { GROUP = 16, CHUNK = 32, PREFETCHED = 4 };
/* A block of the sketch is a line of memory: counters of 4 bits, of which a key has four. */
enum { WORDS = 8, PROBES = 4, MOST_COUNT = 15, MOST_USES = 255 };

typedef struct {
    int64_t key;
    double read_at; /* or one of these */
} entry;
#define INVALID (-HUGE_VAL) /* the row changed */
#define COMING (-DBL_MAX)   /* the row is on its way to the slot */

/* Mirrored by the cdef in _c.py. */
typedef struct {
    uint64_t seed; /* keys come from clients, who must not know which of them collide */
    int64_t capacity, n_cells, n_blocks, row_bytes;
    int64_t period_keys; /* after so many keys, counts are halved */
    double stale_s;
    uint64_t *cells;         /* [n_cells]: 32 bits of hash, then the slot + 1; 0 is empty */
    entry *entries;          /* [capacity] */
    uint8_t *rows;           /* [capacity, row_bytes] */
    uint8_t *uses;           /* [capacity] */
    uint32_t *use_periods;   /* [capacity / GROUP]: when its uses were last halved */
    uint32_t *pins;          /* [capacity]: who reads or writes the slot; NULL where rows are copied */
    uint64_t *counts;        /* [n_blocks, WORDS] */
    uint32_t *count_periods; /* [n_blocks] */
    int64_t n_rows, hand, n_asked;
    uint32_t period;
    int64_t hits, misses, stale, admitted, refreshed, refused, evicted, invalidated;
} hot;

static inline uint64_t hash_of(const hot *h, int64_t key) { return mix64((uint64_t)key ^ h->seed); }

static inline int64_t below(uint64_t hash32, int64_t n) {
    return (int64_t)((hash32 * (uint64_t)n) >> 32);
}

static inline int64_t home(const hot *h, uint64_t hash) { return below(hash >> 32, h->n_cells); }

static inline int64_t block_of(const hot *h, uint64_t hash) {
    return below(hash & 0xffffffffu, h->n_blocks);
}

/* Cells */

/* The first slot from a key's home on whose cell has its bits of hash, or -1. */
static inline int64_t guess(const hot *h, uint64_t hash) {
    for (int64_t at = home(h, hash);; at = at + 1 == h->n_cells ? 0 : at + 1) {
        uint64_t cell = h->cells[at];
        if (!cell) return -1;
        if (cell >> 32 == hash >> 32) return (int64_t)(cell & 0xffffffffu) - 1;
    }
}

static int64_t find_cell(const hot *h, int64_t key, uint64_t hash) {
    for (int64_t at = home(h, hash);; at = at + 1 == h->n_cells ? 0 : at + 1) {
        uint64_t cell = h->cells[at];
        if (!cell) return -1;
        if (cell >> 32 == hash >> 32 && h->entries[(cell & 0xffffffffu) - 1].key == key) return at;
    }
}

static inline int64_t slot_of(const hot *h, int64_t key, uint64_t hash, int64_t guessed) {
    if (guessed < 0 || h->entries[guessed].key == key) return guessed;
    int64_t at = find_cell(h, key, hash);
    return at < 0 ? -1 : (int64_t)(h->cells[at] & 0xffffffffu) - 1;
}

static void put(hot *h, uint64_t hash, int64_t slot) {
    int64_t at = home(h, hash);
    while (h->cells[at]) at = at + 1 == h->n_cells ? 0 : at + 1;
    h->cells[at] = (hash >> 32) << 32 | (uint64_t)(slot + 1);
}

/* Empty a cell, and move up those that were pushed past it. */
static void empty(hot *h, int64_t hole) {
    for (int64_t at = hole;;) {
        at = at + 1 == h->n_cells ? 0 : at + 1;
        if (!h->cells[at]) break;
        int64_t from_home = at - below(h->cells[at] >> 32, h->n_cells), from_hole = at - hole;
        if (from_home < 0) from_home += h->n_cells;
        if (from_hole < 0) from_hole += h->n_cells;
        if (from_home >= from_hole) {
            h->cells[hole] = h->cells[at];
            hole = at;
        }
    }
    h->cells[hole] = 0;
}

/* Uses of the rows that are held */

static inline uint8_t *uses_of(hot *h, int64_t group) {
    uint8_t *uses = h->uses + group * GROUP;
    uint32_t passed = h->period - h->use_periods[group];
    if (passed) {
        for (int i = 0; i < GROUP; i++) uses[i] = passed < 8 ? uses[i] >> passed : 0;
        h->use_periods[group] = h->period;
    }
    return uses;
}

static inline void use(hot *h, int64_t slot) {
    uint8_t *uses = uses_of(h, slot / GROUP) + slot % GROUP;
    *uses += *uses < MOST_USES;
}

/* The sketch: counts of the keys that are not held */

static inline uint64_t *block_at(hot *h, uint64_t hash) {
    int64_t block = block_of(h, hash);
    uint64_t *words = h->counts + block * WORDS;
    uint32_t passed = h->period - h->count_periods[block];
    if (passed) {
        uint64_t kept = passed < 4 ? (0x1111111111111111u * (15u >> passed)) : 0;
        for (int i = 0; i < WORDS; i++) words[i] = passed < 4 ? words[i] >> passed & kept : 0;
        h->count_periods[block] = h->period;
    }
    return words;
}

/* Counter i of a key: 5 bits of hash choose among the 32 of words 2 i and 2 i + 1. */
#define EACH_COUNTER(words, hash)                                                                  \
    uint64_t bits = ((hash) * 0x9e3779b97f4a7c15u) >> 44, *word = (words);                         \
    for (int i = 0, in = (bits >> 4) & 1, at = (bits & 15) * 4; i < PROBES;                        \
         i++, bits >>= 5, word += 2, in = (bits >> 4) & 1, at = (bits & 15) * 4)

static inline uint64_t estimate(hot *h, uint64_t hash) {
    uint64_t least = MOST_COUNT;
    EACH_COUNTER(block_at(h, hash), hash) {
        uint64_t count = word[in] >> at & 15;
        if (count < least) least = count;
    }
    return least;
}

static inline void count(hot *h, uint64_t hash) {
    EACH_COUNTER(block_at(h, hash), hash) {
        if ((word[in] >> at & 15) < MOST_COUNT) word[in] += (uint64_t)1 << at;
    }
}

static void count_at_least(hot *h, uint64_t hash, uint64_t uses) {
    uint64_t least = uses < MOST_COUNT ? uses : MOST_COUNT;
    EACH_COUNTER(block_at(h, hash), hash) {
        uint64_t is = word[in] >> at & 15;
        if (is < least) word[in] += (least - is) << at;
    }
}

/* What rows.py calls */

static int64_t begin(hot *h, const int64_t *keys, int64_t n, uint64_t *hashes, int64_t *slots,
                     int with_rows) {
    int64_t m = n < CHUNK ? n : CHUNK;
    for (int64_t i = 0; i < m; i++) {
        hashes[i] = hash_of(h, keys[i]);
        __builtin_prefetch(h->cells + home(h, hashes[i]));
    }
    for (int64_t i = 0; i < m; i++) {
        int64_t slot = slots[i] = guess(h, hashes[i]);
        if (slot < 0) {
            int64_t block = block_of(h, hashes[i]);
            __builtin_prefetch(h->counts + block * WORDS, 1);
            __builtin_prefetch(h->count_periods + block);
            continue;
        }
        __builtin_prefetch(h->entries + slot);
        __builtin_prefetch(h->uses + slot, 1);
        if (h->pins) __builtin_prefetch(h->pins + slot, 1);
        const uint8_t *row = h->rows + slot * h->row_bytes;
        if (with_rows)
            for (int k = 0; k < PREFETCHED && 64 * k < h->row_bytes; k++)
                __builtin_prefetch(row + 64 * k);
    }
    return m;
}

/* Find the rows that are held and not stale: copy them to `out`, each to its key's place, or, if
   there is none, pin their slots and tell these in `slots`. The places of the others in `misses`.
   Returns how many these are. */
static inline int64_t look(hot *h, const int64_t *keys, int64_t n, double now, uint8_t *out,
                           int32_t *slots, int64_t *misses) {
    uint64_t hashes[CHUNK];
    int64_t guessed[CHUNK], n_misses = 0;
    for (int64_t first = 0, m; first < n; first += m) {
        m = begin(h, keys + first, n - first, hashes, guessed, out != NULL);
        for (int64_t i = 0; i < m; i++) {
            int64_t at = first + i, slot = slot_of(h, keys[at], hashes[i], guessed[i]);
            if (slot >= 0) {
                double read_at = h->entries[slot].read_at;
                use(h, slot);
                if (read_at > COMING && now - read_at <= h->stale_s) {
                    if (out) {
                        memcpy(out + at * h->row_bytes, h->rows + slot * h->row_bytes,
                               (size_t)h->row_bytes);
                    } else {
                        slots[at] = (int32_t)slot;
                        h->pins[slot]++;
                    }
                    continue;
                }
                h->stale += read_at != COMING;
            } else {
                count(h, hashes[i]);
            }
            misses[n_misses++] = at;
        }
    }
    h->hits += n - n_misses;
    h->misses += n_misses;
    h->n_asked += n;
    h->period += (uint32_t)(h->n_asked / h->period_keys);
    h->n_asked %= h->period_keys;
    return n_misses;
}

int64_t tb_hot_take(hot *h, const int64_t *keys, int64_t n, double now, uint8_t *out,
                    int64_t *misses) {
    return look(h, keys, n, now, out, NULL, misses);
}

/* A slot for a key that is not held, or -1: whoever was asked for least often of some must have been
   asked for less often than the key. Those that are pinned keep their slots. */
static int64_t make_room(hot *h, uint64_t uses) {
    if (h->n_rows < h->capacity) return h->n_rows++;
    int64_t group = h->hand;
    h->hand = (group + 1) % (h->capacity / GROUP);
    const uint8_t *of = uses_of(h, group);
    const uint32_t *pins = h->pins ? h->pins + group * GROUP : NULL;
    int least = -1;
    for (int i = 0; i < GROUP; i++)
        if (!(pins && pins[i]) && (least < 0 || of[i] < of[least])) least = i;
    if (least < 0 || uses <= of[least]) return -1;
    int64_t slot = group * GROUP + least, key = h->entries[slot].key;
    uint64_t hash = hash_of(h, key);
    count_at_least(h, hash, of[least]);
    empty(h, find_cell(h, key, hash));
    h->evicted++;
    return slot;
}

/* A slot for a row that was asked for at `read_at`, or -1 if it is not worth one, or none is free. */
static inline int64_t admit(hot *h, int64_t key, uint64_t hash, double read_at) {
    int64_t at = find_cell(h, key, hash), slot;
    if (at >= 0) {
        slot = (int64_t)(h->cells[at] & 0xffffffffu) - 1;
        if (h->entries[slot].read_at > read_at) return -1;
        if (h->pins && h->pins[slot]) {
            h->refused++;
            return -1;
        }
        h->refreshed++;
        return slot;
    }
    uint64_t uses = estimate(h, hash);
    slot = make_room(h, uses);
    if (slot < 0) {
        h->refused++;
        return -1;
    }
    put(h, hash, slot);
    uses_of(h, slot / GROUP)[slot % GROUP] = (uint8_t)uses;
    h->entries[slot].key = key;
    h->admitted++;
    return slot;
}

/* Take rows in that were asked for at `read_at`, if they are worth a place. */
void tb_hot_admit(hot *h, const int64_t *keys, int64_t n, const uint8_t *rows, double read_at) {
    uint64_t hashes[CHUNK];
    int64_t guessed[CHUNK];
    for (int64_t first = 0, m; first < n; first += m) {
        m = begin(h, keys + first, n - first, hashes, guessed, 0);
        for (int64_t i = 0; i < m; i++) {
            int64_t slot = admit(h, keys[first + i], hashes[i], read_at);
            if (slot < 0) continue;
            h->entries[slot].read_at = read_at;
            memcpy(h->rows + slot * h->row_bytes, rows + (first + i) * h->row_bytes,
                   (size_t)h->row_bytes);
        }
    }
}

/* The same of several tables: the keys of table t are keys[splits[t]] and on, and their rows lie end
   to end in `out`. `misses` are places in `keys`. */
int64_t tb_hot_take_all(hot **tables, int64_t n_tables, const int64_t *keys, const int64_t *splits,
                        double now, uint8_t *out, int64_t *misses) {
    int64_t n_misses = 0;
    for (int64_t t = 0; t < n_tables; t++) {
        int64_t first = splits[t], n = splits[t + 1] - first;
        int64_t n_more = tb_hot_take(tables[t], keys + first, n, now, out, misses + n_misses);
        for (int64_t i = n_misses; i < n_misses + n_more; i++) misses[i] += first;
        n_misses += n_more;
        out += n * tables[t]->row_bytes;
    }
    return n_misses;
}

/* The same of several tables, but for keys that are not `kept`. */
void tb_hot_admit_all(hot **tables, int64_t n_tables, const int64_t *keys, const int64_t *splits,
                      const uint8_t *rows, const uint8_t *kept, double read_at) {
    for (int64_t t = 0; t < n_tables; t++) {
        int64_t size = tables[t]->row_bytes;
        for (int64_t first = splits[t], last; first < splits[t + 1]; first = last) {
            for (last = first; last < splits[t + 1] && kept[last];) last++;
            tb_hot_admit(tables[t], keys + first, last - first, rows, read_at);
            rows += (last - first) * size;
            for (; last < splits[t + 1] && !kept[last]; last++) rows += size;
        }
    }
}

/* Rows that changed are misses from now on; they keep their places, for the rows that replace them. */
void tb_hot_invalidate(hot *h, const int64_t *keys, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        int64_t at = find_cell(h, keys[i], hash_of(h, keys[i]));
        if (at < 0) continue;
        entry *e = h->entries + (h->cells[at] & 0xffffffffu) - 1;
        h->invalidated += e->read_at > INVALID;
        e->read_at = INVALID;
    }
}

/* What slots.py calls: rows lie elsewhere, this says in which slots. */

/* As tb_hot_take_all, but pin the slots of rows that are held, and tell them; of the others tell
   ~0, ~1 and so on. */
int64_t tb_hot_lease_all(hot **tables, int64_t n_tables, const int64_t *keys, const int64_t *splits,
                         double now, int32_t *slots, int64_t *misses) {
    int64_t n_misses = 0;
    for (int64_t t = 0; t < n_tables; t++) {
        int64_t first = splits[t], n = splits[t + 1] - first, *more = misses + n_misses;
        int64_t n_more = look(tables[t], keys + first, n, now, NULL, slots + first, more);
        for (int64_t i = 0; i < n_more; i++) {
            more[i] += first;
            slots[more[i]] = (int32_t)~(n_misses + i);
        }
        n_misses += n_more;
    }
    return n_misses;
}

/* Give slots to rows that come in, of keys that are `kept`, if they are worth one. Such a slot is
   pinned, and its row is not there before tb_hot_arrived_all. `places` are those in `keys`; how many
   each table has, `counts`. Returns how many there are. */
int64_t tb_hot_place_all(hot **tables, int64_t n_tables, const int64_t *keys, const int64_t *splits,
                         const uint8_t *kept, double read_at, int64_t *places, int32_t *slots,
                         int64_t *counts) {
    uint64_t hashes[CHUNK];
    int64_t guessed[CHUNK], n = 0;
    for (int64_t t = 0; t < n_tables; t++) {
        int64_t before = n;
        hot *h = tables[t];
        for (int64_t first = splits[t], m; first < splits[t + 1]; first += m) {
            m = begin(h, keys + first, splits[t + 1] - first, hashes, guessed, 0);
            for (int64_t i = 0; i < m; i++) {
                if (!kept[first + i]) continue;
                int64_t slot = admit(h, keys[first + i], hashes[i], read_at);
                if (slot < 0) continue;
                h->entries[slot].read_at = COMING;
                h->pins[slot] = 1;
                places[n] = first + i;
                slots[n++] = (int32_t)slot;
            }
        }
        counts[t] = n - before;
    }
    return n;
}

/* Rows are in their slots, which are no longer pinned for them; those that changed meanwhile are no
   good. INVALID as `read_at`: they did not get there. */
void tb_hot_arrived_all(hot **tables, int64_t n_tables, const int32_t *slots, const int64_t *splits,
                        double read_at) {
    for (int64_t t = 0; t < n_tables; t++)
        for (int64_t i = splits[t]; i < splits[t + 1]; i++) {
            entry *e = tables[t]->entries + slots[i];
            if (e->read_at == COMING) e->read_at = read_at;
            tables[t]->pins[slots[i]]--;
        }
}

/* Slots are read no longer; negative ones are none. */
void tb_hot_release_all(hot **tables, int64_t n_tables, const int32_t *slots,
                        const int64_t *splits) {
    for (int64_t t = 0; t < n_tables; t++)
        for (int64_t i = splits[t]; i < splits[t + 1]; i++)
            if (slots[i] >= 0) tables[t]->pins[slots[i]]--;
}
