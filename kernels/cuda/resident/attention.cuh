// Attention of a round by the consumer warps of the resident engine: one unit of work after
// another, bit for bit what ProjectQkv and Attention give. The order of additions is theirs
// (attention.cu); who adds is not.
#pragma once

#include "kernels/cuda/resident/attention_fold.cuh"
#include "kernels/cuda/resident/attention_parts.cuh"
#include "kernels/cuda/resident/attention_segments.cuh"
#include "kernels/cuda/resident/attention_window.cuh"
