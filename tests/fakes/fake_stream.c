/* SPDX-License-Identifier: Apache-2.0
 *
 * Streams and events of the fake runtimes: a worker thread per stream takes its tasks in order. A
 * copy occupies its device's engine of that direction for latency + bytes / rate, whichever stream
 * it comes from, as a real one would. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "fake_state.h"

enum { STREAM_MAGIC = 0x57EA4, EVENT_MAGIC = 0xE7E47 };

static fake_event* all_events;
static fake_stream* default_streams[FAKE_MAX_DEVICES];
static int64_t engine_free_ns[FAKE_MAX_DEVICES][3];

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void sleep_until(int64_t ns) {
  const struct timespec at = {ns / 1000000000, ns % 1000000000};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) != 0) {
  }
}

/* ---- workers -------------------------------------------------------------------------------- */

/* Requires: the lock, which is released while bytes move and time passes. */
static void do_copy(fake_stream* stream, const task* each) {
  int64_t* engine = &engine_free_ns[stream->device][each->direction];
  const double rate = fake_set_to.gbps > 0 ? (double)each->bytes / fake_set_to.gbps : 0;
  const int64_t begin = each->queued_ns > *engine ? each->queued_ns : *engine;
  const int64_t end = begin + (int64_t)(fake_set_to.latency_us * 1000 + rate);
  *engine = end;
  if (fake_set_to.lose_in > 0 && --fake_set_to.lose_in == 0) fake_lost[stream->device] = 1;
  const int lost = fake_lost[stream->device];
  int64_t* flip_in = &fake_set_to.flip_in[each->direction];
  const int flips = *flip_in > 0 && --*flip_in == 0;
  pthread_mutex_unlock(&fake_lock);
  if (!lost) memcpy(each->dst, each->src, each->bytes);
  if (flips) each->dst[each->bytes / 2] ^= 4;
  if (now_ns() < end) sleep_until(end);
  pthread_mutex_lock(&fake_lock);
  ++fake_counts.copies;
  if (each->direction == FAKE_TO_DEVICE) fake_counts.bytes_in += (int64_t)each->bytes;
  if (each->direction == FAKE_TO_HOST) fake_counts.bytes_out += (int64_t)each->bytes;
}

static void do_task(fake_stream* stream, task* each) {
  fake_event* event = each->event;
  switch (each->kind) {
    case TASK_COPY: do_copy(stream, each); break;
    case TASK_RECORD:
      if (event->completed < each->generation) event->completed = each->generation;
      break;
    case TASK_WAIT:
      while (event->completed < each->generation) pthread_cond_wait(&fake_changed, &fake_lock);
      break;
    case TASK_CALL:
      pthread_mutex_unlock(&fake_lock);
      each->function(each->argument);
      pthread_mutex_lock(&fake_lock);
      break;
  }
}

static void* work(void* argument) {
  fake_stream* stream = argument;
  prctl(PR_SET_TIMERSLACK, 1);
  pthread_mutex_lock(&fake_lock);
  while (stream->alive || stream->first != NULL) {
    task* each = stream->first;
    if (each == NULL) {
      pthread_cond_wait(&fake_changed, &fake_lock);
      continue;
    }
    do_task(stream, each);
    stream->first = each->next; /* only now: in_use() must see it */
    if (stream->first == NULL) stream->last = NULL;
    --stream->busy;
    free(each);
    pthread_cond_broadcast(&fake_changed);
  }
  pthread_mutex_unlock(&fake_lock);
  return NULL;
}

static fake_stream* start_stream(int device) {
  fake_stream* made = calloc(1, sizeof *made);
  pthread_t thread;
  made->magic = STREAM_MAGIC;
  made->device = device;
  made->alive = 1;
  made->next = fake_streams;
  fake_streams = made;
  if (pthread_create(&thread, NULL, work, made) != 0) abort();
  pthread_detach(thread);
  return made;
}

/* The stream behind a handle, or NULL where it is none, dead, or of another device than current. */
static fake_stream* checked(fake_stream* stream) {
  if (stream == NULL) {
    fake_stream** own = &default_streams[fake_device];
    if (*own == NULL) *own = start_stream(fake_device);
    return *own;
  }
  for (fake_stream* each = fake_streams; each != NULL; each = each->next) {
    if (each == stream) {
      return each->alive && each->device == fake_device ? each : NULL;
    }
  }
  return NULL;
}

static fake_event* checked_event(fake_event* event) {
  for (fake_event* each = all_events; each != NULL; each = each->next) {
    if (each == event) return each->alive ? each : NULL;
  }
  return NULL;
}

static void enqueue(fake_stream* stream, task made) {
  task* kept = malloc(sizeof *kept);
  *kept = made;
  kept->next = NULL;
  if (stream->last != NULL) {
    stream->last->next = kept;
  } else {
    stream->first = kept;
  }
  stream->last = kept;
  ++stream->busy;
  pthread_cond_broadcast(&fake_changed);
}

/* ---- streams -------------------------------------------------------------------------------- */

int fake_stream_create(fake_stream** stream) {
  pthread_mutex_lock(&fake_lock);
  *stream = start_stream(fake_device);
  ++fake_counts.streams;
  pthread_mutex_unlock(&fake_lock);
  return FAKE_OK;
}

int fake_stream_destroy(fake_stream* stream) {
  int answer = FAKE_OK;
  pthread_mutex_lock(&fake_lock);
  stream = stream != NULL ? checked(stream) : NULL;
  if (stream == NULL) {
    answer = fake_misuse_locked(FAKE_HANDLE);
  } else {
    if (stream->busy > 0) fake_misuse_locked(0);
    stream->alive = 0;
    --fake_counts.streams;
    pthread_cond_broadcast(&fake_changed);
  }
  pthread_mutex_unlock(&fake_lock);
  return answer;
}

int fake_stream_query(fake_stream* stream) {
  pthread_mutex_lock(&fake_lock);
  stream = checked(stream);
  const int answer = stream == NULL              ? fake_misuse_locked(FAKE_HANDLE)
                     : fake_lost[stream->device] ? FAKE_LOST
                     : stream->busy > 0          ? FAKE_NOT_READY
                                                 : FAKE_OK;
  pthread_mutex_unlock(&fake_lock);
  return answer;
}

int fake_stream_sync(fake_stream* stream) {
  pthread_mutex_lock(&fake_lock);
  stream = checked(stream);
  int answer = stream == NULL ? fake_misuse_locked(FAKE_HANDLE) : FAKE_OK;
  if (stream != NULL) {
    while (stream->busy > 0) pthread_cond_wait(&fake_changed, &fake_lock);
    if (fake_lost[stream->device]) answer = FAKE_LOST;
  }
  pthread_mutex_unlock(&fake_lock);
  return answer;
}

/* Our view of one side of a copy, or NULL where the address is not what the direction says. */
static char* view(const void* address, size_t bytes, int on_device) {
  const block* found = fake_find(fake_device_blocks, address, bytes);
  if (!on_device) return found == NULL ? (char*)address : NULL;
  return found != NULL ? found->alias + ((const char*)address - found->user) : NULL;
}

int fake_copy(void* dst, const void* src, size_t bytes, fake_direction direction,
              fake_stream* stream) {
  int answer = FAKE_OK;
  pthread_mutex_lock(&fake_lock);
  stream = checked(stream);
  task made = {.kind = TASK_COPY, .bytes = bytes, .direction = direction, .queued_ns = now_ns()};
  made.dst = view(dst, bytes, direction != FAKE_TO_HOST);
  made.src = view(src, bytes, direction != FAKE_TO_DEVICE);
  const void* host = direction == FAKE_TO_DEVICE ? src : dst;
  if (stream == NULL) {
    answer = fake_misuse_locked(FAKE_HANDLE);
  } else if (made.dst == NULL || made.src == NULL) {
    answer = fake_misuse_locked(FAKE_INVALID);
  } else if (fake_lost[stream->device]) {
    answer = FAKE_LOST;
  } else if (bytes > 0) {
    enqueue(stream, made);
    if (direction != FAKE_ON_DEVICE && fake_find(fake_pinned_blocks, host, bytes) == NULL) {
      ++fake_counts.pageable_copies;
      while (stream->busy > 0) pthread_cond_wait(&fake_changed, &fake_lock);
    }
  }
  pthread_mutex_unlock(&fake_lock);
  return answer;
}

int fake_call(fake_stream* stream, void (*function)(void*), void* argument) {
  pthread_mutex_lock(&fake_lock);
  stream = checked(stream);
  const int answer = stream == NULL ? fake_misuse_locked(FAKE_HANDLE) : FAKE_OK;
  if (stream != NULL) {
    enqueue(stream, (task){.kind = TASK_CALL, .function = function, .argument = argument});
  }
  pthread_mutex_unlock(&fake_lock);
  return answer;
}

FAKE_API int fake_launch(void* stream, void (*function)(void*), void* argument) {
  return fake_call(stream, function, argument) == FAKE_OK ? 0 : -1;
}
FAKE_API int fake_current_device(void) { return fake_current(); }

/* ---- events --------------------------------------------------------------------------------- */

int fake_event_create(fake_event** event) {
  pthread_mutex_lock(&fake_lock);
  fake_event* made = calloc(1, sizeof *made);
  made->magic = EVENT_MAGIC;
  made->device = fake_device;
  made->alive = 1;
  made->next = all_events;
  all_events = made;
  ++fake_counts.events;
  *event = made;
  pthread_mutex_unlock(&fake_lock);
  return FAKE_OK;
}

int fake_event_destroy(fake_event* event) {
  int answer = FAKE_OK;
  pthread_mutex_lock(&fake_lock);
  event = checked_event(event);
  if (event == NULL) {
    answer = fake_misuse_locked(FAKE_HANDLE);
  } else {
    event->alive = 0;
    --fake_counts.events;
  }
  pthread_mutex_unlock(&fake_lock);
  return answer;
}

int fake_event_record(fake_event* event, fake_stream* stream) {
  int answer = FAKE_OK;
  pthread_mutex_lock(&fake_lock);
  event = checked_event(event);
  stream = checked(stream);
  if (event == NULL || stream == NULL || event->device != stream->device) {
    answer = fake_misuse_locked(FAKE_HANDLE);
  } else if (fake_lost[stream->device]) {
    answer = FAKE_LOST;
  } else {
    ++event->recorded;
    enqueue(stream, (task){.kind = TASK_RECORD, .event = event, .generation = event->recorded});
  }
  pthread_mutex_unlock(&fake_lock);
  return answer;
}

int fake_event_query(fake_event* event) {
  pthread_mutex_lock(&fake_lock);
  event = checked_event(event);
  const int answer = event == NULL                        ? fake_misuse_locked(FAKE_HANDLE)
                     : fake_lost[event->device]           ? FAKE_LOST
                     : event->completed < event->recorded ? FAKE_NOT_READY
                                                          : FAKE_OK;
  pthread_mutex_unlock(&fake_lock);
  return answer;
}

int fake_event_sync(fake_event* event) {
  int answer = FAKE_OK;
  pthread_mutex_lock(&fake_lock);
  event = checked_event(event);
  if (event == NULL) {
    answer = fake_misuse_locked(FAKE_HANDLE);
  } else {
    const uint64_t generation = event->recorded;
    while (event->completed < generation) pthread_cond_wait(&fake_changed, &fake_lock);
    if (fake_lost[event->device]) answer = FAKE_LOST;
  }
  pthread_mutex_unlock(&fake_lock);
  return answer;
}

/* The event may be of another device; the stream is of the current one. */
int fake_stream_wait(fake_stream* stream, fake_event* event) {
  int answer = FAKE_OK;
  pthread_mutex_lock(&fake_lock);
  event = checked_event(event);
  stream = checked(stream);
  if (event == NULL || stream == NULL) {
    answer = fake_misuse_locked(FAKE_HANDLE);
  } else if (event->recorded > event->completed) {
    enqueue(stream, (task){.kind = TASK_WAIT, .event = event, .generation = event->recorded});
  }
  pthread_mutex_unlock(&fake_lock);
  return answer;
}
