// Threads and scratch memory of one call.
#pragma once
#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace mixaq {

// Memory that outlives calls, so that pages are not asked of the system again and again.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : size_(round_up(bytes)) {
    std::lock_guard<std::mutex> guard(mutex());
    auto& pool = spare();
    for (size_t i = 0; i < pool.size(); ++i)
      if (pool[i].size >= size_) {
        data_ = pool[i].data, size_ = pool[i].size;
        pool.erase(pool.begin() + i);
        return;
      }
    if (!pool.empty()) {  // too small: replaced by this one
      std::free(pool.back().data);
      pool.pop_back();
    }
    data_ = static_cast<uint8_t*>(std::aligned_alloc(64, size_));
    if (!data_) std::abort();
  }
  ~Scratch() {
    std::lock_guard<std::mutex> guard(mutex());
    spare().push_back({data_, size_});
  }
  Scratch(const Scratch&) = delete;

  template <typename T>
  T* take(size_t count) {
    T* result = reinterpret_cast<T*>(data_ + used_);
    used_ += round_up(count * sizeof(T));
    return result;
  }
  static size_t round_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

 private:
  struct Block {
    uint8_t* data;
    size_t size;
  };
  static std::mutex& mutex() {
    static std::mutex m;
    return m;
  }
  static std::vector<Block>& spare() {
    static std::vector<Block> blocks;
    return blocks;
  }
  uint8_t* data_ = nullptr;
  size_t size_, used_ = 0;
};

// Runs work() on the caller and threads - 1 others.
//
// The others are torch's own OpenMP workers where it has brought them: after an operation of torch they spin for
// milliseconds, and threads of ours would have to share the cores with them. GOMP_parallel is looked up because this
// library must not bring a second OpenMP runtime. In a forked child that pool is dead, and threads are started anew.
class Team {
 public:
  static void run(int threads, const std::function<void()>& work) {
    static Team team;
    if (threads > 1 && team.parallel_ && !forked_) {
      team.parallel_([](void* data) { (*static_cast<const std::function<void()>*>(data))(); },
                     const_cast<std::function<void()>*>(&work), threads, 0);
      return;
    }
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(work);
    work();
    for (auto& other : others) other.join();
  }

 private:
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  Team() : parallel_(reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"))) {
    pthread_atfork(nullptr, nullptr, [] { forked_ = true; });
  }
  const Parallel parallel_;
  static inline bool forked_ = false;
};

// Calls work(take) on each thread; take() gives the next task or -1. Tasks are independent, so results do not depend on
// the number of threads; they are handed out one by one because cores of a shared machine differ in speed.
inline void run_tasks(int64_t tasks, int threads, const std::function<void(const std::function<int64_t()>&)>& work) {
  std::atomic<int64_t> next{0};
  const std::function<int64_t()> take = [&]() -> int64_t {
    const int64_t task = next.fetch_add(1);
    return task < tasks ? task : -1;
  };
  Team::run(std::min<int64_t>(threads, tasks), [&] { work(take); });
}

}  // namespace mixaq
