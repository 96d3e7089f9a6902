// What the row programs over sequences share: activations, sources and sinks of rows, fragments.
//
// A source is a small object that a program asks for elements of a row; what is here reads row-major
// matrices in global memory. A row program may get others, such as values of a tile in shared memory.
#pragma once
#include "tile.cuh"

// ---- activations: of a float, and of two on their way to 16 bits
struct Relu {
  static DEVICE float of(float v) { return v < 0.f ? 0.f : v; }  // NaN passes
  template <class T> static DEVICE u32 pack(float lo, float hi) { return T::pack2_relu(lo, hi); }
};
struct Sigmoid {
  static DEVICE float of(float v) { return __fdividef(1.f, 1.f + __expf(-v)); }
  template <class T> static DEVICE u32 pack(float lo, float hi) { return T::pack2(of(lo), of(hi)); }
};
struct Tanh {
  static DEVICE float of(float v) { return 1.f - __fdividef(2.f, 1.f + __expf(2.f * v)); }
  template <class T> static DEVICE u32 pack(float lo, float hi) { return T::pack2(of(lo), of(hi)); }
};
template <class Slope> struct LeakyRelu {  // Slope::VALUE: a float is no template argument
  static DEVICE float of(float v) { return v < 0.f ? Slope::VALUE * v : v; }
  template <class T> static DEVICE u32 pack(float lo, float hi) { return T::pack2(of(lo), of(hi)); }
};

// ---- pairs of 16-bit floats
template <class T> DEVICE float low_of(u32 pair) { return T::unpack((u16)pair); }
template <class T> DEVICE float high_of(u32 pair) { return T::unpack((u16)(pair >> 16)); }
// One 16-bit storage type's pairs as another's.
template <class To, class From> struct Recode { static DEVICE u32 pair(u32 v) { return To::pack2(low_of<From>(v), high_of<From>(v)); } };
template <class T> struct Recode<T, T> { static DEVICE u32 pair(u32 v) { return v; } };
// N columns (4 or 8) from `p` on as N / 2 words of T. ALIGNED: p is a multiple of N elements' bytes, 16 at most.
template <class T, class E, int N, bool ALIGNED> DEVICE void load_words(const u8* p, u32* words) {
  if constexpr (ALIGNED && Element<E>::BYTES == 2) {
    if constexpr (N == 8) put_words(words, load_global_u32x4(p));
    else { words[0] = ((const u32*)p)[0]; words[1] = ((const u32*)p)[1]; }
#pragma unroll
    for (int i = 0; i < N / 2; i++) words[i] = Recode<T, E>::pair(words[i]);
  } else if constexpr (ALIGNED && N == 8) put_words(words, load_eight<T, E>(p));
  else {
#pragma unroll
    for (int i = 0; i < N / 2; i++) words[i] = T::pack2(Element<E>::read(p + 2 * i * Element<E>::BYTES), Element<E>::read(p + (2 * i + 1) * Element<E>::BYTES));
  }
}

// ---- rows of matrices in global memory. INDEXED: `index` says which row of the matrix a row of the batch reads.
template <class E, int LD, bool ALIGNED, bool INDEXED> struct MatrixRows {
  const u8* matrix; const int* index;
  DEVICE const u8* at(int row, int column) const { return matrix + ((u64)(INDEXED ? index[row] : row) * LD + column) * Element<E>::BYTES; }
  // Starts bringing a row's first columns into L2; a row that another matrix names takes a look-up, and is left.
  DEVICE void prefetch(int row, int columns) const {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if constexpr (!INDEXED) {
      const u64 first = (u64)at(row, 0) & ~15ull, end = ((u64)at(row, columns) + 15) & ~15ull;  // rows end at multiples of 16 bytes
      bulk_prefetch((const void*)first, (u32)(end - first));
    }
#endif
  }
};
// [STEPS, WIDTH] of a row.
template <class T, class E, int LD, int WIDTH, bool ALIGNED, bool INDEXED> struct MatrixSteps : MatrixRows<E, LD, ALIGNED, INDEXED> {
  template <int N> DEVICE void words(int row, int step, int column, u32* w) const { load_words<T, E, N, ALIGNED>(this->at(row, step * WIDTH + column), w); }
};
// One vector a row, two columns at a time.
template <class T, class E, int LD, bool ALIGNED, bool INDEXED> struct MatrixVector : MatrixRows<E, LD, ALIGNED, INDEXED> {
  DEVICE u32 pair(int row, int column) const {
    const u8* p = this->at(row, column);
    if constexpr (ALIGNED && Element<E>::BYTES == 2) return Recode<T, E>::pair(*(const u32*)p);
    else return T::pack2(Element<E>::read(p), Element<E>::read(p + Element<E>::BYTES));
  }
};
// A truth value a step: load() asks for an element, Test tells what it means; time may pass between.
template <class E, int LD, class Test, bool INDEXED> struct MatrixMask : MatrixRows<E, LD, false, INDEXED> {
  DEVICE u32 load(int row, int step) const {
    const u8* p = this->at(row, step);
    if constexpr (Element<E>::BYTES == 4) return *(const u32*)p; else return *(const u16*)p;
  }
  static DEVICE bool test(u32 bits) {
    if constexpr (Element<E>::BYTES == 4) return Test::of(__uint_as_float(bits)); else return Test::of(E::unpack((u16)bits));
  }
};
template <class E, int LD> struct MatrixSink {
  u8* matrix;
  DEVICE void operator()(int row, int column, float v0, float v1) const {  // column is even
    u8* p = matrix + ((u64)row * LD + column) * Element<E>::BYTES;
    if constexpr (Element<E>::BYTES == 4) { ((float*)p)[0] = v0; ((float*)p)[1] = v1; }
    else if constexpr (LD % 2 == 0) *(u32*)p = E::pack2(v0, v1);
    else { ((u16*)p)[0] = (u16)E::pack2(v0, 0.f); ((u16*)p)[1] = (u16)E::pack2(v1, 0.f); }
  }
};
// Rows of steps [STEPS, WIDTH], N columns (4 or 8) of T at a time.
template <int LD, int WIDTH, bool ALIGNED> struct MatrixStepsSink {
  u8* matrix;
  template <int N> DEVICE void words(int row, int step, int column, const u32* w) const {
    u8* p = matrix + ((u64)row * LD + step * WIDTH + column) * 2;
    if constexpr (ALIGNED && N == 8) store_global_u32x4(p, U32x4{w[0], w[1], w[2], w[3]});
    else {
#pragma unroll
      for (int i = 0; i < N / 2; i++) {
        if constexpr (ALIGNED) ((u32*)p)[i] = w[i];
        else { ((u16*)p)[2 * i] = (u16)w[i]; ((u16*)p)[2 * i + 1] = (u16)(w[i] >> 16); }
      }
    }
  }
};

// ---- which rows a warp takes; take() is negative when there are no more
struct StridedRows {
  int row, end, stride;
  DEVICE int take() { const int r = row; row += stride; return r < end ? r : -1; }
};
// A block's warps draw its rows, every gridDim.x-th, as they get done: sequences differ in length. `drawn` is in shared
// memory, zero at first.
struct DrawnRows {
  int* drawn; int end;
  DEVICE int take() {
    int n = 0;
    if ((threadIdx.x & 31) == 0) n = atomicAdd(drawn, 1);
    const int r = blockIdx.x + (int)gridDim.x * __shfl_sync(~0u, n, 0);
    return r < end ? r : -1;
  }
};
struct Ready { DEVICE void operator()() const {} };  // for weights that are there already

// Copies packed weights to shared memory by all threads; cp_async_wait and a barrier of theirs must follow.
DEVICE void copy_weights(u32 shared, const u8* weights, int bytes, int thread, int n_threads) {
  for (int i = thread * 16; i < bytes; i += n_threads * 16) cp_async(shared + i, weights + i);
  cp_async_commit();
}
