// k-means of all modules of a batch in one launch: one block takes one module.
//
// Why: modules know nothing of each other, so no block waits for another and nothing crosses a launch. A batch has
// hundreds of modules and a GPU about a hundred multiprocessors, so one block each fills it; to split a module over
// blocks would need a barrier of the grid in each of its hundreds of rounds. Here it is only decided where the numbers
// of a module lie: its desk and its kernel matrix in shared memory as far as they fit (copied once, read R times a
// round), else in global memory, where the second level cache holds them. What is done with them is in kmeans.cuh.

#include "kmeans.cuh"

// kernels (M, R, R), live (M, R), uniforms (M, restarts, k, trials), far (M, k, R) scratch, desks (M, ·) scratch
// unless `desk_on_chip`, labels (M, R). Dynamic shared memory: the desk, then the kernel matrix, as they are on chip.
extern "C" __global__ void kmeans(const double* kernels, const unsigned char* live, const double* uniforms, double* far,
                                  double* desks, long long* labels, int R, int k, int trials, int restarts,
                                  int desk_on_chip, int kernel_on_chip) {
    using namespace loramerge;
    DYNAMIC_SHARED(double, pool);
    long long block = blockIdx.x, desk = Desk::bytes(R, k, trials) / 8;
    const double* K = kernels + block * R * R;
    if (kernel_on_chip) {
        double* own = pool + (desk_on_chip ? desk : 0);
        for (int n = threadIdx.x; n < R * R; n += blockDim.x) own[n] = K[n];
        K = own;
        __syncthreads();
    }
    Desk d(desk_on_chip ? pool : desks + block * desk, R, k, trials);
    Module m{K, live + block * R, far + block * k * R, R, k, trials};
    ::loramerge::kmeans(m, d, uniforms + block * restarts * k * trials, restarts, labels + block * R);
}
