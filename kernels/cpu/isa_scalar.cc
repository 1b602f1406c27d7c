// The inner loops for scalar; compiler options in kernels/CMakeLists.txt.
#define ULTRASPEED_ISA isa_scalar
#define ULTRASPEED_TABLE kScalarKernels
#include "kernels/cpu/isa.inc.h"
