/* Shared libraries that are looked for at run time, and whether there is room to load one. */
#include <dlfcn.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/os.h"

void *hm_library_open(const char *name, char *reason, size_t reason_bytes)
{
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library != NULL) return library;
    const char *text = dlerror();
    snprintf(reason, reason_bytes, "%s", text != NULL ? text : "it cannot be loaded");
    return NULL;
}

void *hm_library_symbol(void *library, const char *symbol)
{
    return dlsym(library, symbol);
}

void hm_library_close(void *library)
{
    if (library != NULL) dlclose(library);
}

static uint64_t left_of(rlim_t limit, uint64_t used)
{
    if (limit == RLIM_INFINITY) return UINT64_MAX;
    return (uint64_t)limit > used ? (uint64_t)limit - used : 0;
}

uint64_t hm_address_space_left(void)
{
    /* In pages: all that is mapped, then resident, shared, text, (unused), and what RLIMIT_DATA counts. */
    unsigned long long all = 0, data = 0;
#if defined(__linux__)
    FILE *file = fopen("/proc/self/statm", "re");
    if (file != NULL) {
        if (fscanf(file, "%llu %*u %*u %*u %*u %llu", &all, &data) != 2) all = data = 0;
        fclose(file);
    }
#endif
    long page = sysconf(_SC_PAGESIZE);
    uint64_t page_bytes = page > 0 ? (uint64_t)page : 4096;
    struct rlimit most_space = {.rlim_cur = RLIM_INFINITY}, most_data = {.rlim_cur = RLIM_INFINITY};
    getrlimit(RLIMIT_AS, &most_space);
    getrlimit(RLIMIT_DATA, &most_data);
    uint64_t space = left_of(most_space.rlim_cur, all * page_bytes);
    uint64_t heap = left_of(most_data.rlim_cur, data * page_bytes);
    return space < heap ? space : heap;
}
