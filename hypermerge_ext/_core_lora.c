/* LoRAs: of a hyper-model's directions, and of the difference of two checkpoints. */
#include <string.h>

#include "_core.h"

static int get_format(hm_lora_format *out, const core_state *state, const char *name)
{
    for (int format = HM_LORA_AUTO; format < HM_LORA_FORMAT_COUNT; format++)
        if (strcmp(name, hm_lora_format_name((hm_lora_format)format)) == 0) {
            *out = (hm_lora_format)format;
            return 0;
        }
    PyErr_Format(state->argument_error, "unknown format '%s'; it is 'kohya' or 'comfyui'", name);
    return -1;
}

PyObject *core_lora(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"hyper", "at",    "from_", "to",    "path",      "rank", "error", "bytes",
                            "dtype", "format", "whole", "force", "selection", "job",  NULL};
    core_state *state = PyModule_GetState(module);
    PyObject *hyper, *at_list, *from_object, *to_object, *path, *dtype, *selection_tuple, *job;
    const char *format;
    unsigned long long bytes;
    int whole, force, failed = 1;
    hm_lora_options options = {0};
    hm_source *from = NULL, *to = NULL;
    core_doubles at = {0};
    core_selection selection = {0};
    core_call call;
    hm_error error = {0};
    char *text = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO&IdKOsppOO", names, &hyper, &at_list, &from_object, &to_object,
                                     PyUnicode_FSConverter, &path, &options.rank, &options.error, &bytes, &dtype, &format,
                                     &whole, &force, &selection_tuple, &job))
        return NULL;
    core_hyper *self = hyper != Py_None ? (core_hyper *)hyper : NULL;
    if (self != NULL && !PyObject_TypeCheck(hyper, state->hyper_type)) {
        PyErr_SetString(PyExc_TypeError, "hyper must be a Hyper or None");
        goto done;
    }
    if (core_call_init(&call, job) < 0 || core_dtype_get(&options.dtype, state, dtype) < 0 ||
        get_format(&options.format, state, format) < 0 || core_doubles_get(&at, at_list) < 0 ||
        core_selection_get(&selection, selection_tuple) < 0)
        goto done;
    if (self == NULL && (core_source_get(&from, state, from_object) < 0 || core_source_get(&to, state, to_object) < 0))
        goto done;
    if (self == NULL && (from == NULL || to == NULL)) {
        PyErr_SetString(PyExc_TypeError, "a Hyper or two Sources are needed");
        goto done;
    }
    if (self != NULL && core_hyper_enter(self, state, false) < 0) goto done;
    options.bytes = bytes;
    options.whole = whole != 0;
    options.force = force != 0;
    options.selection = selection.selection;
    core_call_leave(&call);
    hm_status status =
        self != NULL ? hm_hyper_lora(self->hyper, at.items, at.count, PyBytes_AsString(path), &options, &text, &call.job, &error)
                     : hm_lora_of_pair(from, to, PyBytes_AsString(path), &options, &text, &call.job, &error);
    failed = core_call_return(&call, state, status, &error) < 0;
    if (self != NULL) core_hyper_exit(self);
done:
    core_selection_clear(&selection);
    core_doubles_clear(&at);
    Py_DECREF(path);
    if (!failed) return core_take_text(text);
    hm_free(text);
    return NULL;
}
