/* SPDX-License-Identifier: Apache-2.0
 *
 * A libfabric with network cards. It lists what the system's does and, before that, the cards of
 *   FAKE_CARDS="mlx5_0 0000:01:00.0 up, mlx5_1 0000:81:00.0 down+hmem"
 * as provider FAKE_CARDS_PROVIDER (verbs;ofi_rxm). They are as strict as cards are: each wants the
 * mr_modes of verbs, what is sent must lie in memory registered for it with its descriptor, what is
 * written in memory that the other process has registered for that, under the card's own key and by
 * virtual address; what is injected is 64 bytes at most. The rest is refused, and noted (cards.h).
 * Below, the system's net provider carries the bytes, all cards over one interface. Processes that
 * talk to each other need the same FAKE_CARDS_FILE.
 */
#define _GNU_SOURCE
#include "cards.h"

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
#include <unistd.h>

#define MODES (FI_MR_LOCAL | FI_MR_ALLOCATED | FI_MR_VIRT_ADDR | FI_MR_PROV_KEY)
enum { kInjectBytes = 64, kImmediateBytes = 4, kGigabit = 1000 * 1000 * 1000 };

static void* real(const char* name, const char* version) {
  void* library = dlopen("libfabric.so.1", RTLD_NOW | RTLD_LOCAL);
  void* found = library == NULL   ? NULL
                : version == NULL ? dlsym(library, name)
                                  : dlvsym(library, name, version);
  return found;
}

static struct fi_info* copy_of(const struct fi_info* info) {
  struct fi_info* (*copy)(const struct fi_info*) = real("fi_dupinfo", "FABRIC_1.3");
  struct fi_info* made = copy(info);
  if (made == NULL) abort();
  return made;
}

/* ---- what the test is told --------------------------------------------------------------------*/

static struct cards* told(void) {
  static struct cards* shared = NULL;
  struct cards* mapped = __atomic_load_n(&shared, __ATOMIC_ACQUIRE);
  if (mapped != NULL) return mapped;
  const char* path = getenv("FAKE_CARDS_FILE");
  int file = path == NULL ? -1 : open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (path != NULL && (file < 0 || ftruncate(file, sizeof *mapped) != 0)) abort();
  mapped = mmap(NULL, sizeof *mapped, PROT_READ | PROT_WRITE,
                MAP_SHARED | (file < 0 ? MAP_ANONYMOUS : 0), file, 0);
  if (mapped == MAP_FAILED) abort();
  if (file >= 0) close(file);
  struct cards* none = NULL;
  if (__atomic_compare_exchange_n(&shared, &none, mapped, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
    return mapped;
  munmap(mapped, sizeof *mapped); /* another thread was first */
  return none;
}

static void add(uint64_t* to, uint64_t what) { __atomic_add_fetch(to, what, __ATOMIC_ACQ_REL); }

static ssize_t refuse(int code, int card, const char* what) {
  if (__atomic_fetch_add(&told()->refused, 1, __ATOMIC_ACQ_REL) == 0)
    snprintf(told()->first, sizeof told()->first, "card %d: %s", card, what);
  return -code;
}

/* ---- cards ------------------------------------------------------------------------------------*/

struct card {
  char name[32];
  unsigned domain, bus, device, function;
  int down, hmem;
  struct fi_bus_attr at;
  struct fi_link_attr link;
  struct fi_device_attr made;
  struct fid_nic nic;
};

/* What an info of net says, without which it opens nothing. */
static struct {
  char* fabric;
  char* domain;
  struct sockaddr_in address;
} net;

static const char* provider(void) {
  const char* set = getenv("FAKE_CARDS_PROVIDER");
  return set != NULL ? set : "verbs;ofi_rxm";
}

static int keep_nic(struct fid* fid) {
  (void)fid;
  return 0;
}

static int same_nic(struct fid* fid, int command, void* into) {
  if (command != FI_DUP) return -FI_ENOSYS;
  *(struct fid**)into = fid; /* a nic lives as long as the process */
  return 0;
}

static struct fi_ops nic_ops = {
    .size = sizeof(struct fi_ops), .close = keep_nic, .control = same_nic};

/* Never freed: infos point to it. NULL at the end of the list. */
static struct card* next_card(const char** list) {
  static struct card* kept = NULL; /* so that a leak checker finds them */
  struct card_list {
    struct card card;
    struct card* before;
  };
  char state[64] = "";
  struct card_list* made = calloc(1, sizeof *made);
  if (made == NULL) abort();
  struct card* card = &made->card;
  if (sscanf(*list, "%31s %x:%x:%x.%x %63[^,]", card->name, &card->domain, &card->bus,
             &card->device, &card->function, state) != 6) {
    free(made);
    return NULL;
  }
  made->before = __atomic_exchange_n(&kept, card, __ATOMIC_ACQ_REL);
  const char* end = strchr(*list, ',');
  *list = end != NULL ? end + 1 : "";
  card->down = strstr(state, "down") != NULL;
  card->hmem = strstr(state, "hmem") != NULL;
  card->at.bus_type = FI_BUS_PCI;
  card->at.attr.pci = (struct fi_pci_attr){(uint16_t)card->domain, (uint8_t)card->bus,
                                           (uint8_t)card->device, (uint8_t)card->function};
  card->link.speed = 200ul * kGigabit;
  card->link.state = card->down ? FI_LINK_DOWN : FI_LINK_UP;
  card->made.name = card->name;
  card->nic = (struct fid_nic){.fid = {FI_CLASS_NIC, NULL, &nic_ops},
                               .device_attr = &card->made,
                               .bus_attr = &card->at,
                               .link_attr = &card->link};
  return card;
}

/* The number of a card is its place in the list. */
static int number_of(const char* name) {
  const char* list = getenv("FAKE_CARDS");
  for (int number = 0; list != NULL && number < kCards; ++number) {
    while (*list == ' ') ++list;
    size_t bytes = strlen(name);
    if (strncmp(list, name, bytes) == 0 && list[bytes] == ' ') return number;
    list = strchr(list, ',');
    if (list != NULL) ++list;
  }
  return -1;
}

static void rename_to(char** name, const char* wanted) {
  free(*name);
  *name = strdup(wanted);
}

/* Ports of RoCE have an address each. */
static struct fi_info* info_of(struct card* card, const struct fi_info* below, int number,
                               int hmem) {
  struct fi_info* info = copy_of(below);
  rename_to(&info->fabric_attr->prov_name, provider());
  rename_to(&info->fabric_attr->name, "fake");
  rename_to(&info->domain_attr->name, card->name);
  ((struct sockaddr_in*)info->src_addr)->sin_addr.s_addr = htonl(0xc6120001u + 256 * number);
  info->domain_attr->mr_mode = MODES | (hmem ? FI_MR_HMEM : 0);
  info->domain_attr->mr_key_size = 4;
  info->domain_attr->cq_data_size = kImmediateBytes;
  info->tx_attr->inject_size = kInjectBytes;
  if (hmem) info->caps |= FI_HMEM;
  info->nic = &card->nic;
  return info;
}

/* The info of net on which all cards lie: of the first interface with an IPv4 address. */
static struct fi_info* find_net(uint32_t version, const struct fi_info* hints) {
  int (*get)(uint32_t, const char*, const char*, uint64_t, const struct fi_info*,
             struct fi_info**) = real("fi_getinfo", "FABRIC_1.3");
  struct fi_info* asked = copy_of(hints);
  struct fi_info* found = NULL;
  rename_to(&asked->fabric_attr->prov_name, "net");
  asked->caps &= ~FI_HMEM;
  asked->domain_attr->mr_mode = MODES;
  int code = get(version, NULL, NULL, 0, asked, &found);
  fi_freeinfo(asked);
  if (code != 0) return NULL;
  const struct fi_info* each = found;
  while (each != NULL && each->addr_format != FI_SOCKADDR_IN) each = each->next;
  struct fi_info* below = each == NULL ? NULL : copy_of(each);
  fi_freeinfo(found);
  if (below == NULL || net.domain != NULL) return below;
  net.fabric = strdup(below->fabric_attr->name);
  net.domain = strdup(below->domain_attr->name);
  memcpy(&net.address, below->src_addr, sizeof net.address);
  return below;
}

static struct fi_info* cards_for(uint32_t version, const struct fi_info* hints) {
  const char* list = getenv("FAKE_CARDS");
  const int mode = hints->domain_attr->mr_mode, hmem = (hints->caps & FI_HMEM) != 0;
  if (list == NULL || (mode & MODES) != MODES) return NULL;
  struct fi_info *first = NULL, **last = &first, *below = find_net(version, hints);
  struct card* card;
  for (int number = 0; below != NULL && number < kCards && (card = next_card(&list)) != NULL;
       ++number) {
    if (hmem && !card->hmem) continue;
    *last = info_of(card, below, number, hmem);
    last = &(*last)->next;
  }
  if (below != NULL) fi_freeinfo(below);
  return first;
}

/* ---- memory -----------------------------------------------------------------------------------*/

struct memory {
  struct fid_mr mr; /* what the caller has; its descriptor is the key, too */
  struct fid_mr* real;
  struct card_key* key;
};

static struct card_key* take_key(void) {
  struct card_key* keys = told()->keys;
  for (int i = 0; i < kKeys; ++i) {
    uint64_t owner = __atomic_load_n(&keys[i].pid, __ATOMIC_ACQUIRE);
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
  __atomic_store_n(&memory->key->pid, 0, __ATOMIC_RELEASE);
  free(memory);
  return code;
}

static struct fi_ops memory_ops = {.size = sizeof(struct fi_ops), .close = memory_close};

/* FI_MR_ALLOCATED: a card pins pages, which must be there. */
static int mapped(const void* data, size_t bytes) {
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  unsigned char in_core;
  for (uintptr_t at = (uintptr_t)data & ~(page - 1); at < (uintptr_t)data + bytes; at += page)
    if (mincore((void*)at, page, &in_core) != 0) return 0;
  return 1;
}

/* ---- objects: each has tables of its own, before what its calls must know
 * -----------------------*/

struct fabric {
  struct fi_ops_fabric ops, *real;
};
struct domain {
  struct fi_ops_domain ops, *real;
  struct fi_ops_mr mr_ops, *real_mr;
  int card;
};
struct endpoint {
  struct fi_ops_rma ops, *real;
  int card;
};

/* They stay: an object may be closed by libfabric later than by its owner. */
static void* stays(size_t bytes) {
  static void** kept = NULL;
  void** made = calloc(1, sizeof(void*) + bytes);
  if (made == NULL) abort();
  *made = __atomic_exchange_n(&kept, made, __ATOMIC_ACQ_REL);
  return made + 1;
}

static int reg(struct fid* fid, const void* data, size_t bytes, uint64_t access, uint64_t offset,
               uint64_t key, uint64_t flags, struct fid_mr** out, void* context) {
  struct fid_domain* domain = (struct fid_domain*)fid;
  struct domain* own = (struct domain*)domain->ops;
  if (!mapped(data, bytes))
    return (int)refuse(FI_EFAULT, own->card, "registers what is not mapped");
  if (key != 0) return (int)refuse(FI_EKEYREJECTED, own->card, "is told which key to use");
  struct memory* made = calloc(1, sizeof *made);
  if (made == NULL) return -FI_ENOMEM;
  made->key = take_key();
  const uint64_t place = (uint64_t)(made->key - told()->keys);
  const uint64_t name = ((++made->key->uses & 0xfffff) * kKeys + place) & 0xffffffff;
  made->mr.fid = (struct fid){FI_CLASS_MR, context, &memory_ops};
  made->mr.key = name;
  made->mr.mem_desc = (void*)(uintptr_t)name;
  int code = own->real_mr->reg(fid, data, bytes, access, offset, name, flags, &made->real, context);
  if (code != 0) {
    __atomic_store_n(&made->key->pid, 0, __ATOMIC_RELEASE);
    free(made);
    return code;
  }
  made->key->base = (uintptr_t)data;
  made->key->bytes = bytes;
  made->key->access = access;
  made->key->card = (uint64_t)own->card;
  __atomic_store_n(&made->key->key, name, __ATOMIC_RELEASE);
  *out = &made->mr;
  return 0;
}

static int holds(const struct card_key* key, uint64_t at, size_t bytes) {
  return at >= key->base && bytes <= key->bytes && at - key->base <= key->bytes - bytes;
}

/* Why the card would not write, or 0. */
static ssize_t check(int card, const struct iovec* parts, void* const* descriptors, size_t count,
                     uint64_t to, uint64_t name) {
  size_t bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    bytes += parts[i].iov_len;
    if (descriptors == NULL) continue; /* injected: read before the call ends */
    const struct card_key* own = key_named((uintptr_t)descriptors[i]);
    if (own == NULL || own->pid != (uint64_t)getpid())
      return refuse(FI_EINVAL, card, "sends from memory that is not registered");
    if (own->card != (uint64_t)card) return refuse(FI_EINVAL, card, "another card's descriptor");
    if ((own->access & FI_WRITE) == 0) return refuse(FI_EACCES, card, "registered for no sending");
    if (!holds(own, (uintptr_t)parts[i].iov_base, parts[i].iov_len))
      return refuse(FI_EINVAL, card, "sends from outside of what the descriptor means");
  }
  const struct card_key* theirs = key_named(name);
  if (theirs == NULL) return refuse(FI_EKEYREJECTED, card, "no memory has this key");
  if (theirs->card != (uint64_t)card) return refuse(FI_EKEYREJECTED, card, "another card's key");
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

static ssize_t writemsg(struct fid_ep* ep, const struct fi_msg_rma* message, uint64_t flags) {
  struct endpoint* own = (struct endpoint*)ep->rma;
  const struct fi_rma_iov* to = message->rma_iov;
  ssize_t code = message->desc == NULL ? refuse(FI_EINVAL, own->card, "no descriptors")
                                       : check(own->card, message->msg_iov, message->desc,
                                               message->iov_count, to->addr, to->key);
  if (code == 0 && message->data >> 32 != 0)
    code = refuse(FI_EINVAL, own->card, "more than 32 bits of immediate data");
  if (code != 0) return code;
  return counted(own->real->writemsg(ep, message, flags), own->card, to->len, 0);
}

static ssize_t writedata(struct fid_ep* ep, const void* data, size_t bytes, void* desc,
                         uint64_t bits, fi_addr_t to, uint64_t at, uint64_t key, void* context) {
  struct endpoint* own = (struct endpoint*)ep->rma;
  const struct iovec part = {(void*)data, bytes};
  ssize_t code = check(own->card, &part, &desc, 1, at, key);
  if (code == 0 && bits >> 32 != 0)
    code = refuse(FI_EINVAL, own->card, "more than 32 bits of immediate data");
  if (code != 0) return code;
  return counted(own->real->writedata(ep, data, bytes, desc, bits, to, at, key, context), own->card,
                 bytes, 0);
}

static ssize_t injectdata(struct fid_ep* ep, const void* data, size_t bytes, uint64_t bits,
                          fi_addr_t to, uint64_t at, uint64_t key) {
  struct endpoint* own = (struct endpoint*)ep->rma;
  const struct iovec part = {(void*)data, bytes};
  ssize_t code = check(own->card, &part, NULL, 1, at, key);
  if (code == 0 && bytes > kInjectBytes) code = refuse(FI_EMSGSIZE, own->card, "injects too much");
  if (code == 0 && bits >> 32 != 0)
    code = refuse(FI_EINVAL, own->card, "more than 32 bits of immediate data");
  if (code != 0) return code;
  return counted(own->real->injectdata(ep, data, bytes, bits, to, at, key), own->card, bytes, 1);
}

/* An info of a card as net knows it. */
static struct fi_info* below(const struct fi_info* info) {
  struct fi_info* made = copy_of(info);
  made->nic = NULL;
  rename_to(&made->fabric_attr->prov_name, "net");
  rename_to(&made->fabric_attr->name, net.fabric);
  rename_to(&made->domain_attr->name, net.domain);
  memcpy(made->src_addr, &net.address, sizeof net.address);
  made->domain_attr->mr_mode = FI_MR_VIRT_ADDR; /* keys are ours */
  return made;
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
  own->real = (*out)->rma;
  own->ops = *own->real;
  own->ops.writemsg = writemsg;
  own->ops.writedata = writedata;
  own->ops.injectdata = injectdata;
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
  own->real = (*out)->ops;
  own->ops = *own->real;
  own->ops.endpoint = endpoint;
  (*out)->ops = &own->ops;
  own->real_mr = (*out)->mr;
  own->mr_ops = (struct fi_ops_mr){.size = sizeof own->mr_ops, .reg = reg};
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
  as_net.name = net.fabric;
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
  return ask == NULL ? 0 : ask(); /* no libfabric: too old */
}

const char* fi_strerror(int code) {
  const char* (*ask)(int) = real("fi_strerror", NULL);
  return ask(code);
}
