// wgmma.cuh for the CPU (TB_CPU): the same names, on the engine behind shim.h.
//
// wgmma computes at once and a wait only joins the warp, so a slot that is freed too early shows by
// the copy that then lands in it, with some seeds. A tensor map holds, in place of the driver's encoding,
// address, rows, columns, row_bytes, box_rows, box_columns, swizzle_bytes and element_bytes.
#pragma once

struct alignas(64) TensorMap { u64 opaque[16]; };

// Zeroed memory that copies still to be carried out read from; the process keeps it.
inline u8* tb_kept(u32 bytes) { return new u8[bytes](); }
inline u32 tb_swizzled(u32 a, u32 swizzle_bytes) { return swizzle_bytes ? a ^ (a >> 7 & (swizzle_bytes / 16 - 1)) << 4 : a; }

inline void prefetch_tensor_map(const void*) {}
inline void tensor_copy_to_shared(u32 to, const void* map, int x, int y, u32 bar, TB_AT) {
  const u64* m = ((const TensorMap*)map)->opaque;
  const u8* from = (const u8*)m[0];
  const u32 box_rows = (u32)m[4], box_columns = (u32)m[5], swizzle = (u32)m[6], item = (u32)m[7];
  if (to % 1024 && to % (8 * (swizzle ? swizzle : 16))) tb::fail_at(at, "a tensor copy's box is not aligned to its swizzle's pattern");
  if (swizzle && box_columns * item > swizzle) tb::fail_at(at, "a box is wider than its swizzle");
  u8* box = tb_kept(box_rows * box_columns * item);
  for (u32 r = 0; r < box_rows; r++)
    for (u32 c = 0; c < box_columns; c++)
      if (y + r < m[1] && x + c < m[2]) memcpy(box + tb_swizzled((r * box_columns + c) * item, swizzle), from + (y + r) * m[3] + (x + c) * item, item);
  tb::bulk_to_shared(to, box, box_rows * box_columns * item, bar, at);
}
inline void fence_async_global() {}
inline void store_cluster_async(u32 remote, float a, float b, float c, float d, u32 remote_bar, TB_AT) {
  const float v[4] = {a, b, c, d};
  u8* kept = tb_kept(16);
  memcpy(kept, v, 16);
  tb::bulk_to_shared(remote, kept, 16, remote_bar, at);
}
template <int N> inline void registers_grow() {}
template <int N> inline void registers_shrink() {}

// The address's 16 bytes in the low half, as kernels add to it; above it, chunk_bytes, or 0 for rows that are swizzled.
inline u64 wgmma_descriptor(u32 a) { return a >> 4; }
inline u64 wgmma_chunk_descriptor(u32 a, u32 chunk_bytes) { return a >> 4 | (u64)chunk_bytes << 32; }
inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int N> inline void wgmma_wait(TB_AT) { tb::sync_warp(~0u, at); }
inline void wgmma_settle(float*) {}
template <class T> inline void tb_wgmma_row(float* to, u64 descriptor, u32 row, tb::At at) {
  const u32 address = (u32)(descriptor << 4), chunk_bytes = (u32)(descriptor >> 32);
  for (u32 half = 0; half < 2; half++) {
    const u32 from = chunk_bytes ? address + half * chunk_bytes + row * 16 : tb_swizzled(address + row * 128 + half * 16, 128);
    const U32x4 v = tb::load<U32x4>(from, at);
    const u32 words[4] = {v.x, v.y, v.z, v.w};
    for (u32 i = 0; i < 8; i++) to[half * 8 + i] = T::unpack((u16)(words[i / 2] >> (i % 2 * 16)));
  }
}
template <class T, int N> inline void wgmma(float* d, u64 a, u64 b, TB_AT) {
  const u32 lane = tb::self->lane, warp = tb::self->thread.x / 32 % 4;
  float rows[2][16], column[16];
  for (u32 h = 0; h < 2; h++) tb_wgmma_row<T>(rows[h], a, warp * 16 + lane / 4 + h * 8, at);
  for (u32 j = 0; j < N / 8; j++)
    for (u32 e = 0; e < 2; e++) {
      tb_wgmma_row<T>(column, b, j * 8 + lane % 4 * 2 + e, at);
      for (u32 h = 0; h < 2; h++)
        for (u32 k = 0; k < 16; k++) d[j * 4 + h * 2 + e] += rows[h][k] * column[k];
    }
}
