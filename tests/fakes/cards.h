/* SPDX-License-Identifier: Apache-2.0
 *
 * What the fake cards (cards_fabric.c) tell a test, in the file that FAKE_CARDS_FILE names. All
 * processes that use the cards map the same file, so each knows what the others have registered.
 */
#ifndef HCCOMM_FAKES_CARDS_H
#define HCCOMM_FAKES_CARDS_H

#include <stdint.h>

enum { kCards = 4, kKeys = 4096, kWritten = 512 };

struct card_key {
  uint64_t key, base, bytes, access; /* key: 0 where none is registered */
  uint64_t card, network, pid, uses; /* uses: how often this place has been taken */
  /* Of a device's memory: where its process sees it, and what cards write to instead; else 0. */
  uint64_t view, shadow;
  uint64_t count; /* of `written`: what cards have been told to write, by offset; bytes last */
  struct {
    uint64_t offset, bytes;
  } written[kWritten];
};

struct cards {
  uint64_t writes[kCards], bytes[kCards]; /* that went over each card */
  uint64_t injected[kCards];              /* writes of them that were injected */
  uint64_t refused;                       /* what no card would have done ... */
  char first[256];                        /* ... and the first of it in words */
  uint64_t device_keys;                   /* registrations of device memory, so far ... */
  uint64_t dmabufs;                       /* of them those by a dmabuf */
  uint64_t device_refusals;               /* ... and those that were refused as the test asked */
  uint64_t device_bytes[2];               /* that went from devices, and to devices */
  uint64_t reads;                         /* of what had been written to a device */
  struct card_key keys[kKeys];
};

#endif
