// ptx.cuh for the CPU: the same names, so that tests run the kernels' own text under g++.
//
// Only what a kernel can see is here: CUDA's built-ins, ptx.cuh's wrappers, and the functions of the
// engine behind them (namespace tb; tests/kernels/cpu_shim). Each thread of a block is a fiber. A
// wrapper that waits lets others run; one that touches shared memory is checked for bounds and
// alignment. Every wrapper takes the place of its call last, by default, so that a report names it.
#pragma once
#include <math.h>
#include <string.h>

#include <utility>

struct dim3 {
  u32 x, y, z;
  constexpr dim3(u32 x = 1, u32 y = 1, u32 z = 1) : x(x), y(y), z(z) {}
};

namespace tb {
struct At { const char* file; int line; };
constexpr At here(const char* file, int line) { return {file, line}; }
#define TB_AT tb::At at = tb::here(__builtin_FILE(), __builtin_LINE())  // of the call, in a default argument

// What a running thread knows of itself. Its block's shared memory is arena[low .. low + span); the
// addresses are tag + offset, where tag is the block's rank + 1 in the top 8 bits.
struct Thread {
  dim3 thread, block;
  u32 lane, rank, tag, low, span;
  u8* arena;
  u8* dynamic;
};
extern Thread* self;
extern dim3 grid_dim, block_dim;
extern int fuel;  // memory accesses until others get a turn

enum class Access { READ, WRITE, ATOMIC };
enum class Vote { ALL, ANY, BALLOT };
enum class Factors { HALF, BFLOAT, TF32 };

u8* check_shared(u32 address, u32 bytes, Access access, At at);
u8* check_cluster(u32 address, u32 bytes, Access access, At at);
u32 address_of(const void* p, At at);
u32 map_address(u32 address, u32 rank, At at);
void pause(At at);
[[noreturn]] void fail_at(At at, const char* what);

u64 shuffle_bits(u32 mask, u64 bits, u32 source, At at);
u32 vote(Vote kind, u32 mask, bool value, At at);
void sync_warp(u32 mask, At at);
void sync_block(At at);
void bar_sync(int id, int n_threads, At at);
void bar_arrive(int id, int n_threads, At at);
void cluster_arrive(At at);
void cluster_wait(At at);
void mma(float* d, const u32* a, u32 b0, u32 b1, Factors kind, At at);
void ldmatrix(u32* r, u32 address, bool transposed, At at);

void copy_thread(u32 to, const void* from, int n_bytes, At at);
void copy_thread_commit();
void copy_thread_wait(u32 n_left, At at);
void barrier_init(u32 bar, u32 arrivals, At at);
void barrier_arrive(u32 bar, u32 expect_bytes, bool remote, At at);
void barrier_wait(u32 bar, u32 parity, At at);
void proxy_fence(At at);
void bulk_to_shared(u32 to, const void* from, u32 bytes, u32 bar, At at);
void bulk_multicast(u32 to, const void* from, u32 bytes, u32 bar, u32 ranks, At at);
void bulk_to_cluster(u32 to, u32 from, u32 bytes, u32 bar, At at);

// Nearest, ties to even; NaN becomes 0x7fff, as the card's conversions have it.
u16 half_of(double v);
u16 bfloat_of(double v);
float float_of_half(u16 h);
double fma_to_odd(double a, double b, double c);  // rounded so that a second rounding does no harm

inline u8* shared(u32 address, u32 bytes, Access access, At at) {
  const u32 offset = address - self->tag;
  const bool inside = offset >= self->low && (u64)(offset - self->low) + bytes <= self->span;
  if (__builtin_expect(!inside || address & (bytes - 1) || --fuel <= 0, 0)) return check_shared(address, bytes, access, at);
  return self->arena + offset;
}
template <class T> inline T load(u32 address, At at) {
  T v;
  memcpy(&v, shared(address, sizeof(T), Access::READ, at), sizeof(T));
  return v;
}
template <class T> inline void store(u32 address, T v, At at) { memcpy(shared(address, sizeof(T), Access::WRITE, at), &v, sizeof(T)); }
template <class T> inline void store_cluster(u32 address, T v, At at) { memcpy(check_cluster(address, sizeof(T), Access::WRITE, at), &v, sizeof(T)); }
template <class To, class From> inline To bits_as(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &v, sizeof to);
  return to;
}
template <class T> inline T shuffle(u32 mask, T v, u32 source, At at) {
  static_assert(sizeof(T) <= 8);
  u64 bits = 0;
  memcpy(&bits, &v, sizeof v);
  bits = shuffle_bits(mask, bits, source, at);
  memcpy(&v, &bits, sizeof v);
  return v;
}
template <class T, class F> inline T atomic(T* p, F change) {
  if (--fuel <= 0) pause({"", 0});  // a loop that waits for another thread must let it run
  T old = *p;
  *p = change(old);
  return old;
}

// Calls a kernel with arguments as cuLaunchKernel takes them: an array of their addresses.
template <class... P, size_t... I> inline void call(void (*kernel)(P...), void** args, std::index_sequence<I...>) { kernel(*(P*)args[I]...); }
template <class... P> inline void call(void (*kernel)(P...), void** args) { call(kernel, args, std::index_sequence_for<P...>()); }
template <class... P> inline int sizes(void (*)(P...), u32* out) {
  const u32 of[] = {(u32)sizeof(P)..., 0};
  for (size_t i = 0; i < sizeof...(P); i++) out[i] = of[i];
  return sizeof...(P);
}
}  // namespace tb

#define TB_ENTRY(name)                                                                              \
  extern "C" __attribute__((visibility("default"))) void tb_call_##name(void** args) { tb::call(name, args); } \
  extern "C" __attribute__((visibility("default"))) int tb_sizes_##name(u32* out) { return tb::sizes(name, out); }

// ---- the language. Static shared variables are thread-local ones, whose look-up the engine answers.
#define DEVICE inline
#define KERNEL extern "C"
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __shared__ static thread_local
#define DYNAMIC_SHARED(name) u8* const name = tb::self->dynamic
#define threadIdx (tb::self->thread)
#define blockIdx (tb::self->block)
#define blockDim tb::block_dim
#define gridDim tb::grid_dim
constexpr int warpSize = 32;

#define TB_VECTORS(T, name)            \
  struct name##2 { T x, y; };          \
  struct name##3 { T x, y, z; };       \
  struct alignas(16) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
TB_VECTORS(float, float)
TB_VECTORS(int, int)
TB_VECTORS(u32, uint)
#undef TB_VECTORS

// ---- built-in functions
#define __expf(x) expf(x)  // glibc has names of these for itself
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __powf(x, y) powf(x, y)
#define __exp10f(x) exp10f(x)
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float fdividef(float x, float y) { return x / y; }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return (float)(1.0 / sqrt((double)x)); }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __saturatef(float x) { return x > 0.0f ? x < 1.0f ? x : 1.0f : 0.0f; }
inline float __uint_as_float(u32 v) { return tb::bits_as<float>(v); }
inline float __int_as_float(int v) { return tb::bits_as<float>(v); }
inline u32 __float_as_uint(float v) { return tb::bits_as<u32>(v); }
inline int __float_as_int(float v) { return tb::bits_as<int>(v); }
inline float __int2float_rn(int v) { return (float)v; }
inline float __uint2float_rn(u32 v) { return (float)v; }
inline int __tb_to_int(double v) { return v != v ? 0 : v >= 2147483647.0 ? 2147483647 : v <= -2147483648.0 ? -2147483647 - 1 : (int)v; }
inline int __float2int_rz(float v) { return __tb_to_int(trunc(v)); }
inline int __float2int_rn(float v) { return __tb_to_int(nearbyint(v)); }
inline int __float2int_rd(float v) { return __tb_to_int(floor(v)); }
inline int __float2int_ru(float v) { return __tb_to_int(ceil(v)); }
inline int __popc(u32 v) { return __builtin_popcount(v); }
inline int __clz(int v) { return v ? __builtin_clz((u32)v) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline u32 __brev(u32 v) { u32 r = 0; for (int i = 0; i < 32; i++) r |= (v >> i & 1) << (31 - i); return r; }
inline u32 __umulhi(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
inline u32 __byte_perm(u32 a, u32 b, u32 s) {
  const u64 bytes = (u64)b << 32 | a;
  u32 r = 0;
  for (int i = 0; i < 4; i++) {
    const u32 select = s >> (4 * i) & 15;
    const u32 byte = (u32)(bytes >> (8 * (select & 7))) & 255;
    r |= (select & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
  }
  return r;
}
#define TB_MIN_MAX(A, B, C)                                          \
  inline C min(A a, B b) { return (C)a < (C)b ? (C)a : (C)b; }       \
  inline C max(A a, B b) { return (C)a > (C)b ? (C)a : (C)b; }
TB_MIN_MAX(int, int, int)
TB_MIN_MAX(u32, u32, u32)
TB_MIN_MAX(int, u32, u32)
TB_MIN_MAX(u32, int, u32)
TB_MIN_MAX(long long, long long, long long)
TB_MIN_MAX(long, long, long)
TB_MIN_MAX(u64, u64, u64)
TB_MIN_MAX(unsigned long, unsigned long, unsigned long)
#undef TB_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
template <class T> inline T __ldg(const T* p) { return *p; }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(u32, TB_AT) { tb::pause(at); }
inline void __trap(TB_AT) { tb::fail_at(at, "__trap"); }
template <class T> inline T atomicAdd(T* p, T v) { return tb::atomic(p, [=](T old) { return (T)(old + v); }); }
template <class T> inline T atomicSub(T* p, T v) { return tb::atomic(p, [=](T old) { return (T)(old - v); }); }
template <class T> inline T atomicMax(T* p, T v) { return tb::atomic(p, [=](T old) { return old > v ? old : v; }); }
template <class T> inline T atomicMin(T* p, T v) { return tb::atomic(p, [=](T old) { return old < v ? old : v; }); }
template <class T> inline T atomicOr(T* p, T v) { return tb::atomic(p, [=](T old) { return (T)(old | v); }); }
template <class T> inline T atomicAnd(T* p, T v) { return tb::atomic(p, [=](T old) { return (T)(old & v); }); }
template <class T> inline T atomicExch(T* p, T v) { return tb::atomic(p, [=](T) { return v; }); }
template <class T> inline T atomicCAS(T* p, T expected, T v) { return tb::atomic(p, [=](T old) { return old == expected ? v : old; }); }

inline void __syncthreads(TB_AT) { tb::sync_block(at); }
inline void __syncwarp(u32 mask = ~0u, TB_AT) { tb::sync_warp(mask, at); }
inline int __all_sync(u32 mask, int v, TB_AT) { return (int)tb::vote(tb::Vote::ALL, mask, v, at); }
inline int __any_sync(u32 mask, int v, TB_AT) { return (int)tb::vote(tb::Vote::ANY, mask, v, at); }
inline u32 __ballot_sync(u32 mask, int v, TB_AT) { return tb::vote(tb::Vote::BALLOT, mask, v, at); }
template <class T> inline T __shfl_sync(u32 mask, T v, int source, int width = 32, TB_AT) {
  return tb::shuffle(mask, v, (tb::self->lane & ~(width - 1)) + ((u32)source & (width - 1)), at);
}
template <class T> inline T __shfl_xor_sync(u32 mask, T v, int lanes, int width = 32, TB_AT) {
  const u32 source = tb::self->lane ^ (u32)lanes;
  return tb::shuffle(mask, v, source / width > tb::self->lane / width ? tb::self->lane : source, at);
}
template <class T> inline T __shfl_down_sync(u32 mask, T v, u32 by, int width = 32, TB_AT) {
  const u32 source = tb::self->lane + by;
  return tb::shuffle(mask, v, source / width != tb::self->lane / width ? tb::self->lane : source, at);
}
template <class T> inline T __shfl_up_sync(u32 mask, T v, u32 by, int width = 32, TB_AT) {
  return tb::shuffle(mask, v, (tb::self->lane & (width - 1)) < by ? tb::self->lane : tb::self->lane - by, at);
}

// ---- ptx.cuh: what each does is said there
inline u32 shared_address(const void* p, TB_AT) { return tb::address_of(p, at); }

struct U32x2 { u32 x, y; };
struct U32x4 { u32 x, y, z, w; };
struct F32x2 { float x, y; };
struct F32x4 { float x, y, z, w; };
inline u16 load_shared_u16(u32 a, TB_AT) { return tb::load<u16>(a, at); }
inline u32 load_shared_u32(u32 a, TB_AT) { return tb::load<u32>(a, at); }
inline float load_shared_f32(u32 a, TB_AT) { return tb::load<float>(a, at); }
inline F32x2 load_shared_f32x2(u32 a, TB_AT) { return tb::load<F32x2>(a, at); }
inline F32x4 load_shared_f32x4(u32 a, TB_AT) { return tb::load<F32x4>(a, at); }
inline U32x4 load_shared_u32x4(u32 a, TB_AT) { return tb::load<U32x4>(a, at); }
inline void store_shared_u16(u32 a, u16 v, TB_AT) { tb::store(a, v, at); }
inline void store_shared_u32(u32 a, u32 v, TB_AT) { tb::store(a, v, at); }
inline void store_shared_f32(u32 a, float v, TB_AT) { tb::store(a, v, at); }
inline void store_shared_u32x4(u32 a, U32x4 v, TB_AT) { tb::store(a, v, at); }

inline void tb_aligned(const void* p, TB_AT) {
  if ((u64)p & 15) tb::fail_at(at, "a 16-byte access to global memory is not aligned");
}
inline U32x4 load_global_u32x4(const void* p, TB_AT) { tb_aligned(p, at); U32x4 v; memcpy(&v, p, 16); return v; }
inline U32x4 load_global_u32x4_constant(const void* p, TB_AT) { return load_global_u32x4(p, at); }
inline void store_global_u32x4(void* p, U32x4 v, TB_AT) { tb_aligned(p, at); memcpy(p, &v, 16); }

inline float half_to_float(u16 h) { return tb::float_of_half(h); }
inline u32 pack_half2(float lo, float hi) {
  lo = lo > 65504.f ? 65504.f : lo < -65504.f ? -65504.f : lo;
  hi = hi > 65504.f ? 65504.f : hi < -65504.f ? -65504.f : hi;
  return (u32)tb::half_of(hi) << 16 | tb::half_of(lo);
}
inline float tb_relu(float v) { return v < 0.f ? 0.f : v; }
inline u32 pack_half2_relu(float lo, float hi) { return pack_half2(tb_relu(lo), tb_relu(hi)); }
inline float bfloat_to_float(u16 h) { return __uint_as_float((u32)h << 16); }
inline u32 pack_bfloat2(float lo, float hi) { return (u32)tb::bfloat_of(hi) << 16 | tb::bfloat_of(lo); }
inline u32 pack_bfloat2_relu(float lo, float hi) { return pack_bfloat2(tb_relu(lo), tb_relu(hi)); }
inline u16 tb_fma_half(u32 a, u32 b, u32 c) { return tb::half_of(tb::fma_to_odd(half_to_float((u16)a), half_to_float((u16)b), half_to_float((u16)c))); }
inline u32 fma_half2(u32 a, u32 b, u32 c) { return (u32)tb_fma_half(a >> 16, b >> 16, c >> 16) << 16 | tb_fma_half(a, b, c); }
inline u32 mul_half2(u32 a, u32 b) { return fma_half2(a, b, 0x80008000u); }
inline u16 tb_fma_bfloat(u32 a, u32 b, u32 c) { return tb::bfloat_of(tb::fma_to_odd(bfloat_to_float((u16)a), bfloat_to_float((u16)b), bfloat_to_float((u16)c))); }
inline u32 fma_bfloat2(u32 a, u32 b, u32 c) { return (u32)tb_fma_bfloat(a >> 16, b >> 16, c >> 16) << 16 | tb_fma_bfloat(a, b, c); }
inline u16 tb_mul_bfloat(u32 a, u32 b) { return tb::bfloat_of((double)bfloat_to_float((u16)a) * bfloat_to_float((u16)b)); }
inline u32 mul_bfloat2(u32 a, u32 b) { return (u32)tb_mul_bfloat(a >> 16, b >> 16) << 16 | tb_mul_bfloat(a, b); }

inline void mma_half(float* d, const u32* a, u32 b0, u32 b1, TB_AT) { tb::mma(d, a, b0, b1, tb::Factors::HALF, at); }
inline void mma_bfloat(float* d, const u32* a, u32 b0, u32 b1, TB_AT) { tb::mma(d, a, b0, b1, tb::Factors::BFLOAT, at); }
inline void mma_tf32(float* d, const u32* a, u32 b0, u32 b1, TB_AT) { tb::mma(d, a, b0, b1, tb::Factors::TF32, at); }
inline u32 round_tf32(float v) { return v != v ? 0x7fffffffu : (__float_as_uint(v) + (v - v == 0.f ? 0x1000u : 0u)) & ~0x1fffu; }
inline void ldmatrix_x4(u32* r, u32 a, TB_AT) { tb::ldmatrix(r, a, false, at); }
inline void ldmatrix_x4_transposed(u32* r, u32 a, TB_AT) { tb::ldmatrix(r, a, true, at); }
struct Fp16 {
  static float unpack(u16 h) { return half_to_float(h); }
  static u32 pack2(float lo, float hi) { return pack_half2(lo, hi); }
  static u32 pack2_relu(float lo, float hi) { return pack_half2_relu(lo, hi); }
  static u32 mul2(u32 a, u32 b) { return mul_half2(a, b); }
  static u32 fma2(u32 a, u32 b, u32 c) { return fma_half2(a, b, c); }
  static void mma(float* d, const u32* a, u32 b0, u32 b1, TB_AT) { mma_half(d, a, b0, b1, at); }
};
struct Bf16 {
  static float unpack(u16 h) { return bfloat_to_float(h); }
  static u32 pack2(float lo, float hi) { return pack_bfloat2(lo, hi); }
  static u32 pack2_relu(float lo, float hi) { return pack_bfloat2_relu(lo, hi); }
  static u32 mul2(u32 a, u32 b) { return mul_bfloat2(a, b); }
  static u32 fma2(u32 a, u32 b, u32 c) { return fma_bfloat2(a, b, c); }
  static void mma(float* d, const u32* a, u32 b0, u32 b1, TB_AT) { mma_bfloat(d, a, b0, b1, at); }
};

inline void named_barrier(int id, int n_threads, TB_AT) { tb::bar_sync(id, n_threads, at); }
inline void named_barrier_arrive(int id, int n_threads, TB_AT) { tb::bar_arrive(id, n_threads, at); }
inline float shuffle_xor(float v, int lanes, TB_AT) { return __shfl_xor_sync(~0u, v, lanes, 32, at); }
inline u32 shuffle_xor(u32 v, int lanes, TB_AT) { return __shfl_xor_sync(~0u, v, lanes, 32, at); }
inline float shuffle_from(float v, int lane, TB_AT) { return __shfl_sync(~0u, v, lane, 32, at); }
inline float warp_sum(float v, TB_AT) {
  for (int lanes = 16; lanes; lanes >>= 1) v += shuffle_xor(v, lanes, at);
  return v;
}
inline float warp_max(float v, TB_AT) {
  for (int lanes = 16; lanes; lanes >>= 1) { float w = shuffle_xor(v, lanes, at); v = w > v ? w : v; }
  return v;
}

inline void cp_async(u32 to, const void* from, int n_bytes = 16, TB_AT) { tb::copy_thread(to, from, n_bytes, at); }
inline void cp_async_commit() { tb::copy_thread_commit(); }
template <int N> inline void cp_async_wait(TB_AT) { tb::copy_thread_wait(N, at); }

inline void mbarrier_init(u32 bar, u32 arrivals, TB_AT) { tb::barrier_init(bar, arrivals, at); }
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(u32 bar, TB_AT) { tb::barrier_arrive(bar, 0, false, at); }
inline void mbarrier_arrive_expect(u32 bar, u32 bytes, TB_AT) { tb::barrier_arrive(bar, bytes, false, at); }
inline void mbarrier_arrive_cluster(u32 remote, TB_AT) { tb::barrier_arrive(remote, 0, true, at); }
inline void mbarrier_wait(u32 bar, u32 parity, TB_AT) { tb::barrier_wait(bar, parity, at); }
inline void mbarrier_wait_cluster(u32 bar, u32 parity, TB_AT) { tb::barrier_wait(bar, parity, at); }
inline void fence_async_shared(TB_AT) { tb::proxy_fence(at); }

inline void bulk_copy_to_shared(u32 to, const void* from, u32 bytes, u32 bar, TB_AT) { tb::bulk_to_shared(to, from, bytes, bar, at); }
inline void bulk_copy_to_cluster(u32 remote, u32 from, u32 bytes, u32 remote_bar, TB_AT) { tb::bulk_to_cluster(remote, from, bytes, remote_bar, at); }
inline void bulk_prefetch(const void*, u32) {}
inline void bulk_copy_multicast(u32 to, const void* from, u32 bytes, u32 bar, u16 ranks, TB_AT) { tb::bulk_multicast(to, from, bytes, bar, ranks, at); }

inline u32 cluster_rank() { return tb::self->rank; }
inline u32 map_to_rank(u32 a, u32 rank, TB_AT) { return tb::map_address(a, rank, at); }
inline void store_cluster_u32(u32 remote, u32 v, TB_AT) { tb::store_cluster(remote, v, at); }
inline void store_cluster_u32x4(u32 remote, U32x4 v, TB_AT) { tb::store_cluster(remote, v, at); }
inline void cluster_arrive(TB_AT) { tb::cluster_arrive(at); }
inline void cluster_arrive_relaxed(TB_AT) { tb::cluster_arrive(at); }
inline void cluster_wait(TB_AT) { tb::cluster_wait(at); }
inline void cluster_sync(TB_AT) { tb::cluster_arrive(at); tb::cluster_wait(at); }

inline void dependents_may_start() {}
inline void wait_for_predecessor() {}
