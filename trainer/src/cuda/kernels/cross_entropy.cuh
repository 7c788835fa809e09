// Cross-entropy over rows of logits, which become their own gradients in place.
#pragma once
#include "common.cuh"

#define IGNORE 0xffffffffu
#define LOSS_THREADS 512

// A logit, given the product it is made of: cap * tanh(product / cap), or the product if there is no cap.
__device__ inline float logit(float product, float cap) { return cap > 0 ? cap * tanhf(product / cap) : product; }

// The slope of that, given the logit.
__device__ inline float logit_slope(float logit, float cap) {
    return cap > 0 ? 1.0f - (logit / cap) * (logit / cap) : 1.0f;
}

// The largest value so far, where it is first, and the sum of exponentials relative to it.
struct Partial {
    float largest, sum, all;
    int place;
};

__device__ inline Partial join(Partial a, Partial b) {
    Partial both;
    both.largest = fmaxf(a.largest, b.largest);
    both.place = a.largest > b.largest ? a.place : b.largest > a.largest ? b.place : min(a.place, b.place);
    // exp(-inf - -inf) is no number: an empty part has no sum.
    float left = a.sum > 0 ? a.sum * expf(a.largest - both.largest) : 0;
    float right = b.sum > 0 ? b.sum * expf(b.largest - both.largest) : 0;
    both.sum = left + right;
    both.all = a.all + b.all;
    return both;
}

// One block for each row of `stride` values, `vocab` of them products that logits are made of and the rest zeros in the end; `found` is -log p, the mean of -log p, and whether
// the most probable is the label: three columns of `rows` doubles, of which this call fills rows from `first`. With
// `gradient`, they become scale * (softmax - (1 - smoothing) * one-hot - smoothing / vocab) times the slope of the cap.
template <typename T>
__device__ void cross_entropy(
    T* logits, const uint32_t* labels, double* found, int first, int rows, int vocab, int stride, float cap, float scale,
    float smoothing, int gradient) {
    __shared__ Partial shared[LOSS_THREADS];
    T* row = logits + (size_t)blockIdx.x * stride;
    int number = first + blockIdx.x;
    uint32_t label = labels[number];
    const int whole = vocab / 4 * 4;
    if (label == IGNORE) {
        if (gradient) {
            float zeros[4] = {0, 0, 0, 0};
            for (int c = threadIdx.x * 4; c < stride; c += LOSS_THREADS * 4) store4(row + c, zeros);
        }
        if (threadIdx.x == 0) {
            found[number] = 0;
            found[rows + number] = 0;
            found[2 * (size_t)rows + number] = 0;
        }
        return;
    }
    Partial mine = {-INFINITY, 0, 0, vocab};
    for (int c = threadIdx.x * 4; c < whole; c += LOSS_THREADS * 4) {
        float v[4];
        load4(row + c, v);
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = logit(v[i], cap);
        float largest = fmaxf(fmaxf(v[0], v[1]), fmaxf(v[2], v[3]));
        if (largest > mine.largest) {
            mine.sum = mine.sum > 0 ? mine.sum * expf(mine.largest - largest) : 0;
            mine.largest = largest;
            mine.place = v[0] == largest ? c : v[1] == largest ? c + 1 : v[2] == largest ? c + 2 : c + 3;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            mine.sum += expf(v[i] - mine.largest);
            mine.all += v[i];
        }
    }
    for (int c = whole + threadIdx.x; c < vocab; c += LOSS_THREADS) {
        float v = logit(to_float(row[c]), cap);
        Partial one = {v, 1, v, c};
        mine = join(mine, one);
    }
    // A value that is no number is never the largest; it must not vanish.
    if (mine.all != mine.all) mine.sum = mine.all;
    shared[threadIdx.x] = mine;
    for (int half = LOSS_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] = join(shared[threadIdx.x], shared[threadIdx.x + half]);
    }
    __syncthreads();
    Partial row_wide = shared[0];
    float at_label = logit(to_float(row[label]), cap);
    __syncthreads();
    if (threadIdx.x == 0) {
        double all = row_wide.all, log_sum = log((double)row_wide.sum) + (double)row_wide.largest;
        if (row_wide.all != row_wide.all) log_sum = all;
        found[number] = log_sum - (double)at_label;
        found[rows + number] = log_sum - all / vocab;
        found[2 * (size_t)rows + number] = row_wide.place == (int)label;
    }
    if (!gradient) return;
    float factor = scale / row_wide.sum, uniform = scale * smoothing / vocab, hit = scale * (1.0f - smoothing);
    for (int c = threadIdx.x * 4; c < whole; c += LOSS_THREADS * 4) {
        float v[4];
        load4(row + c, v);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float x = logit(v[i], cap), slope = logit_slope(x, cap);
            v[i] = (expf(x - row_wide.largest) * factor - uniform - (c + i == (int)label ? hit : 0)) * slope;
        }
        store4(row + c, v);
    }
    for (int c = whole + threadIdx.x; c < stride; c += LOSS_THREADS) {
        float x = logit(to_float(row[c]), cap), slope = logit_slope(x, cap);
        float v = (expf(x - row_wide.largest) * factor - uniform - (c == (int)label ? hit : 0)) * slope;
        row[c] = from_float<T>(c < vocab ? v : 0.0f);
    }
}

#define CROSS_ENTROPY_KERNELS(T, name)                                                                        \
    extern "C" __global__ void cross_entropy_##name(                                                          \
        T* logits, const uint32_t* labels, double* found, int first, int rows, int vocab, int stride,         \
        float cap, float scale, float smoothing, int gradient) {                                              \
        cross_entropy<T>(logits, labels, found, first, rows, vocab, stride, cap, scale, smoothing, gradient);      \
    }
CROSS_ENTROPY_KERNELS(float, f32)
CROSS_ENTROPY_KERNELS(bf16, bf16)
