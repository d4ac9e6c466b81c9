// What check.cpp is made of: the rules of one operator, by family, and what they share. Each throws
// PlanError, with a message that the caller sets behind the operator's name.
#pragma once

#include <string>
#include <vector>

#include "plan.h"

namespace edgewright {

[[noreturn]] void refuse(const std::string& what);
std::string quoted(const Tensor& tensor);
std::string listed(const std::vector<int64_t>& shape);

void same_shape(const Tensor& tensor, const std::vector<int64_t>& shape);
void same_grid(const Tensor& x, const Tensor& y);
// numpy's rule, where the result has the shape of `a`.
void check_broadcast(const Tensor& b, const Tensor& a);
// Within the range of y's dtype.
void check_rescale(const Rescale& rescale, int64_t channels, const Tensor& y);
// One multiplier for all, or one for each channel of y's last axis.
void check_rescale_by_channel(const Rescale& rescale, const Tensor& y);
// Which integers an operator takes and gives.
void check_dtypes(const Plan& plan, const Op& op);
void check_table(const Op& op, const Tensor& x, const Tensor& y);
const ByteRange& range_of(const Plan& plan, int32_t number);
// `rows` rows of `row` weights, and what there is one of per output.
void check_weights(const Plan& plan, const Op& op, const Tensor& y, int64_t rows, int64_t row);
void check_groups(int64_t groups, int64_t channels, int64_t outputs);

// check_windows.cpp
void check_window(const Plan& plan, const Op& op, const Tensor& x, const Tensor& y);
void check_transposed(const Plan& plan, const Op& op, const Tensor& x, const Tensor& y);
void check_resize(const Op& op, const Tensor& x, const Tensor& y);

// check_movement.cpp
void check_order(const std::vector<int32_t>& order, const Tensor& x, const Tensor& y);
void check_concat(const Plan& plan, const Op& op, const Tensor& y);
void check_slice(const Op& op, const Tensor& x, const Tensor& y);
void check_constant(const Plan& plan, const Op& op);

// check_rows.cpp
void check_matmul(const Op& op, const Tensor& a, const Tensor& b, const Tensor& y);
void check_softmax(const Plan& plan, const Op& op, const Tensor& x, const Tensor& y);
void check_layer_norm(const Op& op, const Tensor& x, const Tensor& y);

}  // namespace edgewright
