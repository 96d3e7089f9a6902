// wgmma_fp8.cuh for the CPU (TB_CPU): the same names. Sums are exact to fp32.
#pragma once
#include <cmath>

inline float tb_e4m3(u8 bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if ((bits & 0x7F) == 0x7F) return NAN;
  const float size = exponent ? std::ldexp((float)(8 + mantissa), exponent - 10) : std::ldexp((float)mantissa, -9);
  return bits & 0x80 ? -size : size;
}
inline u8 tb_to_e4m3(float v) {
  const u8 sign = std::signbit(v) ? 0x80 : 0;
  if (v != v) return sign | 0x7F;
  const float size = std::fabs(v);
  if (size >= 448.f) return sign | 0x7E;
  int exponent = 0;
  std::frexp(size, &exponent);  // size in [2^(exponent - 1), 2^exponent)
  const int unit = (exponent < -5 ? -5 : exponent) - 4;  // of the last bit; subnormals share the smallest
  const int steps = (int)std::nearbyint(std::ldexp(size, -unit));  // ties to even
  // 8 to 15 steps are a normal number's; 16 are the next exponent's 8, and fewer than 8 are a subnormal's.
  const u8 bits = (u8)(steps < 8 ? steps : (unit + 10) * 8 + steps - 8);
  return sign | (bits > 0x7E ? 0x7E : bits);
}
inline u16 pack_e4m3(float lo, float hi) { return (u16)(tb_to_e4m3(lo) | tb_to_e4m3(hi) << 8); }

inline void tb_wgmma_row_e4m3(float* to, u64 descriptor, u32 row, tb::At at) {
  for (u32 half = 0; half < 2; half++) {
    const U32x4 v = tb::load<U32x4>(tb_swizzled((u32)(descriptor << 4) + row * 128 + half * 16, 128), at);
    const u32 words[4] = {v.x, v.y, v.z, v.w};
    for (u32 i = 0; i < 16; i++) to[half * 16 + i] = tb_e4m3((u8)(words[i / 4] >> (i % 4 * 8)));
  }
}
template <int N> inline void wgmma_e4m3(float* d, u64 a, u64 b, TB_AT) {
  const u32 lane = tb::self->lane, warp = tb::self->thread.x / 32 % 4;
  float rows[2][32], column[32];
  for (u32 h = 0; h < 2; h++) tb_wgmma_row_e4m3(rows[h], a, warp * 16 + lane / 4 + h * 8, at);
  for (u32 j = 0; j < N / 8; j++)
    for (u32 e = 0; e < 2; e++) {
      tb_wgmma_row_e4m3(column, b, j * 8 + lane % 4 * 2 + e, at);
      for (u32 h = 0; h < 2; h++)
        for (u32 k = 0; k < 32; k++) d[j * 4 + h * 2 + e] += rows[h][k] * column[k];
    }
}
