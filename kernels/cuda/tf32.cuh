// Storage of floats, multiplied on the tensor cores as tf32, which keeps 10 bits of a mantissa.
//
// With one term both factors are rounded to nearest, each off by 2^-11 at most, as fp16 is. With three, each is the sum of a
// big and a small tf32, and all products but that of the small ones are added: CUTLASS's 3xTF32. A split is off by 2^-23,
// and the product left out is 2^-22 at most, so sums are about as good as fp32's, except that tensor cores round them
// toward zero: those of a step are therefore added to the others outside (arXiv 2203.03341, sections 2 and 3).
#pragma once
#include "ptx.cuh"

template <int TERMS_> struct Tf32 { static constexpr int TERMS = TERMS_; };

// What is not finite, or would be rounded to infinity, is small alone: in the product of the big parts, or of a small part
// that is zero, an infinity would become NaN.
struct Parts { u32 big, small; };
DEVICE Parts split_tf32(float v) {
  const u32 big = round_tf32(v);
  const bool finite = (big & 0x7f800000u) != 0x7f800000u;
  return {finite ? big : 0u, finite ? round_tf32(v - __uint_as_float(big)) : __float_as_uint(v)};
}

// N numbers of a fragment, as so many terms read them. Weights of one term are rounded already.
template <class T, int N> struct Factor;
template <int N> struct Factor<Tf32<1>, N> {
  u32 big[N];
  DEVICE void take(int i, float v) { big[i] = round_tf32(v); }
  DEVICE void take_weight(int i, u32 v) { big[i] = v; }
  DEVICE void copy(int i, const Factor& from, int j) { big[i] = from.big[j]; }
};
template <int N> struct Factor<Tf32<3>, N> {
  u32 big[N], small[N];
  DEVICE void take(int i, float v) {
    const Parts parts = split_tf32(v);
    big[i] = parts.big; small[i] = parts.small;
  }
  DEVICE void take_weight(int i, u32 v) { take(i, __uint_as_float(v)); }
  DEVICE void copy(int i, const Factor& from, int j) { big[i] = from.big[j]; small[i] = from.small[j]; }
};

// Adds P products of 16 x 8 by 8 x 8 for M tiles of rows: p's are a[m][p] and the p-th pair of b. sums(p, m) are four floats.
// CHAINS: 2 where there is little else to do while a product waits for the one before.
template <int CHAINS, int M, int P, class Sums> DEVICE void add_products(Sums sums, const Factor<Tf32<1>, 4> (&a)[M][P], const Factor<Tf32<1>, 2 * P>& b) {
#pragma unroll
  for (int p = 0; p < P; p++)
#pragma unroll
    for (int m = 0; m < M; m++) mma_tf32(sums(p, m), a[m][p].big, b.big[2 * p], b.big[2 * p + 1]);
}
template <int CHAINS, int M, int P, class Sums> DEVICE void add_products(Sums sums, const Factor<Tf32<3>, 4> (&a)[M][P], const Factor<Tf32<3>, 2 * P>& b) {
  float part[CHAINS][M][4];
#pragma unroll
  for (int i = 0; i < CHAINS * M * 4; i++) (&part[0][0][0])[i] = 0.f;
#pragma unroll
  for (int p = 0; p < P; p++)
#pragma unroll
    for (int m = 0; m < M; m++) mma_tf32(part[p % CHAINS][m], a[m][p].small, b.big[2 * p], b.big[2 * p + 1]);
#pragma unroll
  for (int p = 0; p < P; p++)
#pragma unroll
    for (int m = 0; m < M; m++) mma_tf32(part[p % CHAINS][m], a[m][p].big, b.small[2 * p], b.small[2 * p + 1]);
#pragma unroll
  for (int p = 0; p < P; p++)
#pragma unroll
    for (int m = 0; m < M; m++) mma_tf32(part[p % CHAINS][m], a[m][p].big, b.big[2 * p], b.big[2 * p + 1]);
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int i = 0; i < 4; i++) sums(0, m)[i] += CHAINS == 1 ? part[0][m][i] : part[0][m][i] + part[CHAINS - 1][m][i];
}
