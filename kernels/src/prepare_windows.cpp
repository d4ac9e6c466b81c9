// Pools, and images in another size.
#include <cstring>

#include "step.h"

namespace edgewright {

namespace {

// The same window, for outputs number `begin` to `end` along its first axis.
Sliding rows_of(Sliding at, int64_t begin, int64_t end) {
  at.before[0] -= begin * at.stride[0];
  at.out[0] = end - begin;
  return at;
}

Depth slices_of(Depth depth, int64_t begin, int64_t end) {
  depth.before -= begin * depth.stride;
  depth.out = end - begin;
  return depth;
}

double work_of(const Sliding& at, const Depth& depth) {
  return cost::kByte * static_cast<double>(pixels(at) * at.out_channels * depth.out) *
         static_cast<double>(taps(at) * depth.kernel + 4);
}

// A pool of int16: a kernel over a volume or, with a depth of 1, an image. A unit is a slice, or a row.
template <class F>
Step run_wide(Setup& setup, F kernel) {
  const Sliding at = setup.sliding();
  const Depth depth = setup.depth();
  const bool image = setup.op().window.axes < kMaxWindowAxes;
  const int64_t unit_bytes = (image ? at.out[1] : pixels(at)) * at.out_channels * setup.y().item();
  const auto run = [=, x = setup.x().offset, y = setup.y().offset](const Call& call, int64_t begin,
                                                                   int64_t end) {
    kernel(image ? depth : slices_of(depth, begin, end), image ? rows_of(at, begin, end) : at, call.arena + x,
           call.arena + y + begin * unit_bytes);
  };
  return {run, image ? at.out[0] : depth.out, work_of(at, depth)};
}

}  // namespace

// Along three axes, the largest over the depth comes first, then the largest over each image of it.
Step prepare_max_pool(Setup& setup) {
  const Sliding at = setup.sliding();
  const Depth depth = setup.depth();
  if (setup.y().is_wide()) return run_wide(setup, setup.kernels.wide.max_pool);
  const auto kernel = setup.kernels.max_pool;
  const uint64_t x_at = setup.x().offset, y_at = setup.y().offset;
  if (setup.op().window.axes < kMaxWindowAxes) {
    const auto run = [=, row = at.out[1] * at.out_channels](const Call& call, int64_t begin, int64_t end) {
      kernel(rows_of(at, begin, end), call.arena + x_at, call.arena + y_at + begin * row);
    };
    return {run, at.out[0], work_of(at, depth)};
  }
  const int64_t in = at.in[0] * at.in[1] * at.in_channels, out = pixels(at) * at.out_channels;
  setup.need_scratch(static_cast<size_t>(in));
  const auto run = [=](const Call& call, int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
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
  return {run, depth.out, work_of(at, depth)};
}

Step prepare_average_pool(Setup& setup) {
  const Sliding at = setup.sliding();
  const Depth depth = setup.depth();
  const Scaling to = setup.scaling();
  const int32_t zero_point = setup.x().zero_point;
  const uint64_t x = setup.x().offset, y = setup.y().offset;
  if (setup.is_wide()) {
    const auto kernel = setup.kernels.wide.average_pool[setup.x().is_wide()][setup.y().is_wide()];
    return run_wide(setup, [=](const Depth& deep, const Sliding& wide, const uint8_t* from, uint8_t* to_y) {
      kernel(deep, wide, zero_point, to, from, to_y);
    });
  }
  if (setup.op().window.axes < kMaxWindowAxes) {
    const auto run = [=, kernel = setup.kernels.average_pool, row = at.out[1] * at.out_channels](
                         const Call& call, int64_t begin, int64_t end) {
      kernel(rows_of(at, begin, end), zero_point, to, call.arena + x, call.arena + y + begin * row);
    };
    return {run, at.out[0], work_of(at, depth)};
  }
  const auto run = [=, kernel = setup.kernels.average_pool_volume, slice = pixels(at) * at.out_channels](
                       const Call& call, int64_t begin, int64_t end) {
    kernel(slices_of(depth, begin, end), at, zero_point, to, call.arena + x, call.arena + y + begin * slice);
  };
  return {run, depth.out, work_of(at, depth)};
}

Step prepare_resize(Setup& setup) {
  const Tensor& x = setup.x();
  const auto blend = [](const Interpolation& along, int64_t in) -> Blend {
    return {in, static_cast<int64_t>(along.first.size()), along.first.data(), along.second.data(),
            along.fraction.data()};
  };
  const Resizing op = {{blend(setup.op().rows, x.shape[0]), blend(setup.op().columns, x.shape[1])},
                       x.shape[2],
                       x.zero_point,
                       setup.scaling()};
  const auto run = [=, resize = setup.kernels.resize, from = x.offset, y = setup.y().offset](
                       const Call& call, int64_t begin, int64_t end) {
    Resizing part = op;
    Blend& rows = part.axes[0];
    rows.first += begin;
    rows.second += begin;
    rows.fraction += begin;
    rows.out = end - begin;
    resize(part, call.arena + from, call.arena + y + begin * op.axes[1].out * op.channels);
  };
  return {run, op.axes[0].out, 2 * cost::kValue * static_cast<double>(setup.y().elements())};
}

}  // namespace edgewright
