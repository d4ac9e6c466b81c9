// What one CPU path offers: a table of operations, all giving the same bits. A new path is one file with a
// table; a new operator is one more entry.
//
// Nothing here checks anything: check.cpp and engine.cpp have done so. Activations are uint8, (H, W, C);
// `Wide` has the operators where int16 comes in or goes out.
//
// Functions in headers are `static` on purpose: each path compiles its own copies with its own CPU flags, so
// that the linker can never hand a copy with AVX2 instructions to a CPU without them. For the same reason a
// path's file uses no templates of the standard library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgewright {

// The way out of an accumulator: `clamp(requantize(acc) + zero_point, low, high)`.
struct Scaling {
  const int32_t* multiplier;  // one per output channel, or one
  const int32_t* shift;
  int32_t zero_point, low, high;
};

// A window that slides over an image; pairs are (height, width).
struct Sliding {
  int64_t in[2], out[2], kernel[2], stride[2], dilation[2], before[2];  // `before`: padding at the top, left
  int64_t in_channels, out_channels;
};

[[maybe_unused]] static inline int64_t taps(const Sliding& at) { return at.kernel[0] * at.kernel[1]; }
[[maybe_unused]] static inline int64_t pixels(const Sliding& at) { return at.out[0] * at.out[1]; }

struct Convolution {
  Sliding at;
  int32_t zero_point;   // of x: the value of padding
  const int32_t* bias;  // per output channel, with the zero point of x folded in
  Scaling scaling;
  int64_t y_item;  // bytes of a result: 1, or 2 where it is int16
};

struct Addition {
  int32_t zero_point[2], multiplier[2], shift;
  Scaling scaling;  // its multiplier and shift are not used
};

// A convolution on one path. Weights come as the plan has them (OIHW) and are packed once.
//
// A result is made of `units`, numbered from 0, of about equal work; no two write the same byte of y. `run`
// computes those in [begin, end), begin < end, and nothing else. Threads may share one result: each takes a
// range of units and a scratch of its own, of `scratch_bytes`, aligned to 64. The bits never depend on how
// units are grouped. Fewer and longer ranges are faster.
struct ConvolutionKernel {
  size_t (*packed_bytes)(const Convolution&);
  void (*pack)(const Convolution&, const int8_t* weight, uint8_t* packed);
  size_t (*scratch_bytes)(const Convolution&);
  int64_t (*units)(const Convolution&);
  void (*run)(const Convolution&, const uint8_t* packed, const uint8_t* x, uint8_t* y, uint8_t* scratch,
              int64_t begin, int64_t end);
};

// One matrix product of two activations: (rows, terms) times (terms, columns), or (columns, terms) where
// `transposed`.
struct Product {
  int64_t rows, columns, terms;
  bool transposed;
  int32_t zero_point[2];
  Scaling scaling;
  int64_t y_item;  // bytes of a result: 1, or 2 where it is int16
};

struct ProductKernel {
  size_t (*scratch_bytes)(const Product&);
  void (*run)(const Product&, const uint8_t* a, const uint8_t* b, uint8_t* y, uint8_t* scratch);
};

struct Multiplication {
  int32_t zero_point[2];
  Scaling scaling;
};

// Softmax over rows of `count` values.
struct Exponentials {
  int64_t count;
  const int32_t* table;  // 256 of them, not increasing; of int16 twice as many
  int32_t masked;        // the value of a mask that masks
  Scaling scaling;
  int32_t whole;          // so many entries of the table, the first ones, are 65,536
  const uint8_t* planes;  // the table by bytes, 65,535 in place of 65,536: 256 low ones, 256 high ones
};

// LayerNorm over rows of `count` values.
struct Normalization {
  int64_t count;
  const int32_t* gain;
  const int64_t* offset;
  int64_t epsilon;
  int32_t zero_point;
  Scaling scaling;
  bool results_fit;  // below 2^30 in magnitude, before the zero point
};

// Outputs along one axis: inputs first[o] and second[o] with weights 2048 - fraction[o] and fraction[o].
struct Blend {
  int64_t in, out;
  const int32_t *first, *second, *fraction;
};

struct Resizing {
  Blend axes[2];  // height, width
  int64_t channels;
  int32_t zero_point;
  Scaling scaling;
};

// The depth of a window that slides over a volume, one image after another.
struct Depth {
  int64_t in, out, kernel, stride, dilation, before;
};

// A transposed convolution, over a volume or, with a depth of 1, an image.
struct Spreading {
  int64_t in[3], out[3], kernel[3], stride[3], dilation[3], before[3];
  int64_t in_channels, out_channels, groups;
  int32_t zero_point;
  const int32_t* bias;
  Scaling scaling;
};

// A change of scale, with one multiplier for all, or one for each of the channels that lie side by side.
struct Requantization {
  int64_t channels;  // 1 where there is one multiplier
  int32_t zero_point;
  Scaling scaling;
};

// The operators of int16. All take and give bytes, aligned to what they hold: an entry is found by whether x
// (or a and b), and then y, are int16. What a table of uint8 has already is left out, except in `requantize`.
struct Wide {
  ConvolutionKernel dense[2][2], depthwise[2][2];
  void (*quantize)(const float* x, int64_t count, float scale, uint8_t* y);
  void (*dequantize)(const uint8_t* x, int64_t count, float scale, float* y);
  void (*requantize[2][2])(const Requantization&, const uint8_t* x, int64_t rows, uint8_t* y);
  void (*max_pool)(const Depth&, const Sliding&, const uint8_t* x, uint8_t* y);
  void (*average_pool[2][2])(const Depth&, const Sliding&, int32_t zero_point, const Scaling&,
                             const uint8_t* x, uint8_t* y);
  void (*add[2][2][2])(const Addition&, const uint8_t* a, const uint8_t* b, int64_t count, uint8_t* y);
  void (*multiply[2][2][2])(const Multiplication&, const uint8_t* a, const uint8_t* b, int64_t count,
                            uint8_t* y);
  // The table as the plan has it: 256 int16 for uint8, 513 int32 for int16.
  void (*lookup[2][2])(const uint8_t* table, const uint8_t* x, int64_t count, uint8_t* y);
  // int16 to uint8. The table is two: of low bytes, and of high ones. `exponentials` has room for a row.
  void (*softmax)(const Exponentials&, const uint8_t* x, const uint8_t* mask, int64_t mask_step, uint8_t* y,
                  int32_t* exponentials);
  void (*layer_norm[2][2])(const Normalization&, const uint8_t* x, int64_t rows, uint8_t* y);
  ProductKernel product;  // of uint8, to int16
};

struct Kernels {
  const char* name;
  ConvolutionKernel dense;      // groups = 1; a fully connected layer is one pixel of it
  ConvolutionKernel depthwise;  // groups = channels in = channels out
  void (*quantize)(const float* x, int64_t count, float scale, int32_t zero_point, uint8_t* y);
  // Three planes of `count` to as many pixels of three bytes.
  void (*interleave)(const uint8_t* x, int64_t count, uint8_t* y);
  void (*dequantize)(const uint8_t* x, int64_t count, float scale, int32_t zero_point, float* y);
  void (*max_pool)(const Sliding&, const uint8_t* x, uint8_t* y);
  void (*average_pool)(const Sliding&, int32_t zero_point, const Scaling&, const uint8_t* x, uint8_t* y);
  void (*add)(const Addition&, const uint8_t* a, const uint8_t* b, int64_t count, uint8_t* y);
  void (*multiply)(const Multiplication&, const uint8_t* a, const uint8_t* b, int64_t count, uint8_t* y);
  void (*lookup)(const uint8_t* table, const uint8_t* x, int64_t count, uint8_t* y);
  // A row and its mask, or null; `mask_step` is 1, or 0 where one value masks the whole row.
  void (*softmax)(const Exponentials&, const uint8_t* x, const uint8_t* mask, int64_t mask_step, uint8_t* y);
  void (*layer_norm)(const Normalization&, const uint8_t* x, int64_t rows, uint8_t* y);
  ProductKernel product;
  void (*resize)(const Resizing&, const uint8_t* x, uint8_t* y);
  void (*average_pool_volume)(const Depth&, const Sliding&, int32_t zero_point, const Scaling&,
                              const uint8_t* x, uint8_t* y);
  // `weight` lies as (tap, channel in, channel out of its group); `sums` has room for one output pixel.
  void (*spread)(const Spreading&, const int8_t* weight, const uint8_t* x, uint8_t* y, int32_t* sums);
  Wide wide;
};

const Kernels& scalar_kernels();
#if defined(EDGEWRIGHT_AVX2)
const Kernels& avx2_kernels();
#endif
#if defined(EDGEWRIGHT_AVXVNNI)
const Kernels& avxvnni_kernels();
#endif
#if defined(EDGEWRIGHT_AVX512VNNI)
const Kernels& avx512vnni_kernels();
const Kernels& avx512vnni256_kernels();
#endif

#if defined(EDGEWRIGHT_ARM)
const Kernels& neon_kernels();
const Kernels& dotprod_kernels();
const Kernels& i8mm_kernels();
#endif

}  // namespace edgewright
