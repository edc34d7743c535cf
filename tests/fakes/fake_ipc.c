/* SPDX-License-Identifier: Apache-2.0
 *
 * Device memory between processes, for the fake runtimes: a handle names a whole block, the process
 * that exported it cannot open it, and each open needs a close. Another process maps the same pages
 * by the descriptor that the handle tells. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fake_state.h"

typedef struct handle {
  char magic[8]; /* "fakeipc" */
  char library[16];
  uint64_t number, bytes;
  int32_t pid, fd;
  char rest[16];
} handle;
_Static_assert(sizeof(handle) == 64, "as large as CUDA's");

int fake_range(void** base, size_t* bytes, const void* address) {
  pthread_mutex_lock(&fake_lock);
  const block* found = fake_find(fake_device_blocks, address, 1);
  if (found != NULL) {
    *base = found->user;
    *bytes = found->opens > 0 && fake_set_to.ipc == 2 ? 4096 : found->bytes;
  }
  pthread_mutex_unlock(&fake_lock);
  return found != NULL ? FAKE_OK : FAKE_INVALID;
}

uint64_t fake_number(const void* address) {
  pthread_mutex_lock(&fake_lock);
  const block* found = fake_find(fake_device_blocks, address, 1);
  const uint64_t number = found != NULL ? fake_tail(found)->number : 0;
  pthread_mutex_unlock(&fake_lock);
  return number;
}

/* Handles of parts, and of what another process has exported, are refused as CUDA refuses them. */
int fake_ipc_get(void* out, const void* base) {
  int answer = FAKE_OK;
  pthread_mutex_lock(&fake_lock);
  const block* found = fake_find(fake_device_blocks, base, 1);
  if (found == NULL || found->user != base || found->opens > 0) {
    answer = fake_misuse_locked(FAKE_INVALID);
  } else if (found->sealed) {
    answer = FAKE_INVALID;
  } else {
    handle made = {.magic = "fakeipc", .number = fake_tail(found)->number, .fd = found->fd};
    snprintf(made.library, sizeof made.library, "%s", fake_name());
    made.bytes = found->bytes;
    made.pid = getpid();
    memcpy(out, &made, sizeof made);
  }
  pthread_mutex_unlock(&fake_lock);
  return answer;
}

/* What the handle names, mapped, or NULL where that block is no more. */
static block* map_named(const handle* named) {
  char path[64];
  struct stat is;
  snprintf(path, sizeof path, "/proc/%d/fd/%d", named->pid, named->fd);
  const int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return NULL;
  const size_t mapped = (named->bytes + 4095) / 4096 * 4096;
  if (fstat(fd, &is) != 0 || (size_t)is.st_size != mapped + 4096) {
    close(fd);
    return NULL;
  }
  block* made = fake_map(fd, named->bytes);
  if (fake_tail(made)->number == named->number) return made;
  fake_unmap(made);
  return NULL;
}

static block* opened_before(const handle* named) {
  for (block* each = fake_device_blocks; each != NULL; each = each->next) {
    if (each->opens > 0 && each->owned == named->pid && fake_tail(each)->number == named->number) {
      return each;
    }
  }
  return NULL;
}

int fake_ipc_open(void** address, const void* bytes) {
  handle named;
  int answer = FAKE_OK;
  memcpy(&named, bytes, sizeof named);
  pthread_mutex_lock(&fake_lock);
  *address = NULL;
  block* found = NULL;
  if (strcmp(named.magic, "fakeipc") != 0 || strcmp(named.library, fake_name()) != 0) {
    answer = fake_misuse_locked(FAKE_INVALID); /* another vendor's */
  } else if (named.pid == getpid()) {
    answer = FAKE_CONTEXT;
  } else if (!fake_set_to.ipc) {
    answer = FAKE_NO_PEER;
  } else if ((found = opened_before(&named)) == NULL && (found = map_named(&named)) == NULL) {
    answer = FAKE_INVALID;
  } else {
    if (found->opens++ == 0) {
      found->owned = named.pid;
      found->next = fake_device_blocks;
      fake_device_blocks = found;
    }
    __atomic_add_fetch(&fake_tail(found)->opened, 1, __ATOMIC_SEQ_CST);
    ++fake_counts.opened;
    *address = found->user;
  }
  pthread_mutex_unlock(&fake_lock);
  return answer;
}

int fake_ipc_close(void* address) {
  int answer = FAKE_OK;
  pthread_mutex_lock(&fake_lock);
  block* found = fake_find(fake_device_blocks, address, 1);
  if (found == NULL || found->user != address || found->opens == 0) {
    answer = fake_misuse_locked(FAKE_INVALID);
  } else {
    __atomic_sub_fetch(&fake_tail(found)->opened, 1, __ATOMIC_SEQ_CST);
    --fake_counts.opened;
    if (--found->opens == 0) {
      fake_take(&fake_device_blocks, address);
      if (fake_in_use(found->alias, found->bytes)) fake_misuse_locked(0);
      while (fake_in_use(found->alias, found->bytes)) pthread_cond_wait(&fake_changed, &fake_lock);
      fake_unmap(found);
    }
  }
  pthread_mutex_unlock(&fake_lock);
  return answer;
}
