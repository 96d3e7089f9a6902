// The row tile: a cluster of C blocks owns R rows of the batch and runs a whole graph over them.
//
// Every block holds all values of all R rows in shared memory. A value lies in 16-byte chunks,
// [chunk][row][16 bytes]: 8 halves or 4 floats of one row, so that ldmatrix and 16-byte accesses
// meet no bank conflict without padding, and n columns of all rows are one contiguous range. A
// Linear is split by columns: each block computes 1/C of them, with weights that only it reads, and
// copies its columns to the other blocks (bulk copies over distributed shared memory). Everything
// else is computed by each block for itself, which costs less than an exchange.
//
// One warp produces: it streams the weights of all Linears, packed in the order in which the tensor
// cores read them, through a ring of NS stages. The other NW warps consume.
//
// Cfg, which the emitter writes, has: T (Fp16, Bf16 or a Tf32), R, C, NW, BARRIER (of the consumers), NS, SB (bytes of a stage), and
// STREAM (false: no producer, no ring; weights are read from global memory, for sm_80).
#pragma once
#include "ptx.cuh"

DEVICE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
DEVICE constexpr int power_of_two_below(int n) { int p = 1; while (2 * p <= n) p *= 2; return p; }  // or at n, for n > 0

// What the barriers of a block are. Two gather barriers take turns, since a peer may be one Linear
// ahead, never two: it needs this block's columns.
template <class Cfg> struct Tile {
  static constexpr int R = Cfg::R, C = Cfg::C, NW = Cfg::NW, NS = Cfg::NS, SB = Cfg::SB;
  static constexpr int BARRIERS = 16 * NS + 24;  // bytes: full and empty of each stage, gather 2x, constants
  static constexpr int CONSUMERS = NW * 32;
  static constexpr bool BY_GROUPS = R == 64;  // tile_wgmma.cuh
  typedef typename Cfg::T T;
  u32 base, ring;             // shared addresses; barriers lie at base
  int warp, lane, row0, n_rows;
  u32 rank;
  int slot; u32 parity;       // of the ring
  bool held;                  // the slot before this one is still to be freed
  u32 n_gathers;

  DEVICE u32 full(int i) const { return base + 8 * i; }
  DEVICE u32 empty(int i) const { return base + 8 * (NS + i); }
  DEVICE u32 gather_bar() const { return base + 16 * NS + (n_gathers & 1) * 8; }
  DEVICE u32 constants_bar() const { return base + 16 * NS + 16; }

  // All threads call it first. Afterwards the producer may stream; consumers call meet() before the
  // first exchange.
  DEVICE void open(u32 shared, u32 ring_offset, int rows) {
    base = shared; ring = shared + ring_offset;
    warp = threadIdx.x >> 5; lane = threadIdx.x & 31;
    rank = 0;
    if constexpr (C > 1) rank = cluster_rank();
    row0 = blockIdx.x / C * R; n_rows = rows;
    slot = 0; parity = 0; held = false; n_gathers = 0;
    if constexpr (Cfg::STREAM) {
      if (warp == NW && lane == 0) {
        for (int i = 0; i < NS; i++) { mbarrier_init(full(i), 1); mbarrier_init(empty(i), BY_GROUPS ? NW : CONSUMERS); }
        mbarrier_init(base + 16 * NS, 1); mbarrier_init(base + 16 * NS + 8, 1);
        mbarrier_init(constants_bar(), 1);
        mbarrier_init_fence();
      }
      if (warp == NW) __syncwarp();
    }
  }
  // The producer arrives without waiting. Others wait until every block's barriers stand, and consumers until all of theirs have
  // loaded; a cluster's arrive before they load, so that nobody waits for a peer's loads.
  DEVICE void meet_producer() { if constexpr (C > 1) cluster_arrive_relaxed(); else named_barrier_arrive(2, CONSUMERS + 32); }
  DEVICE void arrive() { if constexpr (C > 1) cluster_arrive_relaxed(); }
  DEVICE void meet_consumer() {
    if constexpr (C > 1) { cluster_wait(); sync(); }
    else if constexpr (Cfg::STREAM) { fence_values(); named_barrier(2, CONSUMERS + 32); }
  }
  DEVICE void close_producer() { if constexpr (C > 1) { cluster_wait(); cluster_sync(); } }
  DEVICE void close_consumer() { if constexpr (C > 1) cluster_sync(); }  // a peer may still write here
  // Warps beside the Linears: the same tile, counted from their first warp. They take part in the cluster's barriers.
  template <class Main> DEVICE void follow(const Main& main, int first_warp) {
    base = main.base; ring = main.ring; warp = main.warp - first_warp; lane = main.lane;
    row0 = main.row0; n_rows = main.n_rows; rank = main.rank; slot = 0; parity = 0; held = false; n_gathers = 0;
  }
  DEVICE void meet_side() { if constexpr (C > 1) cluster_wait(); }
  DEVICE bool is_idle() const { return row0 >= n_rows; }

  // Tiles of 64 rows are read by wgmma, of another proxy than what stored them.
  DEVICE void fence_values() { if constexpr (BY_GROUPS) fence_async_shared(); }
  DEVICE void sync() { fence_values(); named_barrier(Cfg::BARRIER, CONSUMERS); }
  DEVICE void next() { if (++slot == NS) { slot = 0; parity ^= 1; } }
  // The peers send `bytes` in all.
  DEVICE void arrive_at_gather(u32 bytes) { if (warp == 0 && lane == 0) mbarrier_arrive_expect(gather_bar(), bytes); }
  // A warp is done with the slot before this one. Called only once what was loaded from it has been used: a copy was seen to
  // overtake loads that were still under way, as nothing but their use waits for them. Each lane that loaded arrives, which
  // costs nothing measurable; what wgmma reads has been read when its wait is over.
  DEVICE void free_last() {
    if (!BY_GROUPS || lane == 0) mbarrier_arrive(empty(slot ? slot - 1 : NS - 1));
  }
  // The producer's warp, or the lane of it that copies, waits until every consumer has freed this slot.
  DEVICE void await_free() {
    if (lane == 0) mbarrier_wait(empty(slot), parity ^ 1);
  }
  // Every warp of this block has stored, for which warpgroups have met already, and the peers' columns are here.
  DEVICE void gathered() {
    if constexpr (C == 1 || !BY_GROUPS) sync();
    if constexpr (C > 1) { mbarrier_wait_cluster(gather_bar(), n_gathers >> 1 & 1); n_gathers++; }
  }
  // The first of the tile's rows that are this block's, where blocks share the rows.
  DEVICE int share_begin() const { return (int)rank * (R / C); }
  // The row of the batch that tile row r stands for: the last one again beyond the end.
  DEVICE int row(int r) const { int i = row0 + r; return i < n_rows ? i : n_rows - 1; }
};

// ---- elements of values in shared memory: r is a row of the tile, c a column of the value
template <int R> DEVICE u32 half_address(u32 value, int r, int c) { return value + ((c >> 3) * R + r) * 16 + (c & 7) * 2; }
template <int R> DEVICE u32 float_address(u32 value, int r, int c) { return value + ((c >> 2) * R + r) * 16 + (c & 3) * 4; }
template <int R, class T> DEVICE float load_half(u32 value, int r, int c) { return T::unpack(load_shared_u16(half_address<R>(value, r, c))); }
template <int R> DEVICE float load_float(u32 value, int r, int c) { return load_shared_f32(float_address<R>(value, r, c)); }

// Eight halves, or four floats, that lie together; the first at a multiple of as many columns. half_of takes one out.
template <int R> DEVICE U32x4 chunk_of(u32 value, int r, int c) { return load_shared_u32x4(value + ((c >> 3) * R + r) * 16); }
template <int R> DEVICE F32x4 floats_of(u32 value, int r, int c) { return load_shared_f32x4(value + ((c >> 2) * R + r) * 16); }
template <class T, int J> DEVICE float half_of(const U32x4& v) {
  const u32 word = J < 2 ? v.x : J < 4 ? v.y : J < 6 ? v.z : v.w;
  return T::unpack((u16)(J % 2 ? word >> 16 : word));
}
template <class T> DEVICE U32x4 pack_eight(const float* v) { return U32x4{T::pack2(v[0], v[1]), T::pack2(v[2], v[3]), T::pack2(v[4], v[5]), T::pack2(v[6], v[7])}; }
// Stores eight neighbours of a value, of halves or of floats; c is a multiple of eight.
template <class Cfg, bool HALVES> DEVICE void store_eight(u32 value, int r, int c, const float* v) {
  if constexpr (HALVES) store_shared_u32x4(value + ((c >> 3) * Cfg::R + r) * 16, pack_eight<typename Cfg::T>(v));
  else {
#pragma unroll
    for (int h = 0; h < 2; h++)
      store_shared_u32x4(value + (((c >> 2) + h) * Cfg::R + r) * 16, U32x4{__float_as_uint(v[4 * h]), __float_as_uint(v[4 * h + 1]), __float_as_uint(v[4 * h + 2]), __float_as_uint(v[4 * h + 3])});
  }
}

// ---- row-major matrices in global memory. `at` takes a row of the batch. WRITTEN: an earlier launch of the chain
// wrote it, so that the read-only path must not be taken.
struct Float32 { static constexpr int BYTES = 4; };
template <class E> struct Element { static constexpr int BYTES = 2; static DEVICE float read(const u8* p) { return E::unpack(*(const u16*)p); } };
template <> struct Element<Float32> { static constexpr int BYTES = 4; static DEVICE float read(const u8* p) { return *(const float*)p; } };
template <class E, int LD> DEVICE float load_matrix(const u8* matrix, int row, int column) {
  return Element<E>::read(matrix + ((u64)row * LD + column) * Element<E>::BYTES);
}
template <class A, class B> struct Same { static constexpr bool VALUE = false; };
template <class A> struct Same<A, A> { static constexpr bool VALUE = true; };
// 8 columns from a 16-byte aligned place, as halves.
template <class T, class E> DEVICE U32x4 load_eight(const u8* p) {
  if constexpr (Same<T, E>::VALUE) return load_global_u32x4(p);
  else if constexpr (Element<E>::BYTES == 2) {
    const u16* h = (const u16*)p;
    return U32x4{T::pack2(E::unpack(h[0]), E::unpack(h[1])), T::pack2(E::unpack(h[2]), E::unpack(h[3])),
                 T::pack2(E::unpack(h[4]), E::unpack(h[5])), T::pack2(E::unpack(h[6]), E::unpack(h[7]))};
  } else {
    U32x4 a = load_global_u32x4(p), b = load_global_u32x4(p + 16), v;
    v.x = T::pack2(__uint_as_float(a.x), __uint_as_float(a.y)); v.y = T::pack2(__uint_as_float(a.z), __uint_as_float(a.w));
    v.z = T::pack2(__uint_as_float(b.x), __uint_as_float(b.y)); v.w = T::pack2(__uint_as_float(b.z), __uint_as_float(b.w));
    return v;
  }
}

// Starts bringing the tile's rows of a matrix into L2, each block its share, for steps that will read them where they lie.
template <int ROW_BYTES, class Cfg> DEVICE void prefetch_rows(const Tile<Cfg>& tile, const u8* matrix) {
  for (int r = tile.lane; r < Cfg::R / Cfg::C; r += 32) bulk_prefetch(matrix + (u64)tile.row(tile.share_begin() + r) * ROW_BYTES, ROW_BYTES);
}

// 16-byte chunks [rows][chunks] in an order in which a warp's are of 8 rows, or of all if they are fewer, and neighbours in
// each. Some of the last are not there where chunks are no multiple of a warp's.
template <int ROWS, int CHUNKS> struct Patch {
  static constexpr int R = ROWS < 8 ? ROWS : 8, C = 32 / R, ACROSS = ceil_div(CHUNKS, C), ITEMS = ROWS * ACROSS * C;
  static_assert(ROWS % R == 0 && 32 % R == 0, "whole patches");
  static DEVICE int row(int i) { return i / (32 * ACROSS) * R + i % R; }
  static DEVICE int chunk(int i) { return i / 32 % ACROSS * C + i % 32 / R; }
  static DEVICE bool there(int i) { return CHUNKS % C == 0 || chunk(i) < CHUNKS; }
};
// Copies items i < N that `threads` threads share: a batch of them is read before the first is written.
template <int N, int THREADS, class Read, class Write> DEVICE void in_batches(int thread, Read read, Write write) {
  constexpr int EACH = ceil_div(N, THREADS), BATCH = EACH < 16 ? EACH : 16;
  for (int first = thread; first < N; first += BATCH * THREADS) {
    U32x4 v[BATCH];
#pragma unroll
    for (int j = 0; j < BATCH; j++) if (first + j * THREADS < N) v[j] = read(first + j * THREADS);
#pragma unroll
    for (int j = 0; j < BATCH; j++) if (first + j * THREADS < N) write(first + j * THREADS, v[j]);
  }
}

// ---- steps. A step writes `value`; sync() or gathered() must stand between it and a reader of another warp.

// Columns [column, column + WIDTH) of a row-major matrix become a value of halves, with zeros up to CHUNKS * 8 columns.
// `row(r)` gives the matrix's row for a tile row. ALIGNED: every row's first element lies at a multiple of 16 bytes; PADDED: and
// behind the last columns zeros follow, to as many.
template <class Cfg, class E, int WIDTH, int CHUNKS, int LD, bool ALIGNED, bool PADDED, class Row>
DEVICE void load_columns(const Tile<Cfg>& tile, u32 value, const u8* matrix, int column, Row row) {
  constexpr int R = Cfg::R, BYTES = Element<E>::BYTES, WHOLE = !ALIGNED ? 0 : PADDED ? ceil_div(WIDTH, 8) : WIDTH / 8;
  const int thread = tile.warp * 32 + tile.lane;
  if constexpr (WHOLE > 0) {
    // Many loads are in flight before the first is stored. A warp takes 8 rows of 4 chunks: 64 bytes of a row lie together,
    // and each 8 lanes store to all banks.
    typedef Patch<R, WHOLE> P;
    in_batches<P::ITEMS, Cfg::NW * 32>(thread, [&](int i) {
      const int chunk = P::there(i) ? P::chunk(i) : 0;
      return load_eight<typename Cfg::T, E>(matrix + ((u64)row(P::row(i)) * LD + column + chunk * 8) * BYTES);
    }, [&](int i, U32x4 v) { if (P::there(i)) store_shared_u32x4(value + (P::chunk(i) * R + P::row(i)) * 16, v); });
  }
  for (int i = thread; i < R * (CHUNKS - WHOLE); i += Cfg::NW * 32) {
    const int r = i % R, chunk = WHOLE + i / R;
    float v[8];
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = chunk * 8 + j < WIDTH ? load_matrix<E, LD>(matrix, row(r), column + chunk * 8 + j) : 0.f;
    store_shared_u32x4(value + (chunk * R + r) * 16, pack_eight<typename Cfg::T>(v));
  }
}

// Calls f(r, c) for each row and column c < WIDTH and stores its results, with zeros up to CHUNKS chunks.
template <class Cfg, int WIDTH, int CHUNKS, class F> DEVICE void map_half(const Tile<Cfg>& tile, u32 value, F f) {
  for (int i = tile.warp * 32 + tile.lane; i < Cfg::R * CHUNKS; i += Cfg::NW * 32) {
    const int r = i % Cfg::R, c = i / Cfg::R * 8;
    float v[8];
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = CHUNKS * 8 == WIDTH || c + j < WIDTH ? f(r, c + j) : 0.f;
    store_eight<Cfg, true>(value, r, c, v);
  }
}
// The same, f(r, c, v) giving eight neighbours at once, of a value of halves or of floats; WIDTH is a multiple of eight.
template <class Cfg, int WIDTH, bool HALVES, class F> DEVICE void map_eight(const Tile<Cfg>& tile, u32 value, F f) {
  for (int i = tile.warp * 32 + tile.lane; i < Cfg::R * (WIDTH / 8); i += Cfg::NW * 32) {
    const int r = i % Cfg::R, c = i / Cfg::R * 8;
    float v[8];
    f(r, c, v);
    store_eight<Cfg, HALVES>(value, r, c, v);
  }
}
template <class Cfg, int WIDTH, class F> DEVICE void map_float(const Tile<Cfg>& tile, u32 value, F f) {
  for (int i = tile.warp * 32 + tile.lane; i < Cfg::R * WIDTH; i += Cfg::NW * 32) {
    const int r = i % Cfg::R, c = i / Cfg::R;
    store_shared_f32(float_address<Cfg::R>(value, r, c), f(r, c));
  }
}
// Calls f(r, c) and hands its results to a row-major matrix; rows beyond the batch are left out. Blocks share the rows.
template <class Cfg, class E, int WIDTH, int LD, class F> DEVICE void map_matrix(const Tile<Cfg>& tile, u8* matrix, int column, F f) {
  constexpr int ROWS = ceil_div(Cfg::R, Cfg::C);
  for (int i = tile.warp * 32 + tile.lane; i < ROWS * WIDTH; i += Cfg::NW * 32) {
    const int r = (int)tile.rank * ROWS + i / WIDTH, c = i % WIDTH;
    if (r >= Cfg::R || tile.row0 + r >= tile.n_rows) continue;
    const float v = f(r, c);
    u8* to = matrix + ((u64)(tile.row0 + r) * LD + column + c) * Element<E>::BYTES;
    if constexpr (Element<E>::BYTES == 4) *(float*)to = v; else *(u16*)to = (u16)E::pack2(v, 0.f);
  }
}
// Columns of one matrix become columns of another, of halves; all places are multiples of 16 bytes.
template <class Cfg, class E, int WIDTH, int LD_FROM, int LD_TO, class Row>
DEVICE void copy_columns(const Tile<Cfg>& tile, u8* to, int to_column, const u8* from, int from_column, Row row) {
  constexpr int ROWS = ceil_div(Cfg::R, Cfg::C), CHUNKS = WIDTH / 8;
  const int first = (int)tile.rank * ROWS;
  in_batches<ROWS * CHUNKS, Cfg::NW * 32>(tile.warp * 32 + tile.lane, [&](int i) {
    const int r = first + i / CHUNKS, c = i % CHUNKS * 8;
    return load_eight<typename Cfg::T, E>(from + ((u64)row(r < Cfg::R ? r : 0) * LD_FROM + from_column + c) * Element<E>::BYTES);
  }, [&](int i, U32x4 v) {
    const int r = first + i / CHUNKS, c = i % CHUNKS * 8;
    if (r < Cfg::R && tile.row0 + r < tile.n_rows) store_global_u32x4(to + ((u64)(tile.row0 + r) * LD_TO + to_column + c) * 2, v);
  });
}
// A value of halves becomes columns of a matrix of halves.
template <class Cfg, int WIDTH, int LD> DEVICE void store_columns(const Tile<Cfg>& tile, u8* to, int column, u32 value) {
  constexpr int ROWS = Cfg::R / Cfg::C;
  typedef Patch<ROWS, WIDTH / 8> P;
  for (int i = tile.warp * 32 + tile.lane; i < P::ITEMS; i += Cfg::NW * 32) {
    const int r = tile.share_begin() + P::row(i), chunk = P::chunk(i);
    if (!P::there(i) || tile.row0 + r >= tile.n_rows) continue;
    store_global_u32x4(to + ((u64)(tile.row0 + r) * LD + column + chunk * 8) * 2, load_shared_u32x4(value + (chunk * Cfg::R + r) * 16));
  }
}
// The items of a step that several lanes share: neighbouring lanes have different items, hence different rows, whose elements
// lie in different banks. The lanes of one item are a multiple of ITEMS apart.
template <class Cfg, int LANES> struct Shared {
  static constexpr int ITEMS = 32 / LANES;
  static DEVICE int first(const Tile<Cfg>& tile) { return tile.warp * ITEMS + tile.lane % ITEMS; }
  static DEVICE int part(const Tile<Cfg>& tile) { return tile.lane / ITEMS; }
  template <class Fold> static DEVICE float fold(float v, Fold f) {
#pragma unroll
    for (int lanes = ITEMS; lanes < 32; lanes <<= 1) v = f(v, shuffle_xor(v, lanes));
    return v;
  }
};
// As map_float, of sums (or maxima ...): f(r, c, k) for k < COUNT is folded by `fold`, from `first`; LANES threads share one
// result. finish(v) is stored.
template <class Cfg, int WIDTH, int COUNT, int LANES, class F, class Fold, class Finish>
DEVICE void reduce_float(const Tile<Cfg>& tile, u32 value, float first, F f, Fold fold, Finish finish) {
  typedef Shared<Cfg, LANES> S;
  constexpr int ITEMS = Cfg::R * WIDTH, STRIDE = Cfg::NW * S::ITEMS;
  for (int i = S::first(tile); i < ceil_div(ITEMS, STRIDE) * STRIDE; i += STRIDE) {  // whole warps stay together for the shuffles
    const int item = i < ITEMS ? i : ITEMS - 1, r = item % Cfg::R, c = item / Cfg::R;
    float v = first;
    for (int k = S::part(tile); k < COUNT; k += LANES) v = fold(v, f(r, c, k));
    v = S::fold(v, fold);
    if (i < ITEMS && S::part(tile) == 0) store_shared_f32(float_address<Cfg::R>(value, r, c), finish(v));
  }
}
// The same, f(r, c, k, v) giving eight neighbours at once, into a value of halves or of floats; WIDTH is a multiple of eight.
template <class Cfg, int WIDTH, int COUNT, int LANES, bool HALVES, class F, class Fold, class Finish>
DEVICE void reduce_eight(const Tile<Cfg>& tile, u32 value, float first, F f, Fold fold, Finish finish) {
  typedef Shared<Cfg, LANES> S;
  constexpr int ITEMS = Cfg::R * WIDTH / 8, STRIDE = Cfg::NW * S::ITEMS;
  for (int i = S::first(tile); i < ceil_div(ITEMS, STRIDE) * STRIDE; i += STRIDE) {
    const int item = i < ITEMS ? i : ITEMS - 1, r = item % Cfg::R, c = item / Cfg::R * 8;
    float sums[8];
#pragma unroll
    for (int j = 0; j < 8; j++) sums[j] = first;
#pragma unroll 2
    for (int k = S::part(tile); k < COUNT; k += LANES) {
      float v[8];
      f(r, c, k, v);
#pragma unroll
      for (int j = 0; j < 8; j++) sums[j] = fold(sums[j], v[j]);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) sums[j] = finish(S::fold(sums[j], fold));
    if (i < ITEMS && S::part(tile) == 0) store_eight<Cfg, HALVES>(value, r, c, sums);
  }
}
// Softmax of f(r, c, k) over k < COUNT for each c < WIDTH; `to(r, c, k, v)` stores. LANES threads share one.
template <class Cfg, int WIDTH, int COUNT, int LANES, class F, class To> DEVICE void softmax(const Tile<Cfg>& tile, F f, To to) {
  typedef Shared<Cfg, LANES> S;
  constexpr int ITEMS = Cfg::R * WIDTH, STRIDE = Cfg::NW * S::ITEMS;
  const auto larger = [](float a, float b) { return b > a || b != b ? b : a; };
  for (int i = S::first(tile); i < ceil_div(ITEMS, STRIDE) * STRIDE; i += STRIDE) {
    const int item = i < ITEMS ? i : ITEMS - 1, r = item % Cfg::R, c = item / Cfg::R, part = S::part(tile);
    float top = -__int_as_float(0x7f800000), sum = 0.f;
    for (int k = part; k < COUNT; k += LANES) top = larger(top, f(r, c, k));
    top = S::fold(top, larger);
    for (int k = part; k < COUNT; k += LANES) sum += __expf(f(r, c, k) - top);
    const float scale = 1.f / S::fold(sum, [](float a, float b) { return a + b; });
    if (i < ITEMS) for (int k = part; k < COUNT; k += LANES) to(r, c, k, __expf(f(r, c, k) - top) * scale);
  }
}
// The K largest of f(r, c, k), k < COUNT, sorted; SIGN -1 for the smallest. One thread a (row, c): counts are small.
template <class Cfg, int WIDTH, int COUNT, int K, int SIGN, class F, class To> DEVICE void top_k(const Tile<Cfg>& tile, F f, To to) {
  for (int i = tile.warp * 32 + tile.lane; i < Cfg::R * WIDTH; i += Cfg::NW * 32) {
    const int r = i % Cfg::R, c = i / Cfg::R;
    float last = __int_as_float(0x7f800000); int last_k = -1;  // those after it, in the order (value, index), are left
    for (int n = 0; n < K; n++) {
      float best = -__int_as_float(0x7f800000); int best_k = COUNT;
      for (int k = 0; k < COUNT; k++) {
        const float v = SIGN * f(r, c, k);
        if ((v < last || (v == last && k > last_k)) && (v > best || best_k == COUNT)) { best = v; best_k = k; }
      }
      to(r, c, n, SIGN * best); last = best; last_k = best_k;
    }
  }
}

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
DEVICE void put_words(u32* words, U32x4 v) { words[0] = v.x; words[1] = v.y; words[2] = v.z; words[3] = v.w; }
