#include "problem.h"

#include <charconv>

namespace primus {

namespace {

enum class Kind { kNumber, kTrans, kType, kCompute, kEpilogue, kScale };

struct Name {
  const char* text;
  int64_t value;
};

constexpr int64_t kNone = -1;

constexpr Name kTransNames[] = {{"N", 0}, {"T", 1}, {"C", 2}};
constexpr Name kTypeNames[] = {
    {"none", kNone},        {"f64_r", lt::kR64F},   {"f32_r", lt::kR32F},
    {"f16_r", lt::kR16F},   {"bf16_r", lt::kR16BF}, {"i8_r", lt::kR8I},
    {"i32_r", lt::kR32I},   {"f8_r", lt::kR8FE4M3}, {"bf8_r", lt::kR8FE5M2},
    {"f4_r", lt::kR4FE2M1},
};
constexpr Name kComputeNames[] = {
    {"f16_r", lt::kCompute16F},
    {"f32_r", lt::kCompute32F},
    {"f64_r", lt::kCompute64F},
    {"i32_r", lt::kCompute32I},
    {"f32_f16_r", lt::kCompute32FFast16F},
    {"f32_bf16_r", lt::kCompute32FFast16BF},
    {"xf32_r", lt::kCompute32FFastTF32},
};
constexpr Name kEpilogueNames[] = {
    {"default", 1},     {"relu", 2},
    {"bias", 4},        {"relu_bias", 2 | 4},
    {"relu_aux", 130},  {"relu_aux_bias", 130 | 4},
    {"drelu", 136},     {"drelu_bgrad", 136 | 16},
    {"gelu", 32},       {"gelu_bias", 32 | 4},
    {"gelu_aux", 160},  {"gelu_aux_bias", 160 | 4},
    {"dgelu", 192},     {"dgelu_bgrad", 192 | 16},
    {"bgrada", 256},    {"bgradb", 512},
};
// A value is the mode plus one; 0 is no scale factor.
constexpr Name kScaleNames[] = {
    {"none", 0},          {"scalar_32f", 1}, {"vec16_ue4m3", 2},    {"vec32_ue8m0", 3},
    {"outer_vec_32f", 4}, {"vec128_32f", 5}, {"blk128x128_32f", 6},
};

constexpr int64_t kRequired = INT64_MIN;

struct FieldInfo {
  const char* name;
  Kind kind;
  int64_t fallback;
};

constexpr FieldInfo kInfo[kFields] = {
    {"transA", Kind::kTrans, kRequired},
    {"transB", Kind::kTrans, kRequired},
    {"m", Kind::kNumber, kRequired},
    {"n", Kind::kNumber, kRequired},
    {"k", Kind::kNumber, kRequired},
    {"batch_count", Kind::kNumber, 1},
    {"a_type", Kind::kType, kRequired},
    {"b_type", Kind::kType, kRequired},
    {"c_type", Kind::kType, kRequired},
    {"d_type", Kind::kType, kRequired},
    {"compute_type", Kind::kCompute, kRequired},
    {"scale_type", Kind::kType, kRequired},
    {"lda", Kind::kNumber, kRequired},
    {"ldb", Kind::kNumber, kRequired},
    {"ldc", Kind::kNumber, kRequired},
    {"ldd", Kind::kNumber, kRequired},
    {"stride_a", Kind::kNumber, 0},
    {"stride_b", Kind::kNumber, 0},
    {"stride_c", Kind::kNumber, 0},
    {"stride_d", Kind::kNumber, 0},
    {"epilogue", Kind::kEpilogue, 1},
    {"bias_type", Kind::kType, kNone},
    {"aux_type", Kind::kType, kNone},
    {"aux_ld", Kind::kNumber, 0},
    {"aux_stride", Kind::kNumber, 0},
    {"scaleA", Kind::kScale, 0},
    {"scaleB", Kind::kScale, 0},
    {"scaleC", Kind::kScale, 0},
    {"scaleD", Kind::kScale, 0},
    {"amaxD", Kind::kNumber, 0},
    {"fast_accum", Kind::kNumber, 0},
};

struct Names {
  const Name* begin;
  const Name* end;
};

template <size_t size>
constexpr Names all(const Name (&names)[size]) {
  return {names, names + size};
}

Names names_of(Kind kind) {
  switch (kind) {
    case Kind::kTrans:
      return all(kTransNames);
    case Kind::kType:
      return all(kTypeNames);
    case Kind::kCompute:
      return all(kComputeNames);
    case Kind::kEpilogue:
      return all(kEpilogueNames);
    case Kind::kScale:
      return all(kScaleNames);
    case Kind::kNumber:
      break;
  }
  return {nullptr, nullptr};
}

bool has_name(Kind kind, int64_t value) {
  const Names names = names_of(kind);
  for (const Name* name = names.begin; name != names.end; ++name) {
    if (name->value == value) return true;
  }
  return false;
}

bool parse_value(Kind kind, std::string_view text, int64_t* value) {
  if (kind == Kind::kNumber) return parse_int(text, value) && *value >= 0;
  const Names names = names_of(kind);
  for (const Name* name = names.begin; name != names.end; ++name) {
    if (text == name->text) {
      *value = name->value;
      return true;
    }
  }
  return false;
}

// What one call's descriptors say, attribute by attribute.
class Reader {
 public:
  Reader(const CublasLt& library, lt::Desc desc) : library_(library), desc_(desc) {}

  template <typename T>
  T of(lt::Layout layout, int attribute) {
    T value{};
    size_t written = 0;
    ok_ &= library_.layout_get(layout, attribute, &value, sizeof(value), &written) == lt::kSuccess;
    return value;
  }

  template <typename T>
  T desc(int attribute) {
    T value{};
    size_t written = 0;
    ok_ &= library_.desc_get(desc_, attribute, &value, sizeof(value), &written) == lt::kSuccess;
    return value;
  }

  // An attribute that older releases do not know: its default then.
  template <typename T>
  T newer(int attribute) {
    T value{};
    size_t written = 0;
    const bool known =
        library_.desc_get(desc_, attribute, &value, sizeof(value), &written) == lt::kSuccess;
    return known ? value : T{};
  }

  int64_t scale(int pointer, int mode) {
    return desc<void*>(pointer) ? newer<int32_t>(mode) + 1 : 0;
  }

  bool ok() const { return ok_; }

 private:
  const CublasLt& library_;
  lt::Desc desc_;
  bool ok_ = true;
};

Inexpressible read_layouts(Reader& read, const lt::Layout (&layouts)[4], Problem* problem) {
  auto& v = problem->value;
  int64_t rows[4], cols[4];
  for (int i = 0; i < 4; ++i) {
    v[kAType + i] = read.of<uint32_t>(layouts[i], lt::kLayoutType);
    rows[i] = static_cast<int64_t>(read.of<uint64_t>(layouts[i], lt::kLayoutRows));
    cols[i] = static_cast<int64_t>(read.of<uint64_t>(layouts[i], lt::kLayoutCols));
    v[kLda + i] = read.of<int64_t>(layouts[i], lt::kLayoutLd);
    const int32_t batch = read.of<int32_t>(layouts[i], lt::kLayoutBatchCount);
    if (i == 0) v[kBatch] = batch;
    if (batch != v[kBatch]) return Inexpressible::kShape;
    v[kStrideA + i] = batch > 1 ? read.of<int64_t>(layouts[i], lt::kLayoutStride) : 0;
    if (read.of<int32_t>(layouts[i], lt::kLayoutOrder) != 0) return Inexpressible::kLayout;
  }
  if (!read.ok()) return Inexpressible::kAttribute;
  v[kM] = rows[3];
  v[kN] = cols[3];
  v[kK] = v[kTransA] == 0 ? cols[0] : rows[0];
  const int64_t m = v[kTransA] == 0 ? rows[0] : cols[0];
  const int64_t n = v[kTransB] == 0 ? cols[1] : rows[1];
  const int64_t k = v[kTransB] == 0 ? rows[1] : cols[1];
  const bool fits = m == v[kM] && n == v[kN] && k == v[kK] && rows[2] == m && cols[2] == n;
  return fits && m > 0 && n > 0 && k > 0 ? Inexpressible::kNothing : Inexpressible::kShape;
}

Inexpressible read_epilogue(Reader& read, Problem* problem) {
  auto& v = problem->value;
  v[kEpilogueField] = read.desc<uint32_t>(lt::kDescEpilogue);
  v[kBiasType] = v[kAuxType] = kNone;
  v[kAuxLd] = v[kAuxStride] = 0;
  if (has_bias(v[kEpilogueField])) {
    const int32_t type = read.desc<int32_t>(lt::kDescBiasDataType);
    // Products of 8 bits have no bias of 8 bits; C says what it is then.
    v[kBiasType] = type >= 0 ? type : v[is_narrow(v[kDType]) ? kCType : kDType];
    if (v[kBatch] > 1 && read.desc<int64_t>(lt::kDescBiasBatchStride) != 0) {
      return Inexpressible::kOther;
    }
  }
  if (v[kEpilogueField] & lt::kEpilogueAux) {
    const int32_t type = read.desc<int32_t>(lt::kDescAuxDataType);
    v[kAuxType] = type < 0 ? v[kDType] : type;
    v[kAuxLd] = read.desc<int64_t>(lt::kDescAuxLd);
    if (v[kBatch] > 1) v[kAuxStride] = read.desc<int64_t>(lt::kDescAuxBatchStride);
    if (read.newer<void*>(lt::kDescAuxScalePointer)) return Inexpressible::kOther;
    if (read.newer<void*>(lt::kDescAuxAmaxPointer)) return Inexpressible::kOther;
  }
  return Inexpressible::kNothing;
}

Inexpressible read_scales(Reader& read, Problem* problem) {
  auto& v = problem->value;
  for (int field = kScaleA; field <= kFastAccum; ++field) v[field] = 0;
  if (!is_narrow(v[kAType]) && !is_narrow(v[kBType])) return Inexpressible::kNothing;
  v[kScaleA] = read.scale(lt::kDescAScalePointer, lt::kDescAScaleMode);
  v[kScaleB] = read.scale(lt::kDescBScalePointer, lt::kDescBScaleMode);
  v[kScaleC] = read.scale(lt::kDescCScalePointer, lt::kDescCScaleMode);
  v[kScaleD] = read.scale(lt::kDescDScalePointer, lt::kDescDScaleMode);
  v[kAmaxD] = read.desc<void*>(lt::kDescAmaxDPointer) != nullptr;
  v[kFastAccum] = read.desc<int8_t>(lt::kDescFastAccum) != 0;
  const bool scales_out = read.newer<void*>(lt::kDescDOutScalePointer) != nullptr;
  return scales_out ? Inexpressible::kOther : Inexpressible::kNothing;
}

bool has_names(const Problem& problem) {
  for (int field = 0; field < kFields; ++field) {
    if (kInfo[field].kind != Kind::kNumber && !has_name(kInfo[field].kind, problem.value[field])) {
      return false;
    }
  }
  return true;
}

}  // namespace

bool is_narrow(int64_t type) {
  return type == lt::kR8FE4M3 || type == lt::kR8FE5M2 || type == lt::kR4FE2M1;
}

bool has_bias(int64_t epilogue) {
  return epilogue &
         (lt::kEpilogueBias | lt::kEpilogueBGrad | lt::kEpilogueBGradA | lt::kEpilogueBGradB);
}

uint64_t hash_words(const int64_t* words, size_t count) {
  uint64_t hash = 0x9E3779B97F4A7C15u;
  for (size_t i = 0; i < count; ++i) {
    hash = (hash ^ static_cast<uint64_t>(words[i])) * 0xFF51AFD7ED558CCDu;
    hash ^= hash >> 32;
  }
  return hash;
}

const char* inexpressible_name(Inexpressible reason) {
  switch (reason) {
    case Inexpressible::kAttribute:
      return "unreadable descriptor";
    case Inexpressible::kShape:
      return "layouts that do not fit";
    case Inexpressible::kLayout:
      return "memory order";
    case Inexpressible::kPointerMode:
      return "alpha and beta on the device";
    case Inexpressible::kSmCount:
      return "fewer multiprocessors";
    default:
      return "another attribute";
  }
}

Inexpressible read_problem(const CublasLt& library, lt::Desc desc, lt::Layout a, lt::Layout b,
                           lt::Layout c, lt::Layout d, Problem* problem) {
  Reader read(library, desc);
  auto& v = problem->value;
  v[kTransA] = read.desc<int32_t>(lt::kDescTransA);
  v[kTransB] = read.desc<int32_t>(lt::kDescTransB);
  v[kCompute] = read.desc<int32_t>(lt::kDescComputeType);
  v[kScaleType] = read.desc<int32_t>(lt::kDescScaleType);
  if (read.desc<int32_t>(lt::kDescPointerMode) != 0) return Inexpressible::kPointerMode;
  if (read.newer<int32_t>(lt::kDescSmCountTarget) != 0) return Inexpressible::kSmCount;
  Inexpressible reason = read_layouts(read, {a, b, c, d}, problem);
  if (reason == Inexpressible::kNothing) reason = read_epilogue(read, problem);
  if (reason == Inexpressible::kNothing) reason = read_scales(read, problem);
  if (reason != Inexpressible::kNothing) return reason;
  if (!read.ok()) return Inexpressible::kAttribute;
  return has_names(*problem) ? Inexpressible::kNothing : Inexpressible::kOther;
}

std::string print_problem(const Problem& problem) {
  std::string text;
  for (int field = 0; field < kFields; ++field) {
    const FieldInfo& info = kInfo[field];
    const int64_t value = problem.value[field];
    if (value == info.fallback) continue;
    if (!text.empty()) text += ' ';
    text += info.name;
    text += '=';
    const Names names = names_of(info.kind);
    const char* word = nullptr;
    for (const Name* name = names.begin; name != names.end; ++name) {
      if (name->value == value) word = name->text;
    }
    text += word ? std::string(word) : std::to_string(value);
  }
  return text;
}

bool parse_problem(std::string_view text, Problem* problem, std::string* error) {
  bool seen[kFields] = {};
  for (int field = 0; field < kFields; ++field) problem->value[field] = kInfo[field].fallback;
  while (!text.empty()) {
    const std::string_view word = text.substr(0, text.find(' '));
    text.remove_prefix(word.size() < text.size() ? word.size() + 1 : word.size());
    const size_t equals = word.find('=');
    int field = 0;
    while (field < kFields && word.substr(0, equals) != kInfo[field].name) ++field;
    if (equals == std::string_view::npos || field == kFields || seen[field]) {
      *error = "unknown or repeated field: " + std::string(word.substr(0, 40));
      return false;
    }
    seen[field] = true;
    const std::string_view value = word.substr(equals + 1);
    if (!parse_value(kInfo[field].kind, value, &problem->value[field])) {
      *error = "wrong value: " + std::string(word.substr(0, 40));
      return false;
    }
  }
  for (int field = 0; field < kFields; ++field) {
    if (problem->value[field] == kRequired) {
      *error = std::string("missing field: ") + kInfo[field].name;
      return false;
    }
  }
  return true;
}

bool parse_int(std::string_view text, int64_t* value) {
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, *value);
  return result.ec == std::errc() && result.ptr == end;
}

}  // namespace primus
