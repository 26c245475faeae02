#include "driver.h"

#include <algorithm>
#include <utility>

#include <dlfcn.h>

namespace primus {

namespace {

template <typename Function>
void look_up(void* handle, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(handle, name));
  if (!*function) throw Failure(std::string("the CUDA driver has no ") + name);
}

}  // namespace

void Driver::open() {
  void* handle = dlopen("libcuda.so.1", RTLD_LAZY);
  if (!handle) throw Failure("no CUDA driver (libcuda.so.1)");
  look_up(handle, "cuInit", &init);
  look_up(handle, "cuDriverGetVersion", &get_version);
  look_up(handle, "cuDeviceGetCount", &get_count);
  look_up(handle, "cuDeviceGet", &get_device);
  look_up(handle, "cuDeviceGetName", &get_name);
  look_up(handle, "cuDeviceGetAttribute", &get_attribute);
  look_up(handle, "cuDevicePrimaryCtxRetain", &retain_context);
  look_up(handle, "cuCtxSetCurrent", &set_context);
  look_up(handle, "cuCtxSynchronize", &synchronize);
  look_up(handle, "cuMemGetInfo_v2", &memory_info);
  look_up(handle, "cuMemAlloc_v2", &allocate);
  look_up(handle, "cuMemFree_v2", &release);
  look_up(handle, "cuMemcpyHtoD_v2", &to_device);
  look_up(handle, "cuMemcpyDtoH_v2", &to_host);
  look_up(handle, "cuMemcpyDtoD_v2", &on_device);
  look_up(handle, "cuEventCreate", &create_event);
  look_up(handle, "cuEventRecord", &record_event);
  look_up(handle, "cuEventSynchronize", &wait_event);
  look_up(handle, "cuEventElapsedTime", &elapsed);
}

void need(int status, const char* what) {
  if (status != 0) throw Failure(std::string(what) + ": CUDA error " + std::to_string(status));
}

Memory::Memory(const Driver& driver, size_t bytes) : driver_(&driver), bytes_(bytes) {
  need(driver.allocate(&pointer_, std::max<size_t>(bytes, 256)), "allocate operands");
}

Memory::~Memory() {
  if (pointer_) driver_->release(pointer_);
}

Memory::Memory(Memory&& other) noexcept { *this = std::move(other); }

Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(driver_, other.driver_);
  std::swap(pointer_, other.pointer_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void Memory::fill(const void* pattern, size_t length) {
  size_t done = std::min(length, bytes_);
  need(driver_->to_device(pointer_, pattern, done), "copy operands");
  while (done < bytes_) {  // whole periods, so that the pattern goes on
    const size_t next = std::min(done, bytes_ - done);
    need(driver_->on_device(pointer_ + done, pointer_, next), "copy operands");
    done += next;
  }
  need(driver_->synchronize(), "copy operands");
}

}  // namespace primus
