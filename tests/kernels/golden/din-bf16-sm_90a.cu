// ---- source 0
#include "math.cuh"
#include "target_attention.cuh"
struct Config {
  typedef Bf16 T;
  typedef Relu Act;
  static constexpr int D = 64, H1 = 80, H2 = 40;
  static constexpr int STEPS = 100, WARPS = 8;
  static constexpr int WARPS_PER_ROW = 8, BARRIER = 3;
  static constexpr bool SOFTMAX = true;
  static constexpr bool AHEAD = true;
  static constexpr float MASKED = -1.0000000150474662e+30f;
};
struct Test { static DEVICE bool of(float x) { return [&] { const float t1 = x; const int t2 = (0.5f < t1); return t2; }(); } };
static_assert(TargetAttention<Config>::SHARED_BYTES + 16 == 43392, "as launched");
KERNEL void __launch_bounds__(256, 1) phase0(const int* counts, const u8* weights, const int* requests, const u8* q, const u8* k, const u8* m, u8* y) {
  DYNAMIC_SHARED(shared);
  target_attention_rows<Config>(counts, weights, shared,
      MatrixVector<Bf16, Float32, 6824, true, false>{{q, requests}},
      MatrixSteps<Bf16, Float32, 6824, 64, true, false>{{k, requests}},
      MatrixMask<Float32, 6824, Test, false>{{m, requests}},
      MatrixSink<Bf16, 64>{y});
}
// ---- source 1
#include "math.cuh"
#include "tile_linear.cuh"
struct phase1_cfg { typedef Bf16 T; static constexpr int R = 16, C = 8, NW = 8, BARRIER = 1, NS = 8, SB = 16384; static constexpr bool STREAM = true; };
struct phase1_side : phase1_cfg { static constexpr int NW = 3, BARRIER = 3; };
KERNEL void __launch_bounds__(288, 1) phase1(const u8* weights, const int* counts, const int* request_of_row, u8* m0, u8* m1, u8* m2) {
typedef phase1_cfg Cfg;
DYNAMIC_SHARED(shared);
dependents_may_start();
Tile<Cfg> tile;
tile.open(shared_address(shared), 25472, counts[0]);
if (tile.is_idle()) { wait_for_predecessor(); return; }
[[maybe_unused]] const u32 constants = tile.base + 512;
[[maybe_unused]] const u32 requests = tile.base + 768;
[[maybe_unused]] const u8* globals = weights + 256000;
[[maybe_unused]] const auto request = [&](int r) { return (int)load_shared_u32(requests + r * 4); };
const u8* stream = weights + tile.rank * 32000 + 256;
const u32 value1 = tile.base + 23424;  // 64 columns
const u32 value2 = tile.base + 896;  // 320 columns
const u32 value3 = tile.base + 11136;  // 200 columns
const u32 value4 = tile.base + 19328;  // 64 columns
const u32 value5 = tile.base + 896;  // 1 columns
if (tile.warp == Cfg::NW) {
tile.meet_producer();
if (tile.lane == 0) {
mbarrier_arrive_expect(tile.constants_bar(), 256);
bulk_copy_to_shared(constants, weights + tile.rank * 32000, 256, tile.constants_bar());
}
Linear<Cfg, 200>::produce<10>(tile, stream);
Linear<Cfg, 200>::produce<2>(tile, stream);
Linear<Cfg, 80>::produce<7>(tile, stream);
__syncwarp();
tile.close_producer();
return;
}
tile.arrive();
wait_for_predecessor();
// load 64 columns
load_columns<Cfg, Bf16, 64, 8, 64, true, false>(tile, value1, m0, 0, [&](int r) { return tile.row(r); });
// load 320 columns
load_columns<Cfg, Float32, 320, 40, 6824, true, false>(tile, value2, m2, 6400, [&](int r) { return tile.row(r); });
tile.meet_consumer();
mbarrier_wait(tile.constants_bar(), 0);
// linear 384 -> 200
{ Linear<Cfg, 200>::Sums sums; Linear<Cfg, 200>::clear(sums); Linear<Cfg, 200>::accumulate<10>(tile, sums, value2 + 0 * Cfg::R * 16, stream); Linear<Cfg, 200>::accumulate<2>(tile, sums, value1 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 200>::finish<true>(tile, sums, value3 + 0 * Cfg::R * 16, constants + 0, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.gathered();
// linear 200 -> 80, then -> 1
{ Linear<Cfg, 80>::Sums sums; Linear<Cfg, 80>::clear(sums); Linear<Cfg, 80>::accumulate<7>(tile, sums, value3 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 80>::fold<1, 8>(tile, sums, value4, constants + 128, constants + 192, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.gathered();
// sum of parts -> 1
narrow_linear<Cfg, 1>(tile, [&](int r, int part, float* sum) { folded_part<Cfg, 1, 64>(value4, r, part, sum); }, [&](int r, int n, float v) { v += 0.090657621622085571f; const float t1 = sigmoid(v); v = t1; store_shared_f32(float_address<Cfg::R>(value5, r, n), v); });
tile.sync();
// write top.4
map_matrix<Cfg, Float32, 1, 1>(tile, m1, 0, [&](int r, int c) -> float { const float t1 = load_float<Cfg::R>(value5, r, 0); return t1; });
tile.close_consumer();
}
// launch phase0 of source 0: (64, 1, 1) x 256, clusters of 1, 43392 bytes
// launch phase1 of source 1: (32, 1, 1) x 288, clusters of 8, 156544 bytes, dependent
