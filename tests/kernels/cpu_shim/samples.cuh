// Kernels whose results numpy knows, for the tests of the shim itself.
#include "ptx.cuh"

// ---- a softmax of each row, by one block
DEVICE float fold(float v, float* s, bool sum) {
  v = sum ? warp_sum(v) : warp_max(v);
  if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = v;
  __syncthreads();
  v = s[0];
  for (int w = 1; w < (int)blockDim.x / 32; w++) v = sum ? v + s[w] : fmaxf(v, s[w]);
  __syncthreads();
  return v;
}
KERNEL void __launch_bounds__(128, 1) softmax(const float* __restrict__ x, float* y, int n) {
  __shared__ float s[32];
  x += blockIdx.x * n; y += blockIdx.x * n;
  float most = -1e30f, total = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) most = fmaxf(most, x[i]);
  most = fold(most, s, false);
  for (int i = threadIdx.x; i < n; i += blockDim.x) total += __expf(x[i] - most);
  total = fold(total, s, true);
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = __expf(x[i] - most) / total;
}

// ---- c = a b: a [m][k]; b [n][k], or with TRANSPOSED [k][n]; a warp makes 16 x 16
template <class T, bool TRANSPOSED> DEVICE void gemm(const u16* a, const u16* b, float* c, int n, int k) {
  DYNAMIC_SHARED(shared);
  const u32 a_s = shared_address(shared), b_s = a_s + 16 * k * 2;
  const int lane = threadIdx.x, m0 = blockIdx.x * 16, n0 = blockIdx.y * 16;
  for (int i = lane; i < 2 * k; i += 32) {
    const int r = i / (k / 8), at = i % (k / 8) * 8;
    cp_async(a_s + (r * k + at) * 2, a + (m0 + r) * k + at);
    if (TRANSPOSED) cp_async(b_s + i * 16, b + i / 2 * n + n0 + i % 2 * 8);
    else cp_async(b_s + (r * k + at) * 2, b + (n0 + r) * k + at);
  }
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  float d[2][4] = {};
  for (int i = 0; i < k; i += 16) {
    u32 x[4], y[4];
    ldmatrix_x4(x, a_s + ((lane & 15) * k + i + (lane >> 4) * 8) * 2);
    if (TRANSPOSED) ldmatrix_x4_transposed(y, b_s + ((i + (lane & 15)) * 16 + (lane >> 4) * 8) * 2);
    else ldmatrix_x4(y, b_s + (((lane & 7) + (lane >> 4) * 8) * k + i + (lane >> 3 & 1) * 8) * 2);
    T::mma(d[0], x, y[0], y[1]);
    T::mma(d[1], x, y[2], y[3]);
  }
  for (int i = 0; i < 8; i++)
    c[(m0 + lane / 4 + i / 2 % 2 * 8) * n + n0 + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i / 4][i % 4];
}
#define GEMM(name, T, TRANSPOSED) \
  KERNEL void name(const u16* a, const u16* b, float* c, int n, int k) { gemm<T, TRANSPOSED>(a, b, c, n, k); }
GEMM(half_gemm, Fp16, false)
GEMM(bfloat_gemm, Bf16, false)
GEMM(half_gemm_transposed, Fp16, true)
GEMM(bfloat_gemm_transposed, Bf16, true)

// ---- halves, one thread
KERNEL void pack(const float* x, u32* out, int n) {
  for (int i = 0; i < n; i++) out[i] = pack_half2(x[2 * i], x[2 * i + 1]);
}
KERNEL void unpack(const u16* x, float* out, int n) {
  for (int i = 0; i < n; i++) out[i] = half_to_float(x[i]);
}
KERNEL void fma_pairs(const u32* a, const u32* b, const u32* c, u32* y, u32* z, int n) {
  for (int i = 0; i < n; i++) y[i] = fma_half2(a[i], b[i], c[i]), z[i] = mul_half2(a[i], b[i]);
}

// ---- shuffles and votes, one warp: y [6][32]
KERNEL void lanes(float* y) {
  const int t = threadIdx.x;
  y[t] = shuffle_from((float)t, 7);
  y[32 + t] = __shfl_down_sync(~0u, t, 3);
  y[64 + t] = __shfl_up_sync(~0u, t, 3);
  y[96 + t] = __shfl_xor_sync(~0u, t, 5, 8);
  y[128 + t] = __ballot_sync(~0u, t < 3) + 10 * __any_sync(~0u, t == 3) + 100 * __all_sync(~0u, t < 32);
  y[160 + t] = t;
  if (t < 8) y[160 + t] = __shfl_sync(0xffu, (float)t, t ^ 1);
}
