// libprimus_cublaslt_dump.so, preloaded into the steps whose GEMMs are recorded: counts the calls
// of cublasLtMatmul by problem and algorithm, and writes the counts when the process ends. It
// defines no other symbol of the library.
//
// libcublas (cublasGemmEx) calls cublasLtMatmul, too, with algorithms of its own choice that
// nothing here can replace; those calls are counted apart.
#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <unordered_map>

#include <dlfcn.h>
#include <pthread.h>

#include "algorithm.h"
#include "json.h"

namespace primus {
namespace {

constexpr const char* kDirectoryVariable = "PRIMUS_CUBLASLT_DUMP";

struct Counts {
  std::mutex mutex;
  std::unordered_map<std::string, uint64_t> calls;
  std::unordered_map<const void*, bool> from_cublas;  // by return address
  uint64_t of_cublas = 0;
  uint64_t inexpressible[static_cast<int>(Inexpressible::kCount)] = {};
};

Counts& counts() {
  static Counts* instance = new Counts;
  return *instance;
}

bool is_cublas(const void* address) {
  Dl_info info{};
  if (!dladdr(address, &info) || !info.dli_fname) return false;
  const std::string path = info.dli_fname;
  const std::string name = path.substr(path.find_last_of('/') + 1);
  return name.rfind("libcublas.so", 0) == 0;
}

// The host's value of alpha or beta; false for a type that is not known here.
bool scalar(int64_t type, const void* pointer, double* value) {
  uint16_t half;
  uint32_t bits;
  float single;
  int32_t whole;
  switch (type) {
    case lt::kR32F:
      std::memcpy(&single, pointer, sizeof(single));
      *value = single;
      return true;
    case lt::kR64F:
      std::memcpy(value, pointer, sizeof(*value));
      return true;
    case lt::kR32I:
      std::memcpy(&whole, pointer, sizeof(whole));
      *value = whole;
      return true;
    case lt::kR16BF:
      std::memcpy(&half, pointer, sizeof(half));
      bits = static_cast<uint32_t>(half) << 16;
      std::memcpy(&single, &bits, sizeof(single));
      *value = single;
      return true;
    default:
      return false;
  }
}

void count(const CublasLt& library, lt::Desc desc, const void* alpha, lt::Layout a, lt::Layout b,
           const void* beta, lt::Layout c, lt::Layout d, const lt::Algo* algo, const void* caller) {
  Counts& all = counts();
  Problem problem;
  Inexpressible reason = read_problem(library, desc, a, b, c, d, &problem);
  double scale[2] = {1, 0};
  if (reason == Inexpressible::kNothing) {  // else alpha may point to the device's memory
    const int64_t type = problem[kScaleType];
    const bool known = alpha && scalar(type, alpha, &scale[0]) &&
                       (!beta || scalar(type, beta, &scale[1]));
    if (!known) reason = Inexpressible::kOther;
  }
  Algorithm algorithm;
  const bool named = algo && read_algorithm(library, *algo, &algorithm);
  char scalars[96];
  std::snprintf(scalars, sizeof(scalars), " alpha=%.17g beta=%.17g ", scale[0], scale[1]);

  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.from_cublas.find(caller);
  const bool from_cublas = found != all.from_cublas.end()
                               ? found->second
                               : (all.from_cublas[caller] = is_cublas(caller));
  if (from_cublas) {
    ++all.of_cublas;
  } else if (reason != Inexpressible::kNothing) {
    ++all.inexpressible[static_cast<int>(reason)];
  } else {
    ++all.calls[(named ? print_algorithm(algorithm) : "default") + scalars +
                print_problem(problem)];
  }
}

std::string text() {
  Counts& all = counts();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::string lines = "primus-cublaslt-dump 1\n";
  for (const auto& [line, calls] : all.calls) lines += std::to_string(calls) + " " + line + " ;\n";
  for (int i = 1; i < static_cast<int>(Inexpressible::kCount); ++i) {
    if (!all.inexpressible[i]) continue;
    lines += "skipped " + std::to_string(all.inexpressible[i]) + " " +
             inexpressible_name(static_cast<Inexpressible>(i)) + "\n";
  }
  return lines + "cublas " + std::to_string(all.of_cublas) + "\nend\n";
}

void forget_calls() {
  Counts& all = counts();
  all.calls.clear();
  all.of_cublas = 0;
  for (uint64_t& number : all.inexpressible) number = 0;
}

bool write() {
  const char* directory = std::getenv(kDirectoryVariable);
  if (!directory || !*directory) return false;
  return write_file(std::string(directory) + "/cublaslt-%i.calls", text());
}

// What the parent counted is not the child's.
void before_fork() { counts().mutex.lock(); }
void after_fork_in_parent() { counts().mutex.unlock(); }
void after_fork_in_child() {
  forget_calls();
  counts().mutex.unlock();
}

__attribute__((constructor)) void start() {
  pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

__attribute__((destructor)) void finish() {
  Counts& all = counts();
  // Most processes that inherit the environment never come near the library.
  if (all.calls.empty() && all.from_cublas.empty()) return;
  try {
    if (!write()) std::fprintf(stderr, "primus: cannot write the dump of the GEMM calls\n");
  } catch (...) {
    std::fprintf(stderr, "primus: no memory to write the dump of the GEMM calls\n");
  }
}

}  // namespace
}  // namespace primus

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int cublasLtMatmul(void* handle, void* desc, const void* alpha, const void* a_data,
                            void* a, const void* b_data, void* b, const void* beta,
                            const void* c_data, void* c, void* d_data, void* d,
                            const lt::Algo* algo, void* workspace, size_t size, void* stream) {
  const primus::CublasLt* library = primus::loaded_cublaslt();
  if (!library) return lt::kNotInitialized;
  const void* caller = __builtin_return_address(0);
  try {
    primus::count(*library, desc, alpha, a, b, beta, c, d, algo, caller);
  } catch (...) {
    std::fprintf(stderr, "primus: no memory to count a GEMM call\n");
  }
  return library->matmul(handle, desc, alpha, a_data, a, b_data, b, beta, c_data, c, d_data, d,
                         algo, workspace, size, stream);
}
