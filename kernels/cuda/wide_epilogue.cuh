// How a wide linear layer ends: bias, epilogue and store of a few adjacent columns of one row.
//
// An epilogue is a struct with
//   static constexpr int N_STAGED;   // matrices of Y's shape that the kernel reads for it
//   DEVICE void operator()(int row, int col, float& v0, float& v1, const F32x2* staged) const;
// It gets the sums (bias included) of columns col and col + 1, col even, and leaves the final values;
// staged[i] holds the same two elements of matrix i. Columns count through all groups.
#pragma once
#include "ptx.cuh"

struct Identity { static DEVICE float apply(float v) { return v; } };
struct Relu { static DEVICE float apply(float v) { return v < 0.f ? 0.f : v; } };  // NaN passes
struct Sigmoid { static DEVICE float apply(float v) { return 1.f / (1.f + __expf(-v)); } };
struct Tanh { static DEVICE float apply(float v) { return 1.f - 2.f / (1.f + __expf(2.f * v)); } };

template <class Function> struct Activate {
  static constexpr int N_STAGED = 0;
  DEVICE void operator()(int, int, float& v0, float& v1, const F32x2*) const {
    v0 = Function::apply(v0);
    v1 = Function::apply(v1);
  }
};

struct ActivateLeakyRelu {
  static constexpr int N_STAGED = 0;
  float slope;
  DEVICE void operator()(int, int, float& v0, float& v1, const F32x2*) const {
    v0 = v0 < 0.f ? slope * v0 : v0;
    v1 = v1 < 0.f ? slope * v1 : v1;
  }
};

struct ActivateElu {
  static constexpr int N_STAGED = 0;
  float slope;
  DEVICE void operator()(int, int, float& v0, float& v1, const F32x2*) const {
    v0 = v0 < 0.f ? slope * (__expf(v0) - 1.f) : v0;
    v1 = v1 < 0.f ? slope * (__expf(v1) - 1.f) : v1;
  }
};

// DCNv2's cross layer (arXiv 2008.13535, eq. 1): x_0 * (sums + bias) + x_l; staged: x_0, x_l.
struct Cross {
  static constexpr int N_STAGED = 2;
  DEVICE void operator()(int, int, float& v0, float& v1, const F32x2* staged) const {
    v0 = staged[0].x * v0 + staged[1].x;
    v1 = staged[0].y * v1 + staged[1].y;
  }
};

// Where a tile's values go.
struct WideOutput {
  static constexpr bool HALVES = true, EIGHTS = false;
  u16* y;
  int ld, rows;
};

template <int W, int N, bool ALIGNED, class Output>
DEVICE void wide_store_eights(const Output& out, int row, int col, int first_column, const float* v);  // wide_sm90.cuh

// Applies the epilogue to W (2, 4 or 8) columns of a row and stores what lies inside. col counts
// within the group, which has N columns of which the first is first_column of Y.
template <class T, int W, int N, bool ALIGNED, class Output, class Epilogue>
DEVICE void wide_finish(const Output& out, const Epilogue& epilogue, int row, int col, int first_column, float* v, const u32 (*staged)[4]) {
  constexpr int S = Epilogue::N_STAGED;
  if (row >= out.rows || col >= N) return;
  u32 packed[W / 2];
#pragma unroll
  for (int j = 0; j < W / 2; j++) {
    F32x2 s[S ? S : 1];
#pragma unroll
    for (int i = 0; i < S; i++) s[i] = {T::unpack((u16)staged[i][j]), T::unpack((u16)(staged[i][j] >> 16))};
    epilogue(row, first_column + col + 2 * j, v[2 * j], v[2 * j + 1], s);
    packed[j] = T::pack2(v[2 * j], v[2 * j + 1]);
  }
  if constexpr (Output::EIGHTS) wide_store_eights<W, N, ALIGNED>(out, row, col, first_column, v);
  if constexpr (!Output::HALVES) return;
  u16* to = out.y + (size_t)row * out.ld + first_column + col;
  if (ALIGNED && col + W <= N) {
    if constexpr (W == 8) store_global_u32x4(to, {packed[0], packed[1], packed[2], packed[3]});
    if constexpr (W == 4) *(u64*)to = packed[0] | (u64)packed[1] << 32;
    if constexpr (W == 2) *(u32*)to = packed[0];
  } else {
#pragma unroll
    for (int j = 0; j < W; j++)
      if (col + j < N) to[j] = (u16)(packed[j / 2] >> (j % 2 * 16));
  }
}
