// What the lanes of a warp, the warps of a block and the blocks of a cluster do together.
//
// The last lane to reach a collective carries it out for all.
#include "engine.h"

namespace tb {
const char* kind_name(Kind kind) {
  static const char* names[] = {"__syncwarp", "a shuffle", "a vote", "mma", "ldmatrix", "named_barrier", "named_barrier_arrive", "__syncthreads", "cluster_arrive", "cluster_wait"};
  return names[(int)kind];
}

namespace {
// Whether lanes that have ended count as arrived, and whether all must come by one instruction (.aligned).
bool without_ended(Kind kind) { return kind == Kind::SYNC_WARP || kind == Kind::SYNC_BLOCK || kind >= Kind::CLUSTER_ARRIVE; }
bool aligned(Kind kind) { return kind > Kind::VOTE; }

template <class F> void each_lane(Warp& warp, u32 mask, F f) {
  for (; mask; mask &= mask - 1) f(*warp.lanes[__builtin_ctz(mask)]);
}

void shuffle_all(Warp& warp, u32 mask, At at) {
  each_lane(warp, mask, [&](Fiber& f) {
    if (!(mask >> f.source & 1)) fail("%s: a shuffle reads lane %u, which does not take part, at %s", name_of(f).c_str(), f.source, place(at).c_str());
    *(u64*)f.out = warp.lanes[f.source]->bits;
  });
}

void vote_all(Warp& warp, u32 mask) {
  u32 ballot = 0;
  each_lane(warp, mask, [&](Fiber& f) { ballot |= (u32)(f.bits != 0) << f.lane; });
  each_lane(warp, mask, [&](Fiber& f) {
    const Vote kind = (Vote)f.extra;
    *(u32*)f.out = kind == Vote::BALLOT ? ballot : kind == Vote::ALL ? ballot == mask : ballot != 0;
  });
}

void ldmatrix_all(Warp& warp, At at) {
  const u8* rows[32];
  for (int i = 0; i < 32; i++) {
    Fiber& f = *warp.lanes[i];
    self = &f;  // addresses are checked as the lane's that brought them
    rows[i] = reach((u32)f.bits, 16, 16, false, "ldmatrix", at);
    races_touch(f, *warp.block, (u32)f.bits & 0xffffff, 16, false, at);
  }
  for (int i = 0; i < 32; i++) {
    Fiber& f = *warp.lanes[i];
    for (int m = 0; m < 4; m++) {
      u16 two[2];
      for (int j = 0; j < 2; j++) {
        const int row = f.extra ? i % 4 * 2 + j : i / 4, column = f.extra ? i / 4 : i % 4 * 2 + j;
        memcpy(&two[j], rows[m * 8 + row] + column * 2, 2);
      }
      ((u32*)f.out)[m] = (u32)two[1] << 16 | two[0];
    }
  }
}

void release(std::vector<Fiber*>& waiters) {
  std::vector<Fiber*> all;
  all.swap(waiters);
  for (Fiber* f : all) wake(f);
}

void complete_barrier(NamedBarrier& b) {
  b.arrived = 0;
  races_complete(b);
  for (Fiber* f : b.waiters) races_acquire(*f, b);
  release(b.waiters);
}

// Lanes arrive at a barrier of their block; true when it is complete.
bool arrive_at(Warp& warp, u32 mask, int id, u32 expected, u32 n, At at) {
  Block& block = *warp.block;
  NamedBarrier& b = block.named[id];
  races_release(warp, mask, b);
  if (!b.arrived) b.expected = expected, b.at = at;
  if (b.expected != expected) fail("%s: barrier %d is for %u threads at %s, for %u at %s", name_of(*running()).c_str(), id, b.expected, place(b.at).c_str(), expected, place(at).c_str());
  b.arrived += n;
  if (b.arrived > expected) fail("%s: %u threads at barrier %d, which is for %u, at %s", name_of(*running()).c_str(), b.arrived, id, expected, place(at).c_str());
  if (b.arrived < expected) return false;
  complete_barrier(b);
  return true;
}

bool cluster_complete(Cluster& c) {
  if (c.arrived < c.live) return false;
  c.arrived = 0;
  c.phase++;
  races_complete(c);
  for (Fiber* f : c.waiters) races_acquire(*f, c);
  release(c.waiters);
  return true;
}

// Carries a collective out. False: its lanes go on waiting, for other warps.
bool finish(Warp& warp, const Gathering& g) {
  Block& block = *warp.block;
  const u32 mask = g.mask & warp.live, n = __builtin_popcount(mask);
  auto queue = [&](std::vector<Fiber*>& waiters, const Meeting& m, bool complete) {
    each_lane(warp, mask, [&](Fiber& f) {
      if (complete) races_acquire(f, m);
      else waiters.push_back(&f);
    });
    return complete;
  };
  switch (g.kind) {
    case Kind::SYNC_WARP: races_sync_lanes(warp, mask); return true;
    case Kind::SHUFFLE: shuffle_all(warp, mask, g.at); return true;
    case Kind::VOTE: vote_all(warp, mask); return true;
    case Kind::MMA: multiply_fragments(warp.lanes); return true;
    case Kind::LDMATRIX: {
      Thread* me = self;
      ldmatrix_all(warp, g.at);
      self = me;
      return true;
    }
    case Kind::BAR_SYNC: return queue(block.named[g.key >> 32].waiters, block.named[g.key >> 32], arrive_at(warp, mask, (int)(g.key >> 32), (u32)g.key, 32, g.at));
    case Kind::BAR_ARRIVE: arrive_at(warp, mask, (int)(g.key >> 32), (u32)g.key, 32, g.at); return true;
    case Kind::SYNC_BLOCK: return queue(block.named[0].waiters, block.named[0], arrive_at(warp, mask, 0, block.live, n, g.at));
    case Kind::CLUSTER_ARRIVE: {
      Cluster& c = *block.cluster;
      each_lane(warp, mask, [&](Fiber& f) {
        if (f.arrived) fail("%s: arrives at the cluster's barrier again without having waited, at %s", name_of(f).c_str(), place(g.at).c_str());
        f.arrived = true;
        f.arrived_phase = c.phase;
      });
      races_release(warp, mask, c);
      c.arrived += n;
      cluster_complete(c);
      return true;
    }
    case Kind::CLUSTER_WAIT: {
      Cluster& c = *block.cluster;
      u32 phase = 0;
      each_lane(warp, mask, [&](Fiber& f) {
        if (!f.arrived) fail("%s: waits at the cluster's barrier without having arrived, at %s", name_of(f).c_str(), place(g.at).c_str());
        f.arrived = false;
        phase = f.arrived_phase;
      });
      return queue(c.waiters, c, phase != c.phase);
    }
  }
  return true;
}

// A collective whose last lane has come: true if the one that calls may go on.
bool complete(Warp& warp, size_t i) {
  const Gathering g = warp.gatherings[i];
  warp.gatherings.erase(warp.gatherings.begin() + (long)i);
  if (!finish(warp, g)) return false;
  each_lane(warp, g.arrived, [&](Fiber& f) {
    if (&f != self) wake(&f);
  });
  return true;
}

u32 wanted(const Warp& warp, const Gathering& g) { return without_ended(g.kind) ? g.mask & warp.live : g.mask; }

void gather(Kind kind, u32 mask, u64 key, At at) {
  Fiber& me = *running();
  Warp& warp = *me.warp;
  mask &= warp.exists;
  if (!(mask >> me.lane & 1)) fail("%s: %s with a mask without the lane itself, at %s", name_of(me).c_str(), kind_name(kind), place(at).c_str());
  size_t i = 0;
  for (; i < warp.gatherings.size(); i++) {
    Gathering& g = warp.gatherings[i];
    if (!(g.mask >> me.lane & 1)) continue;
    const bool same = g.kind == kind && g.mask == mask && g.key == key && (!aligned(kind) || (g.at.line == at.line && !strcmp(g.at.file, at.file)));
    if (same) break;
    fail("%s: lanes of a warp diverge: this one is at %s, %s; lanes %08x wait for it at %s, %s", name_of(me).c_str(), kind_name(kind), place(at).c_str(), g.arrived, kind_name(g.kind), place(g.at).c_str());
  }
  if (i == warp.gatherings.size()) warp.gatherings.push_back({kind, mask, 0, key, at});
  warp.gatherings[i].arrived |= 1u << me.lane;
  const u32 missing = wanted(warp, warp.gatherings[i]) & ~warp.gatherings[i].arrived;
  if (missing & ~warp.live) fail("%s: lanes %08x have ended without %s, at %s", name_of(me).c_str(), missing & ~warp.live, kind_name(kind), place(at).c_str());
  if (!missing && complete(warp, i)) return maybe_pause();
  Wait wait;
  wait.what = kind_name(kind);
  wait.at = at;
  if (kind == Kind::BAR_SYNC) wait.id = (int)(key >> 32);
  wait_here(wait);
}
}  // namespace

void thread_ends(Fiber* fiber) {
  finish_thread_copies(fiber, 0);
  Warp& warp = *fiber->warp;
  Block& block = *warp.block;
  Cluster& cluster = *block.cluster;
  fiber->done = true;
  warp.live &= ~(1u << fiber->lane);
  block.live--;
  cluster.live--;
  if (fiber->arrived && fiber->arrived_phase == cluster.phase) cluster.arrived--;
  for (size_t i = 0; i < warp.gatherings.size();) {
    const Gathering& g = warp.gatherings[i];
    if (!(g.mask >> fiber->lane & 1)) {
      i++;
    } else if (!without_ended(g.kind)) {
      fail("%s: has ended; lanes %08x wait for it at %s, %s", name_of(*fiber).c_str(), g.arrived, kind_name(g.kind), place(g.at).c_str());
    } else if (wanted(warp, g) & ~g.arrived) {
      i++;
    } else {
      complete(warp, i);
    }
  }
  NamedBarrier& all = block.named[0];
  if (all.arrived && all.expected == block.live + 1) {  // who has ended is not waited for
    all.expected--;
    if (all.arrived == all.expected) complete_barrier(all);
  }
  if (cluster.live) cluster_complete(cluster);
  if (!block.live && block.copies_in) fail("%s: its block ends with %u copies into its shared memory under way", name_of(*fiber).c_str(), block.copies_in);
  if (!block.live && block.copies_out) fail("%s: its block ends with %u copies out of its shared memory under way", name_of(*fiber).c_str(), block.copies_out);
}

u64 shuffle_bits(u32 mask, u64 bits, u32 source, At at) {
  Fiber& me = *running();
  u64 got = 0;
  me.bits = bits, me.source = source, me.out = &got;
  gather(Kind::SHUFFLE, mask, 0, at);
  return got;
}

u32 vote(Vote kind, u32 mask, bool value, At at) {
  Fiber& me = *running();
  u32 got = 0;
  me.bits = value, me.extra = (u32)kind, me.out = &got;
  gather(Kind::VOTE, mask, (u64)kind, at);
  return got;
}

void mma(float* d, const u32* a, u32 b0, u32 b1, Factors kind, At at) {
  Fiber& me = *running();
  me.in = a, me.out = d, me.bits = (u64)b1 << 32 | b0, me.extra = (u32)kind;
  gather(Kind::MMA, ~0u, (u32)kind, at);
}

void ldmatrix(u32* r, u32 address, bool transposed, At at) {
  Fiber& me = *running();
  me.out = r, me.bits = address, me.extra = transposed;
  gather(Kind::LDMATRIX, ~0u, transposed, at);
}

void sync_warp(u32 mask, At at) { gather(Kind::SYNC_WARP, mask, 0, at); }
void sync_block(At at) { gather(Kind::SYNC_BLOCK, ~0u, 0, at); }
void cluster_arrive(At at) { gather(Kind::CLUSTER_ARRIVE, ~0u, 0, at); }
void cluster_wait(At at) { gather(Kind::CLUSTER_WAIT, ~0u, 0, at); }

static u64 bar_key(int id, int n_threads, At at) {
  if (id < 0 || id >= N_NAMED) fail("%s: there is no barrier %d, at %s", name_of(*running()).c_str(), id, place(at).c_str());
  if (n_threads <= 0 || n_threads % 32) fail("%s: a barrier for %d threads, which are not whole warps, at %s", name_of(*running()).c_str(), n_threads, place(at).c_str());
  return (u64)id << 32 | (u32)n_threads;
}
void bar_sync(int id, int n_threads, At at) { gather(Kind::BAR_SYNC, ~0u, bar_key(id, n_threads, at), at); }
void bar_arrive(int id, int n_threads, At at) { gather(Kind::BAR_ARRIVE, ~0u, bar_key(id, n_threads, at), at); }
}  // namespace tb
