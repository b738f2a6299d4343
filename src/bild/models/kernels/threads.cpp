// Units of work are shared out among threads. A thread that has done its own share takes what others have not begun, so
// that nobody waits for a thread that the system has put aside. Workers spin for some microseconds after a piece of
// work, then yield, then sleep; where there is little to do or somebody else uses them, the caller works alone.

#include "common.h"

namespace bild {
namespace {

constexpr int SPINS = 1500;             // pauses, some 40 cycles each, before a worker yields
constexpr int YIELDS = 200;             // before it sleeps

// One thread's part of the units; others take from it when they have done theirs.
struct alignas(VECTOR) Part {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

struct Job {
  const std::function<void(int64_t, int64_t)>& some;
  int64_t at_a_time;
  int threads;
  Part* parts;

  void work(int thread) {
    for (int offset = 0; offset < threads; offset++) {
      Part& part = parts[(thread + offset) % threads];
      while (true) {
        const int64_t begin = part.next.fetch_add(at_a_time, std::memory_order_relaxed);
        if (begin >= part.end) break;
        some(begin, std::min(part.end, begin + at_a_time));
      }
    }
  }
};

enum State : int { IDLE, ASLEEP, POSTED, RUNNING };

struct alignas(VECTOR) Worker {
  std::atomic<int> state{IDLE};
  Job* job = nullptr;
  int thread = 0;

  void run() {
    while (true) {
      await();
      int posted = POSTED;
      // The caller takes back what it has done itself meanwhile.
      if (!state.compare_exchange_strong(posted, RUNNING, std::memory_order_acquire)) continue;
      job->work(thread);
      state.store(IDLE, std::memory_order_release);
    }
  }

  void await() {
    for (int turn = 0; state.load(std::memory_order_relaxed) != POSTED; turn++) {
      if (turn < SPINS) {
        _mm_pause();
      } else if (turn < SPINS + YIELDS) {
        sched_yield();
      } else {
        int idle = IDLE;
        if (state.compare_exchange_strong(idle, ASLEEP)) state.wait(ASLEEP);
        turn = 0;
      }
    }
  }

  void post(Job& now) {
    job = &now;
    if (state.exchange(POSTED, std::memory_order_acq_rel) == ASLEEP) state.notify_one();
  }

  void finish() {
    int posted = POSTED;
    if (state.compare_exchange_strong(posted, IDLE, std::memory_order_acq_rel)) return;
    for (int turn = 0; state.load(std::memory_order_acquire) == RUNNING; turn++) {
      if (turn < SPINS)
        _mm_pause();
      else
        sched_yield();
    }
  }
};

// Threads of this process, made when first needed and never ended: a process that ends does not wait for them.
class Pool {
 public:
  // False where another caller uses the threads.
  bool run(const std::function<void(int64_t, int64_t)>& work, int64_t units, int64_t at_a_time, int threads) {
    std::unique_lock<std::mutex> alone(mutex_, std::try_to_lock);
    if (!alone) return false;
    while (static_cast<int>(workers_.size()) < threads - 1) add();
    Job job{work, at_a_time, threads, parts_.get()};
    for (int t = 0; t < threads; t++) {
      parts_[t].next.store(units * t / threads, std::memory_order_relaxed);
      parts_[t].end = units * (t + 1) / threads;
    }
    for (int t = 1; t < threads; t++) workers_[t - 1]->post(job);
    job.work(0);
    for (int t = 1; t < threads; t++) workers_[t - 1]->finish();
    return true;
  }

  static constexpr int MOST = 256;

 private:
  void add() {
    if (!parts_) parts_ = std::make_unique<Part[]>(MOST);
    auto* worker = new Worker;
    worker->thread = static_cast<int>(workers_.size()) + 1;
    workers_.push_back(worker);
    std::thread([worker] { worker->run(); }).detach();
  }

  std::mutex mutex_;
  std::vector<Worker*> workers_;
  std::unique_ptr<Part[]> parts_;
};

Pool* threads_of_process = new Pool;

// A forked process has none of its parent's threads, and perhaps its lock.
const int after_fork = pthread_atfork(nullptr, nullptr, [] { threads_of_process = new Pool; });

}  // namespace

void share_out(int64_t units, int64_t cycles, int64_t threads, const std::function<void(int64_t, int64_t)>& work) {
  const int64_t most = std::min<int64_t>({threads, units, Pool::MOST, units * cycles / (ALONE / 2)});
  const int64_t at_a_time = (std::max<int64_t>(1, SHARE / std::max<int64_t>(1, cycles)) + 1) / 2 * 2;
  if (most < 2 || !threads_of_process->run(work, units, at_a_time, static_cast<int>(most))) work(0, units);
}

}  // namespace bild
