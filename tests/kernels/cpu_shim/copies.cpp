// mbarriers and asynchronous copies.
//
// mbarriers follow PTX ISA, "Contents of the mbarrier object": a phase ends when no arrival is pending
// and the count of transactions is zero.
#include "engine.h"

namespace tb {
namespace {
constexpr int MAX_TRANSACTIONS = (1 << 20) - 1;  // PTX ISA, "Supported operations: expect-tx"

struct Copy {
  u64 due;  // IDLE: when nothing else can run
  Block* to;
  const u8* from;
  Block* from_block;  // null: global memory
  u32 to_offset, bytes, bar_offset;
  At at;
};
constexpr u64 IDLE = ~0ull;
std::vector<Copy> copies;

void settle(Block& block, Mbarrier& b) {
  if (b.pending || b.transactions) return;
  b.phase++;
  races_phase_ends(block, b);
  b.pending = b.expected;
  std::vector<Fiber*> all;
  all.swap(b.waiters);
  for (Fiber* f : all) wake(f);
}

Mbarrier& known(Block* block, u32 offset, const char* what, At at) {
  const u16 i = block->mbarrier_at[offset / 8];
  if (!i) fail("%s: %s at byte %u of rank %u, where no mbarrier was initialised, at %s", name_of(*running()).c_str(), what, offset - LOW, block->rank, place(at).c_str());
  return block->mbarriers[i - 1u];
}

void transact(Mbarrier& b, int bytes, At at) {
  b.transactions += bytes;
  if (abs(b.transactions) > MAX_TRANSACTIONS) fail("the mbarrier at byte %u counts %d bytes, more than it can, at %s", b.offset - LOW, b.transactions, place(at).c_str());
}

// Soon, later, or with some seeds not before nothing else can run.
u64 some_time() {
  if (random_below(100) < late_percent) return IDLE;
  return step + random_below(random_below(2) ? 16 : 1024);
}

void carry_out(const Copy& copy) {
  if (!copy.to->live) fail("a copy into rank %u's shared memory, whose threads have ended, issued at %s", copy.to->rank, place(copy.at).c_str());
  memcpy(copy.to->arena + copy.to_offset, copy.from, copy.bytes);
  copy.to->copies_in--;
  if (copy.from_block) copy.from_block->copies_out--;
  Mbarrier& b = copy.to->mbarriers[copy.to->mbarrier_at[copy.bar_offset / 8] - 1u];
  transact(b, -(int)copy.bytes, copy.at);
  settle(*copy.to, b);
}

void issue(u32 to, const u8* from, Block* from_block, u32 bytes, u32 bar, At at) {
  Fiber& me = *running();
  if (!bytes || bytes % 16) fail("%s: a bulk copy of %u bytes, not a multiple of 16, at %s", name_of(me).c_str(), bytes, place(at).c_str());
  if ((u64)from & 15) fail("%s: a bulk copy from %p, which is not aligned to 16, at %s", name_of(me).c_str(), (const void*)from, place(at).c_str());
  u8* target = reach(to, bytes, 16, true, "a bulk copy", at);
  if (to >> 24 != bar >> 24) fail("%s: a bulk copy to rank %u signals rank %u's mbarrier, at %s", name_of(me).c_str(), (to >> 24) - 1, (bar >> 24) - 1, place(at).c_str());
  Block* block = block_of(to, "a bulk copy", at);
  Mbarrier& b = mbarrier(block, bar, "a bulk copy's mbarrier", at);
  races_copy(me, from_block, from_block ? (u32)(from - from_block->arena) : 0, *block, to & 0xffffff, bytes, b, at);
  poison(target, bytes);
  block->copies_in++;
  if (from_block) from_block->copies_out++;
  Copy copy{some_time(), block, from, from_block, to & 0xffffff, bytes, bar & 0xffffff, at};
  next_copy_due = std::min(next_copy_due, copy.due);
  copies.push_back(copy);
}
}  // namespace

u64 next_copy_due = IDLE;
u32 late_percent;
size_t copies_under_way() { return copies.size(); }
void forget_copies() { copies.clear(), next_copy_due = IDLE; }

// Carries out what is due; when `idle`, at least one copy, the choice being free.
void run_due_copies(bool idle) {
  if (idle && next_copy_due > step) {
    const u32 i = random_below((u32)copies.size());
    copies[i].due = step;
  }
  std::vector<Copy> due;
  for (size_t i = 0; i < copies.size();) {
    if (copies[i].due <= step) {
      due.push_back(copies[i]);
      copies[i] = copies.back();
      copies.pop_back();
    } else {
      i++;
    }
  }
  next_copy_due = IDLE;
  for (const Copy& copy : copies) next_copy_due = std::min(next_copy_due, copy.due);
  for (const Copy& copy : due) carry_out(copy);
}

Mbarrier& mbarrier(Block* block, u32 address, const char* what, At at) {
  reach(address, 8, 8, true, what, at);
  Mbarrier& b = known(block, address & 0xffffff, what, at);
  races_use(*running(), b, at);
  return b;
}

void barrier_init(u32 bar, u32 arrivals, At at) {
  u8* p = reach(bar, 8, 8, false, "mbarrier_init", at);
  if (!arrivals || arrivals > MAX_TRANSACTIONS) fail("%s: mbarrier_init for %u arrivals, at %s", name_of(*running()).c_str(), arrivals, place(at).c_str());
  Block* block = running()->warp->block;
  u16& i = block->mbarrier_at[(bar & 0xffffff) / 8];
  if (i) fail("%s: the mbarrier at byte %u is initialised again, at %s", name_of(*running()).c_str(), (bar & 0xffffff) - LOW, place(at).c_str());
  Mbarrier b{};
  b.offset = bar & 0xffffff, b.expected = b.pending = arrivals;
  races_init(*running(), b);
  block->mbarriers.push_back(b);
  i = (u16)block->mbarriers.size();
  poison(p, 8);
}

void barrier_arrive(u32 bar, u32 expect_bytes, bool remote, At at) {
  Block* block = block_of(bar, "an arrival", at);
  if (!remote && block != running()->warp->block) fail("%s: mbarrier_arrive takes an address of its own block, but %#x is rank %u's, at %s", name_of(*running()).c_str(), bar, block->rank, place(at).c_str());
  Mbarrier& b = mbarrier(block, bar, "an arrival", at);
  if (expect_bytes) transact(b, (int)expect_bytes, at);
  b.pending--;  // at least one is pending: a phase ends as soon as none is, unless bytes are missing
  if (b.pending == ~0u) fail("%s: more arrivals than the %u that the mbarrier at byte %u is for, at %s", name_of(*running()).c_str(), b.expected, b.offset - LOW, place(at).c_str());
  races_arrive(*running(), b);
  settle(*block, b);
  maybe_pause();
}

void barrier_wait(u32 bar, u32 parity, At at) {
  Block* block = block_of(bar, "mbarrier_wait", at);
  if (block != running()->warp->block) fail("%s: mbarrier_wait takes an address of its own block, but %#x is rank %u's, at %s", name_of(*running()).c_str(), bar, block->rank, place(at).c_str());
  if (parity > 1) fail("%s: mbarrier_wait for parity %u, at %s", name_of(*running()).c_str(), parity, place(at).c_str());
  mbarrier(block, bar, "mbarrier_wait", at);
  Wait wait;
  wait.what = "mbarrier_wait", wait.at = at, wait.address = bar, wait.parity = parity;
  for (;;) {
    Mbarrier& b = known(block, bar & 0xffffff, "mbarrier_wait", at);  // anew: the table may have moved
    if ((b.phase & 1) != parity) return races_wait(*running(), b);
    b.waiters.push_back(running());
    wait_here(wait);
  }
}

void proxy_fence(At) { races_fence(*running()); }

void bulk_to_shared(u32 to, const void* from, u32 bytes, u32 bar, At at) {
  issue(to, (const u8*)from, nullptr, bytes, bar, at);
  maybe_pause();
}

void bulk_multicast(u32 to, const void* from, u32 bytes, u32 bar, u32 ranks, At at) {
  if (!ranks) fail("%s: a multicast to no rank, at %s", name_of(*running()).c_str(), place(at).c_str());
  for (; ranks; ranks &= ranks - 1) {
    const u32 rank = (u32)__builtin_ctz(ranks);
    issue(map_address(to, rank, at), (const u8*)from, nullptr, bytes, map_address(bar, rank, at), at);
  }
  maybe_pause();
}

void bulk_to_cluster(u32 to, u32 from, u32 bytes, u32 bar, At at) {
  const u8* source = reach(from, bytes, 16, false, "a bulk copy's source", at);
  issue(to, source, running()->warp->block, bytes, bar, at);
  maybe_pause();
}

// ---- cp.async: done when waited for, poisoned until then
void copy_thread(u32 to, const void* from, int n_bytes, At at) {
  u8* p = reach(to, 16, 16, false, "cp_async", at);
  if ((u64)from & 15) fail("%s: cp_async from %p, which is not aligned to 16, at %s", name_of(*running()).c_str(), from, place(at).c_str());
  if (n_bytes < 0 || n_bytes > 16) fail("%s: cp_async of %d bytes, at %s", name_of(*running()).c_str(), n_bytes, place(at).c_str());
  auto*& groups = running()->groups;
  if (!groups) groups = new std::deque<std::vector<ThreadCopy>>(1);
  groups->back().push_back({to, from, n_bytes, at});
  races_touch(*running(), *running()->warp->block, to & 0xffffff, 16, true, at);
  poison(p, 16);
}

void copy_thread_commit() {
  auto*& groups = running()->groups;
  if (!groups) groups = new std::deque<std::vector<ThreadCopy>>(1);
  groups->emplace_back();
}

void finish_thread_copies(Fiber* fiber, u32 n_left) {
  if (!fiber->groups) return;
  while (fiber->groups->size() > n_left + 1) {
    for (const ThreadCopy& c : fiber->groups->front()) {
      u8* p = reach(c.to, 16, 16, false, "cp_async", c.at);
      races_touch(*fiber, *fiber->warp->block, c.to & 0xffffff, 16, true, c.at);
      memset(p, 0, 16);
      memcpy(p, c.from, (size_t)c.n_bytes);
    }
    fiber->groups->pop_front();
  }
}
void copy_thread_wait(u32 n_left, At) {
  finish_thread_copies(running(), n_left);
  maybe_pause();
}
}  // namespace tb
