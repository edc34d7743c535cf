/* SPDX-License-Identifier: Apache-2.0
 *
 * A fake libascendcl with ACL's rules: a thread needs a context before any other call, asynchronous
 * copies want pinned memory and addresses on 64 bytes, an event that was not recorded is not ready.
 * -DFAKE_OLD leaves out aclrtCreateEventExWithFlag: then a recorded event stays so until it is
 * replaced. */
#include <stdint.h>
#include <stdlib.h>

#include "fake.h"

typedef struct acl_event {
  fake_event* event;
  int recorded, old;
} acl_event;

enum { INVALID = 100000, REPEATED = 100002, NO_CONTEXT = 107002, NO_DEVICE = 107001 };

static int initialised;
static char contexts[8]; /* their addresses are the contexts */
static __thread char* context;

__attribute__((constructor)) static void open_fake(void) { fake_open(FAKE_NAME); }

static int told(int answer) {
  switch (answer) {
    case FAKE_OK: return 0;
    case FAKE_HANDLE: return 107003;
    case FAKE_MEMORY: return 207001;
    case FAKE_NO_DEVICE: return NO_DEVICE;
    case FAKE_LOST: return 507899;
    case FAKE_INJECTED: return fake_injected;
    default: return INVALID;
  }
}

/* Without a context on this thread nothing works. */
#define NEED_CONTEXT(call)                                                 \
  do {                                                                     \
    if (!initialised || context == NULL) return fake_misuse(), NO_CONTEXT; \
    const int injected = fake_fails(call);                                 \
    if (injected != FAKE_OK) return told(injected);                        \
  } while (0)

FAKE_API int aclInit(const char* config) {
  (void)config;
  if (initialised) return REPEATED;
  initialised = 1;
  return 0;
}
FAKE_API int aclrtGetDeviceCount(uint32_t* count) {
  *count = (uint32_t)fake_devices();
  return 0;
}
FAKE_API int aclrtSetDevice(int32_t device) {
  const int answer = fake_set_current(device);
  if (answer == FAKE_OK) context = &contexts[device];
  return told(answer);
}
FAKE_API int aclrtGetDevice(int32_t* device) {
  if (context == NULL) return NO_CONTEXT;
  *device = (int32_t)(context - contexts);
  return 0;
}
FAKE_API int aclrtGetCurrentContext(void** out) {
  if (context == NULL) return NO_CONTEXT;
  *out = context;
  return 0;
}
FAKE_API int aclrtSetCurrentContext(void* wanted) {
  char* asked = wanted;
  if (asked < contexts || asked >= contexts + fake_devices()) return told(fake_misuse());
  context = asked;
  return told(fake_set_current((int)(asked - contexts)));
}

FAKE_API int aclrtMalloc(void** address, size_t bytes, int policy) {
  NEED_CONTEXT("Malloc");
  return told(policy > 9 ? fake_misuse() : fake_allocate(address, bytes));
}
FAKE_API int aclrtFree(void* address) {
  NEED_CONTEXT("Free");
  return told(fake_free(address));
}
FAKE_API int aclrtMallocHost(void** address, size_t bytes) {
  NEED_CONTEXT("MallocHost");
  *address = NULL;
  return told(fake_pin(address, bytes));
}
FAKE_API int aclrtFreeHost(void* address) {
  NEED_CONTEXT("FreeHost");
  return told(fake_unpin(address, 1));
}

FAKE_API int aclrtMemcpyAsync(void* dst, size_t room, const void* src, size_t bytes, int kind,
                              void* stream) {
  NEED_CONTEXT("MemcpyAsync");
  const void* host = kind == 1 ? src : dst;
  if (kind < 1 || kind > 3 || room < bytes) return told(fake_misuse());
  if (((uintptr_t)dst | (uintptr_t)src) % 64 != 0) return told(fake_misuse());
  if (kind != 3 && !fake_is_pinned(host, bytes)) return told(fake_misuse());
  return told(fake_copy(dst, src, bytes, (fake_direction)(kind - 1), stream));
}
FAKE_API int aclrtMemcpy(void* dst, size_t room, const void* src, size_t bytes, int kind) {
  NEED_CONTEXT("Memcpy");
  if (kind < 1 || kind > 3 || room < bytes) return told(fake_misuse());
  const int answer = fake_copy(dst, src, bytes, (fake_direction)(kind - 1), NULL);
  return told(answer != FAKE_OK ? answer : fake_stream_sync(NULL));
}

FAKE_API int aclrtCreateStream(fake_stream** stream) {
  NEED_CONTEXT("CreateStream");
  return told(fake_stream_create(stream));
}
FAKE_API int aclrtDestroyStream(fake_stream* stream) {
  NEED_CONTEXT("DestroyStream");
  return told(fake_stream_destroy(stream));
}
FAKE_API int aclrtSynchronizeStream(fake_stream* stream) {
  NEED_CONTEXT("SynchronizeStream");
  return told(fake_stream_sync(stream));
}
FAKE_API int aclrtStreamWaitEvent(fake_stream* stream, acl_event* event) {
  NEED_CONTEXT("StreamWaitEvent");
  return told(event->recorded ? fake_stream_wait(stream, event->event) : fake_misuse());
}

static int create(acl_event** event, unsigned flags, int old) {
  if (flags != 1) return told(fake_misuse()); /* an event to wait for must say so */
  *event = calloc(1, sizeof **event);
  (*event)->old = old;
  return told(fake_event_create(&(*event)->event));
}
FAKE_API int aclrtCreateEventWithFlag(acl_event** event, unsigned flags) {
  NEED_CONTEXT("CreateEventWithFlag");
  return create(event, flags, 1);
}
#ifndef FAKE_OLD
FAKE_API int aclrtCreateEventExWithFlag(acl_event** event, unsigned flags) {
  NEED_CONTEXT("CreateEventExWithFlag");
  return create(event, flags, 0);
}
#endif
FAKE_API int aclrtDestroyEvent(acl_event* event) {
  NEED_CONTEXT("DestroyEvent");
  const int answer = told(fake_event_destroy(event->event));
  free(event);
  return answer;
}
FAKE_API int aclrtRecordEvent(acl_event* event, fake_stream* stream) {
  NEED_CONTEXT("RecordEvent");
  if (event->old && event->recorded) return told(fake_misuse()); /* it was not reset */
  event->recorded = 1;
  return told(fake_event_record(event->event, stream));
}
FAKE_API int aclrtQueryEventStatus(acl_event* event, int* status) {
  NEED_CONTEXT("QueryEventStatus");
  const int answer = fake_event_query(event->event);
  *status = event->recorded && answer == FAKE_OK; /* 1: complete */
  return told(answer == FAKE_NOT_READY ? FAKE_OK : answer);
}
FAKE_API const char* aclGetRecentErrMsg(void) { return "fake ACL"; }
FAKE_API const char* aclrtGetSocName(void) { return "FakeAscend910"; }
