// SPDX-License-Identifier: Apache-2.0
//
// The records that ranks leave in a store, decoded from any bytes. What decodes must say the same
// once it is encoded and decoded again.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "rendezvous/records.hpp"

using namespace hccomm;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  if (auto greeting = rendezvous::decode_greeting(bytes)) {
    auto again = rendezvous::decode_greeting(rendezvous::encode(greeting.value()));
    HCCOMM_CHECK(again.ok() && again.value().host == greeting.value().host, "a greeting is stable");
  }
  if (auto card = rendezvous::decode_card(bytes)) {
    auto again = rendezvous::decode_card(rendezvous::encode(card.value()));
    HCCOMM_CHECK(again.ok() && again.value().card.addresses == card.value().card.addresses,
                 "a card is stable");
  }
  if (auto book = rendezvous::decode_book(bytes)) {
    auto again = rendezvous::decode_book(rendezvous::encode(book.value()));
    HCCOMM_CHECK(again.ok() && again.value().failure == book.value().failure, "a book is stable");
    HCCOMM_CHECK(again.value().tokens == book.value().tokens, "a book's tokens are stable");
  }
  return 0;
}
