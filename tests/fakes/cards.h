/* SPDX-License-Identifier: Apache-2.0
 *
 * What the fake cards (cards_fabric.c) tell a test, in the file that FAKE_CARDS_FILE names. All
 * processes that use the cards map the same file, so each knows what the others have registered.
 */
#ifndef HCCOMM_FAKES_CARDS_H
#define HCCOMM_FAKES_CARDS_H

#include <stdint.h>

enum { kCards = 4, kKeys = 4096 };

struct card_key {
  uint64_t key, base, bytes, access; /* key: 0 where none is registered */
  uint64_t card, pid, uses;          /* uses: how often this place has been taken */
};

struct cards {
  uint64_t writes[kCards], bytes[kCards]; /* that went over each card */
  uint64_t injected[kCards];              /* writes of them that were injected */
  uint64_t refused;                       /* what no card would have done ... */
  char first[256];                        /* ... and the first of it in words */
  struct card_key keys[kKeys];
};

#endif
