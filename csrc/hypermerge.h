/* hypermerge.h: the public interface of the hyper-merge core, and its manual.
 *
 * What it does.  M checkpoints W_1 … W_M of one architecture go in, a hyper-model comes out: a base B and K directions
 * D_1 … D_K with multipliers c, such that  W_m ≈ B + Σ_k c_mk D_k  with the smallest possible squared error
 * (Eckart–Young).  Two streaming passes over the files: one measures the M × M Gram matrix of ΔW_m = W_m − B
 * (hm_solve), one writes (hm_hyper_save, hm_hyper_merge).
 *
 * Conventions, which hold unless a function says otherwise
 *   strings    UTF-8, NUL-terminated.  Paths are what the operating system takes.
 *   sizes      `_bytes` are bytes, `elements` are numbers; never mixed.
 *   matrices   row-major f64.
 *   ownership  a function that fills `*out` gives the caller one reference or one block of memory: close it with the
 *              matching `_close`, free text with hm_free.  Arguments are borrowed for the call only; objects that must
 *              outlive it (sources inside a hyper-model) take a reference of their own.
 *   NULL       may be passed to every `_close` and to hm_free; for `err`, `job` and an options pointer (= defaults).
 *   errors     every function that can fail returns hm_status; on failure `*out` is untouched and `err` holds one line
 *              of text: what, which file, which tensor, what to do.
 *   threads    different objects may be used in different threads.  One object may be read by several threads at a
 *              time.  Progress is reported on the calling thread only.
 *   memory     the streaming passes keep to hm_job.memory_budget however large the files are; beside it come a few
 *              hundred bytes per tensor and file, one packed M × M matrix per tensor, and of low-rank tensors the factors
 *              of those in work as f32, where they are more than half of it.
 *   process    the core never prints, never exits or aborts, changes no signal, locale or environment, and keeps no
 *              global state but the choice of kernels, made once from what the CPU can do (HM_CPU=portable forces
 *              the portable ones), and OpenBLAS, once something has needed it: it works on one thread for each of ours,
 *              and afterwards has the number of threads that it had.
 */
#ifndef HYPERMERGE_H
#define HYPERMERGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HM_VERSION "0.1.0"
#define HM_MAX_MEMBERS 64 /* checkpoints in one solve */
#define HM_MAX_DIMS 8     /* dimensions of one tensor */

/* ---- errors ----------------------------------------------------------------------------------------------------- */

typedef enum hm_status {
    HM_OK = 0,
    HM_ERR_ARGUMENT,  /* the caller's values make no sense (a weight of −1, K larger than the rank, an unknown glob) */
    HM_ERR_MEMORY,    /* memory could not be had; nothing was changed */
    HM_ERR_IO,        /* the operating system said no, or a file changed while it was being read */
    HM_ERR_FORMAT,    /* a file breaks the safetensors or the hyper-model format */
    HM_ERR_MISMATCH,  /* the inputs do not go together: shapes, names, families, NaN */
    HM_ERR_CANCELLED  /* hm_job.progress returned non-zero */
} hm_status;

typedef struct hm_error {
    hm_status status;
    char file[512];     /* the file it happened in, or "" */
    char tensor[256];   /* the tensor it happened in, or "" */
    char message[1536]; /* one line, complete in itself (names file and tensor again) */
} hm_error;

/* ---- long work: budget, threads, progress, cancel ---------------------------------------------------------------- */

/* Zero-initialise, then set what you need.  Borrowed during the call; the `out_` fields are written by it. */
typedef struct hm_job {
    uint64_t memory_budget; /* bytes for buffers; 0 = 256 MiB; below 16 MiB counts as 16 MiB */
    unsigned threads;       /* threads that compute; 0 = one per usable CPU, at most 16 */
    /* Called on the calling thread about 20 times a second and once at the end, with bytes handled so far and in all.
     * Non-zero cancels: the call returns HM_ERR_CANCELLED and leaves no file behind.  May be NULL. */
    int (*progress)(void *user, uint64_t done_bytes, uint64_t total_bytes);
    void *user;
    uint64_t out_direct_bytes; /* read past the page cache (O_DIRECT), because the file was cold */
    uint64_t out_cached_bytes; /* read through the page cache */
    uint64_t out_total_bytes;  /* of the last streaming pass: what progress counts up to */
    double out_seconds;        /* wall time of the streaming pass or passes */
} hm_job;

/* ---- element types ------------------------------------------------------------------------------------------------ */

typedef enum hm_dtype {
    HM_F64 = 0, HM_F32, HM_F16, HM_BF16, HM_F8_E4M3, HM_F8_E5M2, /* the floating-point types: these can be merged */
    HM_I64, HM_I32, HM_I16, HM_I8, HM_U64, HM_U32, HM_U16, HM_U8, HM_BOOL,
    HM_DTYPE_COUNT,
    HM_DTYPE_KEEP = -1 /* in options: each tensor keeps the type it has in the carrier */
} hm_dtype;

const char *hm_dtype_name(hm_dtype dtype); /* as in safetensors: "F16", …; never NULL */
size_t hm_dtype_bytes(hm_dtype dtype);     /* 1, 2, 4 or 8 */
bool hm_dtype_is_float(hm_dtype dtype);

/* ---- sources: where weights come from ------------------------------------------------------------------------------ */

typedef struct hm_source hm_source; /* reference counted: a safetensors file, or tensors that the caller owns */

/* One tensor of a source.  Read-only; lives as long as the source. */
typedef struct hm_tensor_info {
    const char *name;
    hm_dtype dtype;
    unsigned ndim;                /* 0 = one number */
    uint64_t shape[HM_MAX_DIMS];  /* elements per dimension; 0 allowed */
    uint64_t elements;            /* product of the shape */
    uint64_t rank;                /* 0; or r ≥ 1: its numbers are the products of two stored factors [out, r] and [r, in…] */
    uint64_t bytes;               /* as stored: of rank r, those of both factors */
    uint64_t offset;              /* files: of its first byte (or of a factor's), from the start of the file */
    const void *data;             /* borrowed tensors: address of element [0, …, 0]; files: NULL */
    int64_t strides[HM_MAX_DIMS]; /* borrowed tensors: in elements */
} hm_tensor_info;

/* Opens a safetensors file and checks its whole header before anything else: see io/header_scan.h for the rules.  The
 * descriptor stays open, so a file that is replaced later is still read in its old form; a file that is rewritten or
 * truncated in place is noticed by every pass and refused.
 * A pair hypermerge.NAME.lora_up [out, r], hypermerge.NAME.lora_down [r, in…] is offered as one tensor hypermerge.NAME
 * [out, in…] of type F32 and rank r; half a pair and factors that do not go together are HM_ERR_FORMAT.
 * HM_ERR_IO, HM_ERR_FORMAT, HM_ERR_MEMORY. */
hm_status hm_source_open(hm_source **out, const char *path, hm_error *err);

/* Tensors in memory (torch, NumPy, …).  `tensors[i].name, dtype, ndim, shape, data, strides` are read; names and shapes
 * are copied, the numbers are not: they must stay valid and unchanged while the source lives.  `name` stands for the
 * source in tables and errors. */
hm_status hm_source_borrow(hm_source **out, const char *name, const hm_tensor_info *tensors, size_t count,
                           hm_error *err);

hm_source *hm_source_keep(hm_source *source); /* one more reference; returns its argument */
void hm_source_close(hm_source *source);      /* one reference less */

const char *hm_source_name(const hm_source *source); /* file name without folder and extensions, or the given name */
const char *hm_source_path(const hm_source *source); /* absolute path, or NULL for tensors in memory */
size_t hm_source_count(const hm_source *source);
const hm_tensor_info *hm_source_tensor(const hm_source *source, size_t i); /* 0 ≤ i < count, in file order */
const hm_tensor_info *hm_source_find(const hm_source *source, const char *name); /* NULL if absent; O(log n) */
/* Value of a `__metadata__` key, or NULL.  The text may hold anything: it comes from the file. */
const char *hm_source_metadata(const hm_source *source, const char *key);
/* What the file is, as JSON: {"name","path","size","family","tensors","parameters","dtypes":{…},"components":{…},
 * "low_rank":{"tensors","least_rank","largest_rank"} where there are products,"header_hash","metadata":{…}}; parameters are
 * counted as stored.  Free with hm_free. */
hm_status hm_source_describe(hm_source *source, char **out_json, hm_error *err);
/* The file's sha256 in 64 hexadecimal digits; reads all of it.  `out` has 65 bytes. */
hm_status hm_source_sha256(hm_source *source, char *out, hm_job *job, hm_error *err);
/* Names the file's sha256, known from elsewhere (a host's cache), to be recorded in what is written.  Not checked. */
hm_status hm_source_set_sha256(hm_source *source, const char *hex, hm_error *err);

/* ---- which tensors take part ---------------------------------------------------------------------------------------- */

/* Globs are those of Python's fnmatch.fnmatchcase (`*`, `?`, `[…]`, `[!…]`) on tensor names.  Without `include`, every
 * floating-point tensor but the VAE and the T5 encoder is merged; with it, exactly those that match one.  `exclude` takes
 * away.  A glob that matches nothing is an error.  What is never averaged (integers, position_ids, scheduler buffers …)
 * stays so: see model/names.c. */
typedef struct hm_selection {
    const char *const *include;
    size_t includes;
    const char *const *exclude;
    size_t excludes;
    bool common;          /* merge what all inputs share; copy the rest from the carrier instead of refusing, and leave out
                           * layers of LoRAs that the base lacks */
    bool allow_nonfinite; /* copy a tensor that holds NaN or Inf from the carrier instead of refusing */
} hm_selection;

/* ---- solve -------------------------------------------------------------------------------------------------------- */

typedef enum hm_base { HM_BASE_MEAN = 0, HM_BASE_FILE, HM_BASE_NONE } hm_base;
typedef enum hm_method { HM_EXACT = 0, HM_ALS } hm_method;

typedef struct hm_solve_options {
    hm_base base;
    hm_source *base_source; /* with HM_BASE_FILE */
    unsigned directions;    /* K; 0 = min(2, rank); more than the rank is HM_ERR_ARGUMENT */
    hm_method method;       /* exact, or the alternating updates of the original tool run on the Gram matrix */
    const double *weights;  /* M values > 0, or NULL = all equal */
    hm_selection selection;
    unsigned carrier;       /* which input gives the tensors that are not merged (with HM_BASE_FILE the base does) */
    hm_dtype dtype;         /* of the merged tensors when saved; HM_DTYPE_KEEP */
    /* Hyper-LoRAs: direction k + 1 has at most the rank ranks[k] in every tensor (norms, biases, and what factors would not
     * make smaller stay whole), and rank_count is K.  Found by passes over the inputs: direction 1 alone until the loss
     * hardly falls, then each further one in what those before it leave (deflation, and the end is no worse than that), then
     * all of them together; progress begins anew with each.  They stay in memory beside the budget, as they will be stored.
     * project, merge and lora need the saved file.  In the document: method "hyper-lora", "ranks", "losses" (after the LoRAs
     * of each of these passes, and at last with the final multipliers: never rising; in the first passes only direction 1
     * takes off the loss), "direction_gram" (⟨D_j, D_k⟩: they need not be orthogonal); explained_k is
     * Σ_m w_m c_mk ⟨ΔW_m, D_k⟩ / total, and these sum to 1 − loss / total. */
    const unsigned *ranks;
    size_t rank_count;      /* 0: no limit */
    /* Called on the calling thread after each of these passes (from 1) with the loss so far; may be NULL.  Non-zero cancels. */
    int (*pass)(void *user, size_t number, double loss, double total);
    void *pass_user;
} hm_solve_options;

typedef struct hm_hyper hm_hyper; /* reference counted: a solved or an opened hyper-model */

/* Inputs may be LoRA files (names of kohya, diffusers and PEFT, ComfyUI; ranks may differ; alpha; LoCon; .diff and .diff_b),
 * with HM_BASE_FILE, the checkpoint that they are for: each stands for that base with the LoRA at strength 1.  LoRAs alone also
 * go with HM_BASE_NONE: they are then taken as what they add, tensors have the names of their layers, and no checkpoint can be
 * made.  Tensors for which all inputs are LoRAs are never multiplied out (but by the search for hyper-LoRAs, some at a time):
 * inner products are those of the factors, and what hm_hyper_save stores are the factors of all inputs side by side, where that
 * is smaller than the numbers.  Another suffix (LoHa, LoKr, DoRA …), a layer that the base lacks (but for selection.common) or
 * has in another shape: HM_ERR_MISMATCH. */
/* Measures the Gram matrix (one read of every input) and finds the directions.  Nothing is written; the result keeps
 * the sources and knows its multipliers, residuals and loss: hm_hyper_document.
 * HM_ERR_MISMATCH for inputs that do not go together or that hold NaN or Inf. */
hm_status hm_solve(hm_hyper **out, hm_source *const *sources, size_t count, const hm_solve_options *options, hm_job *job,
                   hm_error *err);

/* Opens NAME.hyper.safetensors.  A linked base is looked for beside the file, then in `folders`, and known by its
 * header hash; where it is not found, only the document and the map work, and other calls say so. */
hm_status hm_hyper_open(hm_hyper **out, const char *path, const char *const *folders, size_t folder_count, hm_error *err);
hm_hyper *hm_hyper_keep(hm_hyper *hyper);
void hm_hyper_close(hm_hyper *hyper);

/* The `hypermerge` metadata document as JSON text.  Free with hm_free. */
hm_status hm_hyper_document(hm_hyper *hyper, char **out_json, hm_error *err);
size_t hm_hyper_members(const hm_hyper *hyper);    /* M */
size_t hm_hyper_directions(const hm_hyper *hyper); /* K */

typedef struct hm_save_options {
    bool force;       /* replace a file that hyper-merge did not write */
    bool base_low;    /* store W̃ − round(W̃) even where it costs less than 1 % of the smallest Δ */
    bool hash;        /* also record the sha256 of the data area; of a hyper-model it cannot be made while writing (W̃ and the
                       * directions grow side by side), so this reads back most of the file */
    bool split;       /* W̃ as a plain checkpoint NAME.base.safetensors, the directions beside it */
} hm_save_options;

/* Writes a solved hyper-model: second read of every input, one write.  Afterwards the document also has
 * `residual_stored`.  The file appears whole or not at all.  HM_ERR_ARGUMENT for an opened (already saved) one, or when
 * `path` is one of the inputs. */
hm_status hm_hyper_save(hm_hyper *hyper, const char *path, const hm_save_options *options, hm_job *job, hm_error *err);

typedef struct hm_rename_options {
    const char *const *names; /* K texts of at most 64 characters, or NULL; names[k] NULL leaves the name of direction
                               * k + 1 as it is, "" takes it away */
    const bool *flip;         /* K values, or NULL: true turns direction k + 1 round, D → −D and every c_m → −c_m */
    bool force;               /* as in hm_save_options */
} hm_rename_options;

/* Writes an opened hyper-model anew, its axes with these names and signs (in the document "axes":[{"name"}…], K of them,
 * or nothing while no axis has a name), and everything else as it was: blends at the multipliers with their signs changed
 * are the same in every bit.  `path` NULL or that of its own file: in place of it, whole or not at all.  `hyper` itself
 * goes on showing what it opened.  Reads and writes the file once; a linked base is neither needed nor touched.
 * HM_ERR_ARGUMENT for a hyper-model that is no file yet, a name that holds control characters, is too long, or is that
 * of another axis. */
hm_status hm_hyper_rename(hm_hyper *hyper, const char *path, const hm_rename_options *options, hm_job *job,
                          hm_error *err);

typedef struct hm_block_value {
    const char *glob;   /* on tensor names; the last match wins */
    const double *at;   /* `directions` multipliers */
} hm_block_value;

typedef struct hm_merge_options {
    const double *at;           /* multipliers; missing ones are 0 */
    size_t at_count;            /* at most K */
    const hm_block_value *blocks; /* other multipliers for the tensors that match */
    size_t block_count;
    hm_dtype dtype;             /* of the merged tensors; HM_DTYPE_KEEP */
    hm_source *const *exact;    /* the M inputs, in order: stream the blend from them instead of the stored directions */
    size_t exact_count;
    hm_source *carrier;         /* gives what is not merged; NULL = as solved */
    hm_source *vae;             /* gives the VAE, under its full names or without prefix; NULL = the carrier */
    bool force;
} hm_merge_options;

/* Writes the checkpoint B + Σ_k at_k D_k.  Arithmetic: x = base (+ base_low); x += c_k · D_k for ascending k, product and
 * sum each rounded to f32, c_k = 0 skipped; one rounding to nearest even at the end: the same bytes on every CPU. */
hm_status hm_hyper_merge(hm_hyper *hyper, const char *path, const hm_merge_options *options, hm_job *job, hm_error *err);

/* Coordinates of a model that was not merged: the c that minimises ‖X − B − Σ c_k D_k‖, and the relative residual.  A LoRA
 * file stands for the base with it.
 * JSON {"name","multipliers":[K],"residual","norm"}.  One read of X and of the hyper-model. */
hm_status hm_hyper_project(hm_hyper *hyper, hm_source *x, char **out_json, hm_job *job, hm_error *err);

/* ---- live: blends written into tensors that the caller owns ------------------------------------------------------------ */

/* The same arithmetic as hm_hyper_merge, fused into one pass and written in place, as often as one likes and always from
 * the base, so nothing drifts: the numbers depend on the multipliers alone, not on earlier calls or on threads.
 *
 * A live binding knows which target belongs to which tensor of the hyper-model; it does not own the targets and keeps no
 * address of them: hosts move storage, so every call brings the targets anew, in the order in which they were bound.
 * targets[i].name, dtype, ndim, shape, strides, data are read; `data` is written through although it is const here. */
typedef struct hm_live hm_live;

typedef struct hm_live_options {
    bool in_memory;     /* copy base and directions into memory: a blend then goes at the speed of memory; else they are read
                         * from the files at every call, through buffers of less than 64 MiB whatever hm_job says (the page
                         * cache keeps them where it has room; several times slower) */
    bool keep_original; /* keep a copy of targets that do not hold cast(W̃), so that restore can bring them back; without it
                         * such a target is HM_ERR_MISMATCH, because the first hm_live_set would destroy it */
    bool partial;       /* after binding, leave a target alone whose `data` is NULL at a call: the host has moved it to another
                         * device; without it that is HM_ERR_MISMATCH */
} hm_live_options;

/* `names[i]` is the hyper-model's name for target i.  Targets that no direction moves may be left out.  Reads every target
 * and the base once, to compare them.  HM_ERR_MISMATCH: a name the hyper-model lacks or that comes twice, another shape,
 * a type that cannot be written, targets that share memory; HM_ERR_ARGUMENT for a hyper-model that is not saved yet. */
hm_status hm_live_bind(hm_live **out, hm_hyper *hyper, const hm_tensor_info *targets, const char *const *names, size_t count,
                       const hm_live_options *options, hm_job *job, hm_error *err);
/* Writes B + Σ_k at_k D_k into the targets.  `at`: missing multipliers are 0, and what is 0 is not read; at most 10⁶ in size.
 * `blocks`: as in hm_merge_options; globs may also name tensors that have no target here.  Everything is checked before the
 * first byte is written.  Cancelled or failed in the middle, each tensor holds its old or its new values in every part; the
 * next call puts all right.  Several threads may write different targets through one binding at a time. */
hm_status hm_live_set(hm_live *live, const hm_tensor_info *targets, size_t count, const double *at, size_t at_count,
                      const hm_block_value *blocks, size_t block_count, hm_job *job, hm_error *err);
/* Brings back the bytes that the targets held when they were bound. */
hm_status hm_live_restore(hm_live *live, const hm_tensor_info *targets, size_t count, hm_job *job, hm_error *err);
void hm_live_close(hm_live *live);

/* One tensor alone: out = base + Σ_k c_k directions[k], in place, without temporaries, on `threads` threads (0 = as many as
 * the size is worth).  base NULL counts as 0; base may be `out` itself, other overlaps are HM_ERR_ARGUMENT.  All have one
 * shape; any floating-point types, any strides. */
hm_status hm_blend(const hm_tensor_info *out, const hm_tensor_info *base, const hm_tensor_info *const *directions,
                   const double *c, size_t count, unsigned threads, hm_error *err);

/* Rows: what a blend of a tensor adds up, in this order. */
#define HM_STORED_BASE 0u      /* W̃ */
#define HM_STORED_LOW 1u       /* base_low, W̃ − round(W̃) */
#define HM_STORED_DIRECTION 2u /* D_1; then D_2 … */

/* What an opened hyper-model stores of one tensor: for hosts that blend by other means, on a GPU for instance. */
typedef struct hm_stored_tensor {
    const char *name; /* lives as long as the hyper-model */
    unsigned ndim;
    uint64_t shape[HM_MAX_DIMS];
    bool moves;       /* has a direction or a base_low; else its base value is all there is, and rows is not filled */
    hm_dtype rows[HM_STORED_DIRECTION + HM_MAX_MEMBERS]; /* [2 + K] their types; HM_DTYPE_KEEP: there is none */
    uint64_t ranks[HM_STORED_DIRECTION + HM_MAX_MEMBERS]; /* [2 + K] r ≥ 1: it is kept as two factors, else 0 */
} hm_stored_tensor;

/* All tensors of W̃, then those that only directions have.  One block: free with hm_free.  HM_ERR_ARGUMENT for a hyper-model
 * that is not saved yet, HM_ERR_IO when the base that it names was not found. */
hm_status hm_hyper_stored(hm_hyper *hyper, hm_stored_tensor **out, size_t *count, hm_error *err);
/* Reads elements [start, start + count) of a row of a tensor, in row-major order and in the row's type; those of a low-rank
 * direction are computed.  HM_ERR_ARGUMENT for a row that is not stored and for elements that the tensor does not have. */
hm_status hm_hyper_read(hm_hyper *hyper, const char *name, size_t row, uint64_t start, uint64_t count, void *out,
                        hm_error *err);
/* The factors of a row of rank r, as f32: the row is up · down.  `up` has room for shape[0] · r numbers, `down` for
 * r · shape[1] · shape[2] …  HM_ERR_ARGUMENT for a row that is not kept as factors. */
hm_status hm_hyper_read_factors(hm_hyper *hyper, const char *name, size_t row, float *up, float *down, hm_error *err);

/* ---- LoRA ---------------------------------------------------------------------------------------------------------------- */

typedef enum hm_lora_format {
    HM_LORA_AUTO = -1, /* kohya where its names are known, else comfyui */
    HM_LORA_KOHYA = 0, /* lora_unet_down_blocks_0_…, lora_te_…; SDXL: lora_unet_input_blocks_…, lora_te1_…, lora_te2_… */
    HM_LORA_COMFYUI,   /* diffusion_model.…, text_encoders.…: every family */
    HM_LORA_DIFFUSERS, /* unet.down_blocks.0.…, text_encoder.…: read, not written */
    HM_LORA_FORMAT_COUNT
} hm_lora_format;
const char *hm_lora_format_name(hm_lora_format format); /* "auto", "kohya", "comfyui", "diffusers" */

typedef struct hm_lora_options {
    unsigned rank;   /* the same for every layer.  At most one of rank, error and bytes; all 0 = rank 64 */
    double error;    /* reach this relative error over all layers, with the fewest bytes */
    uint64_t bytes;  /* the smallest error that a file of that size can have */
    hm_dtype dtype;  /* of the factors: HM_F16, HM_BF16, HM_F32; HM_DTYPE_KEEP = f16 */
    hm_lora_format format;
    bool whole;      /* norms and biases too, as whole differences (.diff, .diff_b) */
    bool force;      /* replace a file that hyper-merge did not write */
    hm_selection selection; /* hm_lora_of_pair only */
} hm_lora_options;

/* Writes Σ_k at_k D_k as a LoRA: per layer the best approximation of its rank, σ shared evenly between the factors, alpha =
 * rank, so that strength 1 is `at`.  One direction: `at` with a single 1.  Whole tensors are read one after the other and
 * decomposed side by side; OpenBLAS is loaded.  `out_json` (may be NULL; free with hm_free): {"format","tensors" (layers),
 * "bytes","rank":{"least","most"},"relative_error" (of the layers, as stored),"relative_error_unrounded","worst":{"tensor",
 * "relative_error"},"blocks":{name:{"relative_error","share"}},"not_carried":{"tensors","share"} (what no layer holds)}.
 * Layers that are products of stored factors (or of those of LoRAs) are decomposed by these, exactly where their rank allows;
 * made of LoRAs without a base, they keep their names and the format is "auto". */
hm_status hm_hyper_lora(hm_hyper *hyper, const double *at, size_t at_count, const char *path, const hm_lora_options *options,
                        char **out_json, hm_job *job, hm_error *err);
/* The same of `to` − `from`: what makes `from` with this LoRA most like `to`. */
hm_status hm_lora_of_pair(hm_source *from, hm_source *to, const char *path, const hm_lora_options *options, char **out_json,
                          hm_job *job, hm_error *err);

/* ---- questions without an output file -------------------------------------------------------------------------------- */

/* LoRAs are compared by what they add; not with checkpoints, and without a base only if they name their layers in one way.
 * JSON {"models":[name…],"gram","distance","cosine" (M × M each),"norm":[M],"duplicates":[[name…]…],
 *  "distance_to_others":[M],"rounding":[M],"notes":[…]}.  gram and cosine are about the mean; distance_to_others is that of
 * each model to the affine hull of the others: how much of it no mixture of them can give; rounding is how far storing it in
 * its types may have moved a model at most. */
hm_status hm_compare(hm_source *const *sources, size_t count, const hm_selection *selection, char **out_json, hm_job *job,
                     hm_error *err);

typedef struct hm_recover_options {
    hm_selection selection;
    bool free_sum; /* do not force the weights to sum to 1 */
    bool blocks;   /* also per block */
} hm_recover_options;

/* The mixture Σ w_m W_m that best explains X.  JSON {"name","parents":[name…],"weights":[M],"residual","rms",
 * "blocks":{block:{"weights","residual"}}}; `residual` is relative to ‖X − mean of the parents‖, `rms` absolute per element. */
hm_status hm_recover(hm_source *x, hm_source *const *parents, size_t count, const hm_recover_options *options,
                     char **out_json, hm_job *job, hm_error *err);

/* ---- the rest --------------------------------------------------------------------------------------------------------- */

/* Where to look for OpenBLAS before the usual places, the first time that something needs it (low-rank directions, LoRAs);
 * NULL forgets it.  The environment variable HM_OPENBLAS, a path, decides before all.  No effect once it is loaded. */
hm_status hm_blas_library(const char *path, hm_error *err);

void hm_free(void *memory);       /* text and blocks returned by this library */
const char *hm_kernel_name(void); /* the kernels in use: "avx2" or "portable" */

#ifdef __cplusplus
}
#endif
#endif
