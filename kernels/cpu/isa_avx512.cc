// The inner loops for avx512; compiler options in kernels/CMakeLists.txt.
#define ULTRASPEED_ISA isa_avx512
#define ULTRASPEED_TABLE kAvx512Kernels
#include "kernels/cpu/isa.inc.h"
