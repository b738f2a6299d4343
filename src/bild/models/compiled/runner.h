// Compiled graphs by number, and what is done with two of them at once.

#pragma once

#include <cstdint>
#include <memory>
#include <tuple>

#include <ATen/core/Tensor.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

namespace bild {

using Graph = torch::inductor::AOTIModelPackageLoader;

std::shared_ptr<Graph> graph_of(int64_t number);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> play_rounds(
    int64_t small, at::TensorList small_inputs, int64_t large, at::TensorList large_inputs, const at::Tensor& rows,
    const at::Tensor& limits, const at::Tensor& tails, const at::Tensor& ends, int64_t columns, int64_t most,
    int64_t patience_us);

}  // namespace bild
