// Shared memory by address, of the block itself and of its cluster.
#include "engine.h"

namespace tb {
void poison(u8* p, size_t bytes) { memset(p, POISON, bytes); }

// The block of the running thread's cluster that an address belongs to.
Block* block_of(u32 address, const char* what, At at) {
  Cluster& cluster = *running()->warp->block->cluster;
  const u32 tag = address >> 24;
  if (!tag || tag > cluster.blocks.size()) fail("%s: %s at %#x, which is no address of shared memory, at %s", name_of(*running()).c_str(), what, address, place(at).c_str());
  return cluster.blocks[tag - 1];
}

u8* reach(u32 address, u32 bytes, u32 alignment, bool remote, const char* what, At at) {
  Fiber& me = *running();
  Block* block = block_of(address, what, at);
  if (!remote && block != me.warp->block) fail("%s: %s takes an address of its own block, but %#x is rank %u's, at %s", name_of(me).c_str(), what, address, block->rank, place(at).c_str());
  if (!block->live) fail("%s: %s reaches rank %u, whose threads have ended, at %s", name_of(me).c_str(), what, block->rank, place(at).c_str());
  const u32 offset = address & 0xffffff;
  if (offset < LOW || (u64)offset + bytes > block->shared_end) fail("%s: %s of %u bytes out of bounds, at byte %d of %u, at %s", name_of(me).c_str(), what, bytes, (int)offset - (int)LOW, block->shared_end - LOW, place(at).c_str());
  if (address & (alignment - 1)) fail("%s: %s at byte %u is not aligned to %u, at %s", name_of(me).c_str(), what, offset - LOW, alignment, place(at).c_str());
  return block->arena + offset;
}

static const char* access_name(Access access) { return access == Access::READ ? "a read" : access == Access::WRITE ? "a write" : "an atomic"; }

u8* check_shared(u32 address, u32 bytes, Access access, At at) {
  if (fuel <= 0 || (races_on && --fuel <= 0)) turn_over();
  u8* p = reach(address, bytes, bytes, false, access_name(access), at);
  races_touch(*running(), *running()->warp->block, address & 0xffffff, bytes, access == Access::WRITE, at);
  return p;
}
u8* check_cluster(u32 address, u32 bytes, Access access, At at) {
  maybe_pause();
  u8* p = reach(address, bytes, bytes, true, access_name(access), at);
  races_touch(*running(), *block_of(address, access_name(access), at), address & 0xffffff, bytes, access == Access::WRITE, at);
  return p;
}

u32 address_of(const void* p, At at) {
  Fiber& me = *running();
  const Block& block = *me.warp->block;
  if ((const u8*)p < block.arena + LOW || (const u8*)p > block.arena + block.shared_end) fail("%s: shared_address of what is not in its block's shared memory, at %s", name_of(me).c_str(), place(at).c_str());
  return me.tag + (u32)((const u8*)p - block.arena);
}

u32 map_address(u32 address, u32 rank, At at) {
  const Fiber& me = *running();
  const size_t n = me.warp->block->cluster->blocks.size();
  if (rank >= n) fail("%s: map_to_rank(%u) in a cluster of %zu, at %s", name_of(me).c_str(), rank, n, place(at).c_str());
  return (address & 0xffffff) | (rank + 1) << 24;
}
}  // namespace tb
