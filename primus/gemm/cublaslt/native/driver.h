// The few calls of the CUDA driver that the tuner needs, looked up at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace primus {

using DevicePointer = uint64_t;  // CUdeviceptr

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Driver {
  int (*init)(unsigned);
  int (*get_version)(int*);
  int (*get_count)(int*);
  int (*get_device)(int*, int);
  int (*get_name)(char*, int, int);
  int (*get_attribute)(int*, int, int);
  int (*retain_context)(void**, int);
  int (*set_context)(void*);
  int (*synchronize)();
  int (*memory_info)(size_t*, size_t*);
  int (*allocate)(DevicePointer*, size_t);
  int (*release)(DevicePointer);
  int (*to_device)(DevicePointer, const void*, size_t);
  int (*to_host)(void*, DevicePointer, size_t);
  int (*on_device)(DevicePointer, DevicePointer, size_t);
  int (*create_event)(void**, unsigned);
  int (*record_event)(void*, void*);
  int (*wait_event)(void*);
  int (*elapsed)(float*, void*, void*);

  // Opens libcuda.so.1; throws Failure.
  void open();
};

// Throws Failure when a driver call's status is not 0.
void need(int status, const char* what);

// Device memory that frees itself.
class Memory {
 public:
  Memory() = default;
  Memory(const Driver& driver, size_t bytes);
  ~Memory();
  Memory(Memory&& other) noexcept;
  Memory& operator=(Memory&& other) noexcept;

  // Fills it with a pattern of host bytes, over and over.
  void fill(const void* pattern, size_t length);

  DevicePointer at() const { return pointer_; }
  void* pointer() const { return reinterpret_cast<void*>(pointer_); }
  size_t bytes() const { return bytes_; }

 private:
  const Driver* driver_ = nullptr;
  DevicePointer pointer_ = 0;
  size_t bytes_ = 0;
};

}  // namespace primus
