// A block-scaled product from CUTLASS's own parts, put together as its example 67 does: tiles of
// 128 x 128 x 128, clusters of two along n, cooperative warpgroups. minigemm/bench/peers/cutlass.py
// compiles it against the headers of the nvidia-cutlass wheel and calls it through ctypes; it is no
// part of the library.

#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/util/packed_stride.hpp>

using cute::_1, cute::_2, cute::_128;
using cutlass::make_cute_packed_stride;

using Input = cutlass::float_e4m3_t;
using Output = cutlass::bfloat16_t;
using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;
using TileShape = cute::Shape<_128, _128, _128>;
using ClusterShape = cute::Shape<_1, _2, _1>;

// As in minigemm: a has a scale for 1 x 128 elements, M-major; b for 128 x 128, row-major.
using Scales = cutlass::detail::Sm90BlockwiseScaleConfig<
    1, 128, 128, cute::GMMA::Major::MN, cute::GMMA::Major::K>;
using LayoutA = cute::tuple<RowMajor, decltype(Scales::deduce_layoutSFA())>;
using LayoutB = cute::tuple<ColumnMajor, decltype(Scales::deduce_layoutSFB())>;

constexpr int kInputAlignment = 16;  // elements in 16 bytes
constexpr int kOutputAlignment = 8;

using Epilogue = cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, TileShape, ClusterShape,
    cutlass::epilogue::collective::EpilogueTileAuto, float, float,
    void, RowMajor, kOutputAlignment, Output, RowMajor, kOutputAlignment,
    cutlass::epilogue::TmaWarpSpecializedCooperative>::CollectiveOp;

constexpr int kEpilogueBytes = static_cast<int>(sizeof(typename Epilogue::SharedStorage));

using Mainloop = cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp,
    Input, LayoutA, kInputAlignment, Input, LayoutB, kInputAlignment, float,
    TileShape, ClusterShape, cutlass::gemm::collective::StageCountAutoCarveout<kEpilogueBytes>,
    cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8Blockwise>::CollectiveOp;

using Kernel =
    cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Epilogue>;
using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

// d (m, n) = a (m, k) @ b (n, k).T on `stream`. Returns 0, or the cutlass::Status of a failure.
extern "C" int block_scaled_gemm(const void* a, const void* sfa, const void* b, const void* sfb,
                                 void* d, int m, int n, int k, cudaStream_t stream) {
  auto problem = cute::make_shape(m, n, k, 1);
  auto stride_a = make_cute_packed_stride(typename Kernel::StrideA{}, cute::make_shape(m, k, 1));
  auto stride_b = make_cute_packed_stride(typename Kernel::StrideB{}, cute::make_shape(n, k, 1));
  auto stride_c = make_cute_packed_stride(typename Kernel::StrideC{}, cute::make_shape(m, n, 1));
  auto stride_d = make_cute_packed_stride(typename Kernel::StrideD{}, cute::make_shape(m, n, 1));

  typename Gemm::Arguments arguments{
      cutlass::gemm::GemmUniversalMode::kGemm,
      problem,
      {static_cast<const Input*>(a), stride_a, static_cast<const Input*>(b), stride_b,
       static_cast<const float*>(sfa), Scales::tile_atom_to_shape_SFA(problem),
       static_cast<const float*>(sfb), Scales::tile_atom_to_shape_SFB(problem)},
      {{}, nullptr, stride_c, static_cast<Output*>(d), stride_d}};

  static Gemm gemm;
  if (Gemm::get_workspace_size(arguments) != 0)
    return static_cast<int>(cutlass::Status::kErrorWorkspaceNull);
  auto status = gemm.can_implement(arguments);
  if (status == cutlass::Status::kSuccess) status = gemm.initialize(arguments, nullptr, stream);
  if (status == cutlass::Status::kSuccess) status = gemm.run(stream);
  return static_cast<int>(status);
}
