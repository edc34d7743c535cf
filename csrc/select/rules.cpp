// SPDX-License-Identifier: Apache-2.0
#include "select/rules.hpp"

#include <string>

#include "base/config.hpp"
#include "base/error.hpp"

namespace hccomm::select {

namespace {

constexpr std::string_view kBlanks = " \t\n";

// A piece of the text that remembers where it stood.
struct Word {
  std::string_view all;
  std::size_t begin, end;

  std::string_view text() const { return all.substr(begin, end - begin); }
};

[[noreturn]] void refuse(const Word& at, const std::string& what) {
  throw Error(Code::InvalidArgument,
              text("HCCOMM_ALGO=\"", at.all, "\", character ", at.begin + 1, ": ", what));
}

Word trimmed(Word word) {
  while (word.begin < word.end && kBlanks.find(word.all[word.begin]) != kBlanks.npos) ++word.begin;
  while (word.end > word.begin && kBlanks.find(word.all[word.end - 1]) != kBlanks.npos) --word.end;
  return word;
}

std::vector<Word> split(Word word, char separator) {
  std::vector<Word> parts;
  for (std::size_t at = word.begin; at <= word.end; ++at) {
    if (at != word.end && word.all[at] != separator) continue;
    parts.push_back(trimmed({word.all, word.begin, at}));
    word.begin = at + 1;
  }
  return parts;
}

plan::Collective collective_of(const Word& word) {
  std::string names;
  for (int id = 1; id <= plan::kCollectives; ++id) {
    const auto collective = static_cast<plan::Collective>(id);
    if (plan::means(word.text(), collective)) return collective;
    names += text(id == 1 ? "" : ", ", plan::name(collective));
  }
  refuse(word, text("\"", word.text(), "\" is no collective; give one of ", names));
}

const algorithm::Algorithm* algorithm_of(const Word& word, plan::Collective collective) {
  std::string names;
  for (const algorithm::Algorithm& each : algorithm::algorithms()) {
    if (each.collective != collective) continue;
    if (word.text() == each.name) return &each;
    names += text(names.empty() ? "" : ", ", each.name);
  }
  refuse(word, text("\"", word.text(), "\" is no algorithm for ", plan::name(collective),
                    "; give one of ", names));
}

std::uint64_t bytes_of(const Word& word) {
  try {
    return config::parse_bytes(std::string(word.text()), "size");
  } catch (const Error& error) {
    refuse(word, error.what());
  }
}

void read_range(const Word& word, Rule& rule) {
  const std::size_t dash = word.text().find('-');
  if (dash == std::string_view::npos) {
    refuse(word, text("\"", word.text(), "\" is no range of sizes; write 0-8K or 8K-"));
  }
  const Word from{word.all, word.begin, word.begin + dash};
  const Word to{word.all, word.begin + dash + 1, word.end};
  if (!from.text().empty()) rule.from_bytes = bytes_of(from);
  if (!to.text().empty()) rule.to_bytes = bytes_of(to);
  if (rule.from_bytes < rule.to_bytes) return;
  refuse(word, text("the range ", word.text(),
                    " holds no size; its end is exclusive and must be "
                    "larger than its beginning"));
}

// "0-8K tree" or "tree".
Rule rule_of(const Word& word, plan::Collective collective) {
  if (word.text().empty()) {
    refuse(word, text("a rule for ", plan::name(collective),
                      " is missing; write an algorithm, or sizes and one: 8K- ring"));
  }
  Rule rule;
  Word name = word;
  const std::size_t blank = word.text().find_first_of(kBlanks);
  if (blank != std::string_view::npos) {
    read_range({word.all, word.begin, word.begin + blank}, rule);
    name = trimmed({word.all, word.begin + blank, word.end});
  }
  rule.algorithm = algorithm_of(name, collective);
  return rule;
}

}  // namespace

Rules Rules::parse(std::string_view given) {
  Rules rules;
  for (const Word& section : split({given, 0, given.size()}, ';')) {
    if (section.text().empty()) continue;
    const std::size_t colon = section.text().find(':');
    if (colon == std::string_view::npos) {
      refuse(section,
             text("\"", section.text(), "\" names no collective; write e.g. allreduce:ring"));
    }
    const Word name = trimmed({given, section.begin, section.begin + colon});
    const plan::Collective collective = collective_of(name);
    for (const Word& word : split({given, section.begin + colon + 1, section.end}, ',')) {
      rules.rules_.push_back(rule_of(word, collective));
    }
  }
  return rules;
}

const Rule* Rules::find(plan::Collective collective, std::uint64_t bytes) const {
  for (const Rule& rule : rules_) {
    if (rule.algorithm->collective != collective) continue;
    const bool for_all = rule.from_bytes == 0 && rule.to_bytes == kNoLimit;
    const bool holds = bytes >= rule.from_bytes && bytes < rule.to_bytes;
    if (for_all || (bytes != kNoLimit && holds)) return &rule;
  }
  return nullptr;
}

}  // namespace hccomm::select
