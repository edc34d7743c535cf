/* SPDX-License-Identifier: Apache-2.0
 *
 * hccomm from C: every rank passes its number to the right and takes its left neighbour's, until
 * each number has been everywhere; then all sum what they have seen.
 *
 *   cc -I csrc/capi examples/ring.c -o ring -L FOLDER_OF_LIBRARY -l hccomm
 *   mpiexec -n 3 ./ring
 *
 * (or with RANK, WORLD_SIZE and HCCOMM_RENDEZVOUS=file:///tmp/meet set for each process).
 */
#include <stdio.h>

#include "hccomm.h"

static int fail(const char* what, const hccomm_error* error) {
  fprintf(stderr, "%s: %s\n", what, error->text);
  return 1;
}

int main(void) {
  hccomm_error error;
  hccomm_config config = {sizeof config, -1, -1, NULL, NULL, NULL, 20.0, 0}; /* asks the launcher */
  hccomm_comm* comm = NULL;
  if (hccomm_abi_version() != HCCOMM_ABI_VERSION) return fail("abi", &(hccomm_error){0});
  if (hccomm_init(&config, &comm, &error) != HCCOMM_OK) return fail("init", &error);

  const int32_t rank = hccomm_rank(comm), size = hccomm_size(comm);
  double mine = rank, theirs = 0, seen = rank;
  hccomm_call send = {0}, recv = {0};
  send.struct_size = recv.struct_size = sizeof send;
  send.collective = HCCOMM_SEND;
  recv.collective = HCCOMM_RECV;
  send.dtype = recv.dtype = HCCOMM_F64;
  send.count = recv.count = 1;
  send.root = (rank + 1) % size;
  recv.root = (rank + size - 1) % size;
  send.input = (hccomm_buffer){&mine, 1, 0, HCCOMM_DEVICE_HOST, 0, NULL};
  recv.output = (hccomm_buffer){&theirs, 1, 0, HCCOMM_DEVICE_HOST, 0, NULL};
  for (int step = 1; step < size; ++step) {
    int32_t source = -1;
    if (hccomm_sendrecv(comm, &send, &recv, &source, &error) != HCCOMM_OK) {
      return fail("sendrecv", &error);
    }
    if (source != recv.root) return fail("the message came from another rank", &error);
    seen += theirs;
    mine = theirs;
  }

  hccomm_call sum = {0};
  sum.struct_size = sizeof sum;
  sum.collective = HCCOMM_ALL_REDUCE;
  sum.dtype = HCCOMM_F64;
  sum.op = HCCOMM_SUM;
  sum.count = 1;
  sum.input = sum.output = (hccomm_buffer){&seen, 1, 0, HCCOMM_DEVICE_HOST, 0, NULL};
  if (hccomm_run(comm, &sum, &error) != HCCOMM_OK) return fail("all_reduce", &error);
  printf("rank %d of %d: %g\n", rank, size, seen);
  return hccomm_close(comm, 0, &error) == HCCOMM_OK ? 0 : fail("close", &error);
}
