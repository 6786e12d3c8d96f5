/* Source: a checkpoint, in a file or in memory that Python owns. */
#include <string.h>

#include "_core.h"

/* New Source that takes over one reference to `source`; `keepalive` may be NULL.  NULL with an exception set. */
static PyObject *wrap(const core_state *state, hm_source *source, PyObject *keepalive)
{
    core_source *self = (core_source *)PyType_GenericAlloc(state->source_type, 0);
    if (self == NULL) {
        hm_source_close(source);
        return NULL;
    }
    self->source = source;
    Py_XINCREF(keepalive);
    self->keepalive = keepalive;
    return (PyObject *)self;
}

PyObject *core_open_source(PyObject *module, PyObject *path)
{
    core_state *state = PyModule_GetState(module);
    PyObject *bytes;
    if (!PyUnicode_FSConverter(path, &bytes)) return NULL;
    hm_source *source = NULL;
    hm_error error = {0};
    core_call call = {0};
    core_call_leave(&call);
    hm_status status = hm_source_open(&source, PyBytes_AsString(bytes), &error);
    int failed = core_call_return(&call, state, status, &error) < 0;
    Py_DECREF(bytes);
    return failed ? NULL : wrap(state, source, NULL);
}

/* Reads a tuple of ints into out[HM_MAX_DIMS]; returns their number, or -1 with an exception set. */
static int read_dims(PyObject *tuple, int64_t *out, const char *tensor)
{
    if (!PyTuple_Check(tuple) || PyTuple_Size(tuple) > HM_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "%s: shape and strides are tuples of at most %d numbers", tensor, HM_MAX_DIMS);
        return -1;
    }
    int count = (int)PyTuple_Size(tuple);
    for (int i = 0; i < count; i++) {
        out[i] = PyLong_AsLongLong(PyTuple_GetItem(tuple, i));
        if (PyErr_Occurred()) return -1;
    }
    return count;
}

int core_tensor_get(hm_tensor_info *out, const core_state *state, PyObject *tuple)
{
    PyObject *dtype, *shape, *strides, *address;
    int64_t dims[HM_MAX_DIMS];
    if (!PyTuple_Check(tuple)) {
        PyErr_SetString(PyExc_TypeError, "expected tuples (name, dtype, shape, strides, address)");
        return -1;
    }
    if (!PyArg_ParseTuple(tuple, "sUOOO", &out->name, &dtype, &shape, &strides, &address)) return -1;
    if (core_dtype_get(&out->dtype, state, dtype) < 0) return -1;
    int ndim = read_dims(shape, dims, out->name);
    if (ndim < 0) return -1;
    for (int i = 0; i < ndim; i++) {
        if (dims[i] < 0) {
            PyErr_Format(PyExc_ValueError, "%s: negative size in shape", out->name);
            return -1;
        }
        out->shape[i] = (uint64_t)dims[i];
    }
    int stride_count = read_dims(strides, out->strides, out->name);
    if (stride_count < 0) return -1;
    if (stride_count != ndim) {
        PyErr_Format(PyExc_ValueError, "%s: shape and strides differ in length", out->name);
        return -1;
    }
    out->ndim = (unsigned)ndim;
    out->data = PyLong_AsVoidPtr(address);
    return PyErr_Occurred() ? -1 : 0;
}

PyObject *core_borrow(PyObject *module, PyObject *args)
{
    core_state *state = PyModule_GetState(module);
    const char *name;
    PyObject *sequence, *keepalive;
    if (!PyArg_ParseTuple(args, "sOO", &name, &sequence, &keepalive)) return NULL;
    PyObject *given = PySequence_Tuple(sequence); /* holds the names while the core copies them */
    if (given == NULL) return NULL;
    size_t count = (size_t)PyTuple_Size(given);
    hm_tensor_info *tensors = PyMem_Calloc(count > 0 ? count : 1, sizeof *tensors);
    hm_source *source = NULL;
    int failed = tensors == NULL;
    if (failed) PyErr_NoMemory();
    for (size_t i = 0; i < count && !failed; i++)
        failed = core_tensor_get(&tensors[i], state, PyTuple_GetItem(given, (Py_ssize_t)i)) < 0;
    if (!failed) {
        hm_error error = {0};
        failed = hm_source_borrow(&source, name, tensors, count, &error) != HM_OK;
        if (failed) core_raise(state, &error);
    }
    PyMem_Free(tensors);
    Py_DECREF(given);
    return failed ? NULL : wrap(state, source, keepalive);
}

static int source_traverse(PyObject *object, visitproc visit, void *arg)
{
    /* No tp_clear: like a tuple, a Source never changes what it holds, and any cycle has another member to break. */
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((core_source *)object)->keepalive);
    return 0;
}

static void source_dealloc(PyObject *object)
{
    core_source *self = (core_source *)object;
    PyObject_GC_UnTrack(object);
    hm_source_close(self->source);
    Py_XDECREF(self->keepalive); /* after the core let go of the addresses */
    core_free_object(object);
}

static PyObject *source_describe(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    char *text = NULL;
    hm_error error = {0};
    core_call call = {0};
    core_call_leave(&call);
    hm_status status = hm_source_describe(((core_source *)object)->source, &text, &error);
    if (core_call_return(&call, core_state_of_type(Py_TYPE(object)), status, &error) < 0) return NULL;
    return core_take_text(text);
}

static PyObject *source_metadata(PyObject *object, PyObject *key)
{
    const char *name = PyUnicode_AsUTF8AndSize(key, NULL);
    if (name == NULL) return NULL;
    const char *value = hm_source_metadata(((core_source *)object)->source, name);
    if (value == NULL) Py_RETURN_NONE;
    return core_text(value);
}

static PyObject *source_sha256(PyObject *object, PyObject *args)
{
    PyObject *job = NULL;
    core_call call;
    if (!PyArg_ParseTuple(args, "|O", &job) || core_call_init(&call, job) < 0) return NULL;
    char hex[65];
    hm_error error = {0};
    core_call_leave(&call);
    hm_status status = hm_source_sha256(((core_source *)object)->source, hex, &call.job, &error);
    if (core_call_return(&call, core_state_of_type(Py_TYPE(object)), status, &error) < 0) return NULL;
    return core_text(hex);
}

static PyObject *source_set_sha256(PyObject *object, PyObject *hex)
{
    const char *text = PyUnicode_AsUTF8AndSize(hex, NULL);
    if (text == NULL) return NULL;
    hm_error error = {0};
    if (hm_source_set_sha256(((core_source *)object)->source, text, &error) != HM_OK)
        return core_raise(core_state_of_type(Py_TYPE(object)), &error);
    Py_RETURN_NONE;
}

static PyObject *source_name(PyObject *object, void *Py_UNUSED(closure))
{
    return core_text(hm_source_name(((core_source *)object)->source));
}

static PyObject *source_path(PyObject *object, void *Py_UNUSED(closure))
{
    const char *path = hm_source_path(((core_source *)object)->source);
    if (path == NULL) Py_RETURN_NONE;
    return PyUnicode_DecodeFSDefault(path);
}

static PyObject *source_repr(PyObject *object)
{
    PyObject *name = source_name(object, NULL);
    if (name == NULL) return NULL;
    PyObject *result = PyUnicode_FromFormat("<Source %R, %zu tensors>", name,
                                            hm_source_count(((core_source *)object)->source));
    Py_DECREF(name);
    return result;
}

static PyMethodDef source_methods[] = {
    {"describe", source_describe, METH_NOARGS, "describe() -> str: what it is, as JSON."},
    {"metadata", source_metadata, METH_O, "metadata(key) -> str | None: one value of the file's __metadata__."},
    {"sha256", source_sha256, METH_VARARGS, "sha256(job=None) -> str: 64 hexadecimal digits; reads the whole file."},
    {"set_sha256", source_set_sha256, METH_O,
     "set_sha256(hex): names a sha256 known from elsewhere.  To be called before the source is used."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef source_getset[] = {
    {"name", source_name, NULL, "str: file name without folder and extensions, or the name given to tensors.", NULL},
    {"path", source_path, NULL, "str | None: absolute path; None for tensors in memory.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot source_slots[] = {
    {Py_tp_doc, "One checkpoint: a safetensors file, or tensors in memory.  Made by open_source() and borrow()."},
    {Py_tp_dealloc, source_dealloc},
    {Py_tp_traverse, source_traverse},
    {Py_tp_repr, source_repr},
    {Py_tp_methods, source_methods},
    {Py_tp_getset, source_getset},
    {0, NULL},
};

PyType_Spec core_source_spec = {
    .name = "hypermerge_ext._core.Source",
    .basicsize = sizeof(core_source),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = source_slots,
};
