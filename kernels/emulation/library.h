// What a library of emulated kernels hands out; the table of kernels is written by `src/emulation.rs`.
#pragma once
#include "emulated.h"

#include <utility>

namespace emulation {

// A kernel's parameters are pointers of any type: `arguments` has one for each.
template <class... P, size_t... I>
void call_with(void (*kernel)(P...), void **arguments, std::index_sequence<I...>) {
    kernel((P)arguments[I]...);
}
template <class... P> void call(void (*kernel)(P...), void **arguments) {
    call_with(kernel, arguments, std::index_sequence_for<P...>());
}

struct Entry {
    const char *name;
    int threads;
    void (*run)(void **arguments);
};

} // namespace emulation

// Memory of NaN that ends at a page which cannot be touched, but for the padding that makes it begin at a multiple of 16.
extern "C" void *emulated_alloc(size_t bytes) { return emulation::Buffer<char>(bytes).data; }
extern "C" void emulated_free(void *data, size_t bytes) {
    const size_t page = 4096, size = (bytes + page - 1) / page * page;
    munmap((char *)((uintptr_t)data / page * page), size + page);
}
