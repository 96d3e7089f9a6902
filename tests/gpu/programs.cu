// Kernels of the tests on a card. Rows of user and candidate are 8 floats.
#include "ptx.cuh"

KERNEL void score(const float* user, const float* candidate, const int* request_of_row,
                  const int* counts, float* scores) {
  int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= counts[0]) return;
  float sum = user[request_of_row[row] * 8];
  for (int c = 0; c < 8; c++) sum += candidate[row * 8 + c];
  scores[row] = sum;
}

KERNEL void trap(const float* user, const float* candidate, const int* request_of_row,
                 const int* counts, float* scores) {
  if (counts[0] > 10) __trap();
  int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row < counts[0]) scores[row] = 1.f;
}

KERNEL void linger(int microseconds) {
  long long start = clock64();
  // At 1 to 2 GHz this is at least the time asked for.
  while (clock64() - start < 2000ll * microseconds) {}
}

KERNEL void where(float* scores) {
  u32 sm;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  long long start = clock64();
  while (clock64() - start < 20000) {}  // so that blocks spread over what there is
  if (threadIdx.x == 0) scores[blockIdx.x] = (float)sm;
}

// scratch[row] = 2 * candidate[row][0], for a launch that depends on it
KERNEL void first(const float* candidate, const int* counts, float* scratch) {
  int row = blockIdx.x * blockDim.x + threadIdx.x;
  dependents_may_start();
  for (int spin = 0; spin < 1000; spin++) __nanosleep(20);
  if (row < counts[0]) scratch[row] = 2.f * candidate[row * 8];
}
KERNEL void second(const float* scratch, const int* counts, float* scores) {
  int row = blockIdx.x * blockDim.x + threadIdx.x;
  wait_for_predecessor();
  if (row < counts[0]) scores[row] = scratch[row] + 1.f;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// scores[block] = its rank in the cluster, told by its neighbour; n is dynamic shared memory
extern __shared__ u32 memory[];
KERNEL void ranks(float* scores, int n_blocks, int n_bytes) {
  u32 last = shared_address(memory) + n_bytes - 4;
  cluster_sync();
  u32 to = (cluster_rank() + 1) % n_blocks;
  if (threadIdx.x == 0) store_cluster_u32(map_to_rank(last, to), to);
  cluster_sync();
  if (threadIdx.x == 0) scores[blockIdx.x] = (float)load_shared_u32(last);
}

// scores = the 4 x 8 elements of a tensor map, as integers of 16 bits
struct alignas(64) Map { u64 opaque[16]; };
KERNEL void tensor(const __grid_constant__ Map map, float* scores) {
  __shared__ alignas(128) u16 tile[32];
  __shared__ alignas(8) u64 barrier;
  u32 bar = shared_address(&barrier);
  if (threadIdx.x == 0) {
    mbarrier_init(bar, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(bar, sizeof tile);
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(tile)), "l"(&map), "r"(0), "r"(0),
        "r"(bar) : "memory");
  }
  __syncthreads();
  mbarrier_wait(bar, 0);
  scores[threadIdx.x] = (float)tile[threadIdx.x];
}
#endif
