/* SPDX-License-Identifier: Apache-2.0
 *
 * A fake HCCL over the machinery of ccl.c: an id is a blob of 4108 bytes passed by address, a
 * broadcast has one buffer, there is no mean, and types have HCCL's numbers. */
#include <string.h>

#include "ccl.h"

enum { ROOT_INFO = 4108 };

/* HCCL's numbers of types. */
static int type_of(int type) {
  static const int known[] = {I8, I16, I32, F16, F32, I64, U64, U8, -1, U32, F64, BF16};
  return type >= 0 && type < 12 ? known[type] : -1;
}

static int operation(int op) { /* HCCL: sum, prod, max, min */
  return op >= 0 && op <= 3 ? op : -1;
}

/* HCCL's numbers of what went wrong. */
static int told(int code) {
  switch (code) {
    case CCL_OK: return 0;
    case CCL_ARGUMENT: return 1;
    case CCL_USAGE: return 5;
    case CCL_REMOTE: return 21;
    default: return 4;
  }
}

/* A stamp at the far end shows that the whole blob has come over. */
API int HcclGetRootInfo(void* info) {
  char* const bytes = info;
  memset(bytes, 0, ROOT_INFO);
  memcpy(bytes + ROOT_INFO - 4, "HCCL", 4);
  return told(ccl_make_name(bytes));
}
API int HcclCommInitRootInfo(uint32_t size, const void* info, uint32_t rank, ccl_comm** out) {
  if (memcmp((const char*)info + ROOT_INFO - 4, "HCCL", 4) != 0) return told(CCL_ARGUMENT);
  return told(ccl_join(out, info, (int)size, (int)rank));
}
API int HcclCommDestroy(ccl_comm* own) { return ccl_leave(own, 2), 0; }
API int HcclGetCommAsyncError(ccl_comm* own, int* error) {
  *error = told(ccl_error(own));
  return 0;
}
API int HcclAllReduce(void* in, void* out, uint64_t count, int type, int op, ccl_comm* own,
                      void* stream) {
  const ccl_call what = {ALL_REDUCE, type_of(type), operation(op), 0, count, 0};
  return told(ccl_start(own, what, in, count, out, count, stream));
}
API int HcclReduceScatter(void* in, void* out, uint64_t count, int type, int op, ccl_comm* own,
                          void* stream) {
  const ccl_call what = {REDUCE_SCATTER, type_of(type), operation(op), 0, count, 0};
  return told(ccl_start(own, what, in, count * (uint64_t)ccl_size(own), out, count, stream));
}
API int HcclReduce(void* in, void* out, uint64_t count, int type, int op, uint32_t root,
                   ccl_comm* own, void* stream) {
  const ccl_call what = {REDUCE, type_of(type), operation(op), (int)root, count, 0};
  const int mine = ccl_rank(own) == (int)root;
  return told(ccl_start(own, what, in, count, mine ? out : NULL, count, stream));
}
API int HcclAllGather(void* in, void* out, uint64_t count, int type, ccl_comm* own, void* stream) {
  const ccl_call what = {ALL_GATHER, type_of(type), 0, 0, count, 0};
  return told(ccl_start(own, what, in, count, out, count * (uint64_t)ccl_size(own), stream));
}
API int HcclBroadcast(void* buffer, uint64_t count, int type, uint32_t root, ccl_comm* own,
                      void* stream) {
  const ccl_call what = {BROADCAST, type_of(type), 0, (int)root, count, 0};
  const int mine = ccl_rank(own) == (int)root;
  return told(ccl_start(own, what, mine ? buffer : NULL, count, buffer, count, stream));
}
API const char* HcclGetErrorString(int code) {
  switch (code) {
    case 1: return "parameter error";
    case 5: return "not supported";
    case 21: return "remote error";
    default: return code == 0 ? "no error" : "internal error";
  }
}
