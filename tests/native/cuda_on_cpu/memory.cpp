// Lets an engine that runs on a CPU at the device's memory.
#include "accelaes.h"
#include "cuda_runtime.h"

extern "C" ACCELAES_API void accelaes_open_memory(bool open) {
    if (open) {
        cuda_on_cpu::Memory::all().open();
    } else {
        cuda_on_cpu::Memory::all().close();
    }
}
