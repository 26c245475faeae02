// libprimus_cublaslt_tuner.so, loaded by Python's ctypes: lists, times and checks cuBLASLt's
// algorithms for one problem at a time. One thread, one device, one open problem.
//
// Functions return a negative number on failure; primus_tuner_error says why.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <random>
#include <sstream>

#include <dlfcn.h>

#include "algorithm.h"
#include "json.h"
#include "operands.h"

namespace primus {
namespace {

constexpr double kSampleMicroseconds = 2000;
constexpr int kLeastCalls = 3;
constexpr int kMostCalls = 1000;
// Several times what any device's cache holds.
constexpr size_t kCaches = 3;
constexpr size_t kCopyBytes = size_t{512} << 20;
constexpr int kCopies = 8;
constexpr uint32_t kAlignment = 256;  // what the memory that torch hands out has
constexpr int kRequested = 128;
// Elements of D that are held against float64.
constexpr int kCheckedRows = 64;
constexpr int kCheckedColumns = 32;

constexpr int kMultiprocessorCount = 16;  // CUdevice_attribute
constexpr int kL2CacheSize = 38;
constexpr int kCapabilityMajor = 75;
constexpr int kCapabilityMinor = 76;

void lt_need(lt::Status status, const char* what) {
  if (status != lt::kSuccess) {
    throw Failure(std::string(what) + ": cuBLASLt status " + std::to_string(status));
  }
}

// Descriptors of a problem, destroyed with it.
class Descriptors {
 public:
  Descriptors(const CublasLt& library, const Problem& p, const Operands& operands)
      : library_(library) {
    lt_need(library.desc_create(&desc, static_cast<int>(p[kCompute]),
                                static_cast<int>(p[kScaleType])),
            "create the descriptor");
    set<int32_t>(lt::kDescTransA, p[kTransA]);
    set<int32_t>(lt::kDescTransB, p[kTransB]);
    set<uint32_t>(lt::kDescEpilogue, p[kEpilogueField]);
    set_epilogue(p, operands);
    set_scales(p, operands);
    const bool a_rows = p[kTransA] == 0, b_rows = p[kTransB] == 0;
    layout(0, p, a_rows ? p[kM] : p[kK], a_rows ? p[kK] : p[kM]);
    layout(1, p, b_rows ? p[kK] : p[kN], b_rows ? p[kN] : p[kK]);
    layout(2, p, p[kM], p[kN]);
    layout(3, p, p[kM], p[kN]);
  }

  Descriptors(const Descriptors&) = delete;

  ~Descriptors() {
    for (lt::Layout layout : layouts) {
      if (layout) library_.layout_destroy(layout);
    }
    if (desc) library_.desc_destroy(desc);
  }

  lt::Desc desc = nullptr;
  lt::Layout layouts[4] = {};

 private:
  template <typename T, typename Value>
  void set(int attribute, Value value) {
    const T typed = static_cast<T>(value);
    lt_need(library_.desc_set(desc, attribute, &typed, sizeof(typed)), "set an attribute");
  }

  void set_epilogue(const Problem& p, const Operands& operands) {
    if (has_bias(p[kEpilogueField])) {
      set<void*>(lt::kDescBiasPointer, operands.bias.pointer());
      set<int32_t>(lt::kDescBiasDataType, p[kBiasType]);
    }
    if (p[kEpilogueField] & lt::kEpilogueAux) {
      set<void*>(lt::kDescAuxPointer, operands.aux.pointer());
      set<int64_t>(lt::kDescAuxLd, p[kAuxLd]);
      if (p[kAuxType] != p[kDType]) set<int32_t>(lt::kDescAuxDataType, p[kAuxType]);
      if (p[kBatch] > 1) set<int64_t>(lt::kDescAuxBatchStride, p[kAuxStride]);
    }
  }

  void set_scales(const Problem& p, const Operands& operands) {
    constexpr int kPointers[] = {lt::kDescAScalePointer, lt::kDescBScalePointer,
                                 lt::kDescCScalePointer, lt::kDescDScalePointer};
    constexpr int kModes[] = {lt::kDescAScaleMode, lt::kDescBScaleMode, lt::kDescCScaleMode,
                              lt::kDescDScaleMode};
    for (int i = 0; i < 4; ++i) {
      const int64_t scale = p.value[kScaleA + i];
      if (!scale) continue;
      set<void*>(kPointers[i], operands.scale[i].pointer());
      // Releases before 12.8 know no modes and have scalars only.
      if (scale - 1 != lt::kScaleScalar32F) set<int32_t>(kModes[i], scale - 1);
    }
    if (p[kAmaxD]) set<void*>(lt::kDescAmaxDPointer, operands.amax.pointer());
    if (p[kFastAccum]) set<int8_t>(lt::kDescFastAccum, 1);
  }

  void layout(int i, const Problem& p, int64_t rows, int64_t columns) {
    lt_need(library_.layout_create(&layouts[i], static_cast<int>(p.value[kAType + i]),
                                   static_cast<uint64_t>(rows), static_cast<uint64_t>(columns),
                                   p.value[kLda + i]),
            "create a layout");
    if (p[kBatch] == 1) return;
    const int32_t batch = static_cast<int32_t>(p[kBatch]);
    const int64_t stride = p.value[kStrideA + i];
    lt_need(library_.layout_set(layouts[i], lt::kLayoutBatchCount, &batch, sizeof(batch)),
            "set an attribute");
    lt_need(library_.layout_set(layouts[i], lt::kLayoutStride, &stride, sizeof(stride)),
            "set an attribute");
  }

  const CublasLt& library_;
};

struct Candidate {
  std::string name;
  lt::Algo algo;
  size_t workspace;
  double calls = 0;  // of one sample; 0: not yet run
};

class Tuner {
 public:
  explicit Tuner(const char* path) {
    driver.open();
    need(driver.init(0), "start the CUDA driver");
    need(driver.get_device(&device_, 0), "find a device");
    void* handle = dlopen(path, RTLD_LAZY);
    if (!handle) throw Failure(dlerror());
    const std::string missing = library.load(handle);
    if (!missing.empty()) throw Failure(std::string(path) + " has no " + missing);
  }

  std::string describe() {
    char name[256] = "";
    int count = 0, version = 0;
    need(driver.get_count(&count), "count the devices");
    need(driver.get_version(&version), "ask for the driver's version");
    need(driver.get_name(name, sizeof(name), device_), "ask for the device's name");
    std::ostringstream text;
    text << "{\"device\":" << quoted(name) << ",\"devices\":" << count
         << ",\"driver\":" << version << ",\"cublaslt\":" << library.get_version()
         << ",\"multiprocessors\":" << attribute(kMultiprocessorCount) << ",\"capability\":\""
         << attribute(kCapabilityMajor) << "." << attribute(kCapabilityMinor) << "\"}";
    return text.str();
  }

  void open(const char* text, double alpha, double beta, uint64_t workspace) {
    close();
    start();
    std::string error;
    if (!parse_problem(text, &problem_, &error)) throw Failure(error);
    alpha_ = alpha;
    beta_ = beta;
    reference_ = std::make_unique<Reference>(problem_, alpha, beta);
    operands_ = reference_->make(driver, kCaches * static_cast<size_t>(attribute(kL2CacheSize)));
    descriptors_ = std::make_unique<Descriptors>(library, problem_, operands_);
    workspace_ = Memory(driver, workspace);
    default_result_.clear();
    find_candidates(workspace);
  }

  // 10^9 bytes per second, read and written, of a copy within the device's memory.
  double bandwidth() {
    start();
    Memory from(driver, kCopyBytes), to(driver, kCopyBytes);
    double best = 0;
    for (int i = 0; i < kCopies; ++i) {
      need(driver.record_event(begin_, nullptr), "record an event");
      need(driver.on_device(to.at(), from.at(), kCopyBytes), "copy");
      best = std::max(best, 2.0 * kCopyBytes / (1e3 * elapsed("copy")));
    }
    return best;
  }

  void close() {
    candidates_.clear();
    descriptors_.reset();
    reference_.reset();
    operands_ = Operands();
    workspace_ = Memory();
    turn_ = 0;
  }

  std::string names() const {
    std::string text;
    for (const Candidate& candidate : candidates_) text += candidate.name + "\n";
    return text;
  }

  std::string default_name() const {
    Algorithm algorithm;
    if (candidates_.empty() || !read_algorithm(library, candidates_[0].algo, &algorithm)) return "";
    return print_algorithm(algorithm);
  }

  // Microseconds of one call, over a sample of several in a row on changing operands.
  double measure(const char* name) {
    Candidate& candidate = find(name);
    if (candidate.calls == 0) {
      run(candidate, next());
      need(driver.synchronize(), name);
      const double once = time(candidate, 1);
      const double calls = kSampleMicroseconds / std::max(once, 0.1);
      candidate.calls = std::clamp(std::round(calls), double(kLeastCalls), double(kMostCalls));
    }
    return time(candidate, static_cast<int>(candidate.calls));
  }

  // out: whether D equals the default's in every bit, RMS error against float64 on sampled
  // elements, the default's; errors are -1 where the reference does not know the epilogue.
  void compare(const char* name, double* out) {
    if (default_result_.empty()) default_result_ = result(candidates_.front());
    const std::vector<unsigned char> other = result(find(name));
    out[0] = other == default_result_;
    out[1] = out[2] = -1;
    if (reference_->known()) errors(other, out);
  }

  Driver driver{};
  CublasLt library{};

 private:
  int attribute(int number) {
    int value = 0;
    need(driver.get_attribute(&value, number, device_), "ask for a device attribute");
    return value;
  }

  void start() {
    if (handle_) return;
    void* context = nullptr;
    need(driver.retain_context(&context, device_), "open the device");
    need(driver.set_context(context), "open the device");
    lt_need(library.create(&handle_), "open cuBLASLt");
    need(driver.create_event(&begin_, 0), "create an event");
    need(driver.create_event(&end_, 0), "create an event");
  }

  // The library's own choice first, then everything that it proposes, each once. It proposes more
  // when asked under several limits of the workspace.
  void find_candidates(uint64_t workspace) {
    const std::vector<lt::HeuristicResult> first = ask(workspace, 1);
    if (first.empty()) throw Failure("the library has no algorithm");
    candidates_.push_back({"default", first[0].algo, first[0].workspaceSize});
    std::vector<std::string> known{default_name()};
    for (const uint64_t limit : {workspace, workspace / 8, uint64_t{0}}) {
      for (const lt::HeuristicResult& proposed : ask(limit, kRequested)) {
        Algorithm algorithm;
        if (!read_algorithm(library, proposed.algo, &algorithm)) continue;
        const std::string name = print_algorithm(algorithm);
        if (std::find(known.begin(), known.end(), name) != known.end()) continue;
        known.push_back(name);
        Candidate candidate{name, {}, 0};
        if (rebuild(algorithm, workspace, &candidate)) candidates_.push_back(candidate);
      }
    }
  }

  std::vector<lt::HeuristicResult> ask(uint64_t workspace, int requested) {
    lt::Preference preference = nullptr;
    lt_need(library.preference_create(&preference), "create a preference");
    library.preference_set(preference, lt::kPrefMaxWorkspace, &workspace, sizeof(workspace));
    for (int i = 0; i < 4; ++i) {
      library.preference_set(preference, lt::kPrefAlignmentA + i, &kAlignment, sizeof(kAlignment));
    }
    std::vector<lt::HeuristicResult> results(static_cast<size_t>(requested));
    int returned = 0;
    const lt::Layout* l = descriptors_->layouts;
    const lt::Status status =
        library.get_heuristic(handle_, descriptors_->desc, l[0], l[1], l[2], l[3], preference,
                              requested, results.data(), &returned);
    library.preference_destroy(preference);
    results.resize(status == lt::kSuccess ? static_cast<size_t>(std::max(returned, 0)) : 0);
    const auto bad = [](const lt::HeuristicResult& r) { return r.state != lt::kSuccess; };
    results.erase(std::remove_if(results.begin(), results.end(), bad), results.end());
    return results;
  }

  // Times what training will run: the algorithm as it is rebuilt from its name.
  bool rebuild(const Algorithm& algorithm, uint64_t workspace, Candidate* candidate) {
    lt::HeuristicResult checked{};
    const lt::Layout* l = descriptors_->layouts;
    if (!build_algorithm(library, handle_, problem_, algorithm, &candidate->algo) ||
        library.algo_check(handle_, descriptors_->desc, l[0], l[1], l[2], l[3], &candidate->algo,
                           &checked) != lt::kSuccess) {
      return false;
    }
    candidate->workspace = checked.workspaceSize;
    return checked.workspaceSize <= workspace;
  }

  Candidate& find(const std::string& name) {
    for (Candidate& candidate : candidates_) {
      if (candidate.name == name) return candidate;
    }
    throw Failure("the library does not propose " + name);
  }

  const Operands::Set& next() { return operands_.sets[turn_++ % operands_.sets.size()]; }

  void run(const Candidate& candidate, const Operands::Set& set) {
    unsigned char alpha[8], beta[8];
    scalar(alpha_, alpha);
    scalar(beta_, beta);
    const lt::Layout* l = descriptors_->layouts;
    void* const d = set.d.pointer();
    const void* const c = set.c.at() ? set.c.pointer() : d;
    lt_need(library.matmul(handle_, descriptors_->desc, alpha, set.a.pointer(), l[0],
                           set.b.pointer(), l[1], beta, c, l[2], d, l[3], &candidate.algo,
                           workspace_.pointer(), workspace_.bytes(), nullptr),
            candidate.name.c_str());
  }

  void scalar(double value, unsigned char* out) const {
    const float single = static_cast<float>(value);
    const int32_t whole = static_cast<int32_t>(value);
    switch (problem_[kScaleType]) {
      case lt::kR32F:
        std::memcpy(out, &single, sizeof(single));
        break;
      case lt::kR64F:
        std::memcpy(out, &value, sizeof(value));
        break;
      case lt::kR32I:
        std::memcpy(out, &whole, sizeof(whole));
        break;
      default:
        throw Failure("alpha and beta of a type that cannot be timed");
    }
  }

  double time(const Candidate& candidate, int calls) {
    need(driver.record_event(begin_, nullptr), "record an event");
    for (int i = 0; i < calls; ++i) run(candidate, next());
    return elapsed(candidate.name.c_str()) / calls;
  }

  // Microseconds since begin_ was recorded, once all that was asked for is done.
  double elapsed(const char* what) {
    need(driver.record_event(end_, nullptr), "record an event");
    need(driver.wait_event(end_), what);
    float milliseconds = 0;
    need(driver.elapsed(&milliseconds, begin_, end_), "read the events");
    return 1000.0 * milliseconds;
  }

  std::vector<unsigned char> result(const Candidate& candidate) {
    const Operands::Set& set = operands_.sets.front();
    reference_->reset_d(set, driver);
    run(candidate, set);
    need(driver.synchronize(), candidate.name.c_str());
    std::vector<unsigned char> bytes(set.d.bytes());
    need(driver.to_host(bytes.data(), set.d.at(), bytes.size()), "copy the result");
    return bytes;
  }

  void errors(const std::vector<unsigned char>& other, double* out) {
    std::mt19937_64 random(0);
    const auto pick = [&random](int64_t size) {
      return static_cast<int64_t>(random() % static_cast<uint64_t>(size));
    };
    double squares[2] = {};
    for (int i = 0; i < kCheckedColumns; ++i) {
      const int64_t batch = pick(problem_[kBatch]), column = pick(problem_[kN]);
      for (int j = 0; j < kCheckedRows; ++j) {
        const int64_t row = pick(problem_[kM]);
        const double exact = reference_->element(batch, row, column);
        const uint64_t index = static_cast<uint64_t>(batch * problem_[kStrideD] +
                                                     column * problem_[kLdd] + row);
        const double got = decode(problem_[kDType], other.data(), index);
        const double usual = decode(problem_[kDType], default_result_.data(), index);
        squares[0] += (got - exact) * (got - exact);
        squares[1] += (usual - exact) * (usual - exact);
      }
    }
    for (int i = 0; i < 2; ++i) out[1 + i] = std::sqrt(squares[i] / kCheckedRows / kCheckedColumns);
  }

  int device_ = 0;
  lt::Handle handle_ = nullptr;
  void* begin_ = nullptr;
  void* end_ = nullptr;
  Problem problem_{};
  double alpha_ = 1, beta_ = 0;
  std::unique_ptr<Reference> reference_;
  Operands operands_;
  std::unique_ptr<Descriptors> descriptors_;
  Memory workspace_;
  std::vector<Candidate> candidates_;
  std::vector<unsigned char> default_result_;
  size_t turn_ = 0;
};

Tuner* tuner = nullptr;
std::string last_error;

// Runs a step; its failure becomes a number and a text.
template <typename Step>
double guarded(Step step) {
  try {
    if (!tuner) throw Failure("the tuner is not loaded");
    return step();
  } catch (const std::exception& error) {
    last_error = error.what();
    return -1;
  }
}

}  // namespace
}  // namespace primus

using primus::guarded;
using primus::tuner;

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int primus_tuner_load(const char* cublaslt) {
  try {
    if (!tuner) tuner = new primus::Tuner(cublaslt);
    return 0;
  } catch (const std::exception& error) {
    primus::last_error = error.what();
    return -1;
  }
}

EXPORTED int primus_tuner_error(char* buffer, int size) {
  return primus::hand_over(primus::last_error, buffer, size);
}

// Device, versions and counts as JSON.
EXPORTED int primus_tuner_describe(char* buffer, int size) {
  return static_cast<int>(
      guarded([&] { return double(primus::hand_over(tuner->describe(), buffer, size)); }));
}

// Makes operands for a problem (its text form) and asks for its algorithms.
EXPORTED int primus_tuner_open(const char* problem, double alpha, double beta,
                               uint64_t workspace) {
  return static_cast<int>(guarded([&] {
    tuner->open(problem, alpha, beta, workspace);
    return 0.0;
  }));
}

EXPORTED int primus_tuner_close() {
  return static_cast<int>(guarded([&] {
    tuner->close();
    return 0.0;
  }));
}

// Names of the open problem's algorithms, one per line, "default" first.
EXPORTED int primus_tuner_candidates(char* buffer, int size) {
  return static_cast<int>(
      guarded([&] { return double(primus::hand_over(tuner->names(), buffer, size)); }));
}

// Which algorithm "default" is.
EXPORTED int primus_tuner_default(char* buffer, int size) {
  return static_cast<int>(
      guarded([&] { return double(primus::hand_over(tuner->default_name(), buffer, size)); }));
}

// Microseconds of one call.
EXPORTED double primus_tuner_measure(const char* name) {
  return guarded([&] { return tuner->measure(name); });
}

EXPORTED double primus_tuner_bandwidth() {
  return guarded([&] { return tuner->bandwidth(); });
}

EXPORTED int primus_tuner_compare(const char* name, double* out) {
  return static_cast<int>(guarded([&] {
    tuner->compare(name, out);
    return 0.0;
  }));
}

// Whether the device still answers: after a fault in a kernel it never does again.
EXPORTED int primus_tuner_alive() {
  return static_cast<int>(guarded([&] {
    primus::need(tuner->driver.synchronize(), "synchronize");
    return 0.0;
  }));
}
