// A GEMM problem as cuBLASLt's descriptors say it: what a look-up is keyed by, and its text form.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "library.h"

namespace primus {

// The names in the text are those of primus/gemm/problem.py, except epilogue, aux_ld, aux_stride
// and fast_accum.
enum Field {
  kTransA,
  kTransB,
  kM,
  kN,
  kK,
  kBatch,
  kAType,
  kBType,
  kCType,
  kDType,
  kCompute,
  kScaleType,
  kLda,
  kLdb,
  kLdc,
  kLdd,
  kStrideA,
  kStrideB,
  kStrideC,
  kStrideD,
  kEpilogueField,
  kBiasType,
  kAuxType,
  kAuxLd,
  kAuxStride,
  kScaleA,
  kScaleB,
  kScaleC,
  kScaleD,
  kAmaxD,
  kFastAccum,
  kFields,
};

struct Problem {
  std::array<int64_t, kFields> value;

  int64_t operator[](Field field) const { return value[field]; }
  bool operator==(const Problem& other) const { return value == other.value; }
};

uint64_t hash_words(const int64_t* words, size_t count);

struct ProblemHash {
  size_t operator()(const Problem& p) const { return hash_words(p.value.data(), kFields); }
};

// Why a call cannot be described by a Problem; such calls are left alone and counted.
enum class Inexpressible {
  kNothing,
  kAttribute,    // the library does not answer
  kShape,        // the four layouts do not fit together
  kLayout,       // another memory order, batch mode or planar layout
  kPointerMode,  // alpha and beta are not host scalars
  kSmCount,      // fewer multiprocessors than the device has
  kOther,
  kCount,
};
const char* inexpressible_name(Inexpressible reason);

// Reads a problem from a call's descriptors.
Inexpressible read_problem(const CublasLt& library, lt::Desc desc, lt::Layout a, lt::Layout b,
                           lt::Layout c, lt::Layout d, Problem* problem);

// `transA=T transB=N m=… …`; fields that hold their default are left out.
std::string print_problem(const Problem& problem);

// Reads what print_problem wrote; false with the reason on anything else.
bool parse_problem(std::string_view text, Problem* problem, std::string* error);

bool is_narrow(int64_t type);  // 8 bits or fewer, with scale factors
bool has_bias(int64_t epilogue);

// Integer of exactly this text; false on anything else.
bool parse_int(std::string_view text, int64_t* value);

}  // namespace primus
