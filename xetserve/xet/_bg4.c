/* Undo byte grouping (BG4): an optional, faster xetserve.xet.compression.ungroup_bytes.
 *
 * The input holds the bytes of index 0 modulo 4, then those of index 1, 2 and 3. The output holds
 * the same bytes in their original order. Group j has n / 4 bytes, plus one if j < n % 4.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

static void
interleave(const uint8_t *restrict in, uint8_t *restrict out, Py_ssize_t size)
{
    Py_ssize_t quads = size / 4, rest = size % 4;
    const uint8_t *a = in;
    const uint8_t *b = a + quads + (rest > 0);
    const uint8_t *c = b + quads + (rest > 1);
    const uint8_t *d = c + quads + (rest > 2);
    for (Py_ssize_t i = 0; i < quads; i++) {
        out[4 * i] = a[i];
        out[4 * i + 1] = b[i];
        out[4 * i + 2] = c[i];
        out[4 * i + 3] = d[i];
    }
    if (rest > 0)
        out[4 * quads] = a[quads];
    if (rest > 1)
        out[4 * quads + 1] = b[quads];
    if (rest > 2)
        out[4 * quads + 2] = c[quads];
}

static PyObject *
ungroup(PyObject *module, PyObject *arg)
{
    Py_buffer grouped;
    PyObject *result;

    (void)module;
    if (PyObject_GetBuffer(arg, &grouped, PyBUF_SIMPLE) < 0)
        return NULL;
    result = PyBytes_FromStringAndSize(NULL, grouped.len);
    if (result != NULL)
        interleave(grouped.buf, (uint8_t *)PyBytes_AS_STRING(result), grouped.len);
    PyBuffer_Release(&grouped);
    return result;
}

static PyMethodDef methods[] = {
    {"ungroup", ungroup, METH_O, "Undo byte grouping; return new bytes of the same size."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_bg4", "Undo byte grouping in C.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__bg4(void)
{
    return PyModule_Create(&definition);
}
