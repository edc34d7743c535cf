/* SPDX-License-Identifier: Apache-2.0
 *
 * The device seam in C: what a vendor writes so that hccomm can reach the memory of its chip. A
 * plug-in is a shared library that exports
 *
 *     const hccomm_device_plugin_v1* hccomm_device_plugin(void);
 *
 * and is named in HCCOMM_PLUGINS (paths, comma separated); a program that has the table already
 * gives it to hccomm_device_register. examples/device_plugin.c is a complete one.
 *
 * Every function may be called from any thread, makes the device current itself and puts back what
 * was current. None may block except where it says so, throw, print or abort. They return 0, or a
 * code of the vendor (not 0) for which `error_text` has words. `context` is the table's own.
 */
#ifndef HCCOMM_DEVICE_H
#define HCCOMM_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if !defined(HCCOMM_API)
#if defined(__GNUC__)
#define HCCOMM_API __attribute__((visibility("default")))
#else
#define HCCOMM_API
#endif
#endif

#define HCCOMM_DEVICE_PLUGIN_ABI 1

/* Device memory: a handle, which need be no pointer, and bytes from its beginning. */
typedef struct hccomm_device_place {
  void* handle;
  uint64_t offset;
} hccomm_device_place;

/* A queue that works in order. ours != 0: native came from stream_create; else it is the caller's
 * (NULL: the default one of the device). */
typedef struct hccomm_device_stream {
  int32_t index; /* of the device */
  int32_t ours;
  void* native;
} hccomm_device_stream;

/* Optional functions may be NULL. */
typedef struct hccomm_device_plugin_v1 {
  uint32_t struct_size; /* sizeof(hccomm_device_plugin_v1); less: what was added later lacks */
  uint32_t abi_version; /* HCCOMM_DEVICE_PLUGIN_ABI */
  const char* name;     /* "examplechip": lower case, unique; ranks tell each other by it */
  const char* summary;  /* for hccomm info */
  void* context;

  /* 0 when the runtime is here; else writes why not into `reason`. May block, may be called again.
   */
  int (*probe)(void* context, char* reason, size_t capacity);
  int (*count)(void* context, int32_t* count);
  /* Optional: the calling thread's device. */
  int (*current)(void* context, int32_t* index);
  /* Optional: "Example Chip X, 0000:17:00.0". */
  int (*describe)(void* context, int32_t index, char* out, size_t capacity);
  void (*error_text)(void* context, int code, char* out, size_t capacity);
  /* Optional: 0, or the code of an error that the device will not recover from. */
  int (*health)(void* context, int32_t index);
  /* Addresses on both sides that are multiples of this are copied without detours; 0 means 1. */
  uint32_t alignment;

  /* Pinned host memory, aligned to 4096 bytes. */
  int (*host_allocate)(void* context, int32_t index, size_t bytes, void** address);
  void (*host_free)(void* context, int32_t index, void* address);
  /* Optional, both or none: pin and unpin memory of somebody else. */
  int (*host_register)(void* context, int32_t index, void* address, size_t bytes);
  void (*host_unregister)(void* context, int32_t index, void* address);
  /* Device memory, for tests and benches. */
  int (*allocate)(void* context, int32_t index, size_t bytes, hccomm_device_place* place);
  void (*release)(void* context, int32_t index, hccomm_device_place place);

  int (*stream_create)(void* context, int32_t index, void** native);
  void (*stream_destroy)(void* context, int32_t index, void* native);
  /* Enqueue and return; `host` is pinned. */
  int (*copy_in)(void* context, hccomm_device_stream stream, hccomm_device_place dst,
                 const void* host, size_t bytes);
  int (*copy_out)(void* context, hccomm_device_stream stream, void* host, hccomm_device_place src,
                  size_t bytes);

  int (*event_create)(void* context, int32_t index, void** event);
  void (*event_destroy)(void* context, int32_t index, void* event);
  /* The event stands for all work now in the stream; recording again forgets the former. */
  int (*event_record)(void* context, void* event, hccomm_device_stream stream);
  /* *done = 1 when that work is complete, or when the event was never recorded. */
  int (*event_query)(void* context, int32_t index, void* event, int32_t* done);
  /* Later work of the stream starts after the event. */
  int (*stream_wait)(void* context, hccomm_device_stream stream, void* event);

  /* Optional: a dmabuf descriptor, the caller's to close. */
  int (*dmabuf)(void* context, int32_t index, hccomm_device_place place, size_t bytes, int* fd);

  /* Added later. Optional: enqueues dst = src op host for `count` elements and returns; dst is src
   * or apart from it, `host` is pinned, the stream is one of stream_create. `type` and `op` are
   * numbers of hccomm.h (HCCOMM_F32, HCCOMM_SUM); host_first != 0: host op src. Asked with count 0
   * and no stream it says whether it can: 0, or a code. The bits must be those of IEEE arithmetic
   * without contraction, each NaN the positive quiet one, f16 and bf16 computed in f32 and rounded
   * to nearest even; of equal operands MIN and MAX take the right one. hccomm tries that, and how
   * fast it is, at the first use, and leaves to the host what differs or is slower. */
  int (*reduce_in)(void* context, hccomm_device_stream stream, hccomm_device_place dst,
                   hccomm_device_place src, const void* host, uint64_t count, int32_t type,
                   int32_t op, int32_t host_first);
} hccomm_device_plugin_v1;

typedef const hccomm_device_plugin_v1* (*hccomm_device_plugin_function)(void);

/* Adds a kind of device to this process, whose number for hccomm_buffer.device_kind is *kind. The
 * table must stay where it is. The same table may be registered again: the number is the same. */
struct hccomm_error;
HCCOMM_API int hccomm_device_register(const hccomm_device_plugin_v1* plugin, int32_t* kind,
                                      struct hccomm_error* error);

#ifdef __cplusplus
}
#endif

#endif /* HCCOMM_DEVICE_H */
