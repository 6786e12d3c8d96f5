/* Runs a fuzz target over files without libFuzzer, with any compiler: the corpus as a regression test.
 *     replay_NAME FILE… */
#include <stdio.h>

#include "fuzz/fuzz.h"

static int replay(const char *path)
{
    FILE *file = fopen(path, "rb");
    long size = -1;
    if (file != NULL && fseek(file, 0, SEEK_END) == 0) size = ftell(file);
    unsigned char *data = size >= 0 ? malloc((size_t)size + 1) : NULL;
    int good = data != NULL && fseek(file, 0, SEEK_SET) == 0 && fread(data, 1, (size_t)size, file) == (size_t)size;
    if (file != NULL) fclose(file);
    unsigned char *exact = good ? malloc((size_t)size) : NULL; /* no byte more, so that a read beyond is seen */
    if (exact != NULL) {
        memcpy(exact, data, (size_t)size);
        LLVMFuzzerTestOneInput(exact, (size_t)size);
    }
    free(exact);
    free(data);
    return good;
}

int main(int count, char **paths)
{
    for (int i = 1; i < count; i++)
        if (!replay(paths[i])) {
            fprintf(stderr, "%s cannot be read\n", paths[i]);
            return 1;
        }
    printf("%s: %d inputs\n", paths[0], count - 1);
    return count < 2;
}
