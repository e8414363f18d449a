// CUDA's words for a host compiler, with a real thread for each thread of a block.
//
// Blocks run one after another. A missing __syncthreads is a data race here as it is there, and ThreadSanitizer
// sees it. A warp's shuffle is a barrier of its 32 threads, so a lane that stays away hangs, as it may there.

#pragma once
#include <pthread.h>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(shim::block->shared.data())

struct Place {
    unsigned x, y, z;
};
inline thread_local Place threadIdx{}, blockIdx{};
inline Place blockDim{1, 1, 1}, gridDim{1, 1, 1};

namespace shim {

// std::barrier spins before it sleeps, which on two cores takes most of the time; ThreadSanitizer knows both.
//
// Two of them take turns. To ThreadSanitizer a thread that leaves a barrier has seen all that came to it, and with one
// alone a thread that wakes late would have seen those, too, that are there for the next time: their races were missed.
class Barrier {
  public:
    explicit Barrier(unsigned count) {
        for (auto& one : held) pthread_barrier_init(&one, nullptr, count);
    }
    ~Barrier() {
        for (auto& one : held) pthread_barrier_destroy(&one);
    }
    void meet(bool& turn) {  // of the thread that comes
        pthread_barrier_wait(&held[turn]);
        turn = !turn;
    }

  private:
    pthread_barrier_t held[2];
};

inline thread_local bool of_block = false, of_warp = false;  // whose turn it is

struct Warp {
    Barrier barrier{32};
    double left[32];
};

struct Block {
    explicit Block(unsigned threads, size_t bytes) : barrier(threads), warps(threads / 32), shared(bytes / 8 + 1) {
        for (auto& warp : warps) warp = std::make_unique<Warp>();
    }
    Barrier barrier;
    std::vector<std::unique_ptr<Warp>> warps;
    std::vector<double> shared;
};

inline Block* block = nullptr;
inline std::mutex device;  // two threads of the host may launch kernels, as they may on a GPU; here one waits

template <class Body>
void launch(unsigned blocks, unsigned threads, size_t bytes, Body body) {
    std::lock_guard<std::mutex> alone(device);
    blockDim.x = threads, gridDim.x = blocks;
    for (unsigned b = 0; b < blocks; b++) {
        Block one(threads, bytes);
        block = &one;
        std::vector<std::thread> crew;
        for (unsigned t = 0; t < threads; t++)
            crew.emplace_back([=] {
                threadIdx.x = t, blockIdx.x = b;
                body();
            });
        for (auto& thread : crew) thread.join();
    }
}

}  // namespace shim

#ifdef WITHOUT_BARRIERS  // planted by a test: ThreadSanitizer must see it
inline void __syncthreads() {}
#else
inline void __syncthreads() { shim::block->barrier.meet(shim::of_block); }
#endif

template <class Value>
Value __shfl_xor_sync(unsigned, Value value, int step) {
    auto& warp = *shim::block->warps[threadIdx.x / 32];
    unsigned lane = threadIdx.x % 32;
    std::memcpy(&warp.left[lane], &value, sizeof(Value));
    warp.barrier.meet(shim::of_warp);
    std::memcpy(&value, &warp.left[lane ^ step], sizeof(Value));
    warp.barrier.meet(shim::of_warp);
    return value;
}

inline float __int_as_float(int bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline double __longlong_as_double(long long bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
