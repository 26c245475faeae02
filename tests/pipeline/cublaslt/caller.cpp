// Calls cuBLASLt as torch does: a library linked against it, opened by dlopen.
#include <cstddef>

extern "C" {

int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void*,
                                   int*);
int cublasLtMatmul(void*, void*, const void*, const void*, void*, const void*, void*, const void*,
                   const void*, void*, void*, void*, const void*, void*, size_t, void*);

// `times` over, without Python in between, so that threads meet.
int caller_heuristic(void* handle, void* desc, void* a, void* b, void* c, void* d,
                     void* preference, int requested, void* results, int* returned, int times) {
  int status = 0;
  for (int i = 0; i < times; ++i) {
    status = cublasLtMatmulAlgoGetHeuristic(handle, desc, a, b, c, d, preference, requested,
                                            results, returned);
  }
  return status;
}

int caller_matmul(void* handle, void* desc, const void* alpha, const void* a, void* al,
                  const void* b, void* bl, const void* beta, const void* c, void* cl, void* d,
                  void* dl, const void* algo, void* workspace, size_t size, void* stream) {
  return cublasLtMatmul(handle, desc, alpha, a, al, b, bl, beta, c, cl, d, dl, algo, workspace,
                        size, stream);
}

}
