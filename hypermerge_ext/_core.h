/* The binding's own header: what its files share.  The binding is thin: it turns Python values into the structs of
 * hypermerge.h, lets go of the GIL while the core works, and turns hm_error into exceptions.  Python's limited API of
 * 3.10 only; no static state, so that one process may load it under several names. */
#ifndef HYPERMERGE_EXT_CORE_H
#define HYPERMERGE_EXT_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>

#include "hypermerge.h"

/* What one loaded copy of the module owns. */
typedef struct core_state {
    PyObject *error, *format_error, *mismatch_error, *cancelled, *argument_error;
    PyTypeObject *source_type, *hyper_type, *live_type;
} core_state;

/* A Source: one reference to a core source, and whatever keeps borrowed tensors alive. */
typedef struct core_source {
    PyObject_HEAD
    hm_source *source;
    PyObject *keepalive; /* any object, or NULL for files */
} core_source;

/* A Hyper: one reference to a core hyper-model.  The core lets several threads read one but only one change it. */
typedef struct core_hyper {
    PyObject_HEAD
    hm_hyper *hyper;
    PyObject *sources; /* tuple: keeps the tensors alive which a solved hyper-model reads; NULL for an opened one */
    unsigned readers;  /* both guarded by the GIL: core_hyper_enter */
    bool writing;
} core_hyper;

core_state *core_state_of_type(PyTypeObject *type); /* of a type of ours; never NULL for its methods' self */

/* ---- _core_support.c --------------------------------------------------------------------------------------------- */

int core_exceptions_add(PyObject *module); /* 0, or -1 with an exception set */

/* Raises what `error` says; always returns NULL. */
PyObject *core_raise(const core_state *state, const hm_error *error);

/* New str from text of the core; bytes of file names that are no UTF-8 come out as lone surrogates (os.fsdecode). */
PyObject *core_text(const char *text);
/* The same, and frees `text` with hm_free. */
PyObject *core_take_text(char *text);

/* One long call.  `job` in Python is None or (memory_budget, threads, progress, statistics): two ints, a callable
 * (done_bytes, total_bytes) or None, a dict to be filled or None.
 *     core_call_init;  core_call_leave;  status = hm_…(…, &call.job, &error);  if (core_call_return(…) < 0) …
 * Between leave and return the GIL is free; the progress callback takes it, looks for signals (Ctrl-C) even when there
 * is no Python callable, and gives it back.  An exception raised there cancels the job and is what the caller sees. */
typedef struct core_call {
    hm_job job;
    PyObject *progress, *statistics; /* borrowed from the caller's arguments, or NULL */
    PyThreadState *thread;           /* while the GIL is free */
} core_call;

/* Between leave and return, on the calling thread: looks for signals and calls a Python callable (NULL: none) with a tuple
 * made as by Py_BuildValue.  Non-zero: an exception waits, and the job is to be cancelled. */
int core_call_ask(core_call *call, PyObject *callable, const char *format, ...);
int core_call_init(core_call *call, PyObject *job); /* 0, or -1 with an exception set */
void core_call_leave(core_call *call);
/* 0 when the call succeeded; else -1 with an exception set (also after HM_OK, when the last progress report raised:
 * what the core gave out is then still the caller's to close). */
int core_call_return(core_call *call, const core_state *state, hm_status status, const hm_error *error);

/* Converters fill their struct or set an exception and return -1; the matching _clear takes zero-initialised structs
 * too and gives every reference and block back. */
typedef struct core_strings {
    PyObject *owner; /* the str or bytes objects that `items` point into */
    const char **items;
    size_t count;
} core_strings;
int core_strings_get(core_strings *out, PyObject *sequence, int paths); /* of str, or path-like objects */
void core_strings_clear(core_strings *strings);

typedef struct core_doubles {
    double *items; /* NULL when empty */
    size_t count;
} core_doubles;
int core_doubles_get(core_doubles *out, PyObject *sequence); /* of finite numbers; None = empty */
void core_doubles_clear(core_doubles *doubles);

typedef struct core_sources {
    PyObject *owner; /* tuple of Source objects */
    hm_source **items;
    size_t count;
} core_sources;
int core_sources_get(core_sources *out, const core_state *state, PyObject *sequence); /* None = empty */
void core_sources_clear(core_sources *sources);

/* Which tensors take part; in Python (include, exclude, common, allow_nonfinite): two sequences of str, two bools. */
typedef struct core_selection {
    hm_selection selection;
    core_strings include, exclude;
} core_selection;
int core_selection_get(core_selection *out, PyObject *tuple);
void core_selection_clear(core_selection *selection);

/* "F16" … → *out; None → HM_DTYPE_KEEP.  0, or -1 with an exception set. */
int core_dtype_get(hm_dtype *out, const core_state *state, PyObject *name);

/* Borrows the core's source of a Source; None → NULL.  0, or -1 with an exception set. */
int core_source_get(hm_source **out, const core_state *state, PyObject *object);

/* (name, dtype, shape, strides in elements, address of element [0, …]) → *out; the name still belongs to the tuple. */
int core_tensor_get(hm_tensor_info *out, const core_state *state, PyObject *tuple);

/* Multipliers per glob: a sequence of (glob, sequence of `directions` numbers). */
typedef struct core_blocks {
    hm_block_value *items;
    core_doubles *at;
    PyObject *owner; /* tuple of the pairs: holds the globs */
    size_t count;
} core_blocks;
int core_blocks_get(core_blocks *out, const core_state *state, PyObject *sequence, size_t directions);
void core_blocks_clear(core_blocks *blocks);

/* Before and after a call on a hyper-model.  −1 with an exception set when another thread is in the way. */
int core_hyper_enter(core_hyper *self, const core_state *state, bool writing);
void core_hyper_exit(core_hyper *self);

/* ---- _core_source.c, _core_hyper.c, _core_live.c, _core_lora.c: the types, and module functions that belong to them ------------ */

extern PyType_Spec core_source_spec, core_hyper_spec, core_live_spec;

PyObject *core_open_source(PyObject *module, PyObject *path);
PyObject *core_borrow(PyObject *module, PyObject *args);
PyObject *core_solve(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *core_open_hyper(PyObject *module, PyObject *args);
PyObject *core_bind(PyObject *module, PyObject *args);
PyObject *core_blend(PyObject *module, PyObject *args);
PyObject *core_stored(PyObject *module, PyObject *hyper);
PyObject *core_read_stored(PyObject *module, PyObject *args);
PyObject *core_ranks(PyObject *module, PyObject *hyper);
PyObject *core_read_factors(PyObject *module, PyObject *args);
PyObject *core_lora(PyObject *module, PyObject *args, PyObject *kwargs);

/* The end of tp_dealloc: frees an untracked object, and gives back the reference it holds to its type. */
void core_free_object(PyObject *self);

#endif
