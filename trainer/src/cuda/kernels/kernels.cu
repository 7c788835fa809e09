// All kernels: one module.
#include "activation.cuh"
#include "attention.cuh"
#include "attention_plain.cuh"
#include "cross_entropy.cuh"
#include "embedding.cuh"
#include "heads.cuh"
#include "norm.cuh"
#include "optimizer.cuh"
