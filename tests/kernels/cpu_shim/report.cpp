// What a failed launch says: who waits for what, where.

#include "engine.h"

namespace tb {
namespace {
std::string format(const char* text, ...) {
  char buffer[512];
  va_list list;
  va_start(list, text);
  vsnprintf(buffer, sizeof buffer, text, list);
  va_end(list);
  return buffer;
}

std::string state_of(const Fiber& f) {
  const Block& block = *f.warp->block;
  const Wait& w = f.wait;
  std::string said = format("%s, %s", w.what, place(w.at).c_str());
  if (w.address) {
    const u32 offset = w.address & 0xffffff;
    const Mbarrier& b = block.mbarriers[block.mbarrier_at[offset / 8] - 1u];
    said += format(": byte %u, parity %u; it is in phase %u, %u of %u arrivals and %d bytes missing", offset - LOW, w.parity, b.phase, b.pending, b.expected, b.transactions);
  } else if (w.id >= 0 || !strcmp(w.what, "__syncthreads")) {
    const NamedBarrier& b = block.named[w.id < 0 ? 0 : w.id];
    said += format(": barrier %d has %u of %u threads", w.id < 0 ? 0 : w.id, b.arrived, b.expected);
  } else if (!strcmp(w.what, "cluster_wait")) {
    said += format(": %u of %u threads have arrived", block.cluster->arrived, block.cluster->live);
  }
  return said;
}

std::string lanes_name(u32 lanes) {
  if (lanes == ~0u) return "";
  if (!(lanes & (lanes - 1))) return format(" lane %d", __builtin_ctz(lanes));
  return format(" lanes %08x", lanes);
}
}  // namespace

std::string place(At at) {
  const char* slash = strrchr(at.file, '/');
  return format("%s:%d", slash ? slash + 1 : at.file, at.line);
}

std::string name_of(const Fiber& f) {
  return format("block (%u,%u,%u) rank %u warp %u lane %u", f.block.x, f.block.y, f.block.z, f.rank, f.index / 32, f.lane);
}

std::string deadlock_report(const std::vector<Cluster*>& clusters) {
  std::string said = "deadlock: nothing can run";
  int n_lines = 0;
  for (const Cluster* cluster : clusters)
    for (const Block* block : cluster->blocks) {
      // Lanes and warps of a block that wait for the same share a line.
      std::map<std::string, std::map<u32, u32>> waits;
      for (const Fiber* f : block->fibers)
        if (!f->done) waits[state_of(*f)][f->index / 32] |= 1u << f->lane;
      for (const auto& [what, warps] : waits) {
        if (++n_lines > 40) return said + "\n  ...";
        said += format("\n  block (%u,%u,%u) rank %u:", block->index.x, block->index.y, block->index.z, block->rank);
        for (const auto& [warp, lanes] : warps) said += format(" warp %u%s,", warp, lanes_name(lanes).c_str());
        said.back() = ' ';
        said += "waits at " + what;
      }
    }
  return said;
}
}  // namespace tb
