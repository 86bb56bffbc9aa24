// Sizes of structures, by which structures.py is compared with this library when it is loaded.
#pragma once
#include <cstdint>

#define MIXAQ_SIZE_OF(Name) \
  extern "C" int64_t mixaq_size_of_##Name() { return sizeof(mixaq::Name); }
