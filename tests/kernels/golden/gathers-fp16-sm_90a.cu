// ---- source 0
#include "math.cuh"
#include "tile_linear.cuh"
#include "gather.cuh"
struct phase0_cfg { typedef Fp16 T; static constexpr int R = 16, C = 1, NW = 8, BARRIER = 1, NS = 8, SB = 15360; static constexpr bool STREAM = true; };
struct phase0_side : phase0_cfg { static constexpr int NW = 3, BARRIER = 3; };
KERNEL void __launch_bounds__(288, 1) phase0(const u8* weights, const int* counts, const int* request_of_row, u8* m0, u8* m1, u8* m2, u8* m3) {
typedef phase0_cfg Cfg;
DYNAMIC_SHARED(shared);
dependents_may_start();
Tile<Cfg> tile;
tile.open(shared_address(shared), 2560, counts[0]);
if (tile.is_idle()) {  return; }
[[maybe_unused]] const u32 constants = tile.base + 512;
[[maybe_unused]] const u32 requests = tile.base + 640;
[[maybe_unused]] const u8* globals = weights + 1792;
[[maybe_unused]] const auto request = [&](int r) { return (int)load_shared_u32(requests + r * 4); };
const u8* stream = weights + tile.rank * 1792 + 96;
const u32 value1 = tile.base + 768;  // 28 columns
const u32 value2 = tile.base + 1792;  // 24 columns
if (tile.warp == Cfg::NW) {
tile.meet_producer();
if (tile.lane == 0) {
mbarrier_arrive_expect(tile.constants_bar(), 96);
bulk_copy_to_shared(constants, weights + tile.rank * 1792, 96, tile.constants_bar());
}
Linear<Cfg, 24>::produce<1>(tile, stream);
__syncwarp();
tile.close_producer();
return;
}
tile.arrive();
gather_columns<Cfg, Float32, Fp16, 0, 5, 32, 96, 32, 60>(tile, m0, m2, m3, globals + 0);
place_columns<Cfg, Float32, 2, 32, 96>(tile, m0, 26, m2, 0);
tile.sync();
// load 28 columns
load_columns<Cfg, Float32, 28, 4, 32, true, false>(tile, value1, m0, 0, [&](int r) { return tile.row(r); });
tile.meet_consumer();
mbarrier_wait(tile.constants_bar(), 0);
// linear 28 -> 24
{ Linear<Cfg, 24>::Sums sums; Linear<Cfg, 24>::clear(sums); Linear<Cfg, 24>::accumulate<1>(tile, sums, value1 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 24>::finish<true>(tile, sums, value2 + 0 * Cfg::R * 16, constants + 0, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.sync();
// write 24 columns
store_columns<Cfg, 24, 24>(tile, m1, 0, value2 + 0 * Cfg::R * 16);
tile.close_consumer();
}
// ---- source 1
#include "math.cuh"
#include "tile_linear.cuh"
#include "gather.cuh"
struct phase1_cfg { typedef Fp16 T; static constexpr int R = 16, C = 1, NW = 8, BARRIER = 1, NS = 8, SB = 15360; static constexpr bool STREAM = true; };
struct phase1_side : phase1_cfg { static constexpr int NW = 3, BARRIER = 3; };
KERNEL void __launch_bounds__(288, 1) phase1(const u8* weights, const int* counts, const int* request_of_row, u8* m0, u8* m1, u8* m2, u8* m3, u8* m4) {
typedef phase1_cfg Cfg;
DYNAMIC_SHARED(shared);
dependents_may_start();
Tile<Cfg> tile;
tile.open(shared_address(shared), 5120, counts[0]);
if (tile.is_idle()) { wait_for_predecessor(); return; }
[[maybe_unused]] const u32 constants = tile.base + 512;
[[maybe_unused]] const u32 requests = tile.base + 896;
[[maybe_unused]] const u8* globals = weights + 5120;
[[maybe_unused]] const auto request = [&](int r) { return (int)load_shared_u32(requests + r * 4); };
const u8* stream = weights + tile.rank * 5120 + 304;
const u32 value1 = tile.base + 1024;  // 75 columns
const u32 value2 = tile.base + 4096;  // 16 columns
const u32 value3 = tile.base + 1024;  // 2 columns
if (tile.warp == Cfg::NW) {
tile.meet_producer();
if (tile.lane == 0) {
mbarrier_arrive_expect(tile.constants_bar(), 304);
bulk_copy_to_shared(constants, weights + tile.rank * 5120, 304, tile.constants_bar());
}
Linear<Cfg, 24>::produce<3>(tile, stream);
__syncwarp();
tile.close_producer();
return;
}
tile.arrive();
wait_for_predecessor();
gather_columns<Cfg, Float32, Fp16, 6, 5, 80, 160, 32, 92>(tile, m0, m3, m4, globals + 0);
place_columns<Cfg, Float32, 3, 80, 160>(tile, m0, 72, m3, 0);
tile.sync();
for (int i = threadIdx.x; i < Cfg::R; i += Cfg::NW * 32) store_shared_u32(requests + i * 4, (u32)request_of_row[tile.row(i)]);
tile.sync();
// load 75 columns
load_columns<Cfg, Float32, 75, 12, 80, true, false>(tile, value1, m0, 0, [&](int r) { return tile.row(r); });
tile.meet_consumer();
mbarrier_wait(tile.constants_bar(), 0);
// linear 75 -> 24, then -> 2
{ Linear<Cfg, 24>::Sums sums; Linear<Cfg, 24>::clear(sums); Linear<Cfg, 24>::accumulate<3>(tile, sums, value1 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 24>::fold<2, 16>(tile, sums, value2, constants + 0, constants + 96, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); const float t2 = load_matrix<Fp16, 24>(m2, request(r), c); const float t3 = (t1 * t2); v0 = t3; } { const float t1 = relu(v1); const float t2 = load_matrix<Fp16, 24>(m2, request(r), (c + 1)); const float t3 = (t1 * t2); v1 = t3; } }); }
tile.sync();
// sum of parts -> 2
narrow_linear<Cfg, 2>(tile, [&](int r, int part, float* sum) { folded_part<Cfg, 2, 16>(value2, r, part, sum); }, [&](int r, int n, float v) { const float t1 = load_shared_f32(constants + ((n * 4) + 288)); v += t1; v = v; store_shared_f32(float_address<Cfg::R>(value3, r, n), v); });
tile.sync();
// write candidate
map_matrix<Cfg, Float32, 2, 2>(tile, m1, 0, [&](int r, int c) -> float { const float t1 = load_float<Cfg::R>(value3, r, c); return t1; });
tile.close_consumer();
}
// launch phase0 of source 0: (1, 1, 1) x 288, clusters of 1, 125440 bytes
// launch phase1 of source 1: (4, 1, 1) x 288, clusters of 1, 128000 bytes, dependent
