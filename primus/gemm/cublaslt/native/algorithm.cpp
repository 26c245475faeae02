#include "algorithm.h"

#include <cstdio>
#include <limits>

namespace primus {

namespace {

template <typename T>
bool get(const CublasLt& library, const lt::Algo& algo, int attribute, T* value) {
  size_t written = 0;
  return library.config_get(&algo, attribute, value, sizeof(*value), &written) == lt::kSuccess;
}

template <typename T>
bool set(const CublasLt& library, lt::Algo* algo, int attribute, T value) {
  // What AlgoInit leaves is 0; a release that does not know a newer attribute needs no 0 for it.
  return library.config_set(algo, attribute, &value, sizeof(value)) == lt::kSuccess || value == 0;
}

// Takes `name` and the number after it off the front of the text.
template <typename T>
bool take(std::string_view* text, std::string_view name, T* value) {
  if (text->substr(0, name.size()) != name) return false;
  text->remove_prefix(name.size());
  const std::string_view digits = text->substr(0, text->find('_'));
  int64_t number = 0;
  if (!parse_int(digits, &number) || number < std::numeric_limits<T>::min() ||
      number > std::numeric_limits<T>::max()) {
    return false;
  }
  *value = static_cast<T>(number);
  text->remove_prefix(digits.size());
  return true;
}

}  // namespace

std::string print_algorithm(const Algorithm& a) {
  char text[256];
  std::snprintf(text, sizeof(text),
                "Gemm_Cublaslt_id_%d_tile_%u_stages_%u_splitk_%d_red_%u_swizzle_%u_custom_%u"
                "_inner_%hu_cluster_%hu",
                a.id, a.tile, a.stages, a.splitk, a.reduction, a.swizzle, a.custom, a.inner,
                a.cluster);
  return text;
}

bool parse_algorithm(std::string_view text, Algorithm* a) {
  return take(&text, "Gemm_Cublaslt_id_", &a->id) && take(&text, "_tile_", &a->tile) &&
         take(&text, "_stages_", &a->stages) && take(&text, "_splitk_", &a->splitk) &&
         take(&text, "_red_", &a->reduction) && take(&text, "_swizzle_", &a->swizzle) &&
         take(&text, "_custom_", &a->custom) && take(&text, "_inner_", &a->inner) &&
         take(&text, "_cluster_", &a->cluster) && text.empty();
}

bool read_algorithm(const CublasLt& library, const lt::Algo& algo, Algorithm* a) {
  *a = Algorithm();
  const bool known = get(library, algo, lt::kConfigId, &a->id) &&
                     get(library, algo, lt::kConfigTile, &a->tile) &&
                     get(library, algo, lt::kConfigStages, &a->stages) &&
                     get(library, algo, lt::kConfigSplitK, &a->splitk) &&
                     get(library, algo, lt::kConfigReduction, &a->reduction) &&
                     get(library, algo, lt::kConfigSwizzle, &a->swizzle) &&
                     get(library, algo, lt::kConfigCustom, &a->custom);
  get(library, algo, lt::kConfigInnerShape, &a->inner);
  get(library, algo, lt::kConfigClusterShape, &a->cluster);
  return known;
}

bool build_algorithm(const CublasLt& library, lt::Handle handle, const Problem& p,
                     const Algorithm& a, lt::Algo* algo) {
  const auto type = [&p](Field field) { return static_cast<int>(p[field]); };
  return library.algo_init(handle, type(kCompute), type(kScaleType), type(kAType), type(kBType),
                           type(kCType), type(kDType), a.id, algo) == lt::kSuccess &&
         set(library, algo, lt::kConfigTile, a.tile) &&
         set(library, algo, lt::kConfigStages, a.stages) &&
         set(library, algo, lt::kConfigSplitK, a.splitk) &&
         set(library, algo, lt::kConfigReduction, a.reduction) &&
         set(library, algo, lt::kConfigSwizzle, a.swizzle) &&
         set(library, algo, lt::kConfigCustom, a.custom) &&
         set(library, algo, lt::kConfigInnerShape, a.inner) &&
         set(library, algo, lt::kConfigClusterShape, a.cluster);
}

}  // namespace primus
