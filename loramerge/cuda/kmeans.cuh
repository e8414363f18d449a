// k-means of units that are known by their inner products only: one block, one module, all rounds.
//
// A round is short, R·k distances of which every sum runs over members only, so R² numbers are read; but there are
// hundreds of rounds for hundreds of modules. A launch for each step would cost more than the step. So a block takes
// a module from the first draw to the last label, and the kernel matrix stays on the chip where it fits.
//
// It follows loramerge/algorithms/families/kmeans.py step by step, ties and empty clusters included; what is summed
// in another order differs by rounding, and no choice is made by less than TIE.
//
//     ‖xᵢ − c‖² = Kᵢᵢ − 2/n Σ_{j∈c} Kᵢⱼ + 1/n² Σ_{i,j∈c} Kᵢⱼ

#pragma once
#include "block.cuh"

namespace loramerge {

constexpr double TIE = 1 + 1e-9;
constexpr double DUPLICATE = 1e-12;
constexpr int ROUNDS = 300;
constexpr double FAR = 1.7976931348623157e308;

// What a module needs beside its kernel matrix; `bytes` of it, 8 aligned, in shared memory or in global.
struct Desk {
    double *norm, *gap, *total, *nearest;  // (R)
    double *square, *left;                 // (k), (trials)
    double *slots;                         // (WARPS)
    int *label, *home, *order;             // (R): as assigned; after refilling; units by cluster
    int *first, *count, *stand, *drawn;    // (k), (k), (k), (trials)

    __host__ __device__ static long long bytes(int R, int k, int trials) {
        long long doubles = 4LL * R + k + trials + WARPS, ints = 3LL * R + 3LL * k + trials;
        return 8 * doubles + 8 * ((ints + 1) / 2);
    }

    __device__ Desk(double* at, int R, int k, int trials) {
        norm = at, gap = norm + R, total = gap + R, nearest = total + R;
        square = nearest + R, left = square + k, slots = left + trials;
        label = reinterpret_cast<int*>(slots + WARPS), home = label + R, order = home + R;
        first = order + R, count = first + k, stand = count + k, drawn = stand + k;
    }
};

struct Module {
    const double* K;            // (R, R) centred, symmetric
    const unsigned char* live;  // (R)
    double* far;                // (k, R) squared distances of a round, in global memory
    int R, k, trials;
};

// The unit, drawn with probability ∝ gap, that leaves the least total gap.
__device__ inline int draw(const Module& m, const Desk& d, const double* uniform, int trials) {
    int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (int t = threadIdx.x / WARP; t < trials; t += warps) {
        double level = uniform[t] * d.total[m.R - 1];
        int low = 0, high = m.R;  // the first position whose total is above the level
        while (low < high) {
            int middle = (low + high) / 2;
            if (d.total[middle] <= level) low = middle + 1;
            else high = middle;
        }
        int unit = low < m.R ? low : m.R - 1;
        double left = 0, own = m.K[(long long)unit * m.R + unit];
        for (int j = lane; j < m.R; j += WARP) {
            double far = m.K[(long long)j * m.R + j] + own - 2 * m.K[(long long)unit * m.R + j];
            left += d.gap[j] < far ? d.gap[j] : far;
        }
        left = of_warp(left, Sum());
        if (lane == 0) d.left[t] = left, d.drawn[t] = unit;
    }
    __syncthreads();
    double least = d.left[0];
    for (int t = 1; t < trials; t++) least = Smaller()(d.left[t], least);
    int best = 0;
    if (least != least) return d.drawn[0];  // NaN, as NumPy has it
    while (best < trials - 1 && !(d.left[best] <= (least > 0 ? least : 0) * TIE)) best++;
    return d.drawn[best];
}

// k-means++ with greedy trials: leaves in `home` which unit is which centre.
__device__ inline void seed(const Module& m, const Desk& d, const double* uniforms) {
    double top = 0;
    for (int i = threadIdx.x; i < m.R; i += blockDim.x) {
        d.norm[i] = m.live[i] ? m.K[(long long)i * m.R + i] : 0;
        d.gap[i] = m.live[i];
        d.home[i] = -1;
        top = Larger()(d.norm[i], top);
    }
    top = of_block(top, Larger(), d.slots);
    for (int c = 0; c < m.k; c++) {
        __syncthreads();
        if (threadIdx.x == 0) {  // in the order of the host, so that equal draws find equal units
            double total = 0;
            for (int i = 0; i < m.R; i++) d.total[i] = total += d.gap[i];
        }
        __syncthreads();
        if (!(d.total[m.R - 1] > 0)) return;  // nothing is left that differs from the centres
        int chosen = draw(m, d, uniforms + c * m.trials, c == 0 ? 1 : m.trials);
        for (int i = threadIdx.x; i < m.R; i += blockDim.x) {
            double far = d.norm[i] + d.norm[chosen] - 2 * m.K[(long long)chosen * m.R + i];
            if (!(m.live[i] && far > DUPLICATE * top)) far = 0;
            d.gap[i] = c == 0 || far < d.gap[i] ? far : d.gap[i];
            if (i == chosen) d.home[i] = c;
        }
    }
}

// Members of every cluster, by `home`, in the order of the units. Whoever reads the order has a barrier first.
__device__ inline void gather(const Module& m, const Desk& d) {
    __syncthreads();
    for (int c = threadIdx.x; c < m.k; c += blockDim.x) {
        int count = 0;
        for (int i = 0; i < m.R; i++) count += d.home[i] == c;
        d.count[c] = count;
    }
    __syncthreads();
    for (int c = threadIdx.x; c < m.k; c += blockDim.x) {
        int at = 0;
        for (int other = 0; other < c; other++) at += d.count[other];
        d.first[c] = at;
        for (int i = 0; i < m.R; i++)
            if (d.home[i] == c) d.order[at++] = i;
    }
}

// Which cluster's members define centre c: its own; of an empty one those of the largest; -1 where none ever was.
__device__ inline void stand_in(const Module& m, const Desk& d, bool starting) {
    int largest = 0;
    for (int c = 1; c < m.k; c++)
        if (d.count[c] > d.count[largest]) largest = c;
    for (int c = threadIdx.x; c < m.k; c += blockDim.x) {
        bool used = starting ? d.count[c] > 0 : d.stand[c] >= 0;
        d.stand[c] = !used ? -1 : d.count[c] ? c : largest;
    }
    __syncthreads();
}

// An empty cluster takes the unit that is farthest from its own centre, in the order of the clusters.
__device__ inline void refill(const Module& m, const Desk& d) {
    double top = -FAR;
    bool empty = false;
    for (int i = threadIdx.x; i < m.R; i += blockDim.x) top = Larger()(d.nearest[i], top);
    for (int c = threadIdx.x; c < m.k; c += blockDim.x) empty |= d.stand[c] >= 0 && !d.count[c];
    top = of_block(top, Larger(), d.slots);
    if (!(of_block(empty ? 1.0 : 0.0, Larger(), d.slots) > 0) || top <= 0) return;
    if (threadIdx.x == 0) {
        for (int i = 0; i < m.R; i++) d.total[i] = 0;  // 1 where a unit has been taken
        for (int c = 0; c < m.k; c++) {
            if (d.stand[c] < 0 || d.count[c]) continue;
            int far = -1;
            for (int i = 0; i < m.R; i++)
                if (!d.total[i] && (far < 0 || d.nearest[i] > d.nearest[far])) far = i;
            if (far < 0) break;
            d.total[far] = 1, d.home[far] = c;
        }
    }
    gather(m, d);
}

// far[c][i] of every centre and unit.
__device__ inline void measure(const Module& m, const Desk& d) {
    int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (int c = threadIdx.x / WARP; c < m.k; c += warps) {
        int n = d.count[c];
        const int* member = d.order + d.first[c];
        double square = 0;
        for (int j = lane; j < n; j += WARP)
            for (int i = 0; i < n; i++) square += m.K[(long long)member[i] * m.R + member[j]];
        square = of_warp(square, Sum());
        if (lane == 0) d.square[c] = n ? square / n / n : 0;
    }
    __syncthreads();
    long long pairs = (long long)m.k * m.R;
    for (long long p = threadIdx.x; p < pairs; p += blockDim.x) {  // neighbours read neighbours of one row
        int c = int(p / m.R), i = int(p % m.R), own = d.stand[c];
        if (own < 0) {
            m.far[p] = FAR;
            continue;
        }
        double product = 0;
        const int* member = d.order + d.first[own];
        for (int j = 0; j < d.count[own]; j++) product += m.K[(long long)member[j] * m.R + i];
        m.far[p] = m.K[(long long)i * m.R + i] - 2 * product / d.count[own] + d.square[own];
    }
    __syncthreads();
}

// Lloyd's rounds until no label changes; the inertia of the labels.
__device__ inline double lloyd(const Module& m, const Desk& d) {
    for (int i = threadIdx.x; i < m.R; i += blockDim.x) d.label[i] = -1;
    gather(m, d);
    stand_in(m, d, true);
    double inertia = 0;
    for (int round = 0; round < ROUNDS; round++) {
        measure(m, d);
        double own = 0, changed = 0;
        for (int i = threadIdx.x; i < m.R; i += blockDim.x) {
            double least = FAR;
            for (int c = 0; c < m.k; c++) least = Smaller()(m.far[(long long)c * m.R + i], least);
            bool told = least == least;  // a module with NaN has all its units in cluster 0, as NumPy has it
            int found = 0;
            while (told && found < m.k - 1 && !(m.far[(long long)found * m.R + i] <= (least > 0 ? least : 0) * TIE)) found++;
            if (!m.live[i]) found = -1, least = 0;
            changed = found != d.label[i] ? 1 : changed;
            own += Larger()(least, 0);
            d.label[i] = d.home[i] = found, d.nearest[i] = least;
        }
        inertia = of_block(own, Sum(), d.slots);
        if (!(of_block(changed, Larger(), d.slots) > 0)) break;
        gather(m, d);
        refill(m, d);
        stand_in(m, d, false);
    }
    return inertia;
}

// The labels of the tightest of some runs; -1 for units that are not live.
__device__ inline void kmeans(const Module& m, const Desk& d, const double* uniforms, int restarts, long long* labels) {
    double least = FAR;
    for (int attempt = 0; attempt < restarts; attempt++) {
        seed(m, d, uniforms + (long long)attempt * m.k * m.trials);
        double inertia = lloyd(m, d);
        if (attempt == 0 || inertia * TIE < least) {
            least = inertia;
            for (int i = threadIdx.x; i < m.R; i += blockDim.x) labels[i] = d.label[i];
        }
    }
}

}  // namespace loramerge
