/* SPDX-License-Identifier: Apache-2.0
 *
 * A fake NCCL-shaped library: -DFAKE_PREFIX=nccl, over the machinery of ccl.c. An id is a struct
 * of 128 bytes that is passed by value. */
#include <stdlib.h>
#include <string.h>

#include "ccl.h"

#define JOIN_(a, b) a##b
#define JOINED(a, b) JOIN_(a, b)
#define F(name) JOINED(FAKE_PREFIX, name)

enum { MADE = 64 }; /* operations that were made have numbers from here */

typedef struct {
  char bytes[CCL_NAME];
} unique_id;

static __thread double factors[8]; /* by made operation; those of one thread */
static __thread int made_types[8];

/* NCCL's numbers of types. */
static const int kTypes[] = {I8, U8, I32, U32, I64, U64, F16, F32, F64, BF16};
static int type_of(int type) { return type >= 0 && type < 10 ? kTypes[type] : -1; }

/* The operation of a reduction; false: none. */
static int operation(ccl_call* what, int type, int op) {
  what->type = type_of(type);
  if (op >= MADE && op < MADE + 8) {
    if (made_types[op - MADE] != type) return 0;
    what->op = PREMUL;
    what->factor = factors[op - MADE];
    return 1;
  }
  what->op = op;
  return op >= 0 && op <= AVG && !(op == AVG && what->type < F16);
}

API int F(GetVersion)(int* version) {
  *version = 22105;
  return CCL_OK;
}
API int F(GetUniqueId)(unique_id* id) { return ccl_make_name(id->bytes); }
API int F(CommInitRank)(ccl_comm** out, int size, unique_id id, int rank) {
  return ccl_join(out, id.bytes, size, rank);
}
static _Atomic int destroyed;
API int fake_ccl_destroyed(void) { return destroyed; }
API int F(CommDestroy)(ccl_comm* own) {
  ++destroyed;
  return ccl_leave(own, 0), CCL_OK;
}
API int F(CommAbort)(ccl_comm* own) { return ccl_leave(own, 1), CCL_OK; }
API int F(CommGetAsyncError)(ccl_comm* own, int* error) {
  *error = ccl_error(own);
  return CCL_OK;
}

API int F(RedOpCreatePreMulSum)(int* op, void* factor, int type, int residence, ccl_comm* own) {
  (void)own;
  if (residence != 1) return CCL_ARGUMENT;
  for (int each = 0; each < 8; ++each) {
    if (factors[each] != 0) continue;
    if (type == 7) factors[each] = *(float*)factor;
    if (type == 8) factors[each] = *(double*)factor;
    made_types[each] = type;
    *op = MADE + each;
    return type == 7 || type == 8 ? CCL_OK : CCL_ARGUMENT;
  }
  return CCL_SYSTEM;
}
API int F(RedOpDestroy)(int op, ccl_comm* own) {
  (void)own;
  factors[op - MADE] = 0;
  return CCL_OK;
}

API int F(AllReduce)(const void* in, void* out, size_t count, int type, int op, ccl_comm* own,
                     void* stream) {
  ccl_call what = {.kind = ALL_REDUCE, .count = count};
  if (!operation(&what, type, op)) return CCL_ARGUMENT;
  return ccl_start(own, what, in, count, out, count, stream);
}
API int F(ReduceScatter)(const void* in, void* out, size_t count, int type, int op, ccl_comm* own,
                         void* stream) {
  ccl_call what = {.kind = REDUCE_SCATTER, .count = count};
  if (!operation(&what, type, op)) return CCL_ARGUMENT;
  return ccl_start(own, what, in, count * (size_t)ccl_size(own), out, count, stream);
}
API int F(Reduce)(const void* in, void* out, size_t count, int type, int op, int root,
                  ccl_comm* own, void* stream) {
  ccl_call what = {.kind = REDUCE, .count = count, .root = root};
  if (!operation(&what, type, op)) return CCL_ARGUMENT;
  return ccl_start(own, what, in, count, ccl_rank(own) == root ? out : NULL, count, stream);
}
API int F(AllGather)(const void* in, void* out, size_t count, int type, ccl_comm* own,
                     void* stream) {
  const ccl_call what = {.kind = ALL_GATHER, .type = type_of(type), .count = count};
  return ccl_start(own, what, in, count, out, count * (size_t)ccl_size(own), stream);
}
API int F(Broadcast)(const void* in, void* out, size_t count, int type, int root, ccl_comm* own,
                     void* stream) {
  const ccl_call what = {.kind = BROADCAST, .type = type_of(type), .count = count, .root = root};
  return ccl_start(own, what, ccl_rank(own) == root ? in : NULL, count, out, count, stream);
}
API int F(Send)(const void* in, size_t count, int type, int peer, ccl_comm* own, void* stream) {
  const ccl_call what = {.kind = SEND, .type = type_of(type), .count = count, .root = peer};
  return ccl_start(own, what, in, count, NULL, 0, stream);
}
API int F(Recv)(void* out, size_t count, int type, int peer, ccl_comm* own, void* stream) {
  const ccl_call what = {.kind = RECV, .type = type_of(type), .count = count, .root = peer};
  return ccl_start(own, what, NULL, 0, out, count, stream);
}
API int F(GroupStart)(void) { return ccl_begin(); }
API int F(GroupEnd)(void) { return ccl_end(); }
API const char* F(GetErrorString)(int code) {
  switch (code) {
    case CCL_DEVICE: return "unhandled device error";
    case CCL_SYSTEM: return "unhandled system error";
    case CCL_ARGUMENT: return "invalid argument";
    case CCL_USAGE: return "invalid usage";
    case CCL_REMOTE: return "remote process exited or there was a network error";
    default: return "no error";
  }
}
