// SPDX-License-Identifier: Apache-2.0
#include "comm/communicator.hpp"

#include <algorithm>
#include <set>

#include "base/config.hpp"
#include "collective/collective.hpp"
#include "comm/agreement.hpp"
#include "comm/islands.hpp"

namespace hccomm::comm {

using plan::Call;
using plan::Collective;

static constexpr Seconds kLeaveSeconds{0.1};
static constexpr std::size_t kMaxRecipes = 1024;  // plans kept per communicator

// FNV-1a; ids only need to differ, and to be equal on all ranks.
static std::uint64_t hash(std::uint64_t seed, const void* data, std::size_t bytes) {
  std::uint64_t value = seed ^ 0xcbf29ce484222325ull;
  for (std::size_t i = 0; i < bytes; ++i) {
    value = (value ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3ull;
  }
  return value == 0 ? 1 : value;
}

static std::vector<int> hosts_of(const std::vector<transport::Card>& cards, int& hosts) {
  std::vector<int> host_of;
  std::vector<std::string> seen;
  for (const transport::Card& card : cards) {
    auto found = std::ranges::find(seen, card.host);
    if (found == seen.end()) found = seen.insert(seen.end(), card.host);
    host_of.push_back(static_cast<int>(found - seen.begin()));
  }
  hosts = static_cast<int>(seen.size());
  return host_of;
}

static bool offers(const transport::Card& card, const char* transport) {
  return std::ranges::any_of(card.addresses,
                             [&](const auto& each) { return each.first == transport; });
}

static select::Facts facts_of(const std::vector<transport::Card>& cards) {
  select::Facts facts;
  facts.cores = static_cast<int>(std::ranges::min(cards, {}, &transport::Card::cores).cores);
  facts.shm_intra_host = std::ranges::all_of(cards, [](const transport::Card& card) {
    return offers(card, "shm") || offers(card, "inproc");
  });
  if (config::raw("HCCOMM_SEGMENT") != "auto") {
    facts.segment_bytes = config::bytes("HCCOMM_SEGMENT");
  }
  return facts;
}

Communicator::Communicator(std::shared_ptr<Endpoint> endpoint, std::string name, std::uint64_t id,
                           int rank, std::vector<transport::Card> cards, Seconds timeout,
                           bool islands)
    : endpoint_(std::move(endpoint)), cards_(std::move(cards)), timeout_(timeout) {
  if (timeout_.count() <= 0) timeout_ = config::seconds("HCCOMM_TIMEOUT");
  group_.rank = rank;
  group_.size = static_cast<int>(cards_.size());
  group_.host_of = hosts_of(cards_, group_.hosts);
  facts_ = facts_of(cards_);
  algorithms_ = config::raw("HCCOMM_ALGO");
  rules_ = select::Rules::parse(algorithms_);
  table_ = select::table_of_environment();
  context_.id = id;
  context_.name = std::move(name);
  context_.rank = rank;
  context_.size = group_.size;
  for (int each = 0; each < group_.size; ++each) {
    context_.who.push_back(text("rank ", each, " (host ", cards_[each].host.substr(0, 24), ", pid ",
                                cards_[each].pid, ")"));
  }
  const std::string& machine = endpoint_->card().machine;
  const auto here = std::ranges::count(cards_, machine, &transport::Card::machine);
  endpoint_->engine().share_machine(static_cast<int>(here),
                                    static_cast<int>(endpoint_->card().cores));
  endpoint_->engine().add(context_, cards_);
  if (islands && Islands::possible(cards_)) islands_ = std::make_unique<Islands>(*this);
}

Communicator::~Communicator() {
  if (islands_ != nullptr && !closed_ && !Endpoint::forked()) leave_islands(false);
  if (!closed_ && !Endpoint::forked()) {
    endpoint_->engine().remove(context_, Deadline::after(Seconds(0.1)), false);
  }
}

void Communicator::set_timeout(Seconds timeout) {
  if (!(timeout.count() > 0)) {
    throw Error(Code::InvalidArgument,
                text("set_timeout: timeout=", timeout.count(), " is not a positive time"));
  }
  timeout_ = timeout;
}

void Communicator::check_usable(const char* what) const {
  if (Endpoint::forked()) {
    throw Error(Code::InvalidArgument,
                text(what,
                     ": this communicator was made before fork(); a forked child cannot use "
                     "it. Start the child with the spawn method, or make a communicator in "
                     "it"));
  }
  if (closed_) throw Error(Code::Aborted, text(what, ": ", context_.name, " is closed"));
}

// Whether the rank's small buffer lies in its place inside the large one (or they are one).
static bool lies_in_place(const Call& call, const plan::Group& group, const Memory& input,
                          const Memory& output, std::size_t element) {
  const auto part = [&](int rank) {
    return (call.offsets.empty() ? call.count * rank : call.offsets[rank]) * element;
  };
  switch (call.collective) {
    case Collective::AllReduce:
    case Collective::Reduce: return input.data == output.data;
    case Collective::Broadcast: return true;
    case Collective::AllGather: return input.data == output.data + part(group.rank);
    case Collective::ReduceScatter: return output.data == input.data + part(group.rank);
    case Collective::Gather:
      return group.rank == call.root && input.data == output.data + part(group.rank);
    case Collective::Scatter:
      return group.rank == call.root && output.data == input.data + part(group.rank);
    default: return false;
  }
}

static void check_buffer(const Call& call, const char* which, const Memory& memory,
                         std::uint64_t needed) {
  const char* what = plan::name(call.collective);
  if (memory.count < needed) {
    throw Error(Code::InvalidArgument,
                text(what, ": ", which, " holds ", memory.count, " elements, but the call needs ",
                     needed, "; pass a buffer of that many"));
  }
  if (needed != 0 && memory.data == nullptr) {
    throw Error(Code::InvalidArgument, text(what, ": ", which, " is null, but the call needs ",
                                            needed, " elements there"));
  }
}

static void check_overlap(const Request& request, std::uint64_t input, std::uint64_t output,
                          std::size_t element) {
  if (input == 0 || output == 0) return;
  const std::byte* a = request.input.data;
  const std::byte* b = request.output.data;
  if (a < b + output * element && b < a + input * element) {
    throw Error(Code::InvalidArgument,
                text(plan::name(request.call.collective),
                     ": input and output overlap, but not as an in-place call does; use separate "
                     "buffers, or the same one"));
  }
}

// Whether this request is the last one again, apart from where its buffers are.
bool Communicator::repeats_last(const Request& request) const {
  const Call& call = request.call;
  const Call& last = last_call_;
  if (last_ == nullptr || call.collective != last.collective || call.type != last.type ||
      call.op != last.op || call.root != last.root || call.count != last.count ||
      call.counts != last.counts || call.offsets != last.offsets ||
      call.recv_counts != last.recv_counts || call.recv_offsets != last.recv_offsets) {
    return false;
  }
  const auto serves = [](const Memory& buffer, std::uint64_t count) {
    return count == 0 || (buffer.data != nullptr && buffer.count >= count);
  };
  if (!serves(request.input, last_input_) || !serves(request.output, last_output_)) return false;
  const std::size_t element = dtype::size_of(call.type);
  const std::byte* in = request.input.data;
  const std::byte* out = request.output.data;
  const bool apart = last_input_ == 0 || last_output_ == 0 || in + last_input_ * element <= out ||
                     out + last_output_ * element <= in;
  return last.in_place == lies_in_place(call, group_, request.input, request.output, element) &&
         (last.in_place || apart);
}

// Checks the request, and finds or makes its recipe.
Communicator::RecipePtr Communicator::recipe_for(const Request& request) {
  const std::lock_guard lock(mutex_);
  if (repeats_last(request)) return last_;
  Call call = request.call;
  const std::size_t element = dtype::size_of(call.type);
  call.in_place = call.collective == Collective::Broadcast;
  collective::check(call, group_);
  const std::uint64_t input = collective::input_count(call, group_);
  const std::uint64_t output = collective::output_count(call, group_);
  check_buffer(call, "input", request.input, input);
  check_buffer(call, "output", request.output, output);
  call.in_place = lies_in_place(call, group_, request.input, request.output, element);
  if (!call.in_place) check_overlap(request, input, output, element);

  key_.clear();
  const auto put = [this](const auto& value) {
    key_.append(reinterpret_cast<const char*>(&value), sizeof value);
  };
  put(call.collective), put(call.type), put(call.op), put(call.in_place), put(call.root);
  put(call.count);
  for (const auto* list : {&call.counts, &call.offsets, &call.recv_counts, &call.recv_offsets}) {
    put(list->size());
    for (const std::uint64_t each : *list) put(each);
  }
  RecipePtr& slot = recipes_[key_];
  if (slot == nullptr) {
    if (recipes_.size() > kMaxRecipes) {
      recipes_.clear();
      return recipes_[key_] = make_recipe(call);
    }
    slot = make_recipe(call);
  }
  last_ = slot;
  last_call_ = call;
  last_input_ = input;
  last_output_ = output;
  return slot;
}

Communicator::RecipePtr Communicator::make_recipe(const Call& call) {
  auto recipe = std::make_shared<engine::Recipe>();
  const select::Choice choice = select::choose(call, group_, facts_, rules_, table_);
  recipe->plan = choice.algorithm->make(call, group_, choice.tuning);
  recipe->element_bytes = dtype::size_of(call.type);
  recipe->type = call.type;
  recipe->op = call.op;
  if (dtype::defined(call.type, call.op)) {
    recipe->reduce = dtype::reduce(call.type, call.op);
    recipe->reduce_many = dtype::reduce_many(call.type, call.op);
    if (call.op == dtype::RedOp::Avg) recipe->divide = dtype::divide(call.type);
    if (call.op == dtype::RedOp::PremulSum) recipe->multiply = dtype::multiply(call.type);
  }
  recipe->fingerprint = collective::fingerprint(call);
  recipe->rooted = collective::find(call.collective).rooted;
  recipe->moves = !collective::find(call.collective).reduces;
  recipe->what = collective::describe(call);
  engine::finish_recipe(*recipe);
  return recipe;
}

// A runtime that is not here fails the group: the other ranks would wait for this one.
engine::Where Communicator::where_of(const char* what, const DeviceBuffer& buffer) {
  Result<engine::Where> where = locate(what, buffer);
  if (where.ok()) return where.value();
  const Status& why = where.status();
  if (why.code() == Code::InvalidArgument) throw Error(why);
  engine().poison(context_,
                  Status(why.code(), text(context_.who[rank()], ": ", why.text()), rank()), true);
  return {};
}

// Where the buffers lie that the call uses, or nullptr when all of them are the host's.
const engine::Buffers* Communicator::on_devices(const Request& request,
                                                const engine::Recipe& recipe,
                                                engine::Buffers& buffers) {
  const DeviceBuffer& output = request.output.device;
  const DeviceBuffer& input = request.input.device;
  if (output.kind == 0 && input.kind == 0) [[likely]]
    return nullptr;
  const char* what = plan::name(request.call.collective);
  const DeviceBuffer* const both[] = {&output, &input};
  for (const int space : {0, 1}) {  // of plan::Space
    if (both[space]->kind == 0 || recipe.extent[space] == 0) continue;
    buffers.where[space] = where_of(what, *both[space]);
  }
  return &buffers;
}

engine::Operation* Communicator::start(const Request& request) {
  check_usable(plan::name(request.call.collective));
  engine::Job job{recipe_for(request), request.input.data, request.output.data, request.factor,
                  timeout_of(request.timeout)};
  if (islands_ != nullptr) {
    if (engine::Operation* const over = islands_->start(request)) return over;
  }
  engine::Buffers buffers;
  job.device = on_devices(request, *job.recipe, buffers);
  return engine().start(context_, std::move(job), request.follow);
}

engine::Operation* Communicator::start_own(const Request& request) {
  engine::Job job{recipe_for(request), request.input.data, request.output.data, request.factor,
                  timeout_of(request.timeout)};
  engine::Buffers buffers;
  job.device = on_devices(request, *job.recipe, buffers);
  return engine().start(context_, std::move(job), request.follow);
}

Status Communicator::trouble() { return engine().trouble(context_); }

// The request as repeat() will compare it.
static std::optional<engine::Simple> simple(const Request& request) {
  const Call& call = request.call;
  if (!call.counts.empty() || !call.offsets.empty() || !call.recv_counts.empty() ||
      !call.recv_offsets.empty()) {
    return {};
  }
  return engine::Simple{static_cast<int>(call.collective),
                        static_cast<int>(call.type),
                        static_cast<int>(call.op),
                        call.root,
                        call.count,
                        request.input.data,
                        request.output.data,
                        request.input.count,
                        request.output.count};
}

Status Communicator::run(const Request& request) {
  check_usable(plan::name(request.call.collective));
  engine::Job job{recipe_for(request), request.input.data, request.output.data, request.factor,
                  timeout_of(request.timeout)};
  engine::Buffers buffers;
  if (islands_ != nullptr) {
    if (const std::optional<Status> over = islands_->run(request)) return *over;
  }
  job.device = on_devices(request, *job.recipe, buffers);
  if (job.device == nullptr) job.simple = simple(request);
  return engine().run(context_, std::move(job));
}

void Communicator::check_message(const char* what, const Message& message) const {
  check_usable(what);
  const bool any = std::string_view(what) == "recv" && message.peer == -1;
  if (!any && (message.peer < 0 || message.peer >= size())) {
    throw Error(Code::InvalidArgument,
                text(what, ": rank ", message.peer, " is outside 0..", size() - 1));
  }
  if (message.bytes != 0 && message.data == nullptr) {
    throw Error(Code::InvalidArgument,
                text(what, ": the buffer is null, but ", message.bytes, " bytes are to move"));
  }
}

engine::Parcel Communicator::parcel_of(const char* what, const Message& message,
                                       engine::Where& where) {
  check_message(what, message);
  engine::Parcel parcel{message.peer,  message.tag,  message.data,
                        message.bytes, message.kind, timeout_of(message.timeout),
                        message.follow};
  if (message.device.kind != 0 && message.bytes != 0) {
    where = where_of(what, message.device);
    parcel.where = &where;
  }
  return parcel;
}

engine::Operation* Communicator::send(const Message& message) {
  engine::Where where;
  return engine().start(context_, engine::OperationKind::Send, parcel_of("send", message, where));
}

engine::Operation* Communicator::recv(const Message& message) {
  engine::Where where;
  return engine().start(context_, engine::OperationKind::Recv, parcel_of("recv", message, where));
}

Status Communicator::exchange(const Message& out, const Message& in, int& source) {
  engine::Where where_out, where_in;
  const engine::Parcel outgoing = parcel_of("send", out, where_out);
  return engine().exchange(context_, outgoing, parcel_of("recv", in, where_in), source);
}

std::unique_ptr<Registration> Communicator::enroll(std::byte* data, std::size_t bytes) {
  check_usable("register");
  return std::make_unique<Registration>(endpoint_, data, bytes);
}

std::unique_ptr<Registration> Communicator::enroll(const DeviceBuffer& buffer, std::size_t bytes) {
  check_usable("register");
  return std::make_unique<Registration>(endpoint_, where_of("register", buffer), bytes);
}

std::unique_ptr<Communicator> Communicator::group(const std::vector<int>& ranks, std::string name,
                                                  Seconds timeout, bool islands) {
  check_usable("group");
  std::set<int> seen;
  int mine = -1;
  std::vector<transport::Card> cards;
  for (const int each : ranks) {
    if (each < 0 || each >= size() || !seen.insert(each).second) {
      throw Error(Code::InvalidArgument,
                  text("group: ranks holds ", each, ", which is ",
                       each < 0 || each >= size() ? text("outside 0..", size() - 1)
                                                  : std::string("there twice"),
                       "; list each member once"));
    }
    if (each == rank()) mine = static_cast<int>(cards.size());
    cards.push_back(cards_[each]);
  }
  if (mine < 0) {
    throw Error(Code::InvalidArgument, text("group: rank ", rank(),
                                            " is not in ranks; only "
                                            "members call group()"));
  }
  {
    const std::lock_guard lock(mutex_);
    const int number = made_[{ranks, name}]++;
    if (name.empty()) name = context_.name + "/group";
    if (number > 0) name += text(".", number);
  }
  std::uint64_t id = hash(context_.id, name.data(), name.size());
  id = hash(id, ranks.data(), ranks.size() * sizeof(int));
  return std::make_unique<Communicator>(endpoint_, std::move(name), id, mine, std::move(cards),
                                        timeout.count() > 0 ? timeout : timeout_, islands);
}

std::unique_ptr<Communicator> Communicator::split(int color, int key) {
  std::vector<std::int32_t> all(2 * static_cast<std::size_t>(size()));
  std::int32_t mine[2] = {color, key};
  Request request;
  request.call.collective = Collective::AllGather;
  request.call.type = dtype::DType::I32;
  request.call.count = 2;
  request.input = {reinterpret_cast<std::byte*>(mine), 2};
  request.output = {reinterpret_cast<std::byte*>(all.data()), all.size()};
  const Status status = run(request);
  if (!status.ok()) throw Error(status);
  const std::string name = text(context_.name, "/split", splits_++, ".", color);
  if (color < 0) return nullptr;
  std::vector<int> members;
  for (int each = 0; each < size(); ++each) {
    if (all[2 * each] == color) members.push_back(each);
  }
  std::ranges::stable_sort(members, {}, [&](int each) { return all[2 * each + 1]; });
  return group(members, name, timeout_);
}

std::unique_ptr<Communicator> Communicator::shrink(Seconds timeout) {
  check_usable("shrink");
  const std::string name = text(context_.name, "/shrink", shrinks_++);
  const std::uint64_t id = hash(context_.id, name.data(), name.size());
  const std::vector<int> dead =
      agree_on_the_dead(engine(), cards_, context_.who, rank(), id, engine().lost_ranks(context_),
                        Deadline::after(timeout_of(timeout)));
  std::vector<int> survivors;
  for (int each = 0; each < size(); ++each) {
    if (!std::ranges::binary_search(dead, each)) survivors.push_back(each);
  }
  return group(survivors, name, timeout_);
}

void Communicator::abort(const std::string& reason) {
  if (closed_ || Endpoint::forked()) return;
  engine().poison(
      context_,
      Status(Code::Aborted, text(context_.who[rank()], " called abort: ", reason), rank()), true);
}

void Communicator::fail(const Status& why) { engine().poison(context_, why, true); }

void Communicator::use_islands(const DeviceBuffer& mine) {
  check_usable("use_islands");
  const bool likely = islands_ != nullptr;
  if (!likely) islands_ = std::make_unique<Islands>(*this);
  try {
    islands_->use(mine);
  } catch (const Error&) {
    if (!likely) islands_.reset();  // later calls need not look for any
    throw;
  }
}

// Where calls are still on their way the worker may wait for a rail: poisoned, nothing waits.
void Communicator::leave_islands(bool quiet) {
  if (!quiet)
    engine().poison(context_, Status(Code::Aborted, context_.name + " is closed", rank()), false);
  islands_.reset();
}

void Communicator::leave(const std::string& reason) {
  if (closed_ || Endpoint::forked()) return;
  fail(Status(Code::Aborted, text(context_.who[rank()], " has left ", context_.name, ": ", reason),
              rank()));
  (void)close(kLeaveSeconds);  // what is still in flight has failed
}

Status Communicator::close(Seconds timeout) {
  if (closed_ || Endpoint::forked()) return {};
  const Deadline deadline = Deadline::after(timeout.count() > 0 ? timeout : Seconds(1.0));
  const bool quiet = engine().quiesce(context_, deadline);
  if (islands_ != nullptr) leave_islands(quiet);
  engine().remove(context_, deadline, true);
  closed_ = true;
  if (quiet) return {};
  return {Code::Timeout, text("close: operations of ", context_.name,
                              " were still in flight and have been aborted")};
}

}  // namespace hccomm::comm
