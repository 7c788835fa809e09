// Rows of the embedding matrix, and the gradients they get.
#pragma once
#include "common.cuh"

// One block for each token. x: (rows, width) = weight[id] * scale (+ positions[row % time - start of its document]).
extern "C" __global__ void embedding_forward(
    float* x, const uint32_t* ids, const float* weight, const float* positions, const int* starts, float scale,
    int time, int width) {
    int row = blockIdx.x, step = row % time - (starts ? starts[row] : 0);
    const float* from = weight + (size_t)ids[row] * width;
    const float* position = positions ? positions + (size_t)step * width : nullptr;
    float* to = x + (size_t)row * width;
    for (int c = threadIdx.x * 4; c < width; c += blockDim.x * 4) {
        float v[4], p[4];
        load4(from + c, v);
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] *= scale;
        if (position) {
            load4(position + c, p);
#pragma unroll
            for (int i = 0; i < 4; i++) v[i] += p[i];
        }
        store4(to + c, v);
    }
}

// A run of tokens with the same id, in token order: `count` entries of `order` from `start`. The sum goes to the
// gradient's row `target`, or to row `target` of `partial` if the id has more pieces than one.
struct EmbeddingPiece {
    uint32_t start, count, target, is_partial;
};

// One block for each piece: adds scale * the sum of its rows of dx.
extern "C" __global__ void embedding_backward(
    float* gradient, float* partial, const float* dx, const uint32_t* order, const EmbeddingPiece* pieces, float scale,
    int width) {
    EmbeddingPiece piece = pieces[blockIdx.x];
    float* to = (piece.is_partial ? partial : gradient) + (size_t)piece.target * width;
    for (int c = threadIdx.x * 4; c < width; c += blockDim.x * 4) {
        float sum[4] = {0, 0, 0, 0};
        for (uint32_t at = 0; at < piece.count; at++) {
            float v[4];
            load4(dx + (size_t)order[piece.start + at] * width + c, v);
#pragma unroll
            for (int i = 0; i < 4; i++) sum[i] += v[i] * scale;
        }
        if (!piece.is_partial) {
            float before[4];
            load4(to + c, before);
#pragma unroll
            for (int i = 0; i < 4; i++) sum[i] += before[i];
        }
        store4(to + c, sum);
    }
}

// One block for each id of several pieces: adds its `count` rows of `partial` from `start` to row `target`.
extern "C" __global__ void embedding_backward_join(
    float* gradient, const float* partial, const EmbeddingPiece* joins, int width) {
    EmbeddingPiece join = joins[blockIdx.x];
    float* to = gradient + (size_t)join.target * width;
    for (int c = threadIdx.x * 4; c < width; c += blockDim.x * 4) {
        float sum[4];
        load4(to + c, sum);
        for (uint32_t at = 0; at < join.count; at++) {
            float v[4];
            load4(partial + (size_t)(join.start + at) * width + c, v);
#pragma unroll
            for (int i = 0; i < 4; i++) sum[i] += v[i];
        }
        store4(to + c, sum);
    }
}
