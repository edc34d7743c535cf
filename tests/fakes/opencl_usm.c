/* SPDX-License-Identifier: Apache-2.0
 *
 * OpenCL as it is installed, with Intel's unified shared memory added to its devices where they
 * have coarse SVM, of which it is made. Everything else is the real loader's, on which this is
 * linked, so that whoever looks for functions here finds them there. Strict: a copy that touches no
 * memory of its own, or is enqueued to a queue of another context, is refused.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

enum {
  kExtensions = 0x1030,
  kSvmCapabilities = 0x1053,
  kQueueContext = 0x1090,
  kAllocType = 0x419A,
  kUnknown = 0x4196,
  kDevice = 0x4198,
  kInvalidContext = -34,
  kInvalidValue = -30,
  kMost = 64,
};

typedef struct Allocation {
  void* context;
  char* base;
  size_t bytes;
} Allocation;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards the rest */
static Allocation allocations[kMost];
static int64_t copies;

/* The real function, from the loader that this is linked on. */
static void* real(const char* name) { return dlsym(RTLD_NEXT, name); }

static Allocation of(const void* address) {
  Allocation found = {0};
  pthread_mutex_lock(&mutex);
  for (int k = 0; k < kMost; ++k) {
    const Allocation each = allocations[k];
    const char* at = address;
    if (each.base != NULL && at >= each.base && at < each.base + each.bytes) found = each;
  }
  pthread_mutex_unlock(&mutex);
  return found;
}

static void* allocate(void* context, void* device, const uint64_t* properties, size_t bytes,
                      uint32_t alignment, int* code) {
  (void)device, (void)properties;
  void* (*svm)(void*, uint64_t, size_t, uint32_t) = real("clSVMAlloc");
  char* const base = svm(context, 1, bytes, alignment);
  pthread_mutex_lock(&mutex);
  int slot = 0;
  while (slot < kMost - 1 && allocations[slot].base != NULL) ++slot;
  allocations[slot] = (Allocation){context, base, bytes};
  pthread_mutex_unlock(&mutex);
  *code = base != NULL ? 0 : -5;
  return base;
}

static int release(void* context, void* base) {
  pthread_mutex_lock(&mutex);
  for (int k = 0; k < kMost; ++k) {
    if (allocations[k].base == base) allocations[k] = (Allocation){0};
  }
  pthread_mutex_unlock(&mutex);
  ((void (*)(void*, void*))real("clSVMFree"))(context, base);
  return 0;
}

static int info(void* context, const void* address, uint32_t what, size_t room, void* out,
                size_t* size) {
  if (what != kAllocType || room < sizeof(uint32_t)) return kInvalidValue;
  const Allocation found = of(address);
  const uint32_t type = found.base != NULL && found.context == context ? kDevice : kUnknown;
  memcpy(out, &type, sizeof type);
  if (size != NULL) *size = sizeof type;
  return 0;
}

static int copy(void* queue, uint32_t blocking, void* to, const void* from, size_t bytes,
                uint32_t waits, void* const* waits_for, void** event) {
  const Allocation own = of(to).base != NULL ? of(to) : of(from);
  if (own.base == NULL) return kInvalidValue;
  const char* at = of(to).base != NULL ? to : from;
  if (at + bytes > own.base + own.bytes) return kInvalidValue;
  void* context = NULL;
  int (*queue_info)(void*, uint32_t, size_t, void*, size_t*) = real("clGetCommandQueueInfo");
  queue_info(queue, kQueueContext, sizeof context, &context, NULL);
  if (context != own.context) return kInvalidContext;
  pthread_mutex_lock(&mutex);
  ++copies;
  pthread_mutex_unlock(&mutex);
  int (*enqueue)(void*, uint32_t, void*, const void*, size_t, uint32_t, void* const*, void**) =
      real("clEnqueueSVMMemcpy");
  return enqueue(queue, blocking, to, from, bytes, waits, waits_for, event);
}

EXPORTED int clGetDeviceInfo(void* device, uint32_t what, size_t room, void* out, size_t* size) {
  int (*ask)(void*, uint32_t, size_t, void*, size_t*) = real("clGetDeviceInfo");
  uint64_t svm = 0;
  if (what != kExtensions || ask(device, kSvmCapabilities, sizeof svm, &svm, NULL) != 0 ||
      (svm & 1) == 0) {
    return ask(device, what, room, out, size);
  }
  char words[8192];
  const int code = ask(device, what, sizeof words - 64, words, NULL);
  if (code != 0) return code;
  strcat(words, " cl_intel_unified_shared_memory");
  if (size != NULL) *size = strlen(words) + 1;
  if (out == NULL) return 0;
  if (room < strlen(words) + 1) return kInvalidValue;
  memcpy(out, words, strlen(words) + 1);
  return 0;
}

EXPORTED void* clGetExtensionFunctionAddressForPlatform(void* platform, const char* name) {
  if (strcmp(name, "clDeviceMemAllocINTEL") == 0) return allocate;
  if (strcmp(name, "clMemFreeINTEL") == 0) return release;
  if (strcmp(name, "clGetMemAllocInfoINTEL") == 0) return info;
  if (strcmp(name, "clEnqueueMemcpyINTEL") == 0) return copy;
  void* (*ask)(void*, const char*) = real("clGetExtensionFunctionAddressForPlatform");
  return ask(platform, name);
}

/* How many copies of its memory were enqueued. */
EXPORTED int64_t fake_usm_copies(void) {
  pthread_mutex_lock(&mutex);
  const int64_t count = copies;
  pthread_mutex_unlock(&mutex);
  return count;
}
