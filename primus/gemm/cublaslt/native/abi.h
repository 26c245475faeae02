// The part of cuBLASLt's and the CUDA driver's binary interface that is used here, declared anew so
// that no CUDA header is needed to build. check_abi.cpp holds it against the real headers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lt {

using Status = int;  // cublasStatus_t
using Handle = void*;
using Desc = void*;
using Layout = void*;
using Preference = void*;
using Stream = void*;

constexpr Status kSuccess = 0;
constexpr Status kNotInitialized = 1;
constexpr Status kInvalidValue = 7;
constexpr Status kNotSupported = 15;

struct Algo {
  uint64_t data[8];
};

struct HeuristicResult {
  Algo algo;
  size_t workspaceSize;
  Status state;
  float wavesCount;
  int reserved[4];
};

enum LayoutAttribute {
  kLayoutType = 0,
  kLayoutOrder = 1,
  kLayoutRows = 2,
  kLayoutCols = 3,
  kLayoutLd = 4,
  kLayoutBatchCount = 5,
  kLayoutStride = 6,
  kLayoutPlaneOffset = 7,
  kLayoutBatchMode = 8,
};

enum DescAttribute {
  kDescComputeType = 0,
  kDescScaleType = 1,
  kDescPointerMode = 2,
  kDescTransA = 3,
  kDescTransB = 4,
  kDescTransC = 5,
  kDescFillMode = 6,
  kDescEpilogue = 7,
  kDescBiasPointer = 8,
  kDescBiasBatchStride = 10,
  kDescAuxPointer = 11,
  kDescAuxLd = 12,
  kDescAuxBatchStride = 13,
  kDescSmCountTarget = 15,
  kDescAScalePointer = 17,
  kDescBScalePointer = 18,
  kDescCScalePointer = 19,
  kDescDScalePointer = 20,
  kDescAmaxDPointer = 21,
  kDescAuxDataType = 22,
  kDescAuxScalePointer = 23,
  kDescAuxAmaxPointer = 24,
  kDescFastAccum = 25,
  kDescBiasDataType = 26,
  kDescAScaleMode = 31,
  kDescBScaleMode = 32,
  kDescCScaleMode = 33,
  kDescDScaleMode = 34,
  kDescDOutScalePointer = 36,
};

enum PreferenceAttribute {
  kPrefSearchMode = 0,
  kPrefMaxWorkspace = 1,
  kPrefReductionMask = 3,
  kPrefAlignmentA = 5,
  kPrefAlignmentB = 6,
  kPrefAlignmentC = 7,
  kPrefAlignmentD = 8,
  kPrefMaxWaves = 9,
  kPrefImplMask = 12,
};

enum AlgoConfig {
  kConfigId = 0,
  kConfigTile = 1,
  kConfigSplitK = 2,
  kConfigReduction = 3,
  kConfigSwizzle = 4,
  kConfigCustom = 5,
  kConfigStages = 6,
  kConfigInnerShape = 7,
  kConfigClusterShape = 8,
};

enum AlgoCap {
  kCapImplFlags = 15,
  kCapAlignmentA = 16,
  kCapAlignmentB = 17,
  kCapAlignmentC = 18,
  kCapAlignmentD = 19,
};

enum Type {  // cudaDataType
  kR32F = 0,
  kR64F = 1,
  kR16F = 2,
  kR8I = 3,
  kR32I = 10,
  kR16BF = 14,
  kR8FE4M3 = 28,
  kR8FE5M2 = 29,
  kR4FE2M1 = 33,
};

enum Compute {  // cublasComputeType_t
  kCompute16F = 64,
  kCompute32F = 68,
  kCompute64F = 70,
  kCompute32I = 72,
  kCompute32FFast16F = 74,
  kCompute32FFast16BF = 75,
  kCompute32FFastTF32 = 77,
};

// Bits of cublasLtEpilogue_t; its values are sums of these.
enum Epilogue {
  kEpilogueDefault = 1,
  kEpilogueRelu = 2,
  kEpilogueBias = 4,
  kEpilogueDRelu = 8,
  kEpilogueBGrad = 16,
  kEpilogueGelu = 32,
  kEpilogueDGelu = 64,
  kEpilogueAux = 128,
  kEpilogueBGradA = 256,
  kEpilogueBGradB = 512,
};

enum ScaleMode {  // cublasLtMatmulMatrixScale_t
  kScaleScalar32F = 0,
  kScaleVec16UE4M3 = 1,
  kScaleVec32UE8M0 = 2,
  kScaleOuterVec32F = 3,
  kScaleVec128F32 = 4,
  kScaleBlk128x128F32 = 5,
};

constexpr int kFillFull = 2;  // CUBLAS_FILL_MODE_FULL

using LayoutCreate = Status (*)(Layout*, int, uint64_t, uint64_t, int64_t);
using LayoutSet = Status (*)(Layout, int, const void*, size_t);
using LayoutGet = Status (*)(Layout, int, void*, size_t, size_t*);
using Destroy = Status (*)(void*);
using DescCreate = Status (*)(Desc*, int, int);
using DescSet = Status (*)(Desc, int, const void*, size_t);
using DescGet = Status (*)(Desc, int, void*, size_t, size_t*);
using PreferenceCreate = Status (*)(Preference*);
using PreferenceSet = Status (*)(Preference, int, const void*, size_t);
using PreferenceGet = Status (*)(Preference, int, void*, size_t, size_t*);
using AlgoInit = Status (*)(Handle, int, int, int, int, int, int, int, Algo*);
using AlgoCheck =
    Status (*)(Handle, Desc, Layout, Layout, Layout, Layout, const Algo*, HeuristicResult*);
using AlgoConfigSet = Status (*)(Algo*, int, const void*, size_t);
using AlgoConfigGet = Status (*)(const Algo*, int, void*, size_t, size_t*);
using AlgoCapGet = Status (*)(const Algo*, int, void*, size_t, size_t*);
using GetHeuristic = Status (*)(Handle, Desc, Layout, Layout, Layout, Layout, Preference, int,
                                HeuristicResult*, int*);
using Matmul = Status (*)(Handle, Desc, const void*, const void*, Layout, const void*, Layout,
                          const void*, const void*, Layout, void*, Layout, const Algo*, void*,
                          size_t, Stream);
using GetVersion = size_t (*)();
using Create = Status (*)(Handle*);

}  // namespace lt
