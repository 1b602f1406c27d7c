// Passes over a row of logits: argmax, sum of exponentials, Gumbel noise for 64 tokens at a time,
// selection by threshold.
//
// Included once per instruction set inside namespace ULTRASPEED_ISA.

INLINE F NanToMinusInfinity(F x) { return Select(x != x, Splat(kMinusInfinity), x); }

int ArgMax(const float* x, int count) {
  F best = Splat(kMinusInfinity);
  I best_index = {};
  I index = AsI(Lanes());
  for (int i = 0; i < count; i += kLanes) {
    const F v = LoadPart(x + i, count - i, kMinusInfinity);
    const I better = v > best;  // false for NaN
    best = Select(better, v, best);
    best_index = Select(better, index, best_index);
    index += kLanes;
  }
  int winner = best_index[0];
  float largest = best[0];
  for (int i = 1; i < kLanes; ++i) {
    if (best[i] > largest || (best[i] == largest && best_index[i] < winner)) {
      largest = best[i];
      winner = best_index[i];
    }
  }
  return largest == kMinusInfinity ? 0 : winner;
}

float SumExp(const float* x, int count, float max) {
  F sum = {};
  for (int i = 0; i < count; i += kLanes) {
    sum += Exp(NanToMinusInfinity(LoadPart(x + i, count - i, kMinusInfinity)) - max);
  }
  return Sum(sum);
}

void Exponentials(float* x, int count, float max) {
  for (int i = 0; i < count; i += kLanes) {
    StorePart(x + i, Exp(LoadPart(x + i, count - i, max) - max), count - i);
  }
}

void Divide(const float* x, int count, float temperature, float* out) {
  for (int i = 0; i < count; i += kLanes) {
    StorePart(out + i, NanToMinusInfinity(LoadPart(x + i, count - i, 0.0f) / temperature),
              count - i);
  }
}

// a * constant per lane: low and high halves.
INLINE void MultiplyWide(U a, uint32_t constant, U& high, U& low) {
#if defined(__AVX512F__)
  const __m512i x = reinterpret_cast<__m512i>(a);
  const __m512i c = _mm512_set1_epi32(static_cast<int>(constant));
  const __m512i even = _mm512_mul_epu32(x, c);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), c);
  low = reinterpret_cast<U>(_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32)));
  high = reinterpret_cast<U>(_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd));
#elif defined(__AVX2__)
  const auto multiply = [constant](Unsigneds half, Unsigneds& half_high, Unsigneds& half_low) {
    const __m256i x = reinterpret_cast<__m256i>(half);
    const __m256i c = _mm256_set1_epi32(static_cast<int>(constant));
    const __m256i even = _mm256_mul_epu32(x, c);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), c);
    half_low =
        reinterpret_cast<Unsigneds>(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa));
    half_high =
        reinterpret_cast<Unsigneds>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa));
  };
  multiply(a.low, high.low, low.low);
  multiply(a.high, high.high, low.high);
#else
  for (int i = 0; i < kLanes; ++i) {
    const uint64_t product = uint64_t{a[i]} * constant;
    low[i] = static_cast<uint32_t>(product);
    high[i] = static_cast<uint32_t>(product >> 32);
  }
#endif
}

void AddGumbel(float* x, int32_t first_token, int count, uint64_t seed, int64_t position) {
  const U step = Lanes();
  for (int begin = 0; begin < count; begin += 4 * kLanes) {
    U state[4] = {step + static_cast<uint32_t>((first_token + begin) / 4),
                  U{} + static_cast<uint32_t>(position),
                  U{} + static_cast<uint32_t>(static_cast<uint64_t>(position) >> 32), U{}};
    uint32_t key0 = static_cast<uint32_t>(seed);
    uint32_t key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      U high0, low0, high1, low1;
      MultiplyWide(state[0], 0xD2511F53u, high0, low0);
      MultiplyWide(state[2], 0xCD9E8D57u, high1, low1);
      state[0] = high1 ^ state[1] ^ key0;
      state[1] = low1;
      state[2] = high0 ^ state[3] ^ key1;
      state[3] = low0;
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    float noise[4][kLanes];
    for (int lane = 0; lane < 4; ++lane) {
      const F integer = ToFloat(AsI(state[lane] >> 9));
      const F u = (integer + 0.5f) * 0x1p-23f;
      Store(noise[lane], -Log(-Log(u)));
    }
    const int in_block = count - begin < 4 * kLanes ? count - begin : 4 * kLanes;
    for (int i = 0; i < in_block; ++i) x[begin + i] += noise[i % 4][i / 4];
  }
}

int SelectAtLeast(const float* x, int count, float threshold, int32_t* indices) {
  int num_selected = 0;
  for (int i = 0; i < count; i += kLanes) {
    const F v = LoadPart(x + i, count - i, __builtin_nanf(""));
    const I chosen = v >= threshold;
#if defined(__AVX512F__)
    unsigned mask = _mm512_movepi32_mask(reinterpret_cast<__m512i>(chosen));
#elif defined(__AVX2__)
    const auto signs = [](Ints half) {
      return static_cast<unsigned>(_mm256_movemask_ps(reinterpret_cast<__m256>(half)));
    };
    unsigned mask = signs(chosen.low) | signs(chosen.high) << 8;
#else
    unsigned mask = 0;
    for (int lane = 0; lane < kLanes; ++lane)
      mask |= static_cast<unsigned>(chosen[lane] & 1) << lane;
#endif
    for (; mask != 0; mask &= mask - 1) indices[num_selected++] = i + __builtin_ctz(mask);
  }
  return num_selected;
}
