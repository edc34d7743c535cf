/* SPDX-License-Identifier: Apache-2.0
 *
 * A fake runtime with CUDA's functions under any prefix: compiled once per vendor with
 * -DFAKE_PREFIX=cuda -DFAKE_NAME="CUDA". -DFAKE_OLD leaves out what older runtimes lack, and names
 * pinned memory as HIP does; -DFAKE_DRIVER=cu adds functions of the driver. */
#include <stdio.h>
#include <string.h>

#include "fake.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define F(name) JOIN(FAKE_PREFIX, name)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

static __thread int last_error;

__attribute__((constructor)) static void open_fake(void) { fake_open(FAKE_NAME); }

/* CUDA's number for what happened; remembered as the thread's last error. */
static int told(int answer) {
  int code = 0;
  switch (answer) {
    case FAKE_OK: return 0;
    case FAKE_NOT_READY: return 600;
    case FAKE_INVALID: code = 1; break;
    case FAKE_HANDLE: code = 400; break;
    case FAKE_MEMORY: code = 2; break;
    case FAKE_NO_DEVICE: code = 101; break;
    case FAKE_LOST: code = 719; break;
    case FAKE_CONTEXT: code = 201; break;
    case FAKE_NO_PEER: code = 217; break;
    default: code = fake_injected; break;
  }
  last_error = code;
  return code;
}

#define FAIL_HERE(call)                             \
  do {                                              \
    const int injected = fake_fails(call);          \
    if (injected != FAKE_OK) return told(injected); \
  } while (0)

FAKE_API int F(GetDeviceCount)(int* count) {
  FAIL_HERE("GetDeviceCount");
  if (fake_devices() == 0) return told(FAKE_NO_DEVICE), 100; /* *count is not written */
  *count = fake_devices();
  return 0;
}
FAKE_API int F(SetDevice)(int device) { return told(fake_set_current(device)); }
FAKE_API int F(GetDevice)(int* device) {
  *device = fake_current();
  return 0;
}

FAKE_API int F(Malloc)(void** address, size_t bytes) {
  FAIL_HERE("Malloc");
  return told(fake_allocate(address, bytes));
}
FAKE_API int F(Free)(void* address) { return told(fake_free(address)); }

#ifdef FAKE_OLD
FAKE_API int F(HostMalloc)(void** address, size_t bytes, unsigned flags) {
  FAIL_HERE("HostMalloc");
  *address = NULL;
  return told(flags != 0 ? fake_misuse() : fake_pin(address, bytes));
}
FAKE_API int F(HostFree)(void* address) { return told(fake_unpin(address, 1)); }
#else
FAKE_API int F(HostAlloc)(void** address, size_t bytes, unsigned flags) {
  FAIL_HERE("HostAlloc");
  *address = NULL;
  return told(flags > 7 ? fake_misuse() : fake_pin(address, bytes));
}
FAKE_API int F(FreeHost)(void* address) { return told(fake_unpin(address, 1)); }
FAKE_API int F(HostRegister)(void* address, size_t bytes, unsigned flags) {
  FAIL_HERE("HostRegister");
  return told(flags > 7 || address == NULL ? fake_misuse() : fake_pin(&address, bytes));
}
FAKE_API int F(HostUnregister)(void* address) { return told(fake_unpin(address, 0)); }
FAKE_API int F(StreamQuery)(fake_stream* stream) { return told(fake_stream_query(stream)); }
FAKE_API int F(DeviceGetPCIBusId)(char* out, int capacity, int device) {
  if (device < 0 || device >= fake_devices()) return told(FAKE_NO_DEVICE);
  snprintf(out, (size_t)capacity, "0000:%02x:00.0", 0x10 + device);
  return 0;
}
FAKE_API int F(RuntimeGetVersion)(int* version) {
  *version = 12090;
  return 0;
}

typedef struct ipc_handle {
  char bytes[64];
} ipc_handle;
FAKE_API int F(IpcGetMemHandle)(ipc_handle* handle, void* base) {
  FAIL_HERE("IpcGetMemHandle");
  return told(fake_ipc_get(handle, base));
}
FAKE_API int F(IpcOpenMemHandle)(void** address, ipc_handle handle, unsigned flags) {
  FAIL_HERE("IpcOpenMemHandle");
  return told(flags != 1 ? fake_misuse() : fake_ipc_open(address, &handle));
}
FAKE_API int F(IpcCloseMemHandle)(void* address) { return told(fake_ipc_close(address)); }
#endif

FAKE_API int F(MemcpyAsync)(void* dst, const void* src, size_t bytes, int kind,
                            fake_stream* stream) {
  FAIL_HERE("MemcpyAsync");
  if (kind < 1 || kind > 3) return told(fake_misuse());
  return told(fake_copy(dst, src, bytes, (fake_direction)(kind - 1), stream));
}

#ifdef FAKE_OLD
FAKE_API int F(StreamCreate)(fake_stream** stream) { return told(fake_stream_create(stream)); }
#else
FAKE_API int F(StreamCreateWithFlags)(fake_stream** stream, unsigned flags) {
  FAIL_HERE("StreamCreateWithFlags");
  return told(flags > 1 ? fake_misuse() : fake_stream_create(stream));
}
#endif
FAKE_API int F(StreamSynchronize)(fake_stream* stream) { return told(fake_stream_sync(stream)); }
FAKE_API int F(StreamDestroy)(fake_stream* stream) { return told(fake_stream_destroy(stream)); }
FAKE_API int F(StreamWaitEvent)(fake_stream* stream, fake_event* event, unsigned flags) {
  FAIL_HERE("StreamWaitEvent");
  return told(flags != 0 ? fake_misuse() : fake_stream_wait(stream, event));
}
FAKE_API int F(LaunchHostFunc)(fake_stream* stream, void (*function)(void*), void* argument) {
  return told(fake_call(stream, function, argument));
}

FAKE_API int F(EventCreateWithFlags)(fake_event** event, unsigned flags) {
  FAIL_HERE("EventCreateWithFlags");
  return told(flags > 7 ? fake_misuse() : fake_event_create(event));
}
FAKE_API int F(EventRecord)(fake_event* event, fake_stream* stream) {
  FAIL_HERE("EventRecord");
  return told(fake_event_record(event, stream));
}
FAKE_API int F(EventQuery)(fake_event* event) {
  FAIL_HERE("EventQuery");
  return told(fake_event_query(event));
}
FAKE_API int F(EventSynchronize)(fake_event* event) { return told(fake_event_sync(event)); }
FAKE_API int F(EventDestroy)(fake_event* event) { return told(fake_event_destroy(event)); }

/* A lost device stays the last error of every thread that works on it. */
FAKE_API int F(GetLastError)(void) {
  const int code = last_error;
  last_error = fake_health() == FAKE_LOST ? 719 : 0;
  return code;
}
FAKE_API const char* F(GetErrorString)(int code) {
  switch (code) {
    case 0: return "no error";
    case 1: return "invalid argument";
    case 2: return "out of memory";
    case 100: return "no device is detected";
    case 101: return "invalid device ordinal";
    case 201: return "invalid device context";
    case 217: return "peer access is not supported between these two devices";
    case 400: return "invalid resource handle";
    case 600: return "device not ready";
    case 719: return "unspecified launch failure";
    default: return "injected failure";
  }
}

#ifdef FAKE_DRIVER
#define D(name) JOIN(FAKE_DRIVER, name)
FAKE_API int D(DeviceGetName)(char* out, int capacity, int device) {
  snprintf(out, (size_t)capacity, "Fake %s %d", TEXT(FAKE_PREFIX), device);
  return 0;
}
FAKE_API int D(MemGetHandleForAddressRange)(void* handle, uintptr_t address, size_t bytes, int type,
                                            unsigned long long flags) {
  FAIL_HERE("MemGetHandleForAddressRange");
  if (type != 1 || flags != 0) return told(fake_misuse());
  return told(fake_export(handle, (const void*)address, bytes));
}
FAKE_API int D(MemGetAddressRange_v2)(void** base, size_t* bytes, void* address) {
  return told(fake_range(base, bytes, address));
}
FAKE_API int D(PointerGetAttribute)(void* value, int which, void* address) {
  const uint64_t number = fake_number(address);
  if (which != 7 || number == 0) return told(FAKE_INVALID);
  memcpy(value, &number, sizeof number);
  return 0;
}
#endif
