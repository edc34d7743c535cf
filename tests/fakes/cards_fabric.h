/* SPDX-License-Identifier: Apache-2.0
 *
 * What the two halves of the fake cards share: cards_list.c says which there are, cards_fabric.c
 * what they do. */
#ifndef HCCOMM_FAKES_CARDS_FABRIC_H
#define HCCOMM_FAKES_CARDS_FABRIC_H

#include <rdma/fabric.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_rma.h>

#include "cards.h"

#define READS (FI_READ | FI_REMOTE_READ)
#define MODES (FI_MR_LOCAL | FI_MR_ALLOCATED | FI_MR_VIRT_ADDR | FI_MR_PROV_KEY)
enum { kInjectBytes = 64, kImmediateBytes = 4, kWholeBytes = 8192, kGigabit = 1000 * 1000 * 1000 };

/* What the tests read, the counts in it, and what is refused: -code; the first is noted. */
struct cards* told(void);
void add(uint64_t* to, uint64_t what);
ssize_t refuse(int code, int card, const char* what);
/* A function of the system's libfabric; NULL where there is none. */
void* real(const char* name, const char* version);
const char* provider(void);
int is_layered(void); /* over sockets */
int mapped(const void* data, size_t bytes);
/* The infos of the cards that fit; NULL where none does. */
struct fi_info* cards_for(uint32_t version, const struct fi_info* hints);
void drop_own(struct fi_info** infos); /* those of provider() */
int number_of(const char* name);       /* -1: no card */
int network_of(const char* name);
int refuses(const char* name); /* whether it registers no device memory */
/* The info of a card as net knows it, and the name of net's fabric. */
struct fi_info* below(const struct fi_info* info);
char* fabric_below(void);
/* Whose memory it is. Atomic: another thread may just be trying to take the place. */
static inline uint64_t owner_of(const struct card_key* key) {
  return __atomic_load_n(&key->pid, __ATOMIC_ACQUIRE);
}

#endif
