// One linear layer across the whole card (sm_90a): Y = epilogue(sum_i X_i W_i + b).
//
// A block owns a tile of BM rows and BN columns. Its last warp (a warpgroup, where registers must
// move) copies tiles of 64 elements of K into a ring of STAGES slots: X by tensor maps, which read
// zeros outside a matrix, W by plain bulk copies, since it is packed in the layout that wgmma reads.
// The other warpgroups multiply 64 rows each and finish the tile. Weights do not depend on the launch
// before this one: the first slots' weights are fetched, and the rest asked into L2, before the wait.
//
// The blocks of a cluster take one tile, each a part of K (SPLIT). The parts of the sums are exchanged
// so that each block adds up and finishes BM / SPLIT rows. This is for few rows, where else most
// multiprocessors would have no tile. Without SPLIT a block strides through the tiles; the ring runs
// on across tiles, so that the next tile's loads overlap the epilogue.
//
// Tried and left out, since they gained 2 % at most and mostly lost (tests/gpu/RUNS.md, 2026-11-24):
// clusters that share tiles by multicast, warpgroups that alternate between multiplying and ending.
//
// Packed W: [group][tile of K][column, N_PADDED][64 of K] with the 16-byte parts of a 128-byte row r
// at part ^ (r % 8), and each 32 columns permuted: row 8 j + 2 t + e holds column 8 t + 2 j + e, so
// that lane t of a quad ends up with 8 adjacent columns.
//
// X and W may be e4m3, whose rows of 128 bytes hold 128 of K, parts 16. Each column of the sums is then multiplied by a
// float of its own, which undoes the scales of X and W. Y may be stored as e4m3, too, multiplied by one float first.
#pragma once
#include "wgmma.cuh"
#include "wgmma_fp8.cuh"
#include "wide_epilogue.cuh"

// Y as e4m3, and as 16-bit floats where something but a wide layer reads it.
template <bool HALVES_> struct WideEights {
  static constexpr bool HALVES = HALVES_, EIGHTS = true;
  u16* y;
  int ld, rows;
  u8* eights;
  int ld_eights;
  float scale;
};
template <int W, int N, bool ALIGNED, class Output>
DEVICE void wide_store_eights(const Output& out, int row, int col, int first_column, const float* v) {
  u16 pairs[W / 2];
#pragma unroll
  for (int j = 0; j < W; j += 2) pairs[j / 2] = pack_e4m3(v[j] * out.scale, v[j + 1] * out.scale);
  u8* to = out.eights + (size_t)row * out.ld_eights + first_column + col;
  if (ALIGNED && col + W <= N) {
    if constexpr (W == 8) *(u64*)to = pairs[0] | (u64)pairs[1] << 16 | (u64)pairs[2] << 32 | (u64)pairs[3] << 48;
    if constexpr (W == 4) *(u32*)to = pairs[0] | (u32)pairs[1] << 16;
    if constexpr (W == 2) *(u16*)to = pairs[0];
  } else {
#pragma unroll
    for (int j = 0; j < W; j++)
      if (col + j < N) to[j] = (u8)(pairs[j / 2] >> (j % 2 * 8));
  }
}

// Layer, as emitted: N columns a group, GROUPS, K_TILES of a group, N_PADDED rows of packed W a tile
// of K, BIAS_OFFSET in bytes from the weights, BIAS_COLUMNS a group; with e4m3, SCALE_OFFSET of what columns are multiplied by.
template <class Storage, int BM_, int BN_, int STAGES_, int SPLIT_, int N_STAGED_, bool EIGHTS_ = false> struct WideTile {
  using T = Storage;
  static constexpr bool EIGHTS = EIGHTS_;  // X and W are e4m3
  static constexpr int BM = BM_, BN = BN_, STAGES = STAGES_, SPLIT = SPLIT_, N_STAGED = N_STAGED_;
  // Split sums arrive in room of their own once all blocks have started, or, if large, in the ring
  // once all have emptied it.
  static constexpr bool IN_RING = SPLIT > 1 && BM * BN * 4 > 16384, IN_ROOM = SPLIT > 1 && !IN_RING;
  static constexpr bool MOVES_REGISTERS = BN == 256;
  static constexpr int CONSUMERS = BM * 2, THREADS = CONSUMERS + (MOVES_REGISTERS ? 128 : 32);
  static constexpr int A_BYTES = BM * 128, B_BYTES = BN * 128, STAGE_BYTES = A_BYTES + B_BYTES;
  static constexpr int SLICE_ROWS = BM / SPLIT, BOX_COLUMNS = BN < 64 ? BN : 64;
  static constexpr int STAGED_BYTES = SLICE_ROWS * BN * 2, BIAS_BYTES = BN * 4;
  static constexpr int COLUMN_BYTES = BIAS_BYTES * (EIGHTS ? 2 : 1);  // of biases, and scales behind them
  static constexpr int PARTIAL_BYTES = SPLIT > 1 ? BM * BN * 4 : 0, SLICE_BYTES = PARTIAL_BYTES / SPLIT;
  static constexpr int O_EMPTY = 64, O_EXTRA_FULL = 128, O_EXTRA_EMPTY = 136, O_SUMS = 144, O_RING = 1024;
  static constexpr int O_STAGED = O_RING + STAGES * STAGE_BYTES, O_BIAS = O_STAGED + N_STAGED * STAGED_BYTES;
  static constexpr int O_PARTIAL = IN_RING ? O_RING : O_BIAS + COLUMN_BYTES;
  static constexpr int SHARED_BYTES = O_BIAS + COLUMN_BYTES + (IN_RING ? 0 : PARTIAL_BYTES);
  static_assert(BM == 64 || BM == 128, "a warpgroup takes 64 rows");
  static_assert(!IN_RING || STAGES * STAGE_BYTES >= PARTIAL_BYTES, "room for sums");
  static_assert(STAGES <= 8 && SLICE_ROWS >= 8 && SPLIT <= 8, "as laid out");
};

// A block's part of K, and the tile at hand.
template <class Tile, class Layer> struct WidePlace {
  int ks, k_begin, k_end, row_tiles, row_tile, n_tiles;
  int group, column, row;  // of the tile's first element; column within the group

  DEVICE WidePlace(u32 rank, int rows) {
    ks = rank;
    k_begin = ks * Layer::K_TILES / Tile::SPLIT, k_end = (ks + 1) * Layer::K_TILES / Tile::SPLIT;
    row_tiles = (rows + Tile::BM - 1) / Tile::BM;
    n_tiles = row_tiles * COLUMN_TILES * Layer::GROUPS;
  }
  DEVICE void take(int tile) {
    column = tile % COLUMN_TILES * Tile::BN;  // neighbours share rows of Y, so its pages
    tile /= COLUMN_TILES;
    row_tile = tile % row_tiles;
    row = row_tile * Tile::BM;
    group = tile / row_tiles;
  }

  static constexpr int COLUMN_TILES = (Layer::N + Tile::BN - 1) / Tile::BN;
};

// The copies of one block; run by one thread. Inputs, as emitted, knows the tensor maps:
//   const void* input(int k_tile, int group, int& x) const;   x: the tile's first column in its map
//   const void* staged(int i) const;
//   void prefetch() const;   fetches the maps themselves
template <class Tile, class Layer, class Inputs> struct WideProducer {
  u32 base;
  const u8* weights;
  const Inputs& inputs;
  const WidePlace<Tile, Layer>& at;

  DEVICE u32 slot_address(int slot) const { return base + Tile::O_RING + slot * Tile::STAGE_BYTES; }
  DEVICE const u8* weights_at(int k_tile) const {
    return weights + ((size_t)(at.group * Layer::K_TILES + k_tile) * Layer::N_PADDED + at.column) * 128;
  }
  DEVICE void load_weights(int slot, int k_tile) const {
    mbarrier_arrive_expect(base + 8 * slot, Tile::STAGE_BYTES);
    bulk_copy_to_shared(slot_address(slot) + Tile::A_BYTES, weights_at(k_tile), Tile::B_BYTES, base + 8 * slot);
  }
  DEVICE void load_input(int slot, int k_tile) const {
    int x;
    const void* map = inputs.input(k_tile, at.group, x);
    tensor_copy_to_shared(slot_address(slot), map, x, at.row, base + 8 * slot);
  }
  DEVICE void load_bias() const {
    mbarrier_arrive_expect(base + Tile::O_EXTRA_FULL, Tile::COLUMN_BYTES + Tile::N_STAGED * Tile::STAGED_BYTES);
    const u8* from = weights + (size_t)(at.group * Layer::BIAS_COLUMNS + at.column) * 4;
    bulk_copy_to_shared(base + Tile::O_BIAS, from + Layer::BIAS_OFFSET, Tile::BIAS_BYTES, base + Tile::O_EXTRA_FULL);
    if constexpr (Tile::EIGHTS)
      bulk_copy_to_shared(base + Tile::O_BIAS + Tile::BIAS_BYTES, from + Layer::SCALE_OFFSET, Tile::BIAS_BYTES, base + Tile::O_EXTRA_FULL);
  }
  DEVICE void load_staged() const {
#pragma unroll
    for (int i = 0; i < Tile::N_STAGED; i++)
#pragma unroll
      for (int c = 0; c < Tile::BN; c += Tile::BOX_COLUMNS)
        tensor_copy_to_shared(base + Tile::O_STAGED + i * Tile::STAGED_BYTES + c * Tile::SLICE_ROWS * 2, inputs.staged(i),
                              at.group * Layer::N + at.column + c, at.row + at.ks * Tile::SLICE_ROWS, base + Tile::O_EXTRA_FULL);
  }
};

template <class Tile, class Layer, class Inputs>
DEVICE void wide_produce(u32 base, const u8* weights, const Inputs& inputs, WidePlace<Tile, Layer>& at, int cluster, int n_clusters) {
  WideProducer<Tile, Layer, Inputs> producer{base, weights, inputs, at};
  int slot = 0;
  u32 parity = 0, extra_parity = 0;
  bool first = true;
  for (int tile = cluster; tile < at.n_tiles; tile += n_clusters) {
    at.take(tile);
    const int n_k = at.k_end - at.k_begin, ahead = n_k < Tile::STAGES ? n_k : Tile::STAGES;
    int k = 0;
    if (first) {
      inputs.prefetch();
      for (int s = 0; s < ahead; s++) producer.load_weights(s, at.k_begin + s);
      producer.load_bias();
      for (int s = ahead + at.row_tile; s < n_k; s += at.row_tiles)  // the tiles of a column each a part
        bulk_prefetch(producer.weights_at(at.k_begin + s), Tile::B_BYTES);
      wait_for_predecessor();
      fence_async_global();
      for (int s = 0; s < ahead; s++) producer.load_input(s, at.k_begin + s);
      producer.load_staged();
      k = ahead;
      if (ahead == Tile::STAGES) parity ^= 1; else slot = ahead;
    }
    for (; k < n_k; k++) {
      mbarrier_wait(base + Tile::O_EMPTY + 8 * slot, parity ^ 1);
      producer.load_weights(slot, at.k_begin + k);
      producer.load_input(slot, at.k_begin + k);
      if (++slot == Tile::STAGES) { slot = 0; parity ^= 1; }
      if (!first && k == ahead - 1) {
        mbarrier_wait(base + Tile::O_EXTRA_EMPTY, extra_parity);
        extra_parity ^= 1;
        producer.load_bias();
        producer.load_staged();
      }
    }
    first = false;
  }
}

// Adds up 64 rows and BN columns of sums over the tiles of K.
template <class Tile> DEVICE void wide_multiply(float* sums, u32 base, u32 a_offset, int lane, int n_k, int& slot, u32& parity) {
#pragma unroll
  for (int i = 0; i < Tile::BN / 2; i++) sums[i] = 0.f;
  int previous = -1;
#pragma unroll 1
  for (int k = 0; k < n_k; k++) {
    mbarrier_wait(base + 8 * slot, parity);
    const u32 a = base + Tile::O_RING + slot * Tile::STAGE_BYTES;
    const u64 da = wgmma_descriptor(a + a_offset), db = wgmma_descriptor(a + Tile::A_BYTES);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++) {  // of 32 bytes
      if constexpr (Tile::EIGHTS) wgmma_e4m3<Tile::BN>(sums, da + step * 2, db + step * 2);
      else wgmma<typename Tile::T, Tile::BN>(sums, da + step * 2, db + step * 2);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (previous >= 0 && lane == 0) mbarrier_arrive(base + Tile::O_EMPTY + 8 * previous);  // has been read whole
    previous = slot;
    if (++slot == Tile::STAGES) { slot = 0; parity ^= 1; }
  }
  wgmma_wait<0>();
  if (previous >= 0 && lane == 0) mbarrier_arrive(base + Tile::O_EMPTY + 8 * previous);
#pragma unroll
  for (int i = 0; i < Tile::BN / 2; i++) wgmma_settle(sums + i);
}

// W columns of a staged matrix: rows of BOX_COLUMNS elements, swizzled as wide as they are.
template <class Tile, int W> DEVICE void wide_load_staged(u32 (*to)[4], u32 base, int row, int col) {
  constexpr u32 ROW_BYTES = Tile::BOX_COLUMNS * 2, MASK = ROW_BYTES / 16 - 1;
  const u32 box = col / Tile::BOX_COLUMNS * (Tile::SLICE_ROWS * ROW_BYTES);
  u32 offset = row * ROW_BYTES + col % Tile::BOX_COLUMNS * 2;
  offset ^= (offset >> 7 & MASK) << 4;
#pragma unroll
  for (int i = 0; i < Tile::N_STAGED; i++) {
    const u32 from = base + Tile::O_STAGED + i * Tile::STAGED_BYTES + box + offset;
    if constexpr (W == 8) {
      U32x4 v = load_shared_u32x4(from);
      to[i][0] = v.x, to[i][1] = v.y, to[i][2] = v.z, to[i][3] = v.w;
    } else {
#pragma unroll
      for (int j = 0; j < W / 2; j++) to[i][j] = load_shared_u32(from + 4 * j);
    }
  }
}

// Scales, bias, staged values, epilogue and store of W columns; row counts within the block's slice.
template <class Tile, class Layer, int W, class Output, class Epilogue>
DEVICE void wide_finish_part(const Output& out, const Epilogue& epilogue, const WidePlace<Tile, Layer>& at, u32 base, int row, int col, float* v) {
#pragma unroll
  for (int j = 0; j < W; j += 2) {
    F32x2 b = load_shared_f32x2(base + Tile::O_BIAS + (col + j) * 4), s{1.f, 1.f};
    if constexpr (Tile::EIGHTS) s = load_shared_f32x2(base + Tile::O_BIAS + Tile::BIAS_BYTES + (col + j) * 4);
    v[j] = v[j] * s.x + b.x;
    v[j + 1] = v[j + 1] * s.y + b.y;
  }
  u32 staged[Tile::N_STAGED ? Tile::N_STAGED : 1][4];
  wide_load_staged<Tile, W>(staged, base, row, col);
  constexpr bool ALIGNED = Layer::GROUPS == 1 || Layer::N % 8 == 0;
  wide_finish<typename Tile::T, W, Layer::N, ALIGNED>(out, epilogue, at.row + at.ks * Tile::SLICE_ROWS + row, at.column + col, at.group * Layer::N, v, staged);
}

// Finishes what a thread has of a tile: rows row and row + 8, columns col .. col + 7 of each 32.
template <class Tile, class Layer, class Output, class Epilogue>
DEVICE void wide_finish_sums(const float* sums, const Output& out, const Epilogue& epilogue, const WidePlace<Tile, Layer>& at, u32 base, int row, int col) {
  constexpr bool ALIGNED = Layer::GROUPS == 1 || Layer::N % 8 == 0;
#pragma unroll
  for (int q = 0; q < Tile::BN / 32; q++) {
    const F32x4 b0 = load_shared_f32x4(base + Tile::O_BIAS + (q * 32 + col) * 4), b1 = load_shared_f32x4(base + Tile::O_BIAS + (q * 32 + col) * 4 + 16);
    const float bias[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
    float scale[8] = {1.f, 1.f, 1.f, 1.f, 1.f, 1.f, 1.f, 1.f};
    if constexpr (Tile::EIGHTS) {
      const u32 from = base + Tile::O_BIAS + Tile::BIAS_BYTES + (q * 32 + col) * 4;
      const F32x4 s0 = load_shared_f32x4(from), s1 = load_shared_f32x4(from + 16);
      scale[0] = s0.x, scale[1] = s0.y, scale[2] = s0.z, scale[3] = s0.w, scale[4] = s1.x, scale[5] = s1.y, scale[6] = s1.z, scale[7] = s1.w;
    }
    u32 staged[2][Tile::N_STAGED ? Tile::N_STAGED : 1][4];
#pragma unroll
    for (int h = 0; h < 2; h++) wide_load_staged<Tile, 8>(staged[h], base, row + h * 8, q * 32 + col);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float v[8];
#pragma unroll
      for (int j = 0; j < 8; j++) v[j] = sums[q * 16 + j / 2 * 4 + h * 2 + j % 2] * scale[j] + bias[j];
      wide_finish<typename Tile::T, 8, Layer::N, ALIGNED>(out, epilogue, at.row + row + h * 8, at.column + q * 32 + col, at.group * Layer::N, v, staged[h]);
    }
  }
}

// Exchanges the sums of a split K, and finishes this block's slice of rows.
template <class Tile, class Layer, class Output, class Epilogue>
DEVICE void wide_reduce(float* sums, const Output& out, const Epilogue& epilogue, const WidePlace<Tile, Layer>& at, u32 base, int tid) {
  constexpr int BLOCKS = Tile::SLICE_ROWS / 8, GQ = Tile::BN / 32, UNITS = BLOCKS * GQ * 32, SLOT = Tile::SLICE_BYTES, S = Tile::SPLIT;
  const int lane = tid & 31;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int block = (tid >> 5) * 2 + h, owner = block / BLOCKS;  // of 8 rows
    const u32 from = base + Tile::O_PARTIAL + (owner == at.ks ? S - 1 : (at.ks - owner - 1 + S) % S) * SLOT + (block % BLOCKS * GQ * 32 + lane) * 16;
    const u32 to = map_to_rank(from, owner), bar = map_to_rank(base + Tile::O_SUMS, owner);
#pragma unroll
    for (int q = 0; q < GQ * 2; q++) {
      const float* v = sums + q * 8 + h * 2;
      const u32 offset = q / 2 * 512 + q % 2 * (UNITS * 16);
      if (owner == at.ks)
        store_shared_u32x4(from + offset, {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[4]), __float_as_uint(v[5])});
      else
        store_cluster_async(to + offset, v[0], v[1], v[4], v[5], bar);
    }
  }
  named_barrier(1, Tile::CONSUMERS);
  mbarrier_wait(base + Tile::O_EXTRA_FULL, 0);
  mbarrier_wait_cluster(base + Tile::O_SUMS, 0);
  constexpr int W = UNITS >= Tile::CONSUMERS ? 8 : UNITS * 2 >= Tile::CONSUMERS ? 4 : 2;
#pragma unroll 1
  for (int i = tid; i < UNITS * 8 / W; i += Tile::CONSUMERS) {
    const int unit = i % UNITS, part = i / UNITS;  // part: which W of the unit's 8 columns
    float v[W];
#pragma unroll
    for (int j = 0; j < W; j++) v[j] = 0.f;
#pragma unroll
    for (int s = 0; s < S; s++) {
      const u32 from = base + Tile::O_PARTIAL + s * SLOT + unit * 16;
#pragma unroll
      for (int j = 0; j < W; j += 2) {
        const int c = part * W + j;
        F32x2 f = load_shared_f32x2(from + c / 4 * (UNITS * 16) + c % 4 * 4);
        v[j] += f.x;
        v[j + 1] += f.y;
      }
    }
    const int row = unit / (GQ * 32) * 8 + unit % 32 / 4, col = unit / 32 % GQ * 32 + unit % 4 * 8 + part * W;
    wide_finish_part<Tile, Layer, W>(out, epilogue, at, base, row, col, v);
  }
}

template <class Tile, class Layer, class Output, class Epilogue>
DEVICE void wide_consume(const Output& out, const Epilogue& epilogue, WidePlace<Tile, Layer>& at, u32 base, int cluster, int n_clusters, int tid) {
  const int lane = tid & 31, warp = tid >> 5;
  int slot = 0;
  u32 parity = 0, extra_parity = 0;
  wait_for_predecessor();  // an epilogue may read what it wrote
  for (int tile = cluster; tile < at.n_tiles; tile += n_clusters) {
    at.take(tile);
    float sums[Tile::BN / 2];
    wide_multiply<Tile>(sums, base, warp / 4 * 8192, lane, at.k_end - at.k_begin, slot, parity);
    if constexpr (Tile::SPLIT > 1) {
      if constexpr (Tile::IN_ROOM) cluster_wait();  // the others have started
      if constexpr (Tile::IN_RING) cluster_sync();  // the others have emptied their rings
      wide_reduce(sums, out, epilogue, at, base, tid);
      return;
    } else {
      mbarrier_wait(base + Tile::O_EXTRA_FULL, extra_parity);
      extra_parity ^= 1;
      wide_finish_sums(sums, out, epilogue, at, base, warp * 16 + lane / 4, lane % 4 * 8);
      __syncwarp();
      if (lane == 0) mbarrier_arrive(base + Tile::O_EXTRA_EMPTY);
    }
  }
  if constexpr (Tile::IN_ROOM) cluster_wait();
  if constexpr (Tile::IN_RING) cluster_sync();
}

// The kernel's body. counts[0]: rows of this batch; written before the first launch of the chain.
// `out` gets its rows here.
template <class Tile, class Layer, class Output, class Inputs, class Epilogue>
DEVICE void wide_linear_to(Output out, const int* counts, const u8* weights, const Inputs& inputs, const Epilogue& epilogue) {
  DYNAMIC_SHARED(shared);
  static_assert(Tile::N_STAGED == Epilogue::N_STAGED, "room for what the epilogue wants");
  const u32 base = shared_address(shared);
  const int tid = threadIdx.x;
  dependents_may_start();
  if (tid == 0) {
    for (int i = 0; i < Tile::STAGES; i++) {
      mbarrier_init(base + 8 * i, 1);
      mbarrier_init(base + Tile::O_EMPTY + 8 * i, Tile::CONSUMERS / 32);
    }
    mbarrier_init(base + Tile::O_EXTRA_FULL, 1);
    mbarrier_init(base + Tile::O_EXTRA_EMPTY, Tile::CONSUMERS / 32);
    mbarrier_init(base + Tile::O_SUMS, 1);
    mbarrier_init_fence();
    if constexpr (Tile::SPLIT > 1) mbarrier_arrive_expect(base + Tile::O_SUMS, Tile::SLICE_BYTES * (Tile::SPLIT - 1));
  }
  const int rows = *(const volatile int*)counts;
  const u32 rank = Tile::SPLIT > 1 ? cluster_rank() : 0;
  WidePlace<Tile, Layer> at(rank, rows);
  out.rows = rows;
  const int cluster = blockIdx.x / Tile::SPLIT, n_clusters = gridDim.x / Tile::SPLIT;
  __syncthreads();
  if constexpr (Tile::IN_ROOM) cluster_arrive();
  if (tid >= Tile::CONSUMERS) {
    if constexpr (Tile::MOVES_REGISTERS) registers_shrink<56>();
    if (tid == Tile::CONSUMERS) wide_produce<Tile, Layer>(base, weights, inputs, at, cluster, n_clusters);
    __syncwarp();
    if constexpr (Tile::IN_ROOM) cluster_wait();
    if constexpr (Tile::IN_RING) cluster_sync();
  } else {
    if constexpr (Tile::MOVES_REGISTERS) registers_grow<224>();
    wide_consume<Tile, Layer>(out, epilogue, at, base, cluster, n_clusters, tid);
  }
}
template <class Tile, class Layer, class Inputs, class Epilogue>
DEVICE void wide_linear(const int* counts, const u8* weights, u16* y, int ld_y, const Inputs& inputs, const Epilogue& epilogue) {
  wide_linear_to<Tile, Layer>(WideOutput{y, ld_y, 0}, counts, weights, inputs, epilogue);
}
// Y as e4m3, multiplied by the float at OUT_SCALE_OFFSET from the weights; and as 16-bit floats (HALVES).
template <class Tile, class Layer, bool HALVES, class Inputs, class Epilogue>
DEVICE void wide_linear_eights(const int* counts, const u8* weights, u16* y, int ld_y, u8* eights, int ld_eights, const Inputs& inputs, const Epilogue& epilogue) {
  const float scale = *(const float*)(weights + Layer::OUT_SCALE_OFFSET);
  wide_linear_to<Tile, Layer>(WideEights<HALVES>{y, ld_y, 0, eights, ld_eights, scale}, counts, weights, inputs, epilogue);
}
