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

// How f finds its element number i: the bytes that one takes in a, b and y.
struct Items {
  int64_t a, b, y;
};

// One value of b, `count` times.
void repeat(const uint8_t* value, int64_t item, int64_t count, uint8_t* to) {
  if (item == 1) {
    std::memset(to, *value, static_cast<size_t>(count));
  } else {
    std::fill_n(reinterpret_cast<int16_t*>(to), count, *reinterpret_cast<const int16_t*>(value));
  }
}

// y = f(a, b) where b broadcasts to a; `f` takes two arrays of a length.
template <class F>
Step run_pairs(Setup& setup, F f) {
  const Tensor &a = setup.x(), &b = setup.second();
  const Broadcast how = broadcast(b.shape, a.shape, a.shape.size());
  const uint64_t a_at = a.offset, b_at = b.offset, y_at = setup.y().offset;
  const Items item = {a.item(), b.item(), setup.y().item()};
  const Blocks blocks = {a.elements()};
  const double work = cost::kValue * static_cast<double>(blocks.count);
  if (how.runs() == 1 && how.contiguous) {
    const auto run = [=](const Call& call, int64_t begin, int64_t end) {
      const int64_t from = blocks.start(begin), count = blocks.start(end) - from;
      f(call.arena + a_at + from * item.a, call.arena + b_at + from * item.b, count,
        call.arena + y_at + from * item.y);
    };
    return {run, blocks.units(), work};
  }
  if (!how.contiguous) setup.need_scratch(static_cast<size_t>(how.run * item.b));
  const auto run = [=](const Call& call, int64_t begin, int64_t end) {
    how.for_each(begin, end, [&](int64_t from_a, int64_t from_b) {
      const uint8_t* second = call.arena + b_at + from_b * item.b;
      if (!how.contiguous) {
        repeat(second, item.b, how.run, call.scratch);
        second = call.scratch;
      }
      f(call.arena + a_at + from_a * item.a, second, how.run, call.arena + y_at + from_a * item.y);
    });
  };
  return {run, how.runs(), work};
}

void copy(const Strided& order, int64_t item, const uint8_t* x, uint8_t* y, int64_t begin, int64_t end) {
  if (item == 1) return order.copy(x, y, begin, end);
  order.copy(reinterpret_cast<const int16_t*>(x), reinterpret_cast<int16_t*>(y), begin, end);
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
  const int64_t item = y.item();
  const auto quantize = [=, narrow = setup.kernels.quantize,
                         wide = y.is_wide() ? setup.kernels.wide.quantize : nullptr, scale = y.scale,
                         zero_point = y.zero_point](const float* x, int64_t count, uint8_t* to) {
    wide == nullptr ? narrow(x, count, scale, zero_point, to) : wide(x, count, scale, to);
  };
  const auto input = [port, count = blocks.count](const Call& call) {
    return static_cast<const float*>(call.inputs[port]) + call.sample * count;
  };
  if (order.is_plain()) {
    const auto run = [=, at = y.offset](const Call& call, int64_t begin, int64_t end) {
      const int64_t from = blocks.start(begin);
      quantize(input(call) + from, blocks.start(end) - from, call.arena + at + from * item);
    };
    return {run, blocks.units(), work};
  }
  if (order.size.size() == 2) {  // channels come last: a few pixels of each channel at a time
    const auto turned = [item, interleave = setup.kernels.interleave](const uint8_t* x, int64_t rows,
                                                                      int64_t columns, uint8_t* to) {
      if (item == 1 && rows == 3) return interleave(x, columns, to);
      if (item == 1) return transpose(x, rows, columns, columns, to, rows);
      transpose(reinterpret_cast<const int16_t*>(x), rows, columns, columns, reinterpret_cast<int16_t*>(to),
                rows);
    };
    const int64_t pixels = order.size[0], channels = order.size[1], together = rows_together(order);
    setup.need_scratch(static_cast<size_t>(together * channels * item));
    const auto run = [=, at = y.offset](const Call& call, int64_t begin, int64_t end) {
      for (int64_t from = begin * together; from < std::min(end * together, pixels); from += together) {
        const int64_t count = std::min(together, pixels - from);
        for (int64_t c = 0; c < channels; ++c) {
          quantize(input(call) + c * pixels + from, count, call.scratch + c * count * item);
        }
        turned(call.scratch, channels, count, call.arena + at + from * channels * item);
      }
    };
    return {run, (pixels + together - 1) / together, 2 * work};
  }
  setup.need_scratch(static_cast<size_t>(blocks.count * item));
  const auto run = [=, at = y.offset](const Call& call, int64_t, int64_t) {
    quantize(input(call), blocks.count, call.scratch);
    copy(order, item, call.scratch, call.arena + at, 0, order.size[0]);
  };
  return {run, 1, 2 * work};
}

Step prepare_dequantize(Setup& setup) {
  const Tensor& x = setup.x();
  const size_t port = port_of(setup.plan.outputs, setup.op().y);
  const Strided order = transposition(x.shape, setup.op().order);
  const Blocks blocks = {x.elements()};
  const double work = cost::kValue * static_cast<double>(blocks.count);
  const int64_t item = x.item();
  const auto dequantize = [narrow = setup.kernels.dequantize,
                           wide = x.is_wide() ? setup.kernels.wide.dequantize : nullptr, scale = x.scale,
                           zero_point = x.zero_point](const uint8_t* from, int64_t count, float* y) {
    wide == nullptr ? narrow(from, count, scale, zero_point, y) : wide(from, count, scale, y);
  };
  const auto output = [port, count = blocks.count](const Call& call) {
    return call.outputs[port] + call.sample * count;
  };
  if (order.is_plain()) {
    const auto run = [=, at = x.offset](const Call& call, int64_t begin, int64_t end) {
      const int64_t from = blocks.start(begin);
      dequantize(call.arena + at + from * item, blocks.start(end) - from, output(call) + from);
    };
    return {run, blocks.units(), work};
  }
  const int64_t rows = order.size[0], row = order.row(), together = rows_together(order);
  setup.need_scratch(static_cast<size_t>(together * row * item));
  const auto run = [=, at = x.offset](const Call& call, int64_t begin, int64_t end) {
    for (int64_t from = begin * together; from < std::min(end * together, rows); from += together) {
      const int64_t to = std::min(from + together, rows);
      copy(order, item, call.arena + at, call.scratch, from, to);
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
  const auto add =
      setup.is_wide()
          ? setup.kernels.wide.add[setup.x().is_wide()][setup.second().is_wide()][setup.y().is_wide()]
          : setup.kernels.add;
  return run_pairs(setup, [addition, add](const uint8_t* a, const uint8_t* b, int64_t count, uint8_t* y) {
    add(addition, a, b, count, y);
  });
}

Step prepare_multiply(Setup& setup) {
  const Multiplication multiplication = {{setup.x().zero_point, setup.second().zero_point}, setup.scaling()};
  const auto multiply =
      setup.is_wide()
          ? setup.kernels.wide.multiply[setup.x().is_wide()][setup.second().is_wide()][setup.y().is_wide()]
          : setup.kernels.multiply;
  return run_pairs(setup,
                   [multiplication, multiply](const uint8_t* a, const uint8_t* b, int64_t count, uint8_t* y) {
                     multiply(multiplication, a, b, count, y);
                   });
}

// Of uint8 to uint8 by one factor, a table; else its kernel.
Step prepare_requantize(Setup& setup) {
  const Scaling to = setup.scaling();
  const int64_t factors = static_cast<int64_t>(setup.op().rescale.multiplier.size());
  if (setup.is_wide() || factors > 1) {
    const Tensor &x = setup.x(), &y = setup.y();
    const Requantization op = {factors, x.zero_point, to};
    const Blocks blocks = {x.elements() / factors, std::max<int64_t>(1, Blocks::kSize / factors)};
    const auto run = [=, kernel = setup.kernels.wide.requantize[x.is_wide()][y.is_wide()], x_at = x.offset,
                      y_at = y.offset, x_row = factors * x.item(),
                      y_row = factors * y.item()](const Call& call, int64_t begin, int64_t end) {
      const int64_t from = blocks.start(begin);
      kernel(op, call.arena + x_at + from * x_row, blocks.start(end) - from,
             call.arena + y_at + from * y_row);
    };
    return {run, blocks.units(), cost::kValue * static_cast<double>(x.elements())};
  }
  Table table;
  for (int32_t q = 0; q < 256; ++q) {
    const int64_t value = requantize(q - setup.x().zero_point, to.multiplier[0], to.shift[0]);
    table[static_cast<size_t>(q)] = saturate(value + to.zero_point, to.low, to.high);
  }
  return run_table(setup, table);
}

Step prepare_lookup(Setup& setup) {
  if (setup.is_wide()) {
    const Tensor &x = setup.x(), &y = setup.y();
    const Blocks blocks = {x.elements()};
    const auto run = [=, kernel = setup.kernels.wide.lookup[x.is_wide()][y.is_wide()],
                      table = reinterpret_cast<const uint8_t*>(setup.op().table.data()), x_at = x.offset,
                      y_at = y.offset, x_item = x.item(),
                      y_item = y.item()](const Call& call, int64_t begin, int64_t end) {
      const int64_t from = blocks.start(begin);
      kernel(table, call.arena + x_at + from * x_item, blocks.start(end) - from,
             call.arena + y_at + from * y_item);
    };
    return {run, blocks.units(), cost::kValue * static_cast<double>(blocks.count)};
  }
  Table table;
  for (size_t q = 0; q < table.size(); ++q) {
    table[q] = static_cast<uint8_t>(static_cast<uint32_t>(setup.op().table[q / 4]) >> (q % 4 * 8));
  }
  return run_table(setup, table);
}

}  // namespace edgewright
