/* Between Python and the core: exceptions, the long call, converters. */
#include <math.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "_core.h"

core_state *core_state_of_type(PyTypeObject *type)
{
    return PyType_GetModuleState(type);
}

void core_free_object(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_Del(self);
    Py_DECREF(type); /* instances of heap types hold one */
}

/* ---- exceptions -------------------------------------------------------------------------------------------------- */

/* New exception class `name` in `module`; `bases` a class or a tuple of them.  -1 with an exception set on failure. */
static int add_exception(PyObject *module, const char *package, const char *name, const char *doc, PyObject *bases,
                         PyObject *attributes, PyObject **slot)
{
    PyObject *full = PyUnicode_FromFormat("%s.%s", package, name);
    if (full == NULL) return -1;
    const char *text = PyUnicode_AsUTF8AndSize(full, NULL);
    *slot = text != NULL ? PyErr_NewExceptionWithDoc(text, doc, bases, attributes) : NULL;
    Py_DECREF(full);
    return *slot != NULL ? PyModule_AddObjectRef(module, name, *slot) : -1;
}

int core_exceptions_add(PyObject *module)
{
    core_state *state = PyModule_GetState(module);
    const char *module_name = PyModule_GetName(module);
    if (module_name == NULL) return -1;
    /* Users meet the classes in the package, whatever it is called in this process. */
    const char *dot = strrchr(module_name, '.');
    PyObject *package = dot != NULL ? PyUnicode_FromStringAndSize(module_name, dot - module_name)
                                    : PyUnicode_FromString(module_name);
    PyObject *attributes = Py_BuildValue("{sOsO}", "file", Py_None, "tensor", Py_None);
    const char *prefix = package != NULL ? PyUnicode_AsUTF8AndSize(package, NULL) : NULL;
    PyObject *both = NULL;
    int result = -1;
    if (prefix == NULL || attributes == NULL) goto done;
    if (add_exception(module, prefix, "Error",
                      "What hyper-merge refuses or cannot do.  Its text is one line: what, which file, which tensor, "
                      "what to do; `file` and `tensor` are str or None.",
                      PyExc_Exception, attributes, &state->error) < 0)
        goto done;
    if (add_exception(module, prefix, "FormatError", "A file breaks the safetensors or the hyper-model format.",
                      state->error, NULL, &state->format_error) < 0 ||
        add_exception(module, prefix, "MismatchError", "The inputs do not go together: shapes, names, families, NaN.",
                      state->error, NULL, &state->mismatch_error) < 0 ||
        add_exception(module, prefix, "Cancelled", "To be raised by a progress function: nothing is written then.",
                      state->error, NULL, &state->cancelled) < 0)
        goto done;
    both = PyTuple_Pack(2, state->error, PyExc_ValueError);
    if (both == NULL) goto done;
    result = add_exception(module, prefix, "ArgumentError", "The caller's values make no sense.", both, NULL,
                           &state->argument_error);
done:
    Py_XDECREF(both);
    Py_XDECREF(attributes);
    Py_XDECREF(package);
    return result;
}

PyObject *core_text(const char *text)
{
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "surrogateescape");
}

PyObject *core_take_text(char *text)
{
    PyObject *result = core_text(text);
    hm_free(text);
    return result;
}

/* Sets `name` on the exception to `text`, or leaves the class's None where it is empty. */
static int set_attribute(PyObject *exception, const char *name, const char *text)
{
    if (text[0] == '\0') return 0;
    PyObject *value = core_text(text);
    if (value == NULL) return -1;
    int result = PyObject_SetAttrString(exception, name, value);
    Py_DECREF(value);
    return result;
}

PyObject *core_raise(const core_state *state, const hm_error *error)
{
    PyObject *class = state->error;
    switch (error->status) {
    case HM_ERR_MEMORY: class = PyExc_MemoryError; break;
    case HM_ERR_FORMAT: class = state->format_error; break;
    case HM_ERR_MISMATCH: class = state->mismatch_error; break;
    case HM_ERR_CANCELLED: class = state->cancelled; break;
    case HM_ERR_ARGUMENT: class = state->argument_error; break;
    case HM_OK:
    case HM_ERR_IO: break;
    }
    PyObject *message = core_text(error->message);
    PyObject *exception = message != NULL ? PyObject_CallFunctionObjArgs(class, message, NULL) : NULL;
    if (exception != NULL && (class == PyExc_MemoryError || (set_attribute(exception, "file", error->file) == 0 &&
                                                             set_attribute(exception, "tensor", error->tensor) == 0)))
        PyErr_SetObject(class, exception);
    Py_XDECREF(exception);
    Py_XDECREF(message);
    return NULL;
}

/* ---- the long call ---------------------------------------------------------------------------------------------- */

/* Calls `callable`, if there is one, with the values as its arguments; non-zero when an exception waits. */
static int ask_python(core_call *call, PyObject *callable, const char *format, va_list values)
{
    PyEval_RestoreThread(call->thread);
    int stop = PyErr_CheckSignals() != 0;
    if (!stop && callable != NULL) {
        PyObject *arguments = Py_VaBuildValue(format, values);
        PyObject *answer = arguments != NULL ? PyObject_CallObject(callable, arguments) : NULL;
        stop = answer == NULL;
        Py_XDECREF(arguments);
        Py_XDECREF(answer);
    }
    call->thread = PyEval_SaveThread(); /* a pending exception waits in the thread state */
    return stop;
}

/* A daemon thread that asks for the GIL after the interpreter began to end never gets it: before 3.14 Python ends the
 * thread then (pthread_exit), and its stack goes.  But our workers still compute with what lies on that stack; so it stays,
 * as Python 3.14 lets it, until the process is gone. */
static void stay(void *nothing)
{
    (void)nothing;
    for (;;) pause();
}

int core_call_ask(core_call *call, PyObject *callable, const char *format, ...)
{
    int stop;
    va_list values;
    va_start(values, format);
    pthread_cleanup_push(stay, NULL);
    stop = ask_python(call, callable, format, values);
    pthread_cleanup_pop(0);
    va_end(values);
    return stop;
}

static int report_progress(void *user, uint64_t done_bytes, uint64_t total_bytes)
{
    core_call *call = user;
    return core_call_ask(call, call->progress, "(KK)", (unsigned long long)done_bytes, (unsigned long long)total_bytes);
}

int core_call_init(core_call *call, PyObject *job)
{
    memset(call, 0, sizeof *call);
    call->job.progress = report_progress;
    call->job.user = call;
    if (job == NULL || job == Py_None) return 0;
    unsigned long long budget;
    PyObject *progress, *statistics;
    if (!PyTuple_Check(job)) {
        PyErr_SetString(PyExc_TypeError, "job must be None or (memory_budget, threads, progress, statistics)");
        return -1;
    }
    if (!PyArg_ParseTuple(job, "KIOO", &budget, &call->job.threads, &progress, &statistics)) return -1;
    call->job.memory_budget = budget;
    if (progress != Py_None) call->progress = progress;
    if (statistics != Py_None) call->statistics = statistics;
    return 0;
}

void core_call_leave(core_call *call)
{
    call->thread = PyEval_SaveThread();
}

/* Adds how the files were read to the caller's dict. */
static int give_statistics(const core_call *call)
{
    PyObject *values = Py_BuildValue("{sKsKsd}", "direct_bytes", (unsigned long long)call->job.out_direct_bytes,
                                     "cached_bytes", (unsigned long long)call->job.out_cached_bytes, "seconds",
                                     call->job.out_seconds);
    if (values == NULL) return -1;
    int result = PyDict_Update(call->statistics, values);
    Py_DECREF(values);
    return result;
}

int core_call_return(core_call *call, const core_state *state, hm_status status, const hm_error *error)
{
    PyEval_RestoreThread(call->thread);
    if (PyErr_Occurred()) return -1; /* the progress function's own, or KeyboardInterrupt */
    if (status != HM_OK) {
        core_raise(state, error);
        return -1;
    }
    return call->statistics != NULL ? give_statistics(call) : 0;
}

/* ---- converters ------------------------------------------------------------------------------------------------- */

/* An array for `count` items of `size` bytes, at least one, zeroed; NULL with MemoryError set. */
static void *new_array(size_t count, size_t size)
{
    void *array = PyMem_Calloc(count > 0 ? count : 1, size);
    if (array == NULL) PyErr_NoMemory();
    return array;
}

int core_strings_get(core_strings *out, PyObject *sequence, int paths)
{
    memset(out, 0, sizeof *out);
    PyObject *given = PySequence_Tuple(sequence);
    if (given == NULL) return -1;
    Py_ssize_t count = PyTuple_Size(given);
    out->owner = PyTuple_New(count);
    out->items = new_array((size_t)count, sizeof *out->items);
    if (out->owner == NULL || out->items == NULL) goto fail;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyTuple_GetItem(given, i), *kept = item;
        const char *text;
        Py_ssize_t length;
        if (paths) {
            if (!PyUnicode_FSConverter(item, &kept)) goto fail;
            text = PyBytes_AsString(kept); /* FSConverter has refused NUL bytes */
        } else {
            if (!PyUnicode_Check(item)) {
                PyErr_SetString(PyExc_TypeError, "expected a sequence of str");
                goto fail;
            }
            text = PyUnicode_AsUTF8AndSize(item, &length);
            if (text == NULL) goto fail;
            if (strlen(text) != (size_t)length) {
                PyErr_SetString(PyExc_ValueError, "embedded null character");
                goto fail;
            }
            Py_INCREF(kept);
        }
        PyTuple_SetItem(out->owner, i, kept);
        out->items[i] = text;
    }
    out->count = (size_t)count;
    Py_DECREF(given);
    return 0;
fail:
    Py_DECREF(given);
    core_strings_clear(out);
    return -1;
}

void core_strings_clear(core_strings *strings)
{
    Py_CLEAR(strings->owner);
    PyMem_Free(strings->items);
    memset(strings, 0, sizeof *strings);
}

int core_doubles_get(core_doubles *out, PyObject *sequence)
{
    memset(out, 0, sizeof *out);
    if (sequence == NULL || sequence == Py_None) return 0;
    PyObject *given = PySequence_Tuple(sequence);
    if (given == NULL) return -1;
    Py_ssize_t count = PyTuple_Size(given);
    if (count > 0) out->items = new_array((size_t)count, sizeof *out->items);
    int failed = count > 0 && out->items == NULL;
    for (Py_ssize_t i = 0; i < count && !failed; i++) {
        out->items[i] = PyFloat_AsDouble(PyTuple_GetItem(given, i));
        if (PyErr_Occurred()) {
            failed = 1;
        } else if (!isfinite(out->items[i])) {
            PyErr_SetString(PyExc_ValueError, "expected finite numbers");
            failed = 1;
        }
    }
    Py_DECREF(given);
    if (failed) {
        core_doubles_clear(out);
        return -1;
    }
    out->count = (size_t)count;
    return 0;
}

void core_doubles_clear(core_doubles *doubles)
{
    PyMem_Free(doubles->items);
    memset(doubles, 0, sizeof *doubles);
}

int core_source_get(hm_source **out, const core_state *state, PyObject *object)
{
    *out = NULL;
    if (object == NULL || object == Py_None) return 0;
    if (!PyObject_TypeCheck(object, state->source_type)) {
        PyErr_SetString(PyExc_TypeError, "expected a Source");
        return -1;
    }
    *out = ((core_source *)object)->source;
    return 0;
}

int core_sources_get(core_sources *out, const core_state *state, PyObject *sequence)
{
    memset(out, 0, sizeof *out);
    if (sequence == NULL || sequence == Py_None) return 0;
    out->owner = PySequence_Tuple(sequence);
    if (out->owner == NULL) return -1;
    Py_ssize_t count = PyTuple_Size(out->owner);
    out->items = new_array((size_t)count, sizeof(hm_source *));
    int failed = out->items == NULL;
    for (Py_ssize_t i = 0; i < count && !failed; i++) {
        failed = core_source_get(&out->items[i], state, PyTuple_GetItem(out->owner, i)) < 0;
        if (!failed && out->items[i] == NULL) {
            PyErr_SetString(PyExc_TypeError, "expected a Source, not None");
            failed = 1;
        }
    }
    if (failed) {
        core_sources_clear(out);
        return -1;
    }
    out->count = (size_t)count;
    return 0;
}

void core_sources_clear(core_sources *sources)
{
    Py_CLEAR(sources->owner);
    PyMem_Free(sources->items);
    memset(sources, 0, sizeof *sources);
}

int core_selection_get(core_selection *out, PyObject *tuple)
{
    memset(out, 0, sizeof *out);
    PyObject *include, *exclude;
    int common, allow_nonfinite;
    if (!PyTuple_Check(tuple)) {
        PyErr_SetString(PyExc_TypeError, "selection must be (include, exclude, common, allow_nonfinite)");
        return -1;
    }
    if (!PyArg_ParseTuple(tuple, "OOpp", &include, &exclude, &common, &allow_nonfinite)) return -1;
    if (core_strings_get(&out->include, include, 0) < 0) return -1;
    if (core_strings_get(&out->exclude, exclude, 0) < 0) {
        core_selection_clear(out);
        return -1;
    }
    out->selection = (hm_selection){
        .include = out->include.items,
        .includes = out->include.count,
        .exclude = out->exclude.items,
        .excludes = out->exclude.count,
        .common = common != 0,
        .allow_nonfinite = allow_nonfinite != 0,
    };
    return 0;
}

void core_selection_clear(core_selection *selection)
{
    core_strings_clear(&selection->include);
    core_strings_clear(&selection->exclude);
}

int core_dtype_get(hm_dtype *out, const core_state *state, PyObject *name)
{
    *out = HM_DTYPE_KEEP;
    if (name == NULL || name == Py_None) return 0;
    const char *text = PyUnicode_AsUTF8AndSize(name, NULL);
    if (text == NULL) return -1;
    for (int i = 0; i < HM_DTYPE_COUNT; i++) {
        if (strcmp(text, hm_dtype_name((hm_dtype)i)) == 0) {
            *out = (hm_dtype)i;
            return 0;
        }
    }
    PyErr_Format(state->argument_error, "unknown element type '%U'", name);
    return -1;
}
