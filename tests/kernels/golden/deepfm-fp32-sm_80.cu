// ---- source 0
#include "math.cuh"
#include "tile.cuh"
struct phase0_cfg { typedef Fp16 T; static constexpr int R = 16, C = 1, NW = 8, BARRIER = 1, NS = 1, SB = 512; static constexpr bool STREAM = false; };
struct phase0_side : phase0_cfg { static constexpr int NW = 3, BARRIER = 3; };
KERNEL void __launch_bounds__(256, 1) phase0(const u8* weights, const int* counts, const int* request_of_row, u8* m0, u8* m1) {
typedef phase0_cfg Cfg;
DYNAMIC_SHARED(shared);
dependents_may_start();
Tile<Cfg> tile;
tile.open(shared_address(shared), 58496, counts[0]);
if (tile.is_idle()) {  return; }
[[maybe_unused]] const u32 constants = tile.base + 512;
[[maybe_unused]] const u32 requests = tile.base + 7168;
[[maybe_unused]] const u8* globals = weights + 6656;
[[maybe_unused]] const auto request = [&](int r) { return (int)load_shared_u32(requests + r * 4); };
const u8* stream = weights + tile.rank * 6656 + 6560;
const u32 value1 = tile.base + 7296;  // 400 columns
const u32 value2 = tile.base + 32896;  // 400 columns
const u32 value3 = tile.base + 7296;  // 400 columns
const u32 value4 = tile.base + 32896;  // 1 columns
const u32 value5 = tile.base + 7296;  // 16 columns
const u32 value6 = tile.base + 8320;  // 16 columns
const u32 value7 = tile.base + 9344;  // 1 columns
for (int i = threadIdx.x; i < 1640; i += Cfg::NW * 32) store_shared_u32(constants + i * 4, ((const u32*)weights)[i]);
tile.sync();
// contraction 1 x 429 -> 400
contract<Cfg, 1, 400, 429, false>(tile, (const float*)(globals + 0), [&](int r, int g, int k) -> float { float t1; if (k < 416) { const float t2 = load_matrix<Float32, 456>(m1, tile.row(r), k); t1 = t2; } else { const float t3 = load_matrix<Float32, 456>(m1, tile.row(r), (k + 26)); t1 = t3; } return t1; }, [&](int r, int g, int n, float v) { const float t1 = load_shared_f32(constants + (n * 4)); v += t1; const float t2 = relu(v); v = t2; store_shared_f32(float_address<Cfg::R>(value1, r, ((g * 400) + n)), v); });
tile.sync();
// contraction 1 x 400 -> 400
contract<Cfg, 1, 400, 400, false>(tile, (const float*)(globals + 686400), [&](int r, int g, int k) -> float { const float t1 = load_float<Cfg::R>(value1, r, k); return t1; }, [&](int r, int g, int n, float v) { const float t1 = load_shared_f32(constants + ((n * 4) + 1600)); v += t1; const float t2 = relu(v); v = t2; store_shared_f32(float_address<Cfg::R>(value2, r, ((g * 400) + n)), v); });
tile.sync();
// contraction 1 x 400 -> 400
contract<Cfg, 1, 400, 400, false>(tile, (const float*)(globals + 1326400), [&](int r, int g, int k) -> float { const float t1 = load_float<Cfg::R>(value2, r, k); return t1; }, [&](int r, int g, int n, float v) { const float t1 = load_shared_f32(constants + ((n * 4) + 3200)); v += t1; const float t2 = relu(v); v = t2; store_shared_f32(float_address<Cfg::R>(value3, r, ((g * 400) + n)), v); });
tile.sync();
// narrow linear 439 -> 1
narrow_linear<Cfg, 1>(tile, [&](int r, int part, float* sum) { narrow_part<Cfg, 1, 400, 440>(constants + 4800, part, sum, [&](int k, float* v) { const F32x4 t1 = floats_of<Cfg::R>(value3, r, k); const float t2 = t1.x; const float t3 = t1.y; const float t4 = t1.z; const float t5 = t1.w; const F32x4 t6 = floats_of<Cfg::R>(value3, r, (k + 4)); const float t7 = t6.x; const float t8 = t6.y; const float t9 = t6.z; const float t10 = t6.w; v[0] = t2; v[1] = t3; v[2] = t4; v[3] = t5; v[4] = t7; v[5] = t8; v[6] = t9; v[7] = t10; }, [&](int k) -> float { const float t1 = load_float<Cfg::R>(value3, r, k); return t1; }); narrow_part<Cfg, 1, 39, 440>(constants + 6400, part, sum, [&](int k, float* v) { const U32x4 t1 = load_global_u32x4(m1 + ((u64)tile.row(r) * 456 + (k + 416)) * 4); const float t2 = __uint_as_float(t1.x); const float t3 = __uint_as_float(t1.y); const float t4 = __uint_as_float(t1.z); const float t5 = __uint_as_float(t1.w); const U32x4 t6 = load_global_u32x4(m1 + ((u64)tile.row(r) * 456 + (k + 420)) * 4); const float t7 = __uint_as_float(t6.x); const float t8 = __uint_as_float(t6.y); const float t9 = __uint_as_float(t6.z); const float t10 = __uint_as_float(t6.w); v[0] = t2; v[1] = t3; v[2] = t4; v[3] = t5; v[4] = t7; v[5] = t8; v[6] = t9; v[7] = t10; }, [&](int k) -> float { const float t1 = load_matrix<Float32, 456>(m1, tile.row(r), (k + 416)); return t1; }); }, [&](int r, int n, float v) { v += (-0.24650269746780396f); v = v; store_shared_f32(float_address<Cfg::R>(value4, r, n), v); });
tile.sync();
// sum of 26 [1, 16]
reduce_eight<Cfg, 16, 26, 8, false>(tile, value5, 0.f, [&](int r, int c, int k, float* v) { const U32x4 t1 = load_global_u32x4(m1 + ((u64)tile.row(r) * 456 + ((k * 16) + c)) * 4); const float t2 = __uint_as_float(t1.x); const float t3 = __uint_as_float(t1.y); const float t4 = __uint_as_float(t1.z); const float t5 = __uint_as_float(t1.w); const U32x4 t6 = load_global_u32x4(m1 + ((u64)tile.row(r) * 456 + (((k * 16) + c) + 4)) * 4); const float t7 = __uint_as_float(t6.x); const float t8 = __uint_as_float(t6.y); const float t9 = __uint_as_float(t6.z); const float t10 = __uint_as_float(t6.w); v[0] = t2; v[1] = t3; v[2] = t4; v[3] = t5; v[4] = t7; v[5] = t8; v[6] = t9; v[7] = t10; }, [](float a, float b) { return a + b; }, [](float v) { return v; });
// sum of 26 [1, 16]
reduce_eight<Cfg, 16, 26, 8, false>(tile, value6, 0.f, [&](int r, int c, int k, float* v) { const U32x4 t1 = load_global_u32x4(m1 + ((u64)tile.row(r) * 456 + ((k * 16) + c)) * 4); const float t2 = __uint_as_float(t1.x); const float t3 = (t2 * t2); const float t4 = __uint_as_float(t1.y); const float t5 = (t4 * t4); const float t6 = __uint_as_float(t1.z); const float t7 = (t6 * t6); const float t8 = __uint_as_float(t1.w); const float t9 = (t8 * t8); const U32x4 t10 = load_global_u32x4(m1 + ((u64)tile.row(r) * 456 + (((k * 16) + c) + 4)) * 4); const float t11 = __uint_as_float(t10.x); const float t12 = (t11 * t11); const float t13 = __uint_as_float(t10.y); const float t14 = (t13 * t13); const float t15 = __uint_as_float(t10.z); const float t16 = (t15 * t15); const float t17 = __uint_as_float(t10.w); const float t18 = (t17 * t17); v[0] = t3; v[1] = t5; v[2] = t7; v[3] = t9; v[4] = t12; v[5] = t14; v[6] = t16; v[7] = t18; }, [](float a, float b) { return a + b; }, [](float v) { return v; });
tile.sync();
// sum of 16 [1]
reduce_float<Cfg, 1, 16, 16>(tile, value7, 0.f, [&](int r, int c, int k) -> float { const float t1 = load_float<Cfg::R>(value5, r, k); const float t2 = (t1 * t1); const float t3 = load_float<Cfg::R>(value6, r, k); const float t4 = (t2 - t3); return t4; }, [](float a, float b) { return a + b; }, [](float v) { return v; });
tile.sync();
// write deep.6
map_matrix<Cfg, Float32, 1, 1>(tile, m0, 0, [&](int r, int c) -> float { const float t1 = load_float<Cfg::R>(value4, r, 0); const float t2 = load_float<Cfg::R>(value7, r, 0); const float t3 = (t2 * 0.5f); const float t4 = (t1 + t3); const float t5 = sigmoid(t4); return t5; });
tile.close_consumer();
}
// launch phase0 of source 0: (4, 1, 1) x 256, clusters of 1, 58496 bytes
