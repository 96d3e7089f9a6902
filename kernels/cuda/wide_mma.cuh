// One linear layer across the whole card by mma.sync and cp.async (sm_80 and up): what
// wide_sm90.cuh does, for cards without wgmma. Packed weights and epilogues are the same.
//
// A block owns one tile of BM rows and BN columns. All its warps copy tiles of 128 bytes of K into
// a ring of STAGES slots, 16 bytes a thread, and multiply; a warp takes BM / WARPS_M rows and 32
// columns. What lies outside X is written as zeros, so that no stray value meets a weight.
#pragma once
#include "wide_epilogue.cuh"

// What X and Y consist of, and how fragments are multiplied; WideColumns, below, is how columns end. Here of halves, of
// floats in wide_tf32.cuh.
template <class T> struct WideElement { typedef u16 Type; };
template <class T> struct WideProducts {
  static constexpr int UNROLL = 4;  // steps at a time, as registers allow
  template <int SLABS> static DEVICE void add(float (&sums)[SLABS][4][4], const u32 (&a)[SLABS][4], const u32 (&b)[2][4]) {
#pragma unroll
    for (int s = 0; s < SLABS; s++)
#pragma unroll
      for (int j = 0; j < 4; j++) T::mma(sums[s][j], a[s], b[j >> 1][(j & 1) * 2], b[j >> 1][(j & 1) * 2 + 1]);
  }
};
template <class Storage, int BM_, int BN_, int STAGES_> struct WideMmaTile {
  using T = Storage;
  using Element = typename WideElement<T>::Type;
  static constexpr int BM = BM_, BN = BN_, STAGES = STAGES_;
  static constexpr int WARPS_N = BN / 32, WARPS_M = BM / 16 < 8 / WARPS_N ? BM / 16 : 8 / WARPS_N;
  static constexpr int THREADS = WARPS_M * WARPS_N * 32, SLABS = BM / 16 / WARPS_M;
  static constexpr int A_BYTES = BM * 128, STAGE_BYTES = A_BYTES + BN * 128, SHARED_BYTES = STAGES * STAGE_BYTES;
  static_assert(BN >= 32 && BN <= 128 && SLABS >= 1 && STAGES >= 2, "as laid out");
};

// Part of one row of X, from the tile's first column on: how many of its columns are valid.
template <class Element> struct WideRow {
  const Element* from;
  int ld, columns;
};

// Inputs, as emitted: WideRow<Element> input(int k_tile, int group) const, of row 0;
// const Element* staged(int i) const, int staged_ld(int i) const.
template <class Tile, class Layer, class Inputs>
DEVICE void wide_mma_load(u32 slot, const u8* weights, const Inputs& inputs, int k_tile, int group, int row, int column, int rows, int tid) {
  typedef typename Tile::Element E;
  constexpr int PER = 16 / sizeof(E);
  const WideRow<E> x = inputs.input(k_tile, group);
#pragma unroll
  for (int i = tid; i < Tile::BM * 8; i += Tile::THREADS) {
    const int r = i / 8, part = i % 8, left = row + r < rows ? x.columns - part * PER : 0;
    const int n_bytes = left >= PER ? 16 : left > 0 ? left * (int)sizeof(E) : 0;
    cp_async(slot + r * 128 + ((part ^ (r & 7)) << 4), n_bytes ? x.from + (size_t)(row + r) * x.ld + part * PER : x.from, n_bytes);
  }
  const u8* w = weights + ((size_t)(group * Layer::K_TILES + k_tile) * Layer::N_PADDED + column) * 128;
#pragma unroll
  for (int i = tid; i < Tile::BN * 8; i += Tile::THREADS) cp_async(slot + Tile::A_BYTES + i * 16, w + i * 16);
}

template <class Tile> DEVICE void wide_mma_multiply(float (&sums)[Tile::SLABS][4][4], u32 slot, int first_row, int first_column, int lane) {
  const u32 a_base = slot, b_base = slot + Tile::A_BYTES;
#pragma unroll(WideProducts<typename Tile::T>::UNROLL)
  for (int step = 0; step < 4; step++) {
    u32 b[2][4];
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int r = first_column + j * 16 + (lane & 7) + (lane >> 4 << 3);
      ldmatrix_x4(b[j], b_base + r * 128 + (((step * 2 + (lane >> 3 & 1)) ^ (r & 7)) << 4));
    }
    u32 a[Tile::SLABS][4];
#pragma unroll
    for (int s = 0; s < Tile::SLABS; s++) {
      const int r = first_row + s * 16 + (lane & 15);
      ldmatrix_x4(a[s], a_base + r * 128 + (((step * 2 + (lane >> 4)) ^ (r & 7)) << 4));
    }
    WideProducts<typename Tile::T>::add(sums, a, b);
  }
}

// 8 columns of one row, bias added: staged values straight from global memory, epilogue, store.
template <class T> struct WideColumns {
  template <class Layer, class Inputs, class Epilogue>
  static DEVICE void finish(u16* y, int ld, const Inputs& inputs, const Epilogue& epilogue, int group, int row, int col, float* v) {
    constexpr int S = Epilogue::N_STAGED;
    const int first = group * Layer::N;
    u32 staged[S ? S : 1][4];
#pragma unroll
    for (int i = 0; i < S; i++) {  // its row is as wide as a multiple of 8, so 16 bytes are there
      U32x4 w = load_global_u32x4(inputs.staged(i) + (size_t)row * inputs.staged_ld(i) + first + col);
      staged[i][0] = w.x, staged[i][1] = w.y, staged[i][2] = w.z, staged[i][3] = w.w;
    }
    constexpr bool ALIGNED = Layer::GROUPS == 1 || Layer::N % 8 == 0;
    static_assert(ALIGNED || S == 0, "a staged group must start at 16 bytes");
    wide_finish<T, 8, Layer::N, ALIGNED>(WideOutput{y, ld, row + 1}, epilogue, row, col, first, v, staged);
  }
};
template <class Tile, class Layer, class Inputs, class Epilogue>
DEVICE void wide_mma_finish(typename Tile::Element* y, int ld_y, int rows, const u8* weights, const Inputs& inputs, const Epilogue& epilogue, int group, int row, int col, float* v) {
  if (row >= rows || col >= Layer::N) return;
  const float* bias = (const float*)(weights + Layer::BIAS_OFFSET) + group * Layer::BIAS_COLUMNS + col;
#pragma unroll
  for (int j = 0; j < 8; j++) v[j] += bias[j];
  WideColumns<typename Tile::T>::template finish<Layer>(y, ld_y, inputs, epilogue, group, row, col, v);
}

template <class Tile, class Layer, class Inputs, class Epilogue>
DEVICE void wide_mma_linear(const int* counts, const u8* weights, typename Tile::Element* y, int ld_y, const Inputs& inputs, const Epilogue& epilogue) {
  DYNAMIC_SHARED(shared);
  constexpr int COLUMN_TILES = (Layer::N + Tile::BN - 1) / Tile::BN;
  const u32 base = shared_address(shared);
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  dependents_may_start();
  wait_for_predecessor();
  const int rows = counts[0];
  const int column = blockIdx.x % COLUMN_TILES * Tile::BN, group = blockIdx.x / COLUMN_TILES % Layer::GROUPS;
  const int row = blockIdx.x / (COLUMN_TILES * Layer::GROUPS) * Tile::BM;
  if (row >= rows) return;
  const int first_row = warp / Tile::WARPS_N * Tile::SLABS * 16, first_column = warp % Tile::WARPS_N * 32;
  const auto load = [&](int k) {
    if (k < Layer::K_TILES) wide_mma_load<Tile, Layer>(base + k % Tile::STAGES * Tile::STAGE_BYTES, weights, inputs, k, group, row, column, rows, tid);
    cp_async_commit();
  };
  for (int k = 0; k < Tile::STAGES - 1; k++) load(k);
  float sums[Tile::SLABS][4][4];
#pragma unroll
  for (int i = 0; i < Tile::SLABS * 16; i++) (&sums[0][0][0])[i] = 0.f;
#pragma unroll 1
  for (int k = 0; k < Layer::K_TILES; k++) {
    cp_async_wait<Tile::STAGES - 2>();
    __syncthreads();  // slot k is whole, and all have read slot k - 1, which is loaded next
    load(k + Tile::STAGES - 1);
    wide_mma_multiply<Tile>(sums, base + k % Tile::STAGES * Tile::STAGE_BYTES, first_row, first_column, lane);
  }
  cp_async_wait<0>();
#pragma unroll
  for (int s = 0; s < Tile::SLABS; s++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float v[8];
#pragma unroll
      for (int j = 0; j < 8; j++) v[j] = sums[s][j / 2][h * 2 + j % 2];
      wide_mma_finish<Tile, Layer>(y, ld_y, rows, weights, inputs, epilogue, group, row + first_row + s * 16 + lane / 4 + h * 8, column + first_column + lane % 4 * 8, v);
    }
}
