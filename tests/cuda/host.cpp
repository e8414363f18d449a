// The kernels as functions of the host: the same bodies, with threads.hpp in place of a GPU.

#include "threads.hpp"

#include "kmeans.cu"
#include "widen.cu"

extern "C" void run_kmeans(const double* kernels, const unsigned char* live, const double* uniforms, double* far,
                           double* desks, long long* labels, int R, int k, int trials, int restarts, int desk_on_chip,
                           int kernel_on_chip, unsigned blocks, unsigned threads, size_t shared) {
    shim::launch(blocks, threads, shared, [=] {
        kmeans(kernels, live, uniforms, far, desks, labels, R, k, trials, restarts, desk_on_chip, kernel_on_chip);
    });
}

extern "C" void run_widen(const void* from, double* to, long long rows, long long columns, long long pitch, int kind,
                          unsigned blocks, unsigned threads) {
    shim::launch(blocks, threads, 0, [=] { widen(from, to, rows, columns, pitch, kind); });
}

extern "C" long long desk_bytes(int R, int k, int trials) { return loramerge::Desk::bytes(R, k, trials); }

#ifdef MAIN  // a program of its own for the sanitizers, which want to be there from the start
#include <cmath>
#include <cstdio>
#include <cstdlib>

static double next(unsigned long long& state) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return double(state >> 11) / 9007199254740992.0;
}

static void cluster(int R, int k, unsigned threads, bool chip) {
    int d = 7, trials = 2 + int(std::log(k)), restarts = 2;
    unsigned long long state = R;
    std::vector<double> points(R * d), K(R * R), uniforms(restarts * k * trials), far(k * R);
    for (auto& x : points) x = next(state) - 0.5;
    for (int j = 0; j < d && R > 2; j++) points[j] = points[d + j];  // two units alike
    for (int i = 0; i < R; i++)
        for (int j = 0; j < R; j++)
            for (int a = 0; a < d; a++) K[i * R + j] += points[i * d + a] * points[j * d + a];
    for (auto& x : uniforms) x = next(state);
    std::vector<unsigned char> live(R, 1);
    if (R > 4) live[R / 2] = 0;
    std::vector<long long> labels(R);
    std::vector<double> desk(desk_bytes(R, k, trials) / 8);
    size_t shared = chip ? desk.size() * 8 + sizeof(double) * R * R : 0;
    run_kmeans(K.data(), live.data(), uniforms.data(), far.data(), desk.data(), labels.data(), R, k, trials, restarts,
               chip, chip, 1, threads, shared);
    for (int i = 0; i < R; i++) std::printf("%lld%c", labels[i], i + 1 < R ? ' ' : '\n');
}

int main(int count, char** words) {  // some numbers of units
    for (int n = 1; n < count; n++) {
        int R = std::atoi(words[n]), warps = (R + 31) / 32;
        cluster(R, R < 8 ? R : R < 128 ? R / 4 : 4, 32 * unsigned(warps < 2 ? 2 : warps < 8 ? warps : 8), R % 2 == 0);
    }
    std::vector<unsigned short> from(3 * 33, 0x3f80);
    std::vector<double> to(3 * 40);
    run_widen(from.data(), to.data(), 3, 33, 40, 3, 2, 32);
    std::printf("%g\n", to[2 * 40 + 32]);
}
#endif
