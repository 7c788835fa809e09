// Activations of the feed-forward layer, alone or gated, and biases. The formulas are those of ops/activation.rs.
#pragma once
#include "common.cuh"

enum { SILU = 0, GELU = 1, GELU_TANH = 2 };

__device__ inline float activate(int kind, float x, float* slope) {
    if (kind == SILU) {
        float sigmoid = 1.0f / (1.0f + expf(-x)), value = x * sigmoid;
        *slope = sigmoid + value * (1.0f - sigmoid);
        return value;
    }
    if (kind == GELU) {
        float below = 0.5f * erfcf(-x * 0.70710678118654752f);
        *slope = below + x * 0.3989422804014327f * expf(-0.5f * x * x);
        return x * below;
    }
    const float twice_root = 1.5957691216057308f, cubic = 0.044715f;
    float sigmoid = 1.0f / (1.0f + expf(-twice_root * x * (1.0f + cubic * x * x))), value = x * sigmoid;
    *slope = sigmoid + value * (1.0f - sigmoid) * twice_root * (1.0f + 3.0f * cubic * x * x);
    return value;
}

// x: (rows, width) += bias, in place; one thread for four values.
template <typename T> __device__ void add_bias(T* x, const float* bias, int width, size_t count) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (at >= count) return;
    float v[4], b[4];
    load4(x + at, v);
    load4(bias + at % width, b);
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] += b[i];
    store4(x + at, v);
}

// y: (rows, width). Gated: y = f(x[:, :width]) * x[:, width:], x (rows, 2 width); else y = f(x). If there is a bias, x
// becomes x + bias first, in place.
template <typename T>
__device__ void activation_forward(T* x, const float* bias, T* y, int kind, int gated, int width, size_t count) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (at >= count) return;
    size_t row = at / width, c = at % width;
    size_t from = gated ? row * 2 * width + c : at;
    float a[4], u[4], b[4], slope;
    load4(x + from, a);
    if (bias) {
        load4(bias + c, b);
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] += b[i];
        store4(x + from, a);
    }
    if (gated) {
        load4(x + from + width, u);
        if (bias) {
            load4(bias + width + c, b);
#pragma unroll
            for (int i = 0; i < 4; i++) u[i] += b[i];
            store4(x + from + width, u);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        // What was rounded when stored is what the backward sees.
        float value = activate(kind, to_float(from_float<T>(a[i])), &slope);
        a[i] = gated ? value * to_float(from_float<T>(u[i])) : value;
    }
    store4(y + at, a);
}

// Turns x, as the forward left it, into its gradient, in place, given dy: (rows, width).
template <typename T>
__device__ void activation_backward(const T* dy, T* x, int kind, int gated, int width, size_t count) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (at >= count) return;
    size_t row = at / width, c = at % width;
    size_t from = gated ? row * 2 * width + c : at;
    float d[4], a[4], u[4] = {1, 1, 1, 1}, slope;
    load4(dy + at, d);
    load4(x + from, a);
    if (gated) load4(x + from + width, u);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float value = activate(kind, a[i], &slope);
        a[i] = d[i] * u[i] * slope;
        u[i] = d[i] * value;
    }
    store4(x + from, a);
    if (gated) store4(x + from + width, u);
}

#define ACTIVATION_KERNELS(T, name)                                                                             \
    extern "C" __global__ void add_bias_##name(T* x, const float* bias, int width, uint64_t count) {            \
        add_bias<T>(x, bias, width, count);                                                                     \
    }                                                                                                           \
    extern "C" __global__ void activation_forward_##name(                                                       \
        T* x, const float* bias, T* y, int kind, int gated, int width, uint64_t count) {                        \
        activation_forward<T>(x, bias, y, kind, gated, width, count);                                           \
    }                                                                                                           \
    extern "C" __global__ void activation_backward_##name(                                                      \
        const T* dy, T* x, int kind, int gated, int width, uint64_t count) {                                    \
        activation_backward<T>(dy, x, kind, gated, width, count);                                               \
    }
ACTIVATION_KERNELS(float, f32)
ACTIVATION_KERNELS(bf16, bf16)
