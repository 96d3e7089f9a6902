// 16-bit floats and the tensor core's product.
#include "engine.h"

namespace tb {
namespace {
// Encode with MANTISSA stored bits and an exponent of EXPONENT bits; exact for any double.
template <int MANTISSA, int EXPONENT> u16 encode(double v) {
  constexpr int BIAS = (1 << (EXPONENT - 1)) - 1;
  const u64 bits = bits_as<u64>(v);
  const u16 sign = (u16)(bits >> 63 << 15);
  if (v != v) return 0x7fff;
  int exponent = (int)(bits >> 52 & 2047) - 1023;
  if (exponent > BIAS) return sign | ((1 << EXPONENT) - 1) << MANTISSA;
  if (exponent < 1 - BIAS) exponent = 1 - BIAS;  // subnormal: a fixed quantum
  const double quantum = bits_as<double>((u64)(exponent - MANTISSA + 1023) << 52);
  const u32 units = (u32)nearbyint(fabs(v) / quantum);  // a carry moves on into the exponent, as it must
  return sign | (u16)(((exponent + BIAS - 1) << MANTISSA) + units);
}
}  // namespace

u16 half_of(double v) { return encode<10, 5>(v); }
u16 bfloat_of(double v) { return encode<7, 8>(v); }

float float_of_half(u16 h) {
  const u32 magnitude = (u32)(h & 0x7fff) << 13;
  const u32 sign = (u32)(h & 0x8000) << 16;
  if (magnitude >= 0x0f800000u) return bits_as<float>(sign | (magnitude + 0x70000000u));
  return bits_as<float>(sign | bits_as<u32>(bits_as<float>(magnitude) * 0x1p112f));
}

double fma_to_odd(double a, double b, double c) {
  const double product = a * b;  // exact: halves have 11 bits
  const double sum = product + c;
  const double back = sum - product;
  const double error = (product - (sum - back)) + (c - back);
  u64 bits = bits_as<u64>(sum);
  if (error == 0 || error != error || bits & 1) return sum;
  bits += (error > 0) == (sum > 0) ? 1 : -1;
  return bits_as<double>(bits);
}

namespace {
typedef float Eight __attribute__((vector_size(32)));

// Without branches, for the compiler to make vectors of.
void widen(const u16* in, float* out, int n, bool bfloat) {
  if (bfloat) {
    for (int i = 0; i < n; i++) out[i] = bits_as<float>((u32)in[i] << 16);
    return;
  }
  for (int i = 0; i < n; i++) {
    const u32 magnitude = (u32)(in[i] & 0x7fff) << 13, sign = (u32)(in[i] & 0x8000) << 16;
    const u32 finite = bits_as<u32>(bits_as<float>(magnitude) * 0x1p112f), special = magnitude + 0x70000000u;
    const u32 is_special = -(u32)(magnitude >= 0x0f800000u);
    out[i] = bits_as<float>(sign | (special & is_special) | (finite & ~is_special));
  }
}

// PTX ISA, "Matrix Fragments for mma.m16n8k8", .tf32.
void multiply_tf32(Fiber* const* lanes) {
  float a[16][8], b[8][8], d[16][8];
  const auto factor = [](u32 bits) { return bits_as<float>(bits & ~0x1fffu); };
  for (int lane = 0; lane < 32; lane++) {
    const Fiber& f = *lanes[lane];
    const int group = lane / 4, place = lane % 4;
    for (int r = 0; r < 4; r++) a[group + r % 2 * 8][place + r / 2 * 4] = factor(f.in[r]);
    for (int r = 0; r < 2; r++) b[place + r * 4][group] = factor((u32)(f.bits >> (32 * r)));
    for (int i = 0; i < 4; i++) d[group + i / 2 * 8][place * 2 + i % 2] = ((const float*)f.out)[i];
  }
  for (int m = 0; m < 16; m++)
    for (int n = 0; n < 8; n++)
      for (int k = 0; k < 8; k++) d[m][n] += a[m][k] * b[k][n];
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++) ((float*)lanes[lane]->out)[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}
}  // namespace

// Where lanes hold what: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
void multiply_fragments(Fiber* const* lanes) {
  if (lanes[0]->extra == (u32)Factors::TF32) return multiply_tf32(lanes);
  u16 halves[16 * 16 + 8 * 16];  // a [m][k], b [n][k]
  float a[16][16], b[8][16];
  union { Eight row; float of[8]; } sums[16], columns[16];
  for (int lane = 0; lane < 32; lane++) {
    const Fiber& f = *lanes[lane];
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int r = 0; r < 4; r++) memcpy(&halves[(group + r % 2 * 8) * 16 + pair + r / 2 * 8], &f.in[r], 4);
    for (int r = 0; r < 2; r++) {
      const u32 two = (u32)(f.bits >> (32 * r));
      memcpy(&halves[256 + group * 16 + pair + r * 8], &two, 4);
    }
    for (int i = 0; i < 4; i++) sums[group + i / 2 * 8].of[pair + i % 2] = ((const float*)f.out)[i];
  }
  widen(halves, a[0], 256, lanes[0]->extra == (u32)Factors::BFLOAT);
  widen(halves + 256, b[0], 128, lanes[0]->extra == (u32)Factors::BFLOAT);
  for (int k = 0; k < 16; k++)
    for (int n = 0; n < 8; n++) columns[k].of[n] = b[n][k];
  for (int m = 0; m < 16; m++) {
    Eight sum = sums[m].row;
    for (int k = 0; k < 16; k++) sum += a[m][k] * columns[k].row;
    sums[m].row = sum;
  }
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++) ((float*)lanes[lane]->out)[i] = sums[lane / 4 + i / 2 * 8].of[lane % 4 * 2 + i % 2];
}
}  // namespace tb
