// What sm_90a has beyond ptx.cuh: wgmma, tensor copies, stores that count into a peer's mbarrier.
#pragma once
#include "ptx.cuh"

#ifdef TB_CPU
#include "wgmma_shim.h"
#else
// ---- tensor copies: a box of a 2-D tensor map (column x, row y) into shared memory
struct alignas(64) TensorMap { u64 opaque[16]; };
DEVICE void prefetch_tensor_map(const void* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
DEVICE void tensor_copy_to_shared(u32 to, const void* map, int x, int y, u32 bar) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(map), "r"(x), "r"(y), "r"(bar) : "memory");
}
// What other launches stored becomes visible to this thread's tensor copies.
DEVICE void fence_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// ---- a peer of the cluster: 16 bytes into its shared memory; they complete transactions of a barrier there
DEVICE void store_cluster_async(u32 remote, float a, float b, float c, float d, u32 remote_bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(remote), "f"(a), "f"(b), "f"(c), "f"(d), "r"(remote_bar) : "memory");
}

// ---- registers move between warpgroups
template <int N> DEVICE void registers_grow() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEVICE void registers_shrink() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

// ---- wgmma: d += A B, A [64, 16] and B [N, 16] in shared memory, K-major, each as its descriptor says.
// Element d[4 j + 2 h + e] of lane l in warp w stands at row 16 w + l / 4 + 8 h, column 8 j + 2 (l % 4) + e.
// scale-d is a constant: with a predicate there ptxas serialises the chain (C7520).
//
// Rows of 128 bytes, swizzled; 8 rows are 1,024 bytes.
DEVICE u64 wgmma_descriptor(u32 a) { return (u64)((a & 0x3FFFF) >> 4) | ((u64)1 << 16) | ((u64)64 << 32) | ((u64)1 << 62); }
// Not swizzled: chunks of 16 bytes of K, [chunk][row][16 bytes], chunk_bytes from one to the next.
DEVICE u64 wgmma_chunk_descriptor(u32 a, u32 chunk_bytes) { return (u64)((a & 0x3FFFF) >> 4) | ((u64)(chunk_bytes >> 4) << 16) | ((u64)8 << 32); }
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// After the wait: d is not read before it.
DEVICE void wgmma_settle(float* d) { asm volatile("" : "+f"(*d)); }
template <int N> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// The operands of d for N columns: TB_S*, as the text names them; TB_D*, as constraints.
#define TB_D(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define TB_S8 "%0, %1, %2, %3"
#define TB_D8 TB_D(0)
#define TB_S16 TB_S8 ", %4, %5, %6, %7"
#define TB_D16 TB_D8, TB_D(4)
#define TB_S24 TB_S16 ", %8, %9, %10, %11"
#define TB_D24 TB_D16, TB_D(8)
#define TB_S32 TB_S24 ", %12, %13, %14, %15"
#define TB_D32 TB_D24, TB_D(12)
#define TB_S40 TB_S32 ", %16, %17, %18, %19"
#define TB_D40 TB_D32, TB_D(16)
#define TB_S48 TB_S40 ", %20, %21, %22, %23"
#define TB_D48 TB_D40, TB_D(20)
#define TB_S56 TB_S48 ", %24, %25, %26, %27"
#define TB_D56 TB_D48, TB_D(24)
#define TB_S64 TB_S56 ", %28, %29, %30, %31"
#define TB_D64 TB_D56, TB_D(28)
#define TB_S72 TB_S64 ", %32, %33, %34, %35"
#define TB_D72 TB_D64, TB_D(32)
#define TB_S80 TB_S72 ", %36, %37, %38, %39"
#define TB_D80 TB_D72, TB_D(36)
#define TB_S88 TB_S80 ", %40, %41, %42, %43"
#define TB_D88 TB_D80, TB_D(40)
#define TB_S96 TB_S88 ", %44, %45, %46, %47"
#define TB_D96 TB_D88, TB_D(44)
#define TB_S104 TB_S96 ", %48, %49, %50, %51"
#define TB_D104 TB_D96, TB_D(48)
#define TB_S112 TB_S104 ", %52, %53, %54, %55"
#define TB_D112 TB_D104, TB_D(52)
#define TB_S120 TB_S112 ", %56, %57, %58, %59"
#define TB_D120 TB_D112, TB_D(56)
#define TB_S128 TB_S120 ", %60, %61, %62, %63"
#define TB_D128 TB_D120, TB_D(60)
#define TB_S136 TB_S128 ", %64, %65, %66, %67"
#define TB_D136 TB_D128, TB_D(64)
#define TB_S144 TB_S136 ", %68, %69, %70, %71"
#define TB_D144 TB_D136, TB_D(68)
#define TB_S152 TB_S144 ", %72, %73, %74, %75"
#define TB_D152 TB_D144, TB_D(72)
#define TB_S160 TB_S152 ", %76, %77, %78, %79"
#define TB_D160 TB_D152, TB_D(76)
#define TB_S168 TB_S160 ", %80, %81, %82, %83"
#define TB_D168 TB_D160, TB_D(80)
#define TB_S176 TB_S168 ", %84, %85, %86, %87"
#define TB_D176 TB_D168, TB_D(84)
#define TB_S184 TB_S176 ", %88, %89, %90, %91"
#define TB_D184 TB_D176, TB_D(88)
#define TB_S192 TB_S184 ", %92, %93, %94, %95"
#define TB_D192 TB_D184, TB_D(92)
#define TB_S200 TB_S192 ", %96, %97, %98, %99"
#define TB_D200 TB_D192, TB_D(96)
#define TB_S208 TB_S200 ", %100, %101, %102, %103"
#define TB_D208 TB_D200, TB_D(100)
#define TB_S216 TB_S208 ", %104, %105, %106, %107"
#define TB_D216 TB_D208, TB_D(104)
#define TB_S224 TB_S216 ", %108, %109, %110, %111"
#define TB_D224 TB_D216, TB_D(108)
#define TB_S232 TB_S224 ", %112, %113, %114, %115"
#define TB_D232 TB_D224, TB_D(112)
#define TB_S240 TB_S232 ", %116, %117, %118, %119"
#define TB_D240 TB_D232, TB_D(116)
#define TB_S248 TB_S240 ", %120, %121, %122, %123"
#define TB_D248 TB_D240, TB_D(120)
#define TB_S256 TB_S248 ", %124, %125, %126, %127"
#define TB_D256 TB_D248, TB_D(124)
#define TB_WGMMA(N, TYPE, A, B) \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" TB_S##N "}, %" A ", %" B ", 1, 1, 1, 0, 0;" : TB_D##N : "l"(a), "l"(b))
#define TB_WGMMA_OF(N, A, B) \
  template <> DEVICE void wgmma<Fp16, N>(float* d, u64 a, u64 b) { TB_WGMMA(N, "f16", #A, #B); } \
  template <> DEVICE void wgmma<Bf16, N>(float* d, u64 a, u64 b) { TB_WGMMA(N, "bf16", #A, #B); }
template <class T, int N> DEVICE void wgmma(float* d, u64 a, u64 b);
TB_WGMMA_OF(8, 4, 5)
TB_WGMMA_OF(16, 8, 9)
TB_WGMMA_OF(24, 12, 13)
TB_WGMMA_OF(32, 16, 17)
TB_WGMMA_OF(40, 20, 21)
TB_WGMMA_OF(48, 24, 25)
TB_WGMMA_OF(56, 28, 29)
TB_WGMMA_OF(64, 32, 33)
TB_WGMMA_OF(72, 36, 37)
TB_WGMMA_OF(80, 40, 41)
TB_WGMMA_OF(88, 44, 45)
TB_WGMMA_OF(96, 48, 49)
TB_WGMMA_OF(104, 52, 53)
TB_WGMMA_OF(112, 56, 57)
TB_WGMMA_OF(120, 60, 61)
TB_WGMMA_OF(128, 64, 65)
TB_WGMMA_OF(136, 68, 69)
TB_WGMMA_OF(144, 72, 73)
TB_WGMMA_OF(152, 76, 77)
TB_WGMMA_OF(160, 80, 81)
TB_WGMMA_OF(168, 84, 85)
TB_WGMMA_OF(176, 88, 89)
TB_WGMMA_OF(184, 92, 93)
TB_WGMMA_OF(192, 96, 97)
TB_WGMMA_OF(200, 100, 101)
TB_WGMMA_OF(208, 104, 105)
TB_WGMMA_OF(216, 108, 109)
TB_WGMMA_OF(224, 112, 113)
TB_WGMMA_OF(232, 116, 117)
TB_WGMMA_OF(240, 120, 121)
TB_WGMMA_OF(248, 124, 125)
TB_WGMMA_OF(256, 128, 129)
#undef TB_WGMMA_OF
#undef TB_WGMMA
#endif
