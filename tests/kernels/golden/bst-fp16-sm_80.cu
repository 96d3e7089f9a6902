// ---- source 0
#include "math.cuh"
#include "encoder.cuh"
struct Config {
  struct Slope { static constexpr float VALUE = 0.01f; };
  typedef Fp16 T;
  typedef LeakyRelu<Slope> Act;
  static constexpr int D = 64, HEADS = 4;
  static constexpr int HEAD_TILES = 2, F = 256;
  static constexpr int STEPS = 64, MT = 1, SPLIT = 1;
  static constexpr int WARPS = 4, BARRIER = 3;
  static constexpr int RESIDENT = 2;
  static constexpr float EPSILON_1 = 1e-05f, EPSILON_2 = 1e-05f;
};
static_assert(EncoderBlock<Config>::SHARED_BYTES == 117504, "as launched");
KERNEL void __launch_bounds__(128, 1) phase0(const int* counts, const u8* weights, const int* requests, const u8* x, u8* y) {
  DYNAMIC_SHARED(shared);
  encoder_rows<Config>(counts, weights, shared,
      MatrixSteps<Fp16, Float32, 4608, 64, true, false>{{x, requests}},
      MatrixStepsSink<4096, 64, true>{y});
}
// ---- source 1
#include "math.cuh"
#include "tile_linear.cuh"
struct phase1_cfg { typedef Fp16 T; static constexpr int R = 16, C = 1, NW = 8, BARRIER = 1, NS = 1, SB = 512; static constexpr bool STREAM = false; };
struct phase1_side : phase1_cfg { static constexpr int NW = 3, BARRIER = 3; };
KERNEL void __launch_bounds__(256, 1) phase1(const u8* weights, const int* counts, const int* request_of_row, u8* m0, u8* m1) {
typedef phase1_cfg Cfg;
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
// copy 512 columns
copy_columns<Cfg, Float32, 512, 4608, 512>(tile, m0, 0, m1, 4096, [&](int r) { return tile.row(r); });
tile.close_consumer();
}
// ---- source 2
#include "wide_mma.cuh"
using Tile = WideMmaTile<Fp16, 64, 32, 6>;
static_assert(Tile::SHARED_BYTES == 73728, "as launched");
struct Layer {
  static constexpr int N = 1024, GROUPS = 1;
  static constexpr int K_TILES = 72;
  static constexpr int N_PADDED = 1024, BIAS_COLUMNS = 1024;
  static constexpr size_t BIAS_OFFSET = 9469952;
};
struct Inputs {
  const u16* x0;
  int ld_x0;
  const u16* x1;
  int ld_x1;
  DEVICE WideRow<u16> input(int k_tile, int group) const {
    if (k_tile < 64) { const int k = (k_tile - 0) * 64; return {x0 + k, ld_x0, 4096 - k}; }
    const int k = (k_tile - 64) * 64; return {x1 + k, ld_x1, 512 - k};
  }
  DEVICE const u16* staged(int i) const { return nullptr; }
  DEVICE int staged_ld(int i) const { return 0; }
};
KERNEL void __launch_bounds__(128, 1) phase2(
    const int* counts,
    const u8* weights,
    u16* y,
    int ld_y,
    const u16* x0,
    int ld_x0,
    const u16* x1,
    int ld_x1) {
  const Inputs inputs{x0, ld_x0, x1, ld_x1};
  wide_mma_linear<Tile, Layer>(counts, weights, y, ld_y, inputs, Activate<Relu>{});
}
// ---- source 3
#include "math.cuh"
#include "tile_linear.cuh"
struct phase3_cfg { typedef Fp16 T; static constexpr int R = 16, C = 1, NW = 8, BARRIER = 1, NS = 1, SB = 512; static constexpr bool STREAM = false; };
struct phase3_side : phase3_cfg { static constexpr int NW = 3, BARRIER = 3; };
KERNEL void __launch_bounds__(256, 1) phase3(const u8* weights, const int* counts, const int* request_of_row, u8* m0, u8* m1) {
typedef phase3_cfg Cfg;
DYNAMIC_SHARED(shared);
dependents_may_start();
Tile<Cfg> tile;
tile.open(shared_address(shared), 53888, counts[0]);
if (tile.is_idle()) {  return; }
[[maybe_unused]] const u32 constants = tile.base + 512;
[[maybe_unused]] const u32 requests = tile.base + 4608;
[[maybe_unused]] const u8* globals = weights + 1314816;
[[maybe_unused]] const auto request = [&](int r) { return (int)load_shared_u32(requests + r * 4); };
const u8* stream = weights + tile.rank * 1314816 + 4096;
const u32 value1 = tile.base + 4736;  // 1024 columns
const u32 value2 = tile.base + 37504;  // 512 columns
const u32 value3 = tile.base + 4736;  // 8 columns
const u32 value4 = tile.base + 5248;  // 1 columns
// load 1024 columns
load_columns<Cfg, Fp16, 1024, 128, 1024, true, false>(tile, value1, m0, 0, [&](int r) { return tile.row(r); });
for (int i = threadIdx.x; i < 1024; i += Cfg::NW * 32) store_shared_u32(constants + i * 4, ((const u32*)weights)[i]);
tile.sync();
// linear 1024 -> 512
{ Linear<Cfg, 512>::Sums sums; Linear<Cfg, 512>::clear(sums); Linear<Cfg, 512>::accumulate<32>(tile, sums, value1 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 512>::finish<true>(tile, sums, value2 + 0 * Cfg::R * 16, constants + 0, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.sync();
// linear 512 -> 256, then -> 1
{ Linear<Cfg, 256>::Sums sums; Linear<Cfg, 256>::clear(sums); Linear<Cfg, 256>::accumulate<16>(tile, sums, value2 + 0 * Cfg::R * 16, stream);  Linear<Cfg, 256>::fold<1, 8>(tile, sums, value3, constants + 2048, constants + 3072, [&](int r, int c, float& v0, float& v1) { { const float t1 = relu(v0); v0 = t1; } { const float t1 = relu(v1); v1 = t1; } }); }
tile.sync();
// sum of parts -> 1
narrow_linear<Cfg, 1>(tile, [&](int r, int part, float* sum) { folded_part<Cfg, 1, 8>(value3, r, part, sum); }, [&](int r, int n, float v) { v += (-0.059855110943317413f); const float t1 = sigmoid(v); v = t1; store_shared_f32(float_address<Cfg::R>(value4, r, n), v); });
tile.sync();
// write top.6
map_matrix<Cfg, Float32, 1, 1>(tile, m1, 0, [&](int r, int c) -> float { const float t1 = load_float<Cfg::R>(value4, r, 0); return t1; });
tile.close_consumer();
}
// launch phase0 of source 0: (64, 1, 1) x 128, clusters of 1, 117504 bytes
// launch phase1 of source 1: (4, 1, 1) x 256, clusters of 1, 640 bytes
// launch phase2 of source 2: (32, 1, 1) x 128, clusters of 1, 73728 bytes
// launch phase3 of source 3: (4, 1, 1) x 256, clusters of 1, 53888 bytes
