// The inner loops for avx2; compiler options in kernels/CMakeLists.txt.
#define ULTRASPEED_ISA isa_avx2
#define ULTRASPEED_TABLE kAvx2Kernels
#include "kernels/cpu/isa.inc.h"
