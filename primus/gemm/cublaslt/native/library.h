// The real functions behind the interface: looked up at run time, never linked.
#pragma once

#include <string>

#include "abi.h"

namespace primus {

struct CublasLt {
  lt::GetVersion get_version;
  lt::GetHeuristic get_heuristic;
  lt::Matmul matmul;
  lt::LayoutGet layout_get;
  lt::DescGet desc_get;
  lt::PreferenceGet preference_get;
  lt::AlgoInit algo_init;
  lt::AlgoCheck algo_check;
  lt::AlgoConfigSet config_set;
  lt::AlgoConfigGet config_get;
  lt::AlgoCapGet cap_get;
  // Needed to call the library, not to watch its callers.
  lt::Create create;
  lt::LayoutCreate layout_create;
  lt::LayoutSet layout_set;
  lt::Destroy layout_destroy;
  lt::DescCreate desc_create;
  lt::DescSet desc_set;
  lt::Destroy desc_destroy;
  lt::PreferenceCreate preference_create;
  lt::PreferenceSet preference_set;
  lt::Destroy preference_destroy;

  // Looks every function up in a dlopen handle; the name of the first one missing, or empty.
  std::string load(void* handle);
};

// The library that this process has loaded; nullptr where there is none. Resolved once.
const CublasLt* loaded_cublaslt();

struct Device {
  std::string name;
  int multiprocessors = 0;
  int major = 0;
  int minor = 0;
};

// The device of the calling thread's context; false where the driver or a context is missing.
bool current_device(Device* device);

}  // namespace primus
