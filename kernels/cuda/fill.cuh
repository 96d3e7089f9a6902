// Rows that the host sends into slots of tables on the card, each to a place of its own: one launch for many.
#pragma once
#include "ptx.cuh"

// A row's move, as the host writes it: 16 bytes.
struct RowMove {
  u32 to_low, to_high;  // byte in the tables
  u32 from, bytes;      // among the rows that were sent; both and `to` are multiples of 2
};

// Each warp moves one row after the other, in the largest pieces that lie so. What is read is the host's memory, which it writes
// anew between launches: never through the read-only path.
DEVICE void fill_rows(u8* tables, const RowMove* moves, const u8* rows, int n) {
  const int lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32);
  for (int i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; i < n; i += warps) {
    const U32x4 move = load_global_u32x4(moves + i);
    u8* to = tables + ((u64)move.y << 32 | move.x);
    const u8* from = rows + move.z;
    const u32 unlike = move.x | move.z | move.w;
    if (unlike % 16 == 0) {
      for (u32 at = 16 * lane; at < move.w; at += 16 * 32) store_global_u32x4(to + at, load_global_u32x4(from + at));
    } else if (unlike % 4 == 0) {
      for (u32 at = 4 * lane; at < move.w; at += 4 * 32) *(u32*)(to + at) = *(const volatile u32*)(from + at);
    } else {
      for (u32 at = 2 * lane; at < move.w; at += 2 * 32) *(u16*)(to + at) = *(const volatile u16*)(from + at);
    }
  }
}
