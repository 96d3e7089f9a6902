// ---- source 0
#include "math.cuh"
#include "tile_linear.cuh"
struct phase0_cfg { typedef Fp16 T; static constexpr int R = 16, C = 1, NW = 8, BARRIER = 1, NS = 1, SB = 512; static constexpr bool STREAM = false; };
struct phase0_side : phase0_cfg { static constexpr int NW = 3, BARRIER = 3; };
KERNEL void __launch_bounds__(256, 1) phase0(const u8* weights, const int* counts, const int* request_of_row, u8* m0, u8* m1) {
typedef phase0_cfg Cfg;
DYNAMIC_SHARED(shared);
dependents_may_start();
Tile<Cfg> tile;
tile.open(shared_address(shared), 640, counts[0]);
if (tile.is_idle()) {  return; }
[[maybe_unused]] const u32 constants = tile.base + 512;
[[maybe_unused]] const u32 requests = tile.base + 512;
[[maybe_unused]] const u8* globals = weights + 0;
[[maybe_unused]] const auto request = [&](int r) { return (int)load_shared_u32(requests + r * 4); };
const u8* stream = weights + tile.rank * 0 + 0;
// copy 640 columns
copy_columns<Cfg, Float32, 640, 640, 640>(tile, m0, 0, m1, 0, [&](int r) { return tile.row(r); });
tile.close_consumer();
}
// ---- source 1
#include "wide_sm90.cuh"
using Tile = WideTile<Fp16, 64, 32, 8, 1, 0>;
static_assert(Tile::SHARED_BYTES == 99456, "as launched");
struct Layer {
  static constexpr int N = 4096, GROUPS = 1;
  static constexpr int K_TILES = 10;
  static constexpr int N_PADDED = 4096, BIAS_COLUMNS = 4096;
  static constexpr size_t BIAS_OFFSET = 5275648;
};
struct Inputs {
  const void *x0;
  DEVICE const void* input(int k_tile, int group, int& x) const {
    x = (k_tile - 0) * 64; return x0;
  }
  DEVICE const void* staged(int i) const { return nullptr; }
  DEVICE void prefetch() const {
    prefetch_tensor_map(x0);
  }
};
KERNEL void __launch_bounds__(160, 1) phase1(
    const int* counts,
    const u8* weights,
    u16* y,
    int ld_y,
    const __grid_constant__ TensorMap x0) {
  const Inputs inputs{&x0};
  wide_linear<Tile, Layer>(counts, weights, y, ld_y, inputs, Activate<Relu>{});
}
// ---- source 2
#include "wide_sm90.cuh"
using Tile = WideTile<Fp16, 64, 32, 8, 1, 0>;
static_assert(Tile::SHARED_BYTES == 99456, "as launched");
struct Layer {
  static constexpr int N = 256, GROUPS = 8;
  static constexpr int K_TILES = 8;
  static constexpr int N_PADDED = 256, BIAS_COLUMNS = 256;
  static constexpr size_t BIAS_OFFSET = 2129920;
};
struct Inputs {
  const void *x0;
  DEVICE const void* input(int k_tile, int group, int& x) const {
    x = (k_tile - 0) * 64 + group * 512; return x0;
  }
  DEVICE const void* staged(int i) const { return nullptr; }
  DEVICE void prefetch() const {
    prefetch_tensor_map(x0);
  }
};
KERNEL void __launch_bounds__(160, 1) phase2(
    const int* counts,
    const u8* weights,
    u16* y,
    int ld_y,
    const __grid_constant__ TensorMap x0) {
  const Inputs inputs{&x0};
  wide_linear<Tile, Layer>(counts, weights, y, ld_y, inputs, Activate<Relu>{});
}
// ---- source 3
#include "math.cuh"
#include "tile_linear.cuh"
struct phase3_cfg { typedef Fp16 T; static constexpr int R = 16, C = 8, NW = 8, BARRIER = 1, NS = 6, SB = 16384; static constexpr bool STREAM = true; };
struct phase3_side : phase3_cfg { static constexpr int NW = 3, BARRIER = 3; };
KERNEL void __launch_bounds__(288, 1) phase3(const u8* weights, const int* counts, const int* request_of_row, u8* m0, u8* m1, u8* m2) {
typedef phase3_cfg Cfg;
DYNAMIC_SHARED(shared);
dependents_may_start();
Tile<Cfg> tile;
tile.open(shared_address(shared), 121984, counts[0]);
if (tile.is_idle()) { wait_for_predecessor(); return; }
[[maybe_unused]] const u32 constants = tile.base + 512;
[[maybe_unused]] const u32 requests = tile.base + 1024;
[[maybe_unused]] const u8* globals = weights + 413696;
[[maybe_unused]] const auto request = [&](int r) { return (int)load_shared_u32(requests + r * 4); };
const u8* stream = weights + tile.rank * 51712 + 432;
const u32 value1 = tile.base + 66688;  // 640 columns
const u32 value2 = tile.base + 1152;  // 2048 columns
const u32 value3 = tile.base + 115840;  // 32 columns
const u32 value4 = tile.base + 119936;  // 32 columns
const u32 value5 = tile.base + 66688;  // 1024 columns
const u32 value6 = tile.base + 99456;  // 512 columns
const u32 value7 = tile.base + 1152;  // 256 columns
const u32 value8 = tile.base + 17536;  // 4 columns
if (tile.warp == Cfg::NW) {
tile.meet_producer();
if (tile.lane == 0) {
mbarrier_arrive_expect(tile.constants_bar(), 432);
bulk_copy_to_shared(constants, weights + tile.rank * 51712, 432, tile.constants_bar());
}
Linear<Cfg, 32>::produce<20>(tile, stream);
Linear<Cfg, 128>::produce<8>(tile, stream);
Linear<Cfg, 128>::produce<8>(tile, stream);
Linear<Cfg, 128>::produce<8>(tile, stream);
Linear<Cfg, 128>::produce<8>(tile, stream);
Linear<Cfg, 64>::produce<4>(tile, stream);
Linear<Cfg, 64>::produce<4>(tile, stream);
Linear<Cfg, 64>::produce<4>(tile, stream);
Linear<Cfg, 64>::produce<4>(tile, stream);
__syncwarp();
tile.close_producer();
return;
}
tile.arrive();
wait_for_predecessor();
// load 640 columns
load_columns<Cfg, Fp16, 640, 80, 640, true, false>(tile, value1, m0, 0, [&](int r) { return tile.row(r); });
// load 2048 columns
load_columns<Cfg, Fp16, 2048, 256, 2048, true, false>(tile, value2, m1, 0, [&](int r) { return tile.row(r); });
tile.meet_consumer();
mbarrier_wait(tile.constants_bar(), 0);
// linear 640 -> 32
{ Linear<Cfg, 32>::Sums sums; Linear<Cfg, 32>::clear(sums); Linear<Cfg, 32>::accumulate<20>(tile, sums, value1 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 32>::finish<false>(tile, sums, value3 + 0 * Cfg::R * 16, constants + 0, [&](int r, int c, float& v0, float& v1) { { v0 = v0; } { v1 = v1; } }); }
tile.gathered();
// softmax [4, 8]
softmax<Cfg, 4, 8, 4>(tile, [&](int r, int c, int k) -> float { const float t1 = load_float<Cfg::R>(value3, r, ((c * 8) + k)); return t1; }, [&](int r, int c, int k, float v) { store_shared_f32(float_address<Cfg::R>(value4, r, ((c * 8) + k)), v); });
tile.sync();
// matmul of 8 [4, 256]
reduce_eight<Cfg, 1024, 8, 1, true>(tile, value5, 0.f, [&](int r, int c, int k, float* v) { const float t1 = load_float<Cfg::R>(value4, r, (((c / 256) * 8) + k)); const U32x4 t2 = chunk_of<Cfg::R>(value2, r, ((k * 256) + (c % 256))); const float t3 = half_of<Cfg::T, 0>(t2); const float t4 = half_of<Cfg::T, 1>(t2); const float t5 = half_of<Cfg::T, 2>(t2); const float t6 = half_of<Cfg::T, 3>(t2); const float t7 = half_of<Cfg::T, 4>(t2); const float t8 = half_of<Cfg::T, 5>(t2); const float t9 = half_of<Cfg::T, 6>(t2); const float t10 = half_of<Cfg::T, 7>(t2); v[0] = t1 * t3; v[1] = t1 * t4; v[2] = t1 * t5; v[3] = t1 * t6; v[4] = t1 * t7; v[5] = t1 * t8; v[6] = t1 * t9; v[7] = t1 * t10; }, [](float a, float b) { return a + b; }, [](float v) { return v; });
tile.sync();
// linear 256 -> 128
{ Linear<Cfg, 128>::Sums sums; Linear<Cfg, 128>::clear(sums); Linear<Cfg, 128>::accumulate<8>(tile, sums, value5 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 128>::finish<true>(tile, sums, value6 + 0 * Cfg::R * 16, constants + 32, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.gathered();
// linear 256 -> 128
{ Linear<Cfg, 128>::Sums sums; Linear<Cfg, 128>::clear(sums); Linear<Cfg, 128>::accumulate<8>(tile, sums, value5 + 32 * Cfg::R * 16, stream);  Linear<Cfg, 128>::finish<true>(tile, sums, value6 + 16 * Cfg::R * 16, constants + 96, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.gathered();
// linear 256 -> 128
{ Linear<Cfg, 128>::Sums sums; Linear<Cfg, 128>::clear(sums); Linear<Cfg, 128>::accumulate<8>(tile, sums, value5 + 64 * Cfg::R * 16, stream);  Linear<Cfg, 128>::finish<true>(tile, sums, value6 + 32 * Cfg::R * 16, constants + 160, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.gathered();
// linear 256 -> 128
{ Linear<Cfg, 128>::Sums sums; Linear<Cfg, 128>::clear(sums); Linear<Cfg, 128>::accumulate<8>(tile, sums, value5 + 96 * Cfg::R * 16, stream);  Linear<Cfg, 128>::finish<true>(tile, sums, value6 + 48 * Cfg::R * 16, constants + 224, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.gathered();
// linear 128 -> 64
{ Linear<Cfg, 64>::Sums sums; Linear<Cfg, 64>::clear(sums); Linear<Cfg, 64>::accumulate<4>(tile, sums, value6 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 64>::finish<false>(tile, sums, value7 + 0 * Cfg::R * 16, constants + 288, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.gathered();
// linear 128 -> 64
{ Linear<Cfg, 64>::Sums sums; Linear<Cfg, 64>::clear(sums); Linear<Cfg, 64>::accumulate<4>(tile, sums, value6 + 16 * Cfg::R * 16, stream);  Linear<Cfg, 64>::finish<false>(tile, sums, value7 + 16 * Cfg::R * 16, constants + 320, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.gathered();
// linear 128 -> 64
{ Linear<Cfg, 64>::Sums sums; Linear<Cfg, 64>::clear(sums); Linear<Cfg, 64>::accumulate<4>(tile, sums, value6 + 32 * Cfg::R * 16, stream);  Linear<Cfg, 64>::finish<false>(tile, sums, value7 + 32 * Cfg::R * 16, constants + 352, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.gathered();
// linear 128 -> 64
{ Linear<Cfg, 64>::Sums sums; Linear<Cfg, 64>::clear(sums); Linear<Cfg, 64>::accumulate<4>(tile, sums, value6 + 48 * Cfg::R * 16, stream);  Linear<Cfg, 64>::finish<false>(tile, sums, value7 + 48 * Cfg::R * 16, constants + 384, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.gathered();
// contraction 4 x 64 -> 1
contract<Cfg, 4, 1, 64, true>(tile, (const float*)(globals + 0), [&](int r, int g, int k) -> float { const float t1 = load_float<Cfg::R>(value7, r, ((g * 64) + k)); return t1; }, [&](int r, int g, int n, float v) { const float t1 = load_shared_f32(constants + ((g * 4) + 416)); v += t1; const float t2 = sigmoid(v); v = t2; store_shared_f32(float_address<Cfg::R>(value8, r, (g + n)), v); });
tile.sync();
// write towers.0.4
map_matrix<Cfg, Float32, 4, 4>(tile, m2, 0, [&](int r, int c) -> float { const float t1 = load_float<Cfg::R>(value8, r, c); return t1; });
tile.close_consumer();
}
// launch phase0 of source 0: (4, 1, 1) x 256, clusters of 1, 640 bytes
// launch phase1 of source 1: (128, 1, 1) x 160, clusters of 1, 99456 bytes, dependent
// launch phase2 of source 2: (64, 1, 1) x 160, clusters of 1, 99456 bytes, dependent
// launch phase3 of source 3: (32, 1, 1) x 288, clusters of 8, 220288 bytes, dependent
