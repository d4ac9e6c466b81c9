// What one CPU path offers: a table of operations, all giving the same bits. A new path is one file with a
// table; a new operator is one more entry.
//
// Nothing here checks anything: plan.cpp and engine.cpp have done so. Activations are uint8, (H, W, C).
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

  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t pixels() const { return out[0] * out[1]; }
};

struct Convolution {
  Sliding at;
  int32_t zero_point;   // of x: the value of padding
  const int32_t* bias;  // per output channel, with the zero point of x folded in
  Scaling scaling;
};

struct Addition {
  int32_t zero_point[2], multiplier[2], shift;
  Scaling scaling;  // its multiplier and shift are not used
};

// A convolution on one path. Weights come as the plan has them (OIHW) and are packed once.
struct ConvolutionKernel {
  size_t (*packed_bytes)(const Convolution&);
  void (*pack)(const Convolution&, const int8_t* weight, uint8_t* packed);
  size_t (*scratch_bytes)(const Convolution&);
  void (*run)(const Convolution&, const uint8_t* packed, const uint8_t* x, uint8_t* y, uint8_t* scratch);
};

struct Kernels {
  const char* name;
  ConvolutionKernel dense;      // groups = 1; a fully connected layer is one pixel of it
  ConvolutionKernel depthwise;  // groups = channels in = channels out
  void (*quantize)(const float* x, int64_t count, float scale, int32_t zero_point, uint8_t* y);
  void (*dequantize)(const uint8_t* x, int64_t count, float scale, int32_t zero_point, float* y);
  void (*max_pool)(const Sliding&, const uint8_t* x, uint8_t* y);
  void (*average_pool)(const Sliding&, int32_t zero_point, const Scaling&, const uint8_t* x, uint8_t* y);
  void (*add)(const Addition&, const uint8_t* a, const uint8_t* b, int64_t count, uint8_t* y);
};

const Kernels& scalar_kernels();
#if defined(EDGEWRIGHT_AVX2)
const Kernels& avx2_kernels();
#endif

}  // namespace edgewright
