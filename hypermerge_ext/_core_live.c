/* Live: a hyper-model bound to tensors that Python owns, and what the torch path needs to know of a hyper-model. */
#include <string.h>

#include "_core.h"

typedef struct core_live {
    PyObject_HEAD
    hm_live *live; /* never changes after bind, so several threads may use it */
    size_t directions;
} core_live;

/* ---- what is stored -------------------------------------------------------------------------------------------- */

/* (dtype or None, …), one for each row, or None. */
static PyObject *new_rows(const hm_stored_tensor *tensor, size_t count)
{
    if (!tensor->moves) Py_RETURN_NONE;
    PyObject *rows = PyTuple_New((Py_ssize_t)count);
    for (size_t r = 0; rows != NULL && r < count; r++) {
        PyObject *dtype = Py_None;
        if (tensor->rows[r] == HM_DTYPE_KEEP)
            Py_INCREF(dtype);
        else
            dtype = core_text(hm_dtype_name(tensor->rows[r]));
        if (dtype == NULL)
            Py_CLEAR(rows);
        else
            PyTuple_SetItem(rows, (Py_ssize_t)r, dtype);
    }
    return rows;
}

static PyObject *new_shape(const hm_stored_tensor *tensor)
{
    PyObject *shape = PyTuple_New((Py_ssize_t)tensor->ndim);
    for (unsigned d = 0; shape != NULL && d < tensor->ndim; d++) {
        PyObject *size = PyLong_FromUnsignedLongLong(tensor->shape[d]);
        if (size == NULL)
            Py_CLEAR(shape);
        else
            PyTuple_SetItem(shape, (Py_ssize_t)d, size);
    }
    return shape;
}

/* [(name, shape, rows), …] */
static PyObject *new_stored(const hm_stored_tensor *tensors, size_t count, size_t row_count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *name = core_text(tensors[i].name), *shape = new_shape(&tensors[i]), *entry = NULL;
        PyObject *rows = new_rows(&tensors[i], row_count);
        if (name != NULL && shape != NULL && rows != NULL) entry = PyTuple_Pack(3, name, shape, rows);
        Py_XDECREF(name);
        Py_XDECREF(shape);
        Py_XDECREF(rows);
        if (entry == NULL)
            Py_CLEAR(list);
        else
            PyList_SetItem(list, (Py_ssize_t)i, entry);
    }
    return list;
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
    hm_stored_tensor *tensors = NULL;
    size_t count = 0;
    PyObject *list = NULL;
    if (hm_hyper_stored(self->hyper, &tensors, &count, &error) != HM_OK)
        core_raise(state, &error);
    else
        list = new_stored(tensors, count, HM_STORED_DIRECTION + hm_hyper_directions(self->hyper));
    hm_free(tensors);
    core_hyper_exit(self);
    return list;
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
    hm_status status = hm_hyper_read(self->hyper, name, (size_t)row, start, count, out, &error);
    int failed = core_call_return(&call, state, status, &error) < 0;
    core_hyper_exit(self);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

/* (rank or 0, …), one for each row; NULL without an exception: no row has one. */
static PyObject *new_ranks(const hm_stored_tensor *tensor, size_t count)
{
    bool any = false;
    for (size_t r = 0; tensor->moves && r < count; r++) any = any || tensor->ranks[r] > 0;
    PyObject *ranks = any ? PyTuple_New((Py_ssize_t)count) : NULL;
    for (size_t r = 0; ranks != NULL && r < count; r++) {
        PyObject *rank = PyLong_FromUnsignedLongLong(tensor->ranks[r]);
        if (rank == NULL)
            Py_CLEAR(ranks);
        else
            PyTuple_SetItem(ranks, (Py_ssize_t)r, rank);
    }
    return ranks;
}

PyObject *core_ranks(PyObject *module, PyObject *object)
{
    core_state *state = PyModule_GetState(module);
    core_hyper *self = hyper_of(state, object);
    hm_error error = {0};
    if (self == NULL || core_hyper_enter(self, state, false) < 0) return NULL;
    hm_stored_tensor *tensors = NULL;
    size_t count = 0, rows = HM_STORED_DIRECTION + hm_hyper_directions(self->hyper);
    PyObject *found = NULL;
    if (hm_hyper_stored(self->hyper, &tensors, &count, &error) != HM_OK)
        core_raise(state, &error);
    else
        found = PyDict_New();
    for (size_t i = 0; found != NULL && i < count; i++) {
        PyObject *ranks = new_ranks(&tensors[i], rows), *name = ranks != NULL ? core_text(tensors[i].name) : NULL;
        if (PyErr_Occurred() || (name != NULL && PyDict_SetItem(found, name, ranks) < 0)) Py_CLEAR(found);
        Py_XDECREF(name);
        Py_XDECREF(ranks);
    }
    hm_free(tensors);
    core_hyper_exit(self);
    return found;
}

PyObject *core_read_factors(PyObject *module, PyObject *args)
{
    core_state *state = PyModule_GetState(module);
    PyObject *object, *up_address, *down_address;
    const char *name;
    Py_ssize_t row;
    if (!PyArg_ParseTuple(args, "O!snOO", state->hyper_type, &object, &name, &row, &up_address, &down_address))
        return NULL;
    core_hyper *self = (core_hyper *)object;
    float *up = PyLong_AsVoidPtr(up_address), *down = PyLong_AsVoidPtr(down_address);
    if (PyErr_Occurred() || core_hyper_enter(self, state, false) < 0) return NULL;
    core_call call = {0};
    hm_error error = {0};
    core_call_leave(&call);
    hm_status status = hm_hyper_read_factors(self->hyper, name, (size_t)row, up, down, &error);
    int failed = core_call_return(&call, state, status, &error) < 0;
    core_hyper_exit(self);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

/* ---- targets --------------------------------------------------------------------------------------------------- */

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

/* ---- Live ------------------------------------------------------------------------------------------------------ */

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
        const hm_live_options options = {
            .in_memory = in_memory != 0, .keep_original = keep_original != 0, .partial = true};
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
        hm_status status = hm_live_set(self->live, list.items, list.count, at.items, at.count, blocks.items, blocks.count,
                                       &call.job, &error);
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
        hm_status status = hm_live_restore(((core_live *)object)->live, list.items, list.count, &call.job, &error);
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

/* ---- one tensor alone ------------------------------------------------------------------------------------------ */

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
