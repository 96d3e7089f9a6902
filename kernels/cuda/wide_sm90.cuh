// One linear layer across the whole card (sm_90a): Y = epilogue(sum_i X_i W_i + b).
//
// A block owns a tile of BM rows and BN columns. Its last warp (a warpgroup, where registers must
// move) copies tiles of 64 elements of K into a ring of STAGES slots: X by tensor maps, which read
// zeros outside a matrix, W by plain bulk copies, since it is packed in the layout that wgmma reads.
// The other warpgroups multiply 64 rows each and finish the tile. Weights do not depend on the launch
// before this one: the first slots' weights are fetched, and the rest asked into L2, before the wait.
//
// A cluster has SPLIT x CM x CN blocks, rank (ks * CM + cm) * CN + cn:
//   SPLIT: each ks takes a part of K; the parts of the sums are exchanged so that each block adds up
//   and finishes BM / SPLIT rows. For few rows, where else most multiprocessors would have no tile.
//   CM, CN: CM tiles of rows share the weights, CN tiles of columns the rows; each fetches its part
//   and multicasts it. For many rows, where reading from L2 is what limits.
// Without SPLIT a cluster strides through the tiles; the ring runs on across tiles, so that the next
// tile's loads overlap the epilogue; with ALTERNATE the next tile's products do so too, by the other
// warpgroup. A wait by parity tells a phase from its neighbours only, so there the warpgroups take
// turns at the ring, and have a barrier each for bias and staged matrices.
//
// Packed W: [group][tile of K][column, N_PADDED][64 of K] with the 16-byte parts of a 128-byte row r
// at part ^ (r % 8), and each 32 columns permuted: row 8 j + 2 t + e holds column 8 t + 2 j + e, so
// that lane t of a quad ends up with 8 adjacent columns.
#pragma once
#include "wgmma.cuh"
#include "wide_epilogue.cuh"

// Layer, as emitted: N columns a group, GROUPS, K_TILES of a group, N_PADDED rows of packed W a tile
// of K, BIAS_OFFSET in bytes from the weights, BIAS_COLUMNS a group.
template <class Storage, int BM_, int BN_, int STAGES_, int SPLIT_, int CM_, int CN_, int N_STAGED_, bool ALTERNATE_ = false> struct WideTile {
  using T = Storage;
  static constexpr int BM = BM_, BN = BN_, STAGES = STAGES_, SPLIT = SPLIT_, CM = CM_, CN = CN_, N_STAGED = N_STAGED_;
  static constexpr int CLUSTER = SPLIT * CM * CN, SHARERS = CM + CN - 1;
  // Split sums arrive in room of their own once all blocks have started, or, if large, in the ring
  // once all have emptied it.
  static constexpr bool IN_RING = SPLIT > 1 && BM * BN * 4 > 16384;
  static constexpr bool WAITS_LATER = SPLIT > 1 && SHARERS == 1 && !IN_RING;
  static constexpr bool ALTERNATE = ALTERNATE_;  // whether each warpgroup takes every other tile, whole
  static constexpr int SLABS = ALTERNATE ? BM / 64 : 1, N_SUMS = SLABS * BN / 2;  // of a thread
  static constexpr int CONSUMERS = BM * 2, CONSUMER_WARPS = ALTERNATE ? 4 : CONSUMERS / 32;  // of one tile
  static constexpr bool MOVES_REGISTERS = N_SUMS == 128;
  static constexpr int THREADS = CONSUMERS + (MOVES_REGISTERS ? 128 : 32);
  static constexpr int A_BYTES = BM * 128, B_BYTES = BN * 128, STAGE_BYTES = A_BYTES + B_BYTES;
  static constexpr int SLICE_ROWS = BM / SPLIT, BOX_COLUMNS = BN < 64 ? BN : 64;
  static constexpr int STAGED_BYTES = SLICE_ROWS * BN * 2, BIAS_BYTES = BN * 4;
  static constexpr int PARTIAL_BYTES = SPLIT > 1 ? BM * BN * 4 : 0, SLICE_BYTES = PARTIAL_BYTES / SPLIT;
  static constexpr int O_EMPTY = 64, O_EXTRA_FULL = 128, O_EXTRA_EMPTY = 144, O_SUMS = 152, O_TURN = 160, O_RING = 1024;
  static constexpr int O_STAGED = O_RING + STAGES * STAGE_BYTES, O_BIAS = O_STAGED + N_STAGED * STAGED_BYTES;
  static constexpr int O_PARTIAL = IN_RING ? O_RING : O_BIAS + BIAS_BYTES;
  static constexpr int SHARED_BYTES = O_BIAS + BIAS_BYTES + (IN_RING ? 0 : PARTIAL_BYTES);
  static_assert(BM == 64 || BM == 128, "a warpgroup takes 64 rows");
  static_assert(!ALTERNATE || (SPLIT == 1 && BM == 128 && BN == 128), "two warpgroups, and registers for whole tiles");
  static_assert(!IN_RING || STAGES * STAGE_BYTES >= PARTIAL_BYTES, "room for sums");
  static_assert(STAGES <= 8 && SLICE_ROWS >= 8 && CLUSTER <= 8, "as laid out");
};

// A cluster's place in it, and the tile at hand.
template <class Tile, class Layer> struct WidePlace {
  int ks, cm, cn, k_begin, k_end, row_tiles, row_tile, n_tiles;
  int group, column, row;  // of the tile's first element; column within the group

  DEVICE WidePlace(u32 rank, int rows) {
    cn = rank % Tile::CN, cm = rank / Tile::CN % Tile::CM, ks = rank / (Tile::CN * Tile::CM);
    k_begin = ks * Layer::K_TILES / Tile::SPLIT, k_end = (ks + 1) * Layer::K_TILES / Tile::SPLIT;
    row_tiles = (rows + Tile::BM * Tile::CM - 1) / (Tile::BM * Tile::CM);
    n_tiles = row_tiles * COLUMN_TILES * Layer::GROUPS;
  }
  DEVICE void take(int tile) {
    column = (tile % COLUMN_TILES * Tile::CN + cn) * Tile::BN;  // neighbours share rows of Y, so its pages
    tile /= COLUMN_TILES;
    row_tile = tile % row_tiles;
    row = (row_tile * Tile::CM + cm) * Tile::BM;
    group = tile / row_tiles;
  }
  DEVICE u32 rank_of(int m, int n) const { return (ks * Tile::CM + m) * Tile::CN + n; }

  static constexpr int COLUMN_TILES = (Layer::N + Tile::BN * Tile::CN - 1) / (Tile::BN * Tile::CN);
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
  u32 extra_full;  // the barrier of this tile's bias and staged matrices

  DEVICE u32 slot_address(int slot) const { return base + Tile::O_RING + slot * Tile::STAGE_BYTES; }
  DEVICE const u8* weights_at(int k_tile) const {
    return weights + ((size_t)(at.group * Layer::K_TILES + k_tile) * Layer::N_PADDED + at.column) * 128 + at.cm * PART;
  }
  DEVICE void load_weights(int slot, int k_tile) const {
    mbarrier_arrive_expect(base + 8 * slot, Tile::STAGE_BYTES);
    u32 to = slot_address(slot) + Tile::A_BYTES + at.cm * PART;
    if constexpr (Tile::CM == 1) {
      bulk_copy_to_shared(to, weights_at(k_tile), PART, base + 8 * slot);
    } else {
      u16 ranks = 0;
#pragma unroll
      for (int m = 0; m < Tile::CM; m++) ranks |= 1 << at.rank_of(m, at.cn);
      bulk_copy_multicast(to, weights_at(k_tile), PART, base + 8 * slot, ranks);
    }
  }
  DEVICE void load_input(int slot, int k_tile) const {
    constexpr int ROWS = Tile::BM / Tile::CN;
    int x;
    const void* map = inputs.input(k_tile, at.group, x);
    u32 to = slot_address(slot) + at.cn * ROWS * 128;
    int row = at.row + at.cn * ROWS;
    if constexpr (Tile::CN == 1) {
      tensor_copy_to_shared(to, map, x, row, base + 8 * slot);
    } else {
      u16 ranks = 0;
#pragma unroll
      for (int n = 0; n < Tile::CN; n++) ranks |= 1 << at.rank_of(at.cm, n);
      tensor_copy_multicast(to, map, x, row, base + 8 * slot, ranks);
    }
  }
  DEVICE void load_bias() const {
    mbarrier_arrive_expect(extra_full, Tile::BIAS_BYTES + Tile::N_STAGED * Tile::STAGED_BYTES);
    const u8* from = weights + Layer::BIAS_OFFSET + (size_t)(at.group * Layer::BIAS_COLUMNS + at.column) * 4;
    bulk_copy_to_shared(base + Tile::O_BIAS, from, Tile::BIAS_BYTES, extra_full);
  }
  // Each box of the staged matrices of the tile at hand: f(offset in shared memory, map, x, y).
  template <class F> DEVICE void each_staged(F f) const {
#pragma unroll
    for (int i = 0; i < Tile::N_STAGED; i++)
#pragma unroll
      for (int c = 0; c < Tile::BN; c += Tile::BOX_COLUMNS)
        f(i * Tile::STAGED_BYTES + c * Tile::SLICE_ROWS * 2, inputs.staged(i), at.group * Layer::N + at.column + c, at.row + at.ks * Tile::SLICE_ROWS);
  }
  DEVICE void load_staged() const {
    each_staged([&](int offset, const void* map, int x, int y) {
      tensor_copy_to_shared(base + Tile::O_STAGED + offset, map, x, y, extra_full);
    });
  }
  DEVICE void prefetch_staged() const {
    each_staged([&](int, const void* map, int x, int y) { tensor_prefetch_to_l2(map, x, y); });
  }
  static constexpr u32 PART = Tile::B_BYTES / Tile::CM;
};

template <class Tile, class Layer, class Inputs>
DEVICE void wide_produce(u32 base, const u8* weights, const Inputs& inputs, WidePlace<Tile, Layer>& at, int cluster, int n_clusters) {
  WideProducer<Tile, Layer, Inputs> producer{base, weights, inputs, at, base + Tile::O_EXTRA_FULL};
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
        prefetch_to_l2(producer.weights_at(at.k_begin + s), producer.PART);
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
    if constexpr (Tile::ALTERNATE) producer.extra_full ^= 8;
    if constexpr (Tile::N_STAGED > 0) {  // else device memory would rest while this tile is multiplied
      if (tile + n_clusters < at.n_tiles) {
        at.take(tile + n_clusters);
        producer.prefetch_staged();
      }
    }
  }
}

// Moves on by n tiles of K in the ring.
template <class Tile> DEVICE void wide_skip(int n, int& slot, u32& parity) {
  slot += n;
  parity ^= slot / Tile::STAGES & 1;
  slot %= Tile::STAGES;
}

// Adds up SLABS x 64 rows and BN columns of sums over the tiles of K.
template <class Tile> DEVICE void wide_multiply(float* sums, u32 base, u32 a_offset, u32 release, u32 next_turn, int lane, int n_k, int& slot, u32& parity) {
  const auto free_slot = [&](int freed) {
    if constexpr (Tile::SHARERS == 1) {
      if (lane == 0) mbarrier_arrive(base + Tile::O_EMPTY + 8 * freed);
    } else {
      if (lane < Tile::SHARERS) mbarrier_arrive_remote(release + 8 * freed);
    }
  };
#pragma unroll
  for (int i = 0; i < Tile::N_SUMS; i++) sums[i] = 0.f;
  int previous = -1;
#pragma unroll 1
  for (int k = 0; k < n_k; k++) {
    mbarrier_wait(base + 8 * slot, parity);
    const u32 a = base + Tile::O_RING + slot * Tile::STAGE_BYTES;
    const u64 da = wgmma_descriptor(a + a_offset), db = wgmma_descriptor(a + Tile::A_BYTES);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++)
#pragma unroll
      for (int slab = 0; slab < Tile::SLABS; slab++) wgmma<typename Tile::T, Tile::BN>(sums + slab * (Tile::BN / 2), da + slab * 512 + step * 2, db + step * 2);
    wgmma_commit();
    wgmma_wait<1>();
    if (previous >= 0) free_slot(previous);  // the step before has been read whole
    previous = slot;
    if (++slot == Tile::STAGES) { slot = 0; parity ^= 1; }
  }
  if constexpr (Tile::ALTERNATE) {
    if (lane == 0) mbarrier_arrive(next_turn);
  }
  wgmma_wait<0>();
  if (previous >= 0) free_slot(previous);
#pragma unroll
  for (int i = 0; i < Tile::N_SUMS; i++) asm volatile("" : "+f"(sums[i]));  // not to be read before the wait
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

// Bias, staged values, epilogue and store of W columns; row counts within the block's slice.
template <class Tile, class Layer, int W, class Epilogue>
DEVICE void wide_finish_part(const WideOutput& out, const Epilogue& epilogue, const WidePlace<Tile, Layer>& at, u32 base, int slice_row, int row, int col, float* v) {
#pragma unroll
  for (int j = 0; j < W; j += 2) {
    F32x2 b = load_shared_f32x2(base + Tile::O_BIAS + (col + j) * 4);
    v[j] += b.x;
    v[j + 1] += b.y;
  }
  u32 staged[Tile::N_STAGED ? Tile::N_STAGED : 1][4];
  wide_load_staged<Tile, W>(staged, base, row, col);
  constexpr bool ALIGNED = Layer::GROUPS == 1 || Layer::N % 8 == 0;
  wide_finish<typename Tile::T, W, Layer::N, ALIGNED>(out, epilogue, at.row + slice_row + row, at.column + col, at.group * Layer::N, v, staged);
}

// Finishes what a thread has of a tile: rows row and row + 8, columns col .. col + 7 of each 32.
template <class Tile, class Layer, class Epilogue>
DEVICE void wide_finish_sums(const float* sums, const WideOutput& out, const Epilogue& epilogue, const WidePlace<Tile, Layer>& at, u32 base, int row, int col) {
  constexpr bool ALIGNED = Layer::GROUPS == 1 || Layer::N % 8 == 0;
#pragma unroll
  for (int q = 0; q < Tile::BN / 32; q++) {
    const F32x4 b0 = load_shared_f32x4(base + Tile::O_BIAS + (q * 32 + col) * 4), b1 = load_shared_f32x4(base + Tile::O_BIAS + (q * 32 + col) * 4 + 16);
    const float bias[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
    u32 staged[2][Tile::N_STAGED ? Tile::N_STAGED : 1][4];
#pragma unroll
    for (int h = 0; h < 2; h++) wide_load_staged<Tile, 8>(staged[h], base, row + h * 8, q * 32 + col);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float v[8];
#pragma unroll
      for (int j = 0; j < 8; j++) v[j] = sums[q * 16 + j / 2 * 4 + h * 2 + j % 2] + bias[j];
      wide_finish<typename Tile::T, 8, Layer::N, ALIGNED>(out, epilogue, at.row + row + h * 8, at.column + q * 32 + col, at.group * Layer::N, v, staged[h]);
    }
  }
}

// Exchanges the sums of a split K, and finishes this block's slice of rows.
template <class Tile, class Layer, class Epilogue>
DEVICE void wide_reduce(float* sums, const WideOutput& out, const Epilogue& epilogue, const WidePlace<Tile, Layer>& at, u32 base, int tid) {
  constexpr int BLOCKS = Tile::SLICE_ROWS / 8, GQ = Tile::BN / 32, UNITS = BLOCKS * GQ * 32, SLOT = Tile::SLICE_BYTES, S = Tile::SPLIT;
  const int lane = tid & 31;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int block = (tid >> 5) * 2 + h, owner = block / BLOCKS;  // of 8 rows
    const u32 from = base + Tile::O_PARTIAL + (owner == at.ks ? S - 1 : (at.ks - owner - 1 + S) % S) * SLOT + (block % BLOCKS * GQ * 32 + lane) * 16;
    const u32 rank = (owner * Tile::CM + at.cm) * Tile::CN + at.cn;
    const u32 to = map_to_rank(from, rank), bar = map_to_rank(base + Tile::O_SUMS, rank);
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
    wide_finish_part<Tile, Layer, W>(out, epilogue, at, base, at.ks * Tile::SLICE_ROWS, row, col, v);
  }
}

template <class Tile, class Layer, class Epilogue>
DEVICE void wide_consume(const WideOutput& out, const Epilogue& epilogue, WidePlace<Tile, Layer>& at, u32 base, int cluster, int n_clusters, int tid) {
  const int lane = tid & 31, warp = tid >> 5;
  const int target = lane < Tile::CM ? (int)at.rank_of(lane, at.cn) : lane < Tile::SHARERS ? (int)at.rank_of(at.cm, lane - Tile::CM + (lane - Tile::CM >= at.cn)) : 0;
  const u32 release = Tile::SHARERS > 1 ? map_to_rank(base + Tile::O_EMPTY, target) : 0;
  const int group = warp / 4, n_k = at.k_end - at.k_begin;
  int slot = 0, first = cluster, stride = n_clusters;
  u32 parity = 0, extra_parity = 0, turn_parity = group ^ 1;  // the first turn is group 0's at once
  if constexpr (Tile::ALTERNATE) {
    wide_skip<Tile>(group * n_k, slot, parity);
    first += group * stride, stride *= 2;
  }
  wait_for_predecessor();  // an epilogue may read what it wrote
  for (int tile = first; tile < at.n_tiles; tile += stride) {
    at.take(tile);
    if constexpr (Tile::ALTERNATE) {
      mbarrier_wait(base + Tile::O_TURN + 8 * group, turn_parity);
      turn_parity ^= 1;
    }
    float sums[Tile::N_SUMS];
    wide_multiply<Tile>(sums, base, Tile::ALTERNATE ? 0 : group * 8192, release, base + Tile::O_TURN + 8 * (group ^ 1), lane, n_k, slot, parity);
    if constexpr (Tile::SPLIT > 1) {
      if constexpr (Tile::WAITS_LATER) cluster_wait();  // the others have started
      if constexpr (Tile::IN_RING) cluster_sync();      // the others have emptied their rings
      wide_reduce(sums, out, epilogue, at, base, tid);
      return;
    } else {
      mbarrier_wait(base + Tile::O_EXTRA_FULL + (Tile::ALTERNATE ? 8 * group : 0), extra_parity);
      extra_parity ^= 1;
#pragma unroll
      for (int slab = 0; slab < Tile::SLABS; slab++)
        wide_finish_sums(sums + slab * (Tile::BN / 2), out, epilogue, at, base, slab * 64 + (Tile::ALTERNATE ? warp % 4 : warp) * 16 + lane / 4, lane % 4 * 8);
      if constexpr (Tile::ALTERNATE) wide_skip<Tile>(n_k, slot, parity);
      __syncwarp();
      if (lane == 0) mbarrier_arrive(base + Tile::O_EXTRA_EMPTY);
    }
  }
  if constexpr (Tile::WAITS_LATER) cluster_wait();
  if constexpr (Tile::IN_RING) cluster_sync();
}

// The kernel's body. counts[0]: rows of this batch; written before the first launch of the chain.
template <class Tile, class Layer, class Inputs, class Epilogue>
DEVICE void wide_linear(const int* counts, const u8* weights, u16* y, int ld_y, const Inputs& inputs, const Epilogue& epilogue) {
  extern __shared__ __align__(1024) u8 shared[];
  static_assert(Tile::N_STAGED == Epilogue::N_STAGED, "room for what the epilogue wants");
  const u32 base = shared_address(shared);
  const int tid = threadIdx.x;
  dependents_may_start();
  if (tid == 0) {
    for (int i = 0; i < Tile::STAGES; i++) {
      mbarrier_init(base + 8 * i, 1);
      mbarrier_init(base + Tile::O_EMPTY + 8 * i, Tile::CONSUMER_WARPS * Tile::SHARERS);
    }
    for (int i = 0; i < 2; i++) {
      mbarrier_init(base + Tile::O_EXTRA_FULL + 8 * i, 1);
      mbarrier_init(base + Tile::O_TURN + 8 * i, 4);
    }
    mbarrier_init(base + Tile::O_EXTRA_EMPTY, Tile::CONSUMER_WARPS);
    mbarrier_init(base + Tile::O_SUMS, 1);
    mbarrier_init_fence();
    if constexpr (Tile::SPLIT > 1) mbarrier_arrive_expect(base + Tile::O_SUMS, Tile::SLICE_BYTES * (Tile::SPLIT - 1));
  }
  const int rows = *(const volatile int*)counts;
  const u32 rank = Tile::CLUSTER > 1 ? cluster_rank() : 0;
  WidePlace<Tile, Layer> at(rank, rows);
  const WideOutput out{y, ld_y, rows};
  const int cluster = blockIdx.x / Tile::CLUSTER, n_clusters = gridDim.x / Tile::CLUSTER;
  __syncthreads();
  if constexpr (Tile::WAITS_LATER) cluster_arrive();
  if constexpr (Tile::SHARERS > 1) cluster_sync();
  if (tid >= Tile::CONSUMERS) {
    if constexpr (Tile::MOVES_REGISTERS) registers_shrink<56>();
    if (tid == Tile::CONSUMERS) wide_produce<Tile, Layer>(base, weights, inputs, at, cluster, n_clusters);
    __syncwarp();
    if constexpr (Tile::WAITS_LATER) cluster_wait();
    if constexpr (Tile::IN_RING) cluster_sync();
  } else {
    if constexpr (Tile::MOVES_REGISTERS) registers_grow<224>();
    wide_consume<Tile, Layer>(out, epilogue, at, base, cluster, n_clusters, tid);
  }
  if constexpr (Tile::SHARERS > 1) cluster_sync();  // no block ends while a peer may still free its slots
}
