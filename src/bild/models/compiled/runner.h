// Compiled graphs by number, and what is done with two of them at once.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

namespace bild {

// A compiled graph, whole or in parts that are called one behind the other (layers.py).
class Graph {
 public:
  // threads: that may run it at a time; weights are there once.
  // calls: of each its part, how many arguments and results it has, and their places; none where the graph is whole.
  // weights: in the places behind the arguments of the graph.
  // places: how many there are.
  Graph(const std::string& file, size_t threads, at::ArrayRef<int64_t> calls, std::vector<at::Tensor> weights,
        size_t places);
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs);

 private:
  struct Call {
    size_t part;
    std::vector<int64_t> inputs, outputs;
  };

  std::vector<std::unique_ptr<torch::inductor::AOTIModelPackageLoader>> parts_;
  std::vector<Call> calls_;
  std::vector<at::Tensor> weights_;
  size_t places_;
};

std::shared_ptr<Graph> graph_of(int64_t number);

at::Tensor integers(int64_t rows, int64_t columns);

// Calls a graph again and again with the same arguments but for its rows and which positions are scored.
class Caller {
 public:
  Caller(int64_t graph, at::TensorList inputs);
  std::vector<at::Tensor> operator()(const at::Tensor& numbers, int64_t scored);

 private:
  std::shared_ptr<Graph> graph_;
  std::vector<at::Tensor> arguments_;
};

// A row that goes on with its likeliest tokens until one is doubted, ends the text, or fills the room.
struct Writer {
  // Where in the storage it is, and how many tokens it has read.
  int64_t place, read;
  // What it has not read, at least one token.
  std::vector<int64_t> unread;
  // A token less probable, or whose probability is not a number, is doubted.
  double floor;
  int64_t room;
  // What it has written since it began, and how probable each token is.
  std::vector<int64_t> written;
  std::vector<float> chances;

  // Said this way round, what is no number is doubted.
  bool doubts(float chance) const { return !(static_cast<double>(chance) >= floor); }
};

// Any of `ends` is a row's last token, too.
void roll(Caller& call, std::vector<Writer*> writing, const std::vector<int64_t>& ends);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> play_rounds(
    int64_t small, at::TensorList small_inputs, int64_t large, at::TensorList large_inputs, const at::Tensor& rows,
    const at::Tensor& limits, const at::Tensor& tails, const at::Tensor& begun, const at::Tensor& begun_chances,
    const at::Tensor& ends, int64_t columns, int64_t most, int64_t patience_us, double ragged, int64_t most_ragged);

}  // namespace bild
