// Functions of one element that the table of ops (kernels/ir/rules.py) names, where CUDA has none of the kind.
//
// Floats are within 1e-6 of the exact result, relative, unless said otherwise, for any finite argument; no intermediate
// overflows. NaN in gives NaN out, through relu, maximum and minimum too: fmaxf(NaN, 0) would be 0, and would hide what a kernel
// failed to write. Ints wrap. Bools are ints, 0 or 1.
#pragma once
#include "ptx.cuh"

DEVICE float relu(float x) { return x < 0.f ? 0.f : x; }
DEVICE int relu(int x) { return x < 0 ? 0 : x; }
DEVICE float maximum(float a, float b) { return a > b || a != a ? a : b; }
DEVICE int maximum(int a, int b) { return a > b ? a : b; }
DEVICE float minimum(float a, float b) { return a < b || a != a ? a : b; }
DEVICE int minimum(int a, int b) { return a < b ? a : b; }
DEVICE float absolute(float x) { return fabsf(x); }
DEVICE int absolute(int x) { return x < 0 ? -x : x; }
DEVICE float sign(float x) { return x > 0.f ? 1.f : x < 0.f ? -1.f : x; }
DEVICE int sign(int x) { return (x > 0) - (x < 0); }

// Absolute error below 2e-7. The relative error grows as x falls: 1e-5 at -80, where __expf is as far off.
DEVICE float sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }
// log(1 + exp(x))
DEVICE float softplus(float x) { return relu(x) + log1pf(expf(-fabsf(x))); }
DEVICE float leaky_relu(float x, float slope) { return x < 0.f ? x * slope : x; }
DEVICE float elu(float x, float alpha) { return x < 0.f ? alpha * expm1f(x) : x; }

// sin(x) with shift 0, cos(x) with 1, for every float. (CUDA's own keep a stack, for large arguments.) x is brought to +-pi/4
// and a quarter of the circle; the polynomials are Cephes' (sinf.c).
static __constant__ const u32 TWO_OVER_PI[7] = {0xa2f9836e, 0x4e441529, 0xfc2757d1, 0xf534ddc0, 0xdb629599, 0x3c439041, 0xfe5163ab};
DEVICE float sine(float x, int shift) {
  double r;
  int quarter;
  if (fabsf(x) < 1e9f) {  // pi / 2 as a sum of two doubles
    const double n = rint(x * 0.63661977236758134);
    r = fma(-n, 6.123233995736766e-17, fma(-n, 1.5707963267948966, (double)x));
    quarter = (int)n;
  } else {  // Payne and Hanek: x = m 2^e; bits of 2 / pi that give whole turns are left out, 96 of the next are enough
    const u32 bits = __float_as_uint(x);
    const int skip = (int)(bits >> 23 & 255) - 152, word = skip >= 102 ? 3 : skip >> 5, left = skip & 31;
    const u64 m = bits & 0x7fffff | 0x800000;
    u32 w[3];
#pragma unroll
    for (int i = 0; i < 3; i++) w[i] = (u32)(((u64)TWO_OVER_PI[word + i] << 32 | TWO_OVER_PI[word + i + 1]) << left >> 32);
    const u64 turns = (m * w[0] << 32) + m * w[1] + (m * w[2] >> 32);  // in units of 2^-62 quarters
    r = (double)(long long)(turns << 2) * 8.5153039502163873e-20;      // pi / 2 / 2^64
    quarter = (int)(turns >> 62) + (int)(turns >> 61 & 1);
    if (x < 0.f) { r = -r; quarter = -quarter; }
    if (!(fabsf(x) <= 3.4028235e38f)) r = x - x;  // NaN
  }
  const float t = (float)r, s = t * t;
  const float odd = t + t * s * (-1.6666654611e-1f + s * (8.3321608736e-3f + s * -1.9515295891e-4f));
  const float even = 1.f - 0.5f * s + s * s * (4.166664568298827e-2f + s * (-1.388731625493765e-3f + s * 2.443315711809948e-5f));
  const float v = quarter + shift & 1 ? even : odd;
  return quarter + shift & 2 ? -v : v;
}

// What a division leaves: of floats with the dividend's sign, of ints with the divisor's.
DEVICE float modulo(float a, float b) { return fmodf(a, b); }
DEVICE int modulo(int a, int b) {
  const int rest = a % b;
  return rest != 0 && (rest ^ b) < 0 ? rest + b : rest;
}
DEVICE float power(float a, float b) { return powf(a, b); }
// 0 where b is negative.
DEVICE int power(int a, int b) {
  u32 result = b < 0 ? 0 : 1, square = (u32)a;
  for (int left = b; left > 0; left >>= 1, square *= square)
    if (left & 1) result *= square;
  return (int)result;
}

// Floats are truncated to ints, NaN to 0; anything but 0 is true.
DEVICE float cast_to_float(float x) { return x; }
DEVICE float cast_to_float(int x) { return (float)x; }
DEVICE int cast_to_int(float x) { return __float2int_rz(x); }
DEVICE int cast_to_int(int x) { return x; }
DEVICE int cast_to_bool(float x) { return x != 0.f; }
DEVICE int cast_to_bool(int x) { return x != 0; }
