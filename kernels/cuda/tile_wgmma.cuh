// A row tile's Linear by warpgroups (sm_90a): tiles of 64 rows, in clusters, for batches that fill the card.
//
// A tile of 64 rows reads its weights half as often as two of 32 do, and two blocks that share its columns each read half of
// them: what limits tiles of 32 rows is how fast a multiprocessor gets weights out of L2. wgmma reads both operands
// where they lie: values in their chunks, weights in the ring in chunks as well, [K / 8][column][8].
//
// Cfg as tile.cuh has it, with R = 64 and STREAM; its NW warps are warpgroups, which share a block's columns.
#pragma once
#include "tile_linear.cuh"
#include "wgmma.cuh"

template <class Cfg, int N> struct GroupLinear {
  static constexpr int R = Cfg::R, C = Cfg::C, GROUPS = Cfg::NW / 4;
  static constexpr int TN = ceil_div(ceil_div(N, 8), C * GROUPS), TILES = TN * GROUPS;  // of 8 columns: a warpgroup's, a block's
  static constexpr int STEP = TILES * 256, KS = Cfg::SB / STEP;                         // a step is 16 of K
  static_assert(R == 64 && Cfg::NW % 4 == 0 && Cfg::STREAM, "a warpgroup multiplies 64 rows");
  static_assert(KS >= 1, "a stage holds less than one step");
  static_assert(TN <= 32, "columns of one product");
  struct Sums { float acc[TN * 4]; };

  template <int K16> static DEVICE void produce(Tile<Cfg>& tile, const u8*& weights) { produce_stream<K16, KS, STEP>(tile, weights); }
  static DEVICE void clear(Sums& s) {
#pragma unroll
    for (int i = 0; i < TN * 4; i++) s.acc[i] = 0.f;
  }
  // STEPS steps of a value, with the weights of the stage at hand. They have been read whole once the next stage's are under way.
  template <int STEPS> static DEVICE void stage(Tile<Cfg>& tile, Sums& s, u32 value, bool first) {
    mbarrier_wait(tile.full(tile.slot), tile.parity);
    u64 a = wgmma_chunk_descriptor(value, R * 16);
    u64 b = wgmma_chunk_descriptor(tile.ring + tile.slot * Cfg::SB + tile.warp / 4 * (TN * 128), TILES * 128);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < STEPS; k++, a += 2 * R, b += TILES * 16) wgmma<typename Cfg::T, TN * 8>(s.acc, a, b);
    wgmma_commit();
    wgmma_wait<1>();
    if (!first) tile.free_last();
    tile.next();
  }
  // Adds the product of K16 * 16 columns of a value (from its address on) and the next weights of the stream.
  template <int K16> static DEVICE void accumulate(Tile<Cfg>& tile, Sums& s, u32 value, const u8*&) {
    constexpr int WHOLE = K16 / KS, REST = K16 % KS;
#pragma unroll 1
    for (int k = 0; k < WHOLE; k++, value += KS * R * 32) stage<KS>(tile, s, value, k == 0);
    if constexpr (REST > 0) stage<REST>(tile, s, value, WHOLE == 0);
    wgmma_wait<0>();
    tile.free_last();
#pragma unroll
    for (int i = 0; i < TN * 4; i++) wgmma_settle(s.acc + i);
  }
  // The same of a value that a Linear has just made, K16 * 16 columns of it in each block: while the peers' are under way, this
  // block's own are multiplied, for which finish() has met.
  template <int K16> static DEVICE void accumulate_gathered(Tile<Cfg>& tile, Sums& s, u32 value, const u8*& weights) {
    accumulate<K16>(tile, s, value + tile.rank * (K16 * R * 32), weights);
    tile.gathered();
    for (u32 i = 1; i < C; i++) accumulate<K16>(tile, s, value + (tile.rank + i) % C * (K16 * R * 32), weights);
  }
  // As Linear's: biases, epilogue(r, c, v0, v1), stored in `value` and sent to the peers. All warps have multiplied before any
  // column is sent, so that whoever has gathered them may overwrite what they were made of.
  template <bool HALVES, class Epilogue> static DEVICE void finish(Tile<Cfg>& tile, Sums& s, u32 value, u32 bias, Epilogue epilogue) {
    constexpr int TILE_BYTES = R * 8 * (HALVES ? 2 : 4);
    const int t0 = tile.warp / 4 * TN, first = (int)tile.rank * TILES, r = tile.warp % 4 * 16 + (tile.lane >> 2);
#pragma unroll
    for (int j = 0; j < TN; j++) {
      const int t = t0 + j, c = (first + t) * 8 + 2 * (tile.lane & 3);
      const F32x2 b = load_shared_f32x2(bias + (t * 8 + 2 * (tile.lane & 3)) * 4);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float v0 = s.acc[j * 4 + 2 * h] + b.x, v1 = s.acc[j * 4 + 2 * h + 1] + b.y;
        make_pair<N, TILES * C * 8>(r + h * 8, c, v0, v1, epilogue);
        store_pair<Cfg, HALVES>(value, r + h * 8, c, v0, v1);
      }
    }
    fence_async_shared();
    if constexpr (C > 1) {
      tile.sync();
      if (tile.warp == 0 && tile.lane < C && tile.lane != (int)tile.rank) {
        const u32 from = value + first * TILE_BYTES;
        bulk_copy_to_cluster(map_to_rank(from, tile.lane), from, TILES * TILE_BYTES, map_to_rank(tile.gather_bar(), tile.lane));
      }
      tile.arrive_at_gather((C - 1) * TILES * TILE_BYTES);
    }
  }
  // As Linear's, each warpgroup's a part.
  template <int OUT, int PARTS, class Epilogue> static DEVICE void fold(Tile<Cfg>& tile, Sums& s, u32 value, u32 bias, u32 factors, Epilogue epilogue) {
    const int r = tile.warp % 4 * 16 + (tile.lane >> 2);
    float sums[2][OUT] = {};
#pragma unroll
    for (int j = 0; j < TN; j++) {
      const int column = (tile.warp / 4 * TN + j) * 8 + 2 * (tile.lane & 3), c = (int)tile.rank * (TILES * 8) + column;
      const F32x2 b = load_shared_f32x2(bias + column * 4);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float v0 = s.acc[j * 4 + 2 * h] + b.x, v1 = s.acc[j * 4 + 2 * h + 1] + b.y;
        make_pair<N, TILES * C * 8>(r + h * 8, c, v0, v1, epilogue);
        add_folded<OUT, TILES * 8>(sums[h], factors, column, v0, v1);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) store_folded<Cfg, OUT, PARTS, GROUPS>(tile, value, r + h * 8, tile.warp / 4, sums[h]);
    send_folded<Cfg, PARTS>(tile, value);
  }
};
