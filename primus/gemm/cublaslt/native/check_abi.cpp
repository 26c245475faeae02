// Holds abi.h against the real headers, where a machine has them. Compiled, never linked.
#include <type_traits>

#include <cublasLt.h>

#include "abi.h"

#define SAME(ours, theirs) \
  static_assert(static_cast<long long>(ours) == static_cast<long long>(theirs), #ours " differs")

static_assert(sizeof(lt::Algo) == sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(lt::HeuristicResult) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(alignof(lt::HeuristicResult) == alignof(cublasLtMatmulHeuristicResult_t));
SAME(offsetof(lt::HeuristicResult, algo), offsetof(cublasLtMatmulHeuristicResult_t, algo));
SAME(offsetof(lt::HeuristicResult, workspaceSize),
     offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
SAME(offsetof(lt::HeuristicResult, state), offsetof(cublasLtMatmulHeuristicResult_t, state));
SAME(offsetof(lt::HeuristicResult, wavesCount),
     offsetof(cublasLtMatmulHeuristicResult_t, wavesCount));
static_assert(sizeof(cublasStatus_t) == sizeof(lt::Status));
static_assert(sizeof(cublasLtMatmulDescAttributes_t) == sizeof(int));
static_assert(sizeof(cublasComputeType_t) == sizeof(int));
static_assert(sizeof(cudaDataType_t) == sizeof(int));
static_assert(std::is_pointer<cublasLtHandle_t>::value);
static_assert(std::is_pointer<cublasLtMatmulDesc_t>::value);
static_assert(std::is_pointer<cublasLtMatrixLayout_t>::value);
static_assert(std::is_pointer<cublasLtMatmulPreference_t>::value);

SAME(lt::kSuccess, CUBLAS_STATUS_SUCCESS);
SAME(lt::kNotInitialized, CUBLAS_STATUS_NOT_INITIALIZED);
SAME(lt::kInvalidValue, CUBLAS_STATUS_INVALID_VALUE);
SAME(lt::kNotSupported, CUBLAS_STATUS_NOT_SUPPORTED);

SAME(lt::kLayoutType, CUBLASLT_MATRIX_LAYOUT_TYPE);
SAME(lt::kLayoutOrder, CUBLASLT_MATRIX_LAYOUT_ORDER);
SAME(lt::kLayoutRows, CUBLASLT_MATRIX_LAYOUT_ROWS);
SAME(lt::kLayoutCols, CUBLASLT_MATRIX_LAYOUT_COLS);
SAME(lt::kLayoutLd, CUBLASLT_MATRIX_LAYOUT_LD);
SAME(lt::kLayoutBatchCount, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT);
SAME(lt::kLayoutStride, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET);
SAME(lt::kLayoutPlaneOffset, CUBLASLT_MATRIX_LAYOUT_PLANE_OFFSET);

SAME(lt::kDescComputeType, CUBLASLT_MATMUL_DESC_COMPUTE_TYPE);
SAME(lt::kDescScaleType, CUBLASLT_MATMUL_DESC_SCALE_TYPE);
SAME(lt::kDescPointerMode, CUBLASLT_MATMUL_DESC_POINTER_MODE);
SAME(lt::kDescTransA, CUBLASLT_MATMUL_DESC_TRANSA);
SAME(lt::kDescTransB, CUBLASLT_MATMUL_DESC_TRANSB);
SAME(lt::kDescTransC, CUBLASLT_MATMUL_DESC_TRANSC);
SAME(lt::kDescFillMode, CUBLASLT_MATMUL_DESC_FILL_MODE);
SAME(lt::kDescEpilogue, CUBLASLT_MATMUL_DESC_EPILOGUE);
SAME(lt::kDescBiasPointer, CUBLASLT_MATMUL_DESC_BIAS_POINTER);
SAME(lt::kDescBiasBatchStride, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE);
SAME(lt::kDescAuxPointer, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER);
SAME(lt::kDescAuxLd, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD);
SAME(lt::kDescAuxBatchStride, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE);
SAME(lt::kDescSmCountTarget, CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET);
SAME(lt::kDescAScalePointer, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER);
SAME(lt::kDescBScalePointer, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER);
SAME(lt::kDescCScalePointer, CUBLASLT_MATMUL_DESC_C_SCALE_POINTER);
SAME(lt::kDescDScalePointer, CUBLASLT_MATMUL_DESC_D_SCALE_POINTER);
SAME(lt::kDescAmaxDPointer, CUBLASLT_MATMUL_DESC_AMAX_D_POINTER);
SAME(lt::kDescAuxDataType, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE);
SAME(lt::kDescAuxScalePointer, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_SCALE_POINTER);
SAME(lt::kDescAuxAmaxPointer, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_AMAX_POINTER);
SAME(lt::kDescFastAccum, CUBLASLT_MATMUL_DESC_FAST_ACCUM);
SAME(lt::kDescBiasDataType, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE);

SAME(lt::kPrefSearchMode, CUBLASLT_MATMUL_PREF_SEARCH_MODE);
SAME(lt::kPrefMaxWorkspace, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(lt::kPrefReductionMask, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
SAME(lt::kPrefAlignmentA, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
SAME(lt::kPrefAlignmentB, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
SAME(lt::kPrefAlignmentC, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
SAME(lt::kPrefAlignmentD, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
SAME(lt::kPrefMaxWaves, CUBLASLT_MATMUL_PREF_MAX_WAVES_COUNT);
SAME(lt::kPrefImplMask, CUBLASLT_MATMUL_PREF_IMPL_MASK);

SAME(lt::kConfigId, CUBLASLT_ALGO_CONFIG_ID);
SAME(lt::kConfigTile, CUBLASLT_ALGO_CONFIG_TILE_ID);
SAME(lt::kConfigSplitK, CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
SAME(lt::kConfigReduction, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
SAME(lt::kConfigSwizzle, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING);
SAME(lt::kConfigCustom, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION);
SAME(lt::kConfigStages, CUBLASLT_ALGO_CONFIG_STAGES_ID);
SAME(lt::kConfigInnerShape, CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID);
SAME(lt::kConfigClusterShape, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID);

SAME(lt::kCapImplFlags, CUBLASLT_ALGO_CAP_NUMERICAL_IMPL_FLAGS);
SAME(lt::kCapAlignmentA, CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_A_BYTES);
SAME(lt::kCapAlignmentB, CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_B_BYTES);
SAME(lt::kCapAlignmentC, CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_C_BYTES);
SAME(lt::kCapAlignmentD, CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_D_BYTES);

SAME(lt::kR32F, CUDA_R_32F);
SAME(lt::kR64F, CUDA_R_64F);
SAME(lt::kR16F, CUDA_R_16F);
SAME(lt::kR8I, CUDA_R_8I);
SAME(lt::kR32I, CUDA_R_32I);
SAME(lt::kR16BF, CUDA_R_16BF);
SAME(lt::kR8FE4M3, CUDA_R_8F_E4M3);
SAME(lt::kR8FE5M2, CUDA_R_8F_E5M2);

SAME(lt::kCompute16F, CUBLAS_COMPUTE_16F);
SAME(lt::kCompute32F, CUBLAS_COMPUTE_32F);
SAME(lt::kCompute64F, CUBLAS_COMPUTE_64F);
SAME(lt::kCompute32I, CUBLAS_COMPUTE_32I);
SAME(lt::kCompute32FFast16F, CUBLAS_COMPUTE_32F_FAST_16F);
SAME(lt::kCompute32FFast16BF, CUBLAS_COMPUTE_32F_FAST_16BF);
SAME(lt::kCompute32FFastTF32, CUBLAS_COMPUTE_32F_FAST_TF32);

SAME(lt::kEpilogueDefault, CUBLASLT_EPILOGUE_DEFAULT);
SAME(lt::kEpilogueRelu, CUBLASLT_EPILOGUE_RELU);
SAME(lt::kEpilogueBias, CUBLASLT_EPILOGUE_BIAS);
SAME(lt::kEpilogueDRelu | lt::kEpilogueAux, CUBLASLT_EPILOGUE_DRELU);
SAME(lt::kEpilogueDRelu | lt::kEpilogueAux | lt::kEpilogueBGrad, CUBLASLT_EPILOGUE_DRELU_BGRAD);
SAME(lt::kEpilogueGelu, CUBLASLT_EPILOGUE_GELU);
SAME(lt::kEpilogueGelu | lt::kEpilogueAux | lt::kEpilogueBias, CUBLASLT_EPILOGUE_GELU_AUX_BIAS);
SAME(lt::kEpilogueDGelu | lt::kEpilogueAux, CUBLASLT_EPILOGUE_DGELU);
SAME(lt::kEpilogueDGelu | lt::kEpilogueAux | lt::kEpilogueBGrad, CUBLASLT_EPILOGUE_DGELU_BGRAD);
SAME(lt::kEpilogueBGradA, CUBLASLT_EPILOGUE_BGRADA);
SAME(lt::kEpilogueBGradB, CUBLASLT_EPILOGUE_BGRADB);

SAME(lt::kFillFull, CUBLAS_FILL_MODE_FULL);

#if CUBLAS_VERSION >= 120800
SAME(lt::kR4FE2M1, CUDA_R_4F_E2M1);
SAME(lt::kDescAScaleMode, CUBLASLT_MATMUL_DESC_A_SCALE_MODE);
SAME(lt::kDescBScaleMode, CUBLASLT_MATMUL_DESC_B_SCALE_MODE);
SAME(lt::kDescCScaleMode, CUBLASLT_MATMUL_DESC_C_SCALE_MODE);
SAME(lt::kDescDScaleMode, CUBLASLT_MATMUL_DESC_D_SCALE_MODE);
SAME(lt::kDescDOutScalePointer, CUBLASLT_MATMUL_DESC_D_OUT_SCALE_POINTER);
SAME(lt::kScaleScalar32F, CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F);
SAME(lt::kScaleVec16UE4M3, CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3);
SAME(lt::kScaleVec32UE8M0, CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0);
#endif
#if CUBLAS_VERSION >= 120900
SAME(lt::kScaleOuterVec32F, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
SAME(lt::kScaleVec128F32, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
SAME(lt::kScaleBlk128x128F32, CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F);
#endif
#if CUBLAS_VERSION >= 130000
SAME(lt::kLayoutBatchMode, CUBLASLT_MATRIX_LAYOUT_BATCH_MODE);
#endif

// The interposed functions, argument by argument: pointers, ints and sizes in the same places.
extern "C" int ours_heuristic(void*, void*, void*, void*, void*, void*, void*, int,
                              lt::HeuristicResult*, int*);
static_assert(std::is_same<decltype(&ours_heuristic), lt::GetHeuristic>::value);

template <typename... Theirs, typename... Ours>
constexpr bool alike(cublasStatus_t (*)(Theirs...), lt::Status (*)(Ours...)) {
  static_assert(sizeof...(Theirs) == sizeof...(Ours));
  return ((sizeof(Theirs) == sizeof(Ours) &&
           std::is_pointer<Theirs>::value == std::is_pointer<Ours>::value) && ...);
}
#define ALIKE(name, ours) static_assert(alike(&name, static_cast<lt::ours>(nullptr)))
ALIKE(cublasLtMatmulAlgoGetHeuristic, GetHeuristic);
ALIKE(cublasLtMatmul, Matmul);
ALIKE(cublasLtMatrixLayoutCreate, LayoutCreate);
ALIKE(cublasLtMatrixLayoutSetAttribute, LayoutSet);
ALIKE(cublasLtMatrixLayoutGetAttribute, LayoutGet);
ALIKE(cublasLtMatmulDescCreate, DescCreate);
ALIKE(cublasLtMatmulDescSetAttribute, DescSet);
ALIKE(cublasLtMatmulDescGetAttribute, DescGet);
ALIKE(cublasLtMatmulPreferenceCreate, PreferenceCreate);
ALIKE(cublasLtMatmulPreferenceSetAttribute, PreferenceSet);
ALIKE(cublasLtMatmulPreferenceGetAttribute, PreferenceGet);
ALIKE(cublasLtMatmulAlgoInit, AlgoInit);
ALIKE(cublasLtMatmulAlgoCheck, AlgoCheck);
ALIKE(cublasLtMatmulAlgoConfigSetAttribute, AlgoConfigSet);
ALIKE(cublasLtMatmulAlgoConfigGetAttribute, AlgoConfigGet);
ALIKE(cublasLtMatmulAlgoCapGetAttribute, AlgoCapGet);
ALIKE(cublasLtCreate, Create);
