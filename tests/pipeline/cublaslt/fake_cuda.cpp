// A fake of the CUDA driver (libcuda.so.1): device memory is the host's, time is a counter that the
// fake of cuBLASLt moves on.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

double microseconds = 0;
int fault = 0;

}  // namespace

extern "C" {

void fake_cuda_advance(double by) { microseconds += by; }
void fake_cuda_fault(int status) { fault = status; }

int cuInit(unsigned) { return std::getenv("FAKE_NO_DEVICE") ? 100 : 0; }
int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}
int cuDeviceGetCount(int* count) {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  *count = visible ? 1 : 2;
  return 0;
}
int cuDeviceGet(int* device, int number) {
  *device = number;
  return 0;
}
int cuCtxGetDevice(int* device) {
  *device = 0;
  return 0;
}
int cuDeviceGetName(char* name, int size, int) {
  const char* given = std::getenv("FAKE_DEVICE");
  std::snprintf(name, static_cast<size_t>(size), "%s", given ? given : "Fake GPU");
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 16:
      *value = 132;
      return 0;
    case 38:
      *value = 1 << 16;
      return 0;
    case 75:
      *value = 9;
      return 0;
    case 76:
      *value = 0;
      return 0;
  }
  return 1;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &microseconds;
  return 0;
}
int cuCtxSetCurrent(void*) { return 0; }
int cuCtxSynchronize() { return fault; }
int cuMemGetInfo_v2(size_t* free, size_t* total) {
  *free = *total = size_t{1} << 30;
  return 0;
}
int cuMemAlloc_v2(uint64_t* pointer, size_t bytes) {
  *pointer = reinterpret_cast<uint64_t>(std::aligned_alloc(512, (bytes + 511) / 512 * 512));
  return *pointer ? 0 : 2;
}
int cuMemFree_v2(uint64_t pointer) {
  std::free(reinterpret_cast<void*>(pointer));
  return 0;
}
int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  return fault;
}
int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
  std::memcpy(to, reinterpret_cast<void*>(from), bytes);
  return fault;
}
int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) {
  std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
  microseconds += static_cast<double>(bytes) / 1e6;
  return fault;
}
int cuEventCreate(void** event, unsigned) {
  *event = new double(0);
  return 0;
}
int cuEventRecord(void* event, void*) {
  *static_cast<double*>(event) = microseconds;
  return fault;
}
int cuEventSynchronize(void*) { return fault; }
int cuEventElapsedTime(float* milliseconds, void* begin, void* end) {
  const double passed = *static_cast<double*>(end) - *static_cast<double*>(begin);
  *milliseconds = static_cast<float>(passed / 1000);
  return fault;
}

}  // extern "C"
