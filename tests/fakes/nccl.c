/* SPDX-License-Identifier: Apache-2.0
 *
 * A fake NCCL-shaped library over a fake runtime: -DFAKE_PREFIX=nccl -DRUNTIME_PREFIX=cuda
 * -DRUNTIME_SETTING="HCCOMM_CUDA_LIB". Ranks are threads or processes of one machine and meet in
 * shared memory that the id names. Strict: the communicator's device must be current, buffers must
 * be device memory, a stream one of the runtime's, a device joins once, and ranks that call
 * different things all get an error. The work is done on the stream's worker, in its order. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define F(name) JOIN(FAKE_PREFIX, name)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

enum { SUCCESS = 0, DEVICE_ERROR = 1, SYSTEM = 2, ARGUMENT = 4, USAGE = 5, REMOTE = 6 };
enum { MAX_RANKS = 16, CHUNK = 1 << 16, PATIENCE_S = 20 };
enum { ALL_REDUCE = 1, REDUCE_SCATTER, ALL_GATHER, BROADCAST };

typedef struct {
  char bytes[128];
} unique_id;

typedef struct {
  int kind, type, op, root;
  uint64_t count, sequence;
} call;

/* What ranks share. */
typedef struct {
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  int size, joined, refused, broken, waiting;
  uint64_t round;
  char device[MAX_RANKS][32]; /* process and index */
  call calls[MAX_RANKS];
  char data[MAX_RANKS][CHUNK];
} meeting;

typedef struct {
  meeting* shared;
  int rank, size, device;
  uint64_t sequence;
  _Atomic int error; /* asynchronous: written by the stream's worker */
} comm;

typedef struct {
  comm* own;
  call what;
  const char* in;
  char* out;
} task;

static int (*get_device)(int*);
static int (*launch)(void* stream, void (*)(void*), void*);
static void* (*host_view)(const void*, size_t);

/* The runtime that the program already uses. */
static void find_runtime(void) {
  const char* path = getenv(RUNTIME_SETTING);
  void* library = path != NULL ? dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD) : NULL;
  if (library == NULL) return;
  get_device = (int (*)(int*))dlsym(library, TEXT(RUNTIME_PREFIX) "GetDevice");
  launch =
      (int (*)(void*, void (*)(void*), void*))dlsym(library, TEXT(RUNTIME_PREFIX) "LaunchHostFunc");
  host_view = (void* (*)(const void*, size_t))dlsym(library, "fake_host_view");
}

static int has_runtime(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, find_runtime);
  return get_device != NULL && launch != NULL && host_view != NULL;
}

/* ---- meeting -------------------------------------------------------------------------------- */

static meeting* open_meeting(const char* name, int create) {
  const int fd = shm_open(name, O_RDWR | (create ? O_CREAT | O_EXCL : 0), 0600);
  if (fd < 0) return NULL;
  if (create && ftruncate(fd, sizeof(meeting)) != 0) return NULL;
  meeting* found = mmap(NULL, sizeof *found, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  return found == MAP_FAILED ? NULL : found;
}

static void deadline(struct timespec* at) {
  clock_gettime(CLOCK_MONOTONIC, at);
  at->tv_sec += PATIENCE_S;
}

/* All ranks, or an error for all. */
static int barrier(comm* own) {
  meeting* shared = own->shared;
  struct timespec at;
  deadline(&at);
  pthread_mutex_lock(&shared->mutex);
  const uint64_t round = shared->round;
  if (++shared->waiting == shared->size) {
    shared->waiting = 0;
    ++shared->round;
    pthread_cond_broadcast(&shared->changed);
  }
  while (shared->round == round && !shared->broken) {
    if (pthread_cond_timedwait(&shared->changed, &shared->mutex, &at) == ETIMEDOUT) {
      shared->broken = 1;
      pthread_cond_broadcast(&shared->changed);
    }
  }
  const int broken = shared->broken;
  pthread_mutex_unlock(&shared->mutex);
  return broken ? REMOTE : SUCCESS;
}

API int F(GetVersion)(int* version) {
  *version = 22105;
  return SUCCESS;
}

API int F(GetUniqueId)(unique_id* id) {
  static int made;
  pthread_mutexattr_t mutex;
  pthread_condattr_t cond;
  memset(id, 0, sizeof *id);
  snprintf(id->bytes, sizeof id->bytes, "/hccomm-fake-ccl-%d-%d", (int)getpid(),
           __sync_add_and_fetch(&made, 1));
  meeting* shared = open_meeting(id->bytes, 1);
  if (shared == NULL) return SYSTEM;
  pthread_mutexattr_init(&mutex);
  pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
  pthread_mutex_init(&shared->mutex, &mutex);
  pthread_condattr_init(&cond);
  pthread_condattr_setpshared(&cond, PTHREAD_PROCESS_SHARED);
  pthread_condattr_setclock(&cond, CLOCK_MONOTONIC);
  pthread_cond_init(&shared->changed, &cond);
  munmap(shared, sizeof *shared);
  return SUCCESS;
}

API int F(CommInitRank)(comm** out, int size, unique_id id, int rank) {
  if (size < 1 || size > MAX_RANKS || rank < 0 || rank >= size) return ARGUMENT;
  if (!has_runtime()) return SYSTEM;
  comm* own = calloc(1, sizeof *own);
  own->shared = open_meeting(id.bytes, 0);
  if (own->shared == NULL) return free(own), ARGUMENT;
  own->rank = rank;
  own->size = size;
  get_device(&own->device);
  meeting* shared = own->shared;
  struct timespec at;
  deadline(&at);
  pthread_mutex_lock(&shared->mutex);
  snprintf(shared->device[rank], sizeof shared->device[rank], "%d:%d", (int)getpid(), own->device);
  for (int each = 0; each < size; ++each) {
    if (each != rank && strcmp(shared->device[each], shared->device[rank]) == 0) {
      shared->refused = 1; /* duplicate device */
    }
  }
  if (shared->size != 0 && shared->size != size) shared->refused = 1;
  shared->size = size;
  if (++shared->joined == size) shm_unlink(id.bytes);
  pthread_cond_broadcast(&shared->changed);
  while (shared->joined < size && !shared->refused) {
    if (pthread_cond_timedwait(&shared->changed, &shared->mutex, &at) == ETIMEDOUT) {
      shared->refused = 1;
    }
  }
  const int refused = shared->refused;
  if (refused) pthread_cond_broadcast(&shared->changed);
  pthread_mutex_unlock(&shared->mutex);
  if (refused) return shm_unlink(id.bytes), free(own), USAGE;
  *out = own;
  return SUCCESS;
}

API int F(CommDestroy)(comm* own) {
  munmap(own->shared, sizeof *own->shared);
  free(own);
  return SUCCESS;
}
API int F(CommAbort)(comm* own) {
  pthread_mutex_lock(&own->shared->mutex);
  own->shared->broken = 1;
  pthread_cond_broadcast(&own->shared->changed);
  pthread_mutex_unlock(&own->shared->mutex);
  return F(CommDestroy)(own);
}
API int F(CommGetAsyncError)(comm* own, int* error) {
  *error = own->error;
  return SUCCESS;
}

/* ---- the work ------------------------------------------------------------------------------- */

static size_t size_of(int type) {
  static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
  return type >= 0 && type < 10 ? sizes[type] : 0;
}

static void combine(call what, char* into, const char* with, size_t bytes) {
#define EACH(number, c_type)                              \
  if (what.type == number) {                              \
    for (size_t i = 0; i < bytes / sizeof(c_type); ++i) { \
      c_type a, b;                                        \
      memcpy(&a, into + i * sizeof a, sizeof a);          \
      memcpy(&b, with + i * sizeof b, sizeof b);          \
      a = what.op == 0   ? (c_type)(a + b)                \
          : what.op == 1 ? (c_type)(a * b)                \
          : what.op == 2 ? (a > b ? a : b)                \
                         : (a < b ? a : b);               \
      memcpy(into + i * sizeof a, &a, sizeof a);          \
    }                                                     \
  }
  EACH(0, int8_t)
  EACH(1, uint8_t)
  EACH(2, int32_t)
  EACH(3, uint32_t)
  EACH(4, int64_t)
  EACH(5, uint64_t)
  EACH(7, float)
  EACH(8, double)
#undef EACH
}

/* One piece of every rank's bytes [at, at + bytes) of input, reduced or as they are, to `out`. */
static int piece(task* each, uint64_t at, size_t bytes, int wants, int from, char* out) {
  comm* own = each->own;
  meeting* shared = own->shared;
  if (each->in != NULL) memcpy(shared->data[own->rank], each->in + at, bytes);
  if (barrier(own) != SUCCESS) return REMOTE;
  if (wants && from >= 0) memcpy(out, shared->data[from], bytes);
  if (wants && from < 0) {
    char sum[CHUNK];
    memcpy(sum, shared->data[0], bytes);
    for (int rank = 1; rank < own->size; ++rank) {
      combine(each->what, sum, shared->data[rank], bytes);
    }
    memcpy(out, sum, bytes);
  }
  return barrier(own);
}

static int run(task* each) {
  comm* own = each->own;
  const call what = each->what;
  const uint64_t part = what.count * size_of(what.type);
  own->shared->calls[own->rank] = what;
  if (barrier(own) != SUCCESS) return REMOTE;
  for (int rank = 0; rank < own->size; ++rank) {
    if (memcmp(&own->shared->calls[rank], &what, sizeof what) != 0) return USAGE; /* all see it */
  }
  const uint64_t total = what.kind == REDUCE_SCATTER ? part * (uint64_t)own->size : part;
  for (uint64_t at = 0; at < total;) {
    const uint64_t end = what.kind == REDUCE_SCATTER ? (at / part + 1) * part : total;
    const size_t bytes = end - at < CHUNK ? (size_t)(end - at) : CHUNK;
    int status = SUCCESS;
    if (what.kind == ALL_REDUCE) status = piece(each, at, bytes, 1, -1, each->out + at);
    if (what.kind == BROADCAST) status = piece(each, at, bytes, 1, what.root, each->out + at);
    if (what.kind == REDUCE_SCATTER) {
      const int mine = at / part == (uint64_t)own->rank;
      status = piece(each, at, bytes, mine, -1, mine ? each->out + at % part : NULL);
    }
    if (what.kind == ALL_GATHER) {
      memcpy(own->shared->data[own->rank], each->in + at, bytes);
      status = barrier(own);
      for (int rank = 0; rank < own->size && status == SUCCESS; ++rank) {
        memcpy(each->out + (uint64_t)rank * part + at, own->shared->data[rank], bytes);
      }
      if (status == SUCCESS) status = barrier(own);
    }
    if (status != SUCCESS) return status;
    at += bytes;
  }
  return SUCCESS;
}

static void on_stream(void* argument) {
  task* each = argument;
  if (each->own->error == SUCCESS) each->own->error = run(each);
  free(each);
}

static int enqueue(comm* own, call what, const void* in, uint64_t in_count, void* out,
                   uint64_t out_count, void* stream) {
  int current = -1;
  const size_t element = size_of(what.type);
  get_device(&current);
  if (current != own->device || what.op < 0 || what.op > 3) return USAGE;
  if (element == 0 || what.root < 0 || what.root >= own->size) return ARGUMENT;
  if (own->error != SUCCESS) return own->error;
  what.sequence = ++own->sequence;
  if (what.count == 0) return SUCCESS;
  task* made = malloc(sizeof *made);
  *made = (task){own, what, host_view(in, in_count * element), host_view(out, out_count * element)};
  if (made->in == NULL || made->out == NULL) return free(made), ARGUMENT;
  if (launch(stream, on_stream, made) != 0) return free(made), DEVICE_ERROR;
  return SUCCESS;
}

API int F(AllReduce)(const void* in, void* out, size_t count, int type, int op, comm* own,
                     void* stream) {
  const call what = {.kind = ALL_REDUCE, .type = type, .op = op, .count = count};
  return enqueue(own, what, in, count, out, count, stream);
}
API int F(ReduceScatter)(const void* in, void* out, size_t count, int type, int op, comm* own,
                         void* stream) {
  const call what = {.kind = REDUCE_SCATTER, .type = type, .op = op, .count = count};
  return enqueue(own, what, in, count * (size_t)own->size, out, count, stream);
}
API int F(AllGather)(const void* in, void* out, size_t count, int type, comm* own, void* stream) {
  const call what = {.kind = ALL_GATHER, .type = type, .count = count};
  return enqueue(own, what, in, count, out, count * (size_t)own->size, stream);
}
API int F(Broadcast)(const void* in, void* out, size_t count, int type, int root, comm* own,
                     void* stream) {
  const call what = {.kind = BROADCAST, .type = type, .root = root, .count = count};
  return enqueue(own, what, in, count, out, count, stream);
}
API const char* F(GetErrorString)(int code) {
  switch (code) {
    case DEVICE_ERROR: return "unhandled device error";
    case SYSTEM: return "unhandled system error";
    case ARGUMENT: return "invalid argument";
    case USAGE: return "invalid usage";
    case REMOTE: return "remote process exited or there was a network error";
    default: return "no error";
  }
}
