// What the kernels share: threads and torch's tensors.

#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

#include <pthread.h>
#include <sched.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "vectors.h"

namespace bild {

constexpr int64_t VECTOR = 64;          // bytes
constexpr int64_t ALONE = 24000;        // cycles of work up to which one thread is faster than two that meet
constexpr int64_t SHARE = 6000;         // cycles of work taken at a time

// Work of so many units, some from one to below another, by as many threads as it is worth.
//   cycles: of one unit.
void share_out(int64_t units, int64_t cycles, int64_t threads, const std::function<void(int64_t, int64_t)>& work);

inline void check(AOTITorchError error) {
  if (error != AOTI_TORCH_SUCCESS) throw std::runtime_error("a torch call failed");
}

inline void require(bool right, const char* message) {
  if (!right) throw std::runtime_error(message);
}

struct Sizes {
  int64_t dims;
  int64_t *sizes, *strides;
  explicit Sizes(AtenTensorHandle tensor) {
    check(aoti_torch_get_dim(tensor, &dims));
    check(aoti_torch_get_sizes(tensor, &sizes));
    check(aoti_torch_get_strides(tensor, &strides));
  }
  // Where a row begins, all dimensions but the last counted through.
  int64_t offset(int64_t row) const {
    int64_t place = 0;
    for (int64_t d = dims - 2; d >= 0; d--) {
      place += row % sizes[d] * strides[d];
      row /= sizes[d];
    }
    return place;
  }
};

// Rows of [..., columns].
inline int64_t rows_of(const Sizes& states) {
  int64_t rows = 1;
  for (int64_t d = 0; d < states.dims - 1; d++) rows *= states.sizes[d];
  return rows;
}

inline int64_t count(AtenTensorHandle tensor) {
  int64_t numbers;
  check(aoti_torch_get_numel(tensor, &numbers));
  return numbers;
}

inline bool is(AtenTensorHandle tensor, int32_t dtype) {
  int32_t found;
  check(aoti_torch_get_dtype(tensor, &found));
  return found == dtype;
}

inline bool dense(AtenTensorHandle tensor) {
  bool found;
  check(aoti_torch_is_contiguous(tensor, &found));
  return found;
}

template <class T>
T* data(AtenTensorHandle tensor) {
  void* pointer;
  check(aoti_torch_get_data_ptr(tensor, &pointer));
  return static_cast<T*>(pointer);
}

inline AtenTensorHandle handle(const std::optional<torch::stable::Tensor>& tensor) {
  return tensor ? tensor->get() : nullptr;
}

// What a compiled graph gets: a result, or word that there is none; nothing is thrown through it.
template <class Make>
AOTITorchError hand_over(AtenTensorHandle* result, Make make) {
  try {
    *result = make();
    return AOTI_TORCH_SUCCESS;
  } catch (...) {
    return AOTI_TORCH_FAILURE;
  }
}

// A new tensor [..., outputs], its other dimensions like those of another.
inline AtenTensorHandle empty(const Sizes& like, int64_t outputs, int32_t dtype) {
  std::vector<int64_t> sizes(like.sizes, like.sizes + like.dims), strides(like.dims, 1);
  sizes.back() = outputs;
  for (int64_t d = like.dims - 2; d >= 0; d--) strides[d] = strides[d + 1] * sizes[d + 1];
  AtenTensorHandle made;
  check(aoti_torch_empty_strided(like.dims, sizes.data(), strides.data(), dtype, aoti_torch_device_type_cpu(), 0, &made));
  return made;
}

}  // namespace bild
