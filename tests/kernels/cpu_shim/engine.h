// The engine behind kernels/cuda/shim.h: fibers, the order they run in, shared memory, barriers, copies.
//
// The threads of the resident clusters are fibers of one OS thread. A fiber runs until it waits, and
// is made ready by the event that it waits for; when none is ready and no copy is under way, that is
// a deadlock. Bulk copies are carried out some time after their issue, and what they will overwrite
// is poisoned at once: who reads too early, or is still reading, sees NaN.
#pragma once
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#include "shim.h"  // last: it defines some of the compiler's words

namespace tb {
constexpr u32 LOW = 1024;        // where a block's shared memory starts: address 0 is nobody's
constexpr u8 POISON = 0xff;      // a NaN as a half, as a bfloat and as a float; -1 as an integer
constexpr int N_NAMED = 16;      // barriers of a block
constexpr size_t STACK_BYTES = 1 << 17;

struct Warp;
struct Block;
struct Cluster;

// What a fiber waits for, for reports. A function writes the state of the thing.
struct Wait {
  const char* what = "nothing";
  At at{"", 0};
  u32 address = 0, parity = 0;
  int id = -1;
};

// What has happened before, for the search for races (races.cpp): times by who.
typedef std::shared_ptr<const std::vector<u32>> Known;
// What those who meet at a barrier hand on: being gathered, and of the last time it was complete.
struct Meeting { Known gathering, gathering_fenced, known, fenced; };

struct ThreadCopy { u32 to; const void* from; int n_bytes; At at; };

struct Fiber : Thread {
  void* stack_pointer;
  u8* stack;
  Warp* warp;
  u32 index;  // in its block
  bool done;
  Wait wait;
  // What it brings to a collective of its warp, and takes from it.
  const u32* in;
  void* out;
  u64 bits;
  u32 source, extra;
  // Phases of the cluster's barrier that it has arrived at and not waited for.
  bool arrived;
  u32 arrived_phase;
  std::deque<std::vector<ThreadCopy>>* groups;  // groups of cp.async, the last one still open
  u32 time;
  Known known, fenced;
};

enum class Kind { SYNC_WARP, SHUFFLE, VOTE, MMA, LDMATRIX, BAR_SYNC, BAR_ARRIVE, SYNC_BLOCK, CLUSTER_ARRIVE, CLUSTER_WAIT };

// A collective that lanes of a warp are gathering at.
struct Gathering { Kind kind; u32 mask, arrived; u64 key; At at; };

struct Warp {
  Block* block;
  Fiber* lanes[32];
  u32 exists, live, ready;  // lanes
  u32 priority;
  bool queued;
  std::vector<Gathering> gatherings;
};

struct NamedBarrier : Meeting { u32 expected, arrived; std::vector<Fiber*> waiters; At at; };
struct Mbarrier : Meeting {
  u32 offset, expected, pending, phase;
  int transactions;
  std::vector<Fiber*> waiters;
  u32 maker;
  Known made;
};

struct Block {
  Cluster* cluster;
  dim3 index;
  u32 rank, n_threads, live, shared_end;
  u8* arena;
  std::vector<Fiber*> fibers;
  std::vector<Warp*> warps;
  NamedBarrier named[N_NAMED];
  std::vector<Mbarrier> mbarriers;
  std::vector<u16> mbarrier_at;  // by offset / 8: which one, plus 1
  u32 copies_in, copies_out;     // under way, into and out of its shared memory
  std::shared_ptr<void> shadow;  // races.cpp's
};

struct Cluster : Meeting {
  std::vector<Block*> blocks;
  u32 live, arrived, phase;
  std::vector<Fiber*> waiters;
};

// ---- schedule.cpp
extern u64 step;
u32 random_below(u32 n);
inline Fiber* running() { return static_cast<Fiber*>(self); }
void wake(Fiber* fiber);
void wait_here(const Wait& wait);  // until wake()
void turn_over();    // lets others run, and goes on when chosen again
void maybe_pause();  // turns over now and then, where others could notice
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- report.cpp
std::string place(At at);
std::string name_of(const Fiber& fiber);
std::string deadlock_report(const std::vector<Cluster*>& clusters);

// ---- warp.cpp
const char* kind_name(Kind kind);
void thread_ends(Fiber* fiber);

// ---- numbers.cpp
void multiply_fragments(Fiber* const* lanes);

// ---- memory.cpp
Block* block_of(u32 address, const char* what, At at);
u8* reach(u32 address, u32 bytes, u32 alignment, bool remote, const char* what, At at);
void poison(u8* p, size_t bytes);

// ---- races.cpp
extern bool races_on;
void races_touch(Fiber& f, Block& block, u32 offset, u32 bytes, bool write, At at);
void races_copy(Fiber& f, Block* from, u32 from_offset, Block& to, u32 to_offset, u32 bytes, Mbarrier& b, At at);
void races_init(Fiber& f, Mbarrier& b);
void races_use(const Fiber& f, const Mbarrier& b, At at);
void races_arrive(Fiber& f, Mbarrier& b);
void races_phase_ends(Block& block, Mbarrier& b);
void races_wait(Fiber& f, const Mbarrier& b);
void races_fence(Fiber& f);
void races_release(Warp& warp, u32 mask, Meeting& m);
void races_complete(Meeting& m);
void races_acquire(Fiber& f, const Meeting& m);
void races_sync_lanes(Warp& warp, u32 mask);
void races_forget();

// ---- copies.cpp
extern u64 next_copy_due;
extern u32 late_percent;  // of bulk copies: done only when nothing else can run
size_t copies_under_way();
void run_due_copies(bool idle);
void forget_copies();
void finish_thread_copies(Fiber* fiber, u32 n_left);
Mbarrier& mbarrier(Block* block, u32 address, const char* what, At at);
}  // namespace tb
