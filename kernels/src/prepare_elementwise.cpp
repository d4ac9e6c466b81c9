// The borders, and operators that look at one value, or one pair of values, at a time.
#include <algorithm>
#include <array>
#include <cstring>

#include "requantize.h"
#include "step.h"
#include "strides.h"

namespace edgewright {
namespace {

using Table = std::array<uint8_t, 256>;

size_t port_of(const std::vector<uint32_t>& ports, int32_t tensor) {
  const auto found = std::find(ports.begin(), ports.end(), static_cast<uint32_t>(tensor));
  return static_cast<size_t>(found - ports.begin());
}

Step run_table(Setup& setup, const Table& table) {
  const Blocks blocks = {setup.x().elements()};
  const auto run = [=, lookup = setup.kernels.lookup, x = setup.x().offset, y = setup.y().offset](
                       const Call& call, int64_t begin, int64_t end) {
    const int64_t from = blocks.start(begin);
    lookup(table.data(), call.arena + x + from, blocks.start(end) - from, call.arena + y + from);
  };
  return {run, blocks.units(), cost::kValue * static_cast<double>(blocks.count)};
}

// y = f(a, b) where b broadcasts to a; `f` takes two arrays of a length.
template <class F>
Step run_pairs(Setup& setup, F f) {
  const Tensor &a = setup.x(), &b = setup.second();
  const Broadcast how = broadcast(b.shape, a.shape, a.shape.size());
  const uint64_t a_at = a.offset, b_at = b.offset, y_at = setup.y().offset;
  const Blocks blocks = {a.elements()};
  const double work = cost::kValue * static_cast<double>(blocks.count);
  if (how.runs() == 1 && how.contiguous) {
    const auto run = [=](const Call& call, int64_t begin, int64_t end) {
      const int64_t from = blocks.start(begin), count = blocks.start(end) - from;
      f(call.arena + a_at + from, call.arena + b_at + from, count, call.arena + y_at + from);
    };
    return {run, blocks.units(), work};
  }
  if (!how.contiguous) setup.need_scratch(static_cast<size_t>(how.run));
  const auto run = [=](const Call& call, int64_t begin, int64_t end) {
    how.for_each(begin, end, [&](int64_t from_a, int64_t from_b) {
      const uint8_t* second = call.arena + b_at + from_b;
      if (!how.contiguous) {
        std::memset(call.scratch, *second, static_cast<size_t>(how.run));
        second = call.scratch;
      }
      f(call.arena + a_at + from_a, second, how.run, call.arena + y_at + from_a);
    });
  };
  return {run, how.runs(), work};
}

// Rows of y that are made together where axes are permuted: so few that they stay in the cache, and enough
// that whole lines of it are used.
int64_t rows_together(const Strided& order) {
  return std::min(order.size[0], std::max<int64_t>(64, 4096 / order.row()));
}

}  // namespace

Step prepare_quantize(Setup& setup) {
  const Tensor& y = setup.y();
  const size_t port = port_of(setup.plan.inputs, setup.op().x());
  const Strided order = transposition(setup.x().shape, setup.op().order);
  const Blocks blocks = {y.elements()};
  const double work = cost::kValue * static_cast<double>(blocks.count);
  const auto quantize = [kernel = setup.kernels.quantize, scale = y.scale, zero_point = y.zero_point](
                            const float* x, int64_t count, uint8_t* to) {
    kernel(x, count, scale, zero_point, to);
  };
  const auto input = [port, count = blocks.count](const Call& call) {
    return static_cast<const float*>(call.inputs[port]) + call.sample * count;
  };
  if (order.is_plain()) {
    const auto run = [=, at = y.offset](const Call& call, int64_t begin, int64_t end) {
      const int64_t from = blocks.start(begin);
      quantize(input(call) + from, blocks.start(end) - from, call.arena + at + from);
    };
    return {run, blocks.units(), work};
  }
  if (order.size.size() == 2) {  // channels come last: a few pixels of each channel at a time
    const int64_t pixels = order.size[0], channels = order.size[1], together = rows_together(order);
    setup.need_scratch(static_cast<size_t>(together * channels));
    const auto run = [=, at = y.offset](const Call& call, int64_t begin, int64_t end) {
      for (int64_t from = begin * together; from < std::min(end * together, pixels); from += together) {
        const int64_t count = std::min(together, pixels - from);
        for (int64_t c = 0; c < channels; ++c) {
          quantize(input(call) + c * pixels + from, count, call.scratch + c * count);
        }
        transpose(call.scratch, channels, count, count, call.arena + at + from * channels, channels);
      }
    };
    return {run, (pixels + together - 1) / together, 2 * work};
  }
  setup.need_scratch(static_cast<size_t>(blocks.count));
  const auto run = [=, at = y.offset](const Call& call, int64_t, int64_t) {
    quantize(input(call), blocks.count, call.scratch);
    order.copy(call.scratch, call.arena + at);
  };
  return {run, 1, 2 * work};
}

Step prepare_dequantize(Setup& setup) {
  const Tensor& x = setup.x();
  const size_t port = port_of(setup.plan.outputs, setup.op().y);
  const Strided order = transposition(x.shape, setup.op().order);
  const Blocks blocks = {x.elements()};
  const double work = cost::kValue * static_cast<double>(blocks.count);
  const auto dequantize = [kernel = setup.kernels.dequantize, scale = x.scale, zero_point = x.zero_point](
                              const uint8_t* from, int64_t count, float* y) {
    kernel(from, count, scale, zero_point, y);
  };
  const auto output = [port, count = blocks.count](const Call& call) {
    return call.outputs[port] + call.sample * count;
  };
  if (order.is_plain()) {
    const auto run = [=, at = x.offset](const Call& call, int64_t begin, int64_t end) {
      const int64_t from = blocks.start(begin);
      dequantize(call.arena + at + from, blocks.start(end) - from, output(call) + from);
    };
    return {run, blocks.units(), work};
  }
  const int64_t rows = order.size[0], row = order.row(), together = rows_together(order);
  setup.need_scratch(static_cast<size_t>(together * row));
  const auto run = [=, at = x.offset](const Call& call, int64_t begin, int64_t end) {
    for (int64_t from = begin * together; from < std::min(end * together, rows); from += together) {
      const int64_t to = std::min(from + together, rows);
      order.copy(call.arena + at, call.scratch, from, to);
      dequantize(call.scratch, (to - from) * row, output(call) + from * row);
    }
  };
  return {run, (rows + together - 1) / together, 2 * work};
}

Step prepare_add(Setup& setup) {
  const Rescale& rescale = setup.op().rescale;
  const Addition addition = {{setup.x().zero_point, setup.second().zero_point},
                             {rescale.multiplier[0], rescale.multiplier[1]},
                             rescale.shift[0],
                             setup.scaling()};
  return run_pairs(setup,
                   [addition, add = setup.kernels.add](const uint8_t* a, const uint8_t* b, int64_t count,
                                                       uint8_t* y) { add(addition, a, b, count, y); });
}

Step prepare_multiply(Setup& setup) {
  const Multiplication multiplication = {{setup.x().zero_point, setup.second().zero_point}, setup.scaling()};
  return run_pairs(setup, [multiplication, multiply = setup.kernels.multiply](
                              const uint8_t* a, const uint8_t* b, int64_t count, uint8_t* y) {
    multiply(multiplication, a, b, count, y);
  });
}

Step prepare_requantize(Setup& setup) {
  const Scaling to = setup.scaling();
  Table table;
  for (int32_t q = 0; q < 256; ++q) {
    const int64_t value = requantize(q - setup.x().zero_point, to.multiplier[0], to.shift[0]);
    table[static_cast<size_t>(q)] = saturate(value + to.zero_point, to.low, to.high);
  }
  return run_table(setup, table);
}

Step prepare_lookup(Setup& setup) {
  Table table;
  for (size_t q = 0; q < table.size(); ++q) {
    table[q] = static_cast<uint8_t>(static_cast<uint32_t>(setup.op().table[q / 4]) >> (q % 4 * 8));
  }
  return run_table(setup, table);
}

}  // namespace edgewright
