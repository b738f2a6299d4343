// Runs compiled graphs without holding Python's lock, so that threads decode side by side; and writes several tokens
// without returning to Python in between.

#include "runner.h"

#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace bild {
namespace {

std::mutex lock;
std::unordered_map<int64_t, std::shared_ptr<Graph>> graphs;
int64_t last_graph = 0;
std::atomic<int64_t> threads_that_run{0};

// Counted for as long as it is there.
struct Running {
  Running() { ++threads_that_run; }
  ~Running() { --threads_that_run; }
};

}  // namespace

Graph::Graph(const std::string& file, size_t threads, at::ArrayRef<int64_t> calls, std::vector<at::Tensor> weights,
             size_t places)
    : weights_(std::move(weights)), places_(places) {
  size_t parts = 0;
  for (const int64_t* number = calls.begin(); number != calls.end();) {
    const int64_t *inputs = number + 3, *outputs = inputs + number[1], *end = outputs + number[2];
    calls_.push_back({static_cast<size_t>(number[0]), {inputs, outputs}, {outputs, end}});
    parts = std::max(parts, calls_.back().part + 1);
    number = end;
  }
  const auto open = [&](const std::string& name) {
    parts_.push_back(std::make_unique<torch::inductor::AOTIModelPackageLoader>(file, name, false, threads, -1));
  };
  if (calls_.empty()) open("model");
  for (size_t part = 0; part < parts; ++part) open("part" + std::to_string(part));
}

std::vector<at::Tensor> Graph::run(const std::vector<at::Tensor>& inputs) {
  const Running counted;
  if (calls_.empty()) return parts_[0]->run(inputs);
  std::vector<at::Tensor> places = inputs, arguments, results;
  places.insert(places.end(), weights_.begin(), weights_.end());
  places.resize(places_);
  for (const Call& call : calls_) {
    arguments.clear();
    for (int64_t place : call.inputs) arguments.push_back(places[static_cast<size_t>(place)]);
    results = parts_[call.part]->boxed_run(std::move(arguments));
    for (size_t at = 0; at < results.size(); ++at) places[static_cast<size_t>(call.outputs[at])] = results[at];
  }
  return results;
}

std::shared_ptr<Graph> graph_of(int64_t number) {
  std::lock_guard<std::mutex> held(lock);
  const auto found = graphs.find(number);
  TORCH_CHECK(found != graphs.end(), "there is no graph ", number);
  return found->second;
}

at::Tensor integers(int64_t rows, int64_t columns) { return at::empty({rows, columns}, at::kLong); }

Caller::Caller(int64_t graph, at::TensorList inputs) : graph_(graph_of(graph)), arguments_(inputs.vec()) {}

std::vector<at::Tensor> Caller::operator()(const at::Tensor& numbers, int64_t scored) {
  arguments_[0] = numbers;
  if (arguments_[1].numel() != scored) arguments_[1] = at::arange(scored, at::kLong);
  return graph_->run(arguments_);
}

void roll(Caller& call, std::vector<Writer*> writing, const std::vector<int64_t>& ends) {
  size_t width = 1;
  for (Writer* each : writing) {
    each->written.clear();
    each->chances.clear();
    width = std::max(width, each->unread.size());
  }
  while (!writing.empty()) {
    at::Tensor numbers = integers(static_cast<int64_t>(writing.size()), static_cast<int64_t>(3 + width));
    int64_t* number = numbers.data_ptr<int64_t>();
    for (const Writer* each : writing) {
      *number++ = each->place;
      *number++ = each->read;
      *number++ = static_cast<int64_t>(each->unread.size());
      number = std::copy(each->unread.begin(), each->unread.end(), number);
      number = std::fill_n(number, width - each->unread.size(), 0);
    }
    const std::vector<at::Tensor> scores = call(numbers, 1);
    const int64_t* likeliest = scores[1].const_data_ptr<int64_t>();
    const float* chance = scores[2].const_data_ptr<float>();
    std::vector<Writer*> still;
    for (size_t from = 0; from < writing.size(); ++from) {
      Writer& each = *writing[from];
      const int64_t token = likeliest[from];
      each.read += static_cast<int64_t>(each.unread.size());
      each.unread.assign(1, token);
      each.written.push_back(token);
      each.chances.push_back(chance[from]);
      const bool is_last = each.doubts(chance[from]) || static_cast<int64_t>(each.written.size()) >= each.room ||
                           std::find(ends.begin(), ends.end(), token) != ends.end();
      if (!is_last) still.push_back(&each);
    }
    writing = std::move(still);
    width = 1;
  }
}

namespace {

constexpr int MAPPED_APART = 32 << 20, KEPT = 256 << 20;  // bytes

// What a batch frees is for the next one: given back to the system it is mapped and zeroed anew, page by page, which takes
// a twentieth of the time of large batches. Whoever tells malloc otherwise has the last word.
bool keep_memory() {
#ifdef __GLIBC__
  if (!std::getenv("MALLOC_TRIM_THRESHOLD_") && !std::getenv("GLIBC_TUNABLES"))
    return mallopt(M_MMAP_THRESHOLD, MAPPED_APART) && mallopt(M_TRIM_THRESHOLD, KEPT);
#endif
  return false;
}

// Threads that run a graph at this moment.
int64_t running_graphs() { return threads_that_run; }

int64_t open_graph(
    const std::string& file, int64_t threads, at::IntArrayRef calls, at::TensorList weights, int64_t places) {
  [[maybe_unused]] static const bool keeps = keep_memory();
  auto graph = std::make_shared<Graph>(
      file, static_cast<size_t>(threads), calls, weights.vec(), static_cast<size_t>(places));
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
  const int64_t count = inputs[0].size(0), width = inputs[0].size(1);
  TORCH_CHECK(width == 4, "rows of a roll have a place, a length, a count and a token; got ", width, " numbers");
  const int64_t *row = inputs[0].const_data_ptr<int64_t>(), *room = rooms.const_data_ptr<int64_t>();
  const double* floor = floors.const_data_ptr<double>();
  std::vector<Writer> writers;
  for (int64_t n = 0; n < count; ++n, row += width) {
    writers.push_back({row[0], row[1], {row[3]}, floor[n], room[n], {}, {}});
  }
  std::vector<Writer*> writing;
  for (Writer& each : writers) writing.push_back(&each);
  Caller call(number, inputs);
  const int64_t* end = ends.const_data_ptr<int64_t>();
  roll(call, std::move(writing), {end, end + ends.numel()});
  const int64_t most = *std::max_element(room, room + count);
  at::Tensor tokens = at::zeros({count, most}, at::kLong), probabilities = at::zeros({count, most}, at::kFloat);
  at::Tensor counts = at::zeros({count}, at::kLong);
  for (int64_t n = 0; n < count; ++n) {
    const Writer& each = writers[static_cast<size_t>(n)];
    std::copy(each.written.begin(), each.written.end(), tokens.data_ptr<int64_t>() + n * most);
    std::copy(each.chances.begin(), each.chances.end(), probabilities.data_ptr<float>() + n * most);
    counts.data_ptr<int64_t>()[n] = static_cast<int64_t>(each.written.size());
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

// Numbers that are looked at side by side: all of a model's weights are far from the core, and what counts is how often
// it has to be gone to them.
constexpr size_t SIDE_BY_SIDE = 4;

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
    const size_t step = std::max<size_t>(1, count * SIDE_BY_SIDE / static_cast<size_t>(all->numbers));
    const auto* bytes = static_cast<const unsigned char*>(each.const_data_ptr());
    for (size_t begin = 0; begin < count; begin += step) {
      for (size_t at = begin; at < std::min({count, begin + step, begin + SIDE_BY_SIDE}); ++at) {
        uint64_t value = 0;
        std::memcpy(&value, bytes + at * size, std::min(size, sizeof(value)));
        mix(value);
      }
    }
  }
  return static_cast<int64_t>(hash);
}

TORCH_LIBRARY_FRAGMENT(bild, library) {
  library.def("open_graph(str file, int threads, int[] calls, Tensor[] weights, int places) -> int", open_graph);
  library.def("close_graph(int graph) -> ()", close_graph);
  library.def("running_graphs() -> int", running_graphs);
  library.def("run_graph(int graph, Tensor[] inputs) -> Tensor[]", run_graph);
  library.def(
      "roll_graph(int graph, Tensor[] inputs, Tensor floors, Tensor ends, Tensor rooms) -> (Tensor, Tensor, Tensor)",
      roll_graph);
  library.def(
      "play_rounds(int small, Tensor[] small_inputs, int large, Tensor[] large_inputs, Tensor rows, Tensor limits, "
      "Tensor tails, Tensor begun, Tensor begun_chances, Tensor ends, int columns, int most, int patience_us, float ragged, int most_ragged) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      play_rounds);
  library.def("watch_tensors(Tensor[] tensors, Tensor[] sampled, int numbers) -> int", watch_tensors);
  library.def("unwatch_tensors(int watched) -> ()", unwatch_tensors);
  library.def("fingerprint(int watched) -> int", fingerprint);
}

}  // namespace
}  // namespace bild
