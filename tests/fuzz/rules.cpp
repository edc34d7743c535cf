// SPDX-License-Identifier: Apache-2.0
//
// Fuzzes the readers of HCCOMM_ALGO and of HCCOMM_TABLE, the file of measured choices: whatever
// stands there, it is understood or InvalidArgument. Found would be any other end, or a rule that
// cannot be asked.
#include <string_view>

#include "base/error.hpp"
#include "select/rules.hpp"
#include "select/select.hpp"
#include "select/table.hpp"

using namespace hccomm;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const select::Rules rules = select::Rules::parse(text);
    for (const std::uint64_t bytes : {std::uint64_t{0}, std::uint64_t{65536}, select::kNoLimit}) {
      const select::Rule* found = rules.find(plan::Collective::AllReduce, bytes);
      HCCOMM_CHECK(found == nullptr || found->algorithm != nullptr, "a rule names an algorithm");
      HCCOMM_CHECK(found == nullptr || found->from_bytes <= found->to_bytes, "a rule has a range");
    }
  } catch (const Error& error) {
    HCCOMM_CHECK(error.status().code() == Code::InvalidArgument, "a bad rule is the user's");
  }
  try {
    const select::Table table = select::Table::parse(text, "fuzzed");
    for (const auto* line : table.of(plan::Collective::AllReduce, select::Place{})) {
      HCCOMM_CHECK(line->algorithm != nullptr, "a line names an algorithm");
    }
  } catch (const Error& error) {
    HCCOMM_CHECK(error.status().code() == Code::InvalidArgument, "a bad table is the user's");
  }
  return 0;
}
