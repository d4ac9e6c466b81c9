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

Run run_table(Setup& setup, const Table& table) {
  return [table, lookup = setup.kernels.lookup, count = setup.x().elements(), x = setup.x().offset,
          y = setup.y().offset](const Call& call) {
    lookup(table.data(), call.arena + x, count, call.arena + y);
  };
}

// y = f(a, b) where b broadcasts to a; `f` takes two arrays of a length.
template <class F>
Run run_pairs(Setup& setup, F f) {
  const Tensor &a = setup.x(), &b = setup.second();
  const Broadcast how = broadcast(b.shape, a.shape, a.shape.size());
  const uint64_t a_at = a.offset, b_at = b.offset, y_at = setup.y().offset;
  if (!how.contiguous) setup.need_scratch(static_cast<size_t>(how.run));
  return [=](const Call& call) {
    how.for_each([&](int64_t from_a, int64_t from_b) {
      const uint8_t* second = call.arena + b_at + from_b;
      if (!how.contiguous) {
        std::memset(call.scratch, *second, static_cast<size_t>(how.run));
        second = call.scratch;
      }
      f(call.arena + a_at + from_a, second, how.run, call.arena + y_at + from_a);
    });
  };
}

}  // namespace

Run prepare_quantize(Setup& setup) {
  const Tensor& y = setup.y();
  const size_t port = port_of(setup.plan.inputs, setup.op().x());
  const Strided order = transposition(setup.x().shape, setup.op().order);
  const int64_t count = y.elements();
  if (!order.is_plain()) setup.need_scratch(static_cast<size_t>(count));
  return [=, quantize = setup.kernels.quantize, scale = y.scale, zero_point = y.zero_point,
          at = y.offset](const Call& call) {
    const float* x = static_cast<const float*>(call.inputs[port]) + call.sample * count;
    uint8_t* to = call.arena + at;
    quantize(x, count, scale, zero_point, order.is_plain() ? to : call.scratch);
    if (!order.is_plain()) order.copy(call.scratch, to);
  };
}

Run prepare_dequantize(Setup& setup) {
  const Tensor& x = setup.x();
  const size_t port = port_of(setup.plan.outputs, setup.op().y);
  const Strided order = transposition(x.shape, setup.op().order);
  const int64_t count = x.elements();
  if (!order.is_plain()) setup.need_scratch(static_cast<size_t>(count));
  return [=, dequantize = setup.kernels.dequantize, scale = x.scale, zero_point = x.zero_point,
          at = x.offset](const Call& call) {
    const uint8_t* from = call.arena + at;
    if (!order.is_plain()) order.copy(from, call.scratch);
    dequantize(order.is_plain() ? from : call.scratch, count, scale, zero_point,
               call.outputs[port] + call.sample * count);
  };
}

Run prepare_add(Setup& setup) {
  const Rescale& rescale = setup.op().rescale;
  const Addition addition = {{setup.x().zero_point, setup.second().zero_point},
                             {rescale.multiplier[0], rescale.multiplier[1]},
                             rescale.shift[0],
                             setup.scaling()};
  return run_pairs(setup,
                   [addition, add = setup.kernels.add](const uint8_t* a, const uint8_t* b, int64_t count,
                                                       uint8_t* y) { add(addition, a, b, count, y); });
}

Run prepare_multiply(Setup& setup) {
  const Multiplication multiplication = {{setup.x().zero_point, setup.second().zero_point}, setup.scaling()};
  return run_pairs(setup, [multiplication, multiply = setup.kernels.multiply](
                              const uint8_t* a, const uint8_t* b, int64_t count, uint8_t* y) {
    multiply(multiplication, a, b, count, y);
  });
}

Run prepare_requantize(Setup& setup) {
  const Scaling to = setup.scaling();
  Table table;
  for (int32_t q = 0; q < 256; ++q) {
    const int64_t value = requantize(q - setup.x().zero_point, to.multiplier[0], to.shift[0]);
    table[static_cast<size_t>(q)] = saturate(value + to.zero_point, to.low, to.high);
  }
  return run_table(setup, table);
}

Run prepare_lookup(Setup& setup) {
  Table table;
  for (size_t q = 0; q < table.size(); ++q) {
    table[q] = static_cast<uint8_t>(static_cast<uint32_t>(setup.op().table[q / 4]) >> (q % 4 * 8));
  }
  return run_table(setup, table);
}

}  // namespace edgewright
