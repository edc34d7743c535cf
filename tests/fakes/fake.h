/* SPDX-License-Identifier: Apache-2.0
 *
 * What every fake vendor runtime stands on: device memory that faults when the host touches it, one
 * worker per stream, copies that take time, injected errors, and counts of what was done wrong or
 * never given back. cuda_shaped.c, acl.c and cnrt.c put a vendor's names on top. Compiled into each
 * of these libraries; nothing here is shared between two of them.
 *
 * HCCOMM_TEST_FAKE and HCCOMM_TEST_FAKE_<NAME> hold settings, comma separated (fake_set takes them
 * one by one at run time):
 *   devices=2            how many there are
 *   latency_us=5         of a copy
 *   gbps=0               of copies, per device and direction; 0: as fast as memory is
 *   memory=1073741824    bytes a device has; beyond them there are none
 *   fail=CALL:N:CODE     the N-th next CALL (without prefix) fails with CODE
 *   dmabuf=0             1: memory can be exported as a dmabuf, in pages of 4096 bytes
 *   ipc=1                0: no memory of another process can be opened; 2: what is has one page
 *   vmm=0                1: memory allocated from now on is of a kind that IPC cannot export
 *   lost=N               the N-th next copy fails behind the caller's back; the device stays lost
 *   flip_in=N, flip_out=N  the N-th next copy to a device (from one) changes a bit on its way
 */
#ifndef HCCOMM_TESTS_FAKE_H
#define HCCOMM_TESTS_FAKE_H

#include <stddef.h>
#include <stdint.h>

#define FAKE_API __attribute__((visibility("default")))

enum {
  FAKE_OK = 0,
  FAKE_NOT_READY,
  FAKE_INVALID,   /* an argument */
  FAKE_HANDLE,    /* a stream or event that is none, or of another device */
  FAKE_MEMORY,    /* there is no more */
  FAKE_NO_DEVICE, /* no such index */
  FAKE_LOST,      /* sticky */
  FAKE_CONTEXT,   /* IPC within the process that exported */
  FAKE_NO_PEER,   /* IPC with a device that is not reached from here */
  FAKE_INJECTED   /* fake_injected holds the vendor's code */
};

typedef enum { FAKE_TO_DEVICE, FAKE_TO_HOST, FAKE_ON_DEVICE } fake_direction;

/* What stands in a dmabuf: which memory it is. */
typedef struct fake_dmabuf {
  char magic[8]; /* "dmabuf" */
  const void* address;
  size_t bytes;
} fake_dmabuf;

typedef struct fake_stream fake_stream;
typedef struct fake_event fake_event;

/* What tests look at, by fake_count(name). */
typedef struct fake_counters {
  int64_t device_blocks, pinned_blocks, streams, events; /* alive now */
  int64_t copies, bytes_in, bytes_out;                   /* done */
  int64_t pageable_copies; /* of host memory that was not pinned: they block the caller */
  int64_t misuses;         /* rules broken; each was also an error */
  int64_t opened;          /* memory of other processes: opens not closed yet */
  int64_t freed_opened;    /* blocks that were freed while another process had them open */
} fake_counters;

extern __thread int fake_injected;

/* Exported by every fake library. */
FAKE_API int fake_set(const char* setting); /* "latency_us=50"; 0 or -1 */
FAKE_API int64_t fake_count(const char* name);
FAKE_API const char* fake_name(void);
/* The host's view of device memory, for fakes that compute (CCLs); NULL when out of bounds. */
FAKE_API void* fake_host_view(const void* device, size_t bytes);
/* For them as well: the calling thread's device, and a call in a stream's order (0 or -1). */
FAKE_API int fake_current_device(void);
FAKE_API int fake_launch(void* stream, void (*function)(void*), void* argument);

/* For the files with the vendor's names. `name` is that of the settings. */
void fake_open(const char* name);
int fake_fails(const char* call); /* FAKE_OK, or FAKE_INJECTED with fake_injected set */
int fake_devices(void);
int fake_current(void);
int fake_set_current(int device);
int fake_misuse(void); /* counts one and gives FAKE_INVALID */

int fake_allocate(void** address, size_t bytes);
int fake_free(void* address);
int fake_pin(void** address, size_t bytes); /* allocates when *address is NULL */
int fake_unpin(void* address, int release);
int fake_is_pinned(const void* address, size_t bytes);
/* Between processes: handles are of whole blocks and 64 bytes long; each open needs a close. */
int fake_range(void** base, size_t* bytes, const void* address);
uint64_t fake_number(const void* address); /* of the block: no two have the same */
int fake_ipc_get(void* handle, const void* base);
int fake_ipc_open(void** address, const void* handle);
int fake_ipc_close(void* address);
int fake_export(int* fd, const void* address, size_t bytes); /* fake_dmabuf, for fake cards */

int fake_stream_create(fake_stream** stream);
int fake_stream_destroy(fake_stream* stream);
int fake_stream_query(fake_stream* stream); /* NULL: the default stream of the current device */
int fake_stream_sync(fake_stream* stream);
int fake_copy(void* dst, const void* src, size_t bytes, fake_direction direction,
              fake_stream* stream);
int fake_call(fake_stream* stream, void (*function)(void*), void* argument);

int fake_event_create(fake_event** event);
int fake_event_destroy(fake_event* event);
int fake_event_record(fake_event* event, fake_stream* stream);
int fake_event_query(fake_event* event);
int fake_event_sync(fake_event* event);
int fake_stream_wait(fake_stream* stream, fake_event* event);
int fake_health(void); /* of the current device */

#endif
