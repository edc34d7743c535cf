/* SPDX-License-Identifier: Apache-2.0
 *
 * What the fake collective libraries stand on: ranks that meet in shared memory which an id names,
 * and calls that a stream's worker does in the stream's order. nccl.c and hccl.c put a vendor's
 * names on top. Strict: the communicator's device must be current, buffers must be device memory, a
 * stream one of the runtime's, a device joins once, and ranks that call different things all get an
 * error.
 *
 * fake_ccl_fail() makes a call fail, fake_ccl_end() ends the process in one: the others wait for
 * it, as in a real library: longer than any test may take. */
#ifndef HCCOMM_TESTS_CCL_H
#define HCCOMM_TESTS_CCL_H

#include <stdint.h>

#define API __attribute__((visibility("default")))

enum {
  CCL_OK = 0,
  CCL_DEVICE = 1,
  CCL_SYSTEM = 2,
  CCL_ARGUMENT = 4,
  CCL_USAGE = 5,
  CCL_REMOTE = 6
};
enum { JOIN = 0, ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, REDUCE, SEND, RECV };
enum { SUM = 0, PROD, MAX, MIN, AVG, PREMUL };
enum { CCL_NAME = 128 };

/* What elements are, whatever number a vendor gives them. */
typedef enum { I8, U8, I16, I32, U32, I64, U64, F16, F32, F64, BF16, TYPES } ccl_type;

/* For tests: the n-th next call of that kind in this process fails. */
API void fake_ccl_fail(int kind, int n);

/* In the midst of the n-th next piece of such a call the process gets this signal. */
API void fake_ccl_end(int kind, int n, int signal);

/* For tests: how many communicators this process has destroyed, not aborted. A real library may
 * wait there for all ranks to do so. */
API int fake_ccl_destroyed(void);

typedef struct ccl_comm ccl_comm;

typedef struct {
  int kind, type, op, root; /* root: the peer of a message */
  uint64_t count;
  double factor; /* of PREMUL: a rank's own, and not compared */
} ccl_call;

int ccl_make_name(char name[CCL_NAME]); /* of a meeting */
int ccl_join(ccl_comm** out, const char* name, int size, int rank);
void ccl_leave(ccl_comm* own, int broken); /* waits for its work; 2: broken where there is any */
int ccl_error(const ccl_comm* own);        /* that came behind the caller's back */
int ccl_size(const ccl_comm* own);
int ccl_rank(const ccl_comm* own);
/* Calls of a thread between them start together; messages only there. */
int ccl_begin(void);
int ccl_end(void);
/* in or out is NULL where this rank has none. */
int ccl_start(ccl_comm* own, ccl_call what, const void* in, uint64_t in_count, void* out,
              uint64_t out_count, void* stream);

/* ccl_numbers.c */
uint64_t ccl_size_of(int type);
void ccl_combine(int type, int op, char* into, const char* with, uint64_t bytes); /* into op with */
void ccl_scale(int type, char* data, uint64_t bytes, double factor);

#endif
