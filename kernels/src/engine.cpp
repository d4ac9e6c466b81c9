#include "engine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "requantize.h"

namespace edgewright {
namespace {

constexpr int64_t kMaxAccumulator = 2147483647;
constexpr size_t kMaxSpare = 16;

// Packing pads; a plan that packs one range over and over could ask for any amount of memory.
constexpr size_t kPackedFactor = 16, kPackedSlack = size_t{64} << 20;

Sliding sliding(const Window& window, const std::vector<int64_t>& x, const std::vector<int64_t>& y) {
  Sliding at{};
  for (int axis = 0; axis < 2; ++axis) {
    at.in[axis] = x[axis];
    at.out[axis] = y[axis];
    at.kernel[axis] = window.kernel[axis];
    at.stride[axis] = window.stride[axis];
    at.dilation[axis] = window.dilation[axis];
    at.before[axis] = window.padding[axis];
  }
  at.in_channels = x[2];
  at.out_channels = y[2];
  return at;
}

// A fully connected layer is a convolution of one pixel.
Sliding one_pixel(int64_t features_in, int64_t features_out) {
  Window window{};
  for (int axis = 0; axis < 2; ++axis) window.kernel[axis] = window.stride[axis] = window.dilation[axis] = 1;
  return sliding(window, {1, 1, features_in}, {1, 1, features_out});
}

// The bias with `- zero_point * weight` folded in, after proof that no accumulator can leave 32 bits.
std::vector<int32_t> checked_bias(const std::string& where, const int8_t* weight, const uint8_t* bias,
                                  int64_t outputs, int64_t terms, int32_t zero_point) {
  std::vector<int32_t> folded(static_cast<size_t>(outputs));
  for (int64_t o = 0; o < outputs; ++o, weight += terms) {
    int64_t sum = 0, magnitude = 0;
    bool lowest = false;
    for (int64_t i = 0; i < terms; ++i) {
      sum += weight[i];
      magnitude += std::abs(weight[i]);
      lowest |= weight[i] == -128;
    }
    const std::string channel = where + ": output channel " + std::to_string(o);
    if (lowest) throw PlanError(channel + " has the weight -128; they lie in -127..127");
    int32_t given = 0;
    if (bias != nullptr) std::memcpy(&given, bias + 4 * o, sizeof given);
    const int64_t value = given - zero_point * sum;
    const int64_t bound = magnitude * 255 + std::abs(value);
    if (bound > kMaxAccumulator) {
      throw PlanError(channel + " can reach " + std::to_string(bound) + ", beyond 32 bits");
    }
    folded[static_cast<size_t>(o)] = static_cast<int32_t>(value);
  }
  return folded;
}

// y (columns, rows) from x (rows, columns), in squares that stay in the cache.
void transpose(const uint8_t* x, int64_t rows, int64_t columns, uint8_t* y) {
  constexpr int64_t kSquare = 64;
  for (int64_t r0 = 0; r0 < rows; r0 += kSquare) {
    const int64_t r1 = std::min(rows, r0 + kSquare);
    for (int64_t c0 = 0; c0 < columns; c0 += kSquare) {
      const int64_t c1 = std::min(columns, c0 + kSquare);
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t r = r0; r < r1; ++r) y[c * rows + r] = x[r * columns + c];
      }
    }
  }
}

}  // namespace

Engine::Engine(const uint8_t* plan, size_t plan_size, const uint8_t* weights, size_t weights_size,
               const Kernels& kernels)
    : plan_(read_plan(plan, plan_size)), kernels_(kernels) {
  if (weights_size != plan_.weights_bytes) {
    throw PlanError("the weights have " + std::to_string(weights_size) + " bytes, the plan was made for " +
                    std::to_string(plan_.weights_bytes));
  }
  scratch_at_ = (plan_.arena_bytes + Bytes::kAlignment - 1) / Bytes::kAlignment * Bytes::kAlignment;
  memory_bytes_ = scratch_at_;
  steps_.reserve(plan_.ops.size());
  for (size_t i = 0; i < plan_.ops.size(); ++i) steps_.push_back(prepare(i, plan_.ops[i], weights));
}

Engine::Step Engine::prepare(size_t number, const Op& op, const uint8_t* weights) {
  const Tensor &x = plan_.tensors[op.x], &y = plan_.tensors[op.y];
  Step step;
  step.kind = op.kind;
  step.x = x.offset;
  step.y = y.offset;
  step.count = step.rows = x.elements();
  step.multiplier = op.rescale.multiplier;
  step.shift = op.rescale.shift;
  Convolution& convolution = step.convolution;
  convolution.zero_point = x.zero_point;
  convolution.scaling = {step.multiplier.data(), step.shift.data(), y.zero_point, op.rescale.low,
                         op.rescale.high};
  size_t scratch = 0;
  const auto port = [](const std::vector<uint32_t>& ports, int32_t tensor) {
    return static_cast<size_t>(std::find(ports.begin(), ports.end(), static_cast<uint32_t>(tensor)) -
                               ports.begin());
  };
  switch (op.kind) {
    case Kind::kQuantize:
      step.port = port(plan_.inputs, op.x);
      step.scale = y.scale;
      step.zero_point = y.zero_point;
      if (x.shape.size() == 3) {
        step.rows = x.shape[0];
        step.columns = step.count / step.rows;
      }
      scratch = static_cast<size_t>(step.count);
      break;
    case Kind::kDequantize:
      step.port = port(plan_.outputs, op.y);
      step.scale = x.scale;
      step.zero_point = x.zero_point;
      [[fallthrough]];
    case Kind::kFlatten:
      if (x.shape.size() == 3) {
        step.columns = x.shape[2];
        step.rows = step.count / step.columns;
      }
      scratch = op.kind == Kind::kDequantize ? static_cast<size_t>(step.count) : 0;
      break;
    case Kind::kConv2d:
    case Kind::kFullyConnected:
      convolution.at =
          op.kind == Kind::kConv2d ? sliding(op.window, x.shape, y.shape) : one_pixel(x.shape[0], y.shape[0]);
      prepare_convolution(number, op, weights, step);
      scratch = step.kernel->scratch_bytes(convolution);
      break;
    case Kind::kMaxPool:
    case Kind::kAveragePool:
      convolution.at = sliding(op.window, x.shape, y.shape);
      break;
    case Kind::kAdd: {
      const Tensor& b = plan_.tensors[op.b];
      step.b = b.offset;
      step.addition = {{x.zero_point, b.zero_point},
                       {op.rescale.multiplier[0], op.rescale.multiplier[1]},
                       op.rescale.shift[0],
                       convolution.scaling};
      break;
    }
    case Kind::kRequantize:
      for (int32_t q = 0; q < 256; ++q) {
        const int64_t value = requantize(q - x.zero_point, step.multiplier[0], step.shift[0]);
        step.table[static_cast<size_t>(q)] = saturate(value + y.zero_point, op.rescale.low, op.rescale.high);
      }
      break;
  }
  memory_bytes_ = std::max(memory_bytes_, scratch_at_ + scratch);
  return step;
}

void Engine::prepare_convolution(size_t number, const Op& op, const uint8_t* weights, Step& step) {
  Convolution& convolution = step.convolution;
  const std::string where = operator_name(number, op.kind);
  const ByteRange& range = plan_.ranges[op.weight];
  const int8_t* weight = reinterpret_cast<const int8_t*>(weights + range.offset);
  const uint8_t* bias = op.bias == -1 ? nullptr : weights + plan_.ranges[op.bias].offset;
  const int64_t outputs = convolution.at.out_channels;
  step.bias = checked_bias(where, weight, bias, outputs, static_cast<int64_t>(range.size) / outputs,
                           convolution.zero_point);
  convolution.bias = step.bias.data();
  step.kernel = op.groups > 1 ? &kernels_.depthwise : &kernels_.dense;
  const size_t packed = step.kernel->packed_bytes(convolution);
  packed_bytes_ += packed;
  if (packed_bytes_ > kPackedFactor * plan_.weights_bytes + kPackedSlack) {
    throw PlanError(where + ": the plan uses the same weights too many times");
  }
  step.packed = std::make_unique<Bytes>(packed);
  step.kernel->pack(convolution, weight, step.packed->data());
}

Bytes Engine::take_memory() const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!spare_.empty()) {
      Bytes memory = std::move(spare_.back());
      spare_.pop_back();
      return memory;
    }
  }
  return Bytes(memory_bytes_);
}

void Engine::run(const float* const* inputs, float* const* outputs, int64_t samples) const {
  Bytes memory = take_memory();
  for (int64_t sample = 0; sample < samples; ++sample) {
    for (const Step& step : steps_) run_step(step, inputs, outputs, sample, memory.data());
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (spare_.size() < kMaxSpare) spare_.push_back(std::move(memory));
}

void Engine::run_step(const Step& step, const float* const* inputs, float* const* outputs, int64_t sample,
                      uint8_t* memory) const {
  uint8_t* scratch = memory + scratch_at_;
  const uint8_t* x = memory + step.x;
  uint8_t* y = memory + step.y;
  const bool moves = step.rows > 1 && step.columns > 1;
  const Sliding& at = step.convolution.at;
  switch (step.kind) {
    case Kind::kQuantize: {
      const float* input = inputs[step.port] + sample * step.count;
      kernels_.quantize(input, step.count, step.scale, step.zero_point, moves ? scratch : y);
      if (moves) transpose(scratch, step.rows, step.columns, y);
      return;
    }
    case Kind::kDequantize: {
      if (moves) transpose(x, step.rows, step.columns, scratch);
      float* output = outputs[step.port] + sample * step.count;
      kernels_.dequantize(moves ? scratch : x, step.count, step.scale, step.zero_point, output);
      return;
    }
    case Kind::kFlatten:
      transpose(x, step.rows, step.columns, y);
      return;
    case Kind::kConv2d:
    case Kind::kFullyConnected:
      step.kernel->run(step.convolution, step.packed->data(), x, y, scratch, 0,
                       step.kernel->units(step.convolution));
      return;
    case Kind::kMaxPool:
      kernels_.max_pool(at, x, y);
      return;
    case Kind::kAveragePool:
      kernels_.average_pool(at, step.convolution.zero_point, step.convolution.scaling, x, y);
      return;
    case Kind::kAdd:
      kernels_.add(step.addition, x, memory + step.b, step.count, y);
      return;
    case Kind::kRequantize:
      for (int64_t i = 0; i < step.count; ++i) y[i] = step.table[x[i]];
      return;
  }
}

}  // namespace edgewright
