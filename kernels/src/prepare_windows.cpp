// Pools, and images in another size.
#include <cstring>

#include "step.h"

namespace edgewright {

// Along three axes, the largest over the depth comes first, then the largest over each image of it.
Run prepare_max_pool(Setup& setup) {
  const Sliding at = setup.sliding();
  const Depth depth = setup.depth();
  const auto kernel = setup.kernels.max_pool;
  const uint64_t x_at = setup.x().offset, y_at = setup.y().offset;
  if (setup.op().window.axes < kMaxWindowAxes) {
    return [=](const Call& call) { kernel(at, call.arena + x_at, call.arena + y_at); };
  }
  const int64_t in = at.in[0] * at.in[1] * at.in_channels, out = pixels(at) * at.out_channels;
  setup.need_scratch(static_cast<size_t>(in));
  return [=](const Call& call) {
    for (int64_t slice = 0; slice < depth.out; ++slice) {
      std::memset(call.scratch, 0, static_cast<size_t>(in));
      for (int64_t tap = 0; tap < depth.kernel; ++tap) {
        const int64_t z = slice * depth.stride - depth.before + tap * depth.dilation;
        if (z < 0 || z >= depth.in) continue;
        const uint8_t* seen = call.arena + x_at + z * in;
        uint8_t* best = call.scratch;
        for (int64_t i = 0; i < in; ++i) best[i] = seen[i] > best[i] ? seen[i] : best[i];
      }
      kernel(at, call.scratch, call.arena + y_at + slice * out);
    }
  };
}

Run prepare_average_pool(Setup& setup) {
  const Sliding at = setup.sliding();
  const Depth depth = setup.depth();
  const Scaling to = setup.scaling();
  const int32_t zero_point = setup.x().zero_point;
  const uint64_t x = setup.x().offset, y = setup.y().offset;
  if (setup.op().window.axes < kMaxWindowAxes) {
    return [=, kernel = setup.kernels.average_pool](const Call& call) {
      kernel(at, zero_point, to, call.arena + x, call.arena + y);
    };
  }
  return [=, kernel = setup.kernels.average_pool_volume](const Call& call) {
    kernel(depth, at, zero_point, to, call.arena + x, call.arena + y);
  };
}

Run prepare_resize(Setup& setup) {
  const Tensor& x = setup.x();
  const auto blend = [](const Interpolation& along, int64_t in) -> Blend {
    return {in, static_cast<int64_t>(along.first.size()), along.first.data(), along.second.data(),
            along.fraction.data()};
  };
  const Resizing op = {{blend(setup.op().rows, x.shape[0]), blend(setup.op().columns, x.shape[1])},
                       x.shape[2],
                       x.zero_point,
                       setup.scaling()};
  return [=, resize = setup.kernels.resize, from = x.offset, y = setup.y().offset](const Call& call) {
    resize(op, call.arena + from, call.arena + y);
  };
}

}  // namespace edgewright
