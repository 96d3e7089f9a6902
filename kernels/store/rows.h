/* Numbers of a stored row as vectors of floats, and back. See rows.py.

   load_W(dtype, p, scale) gives W of them from p on, for W of 1, 2, 4, 8, 16, as many as the
   machine's vectors have at most. Only of int8 the scale counts. load_TYPE_W knows the type, and of
   int8 leaves the scale to the caller. */

#ifndef TB_ROWS_H
#define TB_ROWS_H

#include <stdint.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

enum { FP32, FP16, BF16, INT8, N_DTYPES };

static inline int64_t item_bytes(int dtype) {
    return dtype == FP32 ? 4 : dtype == INT8 ? 1 : 2;
}

static inline float row_scale(const uint8_t *row, int64_t dim) {
    float scale;
    memcpy(&scale, row + dim, sizeof scale);
    return scale;
}

/* fp16 without an instruction for it: the bits in a float's places, whose exponent is then 112 too
   small, subnormals included. */
#define DEFINE_SOFT_FP16(W)                                                                        \
    static inline f##W load_fp16_##W(const uint8_t *p) {                                           \
        u##W half = __builtin_convertvector(*(const h##W *)p, u##W);                               \
        u##W sign = (half & 0x8000) << 16, rest = (half & 0x7fff) << 13;                           \
        u##W special = (u##W)(rest >= 0x0f800000) & 0x7f800000;                                    \
        return (f##W)((u##W)((f##W)rest * 0x1p112f) | special | sign);                             \
    }

#define DEFINE_VECTORS(W)                                                                          \
    typedef float f##W __attribute__((vector_size(4 * (W)), aligned(1), may_alias));               \
    typedef uint32_t u##W __attribute__((vector_size(4 * (W)), aligned(1), may_alias));            \
    typedef int32_t i##W __attribute__((vector_size(4 * (W)), aligned(1), may_alias));             \
    typedef uint16_t h##W __attribute__((vector_size(2 * (W)), aligned(1), may_alias));            \
    typedef int16_t s##W __attribute__((vector_size(2 * (W)), aligned(1), may_alias));             \
    typedef int8_t b##W __attribute__((vector_size(W), aligned(1), may_alias));                    \
    static inline f##W load_fp32_##W(const uint8_t *p) { return *(const f##W *)p; }

/* From int8 to int32 in one step, gcc 12 goes number by number. */
#define DEFINE_WIDENING(W)                                                                         \
    static inline f##W load_bf16_##W(const uint8_t *p) {                                           \
        return (f##W)(__builtin_convertvector(*(const h##W *)p, u##W) << 16);                      \
    }                                                                                              \
    static inline f##W load_int8_##W(const uint8_t *p) {                                           \
        s##W shorts = __builtin_convertvector(*(const b##W *)p, s##W);                             \
        return __builtin_convertvector(__builtin_convertvector(shorts, i##W), f##W);               \
    }

DEFINE_VECTORS(1)
DEFINE_VECTORS(2)
DEFINE_VECTORS(4)
DEFINE_WIDENING(1)
DEFINE_WIDENING(2)
DEFINE_WIDENING(4)
#if LANES >= 8
DEFINE_VECTORS(8)
#if defined(__AVX2__) /* an instruction each, which gcc 12 does not find */
static inline f8 load_bf16_8(const uint8_t *p) {
    return (f8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
}
static inline f8 load_int8_8(const uint8_t *p) {
    return (f8)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
#else
DEFINE_WIDENING(8)
#endif
#endif
#if LANES >= 16
DEFINE_VECTORS(16)
static inline f16 load_bf16_16(const uint8_t *p) {
    return (f16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}
static inline f16 load_int8_16(const uint8_t *p) {
    return (f16)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
#endif

#if defined(__F16C__)
static inline f1 load_fp16_1(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    return (f1){_cvtsh_ss(half)};
}
static inline f2 load_fp16_2(const uint8_t *p) {
    uint32_t halves;
    memcpy(&halves, p, sizeof halves);
    __m128 x = _mm_cvtph_ps(_mm_cvtsi32_si128((int32_t)halves));
    return (f2){x[0], x[1]};
}
static inline f4 load_fp16_4(const uint8_t *p) {
    return (f4)_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)p));
}
static inline f8 load_fp16_8(const uint8_t *p) {
    return (f8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
#if LANES >= 16
static inline f16 load_fp16_16(const uint8_t *p) {
    return (f16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
#endif
#else
DEFINE_SOFT_FP16(1)
DEFINE_SOFT_FP16(2)
DEFINE_SOFT_FP16(4)
#if LANES >= 8
DEFINE_SOFT_FP16(8)
#endif
#if LANES >= 16
DEFINE_SOFT_FP16(16)
#endif
#endif

#define DEFINE_LOAD(W)                                                                             \
    static inline __attribute__((always_inline)) f##W load_##W(                                    \
        int dtype, const uint8_t *p, float scale) {                                                \
        switch (dtype) {                                                                           \
        case FP32: return load_fp32_##W(p);                                                        \
        case FP16: return load_fp16_##W(p);                                                        \
        case BF16: return load_bf16_##W(p);                                                        \
        default: return load_int8_##W(p) * scale;                                                  \
        }                                                                                          \
    }

DEFINE_LOAD(1)
DEFINE_LOAD(2)
DEFINE_LOAD(4)
#if LANES >= 8
DEFINE_LOAD(8)
#endif
#if LANES >= 16
DEFINE_LOAD(16)
#endif

/* To nearest even, ending at the largest finite number; a NaN stays one. */
static inline uint16_t to_fp16(float x) {
    x = x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
#if defined(__F16C__)
    return _cvtss_sh(x, 0);
#else
    uint32_t bits, sign;
    memcpy(&bits, &x, sizeof bits);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (bits < 0x38800000) { /* subnormal: adding 0.5 shifts and rounds the digits as is needed */
        float small;
        memcpy(&small, &bits, sizeof small);
        small += 0.5f;
        memcpy(&bits, &small, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    return (uint16_t)(sign | ((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13));
#endif
}

static inline void to_fp16s(const float *in, int64_t n, uint8_t *out) {
    int64_t i = 0;
#if defined(__F16C__)
    const __m256 most = _mm256_set1_ps(65504.0f), least = _mm256_set1_ps(-65504.0f);
    for (; i + 8 <= n; i += 8) { /* min and max give their second operand where one is a NaN */
        __m256 x = _mm256_max_ps(least, _mm256_min_ps(most, _mm256_loadu_ps(in + i)));
        _mm_storeu_si128((__m128i *)(out + 2 * i), _mm256_cvtps_ph(x, 0));
    }
#endif
    for (; i < n; i++) {
        uint16_t half = to_fp16(in[i]);
        memcpy(out + 2 * i, &half, sizeof half);
    }
}

static inline uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)(x != x ? bits >> 16 | 0x40 : rounded);
}

/* Returns 0 if the row is not finite. */
static inline int to_int8(const float *row, int64_t dim, uint8_t *out) {
    uint32_t most = 0; /* without their sign, floats are in the order of their bits */
    for (int64_t i = 0; i < dim; i++) {
        uint32_t bits;
        memcpy(&bits, row + i, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    if (most >= 0x7f800000) return 0;
    float largest, scale;
    memcpy(&largest, &most, sizeof largest);
    scale = largest / 127.0f;
    float divisor = scale > 0 ? scale : __builtin_inff();
    for (int64_t i = 0; i < dim; i++) {
        float q = row[i] / divisor;
        q = q > 127.0f ? 127.0f : q < -127.0f ? -127.0f : q;
        q = q + 0x1.8p23f - 0x1.8p23f; /* round to even */
        out[i] = (uint8_t)(int8_t)q;
    }
    memcpy(out + dim, &scale, sizeof scale);
    return 1;
}

#endif
