// Vectors of 16 numbers, which all kernels are written in: one AVX-512 register, or two of AVX2.
//
// `Floats` are 16 float32, `Ints` 16 int32 or 64 bytes. A function does in each lane what its name says; operations on
// "fours" work within each four neighbouring lanes, as the CPU's own do. `fma` is x y + z, `fms` x y - z, each rounded
// once. `min` and `max` return the second operand where one is NaN.
#pragma once

#ifdef __AVX512VNNI__
#include "lanes_avx512.h"
#else
#include "lanes_avx2.h"
#endif
