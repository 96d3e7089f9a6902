// A row tile's Linears: on the tensor cores with streamed weights, as dot products of lanes, or as plain sums; and the products
// of all pairs of a row's vectors. Of warpgroups: tile_wgmma.cuh.
#pragma once
#include "tile.cuh"

// What a step of a Linear adds to its sums: two products of halves. a holds A's fragments, b_of(j) gives B's of a tile of
// columns. Of floats: tile_tf32.cuh.
template <class T, int CHAINS, int MT, int TN> struct Products {
  static constexpr int UNROLL = 64;  // steps at a time, as registers allow
  template <class Load> static DEVICE void add(float (&acc)[CHAINS][MT][TN][4], const u32 (&a)[MT][2][4], Load b_of) {
#pragma unroll
    for (int j = 0; j < TN; j++) {
      const U32x4 b = b_of(j);
#pragma unroll
      for (int m = 0; m < MT; m++) T::mma(acc[0][m][j], a[m][0], b.x, b.y);
#pragma unroll
      for (int m = 0; m < MT; m++) T::mma(acc[CHAINS - 1][m][j], a[m][1], b.z, b.w);
    }
  }
};

// ---- Linear: N columns over the tensor cores, from values of halves, or of floats where Cfg::T is Tf32

// Streams the weights of K steps, STEP bytes each, KS to a stage.
template <int K, int KS, int STEP, class Cfg> DEVICE void produce_stream(Tile<Cfg>& tile, const u8*& weights) {
  for (int k = 0; k < K; k += KS) {
    const int bytes = (K - k < KS ? K - k : KS) * STEP;
    tile.await_free();
    if (tile.lane == 0) {
      mbarrier_arrive_expect(tile.full(tile.slot), bytes);
      bulk_copy_to_shared(tile.ring + tile.slot * Cfg::SB, weights, bytes, tile.full(tile.slot));
    }
    weights += bytes;
    tile.next();
  }
}
// Makes columns c and c + 1 of row r, of N that are wanted and WIDTH that there are; those beyond N become zeros.
template <int N, int WIDTH, class Epilogue> DEVICE void make_pair(int r, int c, float& v0, float& v1, const Epilogue& epilogue) {
  if (WIDTH == N || c < N) epilogue(r, c, v0, v1); else v0 = 0.f;
  if (WIDTH != N && c + 1 >= N) v1 = 0.f;
}
template <class Cfg, bool HALVES> DEVICE void store_pair(u32 value, int r, int c, float v0, float v1) {
  if constexpr (HALVES) store_shared_u32(half_address<Cfg::R>(value, r, c), Cfg::T::pack2(v0, v1));
  else { store_shared_f32(float_address<Cfg::R>(value, r, c), v0); store_shared_f32(float_address<Cfg::R>(value, r, c + 1), v1); }
}

// Linear::fold: adds a pair of columns, times their factors, to sums of a row; the lanes of a quad add up what they have, and
// store it as one of the block's PARTS / OUT parts, of which MADE are made and the rest are zeros; then the peers are sent it.
template <int OUT, int COLUMNS> DEVICE void add_folded(float* sums, u32 factors, int column, float v0, float v1) {
#pragma unroll
  for (int n = 0; n < OUT; n++) {
    const F32x2 w = load_shared_f32x2(factors + (n * COLUMNS + column) * 4);
    sums[n] += v0 * w.x + v1 * w.y;
  }
}
template <class Cfg, int OUT, int PARTS, int MADE> DEVICE void store_folded(const Tile<Cfg>& tile, u32 value, int r, int part, const float* sums) {
#pragma unroll
  for (int n = 0; n < OUT; n++) {
    float v = sums[n];
    v += shuffle_xor(v, 1);
    v += shuffle_xor(v, 2);
    if ((tile.lane & 3) != 0) continue;
    store_shared_f32(float_address<Cfg::R>(value, r, (int)tile.rank * PARTS + part * OUT + n), v);
    if (part == 0)
      for (int k = MADE; k < PARTS / OUT; k++) store_shared_f32(float_address<Cfg::R>(value, r, (int)tile.rank * PARTS + k * OUT + n), 0.f);
  }
}
template <class Cfg, int PARTS> DEVICE void send_folded(Tile<Cfg>& tile, u32 value) {
  if constexpr (Cfg::C > 1) {
    constexpr int BYTES = PARTS * Cfg::R * 4;
    fence_async_shared();
    tile.sync();
    if (tile.warp == 0 && tile.lane < Cfg::C && tile.lane != (int)tile.rank) {
      const u32 from = value + tile.rank * BYTES;
      bulk_copy_to_cluster(map_to_rank(from, tile.lane), from, BYTES, map_to_rank(tile.gather_bar(), tile.lane));
    }
    tile.arrive_at_gather((Cfg::C - 1) * BYTES);
  }
}

// acc[m][j] holds rows 16 m .. and the j-th of the warp's TN tiles of 8 columns. K runs in steps of 64 bytes, 32 halves: a
// weight chunk of 512 bytes a tile holds the B fragments of two m16n8k16 products, one 16-byte load a lane.
template <class Cfg, int N> struct Linear {
  static constexpr int R = Cfg::R, C = Cfg::C, NW = Cfg::NW, MT = R / 16;
  static constexpr int TILES = ceil_div(ceil_div(N, 8), C), TN = ceil_div(TILES, NW), STEP = TILES * 512;
  static constexpr int KS = Cfg::SB / STEP;                   // steps of a full stage
  static constexpr int CHAINS = TN * MT >= 4 ? 1 : 2;         // two sums where one alone would wait for itself
  static_assert(!Cfg::STREAM || KS >= 1, "a stage holds less than one step");
  struct Sums { float acc[CHAINS][MT][TN][4]; };

  template <int STEPS> static DEVICE void produce(Tile<Cfg>& tile, const u8*& weights) { produce_stream<STEPS, KS, STEP>(tile, weights); }
  static DEVICE void clear(Sums& s) {
#pragma unroll
    for (int h = 0; h < CHAINS; h++)
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int j = 0; j < TN; j++)
#pragma unroll
          for (int i = 0; i < 4; i++) s.acc[h][m][j][i] = 0.f;
  }
  template <class Load> static DEVICE void step(Sums& s, u32 a_address, Load b_of) {
    u32 a[MT][2][4];
#pragma unroll
    for (int m = 0; m < MT; m++) { ldmatrix_x4(a[m][0], a_address + m * 256); ldmatrix_x4(a[m][1], a_address + m * 256 + R * 32); }
    Products<typename Cfg::T, CHAINS, MT, TN>::add(s.acc, a, b_of);
  }
  // Adds the product of STEPS steps of a value (from its address on) and the next weights of the stream.
  template <int STEPS> static DEVICE void accumulate(Tile<Cfg>& tile, Sums& s, u32 value, const u8*& weights) {
    u32 a = value + ((tile.lane >> 4) * R + (tile.lane & 15)) * 16;
    if constexpr (!Cfg::STREAM) {
      const u8* mine = weights + tile.warp * TN * 512 + tile.lane * 16;
#pragma unroll 1
      for (int k = 0; k < STEPS; k++, a += R * 64, mine += STEP) {
        U32x4 b[TN];  // all in flight at once, in the order written: left alone, the compiler keeps several steps' and spills
#pragma unroll
        for (int j = 0; j < TN; j++) b[j] = TILES % NW == 0 || tile.warp * TN + j < TILES ? load_global_u32x4(mine + j * 512) : U32x4{0, 0, 0, 0};
        step(s, a, [&](int j) { return b[j]; });
      }
      weights += STEPS * STEP;
    } else {
      u32 offset[TN];  // surplus tiles repeat the last one
#pragma unroll
      for (int j = 0; j < TN; j++) { const int t = tile.warp * TN + j; offset[j] = (t < TILES ? t : TILES - 1) * 512 + tile.lane * 16; }
      for (int k = 0; k < STEPS; k += KS) {
        mbarrier_wait(tile.full(tile.slot), tile.parity);
        const u32 b = tile.ring + tile.slot * Cfg::SB;
#pragma unroll(Products<typename Cfg::T, CHAINS, MT, TN>::UNROLL)
        for (int kk = 0; kk < (KS < STEPS ? KS : STEPS); kk++) {
          if (STEPS % KS == 0 || k + kk < STEPS) { step(s, a, [&](int j) { return load_shared_u32x4(b + kk * STEP + offset[j]); }); a += R * 64; }
        }
        if (k || tile.held) tile.free_last();  // of the stage before, whose products this one's followed
        tile.next();
      }
      tile.held = true;
    }
  }
  // Adds biases (floats in shared memory, this block's columns), calls epilogue(r, c, v0, v1) on pairs of columns, stores them
  // in `value` (halves or floats) and sends them to the peers. Columns N and beyond become zeros. gathered() must follow.
  template <bool HALVES, class Epilogue> static DEVICE void finish(Tile<Cfg>& tile, Sums& s, u32 value, u32 bias, Epilogue epilogue) {
    constexpr int TILE_BYTES = R * 8 * (HALVES ? 2 : 4);
    const int t0 = tile.warp * TN, first = (int)tile.rank * TILES;
#pragma unroll
    for (int j = 0; j < TN; j++) {
      const int t = t0 + j, c = (first + t) * 8 + 2 * (tile.lane & 3);
      if (t < TILES) {
        const F32x2 b = load_shared_f32x2(bias + (t * 8 + 2 * (tile.lane & 3)) * 4);
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
          for (int h = 0; h < 2; h++) {
            float v0 = s.acc[0][m][j][2 * h] + b.x, v1 = s.acc[0][m][j][2 * h + 1] + b.y;
            if (CHAINS == 2) { v0 += s.acc[CHAINS - 1][m][j][2 * h]; v1 += s.acc[CHAINS - 1][m][j][2 * h + 1]; }
            const int r = m * 16 + h * 8 + (tile.lane >> 2);
            make_pair<N, TILES * C * 8>(r, c, v0, v1, epilogue);
            store_pair<Cfg, HALVES>(value, r, c, v0, v1);
          }
      }
    }
    if constexpr (C > 1) {
      fence_async_shared();
      __syncwarp();
      const int n = TILES - t0 < TN ? TILES - t0 : TN;
      if (n > 0 && tile.lane < C && tile.lane != (int)tile.rank) {
        const u32 from = value + (first + t0) * TILE_BYTES;
        bulk_copy_to_cluster(map_to_rank(from, tile.lane), from, n * TILE_BYTES, map_to_rank(tile.gather_bar(), tile.lane));
      }
      tile.arrive_at_gather((C - 1) * TILES * TILE_BYTES);
    }
    if constexpr (Cfg::STREAM) { tile.free_last(); tile.held = false; }  // the sums are stored: all loads have been used
  }
  // Instead of storing them: sums of its columns times factors (floats in shared memory, [OUT][this block's columns]), each
  // warp's a part of `value`; see store_folded.
  template <int OUT, int PARTS, class Epilogue> static DEVICE void fold(Tile<Cfg>& tile, Sums& s, u32 value, u32 bias, u32 factors, Epilogue epilogue) {
    float sums[MT][2][OUT] = {};
#pragma unroll
    for (int j = 0; j < TN; j++) {
      const int t = tile.warp * TN + j, column = t * 8 + 2 * (tile.lane & 3), c = (int)tile.rank * (TILES * 8) + column;
      if (t >= TILES) continue;
      const F32x2 b = load_shared_f32x2(bias + column * 4);
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          float v0 = s.acc[0][m][j][2 * h] + b.x, v1 = s.acc[0][m][j][2 * h + 1] + b.y;
          if (CHAINS == 2) { v0 += s.acc[CHAINS - 1][m][j][2 * h]; v1 += s.acc[CHAINS - 1][m][j][2 * h + 1]; }
          make_pair<N, TILES * C * 8>(m * 16 + h * 8 + (tile.lane >> 2), c, v0, v1, epilogue);
          add_folded<OUT, TILES * 8>(sums[m][h], factors, column, v0, v1);
        }
    }
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) store_folded<Cfg, OUT, PARTS, NW>(tile, value, m * 16 + h * 8 + (tile.lane >> 2), tile.warp, sums[m][h]);
    send_folded<Cfg, PARTS>(tile, value);
    if constexpr (Cfg::STREAM) { tile.free_last(); tile.held = false; }
  }
};
// Zeros for columns FROM to TO of a value of halves, which are fewer than a warp's lanes.
template <class Cfg, int FROM, int TO> DEVICE void zero_columns(const Tile<Cfg>& tile, u32 value) {
  for (int r = tile.warp; r < Cfg::R; r += Cfg::NW)
    for (int c = FROM + tile.lane; c < TO; c += 32) store_shared_u16(half_address<Cfg::R>(value, r, c), 0);
}
// Sends the peers this block's share of the rows of a value. gathered() must follow.
template <class Cfg, int CHUNKS> DEVICE void exchange_rows(Tile<Cfg>& tile, u32 value) {
  constexpr int BYTES = Cfg::R / Cfg::C * 16;
  fence_async_shared();
  tile.sync();
  for (int i = tile.warp * 32 + tile.lane; i < CHUNKS * (Cfg::C - 1); i += Cfg::NW * 32) {
    const u32 peer = (tile.rank + 1 + i / CHUNKS) % Cfg::C, from = value + (i % CHUNKS * Cfg::R + tile.share_begin()) * 16;
    bulk_copy_to_cluster(map_to_rank(from, peer), from, BYTES, map_to_rank(tile.gather_bar(), peer));
  }
  __syncwarp();
  tile.arrive_at_gather((Cfg::C - 1) * CHUNKS * BYTES);
}
// Zeros for the chunks of a value that nothing else writes, and that a Linear's last step will read.
template <class Cfg> DEVICE void zero_chunks(const Tile<Cfg>& tile, u32 value, int first, int n) {
  for (int i = tile.warp * 32 + tile.lane; i < n * Cfg::R; i += Cfg::NW * 32) store_shared_u32x4(value + first * Cfg::R * 16 + i * 16, U32x4{0, 0, 0, 0});
}

// Rows that a warp takes at once, so that there are four lanes a row at least.
template <class Cfg> struct NarrowRows { static constexpr int EACH = Cfg::R / Cfg::NW, ROWS = power_of_two_below(EACH < 1 ? 1 : EACH > 8 ? 8 : EACH); };
// A Linear of few outputs. Rows are shared by the lanes of a warp, neighbouring lanes having different rows; weights lie as
// floats in shared memory, [N][COLUMNS], the columns of each source from a multiple of four on. sums(r, part, parts, sum)
// adds what falls to one of `parts` lanes, by narrow_part; to(r, n, v) gets each sum.
template <class Cfg, int N, class Sums, class To> DEVICE void narrow_linear(const Tile<Cfg>& tile, Sums sums, To to) {
  constexpr int ROWS = NarrowRows<Cfg>::ROWS, PARTS = 32 / ROWS;
  static_assert(N <= PARTS && Cfg::R % ROWS == 0, "a lane an output");
  for (int r0 = tile.warp * ROWS; r0 < Cfg::R; r0 += Cfg::NW * ROWS) {
    const int r = r0 + tile.lane % ROWS, part = tile.lane / ROWS;
    float sum[N];
#pragma unroll
    for (int n = 0; n < N; n++) sum[n] = 0.f;
    sums(r, part, sum);
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
      for (int lanes = ROWS; lanes < 32; lanes <<= 1) sum[n] += shuffle_xor(sum[n], lanes);
      if (part == n) to(r, n, sum[n]);
    }
  }
}
// One source of K columns: eight(k, v) gives eight of them from a multiple of eight on, one(k) a single one.
template <class Cfg, int N, int K, int COLUMNS, class Eight, class One> DEVICE void narrow_part(u32 weights, int part, float* sum, Eight eight, One one) {
  constexpr int ROWS = NarrowRows<Cfg>::ROWS, PARTS = 32 / ROWS;
  for (int k = part * 8; k + 8 <= K; k += PARTS * 8) {
    float v[8];
    eight(k, v);
#pragma unroll
    for (int n = 0; n < N; n++) {
      const F32x4 a = load_shared_f32x4(weights + (n * COLUMNS + k) * 4), b = load_shared_f32x4(weights + (n * COLUMNS + k + 4) * 4);
      sum[n] += v[0] * a.x + v[1] * a.y + v[2] * a.z + v[3] * a.w + v[4] * b.x + v[5] * b.y + v[6] * b.z + v[7] * b.w;
    }
  }
  for (int k = K / 8 * 8 + part; k < K; k += PARTS) {
    const float v = one(k);
#pragma unroll
    for (int n = 0; n < N; n++) sum[n] += v * load_shared_f32(weights + (n * COLUMNS + k) * 4);
  }
}
// One source that Linear::fold has summed: COLUMNS floats [part][N] of a row, in whole chunks.
template <class Cfg, int N, int COLUMNS> DEVICE void folded_part(u32 value, int r, int part, float* sum) {
  constexpr int PARTS = 32 / NarrowRows<Cfg>::ROWS;
  for (int k = part; k < COLUMNS / N; k += PARTS)
#pragma unroll
    for (int n = 0; n < N; n++) sum[n] += load_float<Cfg::R>(value, r, k * N + n);
}
// out(r, g, n) = sum_k x(r, g, k) w[g or 0][k][n] for G groups of rows of weights, in fp32, a thread four rows of a column.
// Weights are floats in global memory. For shapes that tensor cores do not suit, and for fp32 throughout.
template <class Cfg, int G, int N, int K, bool GROUPED, class X, class To> DEVICE void contract(const Tile<Cfg>& tile, const float* weights, X x, To to) {
  constexpr int ROWS = Cfg::R < 4 ? Cfg::R : 4;
  for (int i = tile.warp * 32 + tile.lane; i < Cfg::R / ROWS * G * N; i += Cfg::NW * 32) {
    const int n = i % N, g = i / N % G, r0 = i / (N * G) * ROWS;
    const float* w = weights + (GROUPED ? g * K * N : 0) + n;
    float sum[ROWS] = {};
#pragma unroll 4
    for (int k = 0; k < K; k++) {
      const float v = w[k * N];
#pragma unroll
      for (int q = 0; q < ROWS; q++) sum[q] += v * x(r0 + q, g, k);
    }
#pragma unroll
    for (int q = 0; q < ROWS; q++) to(r0 + q, g, n, sum[q]);
  }
}

// Dot products of all pairs of F vectors of D elements of a row (DLRM's interaction, arXiv 1906.00091): a warp a row, on
// the tensor cores. fetch(r, v, part, f) gives the D / 4 halves [part * D / 4 ..) of vector v < F as D / 8 words; the order
// of columns within a product is free as long as A and B agree. to(r, i, j, dot) is called for j < i (DIAGONAL: j <= i).
// SPLIT: this block takes its share of the rows; exchange_rows must follow.
template <class Cfg, int F, int D, bool DIAGONAL, bool SPLIT, class Fetch, class To> DEVICE void pair_dots(const Tile<Cfg>& tile, Fetch fetch, To to) {
  static_assert(F <= 32 && D % 32 == 0, "two m-tiles; a lane fetches 16 bytes at least");
  constexpr int MT = ceil_div(F, 16), WORDS = D / 8;
  const int g = tile.lane >> 2, t = tile.lane & 3;
  u32 f[2 * MT][WORDS], next[2 * MT][WORDS];  // the next row's are on their way while a row is multiplied
  const auto fetch_row = [&](int r) {
#pragma unroll
    for (int j = 0; j < 2 * MT; j++) {
#pragma unroll
      for (int i = 0; i < WORDS; i++) next[j][i] = 0;
      if (8 * j + g < F) fetch(r, 8 * j + g, t, next[j]);
    }
  };
  const int begin = SPLIT ? tile.share_begin() : 0, end = SPLIT ? begin + Cfg::R / Cfg::C : Cfg::R;
  if (begin + tile.warp < end) fetch_row(begin + tile.warp);
#pragma unroll 1
  for (int r = begin + tile.warp; r < end; r += Cfg::NW) {
#pragma unroll
    for (int j = 0; j < 2 * MT; j++)
#pragma unroll
      for (int i = 0; i < WORDS; i++) f[j][i] = next[j][i];
    if (r + Cfg::NW < end) fetch_row(r + Cfg::NW);
    float acc[MT][2 * MT][4];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int n = 0; n < 2 * m + 2; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) acc[m][n][i] = 0.f;
#pragma unroll
        for (int k = 0; k < WORDS / 2; k++) {
          const u32 a[4] = {f[2 * m][2 * k], f[2 * m + 1][2 * k], f[2 * m][2 * k + 1], f[2 * m + 1][2 * k + 1]};
          Cfg::T::mma(acc[m][n], a, f[n][2 * k], f[n][2 * k + 1]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int zi = 16 * m + g + 8 * (i >> 1), zj = 8 * n + 2 * t + (i & 1);
          if (zi < F && (DIAGONAL ? zj <= zi : zj < zi)) to(r, zi, zj, acc[m][n][i]);
        }
      }
  }
}
