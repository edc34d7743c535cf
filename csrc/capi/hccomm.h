/* SPDX-License-Identifier: Apache-2.0
 *
 * The C ABI of hccomm, collective communication between ranks on chips of different vendors.
 * All bindings stand on this header; it needs nothing but C99.
 *
 * Every function returns a code (0 is success) and, where it takes one, fills the caller's
 * hccomm_error. No exception and no signal leaves the library. Counts are elements, sizes are
 * bytes, times are seconds. Functions may be called from any thread, unless said otherwise; calls
 * that start operations on one communicator must be issued in the same order on all its ranks.
 */
#ifndef HCCOMM_H
#define HCCOMM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define HCCOMM_API __attribute__((visibility("default")))
#else
#define HCCOMM_API
#endif

#define HCCOMM_ABI_VERSION 1

/* The version of this ABI that the library implements; call it first. Equal versions work. */
HCCOMM_API uint32_t hccomm_abi_version(void);
HCCOMM_API const char* hccomm_version(void); /* "0.1.0" */

/* ---- errors -------------------------------------------------------------------------------- */

enum {
  HCCOMM_OK = 0,
  HCCOMM_INVALID_ARGUMENT = 1, /* mend the call */
  HCCOMM_MISMATCH = 2,         /* ranks called different things */
  HCCOMM_UNAVAILABLE = 3,      /* this build or machine cannot */
  HCCOMM_PEER_LOST = 4,        /* a rank died or cannot be reached */
  HCCOMM_TIMEOUT = 5,          /* the deadline passed */
  HCCOMM_ABORTED = 6,          /* somebody called abort or close */
  HCCOMM_INTEGRITY = 7,        /* bytes arrived damaged */
  HCCOMM_SYSTEM = 8,           /* the operating system refused */
  HCCOMM_INTERNAL = 9          /* a bug of hccomm */
};

typedef struct hccomm_error {
  int32_t code;
  int32_t rank;   /* the rank to blame, or -1 */
  char text[504]; /* what, where and what next; always terminated */
} hccomm_error;

/* ---- types and operations ------------------------------------------------------------------- */

enum {
  HCCOMM_BOOL = 0,
  HCCOMM_I8,
  HCCOMM_I16,
  HCCOMM_I32,
  HCCOMM_I64,
  HCCOMM_U8,
  HCCOMM_U16,
  HCCOMM_U32,
  HCCOMM_U64,
  HCCOMM_F16,
  HCCOMM_BF16,
  HCCOMM_F8E4M3FN,
  HCCOMM_F8E5M2,
  HCCOMM_F32,
  HCCOMM_F64,
  HCCOMM_C64,
  HCCOMM_C128
};

enum {
  HCCOMM_SUM = 0,
  HCCOMM_AVG,
  HCCOMM_PROD,
  HCCOMM_MIN,
  HCCOMM_MAX,
  HCCOMM_BAND,
  HCCOMM_BOR,
  HCCOMM_BXOR,
  HCCOMM_PREMUL_SUM
};

enum {
  HCCOMM_ALL_REDUCE = 1,
  HCCOMM_ALL_GATHER,
  HCCOMM_REDUCE_SCATTER,
  HCCOMM_BROADCAST,
  HCCOMM_REDUCE,
  HCCOMM_GATHER,
  HCCOMM_SCATTER,
  HCCOMM_ALL_TO_ALL,
  HCCOMM_BARRIER,
  HCCOMM_SEND = 32,
  HCCOMM_RECV = 33
};

/* Kinds of devices, in the numbers of this process: ranks tell each other names. Plug-ins
 * (hccomm_device.h) have numbers from HCCOMM_DEVICE_PLUGIN, as they come. */
enum {
  HCCOMM_DEVICE_HOST = 0,
  HCCOMM_DEVICE_CUDA = 1,
  HCCOMM_DEVICE_HIP,
  HCCOMM_DEVICE_MUSA,
  HCCOMM_DEVICE_MACA,
  HCCOMM_DEVICE_SUPA,
  HCCOMM_DEVICE_TOPS,
  HCCOMM_DEVICE_TANG,
  HCCOMM_DEVICE_COREX,
  HCCOMM_DEVICE_DTK,
  HCCOMM_DEVICE_PPU,
  HCCOMM_DEVICE_KUNLUN,
  HCCOMM_DEVICE_ASCEND,
  HCCOMM_DEVICE_CNRT,
  HCCOMM_DEVICE_LEVEL_ZERO,
  HCCOMM_DEVICE_OPENCL,
  HCCOMM_DEVICE_PLUGIN = 64
};
/* The number of a kind by name ("cuda", "ascend", "opencl", a plug-in's own; loads the plug-ins
 * where needed), or -1. Whether its runtime is here is told by hccomm_info, or by its first use. */
HCCOMM_API int32_t hccomm_device_kind(const char* name);
/* Looks for the runtime of a kind. HCCOMM_OK: `out` has the path of its library; else a code, and
 * `out` says why it is not here. */
HCCOMM_API int hccomm_device_probe(int32_t kind, char* out, size_t capacity);

#define HCCOMM_ANY_SOURCE (-1)

/* Where data lies. `count` is the elements it holds, for checking. */
typedef struct hccomm_buffer {
  void* data;          /* address or handle */
  uint64_t count;      /* elements */
  uint64_t offset;     /* bytes from data, for devices whose handles are no pointers */
  int32_t device_kind; /* HCCOMM_DEVICE_* */
  int32_t device_index;
  void* stream; /* of the device, or NULL */
} hccomm_buffer;

/* One collective or point-to-point call. Set struct_size, zero what is not used.
 *
 * count, by call: all_reduce, broadcast, reduce, send, recv: elements of the buffer; all_gather,
 * gather: of one rank's input; reduce_scatter, scatter: of one rank's output; all_to_all: of the
 * part for one peer. The v-forms leave count 0 and give `size` entries in counts/offsets (and for
 * all_to_all also recv_counts/recv_offsets):
 *   all_gather, gather       counts[r]: what rank r contributes; offsets[r]: its place in output
 *   reduce_scatter, scatter  counts[r]: what rank r receives; offsets[r]: its place in input
 *   all_to_all               counts[r], offsets[r]: what I send to r, in input;
 *                            recv_counts[r], recv_offsets[r]: what r sends me, in output
 * offsets may be NULL: then the parts lie back to back.
 *
 * input.data == output.data (or the rank's own part of the larger buffer) means in place. Broadcast
 * uses one buffer: give it as both. The buffers are in use until the operation completes. */
typedef struct hccomm_call {
  uint32_t struct_size;
  int32_t collective; /* HCCOMM_ALL_REDUCE ... HCCOMM_RECV */
  int32_t dtype;
  int32_t op;     /* reductions */
  int32_t root;   /* broadcast, reduce, gather, scatter; the peer of send and recv */
  uint32_t flags; /* HCCOMM_BACKGROUND */
  uint64_t count;
  hccomm_buffer input, output;
  const uint64_t *counts, *offsets, *recv_counts, *recv_offsets;
  double factor;  /* PREMUL_SUM */
  uint64_t tag;   /* send, recv */
  double timeout; /* seconds; 0: the communicator's */
} hccomm_call;

/* Nobody will wait soon: let the background thread drive it at once. */
#define HCCOMM_BACKGROUND 1u

/* ---- communicators --------------------------------------------------------------------------- */

typedef struct hccomm_comm hccomm_comm;

/* A key-value store through which ranks meet; callbacks return 0 for success. */
typedef struct hccomm_store {
  void* context;
  int (*set)(void* context, const char* key, const void* value, size_t bytes);
  /* Waits for the key at most `timeout` seconds. Returns the size of the value and copies at most
   * `capacity` bytes of it; -1: not there in time; -2: the store failed. */
  int64_t (*get)(void* context, const char* key, double timeout, void* value, size_t capacity);
} hccomm_store;

typedef struct hccomm_config {
  uint32_t struct_size;
  int32_t rank, size; /* -1: ask the launcher's environment */
  const char*
      rendezvous; /* "tcp://host:port", "file:///path"; NULL: HCCOMM_RENDEZVOUS or launcher */
  const hccomm_store* store; /* takes precedence over rendezvous */
  const char* name;          /* distinguishes communicators on one store; NULL: "world" */
  double timeout;            /* of operations and of this call; 0: HCCOMM_TIMEOUT */
  uint32_t flags;            /* HCCOMM_THREAD_RANK */
} hccomm_config;

/* This rank is one of several threads of its process, each a rank of its own. */
#define HCCOMM_THREAD_RANK 1u

/* Collective. Meets the other ranks and makes the communicator of all of them. */
HCCOMM_API int hccomm_init(const hccomm_config* config, hccomm_comm** comm, hccomm_error* error);
/* Collective over the ranks of `config`, of which some may have `comm` and others come new (those
 * call hccomm_init with the same config): ends what `comm` has in flight (ABORTED), meets, and
 * makes `comm` the communicator of these ranks. No process restarts, links between processes that
 * knew each other stay. `config` names a place or a name that none of them has met at. When it
 * fails, `comm` belongs to no group until the next hccomm_reconfigure. No other thread may be in a
 * call with `comm`; groups made of it stay as they are. */
HCCOMM_API int hccomm_reconfigure(hccomm_comm* comm, const hccomm_config* config,
                                  hccomm_error* error);
/* Makes the group of some ranks of `parent`, in this order. Only its members call it; no network
 * I/O happens. Members tell groups apart by (ranks, name); with name NULL by how many groups of
 * these ranks they have made before. */
HCCOMM_API int hccomm_group(hccomm_comm* parent, const int32_t* ranks, size_t ranks_count,
                            const char* name, double timeout, hccomm_comm** comm,
                            hccomm_error* error);
/* Collective over `parent`. Ranks of one color form a group, ordered by (key, rank); a negative
 * color joins none and gets *comm = NULL. */
HCCOMM_API int hccomm_split(hccomm_comm* parent, int32_t color, int32_t key, hccomm_comm** comm,
                            hccomm_error* error);

/* Collective over `comm`: settles its islands now, which otherwise the first collectives do. Ranks
 * of one vendor on one host, each on a device of its own, work by the vendor's library (NCCL, ...);
 * hccomm works between the islands. This rank's arrays lie on the device named here
 * (HCCOMM_DEVICE_HOST: in host memory); others are taken too, by a detour. Fails alike on all ranks
 * where there is no island. docs/devices.md */
HCCOMM_API int hccomm_use_islands(hccomm_comm* comm, int32_t device_kind, int32_t device_index,
                                  hccomm_error* error);

/* Collective over `comm`: gives it a setting of its own, in place of the environment's. `name` is
 * HCCOMM_ALGO. MISMATCH on all ranks unless all give the same value. */
HCCOMM_API int hccomm_set(hccomm_comm* comm, const char* name, const char* value,
                          hccomm_error* error);

/* Collective over the ranks of `parent` that live, after one of them was lost: they agree on who
 * they are, also if more die meanwhile, and get the group of them, in the old order. `parent`
 * remains, to be closed. Waits at most `timeout` seconds (0: the communicator's) for ranks that do
 * not call. */
HCCOMM_API int hccomm_shrink(hccomm_comm* parent, double timeout, hccomm_comm** comm,
                             hccomm_error* error);

HCCOMM_API int32_t hccomm_rank(const hccomm_comm* comm);
HCCOMM_API int32_t hccomm_size(const hccomm_comm* comm);
HCCOMM_API int hccomm_set_timeout(hccomm_comm* comm, double timeout, hccomm_error* error);

/* Makes every pending and later operation on all ranks of the communicator raise Aborted. Returns
 * at once. hccomm_abort_signal may be called in a signal handler and aborts all communicators. */
HCCOMM_API int hccomm_abort(hccomm_comm* comm, const char* reason, hccomm_error* error);
HCCOMM_API void hccomm_abort_signal(void);
/* Waits at most `timeout` seconds (0: 1 s) for pending operations, and up to half a second of these
 * for the other ranks to take what was sent; then ends the communicator and frees it. The pointer
 * is invalid afterwards, whatever is returned. */
HCCOMM_API int hccomm_close(hccomm_comm* comm, double timeout, hccomm_error* error);

/* ---- memory ---------------------------------------------------------------------------------- */

/* Host memory that the other ranks of this machine map, so that they copy and reduce out of it, and
 * store into it, without the kernel (README has what it gains): for buffers that are used again and
 * again, from 64 KiB on. It is whole pages, from 2 MiB on where a huge page can begin; all of it is
 * there at once, and its content is unspecified. It belongs to the process, not to a communicator,
 * and serves like any other memory; a forked child sees it as it is, not as a copy. UNAVAILABLE
 * where such memory is not to be had (HCCOMM_CMA=off, HCCOMM_TRANSPORTS without shm, no memfd),
 * SYSTEM where there is no more: take ordinary memory then. hccomm_describe shows what was given,
 * or why it was not. */
HCCOMM_API int hccomm_alloc(uint64_t bytes, void** data, hccomm_error* error);
/* Gives it back; NULL is fine, and so is any thread. No operation may be using it. INVALID_ARGUMENT
 * for what hccomm_alloc has not given, or was given back. Does nothing in a forked child. */
HCCOMM_API int hccomm_free(void* data, hccomm_error* error);

typedef struct hccomm_registration hccomm_registration;

/* Registers host memory that will be sent from or received into again and again with the network
 * cards of this process (transport ofi, docs/rdma.md) now, and not at its first large message; the
 * other transports have nothing to register. It must be writable, and stay mapped until
 * hccomm_deregister. It serves all communicators of the process. SYSTEM when
 * a card or the limit on locked memory (ulimit -l) refuses; nothing is registered then. */
HCCOMM_API int hccomm_register(hccomm_comm* comm, void* data, uint64_t bytes,
                               hccomm_registration** registration, hccomm_error* error);
/* Likewise memory of a device, whose kind, index, data and offset `buffer` gives: cards that reach
 * it register it now, else they do at each call. `*registration` is NULL where none does: then its
 * data are staged, with or without, and hccomm_describe says why. It must not be freed before. */
HCCOMM_API int hccomm_register_device(hccomm_comm* comm, const hccomm_buffer* buffer,
                                      uint64_t bytes, hccomm_registration** registration,
                                      hccomm_error* error);
/* Ends it, also after the communicator was closed; NULL is fine. No operation may be using the
 * memory. */
HCCOMM_API void hccomm_deregister(hccomm_registration* registration);

/* ---- operations ----------------------------------------------------------------------------- */

typedef struct hccomm_work hccomm_work;

/* Starts the call and returns at once; never blocks. hccomm_release the work in the end. */
HCCOMM_API int hccomm_start(hccomm_comm* comm, const hccomm_call* call, hccomm_work** work,
                            hccomm_error* error);
/* Starts the call and waits for it: the quickest way. */
HCCOMM_API int hccomm_run(hccomm_comm* comm, const hccomm_call* call, hccomm_error* error);
/* Runs a HCCOMM_SEND and a HCCOMM_RECV at the same time and waits for both, so that ranks that
 * exchange, or shift around a ring, do not wait for each other. `source` (may be NULL) is set to
 * whom was received from. The buffers must not overlap. */
HCCOMM_API int hccomm_sendrecv(hccomm_comm* comm, const hccomm_call* send, const hccomm_call* recv,
                               int32_t* source, hccomm_error* error);

/* Waits at most `timeout` seconds (0: until the operation's own deadline). HCCOMM_TIMEOUT here
 * leaves the operation running when its own deadline has not passed. */
HCCOMM_API int hccomm_wait(hccomm_work* work, double timeout, hccomm_error* error);
/* Progresses a little; *done says whether the operation has ended, with its error if it failed. */
HCCOMM_API int hccomm_test(hccomm_work* work, int* done, hccomm_error* error);
/* Calls `function` once the operation has ended (at once if it has), from whichever thread drives;
 * it must not call back into hccomm except hccomm_release. At most one per work. */
HCCOMM_API int hccomm_on_done(hccomm_work* work, void (*function)(void* context, int code),
                              void* context);
HCCOMM_API int32_t hccomm_source(const hccomm_work* work);    /* whom a recv received from */
HCCOMM_API uint64_t hccomm_sequence(const hccomm_work* work); /* number within the communicator */
/* Forgets the work; the operation itself goes on. */
HCCOMM_API void hccomm_release(hccomm_work* work);

/* ---- asking ---------------------------------------------------------------------------------- */

/* These fill `out` with terminated UTF-8 (cut to capacity) and return the full size in bytes
 * without the terminator, or minus an error code. */

/* JSON: rank, size, hosts, and per peer: host, transport, why not better. */
HCCOMM_API int64_t hccomm_describe(hccomm_comm* comm, char* out, size_t capacity);
/* JSON: the last 1,000 operations of this rank on the communicator, and what they wait for. */
HCCOMM_API int64_t hccomm_dump(hccomm_comm* comm, char* out, size_t capacity);
/* JSON: version, machine, transports, runtimes of devices, algorithms, each with why it is not
 * available. Looks for every runtime, which loads what is there. */
HCCOMM_API int64_t hccomm_info(char* out, size_t capacity);
/* JSON: all HCCOMM_* settings: name, kind, default, meaning, value. */
HCCOMM_API int64_t hccomm_settings(char* out, size_t capacity);
/* JSON: which algorithm would serve this call on `size` ranks over `hosts` equal hosts and why, the
 * alternatives, and for plan != 0 the steps of `rank`. */
HCCOMM_API int64_t hccomm_explain(int32_t collective, int32_t dtype, int32_t op, uint64_t count,
                                  int32_t size, int32_t hosts, int32_t rank, int32_t plan,
                                  char* out, size_t capacity);
/* JSON: how the call would go over `islands`, such as "cuda:0-2;musa:3,4" (other ranks: host
 * memory): by which libraries, over which rails, or why not. The libraries that are here are asked.
 */
HCCOMM_API int64_t hccomm_explain_islands(int32_t collective, int32_t dtype, int32_t op,
                                          uint64_t count, int32_t size, const char* islands,
                                          char* out, size_t capacity);

#ifdef __cplusplus
}
#endif

#endif /* HCCOMM_H */
