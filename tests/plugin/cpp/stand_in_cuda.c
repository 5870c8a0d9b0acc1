/* A libcuda.so.1 without a GPU: says it is sm_86, "loads" kernels and prints every launch as one line of numbers. */
#include <stdint.h>
#include <stdio.h>

int cuInit(unsigned flags) { return (int)flags; }
int cuCtxGetCurrent(void** context) { *context = (void*)7; return 0; }
int cuCtxGetDevice(int* device) { *device = 0; return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) { *value = attribute == 75 ? 8 : 6; return device; }
int cuModuleLoadData(void** module, void const* image) { *module = (void*)image; return 0; }
int cuModuleGetFunction(void** function, void* module, char const* name) {
    *function = module;
    return name[0] == 'a' ? 0 : 500;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
    printf("shared %d %d\n", attribute, value);
    return function == 0;
}
int cuGetErrorString(int code, char const** text) { *text = code == 700 ? "an illegal memory access" : "?"; return 0; }

int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** parameters, void** extra) {
    /* The first bytes of the kernel's machine code stand for it. */
    printf("launch %.4s %u %u %u %u %u %u %u %lu", (char const*)function, x, y, z, bx, by, bz, shared,
           (unsigned long)(uintptr_t)stream);
    for (int i = 0; i < 28; ++i) {
        if (i == 7) {
            printf(" %.9g", *(float*)parameters[i]);
        } else if (i >= 8 && i < 12) {
            printf(" %d", *(int32_t*)parameters[i]);
        } else {
            printf(" %ld", *(long*)parameters[i]);
        }
    }
    printf("\n");
    fflush(stdout);
    return extra != 0 ? 1 : (shared == 1234 ? 700 : 0);
}
