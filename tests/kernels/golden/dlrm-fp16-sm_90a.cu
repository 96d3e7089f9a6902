// ---- source 0
#include "math.cuh"
#include "tile_linear.cuh"
struct phase0_cfg { typedef Fp16 T; static constexpr int R = 16, C = 8, NW = 8, BARRIER = 1, NS = 8, SB = 16384; static constexpr bool STREAM = true; };
struct phase0_side : phase0_cfg { static constexpr int NW = 3, BARRIER = 3; };
KERNEL void __launch_bounds__(288, 1) phase0(const u8* weights, const int* counts, const int* request_of_row, u8* m0, u8* m1) {
typedef phase0_cfg Cfg;
DYNAMIC_SHARED(shared);
dependents_may_start();
Tile<Cfg> tile;
tile.open(shared_address(shared), 48000, counts[0]);
if (tile.is_idle()) {  return; }
[[maybe_unused]] const u32 constants = tile.base + 512;
[[maybe_unused]] const u32 requests = tile.base + 1792;
[[maybe_unused]] const u8* globals = weights + 1550336;
[[maybe_unused]] const auto request = [&](int r) { return (int)load_shared_u32(requests + r * 4); };
const u8* stream = weights + tile.rank * 193792 + 1184;
const u32 value1 = tile.base + 26496;  // 13 columns
const u32 value2 = tile.base + 1920;  // 512 columns
const u32 value3 = tile.base + 18304;  // 256 columns
const u32 value4 = tile.base + 45952;  // 64 columns
const u32 value5 = tile.base + 34688;  // 351 columns
const u32 value6 = tile.base + 1920;  // 512 columns
const u32 value7 = tile.base + 18304;  // 512 columns
const u32 value8 = tile.base + 34688;  // 64 columns
const u32 value9 = tile.base + 1920;  // 1 columns
if (tile.warp == Cfg::NW) {
tile.meet_producer();
if (tile.lane == 0) {
mbarrier_arrive_expect(tile.constants_bar(), 1184);
bulk_copy_to_shared(constants, weights + tile.rank * 193792, 1184, tile.constants_bar());
}
Linear<Cfg, 512>::produce<1>(tile, stream);
prefetch_rows<6720>(tile, m1);
Linear<Cfg, 256>::produce<16>(tile, stream);
Linear<Cfg, 64>::produce<8>(tile, stream);
Linear<Cfg, 512>::produce<2>(tile, stream);
Linear<Cfg, 512>::produce<11>(tile, stream);
Linear<Cfg, 512>::produce<16>(tile, stream);
Linear<Cfg, 256>::produce<16>(tile, stream);
__syncwarp();
tile.close_producer();
return;
}
tile.arrive();
// load 13 columns
load_columns<Cfg, Float32, 13, 4, 1680, true, true>(tile, value1, m1, 1664, [&](int r) { return tile.row(r); });
tile.meet_consumer();
mbarrier_wait(tile.constants_bar(), 0);
// linear 13 -> 512
{ Linear<Cfg, 512>::Sums sums; Linear<Cfg, 512>::clear(sums); Linear<Cfg, 512>::accumulate<1>(tile, sums, value1 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 512>::finish<true>(tile, sums, value2 + 0 * Cfg::R * 16, constants + 0, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.gathered();
// linear 512 -> 256
{ Linear<Cfg, 256>::Sums sums; Linear<Cfg, 256>::clear(sums); Linear<Cfg, 256>::accumulate<16>(tile, sums, value2 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 256>::finish<true>(tile, sums, value3 + 0 * Cfg::R * 16, constants + 256, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.gathered();
// linear 256 -> 64
{ Linear<Cfg, 64>::Sums sums; Linear<Cfg, 64>::clear(sums); Linear<Cfg, 64>::accumulate<8>(tile, sums, value3 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 64>::finish<true>(tile, sums, value4 + 0 * Cfg::R * 16, constants + 384, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.gathered();
// pair dots 27 x 64
pair_dots<Cfg, 27, 64, false, false>(tile, [&](int r, int v, int part, u32* f) { if (v < 1) { put_words(f + 0, chunk_of<Cfg::R>(value4, r, 0 + (v - 0) * 64 + part * 16 + 0)); put_words(f + 4, chunk_of<Cfg::R>(value4, r, 0 + (v - 0) * 64 + part * 16 + 8)); } else if (v < 27) { put_words(f + 0, load_eight<Cfg::T, Float32>(m1 + ((u64)tile.row(r) * 1680 + 0 + (v - 1) * 64 + part * 16 + 0) * 4)); put_words(f + 4, load_eight<Cfg::T, Float32>(m1 + ((u64)tile.row(r) * 1680 + 0 + (v - 1) * 64 + part * 16 + 8) * 4)); } }, [&](int r, int i, int j, float dot) { const int c = i * (i - 1) / 2 + j; if (true) store_shared_u16(half_address<Cfg::R>(value5, r, c), (u16)Cfg::T::pack2(dot, 0.f)); }); zero_columns<Cfg, 351, 352>(tile, value5); 
tile.sync();
// linear 415 -> 512
{ Linear<Cfg, 512>::Sums sums; Linear<Cfg, 512>::clear(sums); Linear<Cfg, 512>::accumulate<2>(tile, sums, value4 + 0 * Cfg::R * 16, stream); Linear<Cfg, 512>::accumulate<11>(tile, sums, value5 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 512>::finish<true>(tile, sums, value6 + 0 * Cfg::R * 16, constants + 416, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.gathered();
// linear 512 -> 512
{ Linear<Cfg, 512>::Sums sums; Linear<Cfg, 512>::clear(sums); Linear<Cfg, 512>::accumulate<16>(tile, sums, value6 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 512>::finish<true>(tile, sums, value7 + 0 * Cfg::R * 16, constants + 672, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.gathered();
// linear 512 -> 256, then -> 1
{ Linear<Cfg, 256>::Sums sums; Linear<Cfg, 256>::clear(sums); Linear<Cfg, 256>::accumulate<16>(tile, sums, value7 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 256>::fold<1, 8>(tile, sums, value8, constants + 928, constants + 1056, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.gathered();
// sum of parts -> 1
narrow_linear<Cfg, 1>(tile, [&](int r, int part, float* sum) { folded_part<Cfg, 1, 64>(value8, r, part, sum); }, [&](int r, int n, float v) { v += 0.023490976542234421f; const float t1 = sigmoid(v); v = t1; store_shared_f32(float_address<Cfg::R>(value9, r, n), v); });
tile.sync();
// write top.6
map_matrix<Cfg, Float32, 1, 1>(tile, m0, 0, [&](int r, int c) -> float { const float t1 = load_float<Cfg::R>(value9, r, 0); return t1; });
tile.close_consumer();
}
// launch phase0 of source 0: (32, 1, 1) x 288, clusters of 8, 179072 bytes
