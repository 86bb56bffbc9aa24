// Vectors as wide as the CPU's, by the compiler's vector extensions: no instruction set is named.
#pragma once
#include <cstdint>
#include <cstring>

namespace mixaq {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));
using Bytes = uint8_t __attribute__((vector_size(kLanes)));
using Ints = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));

inline Lanes load(const float* from) {
  Lanes values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

inline Lanes load(const uint8_t* from) {
  Bytes codes;
  std::memcpy(&codes, from, sizeof(codes));
  return __builtin_convertvector(__builtin_convertvector(codes, Ints), Lanes);
}

inline void store(float* to, Lanes values) { std::memcpy(to, &values, sizeof(values)); }

}  // namespace mixaq
