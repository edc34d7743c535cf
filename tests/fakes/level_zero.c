/* SPDX-License-Identifier: Apache-2.0
 *
 * A fake Level Zero driver that the real loader takes (ZE_ENABLE_ALT_DRIVERS=/path/to/this). The
 * loader asks for 54 tables of functions, of which those in use are filled here, by their places in
 * ze_ddi.h; the others answer with success and stay empty. */
#include <stdlib.h>
#include <string.h>

#include "fake.h"

enum { LOST = 0x70000001, MEMORY = 0x70000003, INVALID = 0x78000004, HANDLE = 0x78000005 };

/* The loader reads the first word of a driver's and a device's handle in tracing builds. */
static void* driver_object[4];
static void* device_objects[8][4];

/* An event of Level Zero is signalled by a list and reset by the host. */
typedef struct ze_event {
  fake_event* event;
  int device, signalled; /* whether a signal was asked for since the reset */
} ze_event;
typedef struct ze_list {
  fake_stream* stream;
  int device;
} ze_list;

__attribute__((constructor)) static void open_fake(void) { fake_open(FAKE_NAME); }

static int told(int answer) {
  switch (answer) {
    case FAKE_OK: return 0;
    case FAKE_NOT_READY: return 1;
    case FAKE_HANDLE: return HANDLE;
    case FAKE_MEMORY: return MEMORY;
    case FAKE_LOST: return LOST;
    case FAKE_INJECTED: return fake_injected;
    default: return INVALID;
  }
}

static int index_of(void* device) {
  for (int each = 0; each < fake_devices(); ++each) {
    if (device == device_objects[each]) return each;
  }
  return -1;
}

static int init(uint32_t flags) {
  (void)flags;
  return 0;
}
static int get_drivers(uint32_t* count, void** drivers) {
  *count = 1;
  if (drivers != NULL) drivers[0] = driver_object;
  return 0;
}
static int api_version(void* driver, uint32_t* version) {
  (void)driver;
  *version = 0x10004;
  return 0;
}
static int get_devices(void* driver, uint32_t* count, void** devices) {
  (void)driver;
  for (int each = 0; devices != NULL && each < fake_devices(); ++each) {
    devices[each] = device_objects[each];
  }
  *count = (uint32_t)fake_devices();
  return 0;
}
static int create_context(void* driver, const void* desc, void** context) {
  static void* object[4];
  (void)desc;
  *context = driver == driver_object ? object : NULL;
  return 0;
}
static int context_status(void* context, void* device) {
  (void)context;
  fake_set_current(index_of(device));
  return told(fake_health());
}

static int allocate_host(void* context, const void* desc, size_t bytes, size_t align,
                         void** address) {
  (void)context, (void)desc;
  if (fake_fails("MemAllocHost") != FAKE_OK) return fake_injected;
  *address = NULL;
  return told(align > 4096 ? fake_misuse() : fake_pin(address, bytes));
}
static int allocate_device(void* context, const void* desc, size_t bytes, size_t align,
                           void* device, void** address) {
  (void)context, (void)desc, (void)align;
  if (fake_fails("MemAllocDevice") != FAKE_OK) return fake_injected;
  if (fake_set_current(index_of(device)) != FAKE_OK) return told(fake_misuse());
  return told(fake_allocate(address, bytes));
}
static int release(void* context, void* address) {
  (void)context;
  if (fake_is_pinned(address, 1)) return told(fake_unpin(address, 1));
  return told(fake_free(address));
}

/* Intel's own: memory of others is pinned, and named by the driver's handle, not the loader's. */
static int import_pointer(void* driver, void* address, size_t bytes) {
  if (fake_fails("DriverImportExternalPointer") != FAKE_OK) return fake_injected;
  if (driver != driver_object || address == NULL) return told(fake_misuse());
  return told(fake_pin(&address, bytes));
}
static int release_pointer(void* driver, void* address) {
  return told(driver == driver_object ? fake_unpin(address, 0) : fake_misuse());
}
static int extension(void* driver, const char* name, void** function) {
  (void)driver;
  *function = strcmp(name, "zexDriverImportExternalPointer") == 0    ? (void*)import_pointer
              : strcmp(name, "zexDriverReleaseImportedPointer") == 0 ? (void*)release_pointer
                                                                     : NULL;
  return *function != NULL ? 0 : INVALID;
}

static int create_list(void* context, void* device, const void* desc, ze_list** list) {
  (void)context, (void)desc;
  if (fake_set_current(index_of(device)) != FAKE_OK) return told(fake_misuse());
  *list = calloc(1, sizeof **list);
  (*list)->device = index_of(device);
  return told(fake_stream_create(&(*list)->stream));
}
static int destroy_list(ze_list* list) {
  fake_set_current(list->device);
  const int answer = told(fake_stream_destroy(list->stream));
  free(list);
  return answer;
}

static int wait_and_signal(ze_list* list, ze_event* signal, uint32_t waits, ze_event** events) {
  fake_set_current(list->device);
  int answer = FAKE_OK;
  for (uint32_t each = 0; each < waits && answer == FAKE_OK; ++each) {
    /* A wait for what nobody was asked to signal would never end. */
    answer = events[each]->signalled ? fake_stream_wait(list->stream, events[each]->event)
                                     : fake_misuse();
  }
  if (signal != NULL && answer == FAKE_OK) {
    if (signal->signalled) fake_misuse(); /* it was not reset */
    signal->signalled = 1;
    answer = fake_event_record(signal->event, list->stream);
  }
  return told(answer);
}
static int append_copy(ze_list* list, void* dst, const void* src, size_t bytes, ze_event* signal,
                       uint32_t waits, ze_event** events) {
  if (fake_fails("CommandListAppendMemoryCopy") != FAKE_OK) return fake_injected;
  fake_set_current(list->device);
  const int in = fake_host_view(dst, bytes) != NULL;
  const int out = fake_host_view(src, bytes) != NULL;
  const fake_direction way = in && out ? FAKE_ON_DEVICE : in ? FAKE_TO_DEVICE : FAKE_TO_HOST;
  if (waits > 0) wait_and_signal(list, NULL, waits, events);
  const int answer = fake_copy(dst, src, bytes, way, list->stream);
  return answer != FAKE_OK ? told(answer) : wait_and_signal(list, signal, 0, NULL);
}

static int create_pool(void* context, const void* desc, uint32_t count, void** devices,
                       void** pool) {
  (void)context, (void)desc;
  if (count != 1) return told(fake_misuse());
  int* made = malloc(sizeof *made);
  *made = index_of(devices[0]);
  *pool = made;
  return 0;
}
static int destroy_pool(void* pool) {
  free(pool);
  return 0;
}
static int create_event(int* pool, const void* desc, ze_event** event) {
  (void)desc;
  *event = calloc(1, sizeof **event);
  (*event)->device = *pool;
  fake_set_current(*pool);
  return told(fake_event_create(&(*event)->event));
}
static int destroy_event(ze_event* event) {
  const int answer = told(fake_event_destroy(event->event));
  free(event);
  return answer;
}
static int query_event(ze_event* event) {
  return event->signalled ? told(fake_event_query(event->event)) : 1;
}
static int reset_event(ze_event* event) {
  event->signalled = 0;
  return 0;
}

/* ---- what the loader asks for --------------------------------------------------------------- */

typedef void (*entry)(void);
#define TABLE(name, ...)                                           \
  FAKE_API int zeGet##name##ProcAddrTable(int version, entry* t) { \
    (void)version;                                                 \
    __VA_ARGS__;                                                   \
    return 0;                                                      \
  }
#define AT(place, function) t[place] = (entry)function
TABLE(Global, AT(0, init))
TABLE(Driver, AT(0, get_drivers); AT(1, api_version); AT(5, extension))
TABLE(Device, AT(0, get_devices))
TABLE(Context, AT(0, create_context); AT(2, context_status))
TABLE(CommandList, AT(1, create_list); AT(2, destroy_list); AT(6, wait_and_signal);
      AT(8, append_copy))
TABLE(Event, AT(0, create_event); AT(1, destroy_event); AT(4, query_event); AT(5, reset_event))
TABLE(EventPool, AT(0, create_pool); AT(1, destroy_pool))
TABLE(Mem, AT(1, allocate_device); AT(2, allocate_host); AT(3, release))

#define EMPTY(name)                                             \
  FAKE_API int name##ProcAddrTable(int version, entry* table) { \
    (void)version, (void)table;                                 \
    return 0;                                                   \
  }
EMPTY(zeGetCommandQueue)
EMPTY(zeGetDeviceExp)
EMPTY(zeGetEventExp)
EMPTY(zeGetFabricEdgeExp)
EMPTY(zeGetFabricVertexExp)
EMPTY(zeGetFence)
EMPTY(zeGetImage)
EMPTY(zeGetImageExp)
EMPTY(zeGetKernel)
EMPTY(zeGetKernelExp)
EMPTY(zeGetModule)
EMPTY(zeGetModuleBuildLog)
EMPTY(zeGetPhysicalMem)
EMPTY(zeGetSampler)
EMPTY(zeGetVirtualMem)
EMPTY(zesGetDevice)
EMPTY(zesGetDiagnostics)
EMPTY(zesGetDriver)
EMPTY(zesGetEngine)
EMPTY(zesGetFabricPort)
EMPTY(zesGetFan)
EMPTY(zesGetFirmware)
EMPTY(zesGetFrequency)
EMPTY(zesGetLed)
EMPTY(zesGetMemory)
EMPTY(zesGetPerformanceFactor)
EMPTY(zesGetPower)
EMPTY(zesGetPsu)
EMPTY(zesGetRas)
EMPTY(zesGetScheduler)
EMPTY(zesGetStandby)
EMPTY(zesGetTemperature)
EMPTY(zetGetCommandList)
EMPTY(zetGetContext)
EMPTY(zetGetDebug)
EMPTY(zetGetDevice)
EMPTY(zetGetKernel)
EMPTY(zetGetMetric)
EMPTY(zetGetMetricGroup)
EMPTY(zetGetMetricGroupExp)
EMPTY(zetGetMetricQuery)
EMPTY(zetGetMetricQueryPool)
EMPTY(zetGetMetricStreamer)
EMPTY(zetGetModule)
EMPTY(zetGetTracerExp)
