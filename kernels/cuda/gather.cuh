// Columns of a block that come of tables on the card: a tile's first step makes its rows of the block, of ids and of the
// columns that were staged, in device memory. Later steps, and later launches, read them there as they would a staged block.
//
// Each block of a cluster makes all of the tile's rows, so that it waits for no other; they write the same bytes.
#pragma once
#include "tile.cuh"

// 16 bytes of a table's row, or its last few columns. The plan writes these, as 12 ints.
struct GatherUnit {
  u32 at_low, at_high;      // byte in the tables of row 0's first column
  int rows, row_bytes;      // of the table
  int id, n_ids;            // among the row's ids
  int weight;               // the bag's first, or -1
  int column, columns;      // of the block
  int largest;              // maximum instead of sum
  float divisor;            // of the sum
  int unused;
};

// Returns where a unit's columns of a table's row lie. An id outside the table reads its last row: whoever parsed the ids
// refuses such; here it must only not read what is not there.
DEVICE const u8* gathered_row(const GatherUnit& u, const u8* tables, int id) {
  const u32 row = (u32)id < (u32)u.rows ? (u32)id : (u32)u.rows - 1;
  return tables + ((u64)u.at_high << 32 | u.at_low) + (u64)row * (u32)u.row_bytes;
}
template <class S, int J> DEVICE float element_of(const U32x4& v) {
  if constexpr (Same<S, Float32>::VALUE) return __uint_as_float(J == 0 ? v.x : J == 1 ? v.y : J == 2 ? v.z : v.w);
  else return half_of<S, J>(v);
}
template <class S> DEVICE void unpack_chunk(const U32x4& held, float* v) {
  v[0] = element_of<S, 0>(held); v[1] = element_of<S, 1>(held); v[2] = element_of<S, 2>(held); v[3] = element_of<S, 3>(held);
  if constexpr (Element<S>::BYTES == 2) { v[4] = element_of<S, 4>(held); v[5] = element_of<S, 5>(held); v[6] = element_of<S, 6>(held); v[7] = element_of<S, 7>(held); }
}
// 16 bytes of columns of storage S, of which `columns` are there, as floats.
template <class S, int PER> DEVICE void unpack_columns(const u8* from, int columns, float* v) {
  if (columns == PER && ((u64)from & 15) == 0) unpack_chunk<S>(load_global_u32x4_constant(from), v);
  else {
#pragma unroll
    for (int j = 0; j < PER; j++) v[j] = j < columns ? Element<S>::read(from + j * Element<S>::BYTES) : 0.f;
  }
}
// PER floats, of which `columns` are wanted, to elements E of a block.
template <class E, int PER> DEVICE void put_columns(u8* to, int columns, const float* v) {
  constexpr int BYTES = Element<E>::BYTES;
  if (PER * BYTES % 16 == 0 && columns == PER && ((u64)to & 15) == 0) {
    if constexpr (BYTES == 4) {
#pragma unroll
      for (int j = 0; j < PER; j += 4)
        store_global_u32x4(to + 4 * j, U32x4{__float_as_uint(v[j]), __float_as_uint(v[j + 1]), __float_as_uint(v[j + 2]), __float_as_uint(v[j + 3])});
    } else if constexpr (PER == 8) store_global_u32x4(to, pack_eight<E>(v));
  } else {
#pragma unroll
    for (int j = 0; j < PER; j++) if (j < columns) {
      if constexpr (BYTES == 4) *(float*)(to + 4 * j) = v[j]; else *(u16*)(to + 2 * j) = (u16)E::pack2(v[j], 0.f);
    }
  }
}

// Makes the gathered columns of the tile's rows: the first SINGLE units are rows of one id each and 16 bytes wide, of which
// many are read before the first is written; the other POOLED are bags, or narrow. `staged` is the staged rows, LD_STAGED bytes
// apart, whose ids begin at byte IDS and weights at byte WEIGHTS; `block` has rows of LD elements E; tables hold elements S.
template <class Cfg, class E, class S, int SINGLE, int POOLED, int LD, int LD_STAGED, int IDS, int WEIGHTS>
DEVICE void gather_columns(const Tile<Cfg>& tile, u8* block, const u8* staged, const u8* tables, const u8* table_of_units) {
  constexpr int PER = 16 / Element<S>::BYTES, R = Cfg::R, THREADS = Cfg::NW * 32;
  const GatherUnit* units = (const GatherUnit*)table_of_units;
  const int thread = tile.warp * 32 + tile.lane;
  const auto place = [&](const GatherUnit& u, int row) { return block + ((u64)row * LD + u.column) * Element<E>::BYTES; };
  if constexpr (SINGLE > 0) {
    constexpr int N = R * SINGLE, EACH = ceil_div(N, THREADS), BATCH = EACH < 8 ? EACH : 8;
    for (int first = thread; first < N; first += BATCH * THREADS) {
      const u8* from[BATCH];
      U32x4 held[BATCH];
#pragma unroll
      for (int j = 0; j < BATCH; j++) if (const int i = first + j * THREADS; i < N) {
        const GatherUnit& u = units[i % SINGLE];
        from[j] = gathered_row(u, tables, ((const int*)(staged + (u64)tile.row(i / SINGLE) * LD_STAGED + IDS))[u.id]);
      }
#pragma unroll
      for (int j = 0; j < BATCH; j++) if (first + j * THREADS < N) held[j] = load_global_u32x4_constant(from[j]);
#pragma unroll
      for (int j = 0; j < BATCH; j++) if (const int i = first + j * THREADS; i < N) {
        u8* to = place(units[i % SINGLE], tile.row(i / SINGLE));
        bool whole = false;
        if constexpr (Same<E, S>::VALUE) whole = ((u64)to & 15) == 0;
        if (whole) store_global_u32x4(to, held[j]);
        else {
          float v[PER];
          unpack_chunk<S>(held[j], v);
          put_columns<E, PER>(to, PER, v);
        }
      }
    }
  }
  for (int i = thread; i < R * POOLED; i += THREADS) {
    const GatherUnit u = units[SINGLE + i % (POOLED > 0 ? POOLED : 1)];
    const int row = tile.row(i / (POOLED > 0 ? POOLED : 1));
    const u8* mine = staged + (u64)row * LD_STAGED;
    const int* ids = (const int*)(mine + IDS) + u.id;
    const float* weights = (const float*)(mine + WEIGHTS) + u.weight;
    float sums[PER] = {};
#pragma unroll 4
    for (int k = 0; k < u.n_ids; k++) {
      float v[PER];
      unpack_columns<S, PER>(gathered_row(u, tables, ids[k]), u.columns, v);
      const float w = u.weight >= 0 ? weights[k] : u.largest ? 0.f : 1.f;
#pragma unroll
      for (int j = 0; j < PER; j++) {
        const float x = u.largest ? v[j] + w : v[j] * w;
        if (k == 0) sums[j] = x; else sums[j] = u.largest ? (x > sums[j] || x != x ? x : sums[j]) : sums[j] + x;
      }
    }
#pragma unroll
    for (int j = 0; j < PER; j++) sums[j] = u.largest ? sums[j] : sums[j] / u.divisor;
    put_columns<E, PER>(place(u, row), u.columns, sums);
  }
}
// Columns [from_column, + WIDTH) of the tile's staged rows become columns of the block, whose elements are the same E.
template <class Cfg, class E, int WIDTH, int LD, int LD_STAGED>
DEVICE void place_columns(const Tile<Cfg>& tile, u8* block, int column, const u8* staged, int from_column) {
  constexpr int BYTES = Element<E>::BYTES, PER = 16 / BYTES, UNITS = ceil_div(WIDTH, PER);
  in_batches<Cfg::R * UNITS, Cfg::NW * 32>(tile.warp * 32 + tile.lane, [&](int i) {
    const u8* from = staged + (u64)tile.row(i / UNITS) * LD_STAGED + (from_column + i % UNITS * PER) * BYTES;
    const int columns = WIDTH - i % UNITS * PER;
    u32 word[4] = {0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < PER; j++) if (j < columns) {
      if constexpr (BYTES == 4) word[j] = *(const u32*)(from + 4 * j); else word[j / 2] |= (u32)*(const u16*)(from + 2 * j) << (j % 2 * 16);
    }
    return U32x4{word[0], word[1], word[2], word[3]};
  }, [&](int i, U32x4 v) {
    u8* to = block + ((u64)tile.row(i / UNITS) * LD + column + i % UNITS * PER) * BYTES;
    const int columns = WIDTH - i % UNITS * PER;
    const u32 word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < PER; j++) if (j < columns) {
      if constexpr (BYTES == 4) *(u32*)(to + 4 * j) = word[j]; else *(u16*)(to + 2 * j) = (u16)(word[j / 2] >> (j % 2 * 16));
    }
  });
}
