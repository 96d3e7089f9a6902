/* Hashing and dividing keys: partition.py in C. */

#ifndef TB_HASH_H
#define TB_HASH_H

#include <stdint.h>

/* The finaliser of splitmix64. */
static inline uint64_t mix64(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Segments take the upper half of the hash, buckets within one the lower. */
static inline int64_t hash_segment(uint64_t hash, int64_t n_segments) {
    return (int64_t)((hash >> 32) * (uint64_t)n_segments >> 32);
}

#endif
