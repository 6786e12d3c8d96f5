/* Hyper: a solved or an opened hyper-model. */
#include <string.h>

#include "_core.h"

int core_hyper_enter(core_hyper *self, const core_state *state, bool writing)
{
    if (self->writing || (writing && self->readers > 0)) {
        PyErr_SetString(state->error, "this hyper-model is being saved or used by another call; wait for its end");
        return -1;
    }
    if (writing)
        self->writing = true;
    else
        self->readers++;
    return 0;
}

void core_hyper_exit(core_hyper *self)
{
    if (self->writing)
        self->writing = false;
    else
        self->readers--;
}

/* New Hyper that takes over `hyper` and, if not NULL, one reference to `sources`. */
static PyObject *wrap(const core_state *state, hm_hyper *hyper, PyObject *sources)
{
    core_hyper *self = (core_hyper *)PyType_GenericAlloc(state->hyper_type, 0);
    if (self == NULL) {
        hm_hyper_close(hyper);
        return NULL;
    }
    self->hyper = hyper;
    Py_XINCREF(sources);
    self->sources = sources;
    return (PyObject *)self;
}

/* "mean", "none" or a Source → options->base and base_source. */
static int get_base(hm_solve_options *options, const core_state *state, PyObject *base)
{
    if (!PyUnicode_Check(base)) {
        options->base = HM_BASE_FILE;
        if (core_source_get(&options->base_source, state, base) < 0) return -1;
        if (options->base_source != NULL) return 0;
    } else if (PyUnicode_CompareWithASCIIString(base, "mean") == 0) {
        options->base = HM_BASE_MEAN;
        return 0;
    } else if (PyUnicode_CompareWithASCIIString(base, "none") == 0) {
        options->base = HM_BASE_NONE;
        return 0;
    }
    PyErr_SetString(PyExc_TypeError, "base must be 'mean', 'none' or a Source");
    return -1;
}

static int get_method(hm_method *out, const core_state *state, const char *name)
{
    if (strcmp(name, "exact") == 0) {
        *out = HM_EXACT;
    } else if (strcmp(name, "als") == 0) {
        *out = HM_ALS;
    } else {
        PyErr_Format(state->argument_error, "unknown method '%s'; it is 'exact' or 'als'", name);
        return -1;
    }
    return 0;
}

/* What is called after each pass of a search for hyper-LoRAs. */
typedef struct pass_report {
    core_call *call;
    PyObject *callable; /* borrowed, or NULL */
} pass_report;

static int report_pass(void *user, size_t number, double loss, double total)
{
    pass_report *report = user;
    if (report->callable == NULL) return 0;
    return core_call_ask(report->call, report->callable, "(ndd)", (Py_ssize_t)number, loss, total);
}

/* Sequence of whole numbers → ranks. */
static int get_ranks(core_doubles *doubles, unsigned **out, const core_state *state, PyObject *sequence)
{
    if (core_doubles_get(doubles, sequence) < 0) return -1;
    *out = PyMem_Calloc(doubles->count > 0 ? doubles->count : 1, sizeof **out);
    if (*out == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i < doubles->count; i++) {
        double rank = doubles->items[i];
        if (!(rank >= 1 && rank <= (double)INT32_MAX) || rank != (double)(unsigned)rank) {
            PyErr_SetString(state->argument_error, "a rank is a whole number from 1");
            return -1;
        }
        (*out)[i] = (unsigned)rank;
    }
    return 0;
}

PyObject *core_solve(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"sources", "base",      "directions", "method", "weights",
                            "carrier", "selection", "dtype",      "job",    "ranks", "on_pass", NULL};
    core_state *state = PyModule_GetState(module);
    PyObject *sequence, *base, *weight_list, *selection_tuple, *dtype, *job, *keep = NULL, *result = NULL;
    PyObject *rank_list = Py_None, *on_pass = Py_None;
    const char *method;
    hm_solve_options options = {0};
    core_sources sources = {0};
    core_doubles weights = {0}, rank_numbers = {0};
    unsigned *ranks = NULL;
    core_selection selection = {0};
    core_call call;
    hm_hyper *hyper = NULL;
    hm_error error = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOIsOIOOO|OO", names, &sequence, &base, &options.directions, &method,
                                     &weight_list, &options.carrier, &selection_tuple, &dtype, &job, &rank_list,
                                     &on_pass))
        return NULL;
    if (core_call_init(&call, job) < 0 || get_base(&options, state, base) < 0 ||
        get_method(&options.method, state, method) < 0 || core_dtype_get(&options.dtype, state, dtype) < 0 ||
        core_sources_get(&sources, state, sequence) < 0 || core_doubles_get(&weights, weight_list) < 0 ||
        core_selection_get(&selection, selection_tuple) < 0 || get_ranks(&rank_numbers, &ranks, state, rank_list) < 0)
        goto done;
    pass_report report = {.call = &call, .callable = on_pass != Py_None ? on_pass : NULL};
    options.ranks = ranks;
    options.rank_count = rank_numbers.count;
    options.pass = report_pass;
    options.pass_user = &report;
    if (weights.count > 0 && weights.count != sources.count) {
        PyErr_Format(state->argument_error, "%zu weights for %zu models; give one for each", weights.count,
                     sources.count);
        goto done;
    }
    options.weights = weights.items;
    options.selection = selection.selection;
    keep = PyTuple_Pack(2, sources.owner, base);
    if (keep == NULL) goto done;
    core_call_leave(&call);
    hm_status status = hm_solve(&hyper, sources.items, sources.count, &options, &call.job, &error);
    if (core_call_return(&call, state, status, &error) < 0)
        hm_hyper_close(hyper);
    else
        result = wrap(state, hyper, keep);
done:
    Py_XDECREF(keep);
    core_selection_clear(&selection);
    core_doubles_clear(&weights);
    core_doubles_clear(&rank_numbers);
    PyMem_Free(ranks);
    core_sources_clear(&sources);
    return result;
}

PyObject *core_open_hyper(PyObject *module, PyObject *args)
{
    core_state *state = PyModule_GetState(module);
    PyObject *path, *folder_list;
    core_strings folders;
    if (!PyArg_ParseTuple(args, "O&O", PyUnicode_FSConverter, &path, &folder_list)) return NULL;
    if (core_strings_get(&folders, folder_list, 1) < 0) {
        Py_DECREF(path);
        return NULL;
    }
    hm_hyper *hyper = NULL;
    hm_error error = {0};
    core_call call = {0};
    core_call_leave(&call);
    hm_status status = hm_hyper_open(&hyper, PyBytes_AsString(path), folders.items, folders.count, &error);
    int failed = core_call_return(&call, state, status, &error) < 0;
    core_strings_clear(&folders);
    Py_DECREF(path);
    return failed ? NULL : wrap(state, hyper, NULL);
}

static int hyper_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object)); /* no tp_clear, for the reason given at Source */
    Py_VISIT(((core_hyper *)object)->sources);
    return 0;
}

static void hyper_dealloc(PyObject *object)
{
    core_hyper *self = (core_hyper *)object;
    PyObject_GC_UnTrack(object);
    hm_hyper_close(self->hyper);
    Py_XDECREF(self->sources); /* after the core let go of the addresses */
    core_free_object(object);
}

static PyObject *hyper_document(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    core_hyper *self = (core_hyper *)object;
    core_state *state = core_state_of_type(Py_TYPE(object));
    char *text = NULL;
    hm_error error = {0};
    core_call call = {0};
    if (core_hyper_enter(self, state, false) < 0) return NULL;
    core_call_leave(&call);
    hm_status status = hm_hyper_document(self->hyper, &text, &error);
    int failed = core_call_return(&call, state, status, &error) < 0;
    core_hyper_exit(self);
    return failed ? NULL : core_take_text(text);
}

static PyObject *hyper_save(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", "force", "base_low", "split", "hash", "job", NULL};
    core_hyper *self = (core_hyper *)object;
    core_state *state = core_state_of_type(Py_TYPE(object));
    PyObject *path, *job;
    int force, base_low, split, hash, failed = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&ppppO", names, PyUnicode_FSConverter, &path, &force, &base_low,
                                     &split, &hash, &job))
        return NULL;
    hm_save_options options = {.force = force != 0, .base_low = base_low != 0, .split = split != 0, .hash = hash != 0};
    hm_error error = {0};
    core_call call;
    if (core_call_init(&call, job) == 0 && core_hyper_enter(self, state, true) == 0) {
        core_call_leave(&call);
        hm_status status = hm_hyper_save(self->hyper, PyBytes_AsString(path), &options, &call.job, &error);
        failed = core_call_return(&call, state, status, &error) < 0;
        core_hyper_exit(self);
    }
    Py_DECREF(path);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

void core_blocks_clear(core_blocks *blocks)
{
    for (size_t i = 0; i < blocks->count; i++) core_doubles_clear(&blocks->at[i]);
    PyMem_Free(blocks->at);
    PyMem_Free(blocks->items);
    Py_CLEAR(blocks->owner);
    memset(blocks, 0, sizeof *blocks);
}

int core_blocks_get(core_blocks *out, const core_state *state, PyObject *sequence, size_t directions)
{
    memset(out, 0, sizeof *out);
    out->owner = PySequence_Tuple(sequence);
    if (out->owner == NULL) return -1;
    size_t count = (size_t)PyTuple_Size(out->owner);
    out->items = PyMem_Calloc(count > 0 ? count : 1, sizeof *out->items);
    out->at = PyMem_Calloc(count > 0 ? count : 1, sizeof *out->at);
    if (out->items == NULL || out->at == NULL) {
        PyErr_NoMemory();
        goto fail;
    }
    for (size_t i = 0; i < count; i++) {
        PyObject *pair = PyTuple_GetItem(out->owner, (Py_ssize_t)i), *numbers;
        if (!PyTuple_Check(pair)) {
            PyErr_SetString(PyExc_TypeError, "blocks must be tuples (glob, multipliers)");
            goto fail;
        }
        if (!PyArg_ParseTuple(pair, "sO", &out->items[i].glob, &numbers)) goto fail;
        if (core_doubles_get(&out->at[i], numbers) < 0) goto fail;
        out->count = i + 1;
        if (out->at[i].count != directions) {
            PyErr_Format(state->argument_error, "block '%s': %zu multipliers for %zu directions", out->items[i].glob,
                         out->at[i].count, directions);
            goto fail;
        }
        out->items[i].at = out->at[i].items;
    }
    return 0;
fail:
    core_blocks_clear(out);
    return -1;
}

static PyObject *hyper_merge(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", "at", "blocks", "dtype", "exact", "carrier", "vae", "force", "job", NULL};
    core_hyper *self = (core_hyper *)object;
    core_state *state = core_state_of_type(Py_TYPE(object));
    PyObject *path, *at_list, *block_list, *dtype, *exact_list, *carrier, *vae, *job;
    int force, failed = 1;
    hm_merge_options options = {0};
    core_doubles at = {0};
    core_blocks blocks = {0};
    core_sources exact = {0};
    core_call call;
    hm_error error = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&OOOOOOpO", names, PyUnicode_FSConverter, &path, &at_list,
                                     &block_list, &dtype, &exact_list, &carrier, &vae, &force, &job))
        return NULL;
    if (core_call_init(&call, job) < 0 || core_dtype_get(&options.dtype, state, dtype) < 0 ||
        core_doubles_get(&at, at_list) < 0 ||
        core_blocks_get(&blocks, state, block_list, hm_hyper_directions(self->hyper)) < 0 ||
        core_sources_get(&exact, state, exact_list) < 0 || core_source_get(&options.carrier, state, carrier) < 0 ||
        core_source_get(&options.vae, state, vae) < 0 || core_hyper_enter(self, state, false) < 0)
        goto done;
    options.at = at.items;
    options.at_count = at.count;
    options.blocks = blocks.items;
    options.block_count = blocks.count;
    options.exact = exact.items;
    options.exact_count = exact.count;
    options.force = force != 0;
    core_call_leave(&call);
    hm_status status = hm_hyper_merge(self->hyper, PyBytes_AsString(path), &options, &call.job, &error);
    failed = core_call_return(&call, state, status, &error) < 0;
    core_hyper_exit(self);
done:
    core_sources_clear(&exact);
    core_blocks_clear(&blocks);
    core_doubles_clear(&at);
    Py_DECREF(path);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

/* Truth values of a sequence of `count`.  0, or -1 with an exception set. */
static int get_flags(bool *out, const core_state *state, PyObject *sequence, size_t count)
{
    PyObject *given = PySequence_Tuple(sequence);
    if (given == NULL) return -1;
    int failed = (size_t)PyTuple_Size(given) != count;
    if (failed) PyErr_Format(state->argument_error, "expected a truth value for each of the %zu directions", count);
    for (size_t i = 0; i < count && !failed; i++) {
        int truth = PyObject_IsTrue(PyTuple_GetItem(given, (Py_ssize_t)i));
        failed = truth < 0;
        out[i] = truth > 0;
    }
    Py_DECREF(given);
    return failed ? -1 : 0;
}

static PyObject *hyper_rename(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"path", "names", "flip", "force", "job", NULL};
    core_hyper *self = (core_hyper *)object;
    core_state *state = core_state_of_type(Py_TYPE(object));
    PyObject *path_object, *path = NULL, *name_list, *flip_list, *job;
    int force, failed = 1;
    size_t directions = hm_hyper_directions(self->hyper);
    bool flip[HM_MAX_MEMBERS];
    core_strings names = {0};
    core_call call;
    hm_error error = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOpO", keywords, &path_object, &name_list, &flip_list, &force, &job))
        return NULL;
    if (path_object != Py_None && !PyUnicode_FSConverter(path_object, &path)) return NULL;
    if (core_call_init(&call, job) < 0 || core_strings_get(&names, name_list, 0) < 0 ||
        get_flags(flip, state, flip_list, directions) < 0)
        goto done;
    if (names.count != directions) {
        PyErr_Format(state->argument_error, "%zu names for %zu directions; give one for each", names.count, directions);
        goto done;
    }
    if (core_hyper_enter(self, state, false) < 0) goto done;
    hm_rename_options options = {.names = names.items, .flip = flip, .force = force != 0};
    core_call_leave(&call);
    hm_status status =
        hm_hyper_rename(self->hyper, path != NULL ? PyBytes_AsString(path) : NULL, &options, &call.job, &error);
    failed = core_call_return(&call, state, status, &error) < 0;
    core_hyper_exit(self);
done:
    core_strings_clear(&names);
    Py_XDECREF(path);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

static PyObject *hyper_project(PyObject *object, PyObject *args)
{
    core_hyper *self = (core_hyper *)object;
    core_state *state = core_state_of_type(Py_TYPE(object));
    PyObject *newcomer, *job;
    hm_source *x;
    core_call call;
    if (!PyArg_ParseTuple(args, "O!O", state->source_type, &newcomer, &job)) return NULL;
    if (core_source_get(&x, state, newcomer) < 0 || core_call_init(&call, job) < 0 ||
        core_hyper_enter(self, state, false) < 0)
        return NULL;
    char *text = NULL;
    hm_error error = {0};
    core_call_leave(&call);
    hm_status status = hm_hyper_project(self->hyper, x, &text, &call.job, &error);
    int failed = core_call_return(&call, state, status, &error) < 0;
    core_hyper_exit(self);
    if (failed) {
        hm_free(text);
        return NULL;
    }
    return core_take_text(text);
}

static PyObject *hyper_members(PyObject *object, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(hm_hyper_members(((core_hyper *)object)->hyper));
}

static PyObject *hyper_directions(PyObject *object, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(hm_hyper_directions(((core_hyper *)object)->hyper));
}

static PyMethodDef hyper_methods[] = {
    {"document", hyper_document, METH_NOARGS, "document() -> str: the hypermerge metadata document, as JSON."},
    {"save", (PyCFunction)(void (*)(void))hyper_save, METH_VARARGS | METH_KEYWORDS,
     "save(path, force, base_low, split, hash, job): writes a solved hyper-model."},
    {"merge", (PyCFunction)(void (*)(void))hyper_merge, METH_VARARGS | METH_KEYWORDS,
     "merge(path, at, blocks, dtype, exact, carrier, vae, force, job): writes one blend as a checkpoint."},
    {"rename", (PyCFunction)(void (*)(void))hyper_rename, METH_VARARGS | METH_KEYWORDS,
     "rename(path, names, flip, force, job): writes an opened one anew, its axes renamed or turned round."},
    {"project", hyper_project, METH_VARARGS, "project(source, job) -> str: coordinates of a newcomer, as JSON."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef hyper_getset[] = {
    {"members", hyper_members, NULL, "int: number of models.", NULL},
    {"directions", hyper_directions, NULL, "int: number of directions.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot hyper_slots[] = {
    {Py_tp_doc, "A hyper-model in the core.  Made by solve() and open_hyper()."},
    {Py_tp_dealloc, hyper_dealloc},
    {Py_tp_traverse, hyper_traverse},
    {Py_tp_methods, hyper_methods},
    {Py_tp_getset, hyper_getset},
    {0, NULL},
};

PyType_Spec core_hyper_spec = {
    .name = "hypermerge_ext._core.Hyper",
    .basicsize = sizeof(core_hyper),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = hyper_slots,
};
