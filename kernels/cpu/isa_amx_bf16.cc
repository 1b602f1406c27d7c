// The inner loops for amx_bf16; compiler options in kernels/CMakeLists.txt.
#define ULTRASPEED_ISA isa_amx_bf16
#define ULTRASPEED_TABLE kAmxBf16Kernels
#include "kernels/cpu/isa.inc.h"
