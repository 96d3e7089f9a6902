// Fibers, the order in which they run, and the launch of a kernel.
//
// Seed 0 runs warps in turn. Odd seeds choose at random; other even ones give warps priorities, which
// change often, seldom or never, so that some lag far behind (Burckhardt et al., "A randomized scheduler with
// probabilistic guarantees of finding bugs", ASPLOS 2010). A warp runs until all its lanes wait.
#include <elf.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "engine.h"

#ifdef TB_SANITIZE
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" void tb_switch(void** from, void* to);
asm(R"(.text
.hidden tb_switch
.globl tb_switch
.type tb_switch,@function
tb_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size tb_switch, .-tb_switch
)");

namespace tb {
Thread* self;
dim3 grid_dim, block_dim;
int fuel;
u64 step;

namespace {
constexpr int FIFO_FUEL = 4096;
enum class Order { TURN, RANDOM, PRIORITY };

struct Launch {
  void (*entry)(void**);
  void** args;
  dim3 cluster;
  u32 static_bytes, dynamic_bytes;
  u64 max_steps;
  Order order;
};

Launch launch;
void* main_stack;
u64 random_state;
std::vector<Warp*> queue;  // warps with ready lanes; in turn: from `head` on
size_t head;
Warp* current;
std::vector<Cluster*> resident;
std::vector<u8*> stacks;
char message[16384];
bool failed, stuck;
bool outranked;    // a warp of higher priority than the one that runs has become ready
u32 change_every;  // choices, for each change of a priority
u32 lowest;        // priority of the warp that paused last
stack_t old_signal_stack;

u32 random_bits() {  // splitmix64
  u64 z = random_state += 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return (u32)((z ^ z >> 31) >> 16);
}

u32 any_priority() { return random_bits() | 1u << 31; }

void refuel() { fuel = launch.order == Order::TURN ? FIFO_FUEL : 1 + (int)random_below(random_below(4) ? 2000 : 50); }

void enqueue(Warp* warp) {
  if (warp->queued) return;
  warp->queued = true;
  queue.push_back(warp);
}

Warp* choose() {
  size_t i = head;
  if (launch.order == Order::RANDOM) i = random_below((u32)queue.size());
  if (launch.order == Order::PRIORITY) {
    if (!random_below(change_every)) queue[random_below((u32)queue.size())]->priority = any_priority();
    i = 0;
    for (size_t k = 1; k < queue.size(); k++)
      if (queue[k]->priority > queue[i]->priority) i = k;
  }
  Warp* warp = queue[i];
  if (launch.order == Order::TURN) {
    if (++head * 2 > queue.size()) queue.erase(queue.begin(), queue.begin() + (long)head), head = 0;
  } else {
    queue[i] = queue.back();
    queue.pop_back();
  }
  warp->queued = false;
  return warp;
}

// AddressSanitizer wants to know of every change of stack.
#ifdef TB_SANITIZE
const void* main_bottom;
size_t main_size;
void arrive_on_stack(void* fake) {
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(fake, &bottom, &size);
  if (!main_bottom) main_bottom = bottom, main_size = size;
}
void switch_to(void** here, Fiber* to) {
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, to ? to->stack : main_bottom, to ? STACK_BYTES : main_size);
  tb_switch(here, to ? to->stack_pointer : main_stack);
  arrive_on_stack(fake);
}
#else
void arrive_on_stack(void*) {}
void switch_to(void** here, Fiber* to) { tb_switch(here, to ? to->stack_pointer : main_stack); }
#endif

// The next fiber to run, or null when the launch is over or stuck.
Fiber* next() {
  if (++step > launch.max_steps) {
    snprintf(message, sizeof message, "no end in sight after %llu steps; %s", step, deadlock_report(resident).c_str());
    failed = true;
    return nullptr;
  }
  if (step >= next_copy_due) run_due_copies(false);
  while (!current || !current->ready || outranked || (launch.order != Order::TURN && !random_below(256))) {
    if (current && current->ready) enqueue(current);
    current = nullptr;
    outranked = false;
    if (head == queue.size()) {
      if (!copies_under_way()) {
        stuck = true;
        return nullptr;
      }
      run_due_copies(true);
      continue;
    }
    current = choose();
  }
  u32 ready = current->ready;
  if (launch.order != Order::TURN && random_below(2)) {
    const u32 above = ready & ~0u << random_below(32);
    if (above) ready = above;
  }
  const int lane = __builtin_ctz(ready);
  current->ready &= ~(1u << lane);
  return current->lanes[lane];
}

// Stops here, where `me` (null: the launching thread) may be resumed, and runs another.
void leave(void** here, Fiber* me) {
  Fiber* fiber = next();
  if (fuel <= 0) refuel();
  if (!fiber && !me) return;
  if (fiber && fiber == me) return;
  self = fiber;
  switch_to(here, fiber);
}

void fiber_main() {
  arrive_on_stack(nullptr);
  launch.entry(launch.args);
  Fiber* me = running();
  thread_ends(me);
  if (me->warp->block->cluster->live) {
    leave(&me->stack_pointer, me);
  } else {
    self = nullptr;
    current = nullptr;
    switch_to(&me->stack_pointer, nullptr);
  }
  abort();
}

u8* new_stack() {
  if (!stacks.empty()) {
    u8* stack = stacks.back();
    stacks.pop_back();
    return stack;
  }
  u8* stack = (u8*)mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) abort();
  mprotect(stack, 4096, PROT_NONE);
  return stack;
}

Block* new_block(Cluster* cluster, dim3 index, u32 rank) {
  Block* block = new Block{};
  block->cluster = cluster, block->index = index, block->rank = rank;
  block->n_threads = block->live = block_dim.x * block_dim.y * block_dim.z;
  const u32 dynamic = LOW + (launch.static_bytes + 1023) / 1024 * 1024;
  block->shared_end = dynamic + launch.dynamic_bytes;
  const size_t mapped = (block->shared_end + 4095) / 4096 * 4096 + 8192;
  u8* pages = (u8*)mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) abort();
  mprotect(pages, mapped - 8192, PROT_READ | PROT_WRITE);
  block->arena = pages;
  poison(block->arena, mapped - 8192);
  block->mbarrier_at.assign(block->shared_end / 8 + 1, 0);
  for (u32 i = 0; i < block->n_threads; i++) {
    if (i % 32 == 0) {
      Warp* warp = new Warp{};
      warp->block = block, warp->priority = any_priority();
      block->warps.push_back(warp);
    }
    Warp* warp = block->warps.back();
    Fiber* f = new Fiber{};
    f->thread = dim3(i % block_dim.x, i / block_dim.x % block_dim.y, i / (block_dim.x * block_dim.y));
    f->block = index, f->lane = i % 32, f->rank = rank, f->tag = (rank + 1) << 24;
    f->low = LOW, f->span = races_on ? 0 : block->shared_end - LOW, f->time = 1, f->arena = block->arena, f->dynamic = block->arena + dynamic;
    f->warp = warp, f->index = i;
    // Stacks start at different places of their pages, or they would fight for the same lines of cache.
    f->stack = new_stack();
    void** top = (void**)(f->stack + STACK_BYTES - i % 64 * 192);
    *--top = nullptr;
    *--top = (void*)fiber_main;
    top -= 6;
    for (int k = 0; k < 6; k++) top[k] = nullptr;
    f->stack_pointer = top;
    warp->lanes[f->lane] = f;
    warp->exists |= 1u << f->lane;
    block->fibers.push_back(f);
  }
  for (Warp* warp : block->warps) {
    warp->live = warp->ready = warp->exists;
    enqueue(warp);
  }
  return block;
}

Cluster* new_cluster(u32 number) {
  Cluster* cluster = new Cluster{};
  const dim3 c = launch.cluster, n(grid_dim.x / c.x, grid_dim.y / c.y, grid_dim.z / c.z);
  const dim3 at(number % n.x, number / n.x % n.y, number / (n.x * n.y));
  for (u32 rank = 0; rank < c.x * c.y * c.z; rank++) {
    const dim3 in(rank % c.x, rank / c.x % c.y, rank / (c.x * c.y));
    cluster->blocks.push_back(new_block(cluster, dim3(at.x * c.x + in.x, at.y * c.y + in.y, at.z * c.z + in.z), rank));
    cluster->live += cluster->blocks.back()->live;
  }
  return cluster;
}

void free_cluster(Cluster* cluster) {
  for (Block* block : cluster->blocks) {
    munmap(block->arena, (block->shared_end + 4095) / 4096 * 4096 + 8192);
    for (Fiber* f : block->fibers) {
      stacks.push_back(f->stack);
      delete f->groups;
      delete f;
    }
    for (Warp* warp : block->warps) delete warp;
    delete block;
  }
  delete cluster;
}

void run(Order order, u32 n_resident) {
  const u32 total = grid_dim.x * grid_dim.y * grid_dim.z / (launch.cluster.x * launch.cluster.y * launch.cluster.z);
  std::vector<u32> numbers;
  for (u32 i = 0; i < total; i++) numbers.push_back(i);
  if (order != Order::TURN)
    for (u32 i = total; i > 1; i--) std::swap(numbers[i - 1], numbers[random_below(i)]);
  size_t started = 0;
  while (!failed) {
    for (size_t i = 0; i < resident.size();) {
      if (resident[i]->live) {
        i++;
        continue;
      }
      free_cluster(resident[i]);
      resident.erase(resident.begin() + (long)i);
    }
    while (started < total && resident.size() < n_resident) resident.push_back(new_cluster(numbers[started++]));
    if (resident.empty()) return;
    stuck = false;
    leave(&main_stack, nullptr);
    if (!failed && stuck) {
      snprintf(message, sizeof message, "%s", deadlock_report(resident).c_str());
      failed = true;
    }
  }
}

// ---- faults and endless loops: the thread that runs is taken off its stack
u8 landing_stack[1 << 14] __attribute__((aligned(64)));
struct sigaction old_actions[3];
constexpr int SIGNALS[3] = {SIGSEGV, SIGBUS, SIGALRM};
pthread_t launching;
int n_alarms;

void land() {
  void* nowhere;
  tb_switch(&nowhere, main_stack);
}

void on_signal(int number, siginfo_t* info, void* context) {
  if (number == SIGALRM && !pthread_equal(pthread_self(), launching)) {
    pthread_kill(launching, SIGALRM);
    return;
  }
  if (number == SIGALRM && (++n_alarms == 1 || !self)) {  // first let the scheduler say it, who knows more
    launch.max_steps = 0;
    alarm(1);
    return;
  }
  if (!self) {
    signal(number, SIG_DFL);
    return;
  }
  if (number == SIGALRM)
    snprintf(message, sizeof message, "%s: runs on and on without waiting for anything", name_of(*running()).c_str());
  else
    snprintf(message, sizeof message, "%s: touches %p, which is not its memory", name_of(*running()).c_str(), info->si_addr);
  failed = true;
  greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  registers[REG_RSP] = (greg_t)(landing_stack + sizeof landing_stack - 8);
  registers[REG_RIP] = (greg_t)land;
}

void catch_signals(u32 timeout_s) {
  static u8 signal_stack[1 << 16];
  launching = pthread_self();
  n_alarms = 0;
  stack_t stack{};
  stack.ss_sp = signal_stack, stack.ss_size = sizeof signal_stack;
  sigaltstack(&stack, &old_signal_stack);
  struct sigaction action{};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < 3; i++) sigaction(SIGNALS[i], &action, &old_actions[i]);
  alarm(timeout_s);
}

void release_signals() {
  alarm(0);
  for (int i = 0; i < 3; i++) sigaction(SIGNALS[i], &old_actions[i], nullptr);
  sigaltstack(&old_signal_stack, nullptr);
}

// The size of this library's thread-local variables, which are the kernels' static shared ones.
int find_static(dl_phdr_info* info, size_t, void* bytes) {
  u32 found = 0;
  bool ours = false;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr)& header = info->dlpi_phdr[i];
    const u64 start = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_LOAD && (u64)&message >= start && (u64)&message < start + header.p_memsz) ours = true;
    if (header.p_type == PT_TLS) found = (u32)header.p_memsz;
  }
  if (ours) *(u32*)bytes = found;
  return ours;
}
}  // namespace

u32 random_below(u32 n) { return n ? (u32)((u64)random_bits() * n >> 32) : 0; }

void wake(Fiber* fiber) {
  fiber->wait = Wait{};
  fiber->warp->ready |= 1u << fiber->lane;
  if (fiber->warp == current) return;
  enqueue(fiber->warp);
  if (launch.order == Order::PRIORITY && current && fiber->warp->priority > current->priority) outranked = true;
}

void wait_here(const Wait& wait) {
  Fiber* me = running();
  me->wait = wait;
  leave(&me->stack_pointer, me);
}

void turn_over() {
  Fiber* me = running();
  refuel();
  me->warp->ready |= 1u << me->lane;
  if (me->warp == current) current = nullptr;
  enqueue(me->warp);
  leave(&me->stack_pointer, me);
}

// For loops that wait for others: these go first.
void pause(At) {
  running()->warp->priority = --lowest;
  turn_over();
}

// Between any two steps of a thread that others could notice.
void maybe_pause() {
  if (outranked || (launch.order != Order::TURN && !random_below(16))) turn_over();
}

void fail(const char* format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(message, sizeof message, format, list);
  va_end(list);
  failed = true;
  void* nowhere;
  tb_switch(&nowhere, main_stack);
  abort();
}

void fail_at(At at, const char* what) { fail("%s: %s, at %s", name_of(*running()).c_str(), what, place(at).c_str()); }
}  // namespace tb

struct TlsIndex { unsigned long module, offset; };
extern "C" __attribute__((visibility("hidden"))) void* __tls_get_addr(TlsIndex* index) { return tb::self->arena + tb::LOW + index->offset; }

#define EXPORT extern "C" __attribute__((visibility("default")))
using namespace tb;

// Runs a grid. `sizes`: grid, block and cluster, three each. 0, or 1 with a message.
EXPORT int tb_launch(void (*entry)(void**), void** args, const u32* sizes, u32 dynamic_bytes, u64 seed, u32 n_resident, u32 timeout_s, u32 races) {
  grid_dim = dim3(sizes[0], sizes[1], sizes[2]);
  block_dim = dim3(sizes[3], sizes[4], sizes[5]);
  launch = Launch{entry, args, dim3(sizes[6], sizes[7], sizes[8]), 0, dynamic_bytes, ~0ull, Order::TURN};
  dl_iterate_phdr(find_static, &launch.static_bytes);
  if (seed) launch.order = seed % 2 ? Order::RANDOM : Order::PRIORITY;
  random_state = seed * 0x9e3779b97f4a7c15ull;
  lowest = 1u << 31;
  late_percent = seed ? random_below(3) * 10 : 10;
  change_every = 16u << 4 * random_below(5);
  races_on = races;
  step = 0, head = 0, current = nullptr, failed = outranked = false, self = nullptr;
  queue.clear();
  forget_copies();
  refuel();
  catch_signals(timeout_s);
  run(launch.order, n_resident);
  release_signals();
  self = nullptr;
  for (Cluster* cluster : resident) free_cluster(cluster);
  resident.clear();
  // Every module has an engine of its own: kept, the stacks of some fifty are all the mappings that a process may have.
  for (u8* stack : stacks) munmap(stack, STACK_BYTES);
  stacks.clear();
  races_forget();
  return failed;
}

EXPORT const char* tb_message() { return message; }
EXPORT u64 tb_steps() { return step; }

// Memory with much before and after it that nobody may touch; it ends at the latter.
constexpr u64 CLOSED_BYTES = 256 << 20;
EXPORT u8* tb_map(u64 bytes) {
  const u64 inside = (bytes + 4095) / 4096 * 4096;
  u8* pages = (u8*)mmap(nullptr, inside + 2 * CLOSED_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) return nullptr;
  mprotect(pages + CLOSED_BYTES, inside, PROT_READ | PROT_WRITE);
  return pages + CLOSED_BYTES + (inside - bytes);
}
EXPORT void tb_unmap(u8* p, u64 bytes) {
  const u64 inside = (bytes + 4095) / 4096 * 4096;
  munmap(p - (inside - bytes) - CLOSED_BYTES, inside + 2 * CLOSED_BYTES);
}
