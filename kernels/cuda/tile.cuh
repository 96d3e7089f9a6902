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
DEVICE void put_words(u32* words, U32x4 v) { words[0] = v.x; words[1] = v.y; words[2] = v.z; words[3] = v.w; }
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
