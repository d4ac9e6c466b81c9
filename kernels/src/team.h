// Threads that share the parts of a piece of work with the thread that brings it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace edgewright {

class Team {
 public:
  static constexpr int kMost = 64;

  // A part of the work, done by thread number `thread`: 0 is the one that brings it.
  using Work = void (*)(const void* what, int64_t part, int thread);

  // Of `threads` threads, the calling one included, 1 to kMost. Throws UnsupportedError where the system
  // gives fewer.
  explicit Team(int threads);
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  // Not while the team is taken. Waits for its threads to end.
  ~Team();

  int threads() const { return threads_; }

  // The team for one caller at a time, until the end of a Turn; the others are told to go alone. Never waits.
  class Turn {
   public:
    explicit Turn(Team& team) noexcept;
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn();

    explicit operator bool() const { return crew_ != nullptr; }

    // Calls work(what, part, thread) once for each part in [0, parts), and returns when all are done. `work`
    // must not throw.
    void share(int64_t parts, Work work, const void* what) noexcept;

   private:
    friend class Team;
    struct Crew* crew_;
  };

 private:
  struct Crew* crew() noexcept;

  const int threads_;
  // A process that forks leaves its threads behind: the child's first Turn makes new ones, and what was there
  // for the old is never freed.
  std::atomic<struct Crew*> crew_{nullptr};
};

}  // namespace edgewright
