/* SPDX-License-Identifier: Apache-2.0
 *
 * The machinery of the fake collective libraries (ccl.h), over the fake runtime that
 * -DRUNTIME_SETTING="HCCOMM_CUDA_LIB" names. */
#define _GNU_SOURCE
#include "ccl.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAX_RANKS = 16, CHUNK = 1 << 16, LETTER = 1 << 13, PATIENCE_S = 600, MAX_GROUP = 128 };

/* A message from one rank to another, a piece at a time. */
typedef struct {
  uint64_t bytes; /* 0: empty */
  char data[LETTER];
} letter;

/* What ranks share. Any of them may be killed or stopped at any point: no other waits for it with
 * the lock, and what is slept on (a futex) forgets those who died there, as a condition does not.
 */
typedef struct {
  pthread_mutex_t mutex; /* robust */
  _Atomic uint32_t changes;
  int size, joined, refused, broken, waiting;
  uint64_t round;
  char device[MAX_RANKS][32]; /* process and index */
  ccl_call calls[MAX_RANKS];
  uint64_t numbers[MAX_RANKS];
  char data[MAX_RANKS][CHUNK];
  letter letters[MAX_RANKS][MAX_RANKS]; /* from, to */
} meeting;

struct ccl_comm {
  meeting* shared;
  int rank, size, device;
  uint64_t number;          /* of the last call */
  _Atomic int error, tasks; /* the first is written by the stream's worker */
};

typedef struct {
  ccl_comm* own;
  ccl_call what;
  uint64_t number;
  const char* in;
  char* out;
  uint64_t moved; /* of a message */
} task;

/* Messages that start together, or one call. */
typedef struct {
  int count;
  task tasks[];
} batch;

static int (*current_device)(void);
static int (*launch)(void* stream, void (*)(void*), void*);
static void* (*host_view)(const void*, size_t);
static __thread int depth, held;
static __thread task* group; /* while depth > 0: the fakes' static TLS is small */
static __thread void* group_stream;

/* The runtime that the program already uses. */
static void find_runtime(void) {
  const char* path = getenv(RUNTIME_SETTING);
  void* library = path != NULL ? dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD) : NULL;
  if (library == NULL) return;
  current_device = (int (*)(void))dlsym(library, "fake_current_device");
  launch = (int (*)(void*, void (*)(void*), void*))dlsym(library, "fake_launch");
  host_view = (void* (*)(const void*, size_t))dlsym(library, "fake_host_view");
}

static int has_runtime(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, find_runtime);
  return current_device != NULL && launch != NULL && host_view != NULL;
}

static _Atomic int fails_kind, fails_after, ends_kind, ends_after, ends_by;

API void fake_ccl_fail(int kind, int n) {
  fails_kind = kind;
  fails_after = n;
}

API void fake_ccl_end(int kind, int n, int by) {
  ends_kind = kind;
  ends_by = by;
  ends_after = n;
}

/* In the midst of the call in which a test wants the process to end, it does. */
static void perish(int kind) {
  if (ends_after > 0 && ends_kind == kind && --ends_after == 0) kill(getpid(), ends_by);
}

/* Whether this call is the one that a test wants to fail. */
static int injected(int kind) {
  return fails_after > 0 && fails_kind == kind && --fails_after == 0;
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

static double now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

/* Takes the lock. Who dies with it leaves it to the next; who is stopped with it, for good. */
static int lock(meeting* shared) {
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += 1;
  const int taken = pthread_mutex_timedlock(&shared->mutex, &until);
  if (taken == EOWNERDEAD) {
    shared->broken = 1;
    pthread_mutex_consistent(&shared->mutex);
  }
  return taken == 0 || taken == EOWNERDEAD;
}

static void tell_change(meeting* shared) {
  ++shared->changes;
  syscall(SYS_futex, &shared->changes, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* Waits for a change; false: too long, or the lock is lost. Requires: the lock. */
static int wait_change(meeting* shared, double until) {
  const uint32_t seen = shared->changes;
  const struct timespec slice = {0, 200000000};
  pthread_mutex_unlock(&shared->mutex);
  syscall(SYS_futex, &shared->changes, FUTEX_WAIT, seen, &slice, NULL, 0);
  if (!lock(shared)) return 0;
  if (now() < until) return 1;
  shared->broken = 1;
  tell_change(shared);
  return 1;
}

/* All ranks, or an error for all. */
static int barrier(ccl_comm* own) {
  meeting* shared = own->shared;
  const double until = now() + PATIENCE_S;
  if (!lock(shared)) return CCL_REMOTE;
  const uint64_t round = shared->round;
  if (++shared->waiting == shared->size) {
    shared->waiting = 0;
    ++shared->round;
    tell_change(shared);
  }
  while (shared->round == round && !shared->broken) {
    if (!wait_change(shared, until)) return CCL_REMOTE;
  }
  const int broken = shared->broken;
  pthread_mutex_unlock(&shared->mutex);
  return broken ? CCL_REMOTE : CCL_OK;
}

int ccl_make_name(char name[CCL_NAME]) {
  static int made;
  pthread_mutexattr_t mutex;
  memset(name, 0, CCL_NAME);
  snprintf(name, CCL_NAME, "/fake-ccl-%d-%d", (int)getpid(), __sync_add_and_fetch(&made, 1));
  meeting* shared = open_meeting(name, 1);
  if (shared == NULL) return CCL_SYSTEM;
  pthread_mutexattr_init(&mutex);
  pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&mutex, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&shared->mutex, &mutex);
  munmap(shared, sizeof *shared);
  return CCL_OK;
}

int ccl_join(ccl_comm** out, const char* name, int size, int rank) {
  if (size < 1 || size > MAX_RANKS || rank < 0 || rank >= size) return CCL_ARGUMENT;
  if (!has_runtime() || injected(JOIN)) return CCL_SYSTEM; /* the others are left waiting */
  ccl_comm* own = calloc(1, sizeof *own);
  own->shared = open_meeting(name, 0);
  if (own->shared == NULL) return free(own), CCL_ARGUMENT;
  own->rank = rank;
  own->size = size;
  own->device = current_device();
  meeting* shared = own->shared;
  const double until = now() + PATIENCE_S;
  perish(JOIN);
  if (!lock(shared)) return shm_unlink(name), free(own), CCL_USAGE;
  snprintf(shared->device[rank], sizeof shared->device[rank], "%d:%d", (int)getpid(), own->device);
  for (int each = 0; each < size; ++each) {
    if (each != rank && strcmp(shared->device[each], shared->device[rank]) == 0) {
      shared->refused = 1; /* duplicate device */
    }
  }
  if (shared->size != 0 && shared->size != size) shared->refused = 1;
  shared->size = size;
  if (++shared->joined == size) shm_unlink(name);
  tell_change(shared);
  while (shared->joined < size && !shared->refused && !shared->broken) {
    if (!wait_change(shared, until)) return shm_unlink(name), free(own), CCL_USAGE;
  }
  /* Who has come in may have left again by now. */
  const int refused = shared->refused || (shared->joined < size && shared->broken);
  if (refused) tell_change(shared);
  pthread_mutex_unlock(&shared->mutex);
  if (refused) return shm_unlink(name), free(own), CCL_USAGE;
  *out = own;
  return CCL_OK;
}

void ccl_leave(ccl_comm* own, int broken) {
  if (broken > 1 ? own->tasks > 0 : broken) {
    const int taken = lock(own->shared);
    own->shared->broken = 1;
    tell_change(own->shared);
    if (taken) pthread_mutex_unlock(&own->shared->mutex);
  }
  for (int look = 0; own->tasks > 0 && look < PATIENCE_S * 10000; ++look) usleep(100);
  if (own->tasks > 0) return; /* its stream does not come to it: left behind */
  munmap(own->shared, sizeof *own->shared);
  free(own);
}

int ccl_error(const ccl_comm* own) { return own->error; }
int ccl_size(const ccl_comm* own) { return own->size; }
int ccl_rank(const ccl_comm* own) { return own->rank; }

/* ---- the work ------------------------------------------------------------------------------- */

/* One piece of every rank's input, reduced or as it is, to `out` where that is not NULL. */
static int piece(task* each, uint64_t at, uint64_t bytes, int from, char* out) {
  ccl_comm* own = each->own;
  meeting* shared = own->shared;
  if (each->in != NULL) {
    memcpy(shared->data[own->rank], each->in + at, bytes);
    if (from < 0 && each->what.op == PREMUL) {
      ccl_scale(each->what.type, shared->data[own->rank], bytes, each->what.factor);
    }
  }
  if (barrier(own) != CCL_OK) return CCL_REMOTE;
  perish(each->what.kind);
  if (out != NULL && from >= 0) memcpy(out, shared->data[from], bytes);
  if (out != NULL && from < 0) {
    char sum[CHUNK];
    memcpy(sum, shared->data[0], bytes);
    for (int rank = 1; rank < own->size; ++rank) {
      ccl_combine(each->what.type, each->what.op, sum, shared->data[rank], bytes);
    }
    if (each->what.op == AVG) ccl_scale(each->what.type, sum, bytes, 1.0 / own->size);
    memcpy(out, sum, bytes);
  }
  return barrier(own);
}

static int same(const ccl_call* a, const ccl_call* b) {
  return a->kind == b->kind && a->type == b->type && a->op == b->op && a->root == b->root &&
         a->count == b->count;
}

static int run(task* each) {
  ccl_comm* own = each->own;
  const ccl_call what = each->what;
  const uint64_t part = what.count * ccl_size_of(what.type);
  own->shared->calls[own->rank] = what;
  own->shared->numbers[own->rank] = each->number;
  if (barrier(own) != CCL_OK) return CCL_REMOTE;
  for (int rank = 0; rank < own->size; ++rank) { /* all see it */
    if (!same(&own->shared->calls[rank], &what)) return CCL_USAGE;
    if (own->shared->numbers[rank] != each->number) return CCL_USAGE;
  }
  const uint64_t total = what.kind == REDUCE_SCATTER ? part * (uint64_t)own->size : part;
  for (uint64_t at = 0; at < total;) {
    const uint64_t end = what.kind == REDUCE_SCATTER ? (at / part + 1) * part : total;
    const uint64_t bytes = end - at < CHUNK ? end - at : CHUNK;
    const int is_root = what.root == own->rank;
    int status = CCL_OK;
    switch (what.kind) {
      case ALL_REDUCE: status = piece(each, at, bytes, -1, each->out + at); break;
      case REDUCE: status = piece(each, at, bytes, -1, is_root ? each->out + at : NULL); break;
      case BROADCAST: status = piece(each, at, bytes, what.root, each->out + at); break;
      case REDUCE_SCATTER: {
        const int mine = at / part == (uint64_t)own->rank;
        status = piece(each, at, bytes, -1, mine ? each->out + at % part : NULL);
        break;
      }
      default:
        memcpy(own->shared->data[own->rank], each->in + at, bytes);
        status = barrier(own);
        perish(what.kind);
        for (int rank = 0; rank < own->size && status == CCL_OK; ++rank) {
          memcpy(each->out + (uint64_t)rank * part + at, own->shared->data[rank], bytes);
        }
        if (status == CCL_OK) status = barrier(own);
    }
    if (status != CCL_OK) return status;
    at += bytes;
  }
  return CCL_OK;
}

/* Moves what can be moved of a message. Requires: the lock. */
static int advance(task* each) {
  meeting* shared = each->own->shared;
  const int sends = each->what.kind == SEND, me = each->own->rank, peer = each->what.root;
  letter* box = sends ? &shared->letters[me][peer] : &shared->letters[peer][me];
  const uint64_t left = each->what.count - each->moved;
  const uint64_t bytes = left < LETTER ? left : LETTER;
  if (left == 0 || sends != (box->bytes == 0)) return 0;
  if (sends) {
    memcpy(box->data, each->in + each->moved, bytes);
    box->bytes = bytes;
  } else {
    if (box->bytes != bytes) return shared->broken = 1, 0; /* the sender has another length */
    memcpy(each->out + each->moved, box->data, bytes);
    box->bytes = 0;
  }
  each->moved += bytes;
  return 1;
}

/* Of the messages of a pair, the earlier one goes first. */
static int is_next(const batch* all, int which) {
  for (int each = 0; each < which; ++each) {
    const task* other = &all->tasks[each];
    if (other->what.kind == all->tasks[which].what.kind && other->moved < other->what.count &&
        other->what.root == all->tasks[which].what.root) {
      return 0;
    }
  }
  return 1;
}

static int deliver(batch* all) {
  meeting* shared = all->tasks[0].own->shared;
  const double until = now() + PATIENCE_S;
  int status = CCL_OK;
  perish(all->tasks[0].what.kind);
  if (!lock(shared)) return CCL_REMOTE;
  for (;;) {
    int left = 0, moved = 0;
    for (int each = 0; each < all->count; ++each) {
      if (is_next(all, each)) moved += advance(&all->tasks[each]);
      left += all->tasks[each].moved < all->tasks[each].what.count;
    }
    if (shared->broken) status = CCL_REMOTE;
    if (moved > 0) tell_change(shared);
    if (left == 0 || status != CCL_OK) break;
    if (moved == 0 && !wait_change(shared, until)) return CCL_REMOTE;
  }
  pthread_mutex_unlock(&shared->mutex);
  return status;
}

static void on_stream(void* argument) {
  batch* all = argument;
  ccl_comm* own = all->tasks[0].own;
  int status = own->error;
  const int letters = all->tasks[0].what.kind >= SEND;
  if (status == CCL_OK && letters) status = deliver(all);
  for (int each = 0; each < all->count && status == CCL_OK && !letters; ++each) {
    status = run(&all->tasks[each]);
  }
  if (status != CCL_OK && own->error == CCL_OK) own->error = status;
  free(all);
  --own->tasks;
}

static int send_off(const task* tasks, int count, void* stream) {
  batch* made = malloc(sizeof *made + (size_t)count * sizeof *tasks);
  made->count = count;
  memcpy(made->tasks, tasks, (size_t)count * sizeof *tasks);
  ++tasks[0].own->tasks;
  if (launch(stream, on_stream, made) == 0) return CCL_OK;
  --tasks[0].own->tasks;
  free(made);
  return CCL_DEVICE;
}

int ccl_begin(void) {
  if (depth++ == 0) group = calloc(MAX_GROUP, sizeof *group);
  return group != NULL ? CCL_OK : CCL_SYSTEM;
}

/* Collectives of a group go one by one, in order; its messages together. */
int ccl_end(void) {
  if (depth == 0) return CCL_USAGE;
  if (--depth > 0) return CCL_OK;
  int status = CCL_OK, first = 0;
  for (int each = 1; each <= held && status == CCL_OK; ++each) {
    const int letters = group[first].what.kind >= SEND;
    if (each < held && letters == (group[each].what.kind >= SEND) && letters) continue;
    status = send_off(&group[first], each - first, group_stream);
    first = each;
  }
  held = 0;
  free(group);
  group = NULL;
  return status;
}

int ccl_start(ccl_comm* own, ccl_call what, const void* in, uint64_t in_count, void* out,
              uint64_t out_count, void* stream) {
  const uint64_t element = ccl_size_of(what.type);
  if (current_device() != own->device || what.op < 0 || what.op > PREMUL) return CCL_USAGE;
  if (element == 0 || what.root < 0 || what.root >= own->size) return CCL_ARGUMENT;
  if (own->error != CCL_OK) return own->error;
  if (injected(what.kind)) return CCL_DEVICE;
  if (what.kind >= SEND && depth == 0) return CCL_USAGE;
  task made = {own, what, what.kind < SEND ? ++own->number : 0, NULL, NULL, 0};
  if (what.count == 0) return CCL_OK;
  made.in = in != NULL ? host_view(in, in_count * element) : NULL;
  made.out = out != NULL ? host_view(out, out_count * element) : NULL;
  if ((in != NULL && made.in == NULL) || (out != NULL && made.out == NULL)) return CCL_ARGUMENT;
  if (what.kind >= SEND) made.what.count *= element; /* from now on bytes */
  if (depth == 0) return send_off(&made, 1, stream);
  if (held == MAX_GROUP || (held > 0 && group_stream != stream)) return CCL_USAGE;
  group_stream = stream;
  group[held++] = made;
  return CCL_OK;
}
