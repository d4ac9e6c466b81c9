// Operators with weights: convolutions of every form, fully connected layers, and look-ups of rows.
//
// The kernels know convolutions over images in one group, and depthwise ones. The others are made of those: a
// group, or the slices of a volume under one position of the window, is first gathered into an image.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "requantize.h"
#include "step.h"

namespace edgewright {
namespace {

constexpr int64_t kMaxAccumulator = 2147483647;

// Weights as `rows` rows of `row` int8, however they are stored; refused where one is too low.
class Weights {
 public:
  Weights(const Setup& setup, int64_t rows, int64_t row) : rows_(rows), row_(row) {
    const uint8_t* stored = setup.bytes_of(setup.op().weight);
    if (setup.op().weight_bits == 4) {
      unpack(setup, stored);
      data_ = unpacked_.data();
      return;
    }
    data_ = reinterpret_cast<const int8_t*>(stored);
    for (int64_t r = 0; r < rows; ++r, stored += row) {
      if (std::memchr(stored, 0x80, static_cast<size_t>(row)) != nullptr) refuse(setup, r, "-128", "127");
    }
  }
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  const int8_t* row(int64_t r) const { return data_ + r * row_; }
  int64_t terms() const { return row_; }

 private:
  [[noreturn]] static void refuse(const Setup& setup, int64_t row, const std::string& lowest,
                                  const std::string& most) {
    throw PlanError(setup.where() + ": row " + std::to_string(row) + " has the weight " + lowest +
                    "; they lie in -" + most + ".." + most);
  }

  void unpack(const Setup& setup, const uint8_t* stored) {
    unpacked_.resize(static_cast<size_t>(rows_ * row_));
    int8_t* to = unpacked_.data();
    for (int64_t r = 0; r < rows_; ++r, stored += (row_ + 1) / 2, to += row_) {
      for (int64_t i = 0; i < row_; ++i) {
        const int32_t half = i % 2 == 0 ? stored[i / 2] & 15 : stored[i / 2] >> 4;
        if (half == 8) refuse(setup, r, "-8", "7");
        to[i] = static_cast<int8_t>(half > 7 ? half - 16 : half);
      }
      if (row_ % 2 == 1 && stored[row_ / 2] >> 4 != 0) {
        throw PlanError(setup.where() + ": the unused half of a row's last byte is not 0");
      }
    }
  }

  int64_t rows_, row_;
  const int8_t* data_;
  std::vector<int8_t> unpacked_;
};

int32_t given_bias(const Setup& setup, int64_t output) {
  int32_t value = 0;
  if (setup.op().bias != -1) std::memcpy(&value, setup.bytes_of(setup.op().bias) + 4 * output, sizeof value);
  return value;
}

void check_bound(const Setup& setup, int64_t output, int64_t bound) {
  if (bound > kMaxAccumulator) {
    throw PlanError(setup.where() + ": output channel " + std::to_string(output) + " can reach " +
                    std::to_string(bound) + ", beyond 32 bits");
  }
}

// The largest magnitude of an input value, as it enters an accumulator.
int64_t most_of(const Tensor& x) { return x.is_wide() ? 32768 : 255; }

// The bias with `- zero point of x * weight` folded in, after proof that no accumulator can leave 32 bits.
std::vector<int32_t> folded_bias(const Setup& setup, const Weights& weights) {
  std::vector<int32_t> folded;
  for (int64_t o = 0; o < setup.y().shape.back(); ++o) {
    int64_t sum = 0, magnitude = 0;
    const int8_t* weight = weights.row(o);
    for (int64_t i = 0; i < weights.terms(); ++i) {
      sum += weight[i];
      magnitude += std::abs(weight[i]);
    }
    const int64_t value = given_bias(setup, o) - setup.x().zero_point * sum;
    check_bound(setup, o, magnitude * most_of(setup.x()) + std::abs(value));
    folded.push_back(static_cast<int32_t>(value));
  }
  return folded;
}

// A packed convolution over images. It may move, but not be copied: `op` points into it, and into the plan.
struct Layer {
  Convolution op{};
  std::vector<int32_t> bias;
  const ConvolutionKernel* kernel = nullptr;
  std::shared_ptr<Bytes> packed;

  Layer() = default;
  Layer(Layer&&) = default;
  Layer(const Layer&) = delete;

  int64_t units() const { return kernel->units(op); }
  void run(const uint8_t* x, uint8_t* y, uint8_t* scratch, int64_t begin, int64_t end) const {
    kernel->run(op, packed->data(), x, y, scratch, begin, end);
  }
};

// `outputs` channels from number `from` on.
Layer make_layer(Setup& setup, const ConvolutionKernel& kernel, const Sliding& at, const int8_t* weight,
                 const std::vector<int32_t>& bias, int64_t from) {
  Layer layer;
  layer.bias.assign(bias.begin() + from, bias.begin() + from + at.out_channels);
  layer.op.at = at;
  layer.op.zero_point = setup.x().zero_point;
  layer.op.bias = layer.bias.data();
  layer.op.scaling = setup.scaling();
  layer.op.scaling.multiplier += from;
  layer.op.scaling.shift += from;
  layer.op.y_item = setup.y().item();
  layer.kernel = &kernel;
  layer.packed = setup.take(kernel.packed_bytes(layer.op));
  kernel.pack(layer.op, weight, layer.packed->data());
  return layer;
}

// The kernels for the integers that this operator takes and gives.
const ConvolutionKernel& dense_of(const Setup& setup) {
  if (!setup.is_wide()) return setup.kernels.dense;
  return setup.kernels.wide.dense[setup.x().is_wide()][setup.y().is_wide()];
}

const ConvolutionKernel& depthwise_of(const Setup& setup) {
  if (!setup.is_wide()) return setup.kernels.depthwise;
  return setup.kernels.wide.depthwise[setup.x().is_wide()][setup.y().is_wide()];
}

double products_of(const Setup& setup, const Weights& weights) {
  return static_cast<double>(setup.y().elements()) * static_cast<double>(weights.terms());
}

// `each` is the cost of a product.
Step run_layer(Setup& setup, const ConvolutionKernel& kernel, double each, const Sliding& at,
               const Weights& weights) {
  const auto layer =
      std::make_shared<Layer>(make_layer(setup, kernel, at, weights.row(0), folded_bias(setup, weights), 0));
  setup.need_scratch(kernel.scratch_bytes(layer->op));
  const auto run = [layer, x = setup.x().offset, y = setup.y().offset](const Call& call, int64_t begin,
                                                                       int64_t end) {
    layer->run(call.arena + x, call.arena + y, call.scratch, begin, end);
  };
  return {run, layer->units(), each * products_of(setup, weights)};
}

// A convolution over a volume, or in several groups. For each group and each slice of the result, the
// channels of that group in the slices under the window are gathered side by side into one image. Unit
// number slice * groups + group makes that part of the result.
struct Gathered {
  std::vector<Layer> layers;  // one per group
  Depth depth;
  int64_t pixels, channels, outputs;  // of one slice of x; of x and y whole
  int64_t x_item, y_item;             // bytes
  int32_t zero_point;
  uint64_t x, y;
  size_t image_at, result_at;  // in the scratch, behind what the kernel needs

  void gather(const uint8_t* from, int64_t slice, int64_t group, uint8_t* to) const {
    // All in bytes from here on.
    const int64_t whole = channels * x_item, inputs = whole / static_cast<int64_t>(layers.size());
    const int64_t pixel = depth.kernel * inputs;
    for (int64_t tap = 0; tap < depth.kernel; ++tap, to += inputs) {
      const int64_t z = slice * depth.stride - depth.before + tap * depth.dilation;
      const bool inside = z >= 0 && z < depth.in;
      const uint8_t* at = inside ? from + z * pixels * whole + group * inputs : nullptr;
      for (int64_t i = 0; i < pixels; ++i) {
        if (inside) {
          std::memcpy(to + i * pixel, at + i * whole, static_cast<size_t>(inputs));
        } else {
          std::memset(to + i * pixel, zero_point, static_cast<size_t>(inputs));  // 0 where it is int16
        }
      }
    }
  }

  void run(const Call& call, int64_t begin, int64_t end) const {
    const int64_t groups = static_cast<int64_t>(layers.size()), whole = outputs * y_item,
                  part = whole / groups, out_pixels = ::edgewright::pixels(layers[0].op.at);
    uint8_t *image = call.scratch + image_at, *result = call.scratch + result_at;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t slice = unit / groups, group = unit % groups;
      const Layer& layer = layers[static_cast<size_t>(group)];
      uint8_t* to = call.arena + y + slice * out_pixels * whole + group * part;
      gather(call.arena + x, slice, group, image);
      layer.run(image, result, call.scratch, 0, layer.units());
      for (int64_t i = 0; i < out_pixels; ++i) {
        std::memcpy(to + i * whole, result + i * part, static_cast<size_t>(part));
      }
    }
  }
};

Step run_gathered(Setup& setup, const Weights& weights) {
  const int64_t groups = setup.op().groups;
  Sliding at = setup.sliding();
  auto made = std::make_shared<Gathered>();
  made->depth = setup.depth();
  made->pixels = at.in[0] * at.in[1];
  made->channels = at.in_channels;
  made->outputs = at.out_channels;
  made->x_item = setup.x().item();
  made->y_item = setup.y().item();
  made->zero_point = setup.x().zero_point;
  made->x = setup.x().offset;
  made->y = setup.y().offset;
  const int64_t inputs = at.in_channels / groups, slices = made->depth.kernel, window = taps(at);
  at.in_channels = inputs * slices;
  at.out_channels /= groups;
  const std::vector<int32_t> bias = folded_bias(setup, weights);
  std::vector<int8_t> moved(static_cast<size_t>(at.out_channels * weights.terms()));
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t from = group * at.out_channels;
    int8_t* to = moved.data();
    for (int64_t o = 0; o < at.out_channels; ++o) {  // (channel, slice, tap) becomes (slice, channel, tap)
      for (int64_t s = 0; s < slices; ++s) {
        for (int64_t c = 0; c < inputs; ++c, to += window) {
          std::memcpy(to, weights.row(from + o) + (c * slices + s) * window, static_cast<size_t>(window));
        }
      }
    }
    made->layers.push_back(make_layer(setup, dense_of(setup), at, moved.data(), bias, from));
  }
  made->image_at = aligned(dense_of(setup).scratch_bytes(made->layers[0].op));
  made->result_at =
      made->image_at + aligned(static_cast<size_t>(made->pixels * at.in_channels * made->x_item));
  setup.need_scratch(made->result_at + static_cast<size_t>(pixels(at) * at.out_channels * made->y_item));
  const auto run = [made](const Call& call, int64_t begin, int64_t end) { made->run(call, begin, end); };
  return {run, made->depth.out * groups, cost::kProduct * products_of(setup, weights)};
}

// For each tap of a transposed convolution, the first one whose outputs it shares: those a stride apart.
std::vector<size_t> meeting_places(const Setup& setup, int64_t window) {
  std::vector<int64_t> firsts[kMaxWindowAxes];  // along each axis
  for (int i = 0; i < kMaxWindowAxes; ++i) {
    const Axis axis = setup.axis(i);
    for (int64_t tap = 0; tap < axis.kernel; ++tap) {
      int64_t first = 0;
      while ((tap - first) * axis.dilation % axis.stride != 0) ++first;
      firsts[i].push_back(first);
    }
  }
  std::vector<size_t> places;
  for (int64_t tap = 0; tap < window; ++tap) {
    const int64_t columns = static_cast<int64_t>(firsts[2].size()),
                  rows = static_cast<int64_t>(firsts[1].size());
    const int64_t column = firsts[2][tap % columns], row = firsts[1][tap / columns % rows];
    const int64_t slice = firsts[0][tap / columns / rows];
    places.push_back(static_cast<size_t>((slice * rows + row) * columns + column));
  }
  return places;
}

// For each output channel, the largest sum of |weights| that meet at one output.
std::vector<int64_t> most_that_meets(const Setup& setup, const Weights& weights) {
  const int64_t outputs = setup.y().shape.back(), channels = setup.x().shape.back();
  const int64_t part = outputs / setup.op().groups, inputs = channels / setup.op().groups;
  const int64_t window = weights.terms() / part;
  const std::vector<size_t> places = meeting_places(setup, window);
  std::vector<int64_t> most;
  std::vector<int64_t> sums(static_cast<size_t>(window));
  for (int64_t o = 0; o < outputs; ++o) {
    std::fill(sums.begin(), sums.end(), 0);
    for (int64_t c = o / part * inputs; c < (o / part + 1) * inputs; ++c) {
      const int8_t* weight = weights.row(c) + o % part * window;
      for (size_t tap = 0; tap < places.size(); ++tap) sums[places[tap]] += std::abs(weight[tap]);
    }
    most.push_back(*std::max_element(sums.begin(), sums.end()));
  }
  return most;
}

// A table of rows as they come out: rescaled once, then only copied.
template <class Y>
std::shared_ptr<Bytes> rescaled_rows(Setup& setup, const Weights& weights, int64_t rows, int64_t columns) {
  const Scaling to = setup.scaling();
  const bool each = setup.op().rescale.multiplier.size() > 1;
  const std::shared_ptr<Bytes> table = setup.take(static_cast<size_t>(rows * columns) * sizeof(Y));
  Y* at = reinterpret_cast<Y*>(table->data());
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < columns; ++c) {
      const size_t by = each ? static_cast<size_t>(c) : 0;
      const int64_t value = requantize(weights.row(row)[c], to.multiplier[by], to.shift[by]);
      *at++ = narrowed<Y>(value + to.zero_point, to.low, to.high);
    }
  }
  return table;
}

}  // namespace

Step prepare_convolution(Setup& setup) {
  const Op& op = setup.op();
  const Sliding at = setup.sliding();
  const int64_t row = at.in_channels / op.groups * taps(at) * setup.depth().kernel;
  const Weights weights(setup, at.out_channels, row);
  const bool image = op.window.axes < kMaxWindowAxes;
  if (image && op.groups == 1) return run_layer(setup, dense_of(setup), cost::kProduct, at, weights);
  if (image && op.groups == at.in_channels && op.groups == at.out_channels) {
    return run_layer(setup, depthwise_of(setup), cost::kLooseProduct, at, weights);
  }
  return run_gathered(setup, weights);
}

// Each row of x is a pixel.
Step prepare_fully_connected(Setup& setup) {
  Sliding at{};
  at.in_channels = setup.x().shape.back();
  at.out_channels = setup.y().shape.back();
  const int64_t rows = setup.x().elements() / at.in_channels;
  for (int axis = 0; axis < 2; ++axis) {
    at.in[axis] = at.out[axis] = axis == 0 ? 1 : rows;
    at.kernel[axis] = at.stride[axis] = at.dilation[axis] = 1;
  }
  return run_layer(setup, dense_of(setup), cost::kProduct, at,
                   Weights(setup, at.out_channels, at.in_channels));
}

Step prepare_transposed_convolution(Setup& setup) {
  struct State {
    Spreading op{};
    std::vector<int32_t> bias;
    std::shared_ptr<Bytes> weight;
  };
  auto state = std::make_shared<State>();
  Spreading& op = state->op;
  int64_t window = 1;
  for (int i = 0; i < kMaxWindowAxes; ++i) {
    const Axis axis = setup.axis(i);
    op.in[i] = axis.in;
    op.out[i] = axis.out;
    op.kernel[i] = axis.kernel;
    op.stride[i] = axis.stride;
    op.dilation[i] = axis.dilation;
    op.before[i] = axis.before;
    window *= axis.kernel;
  }
  op.in_channels = setup.x().shape.back();
  op.out_channels = setup.y().shape.back();
  op.groups = setup.op().groups;
  op.zero_point = setup.x().zero_point;
  op.scaling = setup.scaling();
  const int64_t part = op.out_channels / op.groups, row = part * window;
  const Weights weights(setup, op.in_channels, row);
  const std::vector<int64_t> most = most_that_meets(setup, weights);
  for (int64_t o = 0; o < op.out_channels; ++o) {
    state->bias.push_back(given_bias(setup, o));
    check_bound(setup, o, 255 * most[static_cast<size_t>(o)] + std::abs(int64_t{state->bias.back()}));
  }
  op.bias = state->bias.data();
  state->weight = setup.take(static_cast<size_t>(op.in_channels * row));
  int8_t* to = reinterpret_cast<int8_t*>(state->weight->data());
  for (int64_t tap = 0; tap < window; ++tap) {
    for (int64_t c = 0; c < op.in_channels; ++c) {
      for (int64_t o = 0; o < part; ++o) *to++ = weights.row(c)[o * window + tap];
    }
  }
  setup.need_scratch(static_cast<size_t>(op.out_channels) * sizeof(int32_t));
  const int axis = op.out[0] > 1 ? 0 : 1;  // a unit is a slice of a volume, or a row of an image
  const int64_t unit_bytes = (axis == 0 ? op.out[1] : 1) * op.out[2] * op.out_channels;
  const auto run = [=, spread = setup.kernels.spread, x = setup.x().offset, y = setup.y().offset](
                       const Call& call, int64_t begin, int64_t end) {
    Spreading some = state->op;
    some.before[axis] += begin;
    some.out[axis] = end - begin;
    spread(some, reinterpret_cast<const int8_t*>(state->weight->data()), call.arena + x,
           call.arena + y + begin * unit_bytes, reinterpret_cast<int32_t*>(call.scratch));
  };
  const double products = static_cast<double>(setup.x().elements()) * static_cast<double>(row);
  return {run, op.out[axis], cost::kLooseProduct * products};
}

Step prepare_embedding(Setup& setup) {
  const ByteRange& range = setup.plan.ranges[setup.op().weight];
  const int64_t columns = setup.y().shape.back(), rows = static_cast<int64_t>(range.size) / columns;
  const int64_t count = setup.x().elements();
  const Weights weights(setup, rows, columns);
  const std::shared_ptr<Bytes> table = setup.y().is_wide()
                                           ? rescaled_rows<int16_t>(setup, weights, rows, columns)
                                           : rescaled_rows<uint8_t>(setup, weights, rows, columns);
  const int64_t row_bytes = columns * setup.y().item();
  const auto found =
      std::find(setup.plan.inputs.begin(), setup.plan.inputs.end(), static_cast<uint32_t>(setup.op().x()));
  const size_t port = static_cast<size_t>(found - setup.plan.inputs.begin());
  setup.index_limits.push_back({port, count, rows});
  const auto run = [=, y = setup.y().offset](const Call& call, int64_t begin, int64_t end) {
    const int64_t* index = static_cast<const int64_t*>(call.inputs[port]) + call.sample * count;
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(call.arena + y + i * row_bytes, table->data() + index[i] * row_bytes,
                  static_cast<size_t>(row_bytes));
    }
  };
  return {run, count, cost::kByte * static_cast<double>(count * row_bytes)};
}

}  // namespace edgewright
