/* SPDX-License-Identifier: Apache-2.0
 *
 * A libfabric with network cards. It lists what the system's does and, before that, the cards of
 *   FAKE_CARDS="mlx5_0 0000:01:00.0 up, mlx5_1 0000:81:00.0 down+hmem"
 * as provider FAKE_CARDS_PROVIDER (verbs;ofi_rxm). A card reaches those of its number in the lists
 * of other processes, or with +on=a those on the same fabric; to others it sends nothing. They are
 * as strict as cards are: each wants the mr_modes of verbs, what is sent must lie in memory
 * registered for it with its descriptor, what is written in memory that the other process has
 * registered for that, under the card's own key and by virtual address; what is injected is 64
 * bytes at most. The rest is refused, and noted (cards.h). A card with +hmem reaches the memory of
 * the fake runtimes (fake.h), where it is asked to with FI_HMEM, and fi_mr_regattr names the
 * runtime, by address or dmabuf; with +refuses it registers none. What it writes there the device
 * does not see before the card has read some of that memory back. Below, the system's net provider
 * carries the bytes, all cards over one interface. Processes that talk to each other need the same
 * FAKE_CARDS_FILE.
 */
#define _GNU_SOURCE
#include "cards_fabric.h"
#include "fake.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <rdma/fabric.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_rma.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- memory -----------------------------------------------------------------------------------*/

struct memory {
  struct fid_mr mr; /* what the caller has; its descriptor is the key, too */
  struct fid_mr* real;
  struct card_key* key;
  char* shadow; /* of a device's: what cards write, until they are read from */
};

static struct card_key* take_key(void) {
  struct card_key* keys = told()->keys;
  for (int i = 0; i < kKeys; ++i) {
    uint64_t owner = owner_of(&keys[i]);
    if (owner != 0 && kill((pid_t)owner, 0) == 0) continue; /* what was killed holds none */
    if (__atomic_compare_exchange_n(&keys[i].pid, &owner, (uint64_t)getpid(), 0, __ATOMIC_ACQ_REL,
                                    __ATOMIC_ACQUIRE))
      return &keys[i];
  }
  abort();
}

static struct card_key* key_named(uint64_t name) {
  struct card_key* key = &told()->keys[name % kKeys];
  return name != 0 && __atomic_load_n(&key->key, __ATOMIC_ACQUIRE) == name ? key : NULL;
}

static int memory_close(struct fid* fid) {
  struct memory* memory = (struct memory*)fid;
  __atomic_store_n(&memory->key->key, 0, __ATOMIC_RELEASE);
  int code = fi_close(&memory->real->fid);
  free(memory->shadow);
  __atomic_store_n(&memory->key->pid, 0, __ATOMIC_RELEASE);
  free(memory);
  return code;
}

static struct fi_ops memory_ops = {.size = sizeof(struct fi_ops), .close = memory_close};

/* ---- objects: each has tables of its own, before what its calls must know --------------------*/

struct fabric {
  struct fi_ops_fabric ops, *real;
};
struct domain {
  struct fi_ops_domain ops, *real;
  struct fi_ops_mr mr_ops, *real_mr;
  int card, network, hmem, refuses;
};
struct endpoint {
  struct fi_ops_rma ops, *real;
  int card, network;
  uint64_t empties; /* that bring immediate data */
};

/* They stay: an object may be closed by libfabric later than by its owner. */
static void* stays(size_t bytes) {
  static void** kept = NULL;
  void** made = calloc(1, sizeof(void*) + bytes);
  if (made == NULL) abort();
  *made = __atomic_exchange_n(&kept, made, __ATOMIC_ACQ_REL);
  return made + 1;
}

/* The host's view of memory of a fake runtime; NULL where it is not that runtime's. */
static char* view_of(const char* setting, const void* data, size_t bytes) {
  const char* path = getenv(setting);
  void* runtime = path == NULL ? NULL : dlopen(path, RTLD_NOW | RTLD_NOLOAD);
  if (runtime == NULL) return NULL;
  void* (*view)(const void*, size_t) = dlsym(runtime, "fake_host_view");
  dlclose(runtime); /* who uses it keeps it */
  return view != NULL ? view(data, bytes) : NULL;
}

static const char* const kRuntimes[] = {[FI_HMEM_CUDA] = "HCCOMM_CUDA_LIB",
                                        [FI_HMEM_ROCR] = "HCCOMM_HIP_LIB",
                                        [FI_HMEM_ZE] = "ZE_ENABLE_ALT_DRIVERS"};
enum { kIfaces = sizeof kRuntimes / sizeof *kRuntimes };

static int of_a_device(const void* data, size_t bytes) {
  for (int iface = 0; iface < kIfaces; ++iface)
    if (kRuntimes[iface] != NULL && view_of(kRuntimes[iface], data, bytes) != NULL) return 1;
  return 0;
}

/* `view`: where the host sees what lies on a device; NULL: it is the host's own. */
static int enroll(struct fid* fid, const void* data, char* view, size_t bytes, uint64_t access,
                  struct fid_mr** out, void* context) {
  struct fid_domain* domain = (struct fid_domain*)fid;
  struct domain* own = (struct domain*)domain->ops;
  if ((access & READS) != 0 && !own->hmem)
    return (int)refuse(FI_EINVAL, own->card, "registers for reads that it did not ask for");
  struct memory* made = calloc(1, sizeof *made);
  if (made == NULL) return -FI_ENOMEM;
  if (view != NULL) {
    made->shadow = calloc(1, bytes);
    if (made->shadow == NULL) abort();
  }
  made->key = take_key();
  const uint64_t place = (uint64_t)(made->key - told()->keys);
  const uint64_t name = ((++made->key->uses & 0xfffff) * kKeys + place) & 0xffffffff;
  made->mr.fid = (struct fid){FI_CLASS_MR, context, &memory_ops};
  made->mr.key = name;
  made->mr.mem_desc = (void*)(uintptr_t)name;
  const void* memory = view != NULL ? made->shadow : data;
  int code = own->real_mr->reg(fid, memory, bytes, access, 0, name, 0, &made->real, context);
  if (code != 0) {
    __atomic_store_n(&made->key->pid, 0, __ATOMIC_RELEASE);
    free(made->shadow);
    free(made);
    return code;
  }
  made->key->view = (uintptr_t)view;
  made->key->shadow = (uintptr_t)made->shadow;
  memset(made->key->written, 0, made->key->count * sizeof *made->key->written);
  made->key->count = 0;
  made->key->base = (uintptr_t)data;
  made->key->bytes = bytes;
  made->key->access = access;
  made->key->card = (uint64_t)own->card;
  made->key->network = (uint64_t)own->network;
  __atomic_store_n(&made->key->key, name, __ATOMIC_RELEASE);
  *out = &made->mr;
  return 0;
}

static int reg(struct fid* fid, const void* data, size_t bytes, uint64_t access, uint64_t offset,
               uint64_t key, uint64_t flags, struct fid_mr** out, void* context) {
  struct domain* own = (struct domain*)((struct fid_domain*)fid)->ops;
  if (offset != 0 || flags != 0) return (int)refuse(FI_EINVAL, own->card, "unknown flags");
  if (key != 0) return (int)refuse(FI_EKEYREJECTED, own->card, "is told which key to use");
  if (!mapped(data, bytes))
    return (int)refuse(FI_EFAULT, own->card, "registers what is not mapped");
  if (of_a_device(data, bytes))
    return (int)refuse(FI_EFAULT, own->card, "registers a device's memory as the host's");
  return enroll(fid, data, NULL, bytes, access, out, context);
}

/* fi_mr_dmabuf of libfabric 1.20. */
static const uint64_t kMrDmabuf = 1ull << 40;
struct mr_dmabuf {
  int fd;
  uint64_t offset;
  size_t bytes;
  void* base;
};

/* The memory of which a dmabuf tells; none where it is not as the caller says. */
static struct iovec exported(const struct fi_mr_attr* attr) {
  const struct mr_dmabuf* dmabuf = (const struct mr_dmabuf*)attr->mr_iov;
  const struct iovec none = {NULL, 1};
  fake_dmabuf is;
  if (pread(dmabuf->fd, &is, sizeof is, 0) != (ssize_t)sizeof is) return none;
  if (strcmp(is.magic, "dmabuf") != 0 || is.address != dmabuf->base) return none;
  if (dmabuf->offset > is.bytes || dmabuf->bytes > is.bytes - dmabuf->offset) return none;
  return (struct iovec){(char*)is.address + dmabuf->offset, dmabuf->bytes};
}

static int regattr(struct fid* fid, const struct fi_mr_attr* attr, uint64_t flags,
                   struct fid_mr** out) {
  struct domain* own = (struct domain*)((struct fid_domain*)fid)->ops;
  if (!own->hmem) return (int)refuse(FI_EINVAL, own->card, "was opened without FI_HMEM");
  if (attr->iov_count != 1 || (flags & ~kMrDmabuf) != 0 || attr->requested_key != 0)
    return (int)refuse(FI_EINVAL, own->card, "cannot register that");
  if ((int)attr->iface >= kIfaces || kRuntimes[attr->iface] == NULL)
    return (int)refuse(FI_EINVAL, own->card, "knows no such runtime");
  if (own->refuses) {
    add(&told()->device_refusals, 1);
    return -FI_ENOMEM;
  }
  const struct iovec memory = flags == 0 ? *attr->mr_iov : exported(attr);
  char* view = view_of(kRuntimes[attr->iface], memory.iov_base, memory.iov_len);
  if (view == NULL) return (int)refuse(FI_EFAULT, own->card, "is no memory of that runtime");
  add(&told()->device_keys, 1);
  if (flags != 0) add(&told()->dmabufs, 1);
  return enroll(fid, memory.iov_base, view, memory.iov_len, attr->access, out, attr->context);
}

static int holds(const struct card_key* key, uint64_t at, size_t bytes) {
  return at >= key->base && bytes <= key->bytes && at - key->base <= key->bytes - bytes;
}

/* Why the card would not write, or 0. */
static ssize_t check(const struct endpoint* from, const struct iovec* parts,
                     void* const* descriptors, size_t count, uint64_t to, uint64_t name) {
  const int card = from->card;
  size_t bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    bytes += parts[i].iov_len;
    if (descriptors == NULL && of_a_device(parts[i].iov_base, parts[i].iov_len))
      return refuse(FI_EFAULT, card, "injects what lies on a device");
    if (descriptors == NULL) continue; /* injected: read before the call ends */
    const struct card_key* own = key_named((uintptr_t)descriptors[i]);
    if (own == NULL || owner_of(own) != (uint64_t)getpid())
      return refuse(FI_EINVAL, card, "sends from memory that is not registered");
    if (own->card != (uint64_t)card) return refuse(FI_EINVAL, card, "another card's descriptor");
    if ((own->access & FI_WRITE) == 0) return refuse(FI_EACCES, card, "registered for no sending");
    if (!holds(own, (uintptr_t)parts[i].iov_base, parts[i].iov_len))
      return refuse(FI_EINVAL, card, "sends from outside of what the descriptor means");
  }
  const struct card_key* theirs = key_named(name);
  if (theirs == NULL) return refuse(FI_EKEYREJECTED, card, "no memory has this key");
  if (theirs->network != (uint64_t)from->network) {
    if (from->network >= kCards) return -FI_EHOSTUNREACH; /* a fabric of its own */
    return refuse(FI_EKEYREJECTED, card, "another card's key");
  }
  if ((theirs->access & FI_REMOTE_WRITE) == 0) return refuse(FI_EACCES, card, "may not be written");
  if (!holds(theirs, to, bytes)) return refuse(FI_EINVAL, card, "writes outside of the memory");
  return 0;
}

static ssize_t counted(ssize_t code, int card, size_t bytes, int injects) {
  if (code != 0) return code;
  add(&told()->writes[card], 1);
  add(&told()->bytes[card], bytes);
  add(&told()->injected[card], (uint64_t)injects);
  return code;
}

/* Where net finds what a card is given by the device's address. Requires: it has been checked. */
static void* local(const void* data, void* descriptor, size_t bytes) {
  const struct card_key* key = key_named((uintptr_t)descriptor);
  if (key->view == 0) return (void*)data;
  add(&told()->device_bytes[0], bytes);
  return (char*)(uintptr_t)key->view + ((uintptr_t)data - key->base);
}

static uint64_t remote(uint64_t at, uint64_t name, size_t bytes, int writes) {
  const struct card_key* key = key_named(name);
  if (key->view == 0) return at;
  if (writes) add(&told()->device_bytes[1], bytes);
  return key->shadow + (at - key->base);
}

/* Notes what a card is about to write to a device's memory. NULL: it is the host's. */
static uint64_t* note(uint64_t at, uint64_t name, size_t bytes) {
  struct card_key* key = key_named(name);
  if (key->view == 0) return NULL;
  const uint64_t place = __atomic_fetch_add(&key->count, 1, __ATOMIC_RELAXED);
  if (place >= kWritten) abort();
  key->written[place].offset = at - key->base;
  __atomic_store_n(&key->written[place].bytes, bytes, __ATOMIC_RELEASE);
  return &key->written[place].bytes;
}

/* What net did not take is not going to be written. */
static ssize_t noted(uint64_t* bytes, ssize_t code) {
  if (bytes != NULL && code != 0) __atomic_store_n(bytes, 0, __ATOMIC_RELEASE);
  return code;
}

/* The device sees what has been written: all of it, as often as somebody asks. What is still on its
 * way is nobody's yet, and is seen by the reading that follows it. */
static void settle(const struct card_key* key) {
  const uint64_t count = __atomic_load_n(&key->count, __ATOMIC_ACQUIRE);
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t bytes = __atomic_load_n(&key->written[i].bytes, __ATOMIC_ACQUIRE);
    const uint64_t offset = key->written[i].offset;
    if (bytes != 0)
      memcpy((char*)(uintptr_t)key->view + offset, (char*)(uintptr_t)key->shadow + offset, bytes);
  }
}

static ssize_t read_from(struct fid_ep* ep, void* data, size_t bytes, void* desc, fi_addr_t from,
                         uint64_t at, uint64_t name, void* context) {
  struct endpoint* own = (struct endpoint*)ep->rma;
  const struct card_key *to = key_named((uintptr_t)desc), *key = key_named(name);
  if (to == NULL || owner_of(to) != (uint64_t)getpid() || to->card != (uint64_t)own->card ||
      (to->access & FI_READ) == 0 || !holds(to, (uintptr_t)data, bytes) || to->view != 0)
    return refuse(FI_EINVAL, own->card, "reads to where it may not");
  if (key == NULL || key->card != (uint64_t)own->card || (key->access & FI_REMOTE_READ) == 0 ||
      !holds(key, at, bytes))
    return refuse(FI_EKEYREJECTED, own->card, "reads what it may not");
  if (key->view != 0 && owner_of(key) == (uint64_t)getpid()) {
    settle(key);
    add(&told()->reads, 1);
  }
  return own->real->read(ep, data, bytes, desc, from, remote(at, name, bytes, 0), name, context);
}

/* ofi_rxm over sockets crashes where a write that brings immediate data is cut off in its middle;
 * only small ones may come whole. It takes two of three empty ones at once. */
static ssize_t may_be_cut(struct endpoint* own, size_t bytes) {
  if (!is_layered() || (bytes > 0 && bytes <= kWholeBytes)) return 0;
  if (bytes != 0) return refuse(FI_EINVAL, own->card, "writes what may be cut off");
  return own->empties++ % 3 == 2 ? -FI_EAGAIN : 0;
}

/* Before an empty write that is not taken at once the connection breaks: what was written just
 * before completes, for sockets have it, and is lost, unless the other side has to confirm it. */
static size_t arrives(const struct endpoint* own, size_t bytes, uint64_t flags) {
  if ((flags & (FI_REMOTE_CQ_DATA | FI_DELIVERY_COMPLETE)) != 0) return bytes;
  return is_layered() && own->empties % 3 == 2 ? 0 : bytes;
}

static ssize_t writemsg(struct fid_ep* ep, const struct fi_msg_rma* message, uint64_t flags) {
  struct endpoint* own = (struct endpoint*)ep->rma;
  const struct fi_rma_iov* to = message->rma_iov;
  ssize_t code = message->desc == NULL ? refuse(FI_EINVAL, own->card, "no descriptors")
                                       : check(own, message->msg_iov, message->desc,
                                               message->iov_count, to->addr, to->key);
  if (code == 0 && message->data >> 32 != 0)
    code = refuse(FI_EINVAL, own->card, "more than 32 bits of immediate data");
  if (code == 0 && message->iov_count > 4) code = refuse(FI_EINVAL, own->card, "too many parts");
  if (code == 0 && (flags & FI_REMOTE_CQ_DATA) != 0) code = may_be_cut(own, to->len);
  if (code != 0) return code;
  struct iovec parts[4];
  const size_t bytes = arrives(own, to->len, flags);
  struct fi_rma_iov there = {remote(to->addr, to->key, to->len, 1), bytes, to->key};
  struct fi_msg_rma as_net = *message;
  for (size_t i = 0; i < message->iov_count; ++i) {
    parts[i] = message->msg_iov[i];
    parts[i].iov_base = local(parts[i].iov_base, message->desc[i], parts[i].iov_len);
    if (bytes == 0) parts[i].iov_len = 0;
  }
  as_net.msg_iov = parts;
  as_net.rma_iov = &there;
  uint64_t* const place = note(to->addr, to->key, to->len);
  return counted(noted(place, own->real->writemsg(ep, &as_net, flags)), own->card, to->len, 0);
}

static ssize_t put(struct fid_ep* ep, const void* data, size_t bytes, void* desc, fi_addr_t to,
                   uint64_t at, uint64_t key, void* context, const uint64_t* bits) {
  struct endpoint* own = (struct endpoint*)ep->rma;
  const struct iovec part = {(void*)data, bytes};
  ssize_t code = check(own, &part, &desc, 1, at, key);
  if (code == 0 && bits != NULL && *bits >> 32 != 0)
    code = refuse(FI_EINVAL, own->card, "more than 32 bits of immediate data");
  if (code == 0 && bits != NULL) code = may_be_cut(own, bytes);
  if (code != 0) return code;
  uint64_t* const place = note(at, key, bytes);
  data = local(data, desc, bytes);
  const size_t sent = arrives(own, bytes, bits == NULL ? 0 : FI_REMOTE_CQ_DATA);
  at = remote(at, key, bytes, 1);
  code = bits == NULL ? own->real->write(ep, data, sent, desc, to, at, key, context)
                      : own->real->writedata(ep, data, sent, desc, *bits, to, at, key, context);
  return counted(noted(place, code), own->card, bytes, 0);
}

static ssize_t write_alone(struct fid_ep* ep, const void* data, size_t bytes, void* desc,
                           fi_addr_t to, uint64_t at, uint64_t key, void* context) {
  return put(ep, data, bytes, desc, to, at, key, context, NULL);
}

static ssize_t writedata(struct fid_ep* ep, const void* data, size_t bytes, void* desc,
                         uint64_t bits, fi_addr_t to, uint64_t at, uint64_t key, void* context) {
  return put(ep, data, bytes, desc, to, at, key, context, &bits);
}

static ssize_t injectdata(struct fid_ep* ep, const void* data, size_t bytes, uint64_t bits,
                          fi_addr_t to, uint64_t at, uint64_t key) {
  struct endpoint* own = (struct endpoint*)ep->rma;
  const struct iovec part = {(void*)data, bytes};
  ssize_t code = check(own, &part, NULL, 1, at, key);
  if (code == 0 && bytes > kInjectBytes) code = refuse(FI_EMSGSIZE, own->card, "injects too much");
  if (code == 0 && bits >> 32 != 0)
    code = refuse(FI_EINVAL, own->card, "more than 32 bits of immediate data");
  if (code != 0) return code;
  uint64_t* const place = note(at, key, bytes);
  code = own->real->injectdata(ep, data, bytes, bits, to, remote(at, key, bytes, 1), key);
  return counted(noted(place, code), own->card, bytes, 1);
}

static int endpoint(struct fid_domain* domain, struct fi_info* info, struct fid_ep** out,
                    void* context) {
  struct domain* from = (struct domain*)domain->ops;
  if (info->nic == NULL) return from->real->endpoint(domain, info, out, context); /* net's own */
  struct fi_info* made = below(info);
  int code = from->real->endpoint(domain, made, out, context);
  fi_freeinfo(made);
  if (code != 0) return code;
  struct endpoint* own = stays(sizeof *own);
  own->card = from->card;
  own->network = from->network;
  own->real = (*out)->rma;
  own->ops = *own->real;
  own->ops.writemsg = writemsg;
  own->ops.write = write_alone;
  own->ops.writedata = writedata;
  own->ops.injectdata = injectdata;
  own->ops.read = read_from;
  (*out)->rma = &own->ops;
  return 0;
}

static int domain(struct fid_fabric* fabric, struct fi_info* info, struct fid_domain** out,
                  void* context) {
  struct fi_info* made = below(info);
  int code = ((struct fabric*)fabric->ops)->real->domain(fabric, made, out, context);
  fi_freeinfo(made);
  if (code != 0) return code;
  struct domain* own = stays(sizeof *own);
  own->card = number_of(info->domain_attr->name);
  own->network = network_of(info->domain_attr->name);
  own->real = (*out)->ops;
  own->ops = *own->real;
  own->ops.endpoint = endpoint;
  (*out)->ops = &own->ops;
  own->real_mr = (*out)->mr;
  own->mr_ops = (struct fi_ops_mr){.size = sizeof own->mr_ops, .reg = reg, .regattr = regattr};
  own->hmem = (info->caps & FI_HMEM) != 0;
  own->refuses = own->hmem && refuses(info->domain_attr->name);
  (*out)->mr = &own->mr_ops;
  return own->card < 0 ? -FI_ENODEV : 0;
}

/* ---- what a libfabric exports -----------------------------------------------------------------*/

int fi_fabric(struct fi_fabric_attr* attr, struct fid_fabric** out, void* context) {
  int (*open)(struct fi_fabric_attr*, struct fid_fabric**, void*) = real("fi_fabric", "FABRIC_1.1");
  if (strcmp(attr->prov_name, provider()) != 0) return open(attr, out, context);
  struct fi_fabric_attr as_net = *attr;
  char name[] = "net";
  as_net.prov_name = name;
  as_net.name = fabric_below();
  int code = open(&as_net, out, context);
  if (code != 0) return code;
  struct fabric* own = stays(sizeof *own);
  own->real = (*out)->ops;
  own->ops = *own->real;
  own->ops.domain = domain;
  (*out)->ops = &own->ops;
  return 0;
}

int fi_getinfo(uint32_t version, const char* node, const char* service, uint64_t flags,
               const struct fi_info* hints, struct fi_info** info) {
  int (*get)(uint32_t, const char*, const char*, uint64_t, const struct fi_info*,
             struct fi_info**) = real("fi_getinfo", "FABRIC_1.3");
  struct fi_info *others = NULL, *cards = cards_for(version, hints), **last = &cards;
  int code = get(version, node, service, flags, hints, &others);
  while (*last != NULL) last = &(*last)->next;
  *last = code == 0 ? others : NULL;
  drop_own(last); /* the system's of that name are not here */
  *info = cards;
  return cards != NULL ? 0 : code;
}

void fi_freeinfo(struct fi_info* info) {
  void (*free_it)(struct fi_info*) = real("fi_freeinfo", "FABRIC_1.3");
  free_it(info);
}

struct fi_info* fi_dupinfo(const struct fi_info* info) {
  struct fi_info* (*copy)(const struct fi_info*) = real("fi_dupinfo", "FABRIC_1.3");
  return copy(info);
}

uint32_t fi_version(void) {
  uint32_t (*ask)(void) = real("fi_version", NULL);
  const uint32_t is = ask == NULL ? 0 : ask();                       /* no libfabric: too old */
  return is == 0 || is > FI_VERSION(1, 20) ? is : FI_VERSION(1, 20); /* these know dmabufs */
}

const char* fi_strerror(int code) {
  const char* (*ask)(int) = real("fi_strerror", NULL);
  return ask(code);
}
