// What every kernel here needs of one block of threads, in CUDA C++ that a host compiler takes as well.
//
// Why a tree and not a loop: a reduction is on the way of every choice that k-means makes, and one thread that adds R
// numbers would hold up 255 others. A butterfly of shuffles takes five steps in a warp without shared memory or a
// barrier; then one number of each warp, at most 32, is combined by every thread for itself in the same order. So two
// barriers a reduction are enough, nothing is broadcast, and all threads hold the same bits, which lets them take the
// same branch.
//
// The tests compile these very bodies with g++ against a shim that makes real threads of threadIdx. So nothing here
// may rely on lanes that run in step: whoever reads what another wrote has a barrier or a shuffle between.

#pragma once

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

namespace loramerge {

constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;
constexpr int WARPS = 1024 / WARP;  // the most in a block

// One value of all lanes of a warp. Butterflies add the same pairs on every lane: all get the same bits.
template <class Value, class Combine>
__device__ Value of_warp(Value value, Combine combine) {
    for (int step = WARP / 2; step; step /= 2) value = combine(value, __shfl_xor_sync(ALL, value, step));
    return value;
}

// One value of all threads of a block, the same on each; `slots` has WARPS places in shared memory.
template <class Value, class Combine>
__device__ Value of_block(Value value, Combine combine, Value* slots) {
    value = of_warp(value, combine);
    __syncthreads();  // a thread may still read what the last call left in the slots
    if (threadIdx.x % WARP == 0) slots[threadIdx.x / WARP] = value;
    __syncthreads();
    value = slots[0];
    for (int warp = 1; warp < int(blockDim.x / WARP); warp++) value = combine(value, slots[warp]);
    return value;
}

struct Sum {
    __device__ double operator()(double a, double b) const { return a + b; }
};

struct Larger {  // NaN if either is, as NumPy's maximum
    __device__ double operator()(double a, double b) const { return a > b || a != a ? a : b; }
};

struct Smaller {
    __device__ double operator()(double a, double b) const { return a < b || a != a ? a : b; }
};

}  // namespace loramerge
