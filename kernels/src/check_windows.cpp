// The rules of what slides a window over an image, and of Resize.
#include <algorithm>

#include "check.h"
#include "rules.h"

namespace edgewright {
namespace {

constexpr int64_t kMaxWindow = 4096;
constexpr int64_t kMaxAveraged = 2147483647 / 255, kMaxWideAveraged = 2147483647 / 32768;  // the sums fit
constexpr int32_t kFull = 1 << 11;  // the weight of one input in Resize

int64_t span(const Window& window, int axis) { return window.dilation[axis] * (window.kernel[axis] - 1) + 1; }

int64_t taps(const Window& window) {
  int64_t product = 1;
  for (int axis = 0; axis < window.axes; ++axis) product *= window.kernel[axis];
  return product;
}

// The window's own numbers, and the ranks of what it slides over.
void check_image(const Window& window, const Tensor& x, const Tensor& y) {
  const size_t rank = static_cast<size_t>(window.axes) + 1;
  if (x.shape.size() != rank || y.shape.size() != rank) {
    refuse("takes and gives " + std::to_string(window.axes) + " spatial axes and channels");
  }
  const auto within = [](int64_t value, int64_t low) { return value >= low && value <= kMaxWindow; };
  for (int axis = 0; axis < window.axes; ++axis) {
    if (!within(window.kernel[axis], 1) || !within(window.stride[axis], 1) ||
        !within(window.dilation[axis], 1) || !within(window.before[axis], 0) ||
        !within(window.after[axis], 0)) {
      refuse("its window is out of bounds (1 to 4096; padding 0 to 4096)");
    }
  }
}

void check_interpolation(const Interpolation& along, int64_t size) {
  for (const auto* which : {&along.first, &along.second}) {
    for (const int32_t index : *which) {
      if (index < 0 || index >= size) refuse("it looks outside 0.." + std::to_string(size - 1));
    }
  }
  for (const int32_t fraction : along.fraction) {
    if (fraction < 0 || fraction > kFull) refuse("a fraction is not in 0..2048");
  }
}

}  // namespace

int64_t output_size(const Window& window, int axis, int64_t size) {
  const int64_t room = size + window.before[axis] + window.after[axis] - span(window, axis);
  return room < 0 ? 0 : room / window.stride[axis] + 1;
}

void check_window(const Plan& plan, const Op& op, const Tensor& x, const Tensor& y) {
  const Window& window = op.window;
  check_image(window, x, y);
  const std::string input = listed(x.shape);
  std::vector<int64_t> size;
  for (int axis = 0; axis < window.axes; ++axis) {
    if (op.kind != Kind::kConvolution) {
      // Each window of a pool must hold a real value; a convolution may look at padding alone.
      if (window.before[axis] >= span(window, axis) || window.after[axis] >= span(window, axis)) {
        refuse("its padding is as large as its window");
      }
      if (window.dilation[axis] > x.shape[axis]) refuse("its dilation is larger than " + input);
    }
    size.push_back(output_size(window, axis, x.shape[axis]));
    if (size.back() < 1) refuse("its window does not fit into " + input);
  }
  const int64_t channels = x.shape.back(), outputs = y.shape.back();
  if (op.kind == Kind::kConvolution) {
    size.push_back(outputs);
    same_shape(y, size);
    check_groups(op.groups, channels, outputs);
    check_weights(plan, op, y, outputs, channels / op.groups * taps(window));
    return;
  }
  size.push_back(channels);
  same_shape(y, size);
  if (op.kind == Kind::kMaxPool) {
    same_grid(x, y);
    return;
  }
  const int64_t most = x.is_wide() ? kMaxWideAveraged : kMaxAveraged;
  if (taps(window) > most) refuse("averages more than " + std::to_string(most) + " values");
  check_rescale(op.rescale, 1, y);
}

void check_transposed(const Plan& plan, const Op& op, const Tensor& x, const Tensor& y) {
  const Window& window = op.window;
  check_image(window, x, y);
  std::vector<int64_t> size;
  for (int axis = 0; axis < window.axes; ++axis) {
    if (op.extra[axis] < 0 || op.extra[axis] >= std::max(window.stride[axis], window.dilation[axis])) {
      refuse("its extra is not below its stride or dilation");
    }
    size.push_back(window.stride[axis] * (x.shape[axis] - 1) + op.extra[axis] + span(window, axis) -
                   window.before[axis] - window.after[axis]);
    if (size.back() < 1) refuse("its padding takes all of its result");
  }
  const int64_t channels = x.shape.back(), outputs = y.shape.back();
  size.push_back(outputs);
  same_shape(y, size);
  check_groups(op.groups, channels, outputs);
  check_weights(plan, op, y, channels, outputs / op.groups * taps(window));
}

void check_resize(const Op& op, const Tensor& x, const Tensor& y) {
  if (x.shape.size() != 3) refuse("takes and gives (H, W, C)");
  same_shape(y, {static_cast<int64_t>(op.rows.first.size()), static_cast<int64_t>(op.columns.first.size()),
                 x.shape[2]});
  check_interpolation(op.rows, x.shape[0]);
  check_interpolation(op.columns, x.shape[1]);
  check_rescale(op.rescale, 1, y);
}

}  // namespace edgewright
