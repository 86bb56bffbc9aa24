// Attention of one head in one window: integer logits, softmax in float, probabilities and values in bf16.
//
// bf16 holds integers up to 256 and powers of two exactly, but sqrt 2 only to 1e-4. Powers of sqrt 2 are therefore held
// times 169 / 128: even ones as 169 / 128, odd ones as 239 / 128, whose ratio is sqrt 2 to 9e-6.
#pragma once
#include <algorithm>

#include "bf16.h"
#include "learned.h"

namespace mixaq {

// Keys come in vectors of 16: up to four as there are, beyond that nine, for windows of up to 144 tokens (12 x 12).
constexpr int kManyVectors = 9;
constexpr int kMaxTokens = 160;  // in whole pairs of vectors
// Queries at once: their sums and a step of all keys fit the registers.
constexpr int rows_at_once(int vectors) { return vectors <= 4 ? 4 : 2; }

// What one branch does between q, k, v and the input of proj.
struct Attention {
  float logit_multiplier;          // q and k steps times log2 e
  int32_t q_zero;                  // k's zero point moves all logits of a row alike: softmax does not see it
  float v_zero;
  int32_t steps_per_octave;        // 1, 2: logarithmic probabilities; 0: uniform; -1: not quantized
  float probability_log_scale;     // log2 D
  float probability_levels;        // 2^bits where logarithmic, 2^bits - 1 where uniform
  float probability_inverse_step;  // uniform
  float probability_zero;
  float out_multiplier, out_zero, out_top;  // to the codes of proj's input; undoes the 169 / 128
};

// Learned grids of one head (null where they are not learned); `out_before` is at the head's channels.
struct LearnedHead {
  const Learned* grids;
  const float* out_before;
};

template <int Vectors>
struct HeadScratch {
  static constexpr int kTokens = 16 * (Vectors + Vectors % 2);  // whole pairs of vectors
  alignas(64) int8_t keys[32 / 4][kTokens][4];
  alignas(64) uint16_t values[kTokens / 2][32][2];
  alignas(64) uint16_t values_rest[kTokens / 2][32][2];  // what bf16 leaves of values with steps of their own
  alignas(64) float key_scale[kTokens], key_addend[kTokens];
  alignas(64) uint16_t probabilities[rows_at_once(Vectors)][kTokens];
};
constexpr size_t kHeadBytes = sizeof(HeadScratch<kManyVectors>);

// Probabilities on a logarithmic grid: the logarithm of each is its logit to base 2 less that of the sum. `reference` is
// that of the sum times the grid's scale.
template <int Steps, int Vectors>
inline void logarithmic(const Attention& p, const __m512 (&logits)[Vectors], __m512 reference, __m512* out) {
  const __m512 steps = _mm512_set1_ps(Steps), limit = _mm512_set1_ps(std::min(p.probability_levels, 127.0f * Steps));
  const __m512i end = _mm512_cvtps_epi32(limit);  // at the latest where bf16 ends
  const __m512i even = _mm512_castps_si512(_mm512_set1_ps(Steps == 2 ? 169 / 128.0f : 1.0f));
  const __m512i odd = _mm512_castps_si512(_mm512_set1_ps(239 / 128.0f));
#pragma GCC unroll 9
  for (int v = 0; v < Vectors; ++v) {
    const __m512 exact = _mm512_mul_ps(_mm512_sub_ps(reference, logits[v]), steps);
    const __m512i q = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(exact, _mm512_setzero_ps()), limit));
    __m512i value = even, halvings = q;
    if constexpr (Steps == 2) {
      value = _mm512_mask_blend_epi32(_mm512_test_epi32_mask(q, _mm512_set1_epi32(1)), even, odd);
      halvings = _mm512_srli_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(1)), 1);
    }
    value = _mm512_maskz_sub_epi32(_mm512_cmplt_epi32_mask(q, end), value, _mm512_slli_epi32(halvings, 23));
    out[v] = _mm512_castsi512_ps(value);
  }
}

// `x`: logits where the grid is logarithmic, else their exponentials; `of_sum`: `reference` there, else the inverse of
// the sum. Returns the sum of what it writes.
template <int Vectors>
inline float quantize_probabilities(const Attention& p, const __m512 (&x)[Vectors], __m512 of_sum, float inverse_step,
                                    uint16_t* out) {
  constexpr int kPairs = (Vectors + 1) / 2;
  __m512 values[2 * kPairs];
  values[2 * kPairs - 1] = _mm512_setzero_ps();
  if (p.steps_per_octave == 2) {
    logarithmic<2>(p, x, of_sum, values);
  } else if (p.steps_per_octave == 1) {
    logarithmic<1>(p, x, of_sum, values);
  } else {
#pragma GCC unroll 9
    for (int v = 0; v < Vectors; ++v) values[v] = _mm512_mul_ps(x[v], of_sum);
    if (p.steps_per_octave == 0) {
      const __m512 zero = _mm512_set1_ps(p.probability_zero), top = _mm512_set1_ps(p.probability_levels);
#pragma GCC unroll 9
      for (int v = 0; v < Vectors; ++v) {
        __m512 q = _mm512_roundscale_ps(_mm512_mul_ps(values[v], _mm512_set1_ps(inverse_step)), kNearest);
        q = _mm512_max_ps(_mm512_add_ps(q, zero), _mm512_setzero_ps());
        values[v] = _mm512_sub_ps(_mm512_min_ps(q, top), zero);
      }
    }
  }
  __m512 total = _mm512_setzero_ps();
#pragma GCC unroll 5
  for (int pair = 0; pair < kPairs; ++pair) {
    const __m512 first = values[2 * pair], second = values[2 * pair + 1];
    _mm512_store_si512(out + 32 * pair, to_bf16(first, second));
    total = _mm512_add_ps(total, _mm512_add_ps(first, second));
  }
  return _mm512_reduce_add_ps(total);
}

// Attention of Rows queries: q[r] points at the query's channels, bias[r] at its row of the bias table, position[r] is
// its token. With learned grids, terms that all keys of a query share are left out: softmax does not see them.
template <int Rows, int Vectors, int Channels, bool IsLearned>
inline void attend_rows(const Attention& p, HeadScratch<Vectors>& s, int tokens, const __m512i (&key_terms)[Vectors],
                        const uint8_t* const* q, const float* const* bias, uint8_t* const* out,
                        const int64_t* position, const LearnedHead& learned) {
  __m512i sums[Rows][Vectors];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 9
    for (int v = 0; v < Vectors; ++v) sums[r][v] = key_terms[v];
#pragma GCC unroll 8
  for (int d = 0; d < Channels / 4; ++d) {
    __m512i keys[Vectors];
    for (int v = 0; v < Vectors; ++v) keys[v] = _mm512_load_si512(s.keys[d][16 * v]);
    for (int r = 0; r < Rows; ++r) {
      int32_t four;
      std::memcpy(&four, q[r] + 4 * d, 4);
      const __m512i x = _mm512_set1_epi32(four);
      for (int v = 0; v < Vectors; ++v) sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], x, keys[v]);
    }
  }
  // all rows step by step, so that they need not wait for each other's sums over lanes
  const __m512 multiplier = _mm512_set1_ps(p.logit_multiplier);
  __m512 x[Rows][Vectors], of_rows[4];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 9
    for (int v = 0; v < Vectors; ++v) {
      const __m512 logit = _mm512_cvtepi32_ps(sums[r][v]), addend = _mm512_loadu_ps(bias[r] + 16 * v);
      if constexpr (IsLearned) {
        const __m512 scale = _mm512_set1_ps(learned.grids->q.step[position[r]]);
        x[r][v] = _mm512_fmadd_ps(logit, _mm512_mul_ps(scale, _mm512_load_ps(s.key_scale + 16 * v)),
                                  _mm512_add_ps(addend, _mm512_load_ps(s.key_addend + 16 * v)));
      } else {
        x[r][v] = _mm512_fmadd_ps(logit, multiplier, addend);
      }
      of_rows[r] = v ? _mm512_max_ps(of_rows[r], x[r][v]) : x[r][v];
    }
  }
#pragma GCC unroll 4
  for (int r = Rows; r < 4; ++r) of_rows[r] = of_rows[0];
  const __m512 tops = reduce_four(of_rows, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
  const bool by_logits = p.steps_per_octave > 0;
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
    const __m512 top = one_of_four(tops, r);
#pragma GCC unroll 9
    for (int v = 0; v < Vectors; ++v) {
      x[r][v] = _mm512_sub_ps(x[r][v], top);
      const __m512 e = exp2_negative(x[r][v]);
      of_rows[r] = v ? _mm512_add_ps(of_rows[r], e) : e;
      if (!by_logits) x[r][v] = e;
    }
  }
  __m512 of_sums = reduce_four(of_rows, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
  of_sums = by_logits ? _mm512_add_ps(log2_positive(of_sums), _mm512_set1_ps(p.probability_log_scale))
                      : _mm512_div_ps(_mm512_set1_ps(1.0f), of_sums);
  float weights[Rows];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
    const float inverse = IsLearned ? learned.grids->attn.inverse[position[r]] : p.probability_inverse_step;
    weights[r] = quantize_probabilities<Vectors>(p, x[r], one_of_four(of_sums, r), inverse, s.probabilities[r]);
  }
  __m512 result[Rows][Channels / 16];
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < Channels / 16; ++c) result[r][c] = _mm512_setzero_ps();
  for (int pair = 0; pair < (tokens + 1) / 2; ++pair) {
    __m512i values[Channels / 16];
    for (int c = 0; c < Channels / 16; ++c) values[c] = _mm512_load_si512(s.values[pair][16 * c]);
    for (int r = 0; r < Rows; ++r) {
      int32_t two;
      std::memcpy(&two, s.probabilities[r] + 2 * pair, 4);
      const __m512i x = _mm512_set1_epi32(two);
      for (int c = 0; c < Channels / 16; ++c) {
        result[r][c] = dot_bf16(result[r][c], x, values[c]);
        if (IsLearned && learned.grids->v_by_position)
          result[r][c] = dot_bf16(result[r][c], x, _mm512_load_si512(s.values_rest[pair][16 * c]));
      }
    }
  }
  const __m512 out_multiplier = _mm512_set1_ps(p.out_multiplier), out_zero = _mm512_set1_ps(p.out_zero);
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < Channels / 16; ++c) {
      __m512 code;
      if constexpr (IsLearned) {
        const Learned& l = *learned.grids;
        const __m512 offset = _mm512_mul_ps(_mm512_set1_ps(weights[r]), _mm512_loadu_ps(l.v_after + 16 * c));
        const __m512 y = _mm512_fmadd_ps(_mm512_fmadd_ps(result[r][c], _mm512_loadu_ps(l.v_scale + 16 * c), offset),
                                         _mm512_set1_ps(l.attn.step[position[r]]),
                                         _mm512_loadu_ps(learned.out_before + 16 * c));
        code = _mm512_fmadd_ps(y, _mm512_set1_ps(l.proj_in.inverse[position[r]]), out_zero);
      } else {
        code = _mm512_fmadd_ps(result[r][c], out_multiplier, out_zero);
      }
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out[r] + 16 * c), to_codes(code, _mm512_set1_ps(p.out_top)));
    }
}

// `steps`: of each token, or null where they are one factor of the result.
template <int Vectors, int Channels, bool IsLearned>
inline void pack_values(const uint8_t* v, int64_t stride, int tokens, float zero, const float* steps,
                        HeadScratch<Vectors>& s) {
  alignas(64) static const uint16_t kInterleave[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i interleave = _mm512_load_si512(kInterleave);
  const __m512 shift = _mm512_set1_ps(zero);
  for (int token = 0; token < tokens; token += 2)
    for (int c = 0; c < Channels; c += 16) {
      const uint8_t* at = v + token * stride + c;
      const auto load = [&](const uint8_t* codes, int of) {
        const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
        const __m512 x = _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(narrow)), shift);
        return IsLearned && steps ? _mm512_mul_ps(x, _mm512_set1_ps(steps[of])) : x;
      };
      const __m512 first = load(at, token);
      const __m512 second = token + 1 < tokens ? load(at + stride, token + 1) : _mm512_setzero_ps();
      const auto store = [&](uint16_t* target, __m512 y, __m512 x) {
        _mm512_store_si512(target, _mm512_permutexvar_epi16(interleave, to_bf16(x, y)));
      };
      store(s.values[token / 2][c], second, first);
      if (IsLearned && steps)
        store(s.values_rest[token / 2][c], _mm512_sub_ps(second, rounded_to_bf16(second)),
              _mm512_sub_ps(first, rounded_to_bf16(first)));
    }
}

// Codes less their zero point as signed bytes, four channels of 16 tokens side by side.
template <int Vectors, int Channels>
inline void pack_keys(const uint8_t* k, int64_t stride, int tokens, int zero, HeadScratch<Vectors>& s) {
  const __m512i zeros = _mm512_set1_epi8(static_cast<char>(zero));
  int token = 0;
  for (; token + 16 <= tokens; token += 16)
    for (int d = 0; d < Channels / 4; d += 4) {
      __m512 columns[4];
      four_columns(reinterpret_cast<const float*>(k + token * stride + 4 * d), stride / 4, columns);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        _mm512_store_si512(s.keys[d + i][token], _mm512_sub_epi8(_mm512_castps_si512(columns[i]), zeros));
    }
  for (; token < tokens; ++token)
    for (int channel = 0; channel < Channels; ++channel)
      s.keys[channel / 4][token][channel % 4] = static_cast<int8_t>(k[token * stride + channel] - zero);
}

// Key steps, and what the offset of the queries gives with each key, both times log2 e.
template <int Vectors, int Channels>
inline void learn_keys(const Learned& l, int tokens, HeadScratch<Vectors>& s) {
  constexpr float kLog2E = 1.44269504f;
  for (int token = 0; token < tokens; ++token) s.key_scale[token] = l.k.step[token] * kLog2E;
  for (int v = 0; v < Vectors; ++v) {
    __m512 sum = _mm512_setzero_ps();
    for (int d = 0; d < Channels / 4; ++d) {
      const __m512i four = _mm512_load_si512(s.keys[d][16 * v]);
      const __m512i bytes[4] = {_mm512_slli_epi32(four, 24), _mm512_slli_epi32(four, 16), _mm512_slli_epi32(four, 8),
                                four};
      for (int i = 0; i < 4; ++i)
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_srai_epi32(bytes[i], 24)),
                              _mm512_set1_ps(l.q_after[4 * d + i]), sum);
    }
    _mm512_store_ps(s.key_addend + 16 * v, _mm512_mul_ps(sum, _mm512_load_ps(s.key_scale + 16 * v)));
  }
}

// One head of one window.
//   qkv: codes of the window's tokens, `3 * width` per token; the head begins at channel `first`.
//   places: token of each query (null: all, in order); out: rows of `width` codes, one for each query.
//   bias: (tokens, 16 * Vectors), times log2 e, -1e30 behind the last token.
//   memory: kHeadBytes, aligned to 64, all finite.
//   seen: (tokens, kMaxTokens) bf16, what values are weighed with is copied there; null: it is not.
template <int Vectors, int Channels, bool IsLearned>
void attend_head(const Attention& p, void* memory, int tokens, const uint8_t* qkv, int64_t width, int64_t first,
                 const int64_t* places, int64_t first_place, int64_t queries, const float* bias, uint8_t* out,
                 uint16_t* seen, const LearnedHead& learned) {
  HeadScratch<Vectors>& s = *static_cast<HeadScratch<Vectors>*>(memory);
  const int64_t stride = 3 * width;
  // another zero point of all keys moves a query's logits alike, unless keys have steps of their own
  pack_keys<Vectors, Channels>(qkv + width + first, stride, tokens, IsLearned ? learned.grids->k_zero : 128, s);
  const float* value_steps = nullptr;
  if constexpr (IsLearned)
    if (learned.grids->v_by_position) value_steps = learned.grids->v.step;
  pack_values<Vectors, Channels, IsLearned>(qkv + 2 * width + first, stride, tokens, p.v_zero, value_steps, s);
  if constexpr (IsLearned) learn_keys<Vectors, Channels>(*learned.grids, tokens, s);
  __m512i key_terms[Vectors];
  for (int v = 0; v < Vectors; ++v) {
    __m512i sum = _mm512_setzero_si512();
    for (int d = 0; d < Channels / 4; ++d)
      sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), _mm512_load_si512(s.keys[d][16 * v]));
    key_terms[v] = _mm512_mullo_epi32(sum, _mm512_set1_epi32(-p.q_zero));
  }
  constexpr int kRows = rows_at_once(Vectors);
  const uint8_t* q[kRows];
  const float* rows[kRows];
  uint8_t* target[kRows];
  int64_t tokens_of[kRows];
  for (int64_t query = 0; query < queries;) {
    const int count = queries - query >= kRows ? kRows : 1;
    for (int r = 0; r < count; ++r) {
      const int64_t token = places ? places[query + r] - first_place : query + r;
      q[r] = qkv + token * stride + first;
      rows[r] = bias + token * 16 * Vectors;
      target[r] = out + (query + r) * width + first;
      tokens_of[r] = token;
    }
    if (count == kRows)
      attend_rows<kRows, Vectors, Channels, IsLearned>(p, s, tokens, key_terms, q, rows, target, tokens_of, learned);
    else
      attend_rows<1, Vectors, Channels, IsLearned>(p, s, tokens, key_terms, q, rows, target, tokens_of, learned);
    for (int r = 0; seen && r < count; ++r)
      std::memcpy(seen + tokens_of[r] * kMaxTokens, s.probabilities[r], sizeof(s.probabilities[r]));
    query += count;
  }
}

using HeadFunction = void (*)(const Attention&, void*, int, const uint8_t*, int64_t, int64_t, const int64_t*,
                              int64_t, int64_t, const float*, uint8_t*, uint16_t*, const LearnedHead&);

template <bool IsLearned>
inline HeadFunction head_function(int64_t vectors, int64_t channels) {
  static const HeadFunction table[][2] = {
      {attend_head<1, 16, IsLearned>, attend_head<1, 32, IsLearned>},
      {attend_head<2, 16, IsLearned>, attend_head<2, 32, IsLearned>},
      {attend_head<3, 16, IsLearned>, attend_head<3, 32, IsLearned>},
      {attend_head<4, 16, IsLearned>, attend_head<4, 32, IsLearned>},
      {attend_head<kManyVectors, 16, IsLearned>, attend_head<kManyVectors, 32, IsLearned>},
  };
  return table[std::min<int64_t>(vectors, 5) - 1][channels / 16 - 1];
}

}  // namespace mixaq
