// SPDX-License-Identifier: Apache-2.0
//
// The flight recorder as JSON: on demand, on an error and on SIGUSR1. Field names are those of
// torch's flight recorder where it has them.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.hpp"
#include "base/log.hpp"
#include "base/unique_fd.hpp"
#include "engine/engine.hpp"
#include "engine/guard.hpp"

namespace hccomm::engine {

static std::string hex(std::uint64_t value) { return text(std::hex, value); }

static const char* state_of(const Record& record) {
  if (record.ended == 0) return "started";
  return record.code == Code::Ok ? "completed" : "failed";
}

// Whom the operation waits for, at the moment; kept in its record, for it is known no longer once
// the operation has failed.
void note_waits(const Operation& op) {
  Record* record = op.context->recorder.find(op.record);
  if (record == nullptr) return;
  record->waits = 0;
  if (op.kind == OperationKind::Collective) {
    record->steps = static_cast<std::uint32_t>(op.steps.size());
    record->done = record->steps - op.left;
  }
  for (int rank = 0; rank < op.context->size && record->waits < record->waits_for.size(); ++rank) {
    if (rank != op.context->rank && waits_for(op, rank)) {
      record->waits_for[record->waits++] = rank;
    }
  }
}

static Json entry_of(const Context& context, std::uint64_t number, const Record& record,
                     std::string (*describe)(std::uint64_t)) {
  const bool collective = record.kind == OperationKind::Collective;
  std::string call = record.kind == OperationKind::Send ? "send" : "recv";
  if (collective) call = describe != nullptr ? describe(record.fingerprint) : "collective";
  const std::int64_t began = recorded_ns(record.began);
  Json waits = Json::array();
  for (std::uint8_t k = 0; k < record.waits; ++k) waits.push(record.waits_for[k]);
  Json entry = Json::object();
  entry.add("record_id", number)
      .add("process_group", Json::array().push(context.name).push(hex(context.id)))
      .add("is_p2p", !collective)
      .add(collective ? "collective_seq_id" : "tag", record.sequence)
      .add("profiling_name", "hccomm:" + call.substr(0, call.find('(')))
      .add("call", call)
      .add("state", state_of(record))
      .add("bytes", record.bytes)
      .add("time_created_ns", began);
  if (!collective) entry.add("peer", record.peer);
  if (record.ended != 0) {
    const std::int64_t ended = recorded_ns(record.ended);
    entry.add("time_discovered_completed_ns", ended)
        .add("duration_ms", static_cast<double>(ended - began) / 1e6);
  }
  if (record.steps != 0) entry.add("steps", record.steps).add("steps_done", record.done);
  if (record.code != Code::Ok) entry.add("error", name(record.code));
  return entry.add("waits_for", waits);
}

std::string Engine::dump_locked(Context& context) {
  for (const Operation* op : running_) {
    if (op->context == &context && op->running()) note_waits(*op);
  }
  Json entries = Json::array(), who = Json::array(), absent = Json::array();
  for (const std::string& each : context.who) who.push(each);
  for (std::uint64_t k = context.recorder.first(); k < context.recorder.next(); ++k) {
    entries.push(entry_of(context, k, *context.recorder.find(k), settings_.describe_fingerprint));
  }
  for (const Operation* op : running_) {
    if (op->context != &context) continue;
    for (const std::uint32_t rank : op->absent) absent.push(rank);
  }
  Json dump = Json::object();
  dump.add("version", "2.10")
      .add("writer", "hccomm")
      .add("process_group", Json::array().push(context.name).push(hex(context.id)))
      .add("rank", context.rank)
      .add("size", context.size)
      .add("pid", static_cast<std::int64_t>(getpid()))
      .add("who", who)
      .add("time_ns", recorded_ns(ticks_now()))
      .add("last_enqueued_collective", static_cast<std::int64_t>(context.next_sequence) - 1)
      .add("not_called_by", absent)
      .add("entries", entries);
  if (!context.poison.ok()) {
    dump.add("failure", Json::object()
                            .add("code", name(context.poison.code()))
                            .add("rank", context.poison.rank())
                            .add("text", context.poison.text()));
  }
  return dump.str();
}

std::string Engine::dump(Context& context) {
  Guard guard(*this);
  return dump_locked(context);
}

// Writes the dump to the folder HCCOMM_DUMP; says once when it cannot.
void write_dump(const Context& context, const std::string& folder, const std::string& body) {
  const std::string path =
      text(folder, "/hccomm-", hex(context.id), "-rank", context.rank, "-", getpid(), ".json");
  const std::string draft = path + ".part";
  const UniqueFd file(
      open(draft.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));
  const bool whole =
      file && write(file.get(), body.data(), body.size()) == static_cast<ssize_t>(body.size());
  if (!whole || rename(draft.c_str(), path.c_str()) != 0) {
    log::write_once(log::Level::Warn, "dump",
                    Status::from_errno(errno, text("HCCOMM_DUMP: cannot write ", path)).text());
  }
}

}  // namespace hccomm::engine
