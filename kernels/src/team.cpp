#include "team.h"

#include <pthread.h>

#include <chrono>
#include <memory>
#include <string>
#include <system_error>

#include "errors.h"

namespace edgewright {
namespace {

// A thread with nothing to do looks out for work this long before it sleeps: longer than the small steps
// between two large ones take, and so short that an idle team costs nothing.
constexpr std::chrono::microseconds kLookout{50};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether `ready` came true within the look-out.
template <class Ready>
bool seen(const Ready& ready) {
  for (const auto end = std::chrono::steady_clock::now() + kLookout;;) {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pause();
    }
    if (std::chrono::steady_clock::now() >= end) return ready();
  }
}

// How many forks lie between this process and the one that loaded the library.
std::atomic<int> forks{0};

void watch_forks() {
  static const int watched = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
  if (watched != 0) throw std::bad_alloc();
}

}  // namespace

// The threads beside the caller, and the work at hand. Whoever is free claims the next part, the caller
// included, so a thread that the system holds back holds nothing else back.
struct Crew {
  explicit Crew(int count);
  ~Crew();

  void share(int64_t parts, Team::Work work, const void* what);

  const int born = forks.load();
  std::atomic<bool> taken{false};

 private:
  void run(int thread);
  void help(int thread);
  void end();

  // The work at hand. Only who holds a claimed part reads these, and they change only when none is held.
  Team::Work work_ = nullptr;
  const void* what_ = nullptr;
  int64_t parts_ = 0;
  std::atomic<int64_t> unclaimed_{0}, unfinished_{0};

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false}, ended_{false};
  std::vector<std::thread> threads_;
};

Crew::Crew(int count) {
  threads_.reserve(static_cast<size_t>(count));
  try {
    for (int i = 1; i <= count; ++i) threads_.emplace_back([this, i] { run(i); });
  } catch (const std::system_error& error) {
    const std::string text = std::to_string(count + 1) + " threads: the system gives only " +
                             std::to_string(threads_.size() + 1) + " (" + error.what() + ")";
    end();
    throw UnsupportedError(text);
  }
}

Crew::~Crew() { end(); }

void Crew::end() {
  ended_ = true;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void Crew::run(int thread) {
  const auto ready = [this] { return unclaimed_ > 0 || ended_; };
  while (!ended_) {
    if (!seen(ready)) {
      std::unique_lock<std::mutex> lock(mutex_);
      ++sleepers_;  // before the look at what is unclaimed; `share` does the two in the other order
      wake_.wait(lock, ready);
      --sleepers_;
    }
    help(thread);
  }
}

void Crew::help(int thread) {
  int64_t left = unclaimed_;
  while (left > 0) {
    if (!unclaimed_.compare_exchange_weak(left, left - 1)) continue;
    work_(what_, parts_ - left, thread);
    if (--unfinished_ == 0 && caller_sleeps_) {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
      }
      done_.notify_one();
    }
    left = unclaimed_;
  }
}

void Crew::share(int64_t parts, Team::Work work, const void* what) {
  work_ = work;
  what_ = what;
  parts_ = parts;
  unfinished_ = parts;
  unclaimed_ = parts;
  if (sleepers_ > 0) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);  // who counts as a sleeper sleeps, or has seen the work
    }
    wake_.notify_all();
  }
  help(0);
  const auto done = [this] { return unfinished_ == 0; };
  if (seen(done)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  caller_sleeps_ = true;
  done_.wait(lock, done);
  caller_sleeps_ = false;
}

Team::Team(int threads) : threads_(threads) {
  if (threads < 1 || threads > kMost) {
    throw InputError(std::to_string(threads) + " threads: 1 to " + std::to_string(kMost) + " are allowed");
  }
  if (threads > 1) {
    watch_forks();
    crew_ = new Crew(threads - 1);
  }
}

Team::~Team() {
  const Crew* mine = crew_;
  if (mine != nullptr && mine->born == forks) delete mine;
}

Crew* Team::crew() noexcept {
  Crew* found = crew_;
  if (found == nullptr || found->born == forks) return found;
  try {
    auto made = std::make_unique<Crew>(threads_ - 1);
    if (crew_.compare_exchange_strong(found, made.get())) return made.release();
    return found;  // another thread was quicker
  } catch (const std::exception&) {
    return nullptr;  // without threads the work is done all the same
  }
}

Team::Turn::Turn(Team& team) noexcept : crew_(team.crew()) {
  if (crew_ != nullptr && crew_->taken.exchange(true)) crew_ = nullptr;
}

Team::Turn::~Turn() {
  if (crew_ != nullptr) crew_->taken = false;
}

void Team::Turn::share(int64_t parts, Work work, const void* what) noexcept {
  crew_->share(parts, work, what);
}

}  // namespace edgewright
