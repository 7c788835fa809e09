// The norm of all gradients and AdamW over all parameters at once.
#pragma once
#include "common.cuh"

// Values summed by one block.
#define NORM_PIECE 65536

// squares[block] = the sum of squares of its piece, in double; 256 threads.
extern "C" __global__ void sum_of_squares(double* squares, const float* x, uint64_t count) {
    __shared__ double shared[256];
    size_t begin = (size_t)blockIdx.x * NORM_PIECE, end = min((size_t)count, begin + NORM_PIECE);
    double sum = 0;
    for (size_t at = begin + threadIdx.x * 4; at < end; at += 1024) {
        float v[4];
        load4(x + at, v);
        float part = v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3];
        sum += part;
    }
    shared[threadIdx.x] = sum;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    if (threadIdx.x == 0) squares[blockIdx.x] = shared[0];
}

// to[c] = the sum of `count` doubles of column c, in order; one block of 256 threads for each column.
extern "C" __global__ void sum_doubles(double* to, const double* from, int count) {
    __shared__ double shared[256];
    const double* column = from + (size_t)blockIdx.x * count;
    double sum = 0;
    for (int at = threadIdx.x; at < count; at += 256) sum += column[at];
    shared[threadIdx.x] = sum;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    if (threadIdx.x == 0) to[blockIdx.x] = shared[0];
}

// As `Constants` of ops/adamw.rs.
struct AdamW {
    float before, after, size, factor, beta1, beta2, epsilon, scale;
};

// `copy`: the parameters rounded to bf16, or null.
extern "C" __global__ void adamw(
    float* parameter, const float* gradient, float* first, float* second, bf16* copy, AdamW c, uint64_t count) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (at >= count) return;
    float p[4], g[4], m[4], v[4];
    load4(parameter + at, p);
    load4(gradient + at, g);
    load4(first + at, m);
    load4(second + at, v);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float scaled = g[i] * c.scale;
        m[i] = c.beta1 * m[i] + (1.0f - c.beta1) * scaled;
        v[i] = c.beta2 * v[i] + (1.0f - c.beta2) * scaled * scaled;
        p[i] = (p[i] * c.before - c.size * m[i] / (sqrtf(v[i]) * c.factor + c.epsilon)) * c.after;
    }
    store4(parameter + at, p);
    store4(first + at, m);
    store4(second + at, v);
    if (copy) store4(copy + at, p);
}

extern "C" __global__ void round_to_bf16(bf16* to, const float* from, uint64_t count) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (at >= count) return;
    float v[4];
    load4(from + at, v);
    store4(to + at, v);
}
