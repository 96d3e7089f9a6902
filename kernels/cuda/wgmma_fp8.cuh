// wgmma over e4m3, and packing to it (sm_90a): 4 bits of exponent, 3 of mantissa, largest 448, no infinity.
#pragma once
#include "wgmma.cuh"

#ifdef TB_CPU
#include "wgmma_fp8_shim.h"
#else
// lo in the low 8 bits. Too large saturates; NaN stays NaN.
DEVICE u16 pack_e4m3(float lo, float hi) { u16 d; asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(d) : "f"(hi), "f"(lo)); return d; }

// d += A B, A [64, 32] and B [N, 32] of e4m3 in shared memory; else as wgmma. Sums are fp32, but products of one instruction
// are aligned to the largest of them and keep about 14 bits.
#define E4M3_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define E4M3_D16(i) E4M3_D4(i), E4M3_D4(i + 4), E4M3_D4(i + 8), E4M3_D4(i + 12)
#define E4M3_D32(i) E4M3_D16(i), E4M3_D16(i + 16)
#define E4M3_D64(i) E4M3_D32(i), E4M3_D32(i + 32)
#define E4M3_D128(i) E4M3_D64(i), E4M3_D64(i + 64)
#define E4M3_S16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define E4M3_S32 E4M3_S16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define E4M3_S64 E4M3_S32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define E4M3_S128 E4M3_S64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define E4M3_WGMMA(N, SUMS, A, B) \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" E4M3_S##SUMS "}, %" #A ", %" #B ", 1, 1, 1;" : E4M3_D##SUMS(0) : "l"(a), "l"(b))
template <int N> DEVICE void wgmma_e4m3(float* d, u64 a, u64 b) {
  static_assert(N == 32 || N == 64 || N == 128 || N == 256, "a width that is written out above");
  if constexpr (N == 32) E4M3_WGMMA(32, 16, 16, 17);
  if constexpr (N == 64) E4M3_WGMMA(64, 32, 32, 33);
  if constexpr (N == 128) E4M3_WGMMA(128, 64, 64, 65);
  if constexpr (N == 256) E4M3_WGMMA(256, 128, 128, 129);
}
#endif
