// Rounds of two models without returning to Python: the small one writes until it is unsure, the large one reads what
// was written, keeps what is near enough and writes the next token. bild/decoding/rounds.py has the same in the open.

#include "runner.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <vector>

#include <ATen/ops/tensor.h>

namespace bild {
namespace {

using Clock = std::chrono::steady_clock;

// Numbers of a row as Python gives them; `limits` has three more.
enum Given { COMMITTED, SMALL_READ, LARGE_READ, WINDOW, LEFT, KEEPS_DOUBTFUL, TAIL, BEGUN, GIVEN };
enum Limit { FLOOR, NEAR, SURE_OF_END, LIMITS };
// What became of a draft.
enum Outcome { UNREAD, JUDGED, BROKEN };
// Numbers of an event as Python gets them.
enum Told { ROW, WRITTEN, DRAFTED, OUTCOME, ACCEPTED, NEXT, SMALL_TOKENS, LARGE_TOKENS, TOLD };

// When the tokens of a pass are read one a row: share that is not padding, and tokens of a row, up to which it is done.
struct Ragged {
  double share;
  int64_t most;
};

struct Row : Writer {
  // Among those of the game, and where the large model has it; a writer has its place with the small one.
  int64_t number, large_place;
  int64_t committed, large_read, window, left;
  // How many tokens the small model has read in this round.
  int64_t small_tokens;
  bool keeps_doubtful;
  // Whether its first draft was written before.
  bool is_begun;
  double sure_of_end;
  float near;
  // The last tokens: at least all that either model has not read.
  std::vector<int64_t> tokens;
  // How many of those written are proposed, whether the text ends with them, and whether it does so by an end token.
  int64_t drafted;
  bool closes, ends;

  // A token by its place in the text.
  int64_t at(int64_t place) const { return tokens[tokens.size() - static_cast<size_t>(committed - place)]; }
};

// Next-token logits [..., V] in float32 or bfloat16, their positions counted through.
class Logits {
 public:
  explicit Logits(const at::Tensor& logits)
      : dense_(logits.contiguous()),
        numbers_(dense_.const_data_ptr()),
        vocabulary_(logits.size(-1)),
        is_half_(logits.scalar_type() == at::kBFloat16) {
    TORCH_CHECK(is_half_ || logits.scalar_type() == at::kFloat,
                "rounds are played on scores in float32 or bfloat16, got ", logits.scalar_type());
  }

  float operator()(int64_t position, int64_t token) const {
    const int64_t at = position * vocabulary_ + token;
    return is_half_ ? static_cast<float>(static_cast<const at::BFloat16*>(numbers_)[at])
                    : static_cast<const float*>(numbers_)[at];
  }

 private:
  at::Tensor dense_;
  const void* numbers_;
  int64_t vocabulary_;
  bool is_half_;
};

class Game {
 public:
  Game(Caller small, Caller large, std::vector<Row> rows, std::vector<int64_t> ends, Ragged ragged)
      : small_(std::move(small)),
        large_(std::move(large)),
        rows_(std::move(rows)),
        ends_(std::move(ends)),
        ragged_(ragged) {
    for (Row& row : rows_) going_.push_back(&row);
  }

  bool is_over() const { return going_.empty() || is_broken_; }

  // Columns that the next round may need.
  int64_t columns() const {
    int64_t most = 0;
    for (const Row* row : going_) most = std::max(most, row->committed + row->window + 1);
    return most;
  }

  void round() {
    draft();
    std::vector<Row*> reading;
    for (Row* row : going_) {
      if (row->ends && *std::min_element(row->chances.begin(), row->chances.end()) >= row->sure_of_end) {
        tell(*row, UNREAD, row->drafted, 0, 0);
        row->committed += row->drafted;
      } else {
        reading.push_back(row);
      }
    }
    going_ = std::move(reading);
    if (!going_.empty()) verify();
  }

  auto told() const {
    const auto whole = [](const auto& numbers, at::ScalarType type) { return at::tensor(numbers, type); };
    at::Tensor lengths = integers(static_cast<int64_t>(rows_.size()), 2);
    int64_t* length = lengths.data_ptr<int64_t>();
    for (const Row& row : rows_) {
      *length++ = row.read;
      *length++ = row.large_read;
    }
    return std::make_tuple(
        whole(heads_, at::kLong).view({-1, TOLD}), whole(written_, at::kLong), whole(chances_, at::kFloat),
        whole(likeliest_, at::kLong), whole(distances_, at::kFloat), lengths);
  }

 private:
  bool is_end(int64_t token) const { return std::find(ends_.begin(), ends_.end(), token) != ends_.end(); }

  // Every row writes, and proposes what it has written, but for a token that it doubts and does not keep.
  void draft() {
    std::vector<Writer*> writing;
    for (Row* row : going_) {
      row->small_tokens = -row->read;
      if (row->is_begun) {
        // A pass for each token, of which the first read the one that was there.
        row->read += static_cast<int64_t>(row->written.size());
        row->is_begun = false;
        continue;
      }
      row->unread.assign(row->tokens.end() - (row->committed - row->read), row->tokens.end());
      row->room = std::min(row->window, row->left);
      writing.push_back(row);
    }
    roll(small_, std::move(writing), ends_);
    for (Row* row : going_) {
      row->small_tokens += row->read;
      const float chance = row->chances.back();
      const bool is_dropped = row->doubts(chance) && (!row->keeps_doubtful || std::isnan(chance));
      row->drafted = static_cast<int64_t>(row->written.size()) - is_dropped;
      row->ends = !is_dropped && is_end(row->written.back());
      row->closes = row->ends || (!is_dropped && row->drafted >= row->left);
    }
  }

  // One pass of the large model reads all drafts; each row keeps what is near enough, and gets the next token.
  void verify() {
    const int64_t count = static_cast<int64_t>(going_.size());
    int64_t width = 0, all = 0, scored = 0;
    for (const Row* row : going_) {
      const int64_t own = row->committed - row->large_read + row->drafted;
      width = std::max(width, own);
      all += own;
      scored = std::max(scored, row->drafted + 1);
    }
    const bool is_ragged =
        width <= ragged_.most && static_cast<double>(all) <= ragged_.share * static_cast<double>(count * width);
    at::Tensor numbers = is_ragged ? integers(all, 4) : integers(count, 3 + width);
    int64_t* number = numbers.data_ptr<int64_t>();
    for (const Row* row : going_) {
      const int64_t own = row->committed - row->large_read + row->drafted;
      const auto token = [row](int64_t at) {
        const int64_t place = row->large_read + at;
        return place < row->committed ? row->at(place) : row->written[static_cast<size_t>(place - row->committed)];
      };
      if (is_ragged) {
        for (int64_t at = 0; at < own; ++at) {
          *number++ = row->large_place;
          *number++ = row->large_read + at;
          *number++ = 1;
          *number++ = token(at);
        }
      } else {
        *number++ = row->large_place;
        *number++ = row->large_read;
        *number++ = own;
        for (int64_t at = 0; at < width; ++at) *number++ = at < own ? token(at) : 0;
      }
    }
    const std::vector<at::Tensor> scores = large_(numbers, is_ragged ? 1 : scored);
    const Logits logits(scores[0]);
    const float* total = scores[3].const_data_ptr<float>();
    const int64_t* likeliest = scores[1].const_data_ptr<int64_t>();
    std::vector<Row*> still;
    // Behind the last position of each row, among all that are scored.
    int64_t behind = 0;
    for (Row* row : going_) {
      behind += is_ragged ? row->committed - row->large_read + row->drafted : scored;
      const int64_t first = behind - 1 - row->drafted;
      if (judge(*row, likeliest + first, total + first, logits, first)) still.push_back(row);
    }
    going_ = std::move(still);
  }

  // Whether the row goes on.
  //   likeliest, total: of the row's positions; first: which of the logits' positions is the first one.
  bool judge(Row& row, const int64_t* likeliest, const float* total, const Logits& logits, int64_t first) {
    int64_t accepted = 0;
    bool keeps = true, is_sound = true;
    for (int64_t at = 0; at <= row.drafted; ++at) {
      const float highest = logits(first + at, likeliest[at]);
      // Of what is looked at: up to the token to be written.
      if (keeps && (std::isnan(highest) || highest == std::numeric_limits<float>::infinity())) is_sound = false;
      likeliest_.push_back(likeliest[at]);
      if (at == row.drafted) break;
      const int64_t token = row.written[static_cast<size_t>(at)];
      const float distance = total[at] - logits(first + at, token);
      distances_.push_back(distance);
      keeps = keeps && (distance <= row.near || likeliest[at] == token);
      accepted += keeps;
    }
    const int64_t next = likeliest[accepted];
    tell(row, is_sound ? JUDGED : BROKEN, accepted, next, row.committed - row.large_read + row.drafted);
    is_broken_ = is_broken_ || !is_sound;
    const bool closes = row.closes && accepted == row.drafted;
    for (int64_t at = 0; at < accepted; ++at) row.tokens.push_back(row.written[static_cast<size_t>(at)]);
    if (!closes) row.tokens.push_back(next);
    const int64_t more = accepted + !closes;
    row.committed += more;
    row.left -= more;
    // Nobody has read the last token; what was rolled back is forgotten.
    row.large_read = row.committed - 1;
    row.read = std::min(row.read, row.committed - 1);
    return !closes && row.left > 0 && !is_end(next);
  }

  void tell(const Row& row, Outcome outcome, int64_t accepted, int64_t next, int64_t large_tokens) {
    const int64_t written = static_cast<int64_t>(row.written.size());
    const int64_t event[TOLD] = {row.number, written,          row.drafted, outcome, accepted,
                                 next,       row.small_tokens, large_tokens};
    heads_.insert(heads_.end(), event, event + TOLD);
    written_.insert(written_.end(), row.written.begin(), row.written.end());
    chances_.insert(chances_.end(), row.chances.begin(), row.chances.end());
  }

  Caller small_, large_;
  std::vector<Row> rows_;
  std::vector<int64_t> ends_;
  Ragged ragged_;
  std::vector<Row*> going_;
  bool is_broken_ = false;
  std::vector<int64_t> heads_, written_, likeliest_;
  std::vector<float> chances_, distances_;
};

// Where a row of a game stands with one of the models.
int64_t place_of(at::TensorList inputs, int64_t row) { return inputs[0].const_data_ptr<int64_t>()[row * inputs[0].size(1)]; }

}  // namespace

// small_inputs, large_inputs: as the graphs take them; of the first of each only the places are read, and the first two
//   are made here.
// rows: [N, GIVEN], see Given; the last says how many of `tails` are the row's.
// limits: [N, LIMITS], float64: a token that is less probable is doubted; a drafted one that is further is rolled back
//   unless the large model would write it; an end token passes unread behind tokens at least this probable.
// tails: the tokens that a model has not read, of one row behind the other.
// begun, begun_chances: first drafts that were written before, token by token, and how probable each is; of one row
//   behind the other, as many as BEGUN says.
// ends: [E], end tokens.
// columns: that both storages have; no round begins that may need more.
// most: rounds.
// patience_us: no round begins later than this after the call.
// ragged, most_ragged: see Ragged.
//
// Returns an event for each row and round [E, TOLD], see Told, first those of a round that pass unread; of all events
// what the small model wrote and how probable it was; of the judged ones the large model's likeliest token in each place
// and behind, and the distance of each drafted one; and what both models have read of each row [N, 2].
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> play_rounds(
    int64_t small, at::TensorList small_inputs, int64_t large, at::TensorList large_inputs, const at::Tensor& rows,
    const at::Tensor& limits, const at::Tensor& tails, const at::Tensor& begun, const at::Tensor& begun_chances,
    const at::Tensor& ends, int64_t columns, int64_t most, int64_t patience_us, double ragged, int64_t most_ragged) {
  const auto start = Clock::now();
  const int64_t count = rows.size(0);
  TORCH_CHECK(rows.size(1) == GIVEN && limits.size(1) == LIMITS, "a row has ", GIVEN, " numbers and ", LIMITS, " limits");
  const int64_t *given = rows.const_data_ptr<int64_t>(), *tail = tails.const_data_ptr<int64_t>();
  const int64_t* written = begun.const_data_ptr<int64_t>();
  const float* chance = begun_chances.const_data_ptr<float>();
  const double* limit = limits.const_data_ptr<double>();
  std::vector<Row> all(static_cast<size_t>(count));
  for (int64_t n = 0; n < count; ++n, given += GIVEN, limit += LIMITS) {
    Row& row = all[static_cast<size_t>(n)];
    row.number = n;
    row.place = place_of(small_inputs, n);
    row.large_place = place_of(large_inputs, n);
    row.committed = given[COMMITTED];
    row.read = given[SMALL_READ];
    row.large_read = given[LARGE_READ];
    row.window = given[WINDOW];
    row.left = given[LEFT];
    row.keeps_doubtful = given[KEEPS_DOUBTFUL] != 0;
    row.floor = limit[FLOOR];
    row.near = static_cast<float>(limit[NEAR]);
    row.sure_of_end = limit[SURE_OF_END];
    row.tokens.assign(tail, tail + given[TAIL]);
    tail += given[TAIL];
    row.is_begun = given[BEGUN] > 0;
    row.written.assign(written, written + given[BEGUN]);
    row.chances.assign(chance, chance + given[BEGUN]);
    written += given[BEGUN];
    chance += given[BEGUN];
  }
  const int64_t* end = ends.const_data_ptr<int64_t>();
  Game game(Caller(small, small_inputs), Caller(large, large_inputs), std::move(all), {end, end + ends.numel()},
            {ragged, most_ragged});
  const auto late = start + std::chrono::microseconds(patience_us);
  for (int64_t played = 0; played < most && !game.is_over() && game.columns() <= columns; ++played) {
    if (played > 0 && Clock::now() > late) break;
    game.round();
  }
  return game.told();
}

}  // namespace bild
