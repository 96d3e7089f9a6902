// Races: accesses to shared memory that no barrier orders, by vector clocks.
//
// After FastTrack (Flanagan and Freund, PLDI 2009). A thread knows, of each other one, up to which of
// its times everything has happened before; __syncwarp, barriers, mbarriers and copies hand that
// knowledge on, shuffles, mma and ldmatrix do not. A copy counts as done by its mbarrier, whose times
// are its phases. A second clock says what a proxy fence has shown to the engine that copies.
// Accesses through plain pointers are not seen.
#include "engine.h"

namespace tb {
namespace {
constexpr u32 PER_BLOCK = 64;  // mbarriers that have times

struct Epoch { u32 who = 0, time = 0; At at{"", 0}; };
struct Granule {  // two bytes
  Epoch write, read;
  bool fenced_write = true;  // by the engine that copies, or before the launch
  std::vector<Epoch> reads;  // when several are not ordered
};

u32 time_in(const Known& known, u32 who) { return known && who < known->size() ? (*known)[who] : 0; }

// Lanes of a warp join the same things one after the other: the last results are kept.
struct Joined { Known a, b, both; };
Joined cache[64];

Known join(const Known& a, const Known& b) {
  if (!b || b == a) return a;
  if (!a) return b;
  Joined& slot = cache[((u64)a.get() / 64 * 31 + (u64)b.get() / 64) % 64];
  if (slot.a == a && slot.b == b) return slot.both;
  auto both = std::make_shared<std::vector<u32>>(*a);
  if (both->size() < b->size()) both->resize(b->size());
  for (size_t i = 0; i < b->size(); i++)
    if ((*b)[i] > (*both)[i]) (*both)[i] = (*b)[i];
  slot = {a, b, both};
  return both;
}

u32 capacity(const Cluster& c) { return (u32)c.blocks.size() * (c.blocks[0]->n_threads + PER_BLOCK); }
u32 id_of(const Fiber& f) { return f.rank * f.warp->block->n_threads + f.index; }
u32 id_of(const Block& block, const Mbarrier& b) {
  const size_t i = (size_t)(&b - block.mbarriers.data());
  if (i >= PER_BLOCK) fail("races are not looked for with more than %u mbarriers in a block", PER_BLOCK);
  const Cluster& c = *block.cluster;
  return (u32)c.blocks.size() * block.n_threads + block.rank * PER_BLOCK + (u32)i;
}

Known with_times(const Cluster& c, const Known& known, std::initializer_list<const Fiber*> fibers, const Fiber* const* more, u32 mask) {
  auto all = known ? std::make_shared<std::vector<u32>>(*known) : std::make_shared<std::vector<u32>>();
  all->resize(capacity(c));
  for (const Fiber* f : fibers) (*all)[id_of(*f)] = f->time;
  for (; mask; mask &= mask - 1) {
    const Fiber* f = more[__builtin_ctz(mask)];
    (*all)[id_of(*f)] = f->time;
  }
  return all;
}
Known all_known(const Fiber& f) { return with_times(*f.warp->block->cluster, f.known, {&f}, nullptr, 0); }

bool before(const Epoch& e, const Fiber& f) { return !e.time || (e.who == id_of(f) ? true : time_in(f.known, e.who) >= e.time); }

std::string who_is(const Cluster& c, u32 who) {
  const u32 n = c.blocks[0]->n_threads, n_threads = (u32)c.blocks.size() * n;
  if (who < n_threads) return name_of(*c.blocks[who / n]->fibers[who % n]);
  return "a copy to rank " + std::to_string((who - n_threads) / PER_BLOCK);
}

[[noreturn]] void report(const Fiber& f, const Block& block, u32 offset, const char* what, const Epoch& other, const char* did, At at) {
  fail("race: %s: %s byte %u of rank %u, at %s; not ordered after %s, which %s it at %s", name_of(f).c_str(), what, offset - LOW, block.rank, place(at).c_str(), who_is(*block.cluster, other.who).c_str(), did, place(other.at).c_str());
}

Granule* granules(Block& block) {
  if (!block.shadow) block.shadow = std::shared_ptr<void>(new Granule[block.shared_end / 2 + 8], [](void* p) { delete[] (Granule*)p; });
  return (Granule*)block.shadow.get();
}

// `epoch`: what is noted; ordering is that of `f`.
void note(const Fiber& f, Block& block, u32 offset, u32 bytes, bool write, Epoch epoch, bool by_copy, const char* what) {
  Granule* g = granules(block) + offset / 2;
  for (u32 i = 0; i < bytes; i += 2, g++) {
    if (!before(g->write, f)) report(f, block, offset + i, what, g->write, "wrote", epoch.at);
    if (by_copy && !g->fenced_write && time_in(f.fenced, g->write.who) < g->write.time)
      report(f, block, offset + i, what, g->write, "wrote, with no fence_async_shared since,", epoch.at);
    if (!write) {
      if (g->reads.empty() && (before(g->read, f) || g->read.who == epoch.who)) {
        g->read = epoch;
        continue;
      }
      if (g->reads.empty()) g->reads.push_back(g->read);
      bool found = false;
      for (Epoch& r : g->reads)
        if (r.who == epoch.who) r = epoch, found = true;
      if (!found) g->reads.push_back(epoch);
      continue;
    }
    if (g->reads.empty() && !before(g->read, f)) report(f, block, offset + i, what, g->read, "reads", epoch.at);
    for (const Epoch& r : g->reads)
      if (!before(r, f)) report(f, block, offset + i, what, r, "reads", epoch.at);
    g->reads.clear();
    g->read = Epoch{};
    g->write = epoch;
    g->fenced_write = by_copy;
  }
}
}  // namespace

bool races_on;

void races_touch(Fiber& f, Block& block, u32 offset, u32 bytes, bool write, At at) {
  if (!races_on) return;
  note(f, block, offset, bytes, write, {id_of(f), f.time, at}, false, write ? "writes" : "reads");
}

// A copy is issued by `f`: its ends count as the mbarrier's of its target, at the phase to come.
void races_copy(Fiber& f, Block* from, u32 from_offset, Block& to, u32 to_offset, u32 bytes, Mbarrier& b, At at) {
  if (!races_on) return;
  const Epoch epoch{id_of(to, b), b.phase + 1, at};
  note(f, to, to_offset, bytes, true, epoch, true, "copies to");
  if (from) note(f, *from, from_offset, bytes, false, epoch, true, "copies from");
  races_arrive(f, b);
}

void races_init(Fiber& f, Mbarrier& b) {
  if (races_on) b.made = all_known(f), b.maker = id_of(f), f.time++;
}

// `f` uses the barrier: it must know that it stands.
void races_use(const Fiber& f, const Mbarrier& b, At at) {
  if (!races_on || id_of(f) == b.maker) return;
  if (time_in(f.known, b.maker) < time_in(b.made, b.maker)) fail("race: %s: uses the mbarrier at byte %u, at %s, with no barrier since it was initialised", name_of(f).c_str(), b.offset - LOW, place(at).c_str());
}

void races_arrive(Fiber& f, Mbarrier& b) {
  if (!races_on) return;
  b.gathering = join(b.gathering, all_known(f));
  b.gathering_fenced = join(b.gathering_fenced, f.fenced);
  f.time++;
}

void races_phase_ends(Block& block, Mbarrier& b) {
  if (!races_on) return;
  auto all = b.gathering ? std::make_shared<std::vector<u32>>(*b.gathering) : std::make_shared<std::vector<u32>>();
  all->resize(capacity(*block.cluster));
  (*all)[id_of(block, b)] = b.phase;
  b.gathering = b.known = all;
  b.fenced = b.gathering_fenced;
}

void races_wait(Fiber& f, const Mbarrier& b) {
  if (!races_on) return;
  f.known = join(f.known, b.known);
  f.fenced = join(f.fenced, b.fenced);
}

void races_fence(Fiber& f) {
  if (races_on) f.fenced = all_known(f);
}

// Lanes hand on what they know to a barrier, or take it.
void races_release(Warp& warp, u32 mask, Meeting& m) {
  if (!races_on) return;
  for (u32 left = mask; left; left &= left - 1) {
    const Fiber& f = *warp.lanes[__builtin_ctz(left)];
    m.gathering = join(m.gathering, f.known);
    m.gathering_fenced = join(m.gathering_fenced, f.fenced);
  }
  m.gathering = with_times(*warp.block->cluster, m.gathering, {}, warp.lanes, mask);
  for (u32 left = mask; left; left &= left - 1) warp.lanes[__builtin_ctz(left)]->time++;
}
void races_complete(Meeting& m) {
  if (!races_on) return;
  m.known = m.gathering, m.fenced = m.gathering_fenced;
  m.gathering = m.gathering_fenced = nullptr;
}
void races_acquire(Fiber& f, const Meeting& m) {
  if (!races_on) return;
  f.known = join(f.known, m.known);
  f.fenced = join(f.fenced, m.fenced);
}
void races_sync_lanes(Warp& warp, u32 mask) {
  if (!races_on) return;
  Meeting m;
  races_release(warp, mask, m);
  races_complete(m);
  for (; mask; mask &= mask - 1) races_acquire(*warp.lanes[__builtin_ctz(mask)], m);
}
void races_forget() {
  for (Joined& slot : cache) slot = {};
}
}  // namespace tb
