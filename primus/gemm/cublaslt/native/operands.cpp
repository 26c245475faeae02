#include "operands.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <utility>

namespace primus {

namespace {

constexpr size_t kPatternLength = 1000003;
constexpr size_t kMostSets = 16;

double narrow_value(unsigned char byte, int exponent_bits, int mantissa_bits, int bias) {
  const int exponent = (byte >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = byte & ((1 << mantissa_bits) - 1);
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  const double magnitude = exponent ? std::ldexp(1 + fraction, exponent - bias)
                                    : std::ldexp(fraction, 1 - bias);
  return byte & 0x80 ? -magnitude : magnitude;
}

double half_value(uint16_t half) {
  const int exponent = (half >> 10) & 31;
  const double fraction = std::ldexp(half & 1023, -10);
  double magnitude = exponent ? std::ldexp(1 + fraction, exponent - 15) : std::ldexp(fraction, -14);
  if (exponent == 31) magnitude = INFINITY;
  return half & 0x8000 ? -magnitude : magnitude;
}

// A random element between -2 and 2, never zero in all bits for long and never a NaN.
void encode(int64_t type, uint32_t random, unsigned char* data) {
  const float uniform = static_cast<float>(random) / 2147483648.0f - 1.0f;
  const double wide = uniform;
  uint32_t bits;
  std::memcpy(&bits, &uniform, sizeof(bits));
  uint16_t half;
  int32_t whole;
  switch (type) {
    case lt::kR32F:
      std::memcpy(data, &uniform, 4);
      break;
    case lt::kR64F:
      std::memcpy(data, &wide, 8);
      break;
    case lt::kR16BF:
      half = static_cast<uint16_t>(bits >> 16);
      std::memcpy(data, &half, 2);
      break;
    case lt::kR16F:  // the exponent stays below that of 2
      half = static_cast<uint16_t>(random & 0xBFFF);
      std::memcpy(data, &half, 2);
      break;
    case lt::kR32I:
      whole = static_cast<int32_t>(random % 17) - 8;
      std::memcpy(data, &whole, 4);
      break;
    case lt::kR8I:
      *data = static_cast<unsigned char>(static_cast<int>(random % 17) - 8);
      break;
    case lt::kR4FE2M1:
      *data = static_cast<unsigned char>(random);
      break;
    default:  // both fp8 types: the exponent stays below that of 2
      *data = static_cast<unsigned char>(random & 0xBF);
  }
}

double gelu(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

double gelu_slope(double x) {
  const double inner = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
  const double t = std::tanh(inner);
  return 0.5 * (1 + t) +
         0.5 * x * (1 - t * t) * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

size_t bytes_of(int64_t type, uint64_t elements) {
  return static_cast<size_t>(std::ceil(element_bytes(type) * static_cast<double>(elements)));
}

// Scale factors that are all one, in as many bytes as any mode can want.
std::vector<unsigned char> ones(int64_t scale, uint64_t elements) {
  const int64_t mode = scale - 1;
  if (mode == lt::kScaleVec32UE8M0) return std::vector<unsigned char>(elements / 16 + 65536, 127);
  if (mode == lt::kScaleVec16UE4M3) return std::vector<unsigned char>(elements / 8 + 65536, 0x38);
  const std::vector<float> values(mode == lt::kScaleScalar32F ? 64 : elements / 64 + 65536, 1.0f);
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  return std::vector<unsigned char>(bytes, bytes + values.size() * sizeof(float));
}

}  // namespace

double element_bytes(int64_t type) {
  switch (type) {
    case lt::kR64F:
      return 8;
    case lt::kR32F:
    case lt::kR32I:
      return 4;
    case lt::kR16F:
    case lt::kR16BF:
      return 2;
    case lt::kR4FE2M1:
      return 0.5;
    default:
      return 1;
  }
}

double decode(int64_t type, const unsigned char* data, uint64_t index) {
  const unsigned char* at = data + bytes_of(type, index);
  float single;
  double wide;
  uint16_t half;
  uint32_t bits;
  int32_t whole;
  switch (type) {
    case lt::kR32F:
      std::memcpy(&single, at, 4);
      return single;
    case lt::kR64F:
      std::memcpy(&wide, at, 8);
      return wide;
    case lt::kR16BF:
      std::memcpy(&half, at, 2);
      bits = static_cast<uint32_t>(half) << 16;
      std::memcpy(&single, &bits, 4);
      return single;
    case lt::kR16F:
      std::memcpy(&half, at, 2);
      return half_value(half);
    case lt::kR32I:
      std::memcpy(&whole, at, 4);
      return whole;
    case lt::kR8I:
      return static_cast<signed char>(*at);
    case lt::kR8FE5M2:
      return narrow_value(*at, 5, 2, 15);
    default:
      return narrow_value(*at, 4, 3, 7);
  }
}

Pattern::Pattern(int64_t type, uint32_t seed) {
  std::mt19937 random(seed);
  bytes_.resize(bytes_of(type, kPatternLength + 1));
  values_.resize(type == lt::kR4FE2M1 ? 1 : kPatternLength);
  for (size_t i = 0; i < kPatternLength; ++i) {
    encode(type, static_cast<uint32_t>(random()), bytes_.data() + bytes_of(type, i));
  }
  bytes_.resize(bytes_of(type, kPatternLength));
  for (size_t i = 0; i < values_.size(); ++i) values_[i] = decode(type, bytes_.data(), i);
}

const Pattern* Pattern::of(int64_t type, uint32_t seed) {
  static std::map<std::pair<int64_t, uint32_t>, std::unique_ptr<Pattern>> made;
  if (type < 0) return nullptr;
  std::unique_ptr<Pattern>& pattern = made[{type, seed}];
  if (!pattern) pattern = std::make_unique<Pattern>(type, seed);
  return pattern.get();
}

uint64_t span(const Problem& p, Field leading, Field stride, int64_t columns, int64_t rows) {
  return static_cast<uint64_t>((p[kBatch] - 1) * p[stride] + (columns - 1) * p[leading] + rows);
}

Reference::Reference(const Problem& problem, double alpha, double beta)
    : problem_(problem),
      alpha_(alpha),
      beta_(beta),
      a_(Pattern::of(problem[kAType], 1)),
      b_(Pattern::of(problem[kBType], 2)),
      c_(Pattern::of(problem[kCType], 3)),
      d_(Pattern::of(problem[kDType], 3)),
      bias_(Pattern::of(problem[kBiasType], 4)),
      aux_(Pattern::of(problem[kAuxType], 5)) {}

uint64_t Reference::d_elements() const {
  return span(problem_, kLdd, kStrideD, problem_[kN], problem_[kM]);
}

// Training adds into D itself, where it adds at all.
bool Reference::in_place() const {
  return problem_[kCType] == problem_[kDType] && problem_[kLdc] == problem_[kLdd] &&
         problem_[kStrideC] == problem_[kStrideD];
}

Memory Reference::filled(const Driver& driver, const Pattern* pattern, int64_t type,
                         uint64_t elements) const {
  Memory memory(driver, bytes_of(type, elements));
  memory.fill(pattern->bytes().data(), pattern->bytes().size());
  return memory;
}

Operands Reference::make(const Driver& driver, size_t rotate_bytes) const {
  const Problem& p = problem_;
  const bool a_rows = p[kTransA] == 0, b_rows = p[kTransB] == 0;
  const uint64_t a = span(p, kLda, kStrideA, a_rows ? p[kK] : p[kM], a_rows ? p[kM] : p[kK]);
  const uint64_t b = span(p, kLdb, kStrideB, b_rows ? p[kN] : p[kK], b_rows ? p[kK] : p[kN]);
  const uint64_t c = span(p, kLdc, kStrideC, p[kN], p[kM]);
  const uint64_t d = d_elements();
  const size_t one = bytes_of(p[kAType], a) + bytes_of(p[kBType], b) + bytes_of(p[kDType], d);
  size_t free = 0, total = 0;
  need(driver.memory_info(&free, &total), "ask for free memory");
  const size_t fits = std::max<size_t>(1, free / 2 / std::max<size_t>(1, one));
  const size_t wanted = rotate_bytes / std::max<size_t>(1, one) + 2;
  Operands made;
  for (size_t i = 0; i < std::min({wanted, fits, kMostSets}); ++i) {
    Operands::Set set;
    set.a = filled(driver, a_, p[kAType], a);
    set.b = filled(driver, b_, p[kBType], b);
    set.d = filled(driver, d_, p[kDType], d);
    if (!in_place()) set.c = filled(driver, c_, p[kCType], c);
    made.sets.push_back(std::move(set));
  }
  if (has_bias(p[kEpilogueField])) {
    made.bias = filled(driver, bias_, p[kBiasType], static_cast<uint64_t>(std::max(p[kM], p[kN])));
  }
  if (p[kEpilogueField] & lt::kEpilogueAux) {
    const uint64_t size = span(p, kAuxLd, kAuxStride, p[kN], p[kM]);
    made.aux = filled(driver, aux_, p[kAuxType], size);
  }
  const uint64_t sizes[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) {
    const int64_t scale = p.value[kScaleA + i];
    if (!scale) continue;
    const std::vector<unsigned char> values = ones(scale, sizes[i]);
    made.scale[i] = Memory(driver, values.size());
    made.scale[i].fill(values.data(), values.size());
  }
  if (p[kAmaxD]) made.amax = Memory(driver, sizeof(float));
  return made;
}

void Reference::reset_d(const Operands::Set& set, const Driver& driver) const {
  Memory fresh = filled(driver, d_, problem_[kDType], d_elements());
  need(driver.on_device(set.d.at(), fresh.at(), set.d.bytes()), "copy operands");
}

bool Reference::known() const {
  const int64_t epilogue = problem_[kEpilogueField];
  const bool packed = problem_[kAType] == lt::kR4FE2M1 || problem_[kBType] == lt::kR4FE2M1;
  return !packed && !(epilogue & lt::kEpilogueDRelu);
}

double Reference::element(int64_t batch, int64_t row, int64_t column) const {
  const Problem& p = problem_;
  const auto index = [&p](int64_t batch, Field stride, int64_t column, Field leading, int64_t row) {
    return static_cast<uint64_t>(batch * p[stride] + column * p[leading] + row);
  };
  double sum = 0;
  for (int64_t k = 0; k < p[kK]; ++k) {
    const double a = p[kTransA] == 0 ? a_->at(index(batch, kStrideA, k, kLda, row))
                                     : a_->at(index(batch, kStrideA, row, kLda, k));
    const double b = p[kTransB] == 0 ? b_->at(index(batch, kStrideB, column, kLdb, k))
                                     : b_->at(index(batch, kStrideB, k, kLdb, column));
    sum += a * b;
  }
  const double c = beta_ == 0 ? 0 : c_->at(index(batch, kStrideC, column, kLdc, row));
  double value = alpha_ * sum + beta_ * c;
  const int64_t epilogue = p[kEpilogueField];
  if (epilogue & lt::kEpilogueBias) value += bias_->at(static_cast<uint64_t>(row));
  if (epilogue & lt::kEpilogueRelu) value = std::max(value, 0.0);
  if (epilogue & lt::kEpilogueGelu) value = gelu(value);
  if (epilogue & lt::kEpilogueDGelu) {
    value *= gelu_slope(aux_->at(index(batch, kAuxStride, column, kAuxLd, row)));
  }
  return value;
}

}  // namespace primus
