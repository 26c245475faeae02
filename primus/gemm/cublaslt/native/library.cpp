#include "library.h"

#include <string_view>

#include <dlfcn.h>
#include <link.h>

namespace primus {

namespace {

constexpr std::string_view kPrefix = "libcublasLt.so";

template <typename Function>
void look_up(void* handle, const char* name, Function* function, std::string* missing) {
  *function = reinterpret_cast<Function>(dlsym(handle, name));
  if (!*function && missing->empty()) *missing = name;
}

int is_cublaslt(dl_phdr_info* object, size_t, void* path) {
  const std::string name = object->dlpi_name ? object->dlpi_name : "";
  if (name.compare(name.find_last_of('/') + 1, kPrefix.size(), kPrefix) != 0) return 0;
  *static_cast<std::string*>(path) = name;
  return 1;
}

// RTLD_NEXT finds nothing where the caller's library was itself opened by dlopen, as Python opens
// torch; asking for the object that is loaded, by its path, does. One release per process is
// assumed.
void* loaded_handle() {
  std::string path;
  if (!dl_iterate_phdr(is_cublaslt, &path)) return nullptr;
  return dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
}

const CublasLt* resolve() {
  static CublasLt library;
  void* handle = loaded_handle();
  if (!handle) handle = RTLD_NEXT;
  return library.load(handle).empty() ? &library : nullptr;
}

constexpr int kMultiprocessorCount = 16;  // CUdevice_attribute
constexpr int kCapabilityMajor = 75;
constexpr int kCapabilityMinor = 76;

}  // namespace

std::string CublasLt::load(void* handle) {
  std::string missing;
  look_up(handle, "cublasLtGetVersion", &get_version, &missing);
  look_up(handle, "cublasLtMatmulAlgoGetHeuristic", &get_heuristic, &missing);
  look_up(handle, "cublasLtMatmul", &matmul, &missing);
  look_up(handle, "cublasLtMatrixLayoutGetAttribute", &layout_get, &missing);
  look_up(handle, "cublasLtMatmulDescGetAttribute", &desc_get, &missing);
  look_up(handle, "cublasLtMatmulPreferenceGetAttribute", &preference_get, &missing);
  look_up(handle, "cublasLtMatmulAlgoInit", &algo_init, &missing);
  look_up(handle, "cublasLtMatmulAlgoCheck", &algo_check, &missing);
  look_up(handle, "cublasLtMatmulAlgoConfigSetAttribute", &config_set, &missing);
  look_up(handle, "cublasLtMatmulAlgoConfigGetAttribute", &config_get, &missing);
  look_up(handle, "cublasLtMatmulAlgoCapGetAttribute", &cap_get, &missing);
  look_up(handle, "cublasLtCreate", &create, &missing);
  look_up(handle, "cublasLtMatrixLayoutCreate", &layout_create, &missing);
  look_up(handle, "cublasLtMatrixLayoutSetAttribute", &layout_set, &missing);
  look_up(handle, "cublasLtMatrixLayoutDestroy", &layout_destroy, &missing);
  look_up(handle, "cublasLtMatmulDescCreate", &desc_create, &missing);
  look_up(handle, "cublasLtMatmulDescSetAttribute", &desc_set, &missing);
  look_up(handle, "cublasLtMatmulDescDestroy", &desc_destroy, &missing);
  look_up(handle, "cublasLtMatmulPreferenceCreate", &preference_create, &missing);
  look_up(handle, "cublasLtMatmulPreferenceSetAttribute", &preference_set, &missing);
  look_up(handle, "cublasLtMatmulPreferenceDestroy", &preference_destroy, &missing);
  return missing;
}

const CublasLt* loaded_cublaslt() {
  static const CublasLt* library = resolve();
  return library;
}

bool current_device(Device* device) {
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  if (!driver) return false;
  auto get_device = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuCtxGetDevice"));
  auto get_name = reinterpret_cast<int (*)(char*, int, int)>(dlsym(driver, "cuDeviceGetName"));
  auto get = reinterpret_cast<int (*)(int*, int, int)>(dlsym(driver, "cuDeviceGetAttribute"));
  int number = 0;
  char name[256] = "";
  if (!get_device || !get_name || !get || get_device(&number) != 0) return false;
  if (get_name(name, sizeof(name), number) != 0 ||
      get(&device->multiprocessors, kMultiprocessorCount, number) != 0 ||
      get(&device->major, kCapabilityMajor, number) != 0 ||
      get(&device->minor, kCapabilityMinor, number) != 0) {
    return false;
  }
  device->name = name;
  return true;
}

}  // namespace primus
