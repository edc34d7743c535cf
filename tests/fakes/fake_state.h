/* SPDX-License-Identifier: Apache-2.0
 *
 * What fake.c (settings, memory) and fake_stream.c (workers, events) share. */
#ifndef HCCOMM_TESTS_FAKE_STATE_H
#define HCCOMM_TESTS_FAKE_STATE_H

#include <pthread.h>

#include "fake.h"

enum { FAKE_MAX_DEVICES = 8, FAKE_MAX_FAILURES = 16 };

typedef struct block {
  struct block* next;
  char* user;  /* what the caller has; device memory faults here */
  char* alias; /* the same pages, for us; equal to user for pinned memory */
  size_t bytes, mapped;
  int device, owned;
  int fd;     /* of device memory */
  int opens;  /* of another process's memory; 0: it is ours */
  int sealed; /* cannot be exported */
} block;

/* What stands behind the bytes of device memory, in a page of its own that all processes see. */
typedef struct tail {
  uint64_t number;
  int32_t opened; /* by other processes */
} tail;

typedef struct task {
  struct task* next;
  enum { TASK_COPY, TASK_RECORD, TASK_WAIT, TASK_CALL } kind;
  char *dst, *src;
  size_t bytes;
  fake_direction direction;
  int64_t queued_ns;
  fake_event* event;
  uint64_t generation;
  void (*function)(void*);
  void* argument;
} task;

struct fake_stream {
  uint32_t magic;
  fake_stream* next;
  int device, alive;
  task *first, *last;
  int busy; /* tasks not complete */
};

struct fake_event {
  uint32_t magic;
  fake_event* next;
  int device, alive;
  uint64_t recorded, completed; /* generations: the latest record, and how far it has come */
};

typedef struct fake_settings {
  int devices;
  double latency_us, gbps;
  int64_t memory, lose_in;
  int64_t flip_in[3]; /* by fake_direction */
  struct {
    char call[40];
    int64_t in; /* 0: free */
    int code;
  } failures[FAKE_MAX_FAILURES];
  int dmabuf, ipc, vmm;
} fake_settings;

extern pthread_mutex_t fake_lock; /* guards all of these */
extern pthread_cond_t fake_changed;
extern fake_counters fake_counts;
extern fake_settings fake_set_to;
extern block* fake_device_blocks;
extern block* fake_pinned_blocks;
extern fake_stream* fake_streams; /* dead ones too, so that a stale handle is told */
extern int fake_lost[FAKE_MAX_DEVICES];
extern __thread int fake_device; /* the calling thread's */

/* The block that holds all of these bytes, or NULL. Requires: the lock. */
block* fake_find(block* list, const void* address, size_t bytes);
/* The block that begins there, taken out of the list, or NULL. Requires: the lock. */
block* fake_take(block** list, const void* address);
/* Device memory of a descriptor, mapped twice: the caller's view has no permissions, ours has all.
 */
block* fake_map(int fd, size_t bytes);
void fake_unmap(block* gone);
tail* fake_tail(const block* of);
/* Whether a task that is not complete uses these bytes. Requires: the lock. */
int fake_in_use(const char* begin, size_t bytes);
int fake_misuse_locked(int code);

#endif
