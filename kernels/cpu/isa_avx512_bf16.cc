// The inner loops for avx512_bf16; compiler options in kernels/CMakeLists.txt.
#define ULTRASPEED_ISA isa_avx512_bf16
#define ULTRASPEED_TABLE kAvx512Bf16Kernels
#include "kernels/cpu/isa.inc.h"
