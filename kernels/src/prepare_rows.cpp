// The operators of attention: products of activations, Softmax, LayerNorm.
#include <algorithm>
#include <cstdlib>

#include "step.h"
#include "strides.h"

namespace edgewright {

namespace {

// Whether every result of a LayerNorm is below 2^30 in magnitude before the zero point comes and clamps cut.
//
// T is below 2^23: with S = n Q - A^2 <= D, the sum of all (n c - A)^2 over a row is n S, so |n c - A| is at
// most sqrt(n D). factor is at most 2^61 / root, and root >= 2^30 is less than 1 away from sqrt(D 2^k). So
// |T| is at most sqrt(n) 2^15 (1 + 2^-29) + 1, with n <= 2^15 below 5,932,000.
bool results_fit(const Op& op) {
  int64_t most = 0;
  for (size_t i = 0; i < op.gain.size(); ++i) {
    most = std::max(most, (std::abs(int64_t{op.gain[i]}) << 23) + std::abs(op.offset[i]));
  }
  const int32_t shift = op.rescale.shift[0];
  return (most >> shift) + 1 < int64_t{1} << 30;
}

// A table of Softmax as Exponentials wants it.
struct TableBytes {
  int32_t whole;
  uint8_t planes[512];
};

std::shared_ptr<const TableBytes> bytes_of(const std::vector<int32_t>& table) {
  const auto made = std::make_shared<TableBytes>();
  made->whole = static_cast<int32_t>(std::count(table.begin(), table.end(), 65536));
  for (size_t d = 0; d < 256; ++d) {
    const int32_t entry = std::min(table[d], 65535);
    made->planes[d] = static_cast<uint8_t>(entry & 255);
    made->planes[256 + d] = static_cast<uint8_t>(entry >> 8);
  }
  return made;
}

}  // namespace

Step prepare_matmul(Setup& setup) {
  const Tensor &a = setup.x(), &b = setup.second(), &y = setup.y();
  const size_t rank = a.shape.size();
  Product product{};
  product.rows = a.shape[rank - 2];
  product.terms = a.shape[rank - 1];
  product.columns = y.shape[rank - 1];
  product.transposed = setup.op().transpose_b;
  product.zero_point[0] = a.zero_point;
  product.zero_point[1] = b.zero_point;
  product.scaling = setup.scaling();
  product.y_item = y.item();
  const ProductKernel& kernel = y.is_wide() ? setup.kernels.wide.product : setup.kernels.product;
  setup.need_scratch(kernel.scratch_bytes(product));
  // A unit is a few rows of one product.
  const int64_t each = std::min<int64_t>(product.rows, 16), parts = (product.rows + each - 1) / each;
  const int64_t batch = y.elements() / (product.rows * product.columns);
  const auto run = [=, run_kernel = kernel.run, item = y.item(), a_at = a.offset, b_at = b.offset,
                    y_at = y.offset](const Call& call, int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t i = begin / parts, stop = std::min(end, (i + 1) * parts);
      const int64_t row = begin % parts * each, last = std::min((stop - i * parts) * each, product.rows);
      Product part = product;
      part.rows = last - row;
      run_kernel(part, call.arena + a_at + (i * product.rows + row) * product.terms,
                 call.arena + b_at + i * product.terms * product.columns,
                 call.arena + y_at + (i * product.rows + row) * product.columns * item, call.scratch);
      begin = stop;
    }
  };
  const double products = static_cast<double>(y.elements()) * static_cast<double>(product.terms);
  return {run, batch * parts, cost::kProduct * products};
}

Step prepare_softmax(Setup& setup) {
  const Tensor &x = setup.x(), &y = setup.y();
  const bool masked = setup.op().reads.size() > 1;
  const std::shared_ptr<const TableBytes> bytes = x.is_wide() ? nullptr : bytes_of(setup.op().table);
  const Exponentials op = {x.shape.back(),  setup.op().table.data(),  masked ? setup.second().zero_point : 0,
                           setup.scaling(), bytes ? bytes->whole : 0, bytes ? bytes->planes : nullptr};
  const int64_t item = x.item();
  if (x.is_wide()) setup.need_scratch(static_cast<size_t>(op.count) * sizeof(int32_t));
  const auto kernel = [op, bytes, wide = x.is_wide() ? setup.kernels.wide.softmax : nullptr,
                       narrow = setup.kernels.softmax](const Call& call, const uint8_t* from,
                                                       const uint8_t* mask, int64_t mask_step, uint8_t* to) {
    if (wide == nullptr) return narrow(op, from, mask, mask_step, to);
    wide(op, from, mask, mask_step, to, reinterpret_cast<int32_t*>(call.scratch));
  };
  const uint64_t x_at = x.offset, y_at = y.offset;
  const int64_t rows = x.elements() / op.count;
  const double work = cost::kRowValue * static_cast<double>(x.elements());
  if (!masked) {
    const auto run = [=](const Call& call, int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        kernel(call, call.arena + x_at + row * op.count * item, nullptr, 0,
               call.arena + y_at + row * op.count);
      }
    };
    return {run, rows, work};
  }
  const Broadcast how = broadcast(setup.second().shape, x.shape, 1);
  const auto run = [=, mask_at = setup.second().offset](const Call& call, int64_t begin, int64_t end) {
    how.for_each(begin, end, [&](int64_t from, int64_t from_mask) {
      kernel(call, call.arena + x_at + from * item, call.arena + mask_at + from_mask, how.contiguous ? 1 : 0,
             call.arena + y_at + from);
    });
  };
  return {run, how.runs(), work};
}

Step prepare_layer_norm(Setup& setup) {
  const Tensor &x = setup.x(), &y = setup.y();
  const Op& given = setup.op();
  const Normalization op = {x.shape.back(), given.gain.data(), given.offset.data(), given.epsilon,
                            x.zero_point,   setup.scaling(),   results_fit(given)};
  const auto kernel =
      setup.is_wide() ? setup.kernels.wide.layer_norm[x.is_wide()][y.is_wide()] : setup.kernels.layer_norm;
  const auto run = [=, x_row = op.count * x.item(), y_row = op.count * y.item(), x_at = x.offset,
                    y_at = y.offset](const Call& call, int64_t begin, int64_t end) {
    kernel(op, call.arena + x_at + begin * x_row, end - begin, call.arena + y_at + begin * y_row);
  };
  return {run, x.elements() / op.count, cost::kRowValue * static_cast<double>(x.elements())};
}

}  // namespace edgewright
