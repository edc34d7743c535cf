/* SPDX-License-Identifier: Apache-2.0
 *
 * A fake libcnrt: the queue stands before the direction, and directions are numbered in CNRT's own
 * way (0 in, 1 on the device, 2 out). */
#include <stdio.h>

#include "fake.h"

__attribute__((constructor)) static void open_fake(void) { fake_open(FAKE_NAME); }

static int told(int answer) {
  switch (answer) {
    case FAKE_OK: return 0;
    case FAKE_NOT_READY: return 632014;
    case FAKE_HANDLE: return 100014;
    case FAKE_MEMORY: return 100100;
    case FAKE_NO_DEVICE: return 100005;
    case FAKE_LOST: return 632015;
    case FAKE_INJECTED: return fake_injected;
    default: return 100006;
  }
}

#define FAIL_HERE(call)                             \
  do {                                              \
    const int injected = fake_fails(call);          \
    if (injected != FAKE_OK) return told(injected); \
  } while (0)

FAKE_API int cnrtGetDeviceCount(unsigned* count) {
  FAIL_HERE("GetDeviceCount");
  *count = (unsigned)fake_devices();
  return 0;
}
FAKE_API int cnrtSetDevice(int device) { return told(fake_set_current(device)); }
FAKE_API int cnrtGetDevice(int* device) {
  *device = fake_current();
  return 0;
}

FAKE_API int cnrtMalloc(void** address, size_t bytes) {
  FAIL_HERE("Malloc");
  return told(fake_allocate(address, bytes));
}
FAKE_API int cnrtFree(void* address) { return told(fake_free(address)); }
FAKE_API int cnrtHostMalloc(void** address, size_t bytes) {
  FAIL_HERE("HostMalloc");
  *address = NULL;
  return told(fake_pin(address, bytes));
}
FAKE_API int cnrtFreeHost(void* address) { return told(fake_unpin(address, 1)); }

FAKE_API int cnrtMemcpyAsync_V2(void* dst, void* src, size_t bytes, fake_stream* queue,
                                int direction) {
  static const fake_direction directions[] = {FAKE_TO_DEVICE, FAKE_ON_DEVICE, FAKE_TO_HOST};
  FAIL_HERE("MemcpyAsync");
  if (direction < 0 || direction > 2) return told(fake_misuse());
  return told(fake_copy(dst, src, bytes, directions[direction], queue));
}

FAKE_API int cnrtQueueCreate(fake_stream** queue) { return told(fake_stream_create(queue)); }
FAKE_API int cnrtQueueDestroy(fake_stream* queue) { return told(fake_stream_destroy(queue)); }
FAKE_API int cnrtQueueQuery(fake_stream* queue) { return told(fake_stream_query(queue)); }
FAKE_API int cnrtQueueSync(fake_stream* queue) { return told(fake_stream_sync(queue)); }
FAKE_API int cnrtQueueWaitNotifier(fake_event* notifier, fake_stream* queue, unsigned flags) {
  return told(flags != 0 ? fake_misuse() : fake_stream_wait(queue, notifier));
}

FAKE_API int cnrtNotifierCreate(fake_event** notifier) { return told(fake_event_create(notifier)); }
FAKE_API int cnrtNotifierDestroy(fake_event* notifier) {
  return told(fake_event_destroy(notifier));
}
FAKE_API int cnrtPlaceNotifier(fake_event* notifier, fake_stream* queue) {
  FAIL_HERE("PlaceNotifier");
  return told(fake_event_record(notifier, queue));
}
FAKE_API int cnrtQueryNotifier(fake_event* notifier) { return told(fake_event_query(notifier)); }
FAKE_API const char* cnrtGetErrorStr(int code) {
  return code == 100100 ? "there is no sufficient MLU Device memory" : "fake CNRT";
}
FAKE_API int cnrtDeviceGetPCIBusId(char* out, int capacity, int device) {
  snprintf(out, (size_t)capacity, "0000:%02x:00.0", 0x40 + device);
  return 0;
}
