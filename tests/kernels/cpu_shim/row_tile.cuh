// A small row tile, as the shim's test: what kernels/cuda/tile.cuh does at its heart, without its steps.
//
// A cluster of C blocks owns R = 16 rows. Each block computes 1/C of the columns of each of two layers,
// relu(x W), from weights that a producer warp streams through a ring, and copies its columns to its
// peers. Values lie as [column / 8][row][8 halves]. Macros leave out one wait or one barrier each.
#include "ptx.cuh"
constexpr int R = 16, C = 4, NW = 2, NS = 2, N = 128, TILES = N / 8 / C, STAGE = TILES * 512, K32 = N / 32;
constexpr int ACT = 128, ACT_BYTES = R * N * 2, RING = ACT + 3 * ACT_BYTES, SHARED = RING + NS * STAGE;

struct Ring {
  u32 base; int slot; u32 parity;
  DEVICE void next() { if (++slot == NS) { slot = 0; parity ^= 1; } }
  DEVICE u32 full() { return base + slot * 8; }
  DEVICE u32 empty() { return base + (NS + slot) * 8; }
  DEVICE u32 stage() { return base + RING + slot * STAGE; }
};

DEVICE void produce(Ring& ring, const u8* weights) {
  for (int k = 0; k < K32; k++) {
    mbarrier_wait(ring.empty(), ring.parity ^ 1);
    mbarrier_arrive_expect(ring.full(), STAGE);
    bulk_copy_to_shared(ring.stage(), weights + k * STAGE, STAGE, ring.full());
    ring.next();
  }
}

DEVICE void layer(Ring& ring, u32 from, u32 to, u32 gather, int warp, int lane) {
  constexpr int MINE = TILES / NW;
  float d[MINE][4] = {};
  for (int k = 0; k < K32; k++) {
#ifndef NO_FULL_WAIT
    mbarrier_wait(ring.full(), ring.parity);
#endif
#ifdef EARLY_RELEASE
    __syncwarp();
    if (lane == 0) mbarrier_arrive(ring.empty());
#endif
    for (int half = 0; half < 2; half++) {
      u32 a[4];
      ldmatrix_x4(a, from + ((k * 4 + half * 2 + (lane >> 4)) * R + (lane & 15)) * 16);
      for (int j = 0; j < MINE; j++) {
        const U32x4 b = load_shared_u32x4(ring.stage() + (warp * MINE + j) * 512 + lane * 16);
        mma_half(d[j], a, half ? b.z : b.x, half ? b.w : b.y);
      }
    }
#ifndef EARLY_RELEASE
    __syncwarp();
    if (lane == 0) mbarrier_arrive(ring.empty());
#endif
    ring.next();
  }
  const u32 mine = to + (cluster_rank() * TILES + warp * MINE) * R * 16;
  for (int j = 0; j < MINE; j++)
    for (int h = 0; h < 2; h++)
      store_shared_u32(mine + (j * R + (lane >> 2) + h * 8) * 16 + (lane & 3) * 4, pack_half2(fmaxf(d[j][h * 2], 0.f), fmaxf(d[j][h * 2 + 1], 0.f)));
#ifndef NO_FENCE
  fence_async_shared();
#endif
#ifndef NO_WARP_SYNC
  __syncwarp();
#endif
  if (lane < C && lane != (int)cluster_rank()) bulk_copy_to_cluster(map_to_rank(mine, lane), mine, MINE * R * 16, map_to_rank(gather, lane));
  if (lane == 0) {
    if (warp == 0) mbarrier_arrive_expect(gather, (C - 1) * TILES * R * 16); else mbarrier_arrive(gather);
  }
#ifndef NO_GATHER_WAIT
  mbarrier_wait_cluster(gather, 0);
#endif
}

// x, y: halves [rows][N]; weights: halves [layer][rank][k / 32][tile][lane][8].
KERNEL void __launch_bounds__(NW * 32 + 32, 1) tile(const u16* __restrict__ x, const u8* __restrict__ weights, u16* __restrict__ y) {
  DYNAMIC_SHARED(shared);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const u32 base = shared_address(shared), values = base + ACT, gather = base + NS * 16;
  Ring ring{base, 0, 0};
  if (warp == NW && lane == 0) {
    for (int i = 0; i < NS; i++) { mbarrier_init(base + i * 8, 1); mbarrier_init(base + (NS + i) * 8, NW); }
    mbarrier_init(gather, NW); mbarrier_init(gather + 8, NW);
    mbarrier_init_fence();
  }
  if (warp == NW) {
    __syncwarp();
    cluster_arrive();
    if (lane == 0)
      for (int l = 0; l < 2; l++) produce(ring, weights + (l * C + cluster_rank()) * K32 * STAGE);
    __syncwarp();
    cluster_wait();
#ifndef NO_END
    cluster_sync();
#endif
    return;
  }
  for (int i = threadIdx.x; i < R * N / 8; i += NW * 32) {
    const int r = i % R, chunk = i / R;
    store_shared_u32x4(values + i * 16, load_global_u32x4(x + (blockIdx.x / C * R + r) * N + chunk * 8));
  }
#ifndef NO_START
  cluster_sync();
#endif
  layer(ring, values, values + ACT_BYTES, gather, warp, lane);
  layer(ring, values + ACT_BYTES, values + 2 * ACT_BYTES, gather + 8, warp, lane);
  for (int i = threadIdx.x; i < R * N / 8 / C; i += NW * 32) {
    const int at = i + cluster_rank() * R * N / 8 / C, r = at % R, chunk = at / R;
    store_global_u32x4(y + (blockIdx.x / C * R + r) * N + chunk * 8, load_shared_u32x4(values + 2 * ACT_BYTES + at * 16));
  }
#ifndef NO_END
  cluster_sync();
#endif
}
