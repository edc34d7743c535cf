/* SPDX-License-Identifier: Apache-2.0
 *
 * A complete device plug-in: how the vendor of a chip that hccomm does not know joins it. Build it
 * as a shared library and name it:
 *
 *     cc -shared -fPIC -I csrc/capi -o libexamplechip.so examples/device_plugin.c -lpthread
 *     HCCOMM_PLUGINS=$PWD/libexamplechip.so hccomm info
 *
 * Its "chip" is host memory, one worker thread is all its streams: what a vendor replaces are the
 * bodies, by calls of his own runtime. The rules are in hccomm_device.h; tests/cpp/conformance runs
 * this file through all of them. */
#include <hccomm_device.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEVICES = 2, OK = 0, NO_MEMORY = 1, NO_DEVICE = 2, NO_REDUCTION = 3 };
enum { I32 = 3, F32 = 13, SUM = 0 }; /* of hccomm.h */

/* Work for the worker: copy, reduce, or count an event up. */
typedef struct work {
  struct work* next;
  void* dst;
  const void* src;
  size_t bytes;
  const void* host; /* dst = src + host, of this type */
  int32_t type;
  struct event* event;
} work;

typedef struct event {
  unsigned long recorded, completed; /* how often */
} event;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards all of these */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static work *first, **last = &first;
static int running;

/* ---- the "chip" ----------------------------------------------------------------------------- */

static void add(const work* each) {
  size_t i;
  if (each->type == F32) {
    const float *a = each->src, *b = each->host;
    float* sum = each->dst;
    for (i = 0; i < each->bytes / sizeof *sum; ++i) {
      const float value = a[i] + b[i];
      sum[i] = value == value ? value : __builtin_nanf(""); /* all ranks have the same NaN */
    }
  } else {
    const uint32_t *a = each->src, *b = each->host; /* wraps */
    uint32_t* sum = each->dst;
    for (i = 0; i < each->bytes / sizeof *sum; ++i) sum[i] = a[i] + b[i];
  }
}

static void* run(void* unused) {
  (void)unused;
  pthread_mutex_lock(&lock);
  for (;;) {
    while (first == NULL) pthread_cond_wait(&changed, &lock);
    work* each = first;
    pthread_mutex_unlock(&lock);
    if (each->host != NULL) {
      add(each);
    } else if (each->bytes > 0) {
      memcpy(each->dst, each->src, each->bytes);
    }
    pthread_mutex_lock(&lock);
    if (each->event != NULL) ++each->event->completed;
    first = each->next;
    if (first == NULL) last = &first;
    free(each);
  }
  return NULL;
}

/* One queue for all streams keeps any order that streams and events ask for. */
static int enqueue(work wanted) {
  work* made = malloc(sizeof *made);
  if (made == NULL) return NO_MEMORY;
  *made = wanted;
  made->next = NULL;
  pthread_mutex_lock(&lock);
  if (made->event != NULL) ++made->event->recorded;
  *last = made;
  last = &made->next;
  pthread_cond_signal(&changed);
  pthread_mutex_unlock(&lock);
  return OK;
}

/* ---- the table ------------------------------------------------------------------------------ */

/* Called when a tensor of this kind first comes, and by hccomm info: the place to load and
 * initialise the vendor's runtime. */
static int probe(void* context, char* reason, size_t capacity) {
  pthread_t thread;
  (void)context;
  pthread_mutex_lock(&lock);
  if (!running && pthread_create(&thread, NULL, run, NULL) == 0) {
    pthread_detach(thread);
    running = 1;
  }
  pthread_mutex_unlock(&lock);
  if (!running) snprintf(reason, capacity, "no thread can be started; raise the limit of threads");
  return running ? OK : NO_DEVICE;
}

static int count(void* context, int32_t* devices) {
  (void)context;
  *devices = DEVICES;
  return OK;
}

static int describe(void* context, int32_t index, char* out, size_t capacity) {
  (void)context;
  snprintf(out, capacity, "Example chip %d", index);
  return OK;
}

static void error_text(void* context, int code, char* out, size_t capacity) {
  const char* const words[] = {"no error", "out of memory", "no such device",
                               "it sums f32 and i32 only"};
  (void)context;
  snprintf(out, capacity, "%s", words[code]);
}

static int host_allocate(void* context, int32_t index, size_t bytes, void** address) {
  (void)context;
  if (index < 0 || index >= DEVICES) return NO_DEVICE;
  return posix_memalign(address, 4096, bytes > 0 ? bytes : 1) == 0 ? OK : NO_MEMORY;
}
static void host_free(void* context, int32_t index, void* address) {
  (void)context, (void)index;
  free(address);
}

/* Device memory: the handle is whatever the chip's programs pass as the address of a tensor. */
static int allocate(void* context, int32_t index, size_t bytes, hccomm_device_place* place) {
  (void)context;
  if (index < 0 || index >= DEVICES) return NO_DEVICE;
  place->handle = malloc(bytes > 0 ? bytes : 1);
  place->offset = 0;
  return place->handle != NULL ? OK : NO_MEMORY;
}
static void release(void* context, int32_t index, hccomm_device_place place) {
  (void)context, (void)index;
  free(place.handle);
}

static int stream_create(void* context, int32_t index, void** native) {
  (void)context;
  *native = NULL; /* all streams are the one queue */
  return index >= 0 && index < DEVICES ? OK : NO_DEVICE;
}
static void stream_destroy(void* context, int32_t index, void* native) {
  (void)context, (void)index, (void)native;
}

static int copy_in(void* context, hccomm_device_stream stream, hccomm_device_place dst,
                   const void* host, size_t bytes) {
  (void)context, (void)stream;
  return enqueue((work){.dst = (char*)dst.handle + dst.offset, .src = host, .bytes = bytes});
}
static int copy_out(void* context, hccomm_device_stream stream, void* host, hccomm_device_place src,
                    size_t bytes) {
  (void)context, (void)stream;
  return enqueue((work){.dst = host, .src = (char*)src.handle + src.offset, .bytes = bytes});
}

static int event_create(void* context, int32_t index, void** made) {
  (void)context;
  if (index < 0 || index >= DEVICES) return NO_DEVICE;
  *made = calloc(1, sizeof(event));
  return *made != NULL ? OK : NO_MEMORY;
}
static void event_destroy(void* context, int32_t index, void* gone) {
  (void)context, (void)index;
  free(gone);
}
static int event_record(void* context, void* recorded, hccomm_device_stream stream) {
  (void)context, (void)stream;
  return enqueue((work){.event = recorded});
}
static int event_query(void* context, int32_t index, void* asked, int32_t* done) {
  const event* each = asked;
  (void)context, (void)index;
  pthread_mutex_lock(&lock);
  *done = each->completed == each->recorded;
  pthread_mutex_unlock(&lock);
  return OK;
}
static int stream_wait(void* context, hccomm_device_stream stream, void* awaited) {
  (void)context, (void)stream, (void)awaited; /* one queue: what was recorded is before */
  return OK;
}

/* Sums of what is here and what has come. Addition gives the same bits whichever comes first. */
static int reduce_in(void* context, hccomm_device_stream stream, hccomm_device_place dst,
                     hccomm_device_place src, const void* host, uint64_t elements, int32_t type,
                     int32_t op, int32_t host_first) {
  (void)context, (void)stream, (void)host_first;
  if ((type != F32 && type != I32) || op != SUM) return NO_REDUCTION;
  if (elements == 0) return OK; /* asked whether it can */
  return enqueue((work){.dst = (char*)dst.handle + dst.offset,
                        .src = (char*)src.handle + src.offset,
                        .bytes = elements * 4,
                        .host = host,
                        .type = type});
}

/* What is left out is optional: hccomm then says why it stages without it. */
static const hccomm_device_plugin_v1 table = {
    .struct_size = sizeof table,
    .abi_version = HCCOMM_DEVICE_PLUGIN_ABI,
    .name = "examplechip",
    .summary = "an example of a device plug-in",
    .probe = probe,
    .count = count,
    .describe = describe,
    .error_text = error_text,
    .host_allocate = host_allocate,
    .host_free = host_free,
    .allocate = allocate,
    .release = release,
    .stream_create = stream_create,
    .stream_destroy = stream_destroy,
    .copy_in = copy_in,
    .copy_out = copy_out,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_query = event_query,
    .stream_wait = stream_wait,
    .reduce_in = reduce_in,
};

HCCOMM_API const hccomm_device_plugin_v1* hccomm_device_plugin(void) { return &table; }
