// wide_mma.cuh for layers of floats: a step of 16 bytes is 4 of K, and two of them one product of tf32 (tf32.cuh). ldmatrix
// brings B's fragments, too, as they lie.
#pragma once
#include "tf32.cuh"
#include "wide_mma.cuh"

template <int TERMS> struct WideElement<Tf32<TERMS>> { typedef float Type; };

template <int TERMS> struct WideProducts<Tf32<TERMS>> {
  static constexpr int UNROLL = TERMS == 1 ? 4 : 1;
  template <int SLABS> static DEVICE void add(float (&sums)[SLABS][4][4], const u32 (&a)[SLABS][4], const u32 (&b)[2][4]) {
    Factor<Tf32<TERMS>, 4> x[SLABS][1];
#pragma unroll
    for (int s = 0; s < SLABS; s++)
#pragma unroll
      for (int i = 0; i < 4; i++) x[s][0].take(i, __uint_as_float(a[s][i]));
#pragma unroll
    for (int j = 0; j < 4; j++) {
      Factor<Tf32<TERMS>, 2> y;
      y.take_weight(0, b[j >> 1][(j & 1) * 2]);
      y.take_weight(1, b[j >> 1][(j & 1) * 2 + 1]);
      add_products<1>([&](int, int s) { return sums[s][j]; }, x, y);
    }
  }
};

template <int TERMS> struct WideColumns<Tf32<TERMS>> {
  template <class Layer, class Inputs, class Epilogue>
  static DEVICE void finish(float* y, int ld, const Inputs& inputs, const Epilogue& epilogue, int group, int row, int col, float* v) {
    constexpr int S = Epilogue::N_STAGED;
    const int first = group * Layer::N;
    F32x4 staged[S ? S : 1][2];
#pragma unroll
    for (int i = 0; i < S; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const U32x4 w = load_global_u32x4(inputs.staged(i) + (size_t)row * inputs.staged_ld(i) + first + col + 4 * h);
        staged[i][h] = {__uint_as_float(w.x), __uint_as_float(w.y), __uint_as_float(w.z), __uint_as_float(w.w)};
      }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      F32x2 s[S ? S : 1];
#pragma unroll
      for (int i = 0; i < S; i++) s[i] = j % 2 ? F32x2{staged[i][j / 2].z, staged[i][j / 2].w} : F32x2{staged[i][j / 2].x, staged[i][j / 2].y};
      epilogue(row, first + col + 2 * j, v[2 * j], v[2 * j + 1], s);
    }
    float* to = y + (size_t)row * ld + first + col;
    if ((Layer::GROUPS == 1 || Layer::N % 8 == 0) && col + 8 <= Layer::N) {
#pragma unroll
      for (int h = 0; h < 8; h += 4)
        store_global_u32x4(to + h, {__float_as_uint(v[h]), __float_as_uint(v[h + 1]), __float_as_uint(v[h + 2]), __float_as_uint(v[h + 3])});
    } else {
#pragma unroll
      for (int j = 0; j < 8; j++)
        if (col + j < Layer::N) to[j] = v[j];
    }
  }
};
