// Operations on single rows: SwiGLU, weighted sums, norms, rotary, router scores, conversion.
//
// Included once per instruction set inside namespace ULTRASPEED_ISA.

void SwiGlu(const float* gate, const float* up, int count, bf16* out) {
  for (int i = 0; i < count; i += kLanes) {
    const F g = LoadPart(gate + i, count - i, 0.0f);
    const F u = LoadPart(up + i, count - i, 0.0f);
    StoreBf16Part(out + i, g / (1.0f + Exp(-g)) * u, count - i);
  }
}

void WeightedSum(const float* const* rows, const float* weights, int num_rows, int count,
                 float* out) {
  for (int i = 0; i < count; i += kLanes) {
    F sum = Splat(weights[0]) * LoadPart(rows[0] + i, count - i, 0.0f);
    for (int k = 1; k < num_rows; ++k) {
      sum = Fma(Splat(weights[k]), LoadPart(rows[k] + i, count - i, 0.0f), sum);
    }
    StorePart(out + i, sum, count - i);
  }
}

void RmsNormRow(const float* x, const float* weight, float eps, int count, bf16* out_bf16,
                float* out_f32) {
  F squares = {};
  for (int i = 0; i < count; i += kLanes) {
    const F v = LoadPart(x + i, count - i, 0.0f);
    squares = Fma(v, v, squares);
  }
  const float mean = Sum(squares) / static_cast<float>(count);
  const F scale = 1.0f / Sqrt(Splat(mean + eps));
  for (int i = 0; i < count; i += kLanes) {
    const F v = LoadPart(x + i, count - i, 0.0f) * scale * LoadPart(weight + i, count - i, 0.0f);
    if (out_bf16 != nullptr) {
      StoreBf16Part(out_bf16 + i, v, count - i);
    } else {
      StorePart(out_f32 + i, v, count - i);
    }
  }
}

void RopeHead(const float* cos_sin, int half, float* x) {
  for (int i = 0; i < half; i += kLanes) {
    const int count = half - i;
    const F cosine = LoadPart(cos_sin + i, count, 0.0f);
    const F sine = LoadPart(cos_sin + half + i, count, 0.0f);
    const F a = LoadPart(x + i, count, 0.0f);
    const F b = LoadPart(x + half + i, count, 0.0f);
    StorePart(x + i, Fma(a, cosine, -(b * sine)), count);
    StorePart(x + half + i, Fma(b, cosine, a * sine), count);
  }
}

template <int kTokens>
INLINE void RouterTile(const bf16* x, const float* w, int hidden, int num_experts, int expert,
                       float* scores) {
  constexpr int kExperts = 4;
  F acc[kTokens][kExperts] = {};
  const float* rows[kExperts];
  for (int e = 0; e < kExperts; ++e) {
    rows[e] = w + static_cast<size_t>(expert + e < num_experts ? expert + e : expert) * hidden;
  }
  for (int i = 0; i < hidden; i += kLanes) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const F input = LoadBf16(x + static_cast<size_t>(t) * hidden + i);
#pragma GCC unroll 4
      for (int e = 0; e < kExperts; ++e) acc[t][e] = Fma(Load(rows[e] + i), input, acc[t][e]);
    }
  }
  F padded[kLanes] = {};
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int e = 0; e < kExperts; ++e) padded[t * kExperts + e] = acc[t][e];
  }
  float sums[kLanes];
  Store(sums, Sigmoid(Sum16(padded)));
  for (int t = 0; t < kTokens; ++t) {
    for (int e = 0; e < kExperts && expert + e < num_experts; ++e) {
      scores[static_cast<size_t>(t) * num_experts + expert + e] = sums[t * kExperts + e];
    }
  }
}

void RouterScores(const bf16* x, const float* w, int num_tokens, int hidden, int num_experts,
                  float* scores) {
  int t = 0;
  for (; t + 4 <= num_tokens; t += 4) {
    for (int e = 0; e < num_experts; e += 4) {
      RouterTile<4>(x + static_cast<size_t>(t) * hidden, w, hidden, num_experts, e,
                    scores + static_cast<size_t>(t) * num_experts);
    }
  }
  for (; t < num_tokens; ++t) {
    for (int e = 0; e < num_experts; e += 4) {
      RouterTile<1>(x + static_cast<size_t>(t) * hidden, w, hidden, num_experts, e,
                    scores + static_cast<size_t>(t) * num_experts);
    }
  }
}

void ToBf16Row(const float* x, int count, bf16* out) {
  for (int i = 0; i < count; i += kLanes) {
    StoreBf16Part(out + i, LoadPart(x + i, count - i, 0.0f), count - i);
  }
}
