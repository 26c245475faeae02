// libprimus_cublaslt.so, preloaded into training: answers cublasLtMatmulAlgoGetHeuristic from a
// tuned file. It defines no other symbol of the library.
//
// Who calls it, and what follows from that:
// - torch (gemm_and_bias, bgemm, scaled_gemm) and TransformerEngine ask for one algorithm before
//   every cublasLtMatmul and keep nothing: a look-up must cost little.
// - Neither says alpha, beta or whether D is C when it asks. Problems that differ only there share
//   one entry; the writer of the file settles that.
// - Both state the alignment of every operand, at most 256 bytes. AlgoCheck does not look at it, so
//   the algorithm's own demands are compared with it here.
// - TransformerEngine gives the bytes left in its workspace after aligning it, torch what its
//   workspace holds: less than the tuner had is possible and then the entry is refused.
// - cublasGemmEx does not come by here: libcublas has its own entries into libcublasLt. torch's
//   plain products do when TORCH_BLAS_PREFER_CUBLASLT is 1.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <unordered_map>

#include <pthread.h>

#include "json.h"
#include "tuned_file.h"

namespace primus {
namespace {

constexpr const char* kFileVariable = "PRIMUS_CUBLASLT_FILE";
constexpr const char* kReportVariable = "PRIMUS_CUBLASLT_REPORT";
// Experts' numbers of tokens make ever new problems; beyond this many they are not told apart.
constexpr size_t kMaxKnown = 1 << 16;
constexpr size_t kThreadSlots = 512;
// Kernels that load by TMA need 16 bytes whatever the library says about the rest.
constexpr uint32_t kLeastAlignment = 16;

// All of a call that the answer depends on. The handle is not part of it: the devices of one
// process are taken to be alike.
struct Call {
  enum {
    kWorkspace = kFields,
    kAlignmentA,
    kReductionMask = kAlignmentA + 4,
    kWaves,
    kImplMask,
    kWords,
  };
  std::array<int64_t, kWords> word;

  bool operator==(const Call& other) const { return word == other.word; }
  Problem problem() const {
    Problem problem;
    std::copy_n(word.begin(), kFields, problem.value.begin());
    return problem;
  }
};

struct CallHash {
  size_t operator()(const Call& call) const { return hash_words(call.word.data(), Call::kWords); }
};

enum class Kind { kHit, kDefault, kMiss, kRejected };
constexpr const char* kKindNames[] = {"hit", "default", "miss", "rejected"};

struct Decision {
  Kind kind = Kind::kMiss;
  bool nearest = false;
  std::string reason;
  const Entry* entry = nullptr;
  lt::HeuristicResult result{};
  std::atomic<uint64_t> calls{0};
};

struct State {
  std::mutex mutex;
  bool opened = false;
  TunedFile file;
  std::string path;
  std::string refused;  // why every call passes through; empty while the file is in use
  std::string device;
  std::unordered_map<Call, std::unique_ptr<Decision>, CallHash> known;
  std::atomic<bool> active{false};
  std::atomic<bool> ready{false};
  std::atomic<uint64_t> passed{0};  // while nothing is in use
  std::atomic<uint64_t> overflow{0};
  std::atomic<uint64_t> failures{0};
  std::atomic<uint64_t> searches{0};
  std::atomic<uint64_t> inexpressible[static_cast<int>(Inexpressible::kCount)] = {};
};

// Never destroyed: other threads may still call while the process ends.
State& state() {
  static State* instance = new State;
  return *instance;
}

struct Slot {
  Call call;
  Decision* decision;
};
// On the heap, because static thread-local storage counts against every thread's stack.
thread_local std::unique_ptr<std::array<Slot, kThreadSlots>> slots;
thread_local bool inside = false;

struct Inside {
  Inside() { inside = true; }
  ~Inside() { inside = false; }
};

void open_file(State& s, const CublasLt& library) {
  const std::lock_guard<std::mutex> lock(s.mutex);
  if (s.opened) return;
  s.opened = true;
  const char* path = std::getenv(kFileVariable);
  s.path = path ? path : "";
  if (path && *path) s.file.read(path);
  Device device;
  const bool known = current_device(&device);
  s.device = known ? device.name : "unknown";
  s.refused = s.file.mismatch(library.get_version(), known ? &device : nullptr);
  if (!s.refused.empty() && path && *path) {
    std::fprintf(stderr, "primus: the tuned GEMM algorithms are not used: %s\n", s.refused.c_str());
  }
  s.active.store(s.refused.empty());
  s.ready.store(true, std::memory_order_release);
}

template <typename T>
T preference(const CublasLt& library, lt::Preference preference, int attribute, T otherwise) {
  T value{};
  size_t written = 0;
  const lt::Status status =
      library.preference_get(preference, attribute, &value, sizeof(value), &written);
  return status == lt::kSuccess ? value : otherwise;
}

void read_preference(const CublasLt& library, lt::Preference pref, Call* call) {
  auto& w = call->word;
  w[Call::kWorkspace] =
      static_cast<int64_t>(preference<uint64_t>(library, pref, lt::kPrefMaxWorkspace, 0));
  for (int i = 0; i < 4; ++i) {
    w[Call::kAlignmentA + i] = preference<uint32_t>(library, pref, lt::kPrefAlignmentA + i, 0);
  }
  w[Call::kReductionMask] = preference<uint32_t>(library, pref, lt::kPrefReductionMask, ~0u);
  const float waves = preference<float>(library, pref, lt::kPrefMaxWaves, 0.0f);
  uint32_t bits;
  std::memcpy(&bits, &waves, sizeof(bits));
  w[Call::kWaves] = bits;
  w[Call::kImplMask] =
      static_cast<int64_t>(preference<uint64_t>(library, pref, lt::kPrefImplMask, ~uint64_t{0}));
}

template <typename T>
T capability(const CublasLt& library, const lt::Algo& algo, int attribute, T otherwise) {
  T value{};
  size_t written = 0;
  const bool known =
      library.cap_get(&algo, attribute, &value, sizeof(value), &written) == lt::kSuccess;
  return known ? value : otherwise;
}

// Why the caller's preference rules the algorithm out; empty if it does not.
std::string unwanted(const CublasLt& library, const Call& call, const Algorithm& algorithm,
                     const lt::HeuristicResult& result) {
  const auto& w = call.word;
  if (result.workspaceSize > static_cast<uint64_t>(w[Call::kWorkspace])) {
    return "needs " + std::to_string(result.workspaceSize) + " bytes of workspace, has " +
           std::to_string(w[Call::kWorkspace]);
  }
  for (int i = 0; i < 4; ++i) {
    const uint32_t wanted = std::max(
        kLeastAlignment, capability<uint32_t>(library, result.algo, lt::kCapAlignmentA + i, 0));
    if (w[Call::kAlignmentA + i] < wanted) {
      return std::string("needs ") + "ABCD"[i] + " aligned to " + std::to_string(wanted) +
             " bytes, has " + std::to_string(w[Call::kAlignmentA + i]);
    }
  }
  if (algorithm.reduction & ~static_cast<uint32_t>(w[Call::kReductionMask])) {
    return "its reduction scheme is not wanted";
  }
  float waves;
  const uint32_t bits = static_cast<uint32_t>(w[Call::kWaves]);
  std::memcpy(&waves, &bits, sizeof(waves));
  if (waves > 0 && result.wavesCount > waves) return "needs more waves than wanted";
  const uint64_t flags = capability<uint64_t>(library, result.algo, lt::kCapImplFlags, 0);
  if (flags & ~static_cast<uint64_t>(w[Call::kImplMask])) return "its arithmetic is not wanted";
  return "";
}

struct Arguments {
  lt::Handle handle;
  lt::Desc desc;
  lt::Layout a, b, c, d;
  lt::Preference preference;
};

void decide(const CublasLt& library, const TunedFile& file, const Arguments& args, const Call& call,
            Decision* decision) {
  const Problem problem = call.problem();
  decision->entry = file.find(problem, &decision->nearest);
  if (!decision->entry) return;
  decision->kind = Kind::kDefault;
  if (decision->entry->is_default) return;
  decision->kind = Kind::kRejected;
  const Algorithm& algorithm = decision->entry->algorithm;
  lt::Algo algo{};
  lt::HeuristicResult& result = decision->result;
  if (!build_algorithm(library, args.handle, problem, algorithm, &algo)) {
    decision->reason = "the library does not build it";
    return;
  }
  const lt::Status status = library.algo_check(args.handle, args.desc, args.a, args.b, args.c,
                                               args.d, &algo, &result);
  result.algo = algo;
  result.state = lt::kSuccess;
  decision->reason = status != lt::kSuccess ? "AlgoCheck: status " + std::to_string(status)
                                            : unwanted(library, call, algorithm, result);
  if (decision->reason.empty()) decision->kind = Kind::kHit;
}

Decision* look_up(State& s, const CublasLt& library, const Arguments& args, const Call& call) {
  if (!slots) slots = std::make_unique<std::array<Slot, kThreadSlots>>();
  Slot& slot = (*slots)[CallHash()(call) % kThreadSlots];
  if (slot.decision && slot.call == call) return slot.decision;
  const std::lock_guard<std::mutex> lock(s.mutex);
  auto found = s.known.find(call);
  if (found == s.known.end()) {
    if (s.known.size() >= kMaxKnown) return nullptr;
    auto decision = std::make_unique<Decision>();
    decide(library, s.file, args, call, decision.get());
    found = s.known.emplace(call, std::move(decision)).first;
  }
  slot = {call, found->second.get()};
  return slot.decision;
}

// The tuned algorithm of a call; nullptr where the library itself should choose.
const lt::HeuristicResult* answer(const CublasLt& library, const Arguments& args) {
  State& s = state();
  if (!s.ready.load(std::memory_order_acquire)) open_file(s, library);
  if (!s.active.load(std::memory_order_relaxed)) {
    ++s.passed;
    return nullptr;
  }
  if (preference<uint32_t>(library, args.preference, lt::kPrefSearchMode, 1) != 0) {
    ++s.searches;
    return nullptr;
  }
  Problem problem;
  const Inexpressible reason =
      read_problem(library, args.desc, args.a, args.b, args.c, args.d, &problem);
  if (reason != Inexpressible::kNothing) {
    ++s.inexpressible[static_cast<int>(reason)];
    return nullptr;
  }
  Call call;
  std::copy(problem.value.begin(), problem.value.end(), call.word.begin());
  read_preference(library, args.preference, &call);
  Decision* decision = look_up(s, library, args, call);
  if (!decision) {
    ++s.overflow;
    return nullptr;
  }
  decision->calls.fetch_add(1, std::memory_order_relaxed);
  return decision->kind == Kind::kHit ? &decision->result : nullptr;
}

std::string number(const char* name, uint64_t value) {
  return std::string(",\"") + name + "\":" + std::to_string(value);
}

std::string problems(State& s, uint64_t (&totals)[4]) {
  std::string text;
  for (const auto& [call, decision] : s.known) {
    const uint64_t calls = decision->calls.load();
    if (!calls) continue;
    totals[static_cast<int>(decision->kind)] += calls;
    text += text.empty() ? "" : ",";
    text += "{\"problem\":" + quoted(print_problem(call.problem())) + ",\"kind\":\"" +
            kKindNames[static_cast<int>(decision->kind)] + "\"" + number("calls", calls);
    const Entry* entry = decision->entry;
    if (entry && !entry->is_default) {
      text += ",\"algorithm\":" + quoted(print_algorithm(entry->algorithm));
    }
    if (decision->nearest) text += ",\"nearest\":" + quoted(print_problem(entry->problem));
    if (!decision->reason.empty()) text += ",\"reason\":" + quoted(decision->reason);
    text += "}";
  }
  return text;
}

// {"file": …, "refused": …, "hits": …, …, "problems": [{"problem": …, "kind": …, "calls": …}]}
std::string report() {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  uint64_t totals[4] = {};
  const std::string rows = problems(s, totals);
  uint64_t other = s.searches.load() + s.failures.load();
  std::string left_alone = number("search mode", s.searches.load()).substr(1) +
                           number("failures", s.failures.load());
  for (int i = 1; i < static_cast<int>(Inexpressible::kCount); ++i) {
    left_alone += number(inexpressible_name(static_cast<Inexpressible>(i)),
                         s.inexpressible[i].load());
    other += s.inexpressible[i].load();
  }
  return "{\"file\":" + quoted(s.path) + ",\"refused\":" + quoted(s.refused) + ",\"device\":" +
         quoted(s.device) + number("entries", s.file.size()) +
         number("bad_lines", static_cast<uint64_t>(s.file.bad_lines())) + ",\"first_bad\":" +
         quoted(s.file.first_bad()) + number("hits", totals[0]) + number("defaults", totals[1]) +
         number("misses", totals[2] + s.overflow.load()) + number("rejections", totals[3]) +
         number("passed", s.passed.load()) + number("inexpressible", other) +
         ",\"left_alone\":{" + left_alone + "},\"problems\":[" + rows + "]}";
}

void forget_calls() {
  State& s = state();
  for (auto& [call, decision] : s.known) decision->calls.store(0);
  s.passed = s.overflow = s.failures = s.searches = 0;
  for (auto& count : s.inexpressible) count = 0;
}

// A fork while another thread holds the mutex would leave it locked in the child for ever.
void before_fork() { state().mutex.lock(); }
void after_fork_in_parent() { state().mutex.unlock(); }
void after_fork_in_child() {
  forget_calls();
  state().mutex.unlock();
}

__attribute__((constructor)) void start() {
  pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

__attribute__((destructor)) void finish() {
  const char* path = std::getenv(kReportVariable);
  if (!path || !*path || !state().ready.load()) return;
  try {
    if (!write_file(path, report() + "\n")) {
      std::fprintf(stderr, "primus: cannot write %s\n", path);
    }
  } catch (...) {
    std::fprintf(stderr, "primus: no memory to write %s\n", path);
  }
}

lt::Status heuristic(const Arguments& args, int requested, lt::HeuristicResult* results,
                     int* returned) {
  const CublasLt* library = loaded_cublaslt();
  if (!library) return lt::kNotInitialized;
  const auto real = [&](int from) {
    return library->get_heuristic(args.handle, args.desc, args.a, args.b, args.c, args.d,
                                  args.preference, requested - from, results + from, returned);
  };
  if (inside || requested < 1 || !results || !returned) return real(0);
  const Inside guard;
  const lt::HeuristicResult* tuned = nullptr;
  try {
    tuned = answer(*library, args);
  } catch (...) {
    ++state().failures;
  }
  if (!tuned) return real(0);
  results[0] = *tuned;
  int more = 0;
  if (requested > 1) {
    int* const wanted = returned;
    returned = &more;
    if (real(1) != lt::kSuccess) more = 0;
    returned = wanted;
  }
  *returned = 1 + more;
  return lt::kSuccess;
}

}  // namespace
}  // namespace primus

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int cublasLtMatmulAlgoGetHeuristic(void* handle, void* desc, void* a, void* b, void* c,
                                            void* d, void* preference, int requested,
                                            lt::HeuristicResult* results, int* returned) {
  return primus::heuristic({handle, desc, a, b, c, d, preference}, requested, results, returned);
}

// The counters of this process as JSON; returns the length that it needs, -1 without memory.
EXPORTED int primus_cublaslt_use(char* buffer, int size) {
  try {
    return primus::hand_over(primus::report(), buffer, size);
  } catch (...) {
    return -1;
  }
}
