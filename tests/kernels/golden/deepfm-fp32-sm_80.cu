// ---- source 0
#include "math.cuh"
#include "tile_linear.cuh"
#include "tile_tf32.cuh"
struct phase0_cfg { typedef Tf32<3> T; static constexpr int R = 16, C = 1, NW = 8, BARRIER = 1, NS = 1, SB = 512; static constexpr bool STREAM = false; };
struct phase0_side : phase0_cfg { static constexpr int NW = 3, BARRIER = 3; };
KERNEL void __launch_bounds__(256, 1) phase0(const u8* weights, const int* counts, const int* request_of_row, u8* m0, u8* m1) {
typedef phase0_cfg Cfg;
DYNAMIC_SHARED(shared);
dependents_may_start();
Tile<Cfg> tile;
tile.open(shared_address(shared), 62592, counts[0]);
if (tile.is_idle()) {  return; }
[[maybe_unused]] const u32 constants = tile.base + 512;
[[maybe_unused]] const u32 requests = tile.base + 7168;
[[maybe_unused]] const u8* globals = weights + 1977856;
[[maybe_unused]] const auto request = [&](int r) { return (int)load_shared_u32(requests + r * 4); };
const u8* stream = weights + tile.rank * 1977856 + 6560;
const u32 value1 = tile.base + 7296;  // 455 columns
const u32 value5 = tile.base + 62080;  // 1 columns
const u32 value7 = tile.base + 36480;  // 16 columns
const u32 value8 = tile.base + 37504;  // 16 columns
const u32 value9 = tile.base + 62336;  // 1 columns
const u32 value2 = tile.base + 36480;  // 400 columns
const u32 value3 = tile.base + 7296;  // 400 columns
const u32 value4 = tile.base + 32896;  // 8 columns
const u32 value6 = tile.base + 7296;  // 1 columns
// load 455 columns
load_floats<Cfg, Float32, 455, 114, 456, true, true>(tile, value1, m0, 0, [&](int r) { return tile.row(r); });
for (int i = threadIdx.x; i < 1640; i += Cfg::NW * 32) store_shared_u32(constants + i * 4, ((const u32*)weights)[i]);
tile.sync();
// narrow linear 40 -> 1
narrow_linear<Cfg, 1>(tile, [&](int r, int part, float* sum) { narrow_part<Cfg, 1, 39, 40>(constants + 0, part, sum, [&](int k, float* v) { const F32x4 t1 = floats_of<Cfg::R>(value1, r, (k + 416)); const float t2 = t1.x; const float t3 = t1.y; const float t4 = t1.z; const float t5 = t1.w; const F32x4 t6 = floats_of<Cfg::R>(value1, r, (k + 420)); const float t7 = t6.x; const float t8 = t6.y; const float t9 = t6.z; const float t10 = t6.w; v[0] = t2; v[1] = t3; v[2] = t4; v[3] = t5; v[4] = t7; v[5] = t8; v[6] = t9; v[7] = t10; }, [&](int k) -> float { const float t1 = load_float<Cfg::R>(value1, r, (k + 416)); return t1; }); }, [&](int r, int n, float v) { store_shared_f32(float_address<Cfg::R>(value5, r, n), v); });
// sum of 26 [1, 16]
reduce_eight<Cfg, 16, 26, 8, false>(tile, value7, 0.f, [&](int r, int c, int k, float* v) { const F32x4 t1 = floats_of<Cfg::R>(value1, r, ((k * 16) + c)); const float t2 = t1.x; const float t3 = t1.y; const float t4 = t1.z; const float t5 = t1.w; const F32x4 t6 = floats_of<Cfg::R>(value1, r, (((k * 16) + c) + 4)); const float t7 = t6.x; const float t8 = t6.y; const float t9 = t6.z; const float t10 = t6.w; v[0] = t2; v[1] = t3; v[2] = t4; v[3] = t5; v[4] = t7; v[5] = t8; v[6] = t9; v[7] = t10; }, [](float a, float b) { return a + b; }, [](float v) { return v; });
// sum of 26 [1, 16]
reduce_eight<Cfg, 16, 26, 8, false>(tile, value8, 0.f, [&](int r, int c, int k, float* v) { const F32x4 t1 = floats_of<Cfg::R>(value1, r, ((k * 16) + c)); const float t2 = t1.x; const float t3 = (t2 * t2); const float t4 = t1.y; const float t5 = (t4 * t4); const float t6 = t1.z; const float t7 = (t6 * t6); const float t8 = t1.w; const float t9 = (t8 * t8); const F32x4 t10 = floats_of<Cfg::R>(value1, r, (((k * 16) + c) + 4)); const float t11 = t10.x; const float t12 = (t11 * t11); const float t13 = t10.y; const float t14 = (t13 * t13); const float t15 = t10.z; const float t16 = (t15 * t15); const float t17 = t10.w; const float t18 = (t17 * t17); v[0] = t3; v[1] = t5; v[2] = t7; v[3] = t9; v[4] = t12; v[5] = t14; v[6] = t16; v[7] = t18; }, [](float a, float b) { return a + b; }, [](float v) { return v; });
tile.sync();
// sum of 16 [1]
reduce_float<Cfg, 1, 16, 16>(tile, value9, 0.f, [&](int r, int c, int k) -> float { const float t1 = load_float<Cfg::R>(value7, r, k); const float t2 = (t1 * t1); const float t3 = load_float<Cfg::R>(value8, r, k); const float t4 = (t2 - t3); return t4; }, [](float a, float b) { return a + b; }, [](float v) { return v; });
tile.sync();
// linear 431 -> 400
{ Linear<Cfg, 400>::Sums sums; Linear<Cfg, 400>::clear(sums); Linear<Cfg, 400>::accumulate<26>(tile, sums, value1 + 0 * Cfg::R * 16, stream); Linear<Cfg, 400>::accumulate<1>(tile, sums, value1 + 110 * Cfg::R * 16, stream);  Linear<Cfg, 400>::finish<false>(tile, sums, value2 + 0 * Cfg::R * 16, constants + 160, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.sync();
// linear 400 -> 400
{ Linear<Cfg, 400>::Sums sums; Linear<Cfg, 400>::clear(sums); Linear<Cfg, 400>::accumulate<25>(tile, sums, value2 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 400>::finish<false>(tile, sums, value3 + 0 * Cfg::R * 16, constants + 1760, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.sync();
// linear 400 -> 400, then -> 1
{ Linear<Cfg, 400>::Sums sums; Linear<Cfg, 400>::clear(sums); Linear<Cfg, 400>::accumulate<25>(tile, sums, value3 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 400>::fold<1, 8>(tile, sums, value4, constants + 3360, constants + 4960, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.sync();
// sum of parts -> 1
narrow_linear<Cfg, 1>(tile, [&](int r, int part, float* sum) { folded_part<Cfg, 1, 8>(value4, r, part, sum); folded_part<Cfg, 1, 1>(value5, r, part, sum); }, [&](int r, int n, float v) { v += (-0.24650269746780396f); v = v; store_shared_f32(float_address<Cfg::R>(value6, r, n), v); });
tile.sync();
// write deep.6
map_matrix<Cfg, Float32, 1, 1>(tile, m1, 0, [&](int r, int c) -> float { const float t1 = load_float<Cfg::R>(value6, r, 0); const float t2 = load_float<Cfg::R>(value9, r, 0); const float t3 = (t2 * 0.5f); const float t4 = (t1 + t3); const float t5 = sigmoid(t4); return t5; });
tile.close_consumer();
}
// launch phase0 of source 0: (4, 1, 1) x 256, clusters of 1, 62592 bytes
