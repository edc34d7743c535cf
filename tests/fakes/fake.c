/* SPDX-License-Identifier: Apache-2.0
 *
 * The machinery of the fake runtimes; fake.h says what it is for. One mutex guards everything, and
 * workers copy outside it. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_state.h"

pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t fake_changed = PTHREAD_COND_INITIALIZER;
fake_counters fake_counts;
block* fake_device_blocks;
block* fake_pinned_blocks;
fake_stream* fake_streams;
int fake_lost[FAKE_MAX_DEVICES];
__thread int fake_device;
__thread int fake_injected;
fake_settings fake_set_to = {.devices = 2, .latency_us = 5, .memory = 1 << 30, .ipc = 1};
static const char* library_name = "";
static int64_t used_bytes[FAKE_MAX_DEVICES];

/* ---- settings ------------------------------------------------------------------------------- */

static int add_failure(const char* text) {
  char call[40];
  long in = 0, code = 0;
  char* rest = NULL;
  const size_t length = strcspn(text, ":");
  if (length >= sizeof call || text[length] != ':') return -1;
  memcpy(call, text, length);
  call[length] = '\0';
  in = strtol(text + length + 1, &rest, 10);
  if (*rest != ':') return -1;
  code = strtol(rest + 1, &rest, 10);
  for (int i = 0; i < FAKE_MAX_FAILURES; ++i) {
    if (fake_set_to.failures[i].in != 0) continue;
    strcpy(fake_set_to.failures[i].call, call);
    fake_set_to.failures[i].in = in;
    fake_set_to.failures[i].code = (int)code;
    return 0;
  }
  return -1;
}

static int set_locked(const char* setting) {
  const char* value = strchr(setting, '=');
  if (value == NULL) return -1;
  const size_t length = (size_t)(value++ - setting);
#define IS(name) (length == strlen(name) && strncmp(setting, name, length) == 0)
  if (IS("fail")) return add_failure(value);
  const double number = strtod(value, NULL);
  if (IS("devices") && number >= 0 && number <= FAKE_MAX_DEVICES) {
    fake_set_to.devices = (int)number;
  } else if (IS("latency_us")) {
    fake_set_to.latency_us = number;
  } else if (IS("gbps")) {
    fake_set_to.gbps = number;
  } else if (IS("memory")) {
    fake_set_to.memory = (int64_t)number;
  } else if (IS("dmabuf")) {
    fake_set_to.dmabuf = number != 0;
  } else if (IS("ipc")) {
    fake_set_to.ipc = (int)number;
  } else if (IS("vmm")) {
    fake_set_to.vmm = number != 0;
  } else if (IS("flip_in")) {
    fake_set_to.flip_in[FAKE_TO_DEVICE] = (int64_t)number;
  } else if (IS("flip_out")) {
    fake_set_to.flip_in[FAKE_TO_HOST] = (int64_t)number;
  } else if (IS("lost")) {
    fake_set_to.lose_in = (int64_t)number;
    if (fake_set_to.lose_in == 0) memset(fake_lost, 0, sizeof fake_lost);
  } else {
    return -1;
  }
#undef IS
  return 0;
}

static void set_all(const char* list) {
  char one[128];
  while (list != NULL && *list != '\0') {
    const size_t length = strcspn(list, ",");
    if (length < sizeof one) {
      memcpy(one, list, length);
      one[length] = '\0';
      set_locked(one);
    }
    list += length + (list[length] == ',');
  }
}

void fake_open(const char* name) {
  char variable[80] = "HCCOMM_TEST_FAKE_";
  library_name = name;
  strncat(variable, name, sizeof variable - strlen(variable) - 1);
  set_all(getenv("HCCOMM_TEST_FAKE"));
  set_all(getenv(variable));
}

int fake_set(const char* setting) {
  pthread_mutex_lock(&fake_lock);
  const int answer = set_locked(setting);
  pthread_mutex_unlock(&fake_lock);
  return answer;
}

const char* fake_name(void) { return library_name; }

int64_t fake_count(const char* name) {
  int64_t value = -1;
  pthread_mutex_lock(&fake_lock);
#define COUNTER(field) \
  if (strcmp(name, #field) == 0) value = fake_counts.field
  COUNTER(device_blocks);
  COUNTER(pinned_blocks);
  COUNTER(streams);
  COUNTER(events);
  COUNTER(copies);
  COUNTER(bytes_in);
  COUNTER(bytes_out);
  COUNTER(pageable_copies);
  COUNTER(misuses);
  COUNTER(opened);
  COUNTER(freed_opened);
#undef COUNTER
  pthread_mutex_unlock(&fake_lock);
  return value;
}

int fake_fails(const char* call) {
  int code = 0;
  pthread_mutex_lock(&fake_lock);
  for (int i = 0; i < FAKE_MAX_FAILURES; ++i) {
    if (fake_set_to.failures[i].in == 0 || strcmp(fake_set_to.failures[i].call, call) != 0)
      continue;
    if (--fake_set_to.failures[i].in == 0) code = fake_set_to.failures[i].code;
  }
  pthread_mutex_unlock(&fake_lock);
  fake_injected = code;
  return code != 0 ? FAKE_INJECTED : FAKE_OK;
}

/* ---- devices -------------------------------------------------------------------------------- */

int fake_devices(void) { return fake_set_to.devices; }
int fake_current(void) { return fake_device; }

int fake_set_current(int device) {
  if (device < 0 || device >= fake_set_to.devices) return FAKE_NO_DEVICE;
  fake_device = device;
  return FAKE_OK;
}

int fake_misuse_locked(int code) {
  ++fake_counts.misuses;
  return code;
}

int fake_misuse(void) {
  pthread_mutex_lock(&fake_lock);
  ++fake_counts.misuses;
  pthread_mutex_unlock(&fake_lock);
  return FAKE_INVALID;
}

int fake_health(void) {
  pthread_mutex_lock(&fake_lock);
  const int answer = fake_lost[fake_device] ? FAKE_LOST : FAKE_OK;
  pthread_mutex_unlock(&fake_lock);
  return answer;
}

/* ---- memory --------------------------------------------------------------------------------- */

block* fake_find(block* list, const void* address, size_t bytes) {
  const char* at = address;
  for (; list != NULL; list = list->next) {
    if (at >= list->user && at + bytes <= list->user + list->bytes) return list;
  }
  return NULL;
}

block* fake_take(block** list, const void* address) {
  for (; *list != NULL; list = &(*list)->next) {
    if ((*list)->user == address) {
      block* found = *list;
      *list = found->next;
      return found;
    }
  }
  return NULL;
}

void* fake_host_view(const void* device, size_t bytes) {
  pthread_mutex_lock(&fake_lock);
  const block* found = fake_find(fake_device_blocks, device, bytes);
  void* view = found != NULL ? found->alias + ((const char*)device - found->user) : NULL;
  pthread_mutex_unlock(&fake_lock);
  return view;
}

int fake_export(int* fd, const void* address, size_t bytes) {
  pthread_mutex_lock(&fake_lock);
  const block* found = fake_find(fake_device_blocks, address, 1);
  const int good = found != NULL && (uintptr_t)address % 4096 == 0 && bytes % 4096 == 0 &&
                   bytes <= found->mapped - (size_t)((const char*)address - found->user);
  const int allowed = fake_set_to.dmabuf;
  pthread_mutex_unlock(&fake_lock);
  if (!allowed) return FAKE_NO_DEVICE;
  if (!good) return fake_misuse();
  const fake_dmabuf told = {"dmabuf", address, bytes};
  *fd = memfd_create("fake dmabuf", MFD_CLOEXEC);
  return *fd >= 0 && pwrite(*fd, &told, sizeof told, 0) == (ssize_t)sizeof told ? FAKE_OK
                                                                                : FAKE_MEMORY;
}

block* fake_map(int fd, size_t bytes) {
  const size_t mapped = (bytes + 4095) / 4096 * 4096;
  block* made = calloc(1, sizeof *made);
  made->user = mmap(NULL, mapped, PROT_NONE, MAP_SHARED, fd, 0);
  made->alias = mmap(NULL, mapped + 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  made->bytes = bytes;
  made->mapped = mapped;
  made->fd = fd;
  made->device = fake_device;
  return made;
}

void fake_unmap(block* gone) {
  munmap(gone->user, gone->mapped);
  munmap(gone->alias, gone->mapped + 4096);
  close(gone->fd);
  free(gone);
}

tail* fake_tail(const block* of) { return (tail*)(void*)(of->alias + of->mapped); }

static block* make_block(size_t bytes) {
  static uint64_t number;
  const int fd = memfd_create("fake device memory", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, (off_t)((bytes + 4095) / 4096 * 4096 + 4096)) != 0) return NULL;
  block* made = fake_map(fd, bytes);
  memset(made->alias, 0xA5, made->mapped); /* new device memory holds anything */
  fake_tail(made)->number = ++number;
  made->sealed = fake_set_to.vmm;
  return made;
}

int fake_allocate(void** address, size_t bytes) {
  int answer = FAKE_MEMORY;
  *address = NULL;
  if (bytes == 0) return FAKE_OK;
  pthread_mutex_lock(&fake_lock);
  if (fake_lost[fake_device]) {
    answer = FAKE_LOST;
  } else if (used_bytes[fake_device] + (int64_t)bytes <= fake_set_to.memory) {
    block* made = make_block(bytes);
    if (made != NULL) {
      made->next = fake_device_blocks;
      fake_device_blocks = made;
      used_bytes[fake_device] += (int64_t)bytes;
      ++fake_counts.device_blocks;
      *address = made->user;
      answer = FAKE_OK;
    }
  }
  pthread_mutex_unlock(&fake_lock);
  return answer;
}

/* Whether a task that is not complete uses these bytes of host or device memory. */
int fake_in_use(const char* begin, size_t bytes) {
  for (const fake_stream* stream = fake_streams; stream != NULL; stream = stream->next) {
    for (const task* each = stream->first; each != NULL; each = each->next) {
      if (each->kind != TASK_COPY) continue;
      if (each->dst < begin + bytes && begin < each->dst + each->bytes) return 1;
      if (each->src < begin + bytes && begin < each->src + each->bytes) return 1;
    }
  }
  return 0;
}

int fake_free(void* address) {
  if (address == NULL) return FAKE_OK;
  pthread_mutex_lock(&fake_lock);
  const block* found = fake_find(fake_device_blocks, address, 1);
  block* gone = NULL;
  if (found != NULL && found->opens == 0) gone = fake_take(&fake_device_blocks, address);
  int answer = gone == NULL ? fake_misuse_locked(FAKE_INVALID) : FAKE_OK;
  if (gone != NULL) {
    while (fake_in_use(gone->alias, gone->bytes)) pthread_cond_wait(&fake_changed, &fake_lock);
    used_bytes[gone->device] -= (int64_t)gone->bytes;
    --fake_counts.device_blocks;
    if (__atomic_load_n(&fake_tail(gone)->opened, __ATOMIC_SEQ_CST) > 0) ++fake_counts.freed_opened;
    fake_unmap(gone);
  }
  pthread_mutex_unlock(&fake_lock);
  return answer;
}

int fake_pin(void** address, size_t bytes) {
  block* made = calloc(1, sizeof *made);
  made->owned = *address == NULL;
  if (made->owned && posix_memalign(address, 4096, bytes > 0 ? bytes : 1) != 0) {
    free(made);
    return FAKE_MEMORY;
  }
  made->user = made->alias = *address;
  made->bytes = bytes;
  pthread_mutex_lock(&fake_lock);
  made->next = fake_pinned_blocks;
  fake_pinned_blocks = made;
  ++fake_counts.pinned_blocks;
  pthread_mutex_unlock(&fake_lock);
  return FAKE_OK;
}

int fake_unpin(void* address, int release) {
  if (address == NULL) return FAKE_OK;
  pthread_mutex_lock(&fake_lock);
  block* gone = fake_take(&fake_pinned_blocks, address);
  int answer = FAKE_OK;
  if (gone == NULL || gone->owned != release) {
    answer = fake_misuse_locked(FAKE_INVALID);
  } else {
    if (fake_in_use(gone->user, gone->bytes))
      fake_misuse_locked(0); /* freed under a running copy */
    while (fake_in_use(gone->user, gone->bytes)) pthread_cond_wait(&fake_changed, &fake_lock);
    --fake_counts.pinned_blocks;
    if (release) free(gone->user);
    free(gone);
  }
  pthread_mutex_unlock(&fake_lock);
  return answer;
}

int fake_is_pinned(const void* address, size_t bytes) {
  pthread_mutex_lock(&fake_lock);
  const int answer = fake_find(fake_pinned_blocks, address, bytes) != NULL;
  pthread_mutex_unlock(&fake_lock);
  return answer;
}
