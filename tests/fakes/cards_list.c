/* SPDX-License-Identifier: Apache-2.0
 *
 * The cards of FAKE_CARDS as infos of libfabric, and what they are to the net provider below them.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cards_fabric.h"

/* ---- what the test is told --------------------------------------------------------------------*/

struct cards* told(void) {
  static struct cards* shared = NULL;
  struct cards* mapped = __atomic_load_n(&shared, __ATOMIC_ACQUIRE);
  if (mapped != NULL) return mapped;
  const char* path = getenv("FAKE_CARDS_FILE");
  int file = path == NULL ? -1 : open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  struct stat is = {0};
  if (path != NULL && (file < 0 || fstat(file, &is) != 0)) abort();
  if (path != NULL && is.st_size != sizeof *mapped && /* of another build: its words mean nothing */
      (ftruncate(file, 0) != 0 || ftruncate(file, sizeof *mapped) != 0))
    abort();
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

void add(uint64_t* to, uint64_t what) { __atomic_add_fetch(to, what, __ATOMIC_ACQ_REL); }

ssize_t refuse(int code, int card, const char* what) {
  if (__atomic_fetch_add(&told()->refused, 1, __ATOMIC_ACQ_REL) == 0)
    snprintf(told()->first, sizeof told()->first, "card %d: %s", card, what);
  return -code;
}

/* ---- the system's libfabric
 * --------------------------------------------------------------------*/

void* real(const char* name, const char* version) {
  void* library = dlopen("libfabric.so.1", RTLD_NOW | RTLD_LOCAL);
  void* found = library == NULL   ? NULL
                : version == NULL ? dlsym(library, name)
                                  : dlvsym(library, name, version);
  return found;
}

struct fi_info* copy_of(const struct fi_info* info) {
  struct fi_info* (*copy)(const struct fi_info*) = real("fi_dupinfo", "FABRIC_1.3");
  struct fi_info* made = copy(info);
  if (made == NULL) abort();
  return made;
}

/* ---- cards ------------------------------------------------------------------------------------*/

struct card {
  char name[32], fabric[32];
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

const char* provider(void) {
  const char* set = getenv("FAKE_CARDS_PROVIDER");
  return set != NULL ? set : "verbs;ofi_rxm";
}

/* FI_MR_ALLOCATED: a card pins pages, which must be there. */
int mapped(const void* data, size_t bytes) {
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  unsigned char in_core;
  for (uintptr_t at = (uintptr_t)data & ~(page - 1); at < (uintptr_t)data + bytes; at += page)
    if (mincore((void*)at, page, &in_core) != 0) return 0;
  return 1;
}

int is_layered(void) { return strcmp(provider(), "net;ofi_rxm") == 0; }

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
  strcpy(card->fabric, "fake");
  const char* on = strstr(state, "on=");
  if (on != NULL)
    snprintf(card->fabric, sizeof card->fabric, "fake-%.*s", (int)strcspn(on + 3, "+ "), on + 3);
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
int number_of(const char* name) {
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

int refuses(const char* name) {
  const char* list = getenv("FAKE_CARDS");
  const char* entry = list == NULL ? NULL : strstr(list, name);
  const char* state = entry == NULL ? NULL : strstr(entry, "refuses");
  const char* end = entry == NULL ? NULL : strchr(entry, ',');
  return state != NULL && (end == NULL || state < end);
}

/* "a" of a card that is on=a: those reach each other. Others reach the one of their number. */
int network_of(const char* name) {
  const char* list = getenv("FAKE_CARDS");
  const char* entry = list == NULL ? NULL : strstr(list, name);
  const char* on = entry == NULL ? NULL : strstr(entry, "on=");
  const char* end = entry == NULL ? NULL : strchr(entry, ',');
  return on != NULL && (end == NULL || on < end) ? on[3] : number_of(name);
}

void rename_to(char** name, const char* wanted) {
  free(*name);
  *name = strdup(wanted);
}

/* Ports of RoCE have an address each. */
static struct fi_info* info_of(struct card* card, const struct fi_info* below, int number,
                               int hmem) {
  struct fi_info* info = copy_of(below);
  rename_to(&info->fabric_attr->prov_name, provider());
  rename_to(&info->fabric_attr->name, card->fabric);
  rename_to(&info->domain_attr->name, card->name);
  ((struct sockaddr_in*)info->src_addr)->sin_addr.s_addr = htonl(0xc6120001u + 256 * number);
  info->domain_attr->mr_mode = MODES | (hmem ? FI_MR_HMEM : 0);
  info->domain_attr->mr_key_size = 4;
  info->domain_attr->cq_data_size = kImmediateBytes;
  info->tx_attr->inject_size = kInjectBytes;
  if (hmem) info->caps |= FI_HMEM | READS;
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
  asked->caps |= READS;
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

struct fi_info* cards_for(uint32_t version, const struct fi_info* hints) {
  const char* list = getenv("FAKE_CARDS");
  const int mode = hints->domain_attr->mr_mode;
  const int hmem = (hints->caps & FI_HMEM) != 0 && (mode & FI_MR_HMEM) != 0;
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

/* An info of a card as net knows it. */
struct fi_info* below(const struct fi_info* info) {
  struct fi_info* made = copy_of(info);
  made->nic = NULL;
  made->caps &= ~FI_HMEM;
  rename_to(&made->fabric_attr->prov_name, "net");
  rename_to(&made->fabric_attr->name, net.fabric);
  rename_to(&made->domain_attr->name, net.domain);
  memcpy(made->src_addr, &net.address, sizeof net.address);
  made->domain_attr->mr_mode = FI_MR_VIRT_ADDR; /* keys are ours */
  return made;
}

char* fabric_below(void) { return net.fabric; }

void drop_own(struct fi_info** at) {
  while (*at != NULL) {
    struct fi_info* each = *at;
    if (strcmp(each->fabric_attr->prov_name, provider()) != 0) {
      at = &each->next;
      continue;
    }
    *at = each->next;
    each->next = NULL;
    fi_freeinfo(each);
  }
}
