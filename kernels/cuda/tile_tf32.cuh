// The row tile's steps over values of floats whose products run on the tensor cores: tf32.cuh says how.
//
// To ldmatrix 16 bytes of a row are four floats as well as eight halves, and A's fragments of m16n8k8 lie as those of
// m16n8k16. So a step of 64 bytes of a value is 16 of K, and Linear is the same.
#pragma once
#include "tf32.cuh"
#include "tile_linear.cuh"

template <int TERMS, int CHAINS, int MT, int TN> struct Products<Tf32<TERMS>, CHAINS, MT, TN> {
  typedef Factor<Tf32<TERMS>, 4> Four;
  static constexpr int UNROLL = TERMS == 1 ? 64 : 1;
  template <class Load> static DEVICE void add(float (&acc)[CHAINS][MT][TN][4], const u32 (&a)[MT][2][4], Load b_of) {
    Four x[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int p = 0; p < 2; p++)
#pragma unroll
        for (int i = 0; i < 4; i++) x[m][p].take(i, __uint_as_float(a[m][p][i]));
#pragma unroll
    for (int j = 0; j < TN; j++) {
      const U32x4 b = b_of(j);
      Four y;
      y.take_weight(0, b.x); y.take_weight(1, b.y); y.take_weight(2, b.z); y.take_weight(3, b.w);
      add_products<CHAINS>([&](int p, int m) { return acc[p % CHAINS][m][j]; }, x, y);
    }
  }
};

// Four columns of a matrix as floats.
template <class E> DEVICE U32x4 load_four(const u8* p) {
  if constexpr (Element<E>::BYTES == 4) return load_global_u32x4(p);
  else {
    const u16* h = (const u16*)p;
    return U32x4{__float_as_uint(E::unpack(h[0])), __float_as_uint(E::unpack(h[1])), __float_as_uint(E::unpack(h[2])), __float_as_uint(E::unpack(h[3]))};
  }
}
// As load_columns, into a value of floats with zeros up to CHUNKS * 4 columns.
template <class Cfg, class E, int WIDTH, int CHUNKS, int LD, bool ALIGNED, bool PADDED, class Row>
DEVICE void load_floats(const Tile<Cfg>& tile, u32 value, const u8* matrix, int column, Row row) {
  constexpr int R = Cfg::R, WHOLE = !ALIGNED ? 0 : PADDED ? ceil_div(WIDTH, 4) : WIDTH / 4;
  const int thread = tile.warp * 32 + tile.lane;
  if constexpr (WHOLE > 0) {
    typedef Patch<R, WHOLE> P;
    in_batches<P::ITEMS, Cfg::NW * 32>(thread, [&](int i) {
      const int chunk = P::there(i) ? P::chunk(i) : 0;
      return load_four<E>(matrix + ((u64)row(P::row(i)) * LD + column + chunk * 4) * Element<E>::BYTES);
    }, [&](int i, U32x4 v) { if (P::there(i)) store_shared_u32x4(value + (P::chunk(i) * R + P::row(i)) * 16, v); });
  }
  for (int i = thread; i < R * (CHUNKS - WHOLE); i += Cfg::NW * 32) {
    const int r = i % R, chunk = WHOLE + i / R;
    u32 v[4];
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = chunk * 4 + j < WIDTH ? __float_as_uint(load_matrix<E, LD>(matrix, row(r), column + chunk * 4 + j)) : 0u;
    store_shared_u32x4(value + (chunk * R + r) * 16, U32x4{v[0], v[1], v[2], v[3]});
  }
}
// As copy_columns, to a matrix of floats; WIDTH is a multiple of four.
template <class Cfg, class E, int WIDTH, int LD_FROM, int LD_TO, class Row>
DEVICE void copy_floats(const Tile<Cfg>& tile, u8* to, int to_column, const u8* from, int from_column, Row row) {
  constexpr int ROWS = ceil_div(Cfg::R, Cfg::C), CHUNKS = WIDTH / 4;
  const int first = (int)tile.rank * ROWS;
  in_batches<ROWS * CHUNKS, Cfg::NW * 32>(tile.warp * 32 + tile.lane, [&](int i) {
    const int r = first + i / CHUNKS, c = i % CHUNKS * 4;
    return load_four<E>(from + ((u64)row(r < Cfg::R ? r : 0) * LD_FROM + from_column + c) * Element<E>::BYTES);
  }, [&](int i, U32x4 v) {
    const int r = first + i / CHUNKS, c = i % CHUNKS * 4;
    if (r < Cfg::R && tile.row0 + r < tile.n_rows) store_global_u32x4(to + ((u64)(tile.row0 + r) * LD_TO + to_column + c) * 4, v);
  });
}
// As store_columns, of a value of floats.
template <class Cfg, int WIDTH, int LD> DEVICE void store_floats(const Tile<Cfg>& tile, u8* to, int column, u32 value) {
  constexpr int ROWS = ceil_div(Cfg::R, Cfg::C), CHUNKS = WIDTH / 4;
  for (int i = tile.warp * 32 + tile.lane; i < ROWS * CHUNKS; i += Cfg::NW * 32) {
    const int r = (int)tile.rank * ROWS + i / CHUNKS, chunk = i % CHUNKS;
    if (r >= Cfg::R || tile.row0 + r >= tile.n_rows) continue;
    store_global_u32x4(to + ((u64)(tile.row0 + r) * LD + column + chunk * 4) * 4, load_shared_u32x4(value + (chunk * Cfg::R + r) * 16));
  }
}
// Zeros for columns [FIRST, END) of a value of floats that nothing else writes, and that a Linear's last step will read.
template <class Cfg, int FIRST, int END> DEVICE void zero_floats(const Tile<Cfg>& tile, u32 value) {
  for (int i = tile.warp * 32 + tile.lane; i < Cfg::R * (END - FIRST); i += Cfg::NW * 32)
    store_shared_f32(float_address<Cfg::R>(value, i % Cfg::R, FIRST + i / Cfg::R), 0.f);
}

// As contract, on the tensor cores: for products that Linear does not suit, as those of each step of a sequence. Rows of the
// tile times groups (which have weights in common, unless GROUPED) are rows of one product. A warp computes MT tiles of 16
// rows and TN of 8 columns at a time; weights lie in global memory as Linear's, [group][step][tile of columns][512 bytes].
template <class Cfg, int G, int N, int K, bool GROUPED, class X, class To>
DEVICE void contract_products(const Tile<Cfg>& tile, const u8* weights, X x, To to) {
  typedef typename Cfg::T T;
  constexpr int R = Cfg::R, ROWS = GROUPED ? R : R * G, BLOCKS = GROUPED ? G : 1, STEPS = ceil_div(K, 16);
  constexpr int TILES = ceil_div(N, 8), ROW_TILES = ceil_div(ROWS, 16);
  constexpr int MT = BLOCKS * ROW_TILES >= 2 * Cfg::NW ? 2 : 1, ROW_ITEMS = BLOCKS * ceil_div(ROW_TILES, MT);
  constexpr int EACH = ceil_div(TILES * ROW_ITEMS, Cfg::NW), TN = EACH < 4 ? EACH : TILES < 5 ? TILES : 4;  // all warps have some
  constexpr int COLUMN_ITEMS = ceil_div(TILES, TN);
  const int q = tile.lane >> 2, t = tile.lane & 3;
#pragma unroll 1
  for (int item = tile.warp; item < ROW_ITEMS * COLUMN_ITEMS; item += Cfg::NW) {
    const int block = item / COLUMN_ITEMS / ceil_div(ROW_TILES, MT), first_row = item / COLUMN_ITEMS % ceil_div(ROW_TILES, MT) * MT * 16;
    const int first_tile = item % COLUMN_ITEMS * TN;
    int r[MT][2], g[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int i = first_row + m * 16 + h * 8 + q, row = i < ROWS ? i : ROWS - 1;
        r[m][h] = row % R; g[m][h] = GROUPED ? block : row / R;
      }
    float sums[MT][TN][4];
#pragma unroll
    for (int i = 0; i < MT * TN * 4; i++) (&sums[0][0][0])[i] = 0.f;
    const u8* b_from = weights + ((u64)block * STEPS * TILES + first_tile) * 512 + tile.lane * 16;
#pragma unroll 1
    for (int step = 0; step < STEPS; step++, b_from += TILES * 512) {
      U32x4 b[TN];  // surplus tiles repeat the last one
#pragma unroll
      for (int j = 0; j < TN; j++) b[j] = load_global_u32x4_constant(b_from + (TILES % TN == 0 || first_tile + j < TILES ? j : TILES - 1 - first_tile) * 512);
      Factor<T, 4> a[MT][2];
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int p = 0; p < 2; p++)
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const int k = step * 16 + p * 8 + (i >> 1) * 4 + t;
            a[m][p].take(i, K % 16 == 0 || k < K ? x(r[m][i & 1], g[m][i & 1], k) : 0.f);
          }
#pragma unroll
      for (int j = 0; j < TN; j++) {
        Factor<T, 4> y;
        y.take_weight(0, b[j].x); y.take_weight(1, b[j].y); y.take_weight(2, b[j].z); y.take_weight(3, b[j].w);
        add_products<(MT * TN >= 4 ? 1 : 2)>([&](int, int m) { return sums[m][j]; }, a, y);
      }
    }
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int j = 0; j < TN; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int n = (first_tile + j) * 8 + 2 * t + (i & 1);
          if (first_row + m * 16 + (i >> 1) * 8 + q < ROWS && n < N) to(r[m][i >> 1], g[m][i >> 1], n, sums[m][j][i]);
        }
  }
}

template <int R> DEVICE U32x4 words_of(u32 value, int r, int c) { return load_shared_u32x4(value + ((c >> 2) * R + r) * 16); }
// As pair_dots. fetch(r, v, part, i) gives four floats, [part * D / 4 + 4 i ..), of vector v < F.
template <class Cfg, int F, int D, bool DIAGONAL, class Fetch, class To> DEVICE void pair_dots_floats(const Tile<Cfg>& tile, Fetch fetch, To to) {
  static_assert(F <= 32 && D % 16 == 0, "two m-tiles; a lane fetches 16 bytes at least");
  typedef Factor<typename Cfg::T, 4> Four;
  constexpr int MT = ceil_div(F, 16);
  const int g = tile.lane >> 2, t = tile.lane & 3;
#pragma unroll 1
  for (int r = tile.warp; r < Cfg::R; r += Cfg::NW) {
    float acc[MT][2 * MT][4];
#pragma unroll
    for (int i = 0; i < MT * 2 * MT * 4; i++) (&acc[0][0][0])[i] = 0.f;
    U32x4 next[2 * MT];
    const auto load = [&](int i) {
#pragma unroll
      for (int j = 0; j < 2 * MT; j++) next[j] = 8 * j + g < F ? fetch(r, 8 * j + g, t, i) : U32x4{0, 0, 0, 0};
    };
    load(0);
#pragma unroll 1
    for (int i = 0; i < D / 16; i++) {
      Four x[2 * MT];
#pragma unroll
      for (int j = 0; j < 2 * MT; j++) {
        x[j].take(0, __uint_as_float(next[j].x)); x[j].take(1, __uint_as_float(next[j].y));
        x[j].take(2, __uint_as_float(next[j].z)); x[j].take(3, __uint_as_float(next[j].w));
      }
      if (i + 1 < D / 16) load(i + 1);
#pragma unroll
      for (int m = 0; m < MT; m++) {
        Four a[1][2];
#pragma unroll
        for (int p = 0; p < 2; p++)
#pragma unroll
          for (int h = 0; h < 4; h++) a[0][p].copy(h, x[2 * m + h % 2], 2 * p + h / 2);
#pragma unroll
        for (int n = 0; n < 2 * m + 2; n++) add_products<1>([&](int, int) { return acc[m][n]; }, a, x[n]);
      }
    }
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int n = 0; n < 2 * m + 2; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int zi = 16 * m + g + 8 * (i >> 1), zj = 8 * n + 2 * t + (i & 1);
          if (zi < F && (DIAGONAL ? zj <= zi : zj < zi)) to(r, zi, zj, acc[m][n][i]);
        }
  }
}
