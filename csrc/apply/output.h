/* A safetensors file while it is being written: its layout is known before the first byte, its numbers arrive from many
 * threads, its metadata is finished last (hashes and measured residuals go in there).  The header's room is reserved with
 * the longest values it may get. */
#ifndef HM_APPLY_OUTPUT_H
#define HM_APPLY_OUTPUT_H

#include "base/os.h"
#include "base/sha256.h"
#include "io/header_write.h"
#include "model/source.h"

typedef struct hm_output {
    hm_outfile file;
    hm_tensor_info *tensors; /* owned; `offset` from the start of the file */
    size_t count;
    uint64_t header_bytes, end;
    hm_sha256 hash;   /* of the data area */
    uint64_t hashed;  /* up to this offset */
} hm_output;

/* An output that is not open. */
#define HM_OUTPUT_CLOSED {.file = {.fd = -1, .direct_fd = -1}}

/* Refuses a path that is one of the sources, or (unless forced) an existing file that hyper-merge did not write. */
hm_status hm_output_check_target(const char *path, hm_source *const *sources, size_t count, bool force, hm_error *err);

/* Lays the tensors out in the given order (names and shapes are used until the end, so keep them) and opens the temporary.
 * `meta` has the longest values that hm_output_finish may bring. */
hm_status hm_output_begin(hm_output *out, const char *path, const hm_tensor_info *tensors, size_t count,
                          const hm_meta *meta, size_t meta_count, hm_error *err);
/* Bytes of tensor i from element `start` on.  Any thread, any order. */
hm_status hm_output_write(hm_output *out, size_t i, uint64_t start, const void *data, size_t elements, hm_error *err);
/* The same bytes again, in commit order, for the hash: only what continues the hashed part counts, the rest is read back
 * at the end. */
void hm_output_hash(hm_output *out, size_t i, uint64_t start, const void *data, size_t elements);
/* sha256 of the data area, 64 digits; reads back what was not hashed on the way.  job may cancel. */
hm_status hm_output_data_hash(hm_output *out, char hex[65], hm_job *job, hm_error *err);
/* Writes the header and syncs: from here on only hm_output_publish can fail.  header_hash (65 bytes, may be NULL) is the
 * header's sha256. */
hm_status hm_output_finish(hm_output *out, const hm_meta *meta, size_t meta_count, char *header_hash, hm_error *err);
/* Can it be put in place?  Not when its folder or its temporary went away, or a file that is not ours got its name. */
hm_status hm_output_check(const hm_output *out, hm_error *err);
/* Checks, and puts the finished file in place. */
hm_status hm_output_publish(hm_output *out, hm_error *err);
/* After publish (it is this that syncs the folder), or instead of it (then nothing stays behind).  Harmless on
 * HM_OUTPUT_CLOSED. */
void hm_output_close(hm_output *out);

#endif
