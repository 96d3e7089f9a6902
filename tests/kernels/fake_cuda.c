// A stand-in for libcuda.so.1, under the real cuda.bindings: the card's memory is the host's, a
// stream runs what is queued at once, a cubin is the path of a shared object and its kernels are C
// functions of it: int kernel(void** parameters). Kernels of a real cubin do nothing; those of an
// object made by shim.py run in its engine, as emitted. What tests look at and bring about: fake_*.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef void* Any;
typedef unsigned long long u64;
enum { OK = 0, INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_IMAGE = 200, NOT_FOUND = 500 };
enum { NOT_READY = 600, LAUNCH_FAILED = 719, MOST_ARGUMENTS = 40 };

static int enabled, held, fail_code;
static char fail_name[64];
static long n_allocations, n_live, n_copied, n_launched, n_contexts[8];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static int n_devices = 1;
static long lasts = -1;  // launches of graphs after which the card is lost; -1 for ever
// For processes that find this library where they look for the driver's.
__attribute__((constructor)) static void in_the_environment(void) {
  const char* launches = getenv("FAKE_CUDA_LAUNCHES");
  if (launches) enabled = 1, lasts = atol(launches);
}

void fake_enable(int on) {
  enabled = n_devices = on;
  fail_name[0] = 0;
  n_copied = n_launched = 0;
}
void fake_devices(int n) { n_devices = n; }
long fake_contexts(int device) { return n_contexts[device]; }  // made so far
long fake_allocations(void) { return n_allocations; }  // memory, modules, graphs, streams, events
long fake_live(void) { return n_live; }
long fake_copied(void) { return n_copied; }  // bytes from the host to the card
long fake_launched(void) { return n_launched; }
void fake_forgive(long n) { n_live -= n; }  // what the end of a process would free
void fake_fail(const char* function, int code) {
  snprintf(fail_name, sizeof fail_name, "%s", function);
  fail_code = code;
}
void fake_hold(int hold) {  // while held, no event completes
  pthread_mutex_lock(&lock);
  held = hold;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
}
#define MAY_FAIL if (!strcmp(fail_name, __func__)) return fail_code

static Any made(size_t size) {
  __sync_fetch_and_add(&n_allocations, 1);
  __sync_fetch_and_add(&n_live, 1);
  return aligned_alloc(4096, (size + 4095) / 4096 * 4096);
}
static Result gone(Any handle) {
  __sync_fetch_and_sub(&n_live, 1);
  free(handle);
  return OK;
}

// ---- kernels, in this very object
int score(Any* p) {  // scores[r] = sum(candidate[r]) + user[request_of_row[r]][0]; rows of 8 floats
  const float *user = *(float**)p[0], *candidate = *(float**)p[1];
  const int *request_of_row = *(int**)p[2], *counts = *(int**)p[3];
  float* scores = *(float**)p[4];
  for (int r = 0; r < counts[0]; r++) {
    scores[r] = user[request_of_row[r] * 8];
    for (int c = 0; c < 8; c++) scores[r] += candidate[r * 8 + c];
  }
  return OK;
}
int sums(Any* p) {  // scores[r] = sum(candidate[r]) + sum(user[..]), of rows of p[5] and p[6] floats
  const float *user = *(float**)p[0], *candidate = *(float**)p[1];
  const int *request_of_row = *(int**)p[2], *counts = *(int**)p[3];
  const int n_user = *(int*)p[5], n_candidate = *(int*)p[6];
  for (int r = 0; r < counts[0]; r++) {
    float sum = 0;
    for (int c = 0; c < n_user; c++) sum += user[request_of_row[r] * n_user + c];
    for (int c = 0; c < n_candidate; c++) sum += candidate[r * n_candidate + c];
    (*(float**)p[4])[r] = sum;
  }
  return OK;
}
int tail(Any* p) {  // scores[0] = the sum of all request_of_row, padding included
  float* scores = *(float**)p[1];
  scores[0] = 0;
  for (int r = 0; r < *(int*)p[2]; r++) scores[0] += (*(int**)p[0])[r];
  return OK;
}
int trap(Any* p) { return LAUNCH_FAILED; }

// ---- devices and contexts
Result cuInit(unsigned flags) { return enabled ? OK : NO_DEVICE; }
Result cuDriverGetVersion(int* version) { *version = 13000; return OK; }
Result cuDeviceGetCount(int* n) { *n = n_devices; return OK; }
Result cuDeviceGetName(char* name, int n, int device) { snprintf(name, n, "Fake H100"); return OK; }
Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? 9 : attribute == 16 ? 132 : attribute == 97 ? 232448 : 0;
  return OK;
}
Result cuDevicePrimaryCtxRetain(Any* context, int device) {
  n_contexts[device]++;
  *context = made(1);
  return OK;
}
Result cuDevicePrimaryCtxRelease(int device) { __sync_fetch_and_sub(&n_live, 1); return OK; }
Result cuCtxCreate(Any* context, Any parameters, unsigned flags, int device) {
  *context = made(1);
  return parameters ? INVALID_VALUE : OK;
}
Result cuCtxDestroy(Any context) { return gone(context); }
Result cuCtxSetCurrent(Any context) { return OK; }
Result cuCtxSynchronize(void) { MAY_FAIL; return OK; }

// CUdevResource: 144 bytes, its type first, the number of multiprocessors at 96.
Result cuDeviceGetDevResource(int device, char* resource, int type) {
  memset(resource, 0, 144);
  *(int*)resource = type;
  *(unsigned*)(resource + 96) = 132;
  return OK;
}
Result cuDevSmResourceSplitByCount(char* groups, unsigned* n, const char* whole, char* rest,
                                   unsigned flags, unsigned n_sms) {
  unsigned most = *(unsigned*)(whole + 96) / n_sms;
  if (*n > most) *n = most;
  for (unsigned i = 0; groups && i < *n; i++) {
    memcpy(groups + 144 * i, whole, 144);
    *(unsigned*)(groups + 144 * i + 96) = n_sms;
  }
  return OK;
}
Result cuDevResourceGenerateDesc(Any* description, Any resources, unsigned n) {
  *description = (Any)1;
  return n == 1 ? OK : INVALID_VALUE;
}
Result cuGreenCtxCreate(Any* context, Any description, int device, unsigned flags) {
  *context = made(1);
  return flags == 1 ? OK : INVALID_VALUE;
}
Result cuGreenCtxDestroy(Any context) { return gone(context); }
Result cuGreenCtxStreamCreate(Any* stream, Any context, unsigned flags, int priority) {
  *stream = made(1);
  return flags == 1 ? OK : INVALID_VALUE;
}

// ---- streams, events
Result cuStreamCreate(Any* stream, unsigned flags) { *stream = made(1); return OK; }
Result cuStreamDestroy(Any stream) { return gone(stream); }
Result cuStreamSynchronize(Any stream) { return OK; }
Result cuEventCreate(Any* event, unsigned flags) { *event = made(1); return flags & 1 ? OK : 1; }
Result cuEventDestroy(Any event) { return gone(event); }
Result cuEventRecord(Any event, Any stream) { return OK; }
Result cuEventSynchronize(Any event) {
  MAY_FAIL;
  if (!lasts) return LAUNCH_FAILED;
  pthread_mutex_lock(&lock);
  while (held) pthread_cond_wait(&changed, &lock);
  pthread_mutex_unlock(&lock);
  return OK;
}
Result cuEventQuery(Any event) { MAY_FAIL; return held ? NOT_READY : OK; }
Result cuEventElapsedTime(float* ms, Any start, Any end) { *ms = 2.5f; return OK; }

// ---- memory
Result cuMemAlloc(u64* address, size_t size) { MAY_FAIL; *address = (u64)made(size); return OK; }
Result cuMemFree(u64 address) { return gone((Any)address); }
Result cuMemHostAlloc(Any* address, size_t size, unsigned flags) {
  *address = made(size);
  return flags == 3 ? OK : INVALID_VALUE;
}
Result cuMemFreeHost(Any address) { return gone(address); }

// ---- what is queued: run at once, or recorded
typedef int (*Run)(Any call, Any* values, const unsigned* sizes, unsigned shared_bytes, u64 seed,
                   unsigned resident, unsigned timeout_s, unsigned races);
typedef struct {
  Any call;  // a kernel of this object's own, or
  Run run;   // the engine of another's
  const char* (*message)(void);
} Kernel;
typedef struct Step {
  Any to, from;  // a copy, or
  size_t size;
  Kernel* kernel;  // a launch
  Any values[MOST_ARGUMENTS];
  unsigned sizes[9], shared_bytes;  // grid, block, cluster
  struct Step* next;
} Step;
typedef struct { Step *first, **end; } Graph;
static Any capturing;
static Graph* recorded;

static pthread_mutex_t running = PTHREAD_MUTEX_INITIALIZER;  // an engine takes signals for itself

static Result launch(const Step* step) {
  const Kernel* kernel = step->kernel;
  if (!kernel->run) return ((int (*)(Any*))kernel->call)((Any*)step->values);
  pthread_mutex_lock(&running);
  const int failed = kernel->run(kernel->call, (Any*)step->values, step->sizes, step->shared_bytes, 0, 1, 60, 0);
  if (failed) fprintf(stderr, "%s\n", kernel->message());
  pthread_mutex_unlock(&running);
  return failed ? LAUNCH_FAILED : OK;
}
static Result run(Step* step) {
  if (step->kernel) {
    __sync_fetch_and_add(&n_launched, 1);
    return launch(step);
  }
  memcpy(step->to, step->from, step->size);
  return OK;
}
static Result queue(Any stream, Step step) {
  if (!capturing || stream != capturing) return run(&step);
  *recorded->end = malloc(sizeof step);
  **recorded->end = step;
  recorded->end = &(*recorded->end)->next;
  return OK;
}
Result cuMemcpyHtoDAsync(u64 to, Any from, size_t size, Any stream) {
  __sync_fetch_and_add(&n_copied, size);
  return queue(stream, (Step){.to = (Any)to, .from = from, .size = size});
}
Result cuMemcpyDtoHAsync(Any to, u64 from, size_t size, Any stream) {
  return queue(stream, (Step){.to = to, .from = (Any)from, .size = size});
}
Result cuMemsetD8Async(u64 to, unsigned char value, size_t size, Any stream) {
  memset((Any)to, value, size);
  return OK;
}

// ---- modules, launches
static char real_cubin;
static int nothing(Any* p) { return OK; }
Result cuModuleLoadData(Any* module, const char* image) {
  MAY_FAIL;
  __sync_fetch_and_add(&n_allocations, 1);
  *module = memcmp(image, "\177ELF", 4) ? dlopen(image, RTLD_NOW | RTLD_LOCAL) : &real_cubin;
  return *module ? OK : INVALID_IMAGE;
}
Result cuModuleUnload(Any module) { return OK; }
Result cuModuleGetFunction(Any* function, Any module, const char* name) {
  char emitted[256];
  snprintf(emitted, sizeof emitted, "tb_call_%s", name);
  Kernel found = {0};
  if (module == &real_cubin) {
    found.call = (Any)nothing;
  } else if ((found.call = dlsym(module, emitted))) {
    found.run = (Run)dlsym(module, "tb_launch");
    found.message = (const char* (*)(void))dlsym(module, "tb_message");
  } else {
    found.call = dlsym(module, name);
  }
  if (!found.call) return NOT_FOUND;
  *function = malloc(sizeof found);  // kept: modules are never unloaded
  memcpy(*function, &found, sizeof found);
  return OK;
}
Result cuFuncSetAttribute(Any function, int attribute, int value) { return OK; }
typedef struct { int id, pad; unsigned value[16]; } Attribute;
typedef struct {
  unsigned grid[3], block[3], shared_bytes;
  Any stream;
  Attribute* attributes;
  unsigned n_attributes;
} Config;
Result cuLaunchKernelEx(Config* config, Any kernel, Any* parameters, Any extra) {
  MAY_FAIL;
  Step step = {.kernel = kernel, .sizes = {[6] = 1, 1, 1}, .shared_bytes = config->shared_bytes};
  memcpy(step.sizes, config->grid, 12);
  memcpy(step.sizes + 3, config->block, 12);
  for (unsigned i = 0; i < config->n_attributes; i++) {
    Attribute* a = &config->attributes[i];
    if (a->id == 4 ? a->value[0] < 2 || a->value[1] != 1 : a->id != 6 || a->value[0] != 1)
      return INVALID_VALUE;
    if (a->id == 4) step.sizes[6] = a->value[0];
  }
  for (int i = 0; i < MOST_ARGUMENTS && parameters[i]; i++) step.values[i] = parameters[i];
  return queue(config->stream, step);
}
Result cuOccupancyMaxActiveClusters(int* n, Any function, Config* config) { *n = 17; return OK; }
Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, Any f, int block, size_t shared) {
  *n = 2;
  return OK;
}
Result cuTensorMapEncodeTiled(u64* map, int type, unsigned rank, Any address, const u64* sizes,
                              const u64* strides, const unsigned* box, const unsigned* steps,
                              int interleave, int swizzle, int promotion, int outside) {
  if ((u64)map % 64 || rank != 2 || (u64)address % 16 || strides[0] % 16) return INVALID_VALUE;
  const u64 swizzle_bytes = swizzle ? 16 << swizzle : 0;  // as wgmma_shim.h reads a map
  const u64 item = type ? 2 : 1;                          // halves, or bytes
  u64 all[] = {(u64)address, sizes[1], sizes[0], strides[0], box[1], box[0], swizzle_bytes, item};
  memcpy(map, all, sizeof all);
  return OK;
}

// ---- graphs
Result cuStreamBeginCapture(Any stream, int mode) {
  capturing = stream;
  recorded = made(sizeof *recorded);
  recorded->first = NULL;
  recorded->end = &recorded->first;
  return OK;
}
Result cuStreamEndCapture(Any stream, Any* graph) {
  capturing = NULL;
  *graph = recorded;
  return OK;
}
Result cuGraphInstantiateWithFlags(Any* exec, Graph* graph, u64 flags) {
  MAY_FAIL;
  Graph* copy = made(sizeof *copy);
  *copy = *graph;
  *exec = copy;
  return OK;
}
Result cuGraphDestroy(Any graph) { return gone(graph); }
Result cuGraphExecDestroy(Any exec) { return gone(exec); }
Result cuGraphUpload(Any exec, Any stream) { return OK; }
Result cuGraphLaunch(Graph* exec, Any stream) {
  MAY_FAIL;
  if (lasts > 0) lasts--;
  for (Step* step = exec->first; step; step = step->next) {
    Result result = run(step);
    if (result) return result;
  }
  return OK;
}

Result cuGetProcAddress_v2(const char* name, Any* function, int version, u64 flags, int* status) {
  static Any self;
  Dl_info here;
  if (!self && dladdr((Any)cuInit, &here)) self = dlopen(here.dli_fname, RTLD_NOW);
  *function = dlsym(self, name);
  if (status) *status = *function ? 0 : 1;
  return *function ? OK : NOT_FOUND;
}
