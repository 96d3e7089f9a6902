// Wrappers of the PTX that kernels use, and nothing else: no header of CUDA's is included anywhere.
// Compiled for the CPU (TB_CPU), shim.h gives the same names; kernels never write asm of their own.
//
// Shared memory is addressed by u32, as shared_address() gives it. Halves travel in pairs, the
// element with the lower index in the low 16 bits. sm_90 and up only: mbarrier transactions, bulk
// copies, clusters; sm_80 has cp_async.
#pragma once
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef TB_CPU
#include "shim.h"
#else
#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__
// The dynamic shared memory of a kernel: `u8 name[]`.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) u8 name[]

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// ---- shared memory, by address
struct U32x2 { u32 x, y; };
struct U32x4 { u32 x, y, z, w; };
struct F32x2 { float x, y; };
struct F32x4 { float x, y, z, w; };
DEVICE u16 load_shared_u16(u32 a) { u16 v; asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(a) : "memory"); return v; }
DEVICE u32 load_shared_u32(u32 a) { u32 v; asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(a) : "memory"); return v; }
DEVICE float load_shared_f32(u32 a) { float v; asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(a) : "memory"); return v; }
DEVICE F32x2 load_shared_f32x2(u32 a) { F32x2 v; asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(a) : "memory"); return v; }
DEVICE F32x4 load_shared_f32x4(u32 a) { F32x4 v; asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(a) : "memory"); return v; }
DEVICE U32x4 load_shared_u32x4(u32 a) { U32x4 v; asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(a) : "memory"); return v; }
DEVICE void store_shared_u16(u32 a, u16 v) { asm volatile("st.shared.u16 [%0], %1;" ::"r"(a), "h"(v) : "memory"); }
DEVICE void store_shared_u32(u32 a, u32 v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(a), "r"(v) : "memory"); }
DEVICE void store_shared_f32(u32 a, float v) { asm volatile("st.shared.f32 [%0], %1;" ::"r"(a), "f"(v) : "memory"); }
DEVICE void store_shared_u32x4(u32 a, U32x4 v) { asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(a), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory"); }

// ---- global memory. The _constant loads go through the read-only path: only for what no launch writes meanwhile.
DEVICE U32x4 load_global_u32x4_constant(const void* p) { U32x4 v; asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p)); return v; }
DEVICE U32x4 load_global_u32x4(const void* p) { U32x4 v; asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory"); return v; }
DEVICE void store_global_u32x4(void* p, U32x4 v) { asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory"); }

// ---- 16-bit floats. Stores saturate to the largest finite value: a mask's -1e9 must not become -inf.
DEVICE float half_to_float(u16 h) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h)); return f; }
DEVICE u32 pack_half2(float lo, float hi) { u32 d; asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo)); return d; }  // NaN passes, as it must
DEVICE u32 pack_half2_relu(float lo, float hi) { u32 d; asm("cvt.rn.relu.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo)); return d; }
DEVICE float bfloat_to_float(u16 h) { return __uint_as_float((u32)h << 16); }
DEVICE u32 pack_bfloat2(float lo, float hi) { u32 d; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo)); return d; }
DEVICE u32 pack_bfloat2_relu(float lo, float hi) { u32 d; asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo)); return d; }
DEVICE u32 fma_half2(u32 a, u32 b, u32 c) { u32 d; asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c)); return d; }
DEVICE u32 mul_half2(u32 a, u32 b) { u32 d; asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b)); return d; }
DEVICE u32 fma_bfloat2(u32 a, u32 b, u32 c) { u32 d; asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c)); return d; }
DEVICE u32 mul_bfloat2(u32 a, u32 b) { u32 d; asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(0x80008000u)); return d; }

// ---- tensor cores: m16n8k16, A row-major, B column-major, fp32 sums added to d
DEVICE void mma_half(float* d, const u32* a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void mma_bfloat(float* d, const u32* a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void mma_tf32(float* d, const u32* a, u32 b0, u32 b1) {  // m16n8k8; the low 13 bits of a factor are not read
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE u32 round_tf32(float v) { u32 d; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(d) : "f"(v)); return d; }  // to nearest, ties away from zero
DEVICE void ldmatrix_x4(u32* r, u32 a) { asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory"); }
DEVICE void ldmatrix_x4_transposed(u32* r, u32 a) { asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory"); }

// A storage type of 16 bits: Fp16 or Bf16. Of floats: tf32.cuh.
struct Fp16 {
  static DEVICE float unpack(u16 h) { return half_to_float(h); }
  static DEVICE u32 pack2(float lo, float hi) { return pack_half2(lo, hi); }
  static DEVICE u32 pack2_relu(float lo, float hi) { return pack_half2_relu(lo, hi); }  // of max(v, 0); NaN passes
  static DEVICE u32 mul2(u32 a, u32 b) { return mul_half2(a, b); }
  static DEVICE u32 fma2(u32 a, u32 b, u32 c) { return fma_half2(a, b, c); }
  static DEVICE void mma(float* d, const u32* a, u32 b0, u32 b1) { mma_half(d, a, b0, b1); }
};
struct Bf16 {
  static DEVICE float unpack(u16 h) { return bfloat_to_float(h); }
  static DEVICE u32 pack2(float lo, float hi) { return pack_bfloat2(lo, hi); }
  static DEVICE u32 pack2_relu(float lo, float hi) { return pack_bfloat2_relu(lo, hi); }  // of max(v, 0); NaN passes
  static DEVICE u32 mul2(u32 a, u32 b) { return mul_bfloat2(a, b); }
  static DEVICE u32 fma2(u32 a, u32 b, u32 c) { return fma_bfloat2(a, b, c); }
  static DEVICE void mma(float* d, const u32* a, u32 b0, u32 b1) { mma_bfloat(d, a, b0, b1); }
};

// ---- threads of a block
DEVICE void named_barrier(int id, int n_threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n_threads) : "memory"); }
DEVICE void named_barrier_arrive(int id, int n_threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n_threads) : "memory"); }
DEVICE float shuffle_xor(float v, int lanes) { return __shfl_xor_sync(~0u, v, lanes); }
DEVICE u32 shuffle_xor(u32 v, int lanes) { return __shfl_xor_sync(~0u, v, lanes); }
DEVICE float shuffle_from(float v, int lane) { return __shfl_sync(~0u, v, lane); }
DEVICE float warp_sum(float v) {
#pragma unroll
  for (int lanes = 16; lanes; lanes >>= 1) v += shuffle_xor(v, lanes);
  return v;
}
DEVICE float warp_max(float v) {
#pragma unroll
  for (int lanes = 16; lanes; lanes >>= 1) { float w = shuffle_xor(v, lanes); v = w > v ? w : v; }
  return v;
}

// ---- asynchronous copies, sm_80: 16 bytes a thread; n_bytes 0 writes zeros
DEVICE void cp_async(u32 to, const void* from, int n_bytes = 16) { asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(n_bytes) : "memory"); }
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// ---- mbarriers (sm_90). A waiter passes the parity of the phase that it waits for.
DEVICE void mbarrier_init(u32 bar, u32 arrivals) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory"); }
DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void mbarrier_arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }
DEVICE void mbarrier_arrive_expect(u32 bar, u32 bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory"); }
DEVICE void mbarrier_arrive_cluster(u32 remote) { asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(remote) : "memory"); }
DEVICE void mbarrier_wait(u32 bar, u32 parity) {
  asm volatile("{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(bar), "r"(parity) : "memory");
}
DEVICE void mbarrier_wait_cluster(u32 bar, u32 parity) {
  asm volatile("{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(bar), "r"(parity) : "memory");
}
DEVICE void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- bulk copies (sm_90): 16-byte aligned, a multiple of 16 bytes; they complete transactions of a barrier
DEVICE void bulk_copy_to_shared(u32 to, const void* from, u32 bytes, u32 bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(bar) : "memory");
}
DEVICE void bulk_prefetch(const void* from, u32 bytes) { asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory"); }
DEVICE void bulk_copy_to_cluster(u32 remote, u32 from, u32 bytes, u32 remote_bar) {
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(remote), "r"(from), "r"(bytes), "r"(remote_bar) : "memory");
}
DEVICE void bulk_copy_multicast(u32 to, const void* from, u32 bytes, u32 bar, u16 ranks) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(to), "l"(from), "r"(bytes), "r"(bar), "h"(ranks) : "memory");
}

// ---- clusters (sm_90)
DEVICE u32 cluster_rank() { u32 r; asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
DEVICE u32 map_to_rank(u32 a, u32 rank) { u32 r; asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(rank)); return r; }
DEVICE void store_cluster_u32(u32 remote, u32 v) { asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(remote), "r"(v) : "memory"); }
DEVICE void store_cluster_u32x4(u32 remote, U32x4 v) { asm volatile("st.shared::cluster.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(remote), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory"); }
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }  // of a thread that stored nothing, or fenced
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
DEVICE void cluster_sync() { cluster_arrive(); cluster_wait(); }

// ---- programmatic dependent launches (sm_90): what follows the wait sees the launch before it, whole
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
DEVICE void dependents_may_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
DEVICE void wait_for_predecessor() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#else
DEVICE void dependents_may_start() {}
DEVICE void wait_for_predecessor() {}
#endif
#endif
