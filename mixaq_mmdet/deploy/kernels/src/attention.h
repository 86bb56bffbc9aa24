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
// Queries at once: their sums and a step of all keys fit the registers of AVX-512.
constexpr int rows_at_once(int vectors) { return kRegisters >= 32 && vectors <= 4 ? 4 : 2; }

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
inline void logarithmic(const Attention& p, const Floats (&logits)[Vectors], Floats reference, Floats* out) {
  const Floats steps = floats(Steps), limit = floats(std::min(p.probability_levels, 127.0f * Steps));
  const Ints end = to_ints(limit);  // at the latest where bf16 ends
  const Ints even = bits(floats(Steps == 2 ? 169 / 128.0f : 1.0f));
  const Ints odd = bits(floats(239 / 128.0f));
#pragma GCC unroll 9
  for (int v = 0; v < Vectors; ++v) {
    const Floats exact = mul(sub(reference, logits[v]), steps);
    const Ints q = to_ints(min(max(exact, floats(0)), limit));
    Ints value = even, halvings = q;
    if constexpr (Steps == 2) {
      value = select(is_odd(q), odd, even);
      halvings = shift_right<1>(add(q, ints(1)));
    }
    value = sub_where(less(q, end), value, shift_left<23>(halvings));
    out[v] = from_bits(value);
  }
}

// `x`: logits where the grid is logarithmic, else their exponentials; `of_sum`: `reference` there, else the inverse of
// the sum. Returns the sum of what it writes.
template <int Vectors>
inline float quantize_probabilities(const Attention& p, const Floats (&x)[Vectors], Floats of_sum, float inverse_step,
                                    uint16_t* out) {
  constexpr int kPairs = (Vectors + 1) / 2;
  Floats values[2 * kPairs];
  values[2 * kPairs - 1] = floats(0);
  if (p.steps_per_octave == 2) {
    logarithmic<2>(p, x, of_sum, values);
  } else if (p.steps_per_octave == 1) {
    logarithmic<1>(p, x, of_sum, values);
  } else {
#pragma GCC unroll 9
    for (int v = 0; v < Vectors; ++v) values[v] = mul(x[v], of_sum);
    if (p.steps_per_octave == 0) {
      const Floats zero = floats(p.probability_zero), top = floats(p.probability_levels);
#pragma GCC unroll 9
      for (int v = 0; v < Vectors; ++v) {
        Floats q = nearest(mul(values[v], floats(inverse_step)));
        q = max(add(q, zero), floats(0));
        values[v] = sub(min(q, top), zero);
      }
    }
  }
  Floats sum = floats(0);
#pragma GCC unroll 5
  for (int pair = 0; pair < kPairs; ++pair) {
    const Floats first = values[2 * pair], second = values[2 * pair + 1];
    store(out + 32 * pair, to_bf16(first, second));
    sum = add(sum, add(first, second));
  }
  return total(sum);
}

// Attention of Rows queries: q[r] points at the query's channels, bias[r] at its row of the bias table, position[r] is
// its token. With learned grids, terms that all keys of a query share are left out: softmax does not see them.
template <int Rows, int Vectors, int Channels, bool IsLearned>
inline void attend_rows(const Attention& p, HeadScratch<Vectors>& s, int tokens, const Ints (&key_terms)[Vectors],
                        const uint8_t* const* q, const float* const* bias, uint8_t* const* out,
                        const int64_t* position, const LearnedHead& learned) {
  Ints sums[Rows][Vectors];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 9
    for (int v = 0; v < Vectors; ++v) sums[r][v] = key_terms[v];
#pragma GCC unroll 8
  for (int d = 0; d < Channels / 4; ++d) {
    Ints keys[Vectors];
    for (int v = 0; v < Vectors; ++v) keys[v] = load_ints(s.keys[d][16 * v]);
    for (int r = 0; r < Rows; ++r) {
      int32_t four;
      std::memcpy(&four, q[r] + 4 * d, 4);
      const Ints x = ints(four);
      for (int v = 0; v < Vectors; ++v) sums[r][v] = add_products(sums[r][v], x, keys[v]);
    }
  }
  // all rows step by step, so that they need not wait for each other's sums over lanes
  const Floats multiplier = floats(p.logit_multiplier);
  Floats x[Rows][Vectors], of_rows[4];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 9
    for (int v = 0; v < Vectors; ++v) {
      const Floats logit = to_floats(sums[r][v]), addend = load(bias[r] + 16 * v);
      if constexpr (IsLearned) {
        const Floats scale = floats(learned.grids->q.step[position[r]]);
        x[r][v] = fma(logit, mul(scale, load(s.key_scale + 16 * v)),
                                  add(addend, load(s.key_addend + 16 * v)));
      } else {
        x[r][v] = fma(logit, multiplier, addend);
      }
      of_rows[r] = v ? max(of_rows[r], x[r][v]) : x[r][v];
    }
  }
#pragma GCC unroll 4
  for (int r = Rows; r < 4; ++r) of_rows[r] = of_rows[0];
  const Floats tops = reduce_four(of_rows, [](Floats a, Floats b) { return max(a, b); });
  const bool by_logits = p.steps_per_octave > 0;
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
    const Floats top = one_of_four(tops, r);
#pragma GCC unroll 9
    for (int v = 0; v < Vectors; ++v) {
      x[r][v] = sub(x[r][v], top);
      const Floats e = exp2_negative(x[r][v]);
      of_rows[r] = v ? add(of_rows[r], e) : e;
      if (!by_logits) x[r][v] = e;
    }
  }
  Floats of_sums = reduce_four(of_rows, [](Floats a, Floats b) { return add(a, b); });
  of_sums = by_logits ? add(log2_positive(of_sums), floats(p.probability_log_scale))
                      : div(floats(1.0f), of_sums);
  float weights[Rows];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
    const float inverse = IsLearned ? learned.grids->attn.inverse[position[r]] : p.probability_inverse_step;
    weights[r] = quantize_probabilities<Vectors>(p, x[r], one_of_four(of_sums, r), inverse, s.probabilities[r]);
  }
  Floats result[Rows][Channels / 16];
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < Channels / 16; ++c) result[r][c] = floats(0);
  for (int pair = 0; pair < (tokens + 1) / 2; ++pair) {
    Ints values[Channels / 16];
    for (int c = 0; c < Channels / 16; ++c) values[c] = load_ints(s.values[pair][16 * c]);
    for (int r = 0; r < Rows; ++r) {
      int32_t two;
      std::memcpy(&two, s.probabilities[r] + 2 * pair, 4);
      const Ints x = ints(two);
      for (int c = 0; c < Channels / 16; ++c) {
        result[r][c] = dot_bf16(result[r][c], x, values[c]);
        if (IsLearned && learned.grids->v_by_position)
          result[r][c] = dot_bf16(result[r][c], x, load_ints(s.values_rest[pair][16 * c]));
      }
    }
  }
  const Floats out_multiplier = floats(p.out_multiplier), out_zero = floats(p.out_zero);
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < Channels / 16; ++c) {
      Floats code;
      if constexpr (IsLearned) {
        const Learned& l = *learned.grids;
        const Floats offset = mul(floats(weights[r]), load(l.v_after + 16 * c));
        const Floats y = fma(fma(result[r][c], load(l.v_scale + 16 * c), offset),
                                         floats(l.attn.step[position[r]]),
                                         load(learned.out_before + 16 * c));
        code = fma(y, floats(l.proj_in.inverse[position[r]]), out_zero);
      } else {
        code = fma(result[r][c], out_multiplier, out_zero);
      }
      store(out[r] + 16 * c, to_codes(code, floats(p.out_top)));
    }
}

// `steps`: of each token, or null where they are one factor of the result.
template <int Vectors, int Channels, bool IsLearned>
inline void pack_values(const uint8_t* v, int64_t stride, int tokens, float zero, const float* steps,
                        HeadScratch<Vectors>& s) {
  const Floats shift = floats(zero);
  for (int token = 0; token < tokens; token += 2)
    for (int c = 0; c < Channels; c += 16) {
      const uint8_t* at = v + token * stride + c;
      const auto value = [&](const uint8_t* codes, int of) {
        const Floats x = sub(to_floats(from_bytes(codes)), shift);
        return IsLearned && steps ? mul(x, floats(steps[of])) : x;
      };
      const Floats first = value(at, token);
      const Floats second = token + 1 < tokens ? value(at + stride, token + 1) : floats(0);
      store(s.values[token / 2][c], to_bf16_pairs(first, second));
      if (IsLearned && steps)
        store(s.values_rest[token / 2][c],
              to_bf16_pairs(sub(first, rounded_to_bf16(first)), sub(second, rounded_to_bf16(second))));
    }
}

// Codes less their zero point as signed bytes, four channels of 16 tokens side by side.
template <int Vectors, int Channels>
inline void pack_keys(const uint8_t* k, int64_t stride, int tokens, int zero, HeadScratch<Vectors>& s) {
  const Ints zeros = all_bytes(static_cast<int8_t>(zero));
  int token = 0;
  for (; token + 16 <= tokens; token += 16)
    for (int d = 0; d < Channels / 4; d += 4) {
      Floats columns[4];
      four_columns(reinterpret_cast<const float*>(k + token * stride + 4 * d), stride / 4, columns);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        store(s.keys[d + i][token], sub_bytes(bits(columns[i]), zeros));
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
    Floats sum = floats(0);
    for (int d = 0; d < Channels / 4; ++d) {
      const Ints four = load_ints(s.keys[d][16 * v]);
      const Ints bytes[4] = {shift_left<24>(four), shift_left<16>(four), shift_left<8>(four), four};
      for (int i = 0; i < 4; ++i)
        sum = fma(to_floats(shift_right_signed<24>(bytes[i])),
                              floats(l.q_after[4 * d + i]), sum);
    }
    store(s.key_addend + 16 * v, mul(sum, load(s.key_scale + 16 * v)));
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
  Ints key_terms[Vectors];
  for (int v = 0; v < Vectors; ++v) {
    Ints sum = ints(0);
    for (int d = 0; d < Channels / 4; ++d)
      sum = add_products(sum, all_bytes(1), load_ints(s.keys[d][16 * v]));
    key_terms[v] = mul(sum, ints(-p.q_zero));
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
