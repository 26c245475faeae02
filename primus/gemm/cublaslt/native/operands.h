// Random operands of a problem on the device, and what its result should be, computed on the host.
#pragma once

#include <vector>

#include "driver.h"
#include "problem.h"

namespace primus {

// Repeats in every matrix; its length is prime, so that rows and columns do not repeat.
class Pattern {
 public:
  Pattern(int64_t type, uint32_t seed);

  // Made once per type and seed; nullptr for a type that is none.
  static const Pattern* of(int64_t type, uint32_t seed);

  const std::vector<unsigned char>& bytes() const { return bytes_; }
  double at(uint64_t index) const { return values_[index % values_.size()]; }

 private:
  std::vector<unsigned char> bytes_;
  std::vector<double> values_;
};

double element_bytes(int64_t type);
double decode(int64_t type, const unsigned char* data, uint64_t index);

// Elements from the first to the last that a matrix of the problem touches.
uint64_t span(const Problem& problem, Field leading, Field stride, int64_t columns, int64_t rows);

struct Operands {
  // One set for each of several calls in a row, so that a call finds none of them in the cache.
  struct Set {
    Memory a, b, c, d;
  };
  std::vector<Set> sets;
  Memory bias, aux, scale[4], amax;
};

// What D's elements should be, in float64; the patterns are those that filled the operands.
class Reference {
 public:
  Reference(const Problem& problem, double alpha, double beta);

  Operands make(const Driver& driver, size_t rotate_bytes) const;
  bool known() const;  // whether element() knows the epilogue
  double element(int64_t batch, int64_t row, int64_t column) const;

  uint64_t d_elements() const;
  void reset_d(const Operands::Set& set, const Driver& driver) const;

 private:
  Memory filled(const Driver& driver, const Pattern* pattern, int64_t type,
                uint64_t elements) const;
  bool in_place() const;

  Problem problem_;
  double alpha_, beta_;
  const Pattern *a_, *b_, *c_, *d_, *bias_, *aux_;
};

}  // namespace primus
