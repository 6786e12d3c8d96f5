/* Live: a hyper-model bound to tensors that Python owns, and what the torch path needs to know of a hyper-model. */
#include <string.h>

#include "_core.h"
#include "apply/live_part.h"
#include "apply/stored.h"
#include "base/error.h"

typedef struct core_live {
    PyObject_HEAD
    hm_live *live; /* never changes after bind, so several threads may use it */
    size_t directions;
} core_live;

/* ---- what is stored ---------------------------------------------------------------------------------------------- */

static hm_status need_file(const hm_hyper *hyper, hm_error *err)
{
    if (hyper->file == NULL)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "the hyper-model is not saved yet; save it first, then bind");
    return hm_hyper_need_base(hyper, err);
}

/* T of "hypermerge.direction.k.T", when this is the first direction of T, else NULL. */
static const char *first_part_of(const hm_hyper *hyper, uint32_t index)
{
    static const char prefix[] = HM_PREFIX_DIRECTION;
    const char *stored = hyper->file->header.tensors[index].name;
    if (strncmp(stored, prefix, sizeof prefix - 1) != 0) return NULL;
    const char *dot = strchr(stored + sizeof prefix - 1, '.');
    if (dot == NULL) return NULL;
    uint32_t first = HM_ABSENT;
    for (size_t k = 1; first == HM_ABSENT && k <= hyper->solution.directions; k++)
        first = hm_part_index(hyper, k, dot + 1);
    return first == index ? dot + 1 : NULL;
}

/* (dtype or None, …), one for each stored row, or None. */
static PyObject *new_rows(const core_state *state, const hm_hyper *hyper, const hm_tensor_info *tensor)
{
    if (!hm_stored_moves(hyper, tensor->name)) Py_RETURN_NONE;
    uint32_t index[HM_STORED_DIRECTION + HM_MAX_MEMBERS];
    hm_error error = {0};
    if (hm_stored_index(hyper, tensor, index, &error) != HM_OK) return core_raise(state, &error);
    size_t count = hm_stored_rows(hyper);
    PyObject *rows = PyTuple_New((Py_ssize_t)count);
    for (size_t r = 0; rows != NULL && r < count; r++) {
        PyObject *dtype = Py_None;
        if (index[r] == HM_ABSENT)
            Py_INCREF(dtype);
        else
            dtype = core_text(hm_dtype_name(hm_stored_source(hyper, r)->header.tensors[index[r]].dtype));
        if (dtype == NULL)
            Py_CLEAR(rows);
        else
            PyTuple_SetItem(rows, (Py_ssize_t)r, dtype);
    }
    return rows;
}

static int append_stored(PyObject *list, const core_state *state, const hm_hyper *hyper, const hm_tensor_info *tensor)
{
    PyObject *entry = NULL, *rows = NULL, *shape = PyTuple_New((Py_ssize_t)tensor->ndim);
    for (unsigned d = 0; shape != NULL && d < tensor->ndim; d++) {
        PyObject *size = PyLong_FromUnsignedLongLong(tensor->shape[d]);
        if (size == NULL)
            Py_CLEAR(shape);
        else
            PyTuple_SetItem(shape, (Py_ssize_t)d, size);
    }
    if (shape != NULL) rows = new_rows(state, hyper, tensor);
    PyObject *name = rows != NULL ? core_text(tensor->name) : NULL;
    if (name != NULL) entry = PyTuple_Pack(3, name, shape, rows);
    int result = entry != NULL ? PyList_Append(list, entry) : -1;
    Py_XDECREF(entry);
    Py_XDECREF(name);
    Py_XDECREF(rows);
    Py_XDECREF(shape);
    return result;
}

static int append_all(PyObject *list, const core_state *state, const hm_hyper *hyper)
{
    const hm_source *base = hm_stored_source(hyper, HM_STORED_BASE);
    for (uint32_t i = 0; i < base->header.count; i++) {
        if (strncmp(base->header.tensors[i].name, HM_PREFIX, strlen(HM_PREFIX)) == 0) continue;
        if (append_stored(list, state, hyper, &base->header.tensors[i]) < 0) return -1;
    }
    for (uint32_t i = 0; i < hyper->file->header.count; i++) {
        hm_tensor_info part = hyper->file->header.tensors[i];
        part.name = first_part_of(hyper, i);
        if (part.name == NULL || hm_source_find(base, part.name) != NULL) continue;
        if (append_stored(list, state, hyper, &part) < 0) return -1;
    }
    return 0;
}

static core_hyper *hyper_of(const core_state *state, PyObject *object)
{
    if (PyObject_TypeCheck(object, state->hyper_type)) return (core_hyper *)object;
    PyErr_SetString(PyExc_TypeError, "expected a Hyper");
    return NULL;
}

PyObject *core_stored(PyObject *module, PyObject *object)
{
    core_state *state = PyModule_GetState(module);
    core_hyper *self = hyper_of(state, object);
    hm_error error = {0};
    if (self == NULL || core_hyper_enter(self, state, false) < 0) return NULL;
    PyObject *list = NULL;
    if (need_file(self->hyper, &error) != HM_OK)
        core_raise(state, &error);
    else if ((list = PyList_New(0)) != NULL && append_all(list, state, self->hyper) < 0)
        Py_CLEAR(list);
    core_hyper_exit(self);
    return list;
}

static hm_status read_stored(const hm_hyper *hyper, const char *name, size_t row, uint64_t start, uint64_t count,
                             void *out, hm_error *err)
{
    HM_TRY(need_file(hyper, err));
    uint32_t index = HM_ABSENT;
    if (row >= HM_STORED_DIRECTION && row < hm_stored_rows(hyper))
        index = hm_part_index(hyper, row - HM_STORED_DIRECTION + 1, name);
    else if (row == HM_STORED_LOW)
        index = hm_part_index(hyper, 0, name);
    else if (row == HM_STORED_BASE && hyper->base_file != NULL)
        index = hm_source_index(hyper->base_file, name);
    if (index == HM_ABSENT) return hm_fail(err, HM_ERR_ARGUMENT, NULL, name, "row %zu is not stored", row);
    const hm_source *source = hm_stored_source(hyper, row);
    const hm_tensor_info *tensor = &source->header.tensors[index];
    if (start > tensor->elements || count > tensor->elements - start)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, name, "has no such elements");
    uint64_t size = hm_dtype_bytes(tensor->dtype);
    HM_TRY(hm_file_read(&source->file, out, tensor->offset + start * size, (size_t)(count * size), err));
    return hm_source_check_unchanged(source, err);
}

PyObject *core_read_stored(PyObject *module, PyObject *args)
{
    core_state *state = PyModule_GetState(module);
    PyObject *object, *address;
    const char *name;
    Py_ssize_t row;
    unsigned long long start, count;
    if (!PyArg_ParseTuple(args, "O!snKKO", state->hyper_type, &object, &name, &row, &start, &count, &address))
        return NULL;
    core_hyper *self = (core_hyper *)object;
    void *out = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred() || core_hyper_enter(self, state, false) < 0) return NULL;
    core_call call = {0};
    hm_error error = {0};
    core_call_leave(&call);
    hm_status status = read_stored(self->hyper, name, (size_t)row, start, count, out, &error);
    int failed = core_call_return(&call, state, status, &error) < 0;
    core_hyper_exit(self);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

/* ---- targets ----------------------------------------------------------------------------------------------------- */

typedef struct targets {
    PyObject *owner; /* tuple of the descriptions: holds the names */
    hm_tensor_info *items;
    const char **names;
    size_t count;
} targets;

static void targets_clear(targets *list)
{
    PyMem_Free(list->items);
    PyMem_Free(list->names);
    Py_CLEAR(list->owner);
}

static int targets_get(targets *out, const core_state *state, PyObject *sequence)
{
    memset(out, 0, sizeof *out);
    out->owner = PySequence_Tuple(sequence);
    if (out->owner == NULL) return -1;
    out->count = (size_t)PyTuple_Size(out->owner);
    out->items = PyMem_Calloc(out->count + 1, sizeof *out->items);
    out->names = PyMem_Calloc(out->count + 1, sizeof *out->names);
    int failed = out->items == NULL || out->names == NULL;
    if (failed) PyErr_NoMemory();
    for (size_t i = 0; i < out->count && !failed; i++) {
        failed = core_tensor_get(&out->items[i], state, PyTuple_GetItem(out->owner, (Py_ssize_t)i)) < 0;
        out->names[i] = out->items[i].name;
    }
    if (!failed) return 0;
    targets_clear(out);
    return -1;
}

/* ---- Live -------------------------------------------------------------------------------------------------------- */

PyObject *core_bind(PyObject *module, PyObject *args)
{
    core_state *state = PyModule_GetState(module);
    PyObject *object, *sequence, *job;
    int in_memory, keep_original;
    core_call call;
    targets list = {0};
    hm_error error = {0};
    if (!PyArg_ParseTuple(args, "O!OppO", state->hyper_type, &object, &sequence, &in_memory, &keep_original, &job))
        return NULL;
    core_hyper *hyper = (core_hyper *)object;
    if (core_call_init(&call, job) < 0 || targets_get(&list, state, sequence) < 0) return NULL;
    core_live *self = (core_live *)PyType_GenericAlloc(state->live_type, 0);
    if (self != NULL && core_hyper_enter(hyper, state, false) == 0) {
        const hm_live_options options = {.in_memory = in_memory != 0, .keep_original = keep_original != 0};
        core_call_leave(&call);
        hm_status status = hm_live_bind(&self->live, hyper->hyper, list.items, list.names, list.count, &options,
                                        &call.job, &error);
        int failed = core_call_return(&call, state, status, &error) < 0;
        core_hyper_exit(hyper);
        self->directions = hm_hyper_directions(hyper->hyper);
        if (failed) Py_CLEAR(self);
    } else {
        Py_CLEAR(self);
    }
    targets_clear(&list);
    return (PyObject *)self;
}

static int live_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    return 0;
}

static void live_dealloc(PyObject *object)
{
    PyObject_GC_UnTrack(object);
    hm_live_close(((core_live *)object)->live); /* it holds its hyper-model by itself */
    core_free_object(object);
}

/* at NULL: brings the original numbers back. */
static hm_status write_targets(const core_live *self, const targets *list, const core_doubles *at,
                               const core_blocks *blocks, hm_job *job, hm_error *err)
{
    hm_live *part = NULL;
    HM_TRY(hm_live_part(&part, self->live, list->items, list->count, err));
    hm_status status = at == NULL ? hm_live_restore(part, list->items, list->count, job, err)
                                  : hm_live_set(part, list->items, list->count, at->items, at->count, blocks->items,
                                                blocks->count, job, err);
    hm_live_part_close(part);
    return status;
}

static PyObject *live_set(PyObject *object, PyObject *args)
{
    const core_live *self = (core_live *)object;
    core_state *state = core_state_of_type(Py_TYPE(object));
    PyObject *sequence, *at_list, *block_list, *job;
    targets list = {0};
    core_doubles at = {0};
    core_blocks blocks = {0};
    core_call call;
    int failed = 1;
    if (!PyArg_ParseTuple(args, "OOOO", &sequence, &at_list, &block_list, &job)) return NULL;
    if (core_call_init(&call, job) == 0 && targets_get(&list, state, sequence) == 0 &&
        core_doubles_get(&at, at_list) == 0 &&
        core_blocks_get(&blocks, state, block_list, self->directions) == 0) {
        hm_error error = {0};
        core_call_leave(&call);
        hm_status status = write_targets(self, &list, &at, &blocks, &call.job, &error);
        failed = core_call_return(&call, state, status, &error) < 0;
    }
    core_blocks_clear(&blocks);
    core_doubles_clear(&at);
    targets_clear(&list);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

static PyObject *live_restore(PyObject *object, PyObject *args)
{
    core_state *state = core_state_of_type(Py_TYPE(object));
    PyObject *sequence, *job;
    targets list = {0};
    core_call call;
    int failed = 1;
    if (!PyArg_ParseTuple(args, "OO", &sequence, &job)) return NULL;
    if (core_call_init(&call, job) == 0 && targets_get(&list, state, sequence) == 0) {
        hm_error error = {0};
        core_call_leave(&call);
        hm_status status = write_targets((core_live *)object, &list, NULL, NULL, &call.job, &error);
        failed = core_call_return(&call, state, status, &error) < 0;
    }
    targets_clear(&list);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef live_methods[] = {
    {"set", live_set, METH_VARARGS,
     "set(targets, at, blocks, job): writes the blend into the targets, which come in the order of bind(); one with "
     "address 0 is left alone."},
    {"restore", live_restore, METH_VARARGS, "restore(targets, job): brings back what the targets held when bound."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot live_slots[] = {
    {Py_tp_doc, "A hyper-model bound to tensors in memory.  Made by bind().  The caller keeps the tensors alive."},
    {Py_tp_dealloc, live_dealloc},
    {Py_tp_traverse, live_traverse},
    {Py_tp_methods, live_methods},
    {0, NULL},
};

PyType_Spec core_live_spec = {
    .name = "hypermerge_ext._core.Live",
    .basicsize = sizeof(core_live),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = live_slots,
};

/* ---- one tensor alone -------------------------------------------------------------------------------------------- */

PyObject *core_blend(PyObject *module, PyObject *args)
{
    core_state *state = PyModule_GetState(module);
    PyObject *out_tuple, *base_tuple, *sequence, *at_list;
    unsigned threads;
    hm_tensor_info out = {0}, base = {0};
    targets list = {0};
    core_doubles at = {0};
    const hm_tensor_info **directions = NULL;
    int failed = 1;
    if (!PyArg_ParseTuple(args, "OOOOI", &out_tuple, &base_tuple, &sequence, &at_list, &threads)) return NULL;
    if (core_tensor_get(&out, state, out_tuple) < 0 ||
        (base_tuple != Py_None && core_tensor_get(&base, state, base_tuple) < 0) ||
        targets_get(&list, state, sequence) < 0 || core_doubles_get(&at, at_list) < 0)
        goto done;
    if (at.count != list.count) {
        PyErr_Format(state->argument_error, "%zu multipliers for %zu directions", at.count, list.count);
        goto done;
    }
    directions = PyMem_Calloc(list.count + 1, sizeof *directions);
    if (directions == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (size_t k = 0; k < list.count; k++) directions[k] = &list.items[k];
    hm_error error = {0};
    core_call call = {0};
    core_call_leave(&call);
    hm_status status = hm_blend(&out, base_tuple != Py_None ? &base : NULL, directions, at.items, at.count, threads,
                                &error);
    failed = core_call_return(&call, state, status, &error) < 0;
done:
    PyMem_Free(directions);
    core_doubles_clear(&at);
    targets_clear(&list);
    if (failed) return NULL;
    Py_RETURN_NONE;
}
