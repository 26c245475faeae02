// A fake of libcublasLt.so.13: the functions that primus.gemm.cublaslt uses, with six algorithms of
// planted times. It multiplies small matrices of float and bfloat16 on the host. Attributes are
// checked for their sizes, as the real library does. Environment:
//   FAKE_VERSION    what cublasLtGetVersion says
//   FAKE_REFUSE     id of an algorithm that AlgoCheck refuses
//   FAKE_FAULT      id of an algorithm whose kernel faults
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include <dlfcn.h>

namespace {

constexpr int kInvalid = 7;
constexpr int kUnsupported = 15;

struct Object {
  std::map<int, std::string> attributes;

  template <typename T>
  T get(int attribute, T otherwise = T{}) const {
    const auto found = attributes.find(attribute);
    if (found == attributes.end()) return otherwise;
    T value;
    std::memcpy(&value, found->second.data(), sizeof(value));
    return value;
  }
  template <typename T>
  void put(int attribute, T value) {
    attributes[attribute] = std::string(reinterpret_cast<const char*>(&value), sizeof(value));
  }
};

struct Config {
  int32_t id;
  uint32_t tile;
  int32_t splitk;
  uint32_t reduction;
  uint32_t swizzle;
  uint32_t custom;
  uint32_t stages;
  uint16_t inner;
  uint16_t cluster;
  uint64_t unused[4];
};
static_assert(sizeof(Config) == 64);

struct Result {
  Config algo;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

struct Known {
  Config config;
  double factor;
  size_t workspace;
  uint32_t alignment;
  float scale;  // of its result: not 1 is a lossy kernel
};

// The first is the heuristic's choice. Orders of config: id tile splitk reduction swizzle custom
// stages inner cluster.
const Known kKnown[] = {
    {{66, 20, 1, 0, 0, 0, 35, 0, 2, {}}, 1.0, 0, 16, 1},
    {{66, 24, 1, 0, 1, 0, 36, 0, 3, {}}, 0.8, 0, 16, 1},
    {{67, 15, 4, 2, 0, 3, 35, 0, 2, {}}, 0.9, 4 << 20, 16, 1},
    {{68, 11, 1, 0, 0, 0, 12, 0, 0, {}}, 0.5, 0, 16, 1.05f},
    {{69, 11, 1, 0, 0, 0, 12, 0, 0, {}}, 1.1, 0, 64, 1},
    {{70, 18, 1, 0, 0, 0, 12, 1, 0, {}}, 1.2, 0, 16, 1},
};

std::atomic<int> heuristic_calls{0}, check_calls{0};

bool same(const Config& a, const Config& b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

const Known* known(const Config& config) {
  for (const Known& one : kKnown) {
    if (same(one.config, config)) return &one;
  }
  return nullptr;
}

bool refused(const char* variable, int id) {
  const char* text = std::getenv(variable);
  return text && std::atoi(text) == id;
}

int set(void* object, int attribute, const void* data, size_t size,
        const std::map<int, size_t>& sizes) {
  const auto wanted = sizes.find(attribute);
  if (!object || wanted == sizes.end() || wanted->second != size) return kInvalid;
  static_cast<Object*>(object)->attributes[attribute] =
      std::string(static_cast<const char*>(data), size);
  return 0;
}

int get(void* object, int attribute, void* data, size_t size, size_t* written,
        const std::map<int, size_t>& sizes) {
  const auto wanted = sizes.find(attribute);
  if (!object || wanted == sizes.end() || wanted->second != size) return kInvalid;
  const auto& attributes = static_cast<Object*>(object)->attributes;
  const auto found = attributes.find(attribute);
  std::memset(data, 0, size);
  if (found != attributes.end()) std::memcpy(data, found->second.data(), size);
  if (written) *written = size;
  return 0;
}

const std::map<int, size_t> kLayoutSizes = {{0, 4}, {1, 4}, {2, 8}, {3, 8}, {4, 8},
                                            {5, 4}, {6, 8}, {7, 8}, {8, 4}};
const std::map<int, size_t> kDescSizes = {
    {0, 4},  {1, 4},  {2, 4},  {3, 4},  {4, 4},  {5, 4},  {6, 4},  {7, 4},  {8, 8},  {10, 8},
    {11, 8}, {12, 8}, {13, 8}, {14, 8}, {15, 4}, {17, 8}, {18, 8}, {19, 8}, {20, 8}, {21, 8},
    {22, 4}, {23, 8}, {24, 8}, {25, 1}, {26, 4}, {31, 4}, {32, 4}, {33, 4}, {34, 4}, {36, 8}};
const std::map<int, size_t> kPreferenceSizes = {{0, 4}, {1, 8}, {3, 4}, {5, 4}, {6, 4},
                                                {7, 4}, {8, 4}, {9, 4}, {12, 8}};

struct Matrix {
  Matrix(void* object, const void* values)
      : layout(*static_cast<Object*>(object)),
        data(static_cast<const unsigned char*>(values)),
        type(layout.get<int32_t>(0)),
        leading(layout.get<int64_t>(4)),
        stride(layout.get<int64_t>(6)) {}

  const Object& layout;
  const unsigned char* data;
  int type;
  int64_t leading, stride;

  size_t index(int64_t batch, int64_t row, int64_t column) const {
    return static_cast<size_t>(batch * stride + column * leading + row);
  }
  float at(int64_t batch, int64_t row, int64_t column) const {
    const size_t i = index(batch, row, column);
    float value;
    if (type == 0) {
      std::memcpy(&value, data + 4 * i, 4);
      return value;
    }
    uint16_t half;
    std::memcpy(&half, data + 2 * i, 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  void put(int64_t batch, int64_t row, int64_t column, float value) const {
    unsigned char* to = const_cast<unsigned char*>(data);
    const size_t i = index(batch, row, column);
    if (type == 0) {
      std::memcpy(to + 4 * i, &value, 4);
      return;
    }
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits += 0x7FFF + ((bits >> 16) & 1);
    const uint16_t half = static_cast<uint16_t>(bits >> 16);
    std::memcpy(to + 2 * i, &half, 2);
  }
};

constexpr double kMostProducts = 1e6;

bool computable(int type) { return type == 0 || type == 14; }

void multiply(const Object& desc, float alpha, float beta, const Matrix& a, const Matrix& b,
              const Matrix& c, const Matrix& d, const Known& kernel) {
  const bool a_plain = desc.get<int32_t>(3) == 0, b_plain = desc.get<int32_t>(4) == 0;
  const int64_t m = d.layout.get<int64_t>(2), n = d.layout.get<int64_t>(3);
  const int64_t k = a.layout.get<int64_t>(a_plain ? 3 : 2);
  const float* bias = desc.get<const float*>(8);
  const bool with_bias = desc.get<uint32_t>(7, 1) == 4 && desc.get<int32_t>(26) == 0;
  for (int32_t batch = 0; batch < d.layout.get<int32_t>(5, 1); ++batch) {
    for (int64_t column = 0; column < n; ++column) {
      for (int64_t row = 0; row < m; ++row) {
        float sum = 0;
        for (int64_t i = 0; i < k; ++i) {
          const int64_t p = kernel.config.splitk > 1 ? k - 1 - i : i;
          sum += (a_plain ? a.at(batch, row, p) : a.at(batch, p, row)) *
                 (b_plain ? b.at(batch, p, column) : b.at(batch, column, p));
        }
        float value = alpha * sum * kernel.scale;
        if (beta != 0) value += beta * c.at(batch, row, column);
        if (with_bias) value += bias[row];
        d.put(batch, row, column, value);
      }
    }
  }
}

template <typename Function>
Function of_driver(const char* name) {
  static void* driver = dlopen("libcuda.so.1", RTLD_LAZY);
  return reinterpret_cast<Function>(dlsym(driver, name));
}

}  // namespace

extern "C" {

int fake_heuristic_calls() { return heuristic_calls; }
int fake_check_calls() { return check_calls; }

size_t cublasLtGetVersion() {
  const char* text = std::getenv("FAKE_VERSION");
  return text ? static_cast<size_t>(std::atol(text)) : 130102;
}
int cublasLtCreate(void** handle) {
  *handle = new int(0);
  return 0;
}
int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  auto* made = new Object;
  made->put<int32_t>(0, type);
  made->put(2, rows);
  made->put(3, cols);
  made->put(4, ld);
  made->put<int32_t>(5, 1);
  *layout = made;
  return 0;
}
int cublasLtMatrixLayoutDestroy(void* layout) {
  delete static_cast<Object*>(layout);
  return 0;
}
int cublasLtMatrixLayoutSetAttribute(void* o, int attribute, const void* data, size_t size) {
  return set(o, attribute, data, size, kLayoutSizes);
}
int cublasLtMatrixLayoutGetAttribute(void* o, int attribute, void* data, size_t size, size_t* w) {
  return get(o, attribute, data, size, w, kLayoutSizes);
}
int cublasLtMatmulDescCreate(void** desc, int compute, int scale) {
  auto* made = new Object;
  made->put<int32_t>(0, compute);
  made->put<int32_t>(1, scale);
  made->put<int32_t>(6, 2);
  made->put<uint32_t>(7, 1);
  made->put<int32_t>(22, -1);
  made->put<int32_t>(26, -1);
  *desc = made;
  return 0;
}
int cublasLtMatmulDescDestroy(void* desc) {
  delete static_cast<Object*>(desc);
  return 0;
}
int cublasLtMatmulDescSetAttribute(void* o, int attribute, const void* data, size_t size) {
  return set(o, attribute, data, size, kDescSizes);
}
int cublasLtMatmulDescGetAttribute(void* o, int attribute, void* data, size_t size, size_t* w) {
  return get(o, attribute, data, size, w, kDescSizes);
}
int cublasLtMatmulPreferenceCreate(void** preference) {
  auto* made = new Object;
  made->put<uint32_t>(3, 7);
  for (int i = 5; i <= 8; ++i) made->put<uint32_t>(i, 256);
  made->put<uint64_t>(12, ~uint64_t{0});
  *preference = made;
  return 0;
}
int cublasLtMatmulPreferenceDestroy(void* preference) {
  delete static_cast<Object*>(preference);
  return 0;
}
int cublasLtMatmulPreferenceSetAttribute(void* o, int attribute, const void* data, size_t size) {
  return set(o, attribute, data, size, kPreferenceSizes);
}
int cublasLtMatmulPreferenceGetAttribute(void* o, int attribute, void* d, size_t size, size_t* w) {
  return get(o, attribute, d, size, w, kPreferenceSizes);
}

int cublasLtMatmulAlgoGetHeuristic(void*, void* desc, void* a, void* b, void* c, void* d,
                                   void* preference, int requested, Result* results,
                                   int* returned) {
  ++heuristic_calls;
  if (!desc || !a || !b || !c || !d || !preference || requested < 1) return kInvalid;
  const auto limit = static_cast<Object*>(preference)->get<uint64_t>(1);
  int count = 0;
  for (const Known& one : kKnown) {
    if (count == requested || one.workspace > limit) continue;
    results[count++] = {one.config, one.workspace, 0, 1.0f, {}};
  }
  *returned = count;
  return 0;
}

int cublasLtMatmulAlgoInit(void*, int, int, int, int, int, int, int id, Config* config) {
  *config = Config{};
  config->id = id;
  return id >= 66 && id <= 70 ? 0 : kInvalid;
}

int cublasLtMatmulAlgoCheck(void*, void* desc, void*, void*, void*, void*, const Config* config,
                            Result* result) {
  ++check_calls;
  const Known* kernel = known(*config);
  if (!desc || !kernel || refused("FAKE_REFUSE", config->id)) return kUnsupported;
  *result = {*config, kernel->workspace, 0, 1.0f, {}};
  return 0;
}

int cublasLtMatmulAlgoConfigSetAttribute(Config* config, int attribute, const void* data,
                                         size_t size) {
  constexpr size_t kOffsets[] = {0, 4, 8, 12, 16, 20, 24, 28, 30};
  const size_t wanted = attribute >= 7 ? 2 : 4;
  if (attribute < 1 || attribute > 8 || size != wanted) return kInvalid;
  std::memcpy(reinterpret_cast<char*>(config) + kOffsets[attribute], data, size);
  return 0;
}
int cublasLtMatmulAlgoConfigGetAttribute(const Config* config, int attribute, void* data,
                                         size_t size, size_t* written) {
  constexpr size_t kOffsets[] = {0, 4, 8, 12, 16, 20, 24, 28, 30};
  const size_t wanted = attribute >= 7 ? 2 : 4;
  if (attribute < 0 || attribute > 8 || size != wanted) return kInvalid;
  std::memcpy(data, reinterpret_cast<const char*>(config) + kOffsets[attribute], size);
  *written = size;
  return 0;
}
int cublasLtMatmulAlgoCapGetAttribute(const Config* config, int attribute, void* data, size_t size,
                                      size_t* written) {
  const Known* kernel = known(*config);
  if (!kernel) return kInvalid;
  const uint64_t flags = 0x0202;
  if (attribute == 15 && size == 8) {
    std::memcpy(data, &flags, size);
  } else if (attribute >= 16 && attribute <= 19 && size == 4) {
    std::memcpy(data, &kernel->alignment, size);
  } else {
    return kInvalid;
  }
  *written = size;
  return 0;
}

int cublasLtMatmul(void*, void* desc, const float* alpha, const void* a, void* a_layout,
                   const void* b, void* b_layout, const float* beta, const void* c, void* c_layout,
                   void* d, void* d_layout, const Config* config, void*, size_t workspace, void*) {
  const Known* kernel = known(config ? *config : kKnown[0].config);
  if (!kernel || kernel->workspace > workspace) return kUnsupported;
  if (refused("FAKE_FAULT", kernel->config.id)) of_driver<void (*)(int)>("fake_cuda_fault")(700);
  const Object& layout = *static_cast<Object*>(d_layout);
  const double m = double(layout.get<int64_t>(2)), n = double(layout.get<int64_t>(3));
  // A small n suits the first algorithm best.
  const double factor = n < 32 && kernel != kKnown ? 1.5 : kernel->factor;
  of_driver<void (*)(double)>("fake_cuda_advance")(factor * (1000 + m * n / 10));
  const Matrix am(a_layout, a), bm(b_layout, b), cm(c_layout, c), dm(d_layout, d);
  const double products = m * n * double(am.layout.get<int64_t>(2));
  const bool plain = computable(am.type) && computable(bm.type) && computable(dm.type);
  if (d && plain && products < kMostProducts) {
    multiply(*static_cast<Object*>(desc), *alpha, *beta, am, bm, cm, dm, *kernel);
  }
  return 0;
}

}  // extern "C"
