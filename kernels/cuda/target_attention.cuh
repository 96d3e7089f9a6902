// Pooling of a sequence by an MLP's score of each step against a query (DIN, arXiv 1706.06978).
//
// A row's keys are a matrix [STEPS, D]. Warps take 16 of its steps at a time, as A fragments in
// registers: the first layer's sums become, after the activation, the A fragments of the second,
// whose sums give 16 scores by dot products; softmax is kept online, and the weighted sum of keys
// takes the same fragments again. Nothing of a row but what parts of it exchange leaves registers,
// and keys are read once. Tiles of 16 steps that are all masked out are not read: they matter only
// where no other score is large against `masked`, which is checked.
//
// The query's part of the first layer is one product a row. Its products with keys are folded into
// the weights, W_k + diag(q) W_p, where these fit in registers (K = D then); else they are made from
// the fragments (K = 2 D).
//
// Order of columns in fragments: a lane holds 8 neighbouring columns of a row (16 bytes) for two
// products of K = 16; weights are packed so. 16 columns beyond the last 32 come as 4 a lane.
//
// Cfg, which the emitter writes: T (Fp16 or Bf16), Act, D (a multiple of 16), H1, H2 (0 with two
// layers), STEPS, SOFTMAX, MASKED, WARPS, WARPS_PER_ROW, AHEAD (whether registers may
// hold the next tile's keys: 255 a thread), BARRIER (id of the first of
// WARPS / WARPS_PER_ROW named barriers).
//
// Packed weights: W_q, W_k, W_p as [D / 32][tile of 8 columns][lane][16 bytes], then W_2 (three
// layers) as [H1 / 16][tile][lane][8 bytes], the last layer's one column, 8 times, as
// [H / 16][lane][8 bytes], then floats, padded with zeros to whole tiles: b_1, with three layers b_2,
// and four floats, the first the last layer's bias.
#pragma once
#include "sequence.cuh"

template <class Cfg> struct TargetAttention {
  typedef typename Cfg::T T;
  typedef typename Cfg::Act Act;
  static constexpr int D = Cfg::D, STEPS = Cfg::STEPS, PARTS = Cfg::WARPS_PER_ROW, GROUPS = Cfg::WARPS / PARTS;
  static constexpr int KS = D / 16, PIECES = ceil_div(KS, 2);
  static constexpr int N1 = ceil_div(Cfg::H1, 8), CHUNKS = ceil_div(N1, 2), N2 = ceil_div(Cfg::H2, 8);
  static constexpr bool DEEP = Cfg::H2 > 0;
  static constexpr int HELD = KS * 8 + N2 * 4;                 // registers of keys, their sums, the second layer's sums
  static constexpr bool FOLD = HELD + KS * N1 * 2 <= 150;      // and of W_k + diag(q) W_p
  static constexpr bool AHEAD = Cfg::AHEAD && KS * (FOLD ? 4 : 8) <= 16;  // whether registers hold the next tile meanwhile
  static constexpr bool EARLY = D <= 64;                       // and the next row's query
  static constexpr int TILES = ceil_div(STEPS, 16), MASK_WORDS = ceil_div(STEPS, 32);
  static_assert(D % 16 == 0 && D <= 128 && Cfg::H1 <= 128 && Cfg::H2 <= 128 && STEPS <= 512 && HELD <= 128, "what registers hold");
  static constexpr int FIRST_BYTES = PIECES * N1 * 512, SECOND_BYTES = DEEP ? CHUNKS * N2 * 256 : 0, LAST_BYTES = ceil_div(DEEP ? N2 : N1, 2) * 256;
  static constexpr int W_Q = 0, W_K = FIRST_BYTES, W_P = 2 * FIRST_BYTES, W_2 = 3 * FIRST_BYTES, W_LAST = W_2 + SECOND_BYTES;
  static constexpr int B_1 = W_LAST + LAST_BYTES, B_2 = B_1 + N1 * 32, B_LAST = B_2 + N2 * 32;
  static constexpr int WEIGHT_BYTES = B_LAST + 16;
  // A warp's: biases of the first layer, the query if it is not folded, mask bits of two rows; for the others of its row
  // its sums, maximum and weight.
  static constexpr int QUERY_BYTES = FOLD ? 0 : D * 2, MASK_BYTES = ceil_div(MASK_WORDS, 2) * 16;
  static constexpr int MASK = N1 * 32 + QUERY_BYTES, EXCHANGE = MASK + MASK_BYTES, WARP_BYTES = EXCHANGE + (PARTS > 1 ? D * 4 + 16 : 0);
  static constexpr int SCRATCH_BYTES = Cfg::WARPS * WARP_BYTES;
  static constexpr int SHARED_BYTES = WEIGHT_BYTES + SCRATCH_BYTES;
  static constexpr u32 ALL_TILES = TILES == 32 ? ~0u : (1u << TILES % 32) - 1;
  static constexpr float LOWEST = -3.402823466e38f;

  static DEVICE void load_weights(const u8* weights, u32 shared, int thread, int n_threads) { copy_weights(shared, weights, WEIGHT_BYTES, thread, n_threads); }

  // The pair of columns that a lane holds for half `h` of product `s`.
  static DEVICE int column_of(int s, int h, int t) { return s / 2 < KS / 2 ? s / 2 * 32 + 8 * t + 4 * (s & 1) + 2 * h : s * 16 + 4 * t + 2 * h; }

  struct Row {
    u32 query[KS][2];
    u32 flags[MASK_WORDS];  // this lane's steps of the mask, as loaded
    u32 live;               // shared address of a bit a step: not masked out
    u32 tiles;              // bit of a tile: its scores are wanted
  };
  template <class Query, class Mask> static DEVICE void ask(Row& r, int row, int lane, const Query& query, const Mask& mask) {
#pragma unroll
    for (int s = 0; s < KS; s++)
#pragma unroll
      for (int h = 0; h < 2; h++) r.query[s][h] = query.pair(row, column_of(s, h, lane & 3));
#pragma unroll
    for (int j = 0; j < MASK_WORDS; j++) r.flags[j] = mask.load(row, 32 * j + lane < STEPS ? 32 * j + lane : 0);
  }
  template <class Mask> static DEVICE void settle(Row& r, int lane, const Mask& mask) {
    r.tiles = 0;
#pragma unroll
    for (int j = 0; j < MASK_WORDS; j++) {
      const u32 live = __ballot_sync(~0u, 32 * j + lane < STEPS && mask.test(r.flags[j]));
      if (lane == 0) store_shared_u32(r.live + j * 4, live);
      if (live & 0xffffu) r.tiles |= 1u << 2 * j;
      if (live >> 16) r.tiles |= 2u << 2 * j;
    }
    if (!Cfg::SOFTMAX && Cfg::MASKED != 0.f) r.tiles = ALL_TILES;
    __syncwarp();
  }
  static DEVICE u32 live_of(const Row& r, int tile) { return load_shared_u32(r.live + tile / 2 * 4) >> 16 * (tile & 1); }  // 16 bits
  // Tiles are dealt to a row's warps in turn; drop() leaves the ones after this warp's next.
  static DEVICE u32 deal(u32 tiles, int part) {
    if (PARTS > 1) for (int i = 0; i < part; i++) tiles &= tiles - 1;
    return tiles;
  }
  static DEVICE u32 drop(u32 tiles) {
#pragma unroll
    for (int i = 0; i < PARTS; i++) tiles &= tiles - 1;
    return tiles;
  }

  // a[s] is the A fragment of product s: rows lane / 4 and 8 below. Steps beyond the last repeat it.
  template <class Keys> static DEVICE void fetch(u32 (*a)[4], const Keys& keys, int row, int tile, int lane) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int step = tile * 16 + h * 8 + (lane >> 2);
      if (STEPS % 16 != 0) step = step < STEPS ? step : STEPS - 1;
#pragma unroll
      for (int p = 0; p < KS / 2; p++) {
        u32 w[4];
        keys.template words<8>(row, step, p * 32 + 8 * (lane & 3), w);
        a[2 * p][h] = w[0]; a[2 * p][2 + h] = w[1]; a[2 * p + 1][h] = w[2]; a[2 * p + 1][2 + h] = w[3];
      }
      if constexpr (KS % 2 == 1) {
        u32 w[2];
        keys.template words<4>(row, step, (KS - 1) * 16 + 4 * (lane & 3), w);
        a[KS - 1][h] = w[0]; a[KS - 1][2 + h] = w[1];
      }
    }
  }

  // What a row's query makes of the first layer.
  struct First {
    u32 bias;  // shared address of q W_q + b_1, this lane's columns of a tile; the query behind them
    u32 weight[FOLD ? KS : 1][FOLD ? N1 : 1][2];
  };
  static DEVICE void prepare(First& f, const Row& r, u32 weights, u32 scratch, int lane) {
    f.bias = scratch + 8 * (lane & 3);
    __syncwarp();  // of the row before
#pragma unroll
    for (int n = 0; n < N1; n++) {
      const F32x2 b = load_shared_f32x2(weights + B_1 + (n * 8 + 2 * (lane & 3)) * 4);
      float sum[4] = {b.x, b.y, 0.f, 0.f};
#pragma unroll
      for (int p = 0; p < PIECES; p++) {
        const u32 at = weights + ((p * N1 + n) * 32 + lane) * 16;
        const U32x4 q = load_shared_u32x4(at + W_Q);
        const u32 a0[4] = {r.query[2 * p][0], 0, r.query[2 * p][1], 0};  // every row of the fragment is the query
        T::mma(sum, a0, q.x, q.y);
        if (2 * p + 1 < KS) {
          const u32 a1[4] = {r.query[2 * p + 1 < KS ? 2 * p + 1 : 0][0], 0, r.query[2 * p + 1 < KS ? 2 * p + 1 : 0][1], 0};
          T::mma(sum, a1, q.z, q.w);
        }
        if constexpr (FOLD) {
          const U32x4 k = load_shared_u32x4(at + W_K), w = load_shared_u32x4(at + W_P);
          f.weight[2 * p][n][0] = T::fma2(r.query[2 * p][0], w.x, k.x);
          f.weight[2 * p][n][1] = T::fma2(r.query[2 * p][1], w.y, k.y);
          if (2 * p + 1 < KS) {
            f.weight[2 * p + 1 < KS ? 2 * p + 1 : 0][n][0] = T::fma2(r.query[2 * p + 1 < KS ? 2 * p + 1 : 0][0], w.z, k.z);
            f.weight[2 * p + 1 < KS ? 2 * p + 1 : 0][n][1] = T::fma2(r.query[2 * p + 1 < KS ? 2 * p + 1 : 0][1], w.w, k.w);
          }
        }
      }
      if (lane < 4) { store_shared_f32(f.bias + n * 32, sum[0]); store_shared_f32(f.bias + n * 32 + 4, sum[1]); }
    }
    if (!FOLD && lane < 4) {
#pragma unroll
      for (int s = 0; s < KS; s++) { store_shared_u32(f.bias + N1 * 32 + s * 32, r.query[s][0]); store_shared_u32(f.bias + N1 * 32 + s * 32 + 4, r.query[s][1]); }
    }
    __syncwarp();
  }

  // Sums of the first layer for 16 of its columns.
  static DEVICE void first_layer(float (*z)[4], const First& f, const u32 (*a)[4], int chunk, u32 weights, int lane) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int n = 2 * chunk + j;
      if (n >= N1) { z[j][0] = z[j][1] = z[j][2] = z[j][3] = 0.f; continue; }
      const F32x2 b = load_shared_f32x2(f.bias + n * 32);
      z[j][0] = z[j][2] = b.x; z[j][1] = z[j][3] = b.y;
    }
    if constexpr (FOLD) {
#pragma unroll
      for (int s = 0; s < KS; s++)
#pragma unroll
        for (int j = 0; j < 2; j++)
          if (2 * chunk + j < N1) T::mma(z[j], a[s], f.weight[s][2 * chunk + j][0], f.weight[s][2 * chunk + j][1]);
    } else {
#pragma unroll
      for (int s = 0; s < KS; s++) {
        const F32x2 q = load_shared_f32x2(f.bias + N1 * 32 + s * 32);
        const u32 q0 = __float_as_uint(q.x), q1 = __float_as_uint(q.y);
        const u32 product[4] = {T::mul2(a[s][0], q0), T::mul2(a[s][1], q0), T::mul2(a[s][2], q1), T::mul2(a[s][3], q1)};
#pragma unroll
        for (int j = 0; j < 2; j++) {
          if (2 * chunk + j >= N1) continue;
          const u32 at = weights + ((s / 2 * N1 + 2 * chunk + j) * 32 + lane) * 16 + (s & 1) * 8;
          const F32x2 k = load_shared_f32x2(at + W_K), w = load_shared_f32x2(at + W_P);
          T::mma(z[j], a[s], __float_as_uint(k.x), __float_as_uint(k.y));
          T::mma(z[j], product, __float_as_uint(w.x), __float_as_uint(w.y));
        }
      }
    }
  }
  static DEVICE void activate(u32* hidden, const float* low, const float* high) {
    hidden[0] = Act::template pack<T>(low[0], low[1]); hidden[1] = Act::template pack<T>(low[2], low[3]);
    hidden[2] = Act::template pack<T>(high[0], high[1]); hidden[3] = Act::template pack<T>(high[2], high[3]);
  }
  static DEVICE void multiply(float* sum, const u32* hidden, u32 weight) {
    const F32x2 w = load_shared_f32x2(weight);
    T::mma(sum, hidden, __float_as_uint(w.x), __float_as_uint(w.y));
  }
  // Scores of steps lane / 4 and 8 below, in each lane of a quad: the last layer's weights stand in all 8 columns.
  static DEVICE void score(float* out, const First& f, const u32 (*a)[4], u32 weights, int lane) {
    float sum[DEEP ? N2 + 1 : 1][4];
#pragma unroll
    for (int n = 0; n < N2; n++) {
      const F32x2 b = load_shared_f32x2(weights + B_2 + (n * 8 + 2 * (lane & 3)) * 4);
      sum[n][0] = sum[n][2] = b.x; sum[n][1] = sum[n][3] = b.y;
    }
    const u32 last = weights + W_LAST + lane * 8;
    float total[4];
    total[0] = total[1] = total[2] = total[3] = load_shared_f32(weights + B_LAST);
    float z[2][2][4];
    u32 hidden[4];
    // Folded, the next columns' products are under way while some pass the activation. Else the loop stays a loop, so that
    // loads of weights are not drawn forward until registers are short.
    if (FOLD) first_layer(z[0], f, a, 0, weights, lane);
#pragma unroll FOLD ? CHUNKS : 1
    for (int c = 0; c < CHUNKS; c++) {
      if (!FOLD) first_layer(z[0], f, a, c, weights, lane);
      else if (c + 1 < CHUNKS) first_layer(z[(c + 1) & 1], f, a, c + 1, weights, lane);
      activate(hidden, z[FOLD ? c & 1 : 0][0], z[FOLD ? c & 1 : 0][1]);
      if constexpr (DEEP) {
#pragma unroll
        for (int n = 0; n < N2; n++) multiply(sum[n], hidden, weights + W_2 + ((c * N2 + n) * 32 + lane) * 8);
      } else multiply(total, hidden, last + c * 256);
    }
    if constexpr (DEEP) {
      sum[N2][0] = sum[N2][1] = sum[N2][2] = sum[N2][3] = 0.f;  // beside an odd last tile; its weights are zeros
#pragma unroll
      for (int n = 0; n < N2; n += 2) {
        activate(hidden, sum[n], sum[n + 1]);
        multiply(total, hidden, last + n / 2 * 256);
      }
    }
    out[0] = total[0]; out[1] = total[2];
  }

  // A lane's part of the softmax and of the sum: its steps, its columns.
  struct Sums {
    float top, weight, keys[D / 4];
    DEVICE void clear() {
      top = LOWEST; weight = 0.f;
#pragma unroll
      for (int i = 0; i < D / 4; i++) keys[i] = 0.f;
    }
    DEVICE void scale(float by) {
      weight *= by;
#pragma unroll
      for (int i = 0; i < D / 4; i++) keys[i] *= by;
    }
    DEVICE void add(const u32 (*a)[4], float w0, float w1) {
      weight += w0 + w1;
#pragma unroll
      for (int s = 0; s < KS; s++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          float* to = keys + 4 * s + 2 * h;
          to[0] += w0 * low_of<T>(a[s][2 * h]) + w1 * low_of<T>(a[s][2 * h + 1]);
          to[1] += w0 * high_of<T>(a[s][2 * h]) + w1 * high_of<T>(a[s][2 * h + 1]);
        }
    }
  };
  static DEVICE void absorb(Sums& sums, const u32 (*a)[4], const float* s, int tile, u32 live, int lane) {
    float v[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int i = h * 8 + (lane >> 2);
      v[h] = live >> i & 1 ? s[h] : Cfg::MASKED;
      if (STEPS % 16 != 0 && tile * 16 + i >= STEPS) v[h] = Cfg::SOFTMAX ? -__int_as_float(0x7f800000) : 0.f;
    }
    if constexpr (Cfg::SOFTMAX) {
      const float top = fmaxf(sums.top, fmaxf(v[0], v[1]));
      sums.scale(__expf(sums.top - top));
      sums.top = top;
      sums.add(a, __expf(v[0] - top), __expf(v[1] - top));
    } else sums.add(a, v[0], v[1]);
  }

  // Sums over a column's 8 lanes, each of which then holds some of the columns; calls to(column, v0, v1). `first` is
  // the lane's first of N sums; lanes that differ in a bit of `same` hold the same ones.
  template <int N, int LANES, class To> static DEVICE void spread(const float* v, int first, int same, int lane, To to) {
    if constexpr (LANES < 4) {
      if ((lane & same) == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 2) to(column_of((first + i) >> 2, (first + i) >> 1 & 1, lane & 3), v[i], v[i + 1]);
      }
    } else if constexpr (N % 4 == 0) {
      const bool upper = lane & LANES;
      float w[N / 2];
#pragma unroll
      for (int i = 0; i < N / 2; i++) {
        const float low = v[i], high = v[i + N / 2], other = shuffle_xor(upper ? low : high, LANES);
        w[i] = (upper ? high : low) + other;
      }
      spread<N / 2, LANES / 2>(w, first + (upper ? N / 2 : 0), same, lane, to);
    } else {
      float w[N];
#pragma unroll
      for (int i = 0; i < N; i++) w[i] = v[i] + shuffle_xor(v[i], LANES);
      spread<N, LANES / 2>(w, first, same | LANES, lane, to);
    }
  }

  // All warps of a row.
  static DEVICE void meet(int group) { if (PARTS > 1) named_barrier(Cfg::BARRIER + group, PARTS * 32); }

  // All WARPS call it. rows.take() names a row, the same one to all warps of a group. `shared` holds the weights once
  // ready() has returned, which each warp calls once; `scratch` is SCRATCH_BYTES. query.pair(row, column),
  // keys.words<N>(row, step, column, words), mask.load(row, step) and mask.test(that) give elements; out(row, column, v0, v1)
  // takes results, from some lane.
  template <class Rows, class Query, class Keys, class Mask, class Out, class WhenReady = Ready>
  static DEVICE void run(Rows rows, int warp, int lane, u32 shared, u32 scratch, const Query& query, const Keys& keys, const Mask& mask, const Out& out, const WhenReady& ready = WhenReady()) {
    const int group = warp / PARTS, part = warp % PARTS;
    const u32 bias = scratch + warp * WARP_BYTES, mine = bias + EXCHANGE, others = mine - part * WARP_BYTES;
    int row = rows.take();
    if (row < 0) { ready(); return; }
    Row now, next;
    now.live = bias + MASK; next.live = now.live + MASK_WORDS * 4;
    u32 a[KS][4];
    ask(now, row, lane, query, mask);
    settle(now, lane, mask);
    u32 left = deal(now.tiles, part), next_left = 0;
    if (AHEAD && left) fetch(a, keys, row, __ffs(left) - 1, lane);
    ready();
    for (;;) {
      const int next_row = rows.take();
      // What the next row has for this warp. Its query and mask are asked for before this row's tiles, and needed at the last.
      auto look = [&] { settle(next, lane, mask); next_left = next_row < 0 ? 0 : deal(next.tiles, part); };
      First f;
      if (left) prepare(f, now, shared, bias, lane);
      if (EARLY) ask(next, next_row < 0 ? row : next_row, lane, query, mask);
      Sums sums;
      sums.clear();
      if (EARLY && !left) {
        look();
        if (AHEAD && next_left) fetch(a, keys, next_row, __ffs(next_left) - 1, lane);
      }
      while (left) {
        const int tile = __ffs(left) - 1;
        left = drop(left);
        if (!AHEAD) fetch(a, keys, row, tile, lane);
        if (EARLY && !left) look();
        u32 ahead[AHEAD ? KS : 1][4];
        if constexpr (AHEAD) {
          const u32 then = left ? left : next_left;
          if (then) fetch(ahead, keys, left ? row : next_row, __ffs(then) - 1, lane);
        }
        float s[2];
        score(s, f, a, shared, lane);
        absorb(sums, a, s, tile, live_of(now, tile), lane);
        if constexpr (AHEAD) {
#pragma unroll
          for (int i = 0; i < KS * 4; i++) a[i / 4][i % 4] = ahead[i / 4][i % 4];
        }
      }

      float top = LOWEST;
      if constexpr (Cfg::SOFTMAX) {
        top = warp_max(sums.top);
        if constexpr (PARTS > 1) {
          if (lane == 0) store_shared_f32(mine + D * 4, top);
          meet(group);
#pragma unroll
          for (int i = 0; i < PARTS; i++) top = fmaxf(top, load_shared_f32(others + i * WARP_BYTES + D * 4));
        }
        if (!(top - Cfg::MASKED > 104.f)) {  // exp(-104) is 0 in fp32. Else steps of the tiles left out count, all of them if none is live
          for (u32 rest = deal(ALL_TILES & ~now.tiles, part); rest; rest = drop(rest)) {
            const int tile = __ffs(rest) - 1;
            const float s[2] = {Cfg::MASKED, Cfg::MASKED};
            u32 b[KS][4];
            fetch(b, keys, row, tile, lane);
            absorb(sums, b, s, tile, 0, lane);
          }
          top = fmaxf(top, ALL_TILES & ~now.tiles ? Cfg::MASKED : top);
        }
        sums.scale(__expf(sums.top - top));
      }
      float weight = sums.weight;  // a quad holds it four times
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) weight += shuffle_xor(weight, lanes);
      if constexpr (PARTS == 1) {
        const float by = Cfg::SOFTMAX ? 1.f / weight : 1.f;
        spread<D / 4, 16>(sums.keys, 0, 0, lane, [&](int column, float v0, float v1) { out(row, column, v0 * by, v1 * by); });
      } else {
        spread<D / 4, 16>(sums.keys, 0, 0, lane, [&](int column, float v0, float v1) { store_shared_f32(mine + column * 4, v0); store_shared_f32(mine + column * 4 + 4, v1); });
        if (lane == 0) store_shared_f32(mine + D * 4 + 4, weight);
        meet(group);
        if (part == 0) {
          weight = 0.f;
#pragma unroll
          for (int i = 0; i < PARTS; i++) weight += load_shared_f32(others + i * WARP_BYTES + D * 4 + 4);
          const float by = Cfg::SOFTMAX ? 1.f / weight : 1.f;
          for (int column = 2 * lane; column < D; column += 64) {
            float v0 = 0.f, v1 = 0.f;
#pragma unroll
            for (int i = 0; i < PARTS; i++) { const F32x2 v = load_shared_f32x2(others + i * WARP_BYTES + column * 4); v0 += v.x; v1 += v.y; }
            out(row, column, v0 * by, v1 * by);
          }
        }
        if (!Cfg::SOFTMAX) meet(group);  // no exchange of maxima stands between this row's reads and the next one's writes
      }
      if (next_row < 0) return;
      if (!EARLY) { ask(next, next_row, lane, query, mask); look(); }
      left = next_left;
      row = next_row;
      const u32 live = now.live;
      now = next;
      next.live = live;
    }
  }
};

// The launch: blocks stride over the rows, with weights in shared memory.
template <class Cfg, class Query, class Keys, class Mask, class Out>
DEVICE void target_attention_rows(const int* n_rows, const u8* weights, u8* dynamic_shared, const Query& query, const Keys& keys, const Mask& mask, const Out& out) {
  typedef TargetAttention<Cfg> Program;
  const u32 shared = shared_address(dynamic_shared), scratch = shared + Program::WEIGHT_BYTES;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  dependents_may_start();
  Program::load_weights(weights, shared, threadIdx.x, Cfg::WARPS * 32);
  wait_for_predecessor();  // weights are nobody's output
  auto ready = [] { cp_async_wait<0>(); named_barrier(Cfg::BARRIER + Program::GROUPS, Cfg::WARPS * 32); };
  if (Program::GROUPS == 1 && threadIdx.x == 0) {  // few rows: what would be asked for one after another comes at once
    query.prefetch(blockIdx.x, Program::D);
    mask.prefetch(blockIdx.x, Program::STEPS);
    keys.prefetch(blockIdx.x, Program::STEPS * Program::D);
  }
  if constexpr (Program::PARTS > 1) {
    const StridedRows rows{(int)blockIdx.x * Program::GROUPS + warp / Program::PARTS, *n_rows, (int)gridDim.x * Program::GROUPS};
    Program::run(rows, warp, lane, shared, scratch, query, keys, mask, out, ready);
  } else {
    int* drawn = (int*)(dynamic_shared + Program::SHARED_BYTES);
    if (threadIdx.x == 0) *drawn = 0;
    __syncthreads();
    Program::run(DrawnRows{drawn, *n_rows}, warp, lane, shared, scratch, query, keys, mask, out, ready);
  }
}
