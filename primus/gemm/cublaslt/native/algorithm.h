// One configuration of one of cuBLASLt's algorithms, by the name that TunableOp will use.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "library.h"
#include "problem.h"

namespace primus {

struct Algorithm {
  int32_t id = 0;
  uint32_t tile = 0;
  uint32_t stages = 0;
  int32_t splitk = 0;
  uint32_t reduction = 0;
  uint32_t swizzle = 0;
  uint32_t custom = 0;
  uint16_t inner = 0;
  uint16_t cluster = 0;
};

std::string print_algorithm(const Algorithm& algorithm);
bool parse_algorithm(std::string_view text, Algorithm* algorithm);

// Reads the configuration out of the library's own form.
bool read_algorithm(const CublasLt& library, const lt::Algo& algo, Algorithm* algorithm);

// Builds the library's form; false where the library refuses an attribute.
bool build_algorithm(const CublasLt& library, lt::Handle handle, const Problem& problem,
                     const Algorithm& algorithm, lt::Algo* algo);

}  // namespace primus
