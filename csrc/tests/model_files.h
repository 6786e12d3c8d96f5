/* Tiny safetensors files for tests, written with plain stdio. */
#ifndef HM_TESTS_MODEL_FILES_H
#define HM_TESTS_MODEL_FILES_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "io/header_write.h"

#define FOLDER_PATHS 64

/* A folder of its own; what was made in it is removed at the end. */
typedef struct folder {
    char path[64];
    char files[FOLDER_PATHS][160];
    size_t count;
} folder;

static inline int folder_begin(folder *f)
{
    f->count = 0;
    strcpy(f->path, "/tmp/hm_test_XXXXXX");
    return mkdtemp(f->path) != NULL;
}

/* Path of a file of that name in the folder, remembered for removal.  Lives as long as the folder. */
static inline const char *folder_file(folder *f, const char *name)
{
    char path[sizeof f->files[0]];
    snprintf(path, sizeof path, "%s/%s", f->path, name);
    for (size_t i = 0; i < f->count; i++)
        if (strcmp(f->files[i], path) == 0) return f->files[i];
    if (f->count == FOLDER_PATHS) abort();
    strcpy(f->files[f->count], path);
    return f->files[f->count++];
}

static inline void folder_end(folder *f)
{
    for (size_t i = 0; i < f->count; i++) unlink(f->files[i]);
    rmdir(f->path);
}

/* A tensor to be written: shape up to the first −1; all bytes of its data are `fill`. */
typedef struct spec {
    const char *name;
    hm_dtype dtype;
    long shape[5];
    unsigned char fill;
} spec;

static inline hm_tensor_info spec_info(const spec *s)
{
    hm_tensor_info info = {.name = s->name, .dtype = s->dtype, .elements = 1};
    while (info.ndim < 5 && s->shape[info.ndim] >= 0) {
        info.shape[info.ndim] = (uint64_t)s->shape[info.ndim];
        info.elements *= info.shape[info.ndim++];
    }
    info.bytes = info.elements * hm_dtype_bytes(info.dtype);
    return info;
}

/* Writes a file; the order of the data is that of `specs`.  False when it could not be written. */
static inline int write_model(const char *path, const spec *specs, size_t count, const hm_meta *meta, size_t meta_count)
{
    hm_tensor_info *infos = calloc(count + 1, sizeof *infos);
    hm_text header = {0};
    int good = infos != NULL;
    for (size_t i = 0; good && i < count; i++) infos[i] = spec_info(&specs[i]);
    good = good && hm_header_write(&header, infos, count, meta, meta_count, 0, NULL) == HM_OK && !header.failed;
    FILE *file = good ? fopen(path, "wb") : NULL;
    good = file != NULL && fwrite(header.data, 1, header.length, file) == header.length;
    for (size_t i = 0; good && i < count; i++)
        for (uint64_t b = 0; b < infos[i].bytes; b++) good = good && fputc(specs[i].fill, file) != EOF;
    if (file != NULL) good = fclose(file) == 0 && good;
    hm_text_clear(&header);
    free(infos);
    return good;
}

static inline int write_bytes(const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    int good = file != NULL && fwrite(data, 1, bytes, file) == bytes;
    if (file != NULL) good = fclose(file) == 0 && good;
    return good;
}

#endif
