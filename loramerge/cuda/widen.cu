// Factors as they are stored, bfloat16, half or float, made float64 on the device.
//
// Why the loop has its shape: there is nothing to compute, so the time is that of the memory. One pass reads each
// number once and writes it once, at its place in the stack that the GEMM wants; a conversion and a copy of their own
// would move the eight bytes of every number twice more. Neighbouring threads take neighbouring numbers, so a warp
// reads and writes whole lines; each thread strides by the size of the grid, so that a few thousand blocks fill any
// GPU and a matrix of any size takes one launch. The destination is a slice of wider rows, `pitch` numbers apart: a
// row here is a row of `up`, or all rows that a source has in `down`. One division tells row from column, which the
// memory hides. Compiled without -ftz: a subnormal float is a number here as on the host.

__device__ inline double of_half(unsigned short bits) {
    unsigned sign = bits >> 15, exponent = bits >> 10 & 31, fraction = bits & 1023;
    double size = exponent == 0 ? fraction * 0x1p-24
                : exponent == 31 ? (fraction ? __longlong_as_double(0x7ff8000000000000LL)
                                             : __longlong_as_double(0x7ff0000000000000LL))
                : __longlong_as_double((long long)(exponent + 1008) << 52 | (long long)fraction << 42);
    return sign ? -size : size;
}

__device__ inline double of_bfloat(unsigned short bits) { return __int_as_float(int(unsigned(bits) << 16)); }

// kind: 0 float64, 1 float32, 2 float16, 3 bfloat16. from (rows, columns) dense, to (rows, pitch).
extern "C" __global__ void widen(const void* from, double* to, long long rows, long long columns, long long pitch,
                                 int kind) {
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x; n < rows * columns; n += step) {
        double value = kind == 0   ? static_cast<const double*>(from)[n]
                       : kind == 1 ? static_cast<const float*>(from)[n]
                       : kind == 2 ? of_half(static_cast<const unsigned short*>(from)[n])
                                   : of_bfloat(static_cast<const unsigned short*>(from)[n]);
        to[n / columns * pitch + n % columns] = value;
    }
}
