// A transformer block over a short sequence, normalised after each half (arXiv 1706.03762).
//
// A warp holds MT x 16 steps of a row in registers from x to the result; keys and values of a row's
// steps are exchanged through shared memory, once. Weights stay in shared memory, as far as they
// fit. Everything is an m16n8k16 product:
//  - The fragments of x are A fragments of q and k, and B fragments of v^T = W_v^T x^T. Sums of k and
//    of v^T, rounded, are the B fragments that q k^T and p v want, lane for lane: nothing is
//    transposed, and 16 bytes a lane move.
//  - Sums of q, of p v, of the first feed-forward layer and of the first norm are A fragments next.
//  - Columns of width D stand in the order of neighbours throughout (a lane holds 8 in a row): rows
//    of x and of the result are 16-byte accesses, and weights are packed for it.
// A key's bias adds the same to all scores of a query, and so is left out; a value's passes through
// the softmax unchanged, and is part of b_o. The scale is part of W_q and b_q.
//
// Where rows are few, SPLIT warps hold the same steps: each takes some of the heads and of the inner
// columns, and they add up what these come to through shared memory.
//
// Cfg, which the emitter writes: T, Act, D (a multiple of 16), HEADS, HEAD_TILES (columns of a head
// in tiles of 8: 1 or even), STEPS, F (a multiple of 16), MT, SPLIT, WARPS, RESIDENT (which
// matrices are in shared memory: 0 none, 1 the attention's, 2 the feed-forward layers' too), BARRIER
// (id of the first of as many named barriers as a block has rows under way), EPSILON_1, EPSILON_2.
//
// Packed weights, where P pairs of tiles hold all heads: floats b_q [16 P], b_o, gain_1, offset_1,
// b_2, gain_2, offset_2 [D], b_1 [F], then W_q, W_k [D / 32][2 P tiles][lane][16 bytes], W_v [P]
// [D / 16][lane][16 bytes] as A fragments of its transpose, W_o [P][D / 16 pairs of tiles][lane][16
// bytes], W_1 [D / 32][F / 8 tiles][lane][16 bytes], W_2 [F / 16][D / 16 pairs][lane][16 bytes].
#pragma once
#include "sequence.cuh"

template <class Cfg> struct EncoderBlock {
  typedef typename Cfg::T T;
  typedef typename Cfg::Act Act;
  static constexpr int D = Cfg::D, STEPS = Cfg::STEPS, F = Cfg::F, MT = Cfg::MT, SPLIT = Cfg::SPLIT, HT = Cfg::HEAD_TILES;
  static constexpr int KS = D / 16, PIECES = ceil_div(KS, 2), NT = D / 8;
  static constexpr int TOGETHER = HT == 1 ? 2 : 1, PAIRS = HT == 1 ? 1 : HT / 2;  // heads at a time, and their pairs of tiles
  static constexpr int TURNS = ceil_div(Cfg::HEADS, TOGETHER), P = TURNS * PAIRS;
  static constexpr int TILES = ceil_div(STEPS, 16), PARTS = ceil_div(TILES, MT), ROW_WARPS = PARTS * SPLIT, GROUPS = Cfg::WARPS / ROW_WARPS;
  static_assert(D % 16 == 0 && F % 16 == 0 && (HT == 1 || HT % 2 == 0) && Cfg::WARPS % ROW_WARPS == 0, "as the emitter chooses them");
  static constexpr int B_Q = 0, B_O = B_Q + P * 64, GAIN_1 = B_O + D * 4, OFFSET_1 = GAIN_1 + D * 4, B_2 = OFFSET_1 + D * 4;
  static constexpr int GAIN_2 = B_2 + D * 4, OFFSET_2 = GAIN_2 + D * 4, B_1 = OFFSET_2 + D * 4, W_Q = B_1 + F * 4;
  static constexpr int W_K = W_Q + PIECES * P * 1024, W_V = W_K + PIECES * P * 1024, W_O = W_V + P * KS * 512;
  static constexpr int W_1 = W_O + P * KS * 512, W_2 = W_1 + PIECES * F * 64, WEIGHT_BYTES = W_2 + F * KS * 32;
  static constexpr int ATTENTION_BYTES = Cfg::RESIDENT >= 1 ? W_1 : W_Q, RESIDENT_BYTES = Cfg::RESIDENT >= 2 ? WEIGHT_BYTES : ATTENTION_BYTES;
  static constexpr int EXCHANGE_BYTES = PARTS * MT * P * 512;  // keys of a row, and again for values
  static constexpr int SUM_BYTES = SPLIT > 1 ? MT * NT * 512 : 0;  // a warp's part of y, once for each half of the block
  static constexpr int GROUP_BYTES = 2 * EXCHANGE_BYTES + 2 * ROW_WARPS * SUM_BYTES, SHARED_BYTES = RESIDENT_BYTES + GROUPS * GROUP_BYTES;

  // Two groups of asynchronous copies: what attention needs, and the feed-forward layers' weights, if resident.
  static DEVICE void load_weights(const u8* weights, u32 shared, int thread, int n_threads) {
    copy_weights(shared, weights, ATTENTION_BYTES, thread, n_threads);
    copy_weights(shared + ATTENTION_BYTES, weights + ATTENTION_BYTES, RESIDENT_BYTES - ATTENTION_BYTES, thread, n_threads);
  }

  template <class X> static DEVICE void fetch(u32 (*x)[KS][4], const X& source, int row, int tile, int lane) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        int step = (tile + m) * 16 + h * 8 + (lane >> 2);
        if (STEPS % 16 != 0 || TILES % MT != 0) step = step < STEPS ? step : STEPS - 1;
#pragma unroll
        for (int p = 0; p < KS / 2; p++) {
          u32 w[4];
          source.template words<8>(row, step, p * 32 + 8 * (lane & 3), w);
          x[m][2 * p][h] = w[0]; x[m][2 * p][2 + h] = w[1]; x[m][2 * p + 1][h] = w[2]; x[m][2 * p + 1][2 + h] = w[3];
        }
        if constexpr (KS % 2 == 1) {
          u32 w[2];
          source.template words<4>(row, step, (KS - 1) * 16 + 4 * (lane & 3), w);
          x[m][KS - 1][h] = w[0]; x[m][KS - 1][2 + h] = w[1];
        }
      }
  }

  // Where a lane finds 16 bytes of a matrix; WIDE: of the feed-forward layers.
  struct Weights {
    u32 shared; const u8* global;
    template <bool WIDE> DEVICE U32x4 at(int offset) const {
      if constexpr (Cfg::RESIDENT >= (WIDE ? 2 : 1)) return load_shared_u32x4(shared + offset);
      else return load_global_u32x4_constant(global + offset);
    }
  };

  template <int N> static DEVICE void clear(float (*sum)[N][4]) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int n = 0; n < N; n++) sum[m][n][0] = sum[m][n][1] = sum[m][n][2] = sum[m][n][3] = 0.f;
  }
  // Adds x W for N tiles of columns; weight(piece, n) gives a lane's 16 bytes.
  template <int N, class Weight> static DEVICE void multiply(float (*sum)[N][4], const u32 (*x)[KS][4], Weight weight) {
#pragma unroll
    for (int p = 0; p < PIECES; p++)
#pragma unroll
      for (int n = 0; n < N; n++) {
        const U32x4 w = weight(p, n);
#pragma unroll
        for (int m = 0; m < MT; m++) {
          T::mma(sum[m][n], x[m][2 * p], w.x, w.y);
          if (2 * p + 1 < KS) T::mma(sum[m][n], x[m][2 * p + 1 < KS ? 2 * p + 1 : 0], w.z, w.w);
        }
      }
  }
  // Adds a W for all columns of width D, where a is one A fragment an m; weight(pair) gives a lane's 16 bytes.
  template <class Weight> static DEVICE void spread(float (*sum)[NT][4], const u32 (*a)[4], Weight weight) {
#pragma unroll
    for (int q = 0; q < KS; q++) {
      const U32x4 w = weight(q);
#pragma unroll
      for (int m = 0; m < MT; m++) { T::mma(sum[m][2 * q], a[m], w.x, w.y); T::mma(sum[m][2 * q + 1], a[m], w.z, w.w); }
    }
  }
  static DEVICE void round(u32* a, const float* low, const float* high) {
    a[0] = T::pack2(low[0], low[1]); a[1] = T::pack2(low[2], low[3]); a[2] = T::pack2(high[0], high[1]); a[3] = T::pack2(high[2], high[3]);
  }
  static DEVICE float quad_sum(float v) { v += shuffle_xor(v, 1); return v + shuffle_xor(v, 2); }

  // Keys and values of a warp's steps, as the B fragments that others will read.
  static DEVICE void project(const u32 (*x)[KS][4], const Weights& weights, u32 keys, u32 values, int tile, int slice, int lane) {
#pragma unroll 2
    for (int p = slice; p < P; p += SPLIT) {
      float sum[MT][2][4];
      clear<2>(sum);
      multiply<2>(sum, x, [&](int piece, int n) { return weights.template at<false>(W_K + ((piece * 2 * P + 2 * p + n) * 32 + lane) * 16); });
#pragma unroll
      for (int m = 0; m < MT; m++) {
        const float (*s)[4] = sum[m];
        store_shared_u32x4(keys + (((tile + m) * P + p) * 32 + lane) * 16,
                           U32x4{T::pack2(s[0][0], s[0][1]), T::pack2(s[1][0], s[1][1]), T::pack2(s[0][2], s[0][3]), T::pack2(s[1][2], s[1][3])});
      }
    }
#pragma unroll 2
    for (int p = slice; p < P; p += SPLIT) {
      float sum[MT][2][4];  // rows are columns of v, columns are steps: 8 and the next 8
      clear<2>(sum);
#pragma unroll
      for (int s = 0; s < KS; s++) {
        const U32x4 w = weights.template at<false>(W_V + ((p * KS + s) * 32 + lane) * 16);
        const u32 a[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int m = 0; m < MT; m++) { T::mma(sum[m][0], a, x[m][s][0], x[m][s][2]); T::mma(sum[m][1], a, x[m][s][1], x[m][s][3]); }
      }
#pragma unroll
      for (int m = 0; m < MT; m++) {
        const float (*s)[4] = sum[m];
        store_shared_u32x4(values + (((tile + m) * P + p) * 32 + lane) * 16,
                           U32x4{T::pack2(s[0][0], s[0][1]), T::pack2(s[1][0], s[1][1]), T::pack2(s[0][2], s[0][3]), T::pack2(s[1][2], s[1][3])});
      }
    }
  }

  // One head and 16 steps: softmax(q k^T) v. `q` holds PAIRS fragments; tiles of columns go to `out`, as A fragments. EVEN
  // and ODD (heads of one tile): which tile of the pair is the head's.
  template <bool EVEN, bool ODD> static DEVICE void attend(u32 (*out)[4], const u32 (*q)[4], u32 keys, u32 values, int lane) {
    float s[2 * TILES][4];
#pragma unroll
    for (int i = 0; i < TILES; i++) {
#pragma unroll
      for (int k = 0; k < 4; k++) s[2 * i][k] = s[2 * i + 1][k] = 0.f;
#pragma unroll
      for (int j = 0; j < PAIRS; j++) {
        const U32x4 k = load_shared_u32x4(keys + (i * P + j) * 512);
        const u32 a[4] = {EVEN ? q[j][0] : 0, EVEN ? q[j][1] : 0, ODD ? q[j][2] : 0, ODD ? q[j][3] : 0};
        T::mma(s[2 * i], a, k.x, k.y);
        T::mma(s[2 * i + 1], a, k.z, k.w);
      }
    }
    if constexpr (STEPS % 16 != 0) {
#pragma unroll
      for (int n = 2 * TILES - 2; n < 2 * TILES; n++)
#pragma unroll
        for (int k = 0; k < 4; k++)
          if (n * 8 + 2 * (lane & 3) + (k & 1) >= STEPS) s[n][k] = -__int_as_float(0x7f800000);
    }
    float sum[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float top = s[0][2 * h];
#pragma unroll
      for (int n = 0; n < 2 * TILES; n++) top = fmaxf(top, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
      top = fmaxf(top, shuffle_xor(top, 1));
      top = fmaxf(top, shuffle_xor(top, 2));
      sum[h] = 0.f;
#pragma unroll
      for (int n = 0; n < 2 * TILES; n++) {
        s[n][2 * h] = __expf(s[n][2 * h] - top); s[n][2 * h + 1] = __expf(s[n][2 * h + 1] - top);
        sum[h] += s[n][2 * h] + s[n][2 * h + 1];
      }
    }
    float v[2 * PAIRS][4];
#pragma unroll
    for (int n = 0; n < 2 * PAIRS; n++) v[n][0] = v[n][1] = v[n][2] = v[n][3] = 0.f;
#pragma unroll
    for (int i = 0; i < TILES; i++) {
      u32 a[4];
      round(a, s[2 * i], s[2 * i + 1]);
#pragma unroll
      for (int j = 0; j < PAIRS; j++) {
        const U32x4 b = load_shared_u32x4(values + (i * P + j) * 512);
        if (EVEN) T::mma(v[2 * j], a, b.x, b.y);
        if (ODD) T::mma(v[2 * j + 1], a, b.z, b.w);
      }
    }
    const float by0 = 1.f / quad_sum(sum[0]), by1 = 1.f / quad_sum(sum[1]);
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      if (EVEN) { out[j][0] = T::pack2(v[2 * j][0] * by0, v[2 * j][1] * by0); out[j][1] = T::pack2(v[2 * j][2] * by1, v[2 * j][3] * by1); }
      if (ODD) { out[j][2] = T::pack2(v[2 * j + 1][0] * by0, v[2 * j + 1][1] * by0); out[j][3] = T::pack2(v[2 * j + 1][2] * by1, v[2 * j + 1][3] * by1); }
    }
  }

  // y += attention of x, projected.
  static DEVICE void attention(float (*y)[NT][4], const u32 (*x)[KS][4], const Weights& weights, u32 keys, u32 values, int slice, int lane) {
#pragma unroll SPLIT > 1 && TILES * PAIRS <= 4 ? 2 : 1
    for (int turn = slice; turn < TURNS; turn += SPLIT) {
      float sum[MT][2 * PAIRS][4];
#pragma unroll
      for (int n = 0; n < 2 * PAIRS; n++) {
        const F32x2 b = load_shared_f32x2(weights.shared + B_Q + ((turn * PAIRS * 2 + n) * 8 + 2 * (lane & 3)) * 4);
#pragma unroll
        for (int m = 0; m < MT; m++) { sum[m][n][0] = sum[m][n][2] = b.x; sum[m][n][1] = sum[m][n][3] = b.y; }
      }
      multiply<2 * PAIRS>(sum, x, [&](int piece, int n) { return weights.template at<false>(W_Q + ((piece * 2 * P + turn * PAIRS * 2 + n) * 32 + lane) * 16); });
      u32 out[PAIRS][MT][4];
      const u32 k = keys + (turn * PAIRS * 32 + lane) * 16, v = values + (turn * PAIRS * 32 + lane) * 16;
#pragma unroll
      for (int m = 0; m < MT; m++) {
        u32 q[PAIRS][4], o[PAIRS][4];
#pragma unroll
        for (int j = 0; j < PAIRS; j++) round(q[j], sum[m][2 * j], sum[m][2 * j + 1]);
        if constexpr (HT == 1) { attend<true, false>(o, q, k, v, lane); attend<false, true>(o, q, k, v, lane); }
        else attend<true, true>(o, q, k, v, lane);
#pragma unroll
        for (int j = 0; j < PAIRS; j++)
#pragma unroll
          for (int i = 0; i < 4; i++) out[j][m][i] = o[j][i];
      }
#pragma unroll
      for (int j = 0; j < PAIRS; j++) spread(y, out[j], [&](int q) { return weights.template at<false>(W_O + (((turn * PAIRS + j) * KS + q) * 32 + lane) * 16); });
    }
  }

  static DEVICE void normalise(float (*y)[NT][4], float epsilon, u32 gain, u32 offset, int lane) {
    float mean[MT][2], by[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float sum = 0.f, squares = 0.f;
#pragma unroll
        for (int n = 0; n < NT; n++) sum += y[m][n][2 * h] + y[m][n][2 * h + 1];
        mean[m][h] = quad_sum(sum) * (1.f / D);
#pragma unroll
        for (int n = 0; n < NT; n++) {
          const float a = y[m][n][2 * h] - mean[m][h], b = y[m][n][2 * h + 1] - mean[m][h];
          squares += a * a + b * b;
        }
        by[m][h] = rsqrtf(quad_sum(squares) * (1.f / D) + epsilon);
      }
#pragma unroll
    for (int n = 0; n < NT; n++) {
      const F32x2 g = load_shared_f32x2(gain + (n * 8 + 2 * (lane & 3)) * 4), o = load_shared_f32x2(offset + (n * 8 + 2 * (lane & 3)) * 4);
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          y[m][n][2 * h] = (y[m][n][2 * h] - mean[m][h]) * by[m][h] * g.x + o.x;
          y[m][n][2 * h + 1] = (y[m][n][2 * h + 1] - mean[m][h]) * by[m][h] * g.y + o.y;
        }
    }
  }

  // Sums of 16 inner columns.
  static DEVICE void inner(float (*z)[2][4], const u32 (*a)[KS][4], int c, const Weights& weights, int lane) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const F32x2 b = load_shared_f32x2(weights.shared + B_1 + ((2 * c + n) * 8 + 2 * (lane & 3)) * 4);
#pragma unroll
      for (int m = 0; m < MT; m++) { z[m][n][0] = z[m][n][2] = b.x; z[m][n][1] = z[m][n][3] = b.y; }
    }
    multiply<2>(z, a, [&](int piece, int n) { return weights.template at<true>(W_1 + ((piece * (F / 8) + 2 * c + n) * 32 + lane) * 16); });
  }
  // y += activation(y W_1 + b_1) W_2 + b_2, or a slice's part of that
  static DEVICE void feed_forward(float (*y)[NT][4], const Weights& weights, int slice, int lane) {
    u32 a[MT][KS][4];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int s = 0; s < KS; s++) round(a[m][s], y[m][2 * s], y[m][2 * s + 1]);
    add(y, weights.shared + B_2, lane);
    keep_first(y, slice);
    constexpr int CHUNKS = F / 16;
    // With one m-tile, the next columns' products are under way while some pass the activation; the last come once more.
    constexpr bool OVERLAP = MT == 1;
    float z[MT][2][4], next[MT][2][4];
    if (OVERLAP && slice < CHUNKS) inner(next, a, slice, weights, lane);
#pragma unroll KS <= 4 ? 2 : 1
    for (int c = slice; c < CHUNKS; c += SPLIT) {
      if constexpr (OVERLAP) {
#pragma unroll
        for (int i = 0; i < MT * 8; i++) z[i / 8][i / 4 % 2][i % 4] = next[i / 8][i / 4 % 2][i % 4];
        inner(next, a, c + SPLIT < CHUNKS ? c + SPLIT : c, weights, lane);
      } else inner(z, a, c, weights, lane);
      u32 hidden[MT][4];
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) hidden[m][i] = Act::template pack<T>(z[m][i >> 1][2 * (i & 1)], z[m][i >> 1][2 * (i & 1) + 1]);
      spread(y, hidden, [&](int q) { return weights.template at<true>(W_2 + ((c * KS + q) * 32 + lane) * 16); });
    }
  }
  // What is not a sum over heads or inner columns counts in the first slice.
  static DEVICE void keep_first(float (*y)[NT][4], int slice) {
    if constexpr (SPLIT > 1) {
#pragma unroll
      for (int i = 0; i < MT * NT * 4; i++) y[i / (NT * 4)][i / 4 % NT][i % 4] = slice == 0 ? y[i / (NT * 4)][i / 4 % NT][i % 4] : 0.f;
    }
  }
  // y becomes the sum of the slices' parts. `sums` is the part of the warp's first slice.
  static DEVICE void combine(float (*y)[NT][4], u32 sums, int group, int slice, int lane) {
    if constexpr (SPLIT > 1) {
#pragma unroll
      for (int i = 0; i < MT * NT; i++) {
        const float* v = y[i / NT][i % NT];
        store_shared_u32x4(sums + slice * SUM_BYTES + (i * 32 + lane) * 16, U32x4{__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])});
      }
      meet(group);
#pragma unroll
      for (int i = 0; i < MT * NT; i++) {
        float* v = y[i / NT][i % NT];
        v[0] = v[1] = v[2] = v[3] = 0.f;
#pragma unroll
        for (int other = 0; other < SPLIT; other++) {
          const F32x4 w = load_shared_f32x4(sums + other * SUM_BYTES + (i * 32 + lane) * 16);
          v[0] += w.x; v[1] += w.y; v[2] += w.z; v[3] += w.w;
        }
      }
    }
  }
  static DEVICE void add(float (*y)[NT][4], u32 bias, int lane) {
#pragma unroll
    for (int n = 0; n < NT; n++) {
      const F32x2 b = load_shared_f32x2(bias + (n * 8 + 2 * (lane & 3)) * 4);
#pragma unroll
      for (int m = 0; m < MT; m++) { y[m][n][0] += b.x; y[m][n][1] += b.y; y[m][n][2] += b.x; y[m][n][3] += b.y; }
    }
  }

  template <class Out> static DEVICE void store(const float (*y)[NT][4], const Out& out, int row, int tile, int slice, int lane) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        if (SPLIT > 1 && slice != h) continue;
        const int step = (tile + m) * 16 + h * 8 + (lane >> 2);
        u32 w[NT];
#pragma unroll
        for (int n = 0; n < NT; n++) w[n] = T::pack2(y[m][n][2 * h], y[m][n][2 * h + 1]);
        if ((STEPS % 16 != 0 || TILES % MT != 0) && step >= STEPS) continue;
#pragma unroll
        for (int p = 0; p < KS / 2; p++) out.template words<8>(row, step, p * 32 + 8 * (lane & 3), w + 4 * p);
        if constexpr (KS % 2 == 1) out.template words<4>(row, step, (KS - 1) * 16 + 4 * (lane & 3), w + NT - 2);
      }
  }

  // All warps of a row.
  static DEVICE void meet(int group) { if constexpr (ROW_WARPS > 1) named_barrier(Cfg::BARRIER + group, ROW_WARPS * 32); else __syncwarp(); }

  // All WARPS call it. rows.take() names a row, the same one to all warps of a group. `shared` holds the attention's
  // weights once ready() has returned and the others once ready_wide() has; each warp calls both once. `exchange` is GROUPS *
  // GROUP_BYTES; source and sink have words<N>(row, step, column, words).
  template <class Rows, class X, class Out, class WhenReady = Ready, class WhenReadyWide = Ready>
  static DEVICE void run(Rows rows, int warp, int lane, u32 shared, u32 exchange, const u8* weights, const X& source, const Out& out, const WhenReady& ready = WhenReady(), const WhenReadyWide& ready_wide = WhenReadyWide()) {
    const int group = warp / ROW_WARPS, part = warp % ROW_WARPS / SPLIT, slice = warp % SPLIT, tile = part * MT;
    const u32 keys = exchange + group * GROUP_BYTES, values = keys + EXCHANGE_BYTES;
    const u32 sums = values + EXCHANGE_BYTES + part * SPLIT * SUM_BYTES, sums_wide = sums + ROW_WARPS * SUM_BYTES;
    int row = rows.take();
    if (row < 0) { ready(); ready_wide(); return; }
    const Weights at{shared, weights};
    u32 x[MT][KS][4];
    fetch(x, source, row, tile, lane);
    ready();
    for (bool first = true;; first = false) {
      const int next = rows.take();
      project(x, at, keys, values, tile, slice, lane);
      meet(group);
      float y[MT][NT][4];
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
          for (int h = 0; h < 2; h++) {
            const u32 pair = x[m][n / 2][2 * (n & 1) + h];
            y[m][n][2 * h] = low_of<T>(pair); y[m][n][2 * h + 1] = high_of<T>(pair);
          }
      add(y, shared + B_O, lane);
      keep_first(y, slice);
      attention(y, x, at, keys, values, slice, lane);
      combine(y, sums, group, slice, lane);
      normalise(y, Cfg::EPSILON_1, shared + GAIN_1, shared + OFFSET_1, lane);
      // The next row's steps arrive while this one's pass the wide layers; the last row comes once more.
      fetch(x, source, next < 0 ? row : next, tile, lane);
      if (first) ready_wide();
      feed_forward(y, at, slice, lane);
      combine(y, sums_wide, group, slice, lane);
      normalise(y, Cfg::EPSILON_2, shared + GAIN_2, shared + OFFSET_2, lane);
      store(y, out, row, tile, slice, lane);
      if (next < 0) return;
      row = next;
      meet(group);  // keys and values are no longer read
    }
  }
};

// The launch: blocks stride over the rows, with weights in shared memory.
template <class Cfg, class X, class Out>
DEVICE void encoder_rows(const int* n_rows, const u8* weights, u8* dynamic_shared, const X& source, const Out& out) {
  typedef EncoderBlock<Cfg> Program;
  const u32 shared = shared_address(dynamic_shared);
  dependents_may_start();
  Program::load_weights(weights, shared, threadIdx.x, Cfg::WARPS * 32);
  wait_for_predecessor();  // weights are nobody's output
  auto meet = [] { named_barrier(Cfg::BARRIER + Program::GROUPS, Cfg::WARPS * 32); };
  auto ready = [=] { cp_async_wait<1>(); meet(); };
  auto ready_wide = [=] { cp_async_wait<0>(); meet(); };
  // Every block has a first row in the bucket, whatever the batch's number of rows, which is still under way.
  if (threadIdx.x == 0) source.prefetch(blockIdx.x * Program::GROUPS, Program::STEPS * Program::D);
  const int warp = threadIdx.x >> 5;
  const StridedRows rows{(int)blockIdx.x * Program::GROUPS + warp / Program::ROW_WARPS, *n_rows, (int)gridDim.x * Program::GROUPS};
  Program::run(rows, warp, threadIdx.x & 31, shared, shared + Program::RESIDENT_BYTES, weights, source, out, ready, ready_wide);
}
