// Attention of one head in one window: integer logits, softmax in float, then values times probabilities. Both are codes
// where the grid of probabilities is uniform and begins at 0, else bf16.
#pragma once
#include <algorithm>

#include "learned.h"
#include "probabilities.h"

namespace mixaq {

// Keys come in vectors of 16: up to four as there are, beyond that nine, for windows of up to 144 tokens (12 x 12).
constexpr int kManyVectors = 9;
constexpr int kMaxTokens = 160;  // in whole pairs of vectors
// Queries at once: their sums and a step of all keys fit the registers of AVX-512.
constexpr int rows_at_once(int vectors) { return kRegisters >= 32 && vectors <= 4 ? 4 : 2; }

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
  alignas(64) int8_t value_codes[kTokens / 4][32][4];  // less 128
  alignas(64) uint8_t probability_codes[rows_at_once(Vectors)][kTokens];
};
constexpr size_t kHeadBytes = sizeof(HeadScratch<kManyVectors>);

// Whether values are weighed as codes, four tokens at once: the sums are the whole numbers that bf16 gives, too.
template <bool IsLearned>
inline bool weighs_codes(const Attention& p) {
  return !IsLearned && p.steps_per_octave == 0 && p.probability_zero == 0 && p.probability_levels <= 255;
}

// What `probability_codes` stored weighs the values of a head.
template <int Rows, int Vectors, int Columns>
inline void weigh_codes(const Attention& p, HeadScratch<Vectors>& s, int tokens, const Floats (&x)[Rows][Vectors],
                        Floats of_sums, Floats (&result)[Rows][Columns]) {
  Ints sums[Rows][Columns];
  Floats of_rows[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r)
    of_rows[r] = r < Rows ? probability_codes<Vectors>(p, x[r], one_of_four(of_sums, r), s.probability_codes[r])
                          : of_rows[0];
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < Columns; ++c) sums[r][c] = ints(0);
  for (int four = 0; four < (tokens + 3) / 4; ++four) {
    Ints values[Columns];
    for (int c = 0; c < Columns; ++c) values[c] = load_ints(s.value_codes[four][16 * c]);
    for (int r = 0; r < Rows; ++r) {
      int32_t probabilities;
      std::memcpy(&probabilities, s.probability_codes[r] + 4 * four, 4);
      const Ints y = ints(probabilities);
      for (int c = 0; c < Columns; ++c) sums[r][c] = add_products(sums[r][c], y, values[c]);
    }
  }
  const Floats shifts = mul(sum_four(of_rows), floats(128 - p.v_zero));  // whole numbers, which floats hold
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < Columns; ++c) result[r][c] = add(to_floats(sums[r][c]), one_of_four(shifts, r));
}

// What `quantize_probabilities` stored weighs the values of a head, and what bf16 leaves of them if there is a `rest`.
template <int Rows, int Vectors, int Columns>
inline void weigh_values(const HeadScratch<Vectors>& s, int tokens, bool rest, Floats (&result)[Rows][Columns]) {
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < Columns; ++c) result[r][c] = floats(0);
  for (int pair = 0; pair < (tokens + 1) / 2; ++pair) {
    Ints values[Columns];
    for (int c = 0; c < Columns; ++c) values[c] = load_ints(s.values[pair][16 * c]);
    for (int r = 0; r < Rows; ++r) {
      int32_t two;
      std::memcpy(&two, s.probabilities[r] + 2 * pair, 4);
      const Ints x = ints(two);
      for (int c = 0; c < Columns; ++c) {
        result[r][c] = dot_bf16(result[r][c], x, values[c]);
        if (rest) result[r][c] = dot_bf16(result[r][c], x, load_ints(s.values_rest[pair][16 * c]));
      }
    }
  }
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
  Floats of_sums = sum_four(of_rows);
  of_sums = by_logits ? add(log2_positive(of_sums), floats(p.probability_log_scale))
                      : div(floats(1.0f), of_sums);
  float weights[Rows];
  Floats result[Rows][Channels / 16];
  if (weighs_codes<IsLearned>(p)) {
    weigh_codes(p, s, tokens, x, of_sums, result);
  } else {
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const float inverse = IsLearned ? learned.grids->attn.inverse[position[r]] : p.probability_inverse_step;
      weights[r] = quantize_probabilities<Vectors>(p, x[r], one_of_four(of_sums, r), inverse, s.probabilities[r]);
    }
    weigh_values(s, tokens, IsLearned && learned.grids->v_by_position, result);
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

// Codes less 128, four tokens of a channel side by side. What stands behind the last token is multiplied by 0.
template <int Channels, int Vectors>
inline void pack_value_codes(const uint8_t* v, int64_t stride, int tokens, HeadScratch<Vectors>& s) {
  for (int token = 0; token < tokens; token += 4)
    for (int c = 0; c < Channels; c += 16) {
      const auto row = [&](int i) { return load_bytes(v + std::min(token + i, tokens - 1) * stride + c); };
      store(s.value_codes[token / 4][c], sub_bytes(four_rows(row(0), row(1), row(2), row(3)), all_bytes(-128)));
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
  if (weighs_codes<IsLearned>(p))
    pack_value_codes<Channels>(qkv + 2 * width + first, stride, tokens, s);
  else
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
    for (int r = 0; seen && r < count; ++r) {
      const uint8_t* codes = s.probability_codes[r];
      for (int v = 0; weighs_codes<IsLearned>(p) && v < HeadScratch<Vectors>::kTokens; v += 32)
        store(s.probabilities[r] + v, to_bf16(to_floats(from_bytes(codes + v)), to_floats(from_bytes(codes + v + 16))));
      std::memcpy(seen + tokens_of[r] * kMaxTokens, s.probabilities[r], sizeof(s.probabilities[r]));
    }
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
