// The operators of attention: products of activations, Softmax, LayerNorm.
#include "step.h"
#include "strides.h"

namespace edgewright {

Run prepare_matmul(Setup& setup) {
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
  setup.need_scratch(setup.kernels.product.scratch_bytes(product));
  const int64_t batch = y.elements() / (product.rows * product.columns);
  return [=, kernel = setup.kernels.product, a_at = a.offset, b_at = b.offset,
          y_at = y.offset](const Call& call) {
    const uint8_t *left = call.arena + a_at, *right = call.arena + b_at;
    uint8_t* to = call.arena + y_at;
    for (int64_t i = 0; i < batch; ++i) {
      kernel.run(product, left, right, to, call.scratch);
      left += product.rows * product.terms;
      right += product.terms * product.columns;
      to += product.rows * product.columns;
    }
  };
}

Run prepare_softmax(Setup& setup) {
  const Tensor &x = setup.x(), &y = setup.y();
  const bool masked = setup.op().reads.size() > 1;
  const Exponentials op = {x.shape.back(), setup.op().table.data(), masked ? setup.second().zero_point : 0,
                           setup.scaling()};
  const auto kernel = setup.kernels.softmax;
  const uint64_t x_at = x.offset, y_at = y.offset;
  if (!masked) {
    return [=, rows = x.elements() / op.count](const Call& call) {
      for (int64_t row = 0; row < rows; ++row) {
        kernel(op, call.arena + x_at + row * op.count, nullptr, 0, call.arena + y_at + row * op.count);
      }
    };
  }
  const Broadcast how = broadcast(setup.second().shape, x.shape, 1);
  return [=, mask_at = setup.second().offset](const Call& call) {
    how.for_each([&](int64_t from, int64_t from_mask) {
      kernel(op, call.arena + x_at + from, call.arena + mask_at + from_mask, how.contiguous ? 1 : 0,
             call.arena + y_at + from);
    });
  };
}

Run prepare_layer_norm(Setup& setup) {
  const Tensor& x = setup.x();
  const Op& given = setup.op();
  const Normalization op = {x.shape.back(), given.gain.data(), given.offset.data(),
                            given.epsilon,  x.zero_point,      setup.scaling()};
  return
      [=, kernel = setup.kernels.layer_norm, rows = x.elements() / op.count, x_at = x.offset,
       y_at = setup.y().offset](const Call& call) { kernel(op, call.arena + x_at, rows, call.arena + y_at); };
}

}  // namespace edgewright
