/* The module: multi-phase initialisation, per-module state, and the functions that belong to no object. */
#include "_core.h"

static PyObject *compare(PyObject *module, PyObject *args)
{
    core_state *state = PyModule_GetState(module);
    PyObject *sequence, *selection_tuple, *job;
    core_sources sources = {0};
    core_selection selection = {0};
    core_call call;
    char *text = NULL;
    int failed = 1;
    if (!PyArg_ParseTuple(args, "OOO", &sequence, &selection_tuple, &job)) return NULL;
    if (core_call_init(&call, job) == 0 && core_sources_get(&sources, state, sequence) == 0 &&
        core_selection_get(&selection, selection_tuple) == 0) {
        hm_error error = {0};
        core_call_leave(&call);
        hm_status status = hm_compare(sources.items, sources.count, &selection.selection, &text, &call.job, &error);
        failed = core_call_return(&call, state, status, &error) < 0;
    }
    core_selection_clear(&selection);
    core_sources_clear(&sources);
    if (!failed) return core_take_text(text);
    hm_free(text);
    return NULL;
}

static PyObject *recover(PyObject *module, PyObject *args)
{
    core_state *state = PyModule_GetState(module);
    PyObject *x, *sequence, *selection_tuple, *job;
    int free_sum, blocks;
    hm_source *source = NULL;
    core_sources parents = {0};
    core_selection selection = {0};
    core_call call;
    char *text = NULL;
    int failed = 1;
    if (!PyArg_ParseTuple(args, "O!OOppO", state->source_type, &x, &sequence, &selection_tuple, &free_sum, &blocks,
                          &job))
        return NULL;
    if (core_call_init(&call, job) == 0 && core_source_get(&source, state, x) == 0 &&
        core_sources_get(&parents, state, sequence) == 0 && core_selection_get(&selection, selection_tuple) == 0) {
        hm_recover_options options = {
            .selection = selection.selection,
            .free_sum = free_sum != 0,
            .blocks = blocks != 0,
        };
        hm_error error = {0};
        core_call_leave(&call);
        hm_status status = hm_recover(source, parents.items, parents.count, &options, &text, &call.job, &error);
        failed = core_call_return(&call, state, status, &error) < 0;
    }
    core_selection_clear(&selection);
    core_sources_clear(&parents);
    if (!failed) return core_take_text(text);
    hm_free(text);
    return NULL;
}

static PyObject *blas_library(PyObject *module, PyObject *object)
{
    core_state *state = PyModule_GetState(module);
    PyObject *path = NULL;
    hm_error error = {0};
    if (object != Py_None && !PyUnicode_FSConverter(object, &path)) return NULL;
    hm_status status = hm_blas_library(path != NULL ? PyBytes_AsString(path) : NULL, &error);
    Py_XDECREF(path);
    if (status != HM_OK) return core_raise(state, &error);
    Py_RETURN_NONE;
}

static PyObject *kernel_name(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return core_text(hm_kernel_name());
}

static int module_exec(PyObject *module)
{
    core_state *state = PyModule_GetState(module);
    if (core_exceptions_add(module) < 0) return -1;
    state->source_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &core_source_spec, NULL);
    if (state->source_type == NULL || PyModule_AddType(module, state->source_type) < 0) return -1;
    state->hyper_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &core_hyper_spec, NULL);
    if (state->hyper_type == NULL || PyModule_AddType(module, state->hyper_type) < 0) return -1;
    state->live_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &core_live_spec, NULL);
    if (state->live_type == NULL || PyModule_AddType(module, state->live_type) < 0) return -1;
    if (PyModule_AddIntConstant(module, "MAX_MEMBERS", HM_MAX_MEMBERS) < 0) return -1;
    return PyModule_AddStringConstant(module, "version", HM_VERSION);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    core_state *state = PyModule_GetState(module);
    Py_VISIT(state->error);
    Py_VISIT(state->format_error);
    Py_VISIT(state->mismatch_error);
    Py_VISIT(state->cancelled);
    Py_VISIT(state->argument_error);
    Py_VISIT(state->source_type);
    Py_VISIT(state->hyper_type);
    Py_VISIT(state->live_type);
    return 0;
}

static int module_clear(PyObject *module)
{
    core_state *state = PyModule_GetState(module);
    Py_CLEAR(state->error);
    Py_CLEAR(state->format_error);
    Py_CLEAR(state->mismatch_error);
    Py_CLEAR(state->cancelled);
    Py_CLEAR(state->argument_error);
    Py_CLEAR(state->source_type);
    Py_CLEAR(state->hyper_type);
    Py_CLEAR(state->live_type);
    return 0;
}

static void module_free(void *module)
{
    (void)module_clear(module);
}

static PyMethodDef module_methods[] = {
    {"open_source", core_open_source, METH_O, "open_source(path) -> Source: a safetensors file, its header checked."},
    {"borrow", core_borrow, METH_VARARGS,
     "borrow(name, tensors, keepalive) -> Source: tensors in memory, each (name, dtype, shape, strides in elements, "
     "address of element [0, …]); `keepalive` is held as long as the core may read them."},
    {"solve", (PyCFunction)(void (*)(void))core_solve, METH_VARARGS | METH_KEYWORDS,
     "solve(sources, base, directions, method, weights, carrier, selection, dtype, job, ranks=(), on_pass=None) -> Hyper"},
    {"open_hyper", core_open_hyper, METH_VARARGS, "open_hyper(path, folders) -> Hyper: a saved hyper-model."},
    {"stored", core_stored, METH_O,
     "stored(hyper) -> list of (name, shape, rows): what an opened hyper-model says of each tensor; rows is None where "
     "nothing moves it, else the element types of W~, base_low, D_1 ... D_K, None for what is not there."},
    {"read_stored", core_read_stored, METH_VARARGS,
     "read_stored(hyper, name, row, start, count, address): reads elements of a row into memory of the caller's; those "
     "of a row that is kept as factors are computed, as F32."},
    {"ranks", core_ranks, METH_O,
     "ranks(hyper) -> dict: of each tensor with rows that are kept as factors, the ranks row by row; 0 for others."},
    {"read_factors", core_read_factors, METH_VARARGS,
     "read_factors(hyper, name, row, up_address, down_address): the factors of a row as F32: it is up times down."},
    {"bind", core_bind, METH_VARARGS,
     "bind(hyper, targets, in_memory, keep_original, job) -> Live; each target as for borrow(), but under the name "
     "that the hyper-model gives it."},
    {"blend", core_blend, METH_VARARGS,
     "blend(out, base, directions, at, threads): out = base + sum of at[k] directions[k], each as for borrow()."},
    {"lora", (PyCFunction)(void (*)(void))core_lora, METH_VARARGS | METH_KEYWORDS,
     "lora(hyper, at, from_, to, path, rank, error, bytes, dtype, format, whole, force, selection, job) -> str: writes a "
     "LoRA of a blend (or, where hyper is None, of to - from) and says in JSON how good it is."},
    {"compare", compare, METH_VARARGS, "compare(sources, selection, job) -> str: JSON."},
    {"recover", recover, METH_VARARGS, "recover(source, parents, selection, free_sum, blocks, job) -> str: JSON."},
    {"blas_library", blas_library, METH_O,
     "blas_library(path): where to look for OpenBLAS first, when it is needed; None forgets it."},
    {"kernel_name", kernel_name, METH_NOARGS, "kernel_name() -> str: the kernels in use, \"avx2\" or \"portable\"."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_core",
    .m_doc = "The C core of hyper-merge.  hypermerge_ext is the face that people use.",
    .m_size = sizeof(core_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&module_definition);
}
