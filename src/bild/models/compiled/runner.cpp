// Runs compiled graphs without holding Python's lock, so that threads decode side by side; and writes several tokens
// without returning to Python in between.

#include "runner.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace bild {
namespace {

std::mutex lock;
std::unordered_map<int64_t, std::shared_ptr<Graph>> graphs;
int64_t last_graph = 0;

}  // namespace

std::shared_ptr<Graph> graph_of(int64_t number) {
  std::lock_guard<std::mutex> held(lock);
  const auto found = graphs.find(number);
  TORCH_CHECK(found != graphs.end(), "there is no graph ", number);
  return found->second;
}

namespace {

// Reads a package; so many threads may run it at a time, and the weights are there once.
int64_t open_graph(const std::string& file, int64_t threads) {
  auto graph = std::make_shared<Graph>(file, "model", false, static_cast<size_t>(threads), -1);
  std::lock_guard<std::mutex> held(lock);
  graphs.emplace(++last_graph, std::move(graph));
  return last_graph;
}

void close_graph(int64_t number) {
  std::shared_ptr<Graph> graph;
  std::lock_guard<std::mutex> held(lock);
  if (const auto found = graphs.find(number); found != graphs.end()) {
    graph = std::move(found->second);
    graphs.erase(found);
  }
}

std::vector<at::Tensor> run_graph(int64_t number, at::TensorList inputs) {
  return graph_of(number)->run(inputs.vec());
}

// Rows read the one token they have not read, then go on with the likeliest one, until each has come to its end.
//
// inputs: as the graph takes them. The first, [N, 4], has a row's place, how many tokens it has read, 1, and the token.
// floors: [N], float64: a token that is less probable, or whose probability is not a number, is a row's last one.
// ends: [E], any of these is a row's last token, too.
// rooms: [N], how many tokens a row may write.
//
// Returns what each row wrote [N, most], how probable each token is, and how many they are.
std::tuple<at::Tensor, at::Tensor, at::Tensor> roll_graph(
    int64_t number, at::TensorList inputs, const at::Tensor& floors, const at::Tensor& ends, const at::Tensor& rooms) {
  const auto graph = graph_of(number);
  std::vector<at::Tensor> arguments = inputs.vec();
  const int64_t count = arguments[0].size(0), width = arguments[0].size(1);
  TORCH_CHECK(width == 4, "rows of a roll have a place, a length, a count and a token; got ", width, " numbers");
  at::Tensor numbers = arguments[0].clone();
  int64_t* row = numbers.data_ptr<int64_t>();
  const double* floor = floors.const_data_ptr<double>();
  const int64_t *end = ends.const_data_ptr<int64_t>(), *room = rooms.const_data_ptr<int64_t>();
  const int64_t last = ends.numel(), most = rooms.max().item<int64_t>();
  at::Tensor tokens = at::zeros({count, most}, at::kLong), probabilities = at::zeros({count, most}, at::kFloat);
  at::Tensor counts = at::zeros({count}, at::kLong);
  int64_t *token = tokens.data_ptr<int64_t>(), *written = counts.data_ptr<int64_t>();
  float* probability = probabilities.data_ptr<float>();
  // Rows that still write, which move up in the numbers.
  std::vector<int64_t> going(count);
  for (int64_t n = 0; n < count; ++n) going[n] = n;
  while (!going.empty()) {
    arguments[0] = numbers.narrow(0, 0, static_cast<int64_t>(going.size()));
    const std::vector<at::Tensor> scores = graph->run(arguments);
    const int64_t* likeliest = scores[1].const_data_ptr<int64_t>();
    const float* chance = scores[2].const_data_ptr<float>();
    size_t kept = 0;
    for (size_t from = 0; from < going.size(); ++from) {
      const int64_t n = going[from], picked = likeliest[from], place = row[from * width], length = row[from * width + 1];
      const int64_t step = written[n]++;
      token[n * most + step] = picked;
      probability[n * most + step] = chance[from];
      const bool is_last = !(static_cast<double>(chance[from]) >= floor[n]) || step + 1 >= room[n] ||
                           std::find(end, end + last, picked) != end + last;
      if (is_last) continue;
      row[kept * width] = place;
      row[kept * width + 1] = length + 1;
      row[kept * width + 3] = picked;
      going[kept++] = n;
    }
    going.resize(kept);
  }
  return {tokens, probabilities, counts};
}

// Tensors that somebody wants to know unchanged.
struct Watched {
  std::vector<at::Tensor> tensors;
  // Of these, which are contiguous and on the CPU, so many numbers are looked at.
  std::vector<at::Tensor> sampled;
  int64_t numbers;
};

std::unordered_map<int64_t, std::shared_ptr<const Watched>> watched;
int64_t last_watched = 0;

int64_t watch_tensors(at::TensorList tensors, at::TensorList sampled, int64_t numbers) {
  auto all = std::make_shared<const Watched>(Watched{tensors.vec(), sampled.vec(), numbers});
  std::lock_guard<std::mutex> held(lock);
  watched.emplace(++last_watched, std::move(all));
  return last_watched;
}

void unwatch_tensors(int64_t number) {
  std::lock_guard<std::mutex> held(lock);
  watched.erase(number);
}

// A number that differs where any of the tensors has moved, was written to, or holds other numbers (FNV-1a).
int64_t fingerprint(int64_t number) {
  std::shared_ptr<const Watched> all;
  {
    std::lock_guard<std::mutex> held(lock);
    const auto found = watched.find(number);
    TORCH_CHECK(found != watched.end(), "nothing is watched as ", number);
    all = found->second;
  }
  uint64_t hash = 14695981039346656037ull;
  const auto mix = [&hash](uint64_t value) { hash = (hash ^ value) * 1099511628211ull; };
  for (const at::Tensor& each : all->tensors) {
    mix(reinterpret_cast<uint64_t>(each.const_data_ptr()));
    if (!each.is_inference()) mix(static_cast<uint64_t>(each._version()));
  }
  for (const at::Tensor& each : all->sampled) {
    const size_t size = each.element_size(), count = each.numel();
    const size_t step = std::max<size_t>(1, count / static_cast<size_t>(all->numbers));
    const auto* bytes = static_cast<const unsigned char*>(each.const_data_ptr());
    for (size_t at = 0; at < count; at += step) {
      uint64_t value = 0;
      std::memcpy(&value, bytes + at * size, std::min(size, sizeof(value)));
      mix(value);
    }
  }
  return static_cast<int64_t>(hash);
}

TORCH_LIBRARY_FRAGMENT(bild, library) {
  library.def("open_graph(str file, int threads) -> int", open_graph);
  library.def("close_graph(int graph) -> ()", close_graph);
  library.def("run_graph(int graph, Tensor[] inputs) -> Tensor[]", run_graph);
  library.def(
      "roll_graph(int graph, Tensor[] inputs, Tensor floors, Tensor ends, Tensor rooms) -> (Tensor, Tensor, Tensor)",
      roll_graph);
  library.def(
      "play_rounds(int small, Tensor[] small_inputs, int large, Tensor[] large_inputs, Tensor rows, Tensor limits, "
      "Tensor tails, Tensor ends, int columns, int most, int patience_us) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      play_rounds);
  library.def("watch_tensors(Tensor[] tensors, Tensor[] sampled, int numbers) -> int", watch_tensors);
  library.def("unwatch_tensors(int watched) -> ()", unwatch_tensors);
  library.def("fingerprint(int watched) -> int", fingerprint);
}

}  // namespace
}  // namespace bild
