/* Answers the kernel's questions about files whose verdict is remembered, without a word of Python between question and answer.
 *
 * `keibi/agent/gate/answers.py` holds the same in Python and says what everything means; the tests hold the two against each other.
 * Nothing here decides anything: what is not plainly remembered as allowed is handed to Python.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/fanotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define WAYS 4
#define SETS 8192 /* a power of two; 32,768 files, as many as the memory of verdicts holds and a few more */
#define MAX_DEVICES 256
#define MAX_READY 16
#define READ_BYTES (128 * sizeof(struct fanotify_event_metadata))
#define MAX_LEFT 256 /* events for Python: reading stops while one more bufferful might not fit */
#define IGNORABLE (1ULL << 32)

/* A record of verdicts.py: size and times, then the bits that are allowed and those that are denied. */
struct record {
    int64_t size, modified_ns, changed_ns;
    uint64_t allowed, denied;
};
_Static_assert(sizeof(struct record) == 40, "a record of verdicts.py has 40 bytes");

struct entry {
    uint64_t device, inode, epoch; /* of another epoch: nothing is here */
    struct record record;
};

struct device {
    uint64_t device, needed_open, needed_exec;
    int is_memory;
};

struct left {
    uint64_t mask;
    int32_t descriptor, pid;
};

typedef struct {
    PyObject_HEAD
    int group, epoll;
    uint64_t epoch, answered;
    unsigned int next_way;
    struct entry *entries;
    struct device devices[MAX_DEVICES];
    size_t device_count;
    struct left left[MAX_LEFT];
    size_t left_count;
    int read_error;
    int must_wait; /* what was left tells of a writer: nothing that came after it may be answered before it is looked at */
} Answers;

static struct entry *set_of(const Answers *self, uint64_t device, uint64_t inode)
{
    uint64_t hash = (inode ^ device << 40 ^ device) * 0x9E3779B97F4A7C15ULL;
    return self->entries + (hash >> 51) * WAYS;
}
_Static_assert(SETS == 1 << (64 - 51), "set_of takes as many bits as there are sets");

static struct entry *find(const Answers *self, uint64_t device, uint64_t inode)
{
    struct entry *set = set_of(self, device, inode);
    for (int way = 0; way < WAYS; way++)
        if (set[way].epoch == self->epoch && set[way].inode == inode && set[way].device == device)
            return set + way;
    return NULL;
}

static int64_t nanoseconds(struct timespec at)
{
    return (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
}

/* The kernel grants a read lease only where nobody has the file open for writing. */
static int has_no_writer(int descriptor)
{
    if (fcntl(descriptor, F_SETLEASE, F_RDLCK) < 0)
        return 0;
    fcntl(descriptor, F_SETLEASE, F_UNLCK);
    return 1;
}

static int is_allowed(const Answers *self, const struct fanotify_event_metadata *event)
{
    struct stat status;
    if (event->mask & ~(uint64_t)(FAN_OPEN_PERM | FAN_OPEN_EXEC_PERM) || event->fd < 0 || fstat(event->fd, &status) < 0)
        return 0;
    if (!S_ISREG(status.st_mode) || !status.st_size)
        return 1;
    const struct device *device = NULL;
    for (size_t index = 0; index < self->device_count && !device; index++)
        if (self->devices[index].device == status.st_dev)
            device = &self->devices[index];
    if (!device)
        return 0;
    uint64_t needed = event->mask & FAN_OPEN_EXEC_PERM ? device->needed_exec : device->needed_open;
    if (!needed)
        return 1;
    const struct entry *entry = find(self, status.st_dev, status.st_ino);
    if (!entry)
        return 0;
    const struct record *record = &entry->record;
    if (record->size != status.st_size || record->modified_ns != nanoseconds(status.st_mtim) ||
        record->changed_ns != nanoseconds(status.st_ctim))
        return 0;
    /* What the kernel may be told to pass by itself is told so in Python. */
    if (record->allowed & IGNORABLE || record->denied & needed || needed & ~record->allowed)
        return 0;
    return !device->is_memory || has_no_writer(event->fd);
}

static void read_and_answer(Answers *self)
{
    _Alignas(struct fanotify_event_metadata) char buffer[READ_BYTES];
    while (self->left_count + 128 <= MAX_LEFT && !self->read_error) {
        ssize_t size = read(self->group, buffer, sizeof(buffer));
        if (size < 0) {
            if (errno != EAGAIN && errno != EINTR)
                self->read_error = errno;
            return;
        }
        const struct fanotify_event_metadata *event = (const void *)buffer;
        for (ssize_t rest = size; FAN_EVENT_OK(event, rest); event = FAN_EVENT_NEXT(event, rest)) {
            self->must_wait |= (event->mask & ~(uint64_t)(FAN_OPEN_PERM | FAN_OPEN_EXEC_PERM)) != 0;
            if (!self->must_wait && is_allowed(self, event)) {
                struct fanotify_response response = {.fd = event->fd, .response = FAN_ALLOW};
                if (write(self->group, &response, sizeof(response)) == sizeof(response) || errno == ENOENT) {
                    close(event->fd);
                    self->answered++;
                    continue;
                }
            }
            self->left[self->left_count++] = (struct left){event->mask, event->fd, event->pid};
        }
    }
}

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

PyDoc_STRVAR(wait_doc, "wait(until, /)\n\nSee answers.Answers.wait.");

static PyObject *answers_wait(Answers *self, PyObject *argument)
{
    double until = PyFloat_AsDouble(argument);
    if (until == -1.0 && PyErr_Occurred())
        return NULL;
    struct epoll_event ready[MAX_READY];
    int count, others;
    for (;;) {
        double left = until - now();
        int milliseconds = left <= 0 ? 0 : left > 3600 ? 3600000 : (int)ceil(left * 1000);
        Py_BEGIN_ALLOW_THREADS
        others = 0;
        count = epoll_wait(self->epoll, ready, MAX_READY, milliseconds);
        for (int index = 0; index < count; index++)
            if (ready[index].data.fd == self->group)
                read_and_answer(self);
            else
                others++;
        Py_END_ALLOW_THREADS
        if (count < 0 && errno != EINTR)
            return PyErr_SetFromErrno(PyExc_OSError);
        if (PyErr_CheckSignals() < 0)
            return NULL;
        if (others || self->left_count || self->read_error || count == 0 || now() >= until)
            break;
    }
    PyObject *list = PyList_New(0);
    if (list && (self->left_count || self->read_error)) {
        PyObject *pair = Py_BuildValue("iI", self->group, (unsigned int)EPOLLIN);
        if (!pair || PyList_Append(list, pair) < 0)
            Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    for (int index = 0; list && index < count; index++) {
        if (ready[index].data.fd == self->group)
            continue;
        PyObject *pair = Py_BuildValue("iI", ready[index].data.fd, ready[index].events);
        if (!pair || PyList_Append(list, pair) < 0)
            Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    return list;
}

PyDoc_STRVAR(take_doc, "take()\n\nSee answers.Answers.take.");

static PyObject *answers_take(Answers *self, PyObject *ignored)
{
    (void)ignored;
    PyObject *list = PyList_New(0);
    for (size_t index = 0; list && index < self->left_count; index++) {
        const struct left *left = &self->left[index];
        PyObject *event = Py_BuildValue("Kii", (unsigned long long)left->mask, left->descriptor, left->pid);
        if (!event || PyList_Append(list, event) < 0)
            Py_CLEAR(list);
        Py_XDECREF(event);
    }
    if (!list)
        return NULL;
    self->left_count = 0;
    self->must_wait = 0;
    if (self->read_error && PyList_GET_SIZE(list) == 0) {
        errno = self->read_error;
        self->read_error = 0;
        Py_DECREF(list);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return list;
}

PyDoc_STRVAR(put_doc, "put(device, inode, record, /)\n\nSee answers.Answers.put.");

static PyObject *answers_put(Answers *self, PyObject *arguments)
{
    unsigned long long device, inode;
    Py_buffer record;
    if (!PyArg_ParseTuple(arguments, "KKy*:put", &device, &inode, &record))
        return NULL;
    if (record.len != sizeof(struct record)) {
        PyBuffer_Release(&record);
        return PyErr_Format(PyExc_ValueError, "a record has %zu bytes, not %zd", sizeof(struct record), record.len);
    }
    struct entry *entry = find(self, device, inode);
    if (!entry) {
        struct entry *set = set_of(self, device, inode);
        for (int way = 0; way < WAYS && !entry; way++)
            if (set[way].epoch != self->epoch)
                entry = set + way;
        if (!entry)
            entry = set + self->next_way++ % WAYS;
    }
    *entry = (struct entry){.device = device, .inode = inode, .epoch = self->epoch};
    memcpy(&entry->record, record.buf, sizeof(struct record));
    PyBuffer_Release(&record);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(forget_doc, "forget(device, inode, /)\n\nSee answers.Answers.forget.");

static PyObject *answers_forget(Answers *self, PyObject *arguments)
{
    unsigned long long device, inode;
    if (!PyArg_ParseTuple(arguments, "KK:forget", &device, &inode))
        return NULL;
    struct entry *entry = find(self, device, inode);
    if (entry)
        entry->epoch = 0;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(clear_doc, "clear()\n\nSee answers.Answers.clear.");

static PyObject *answers_clear(Answers *self, PyObject *ignored)
{
    (void)ignored;
    self->epoch++;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(cover_doc, "cover(devices, /)\n\nSee answers.Answers.cover.");

static PyObject *answers_cover(Answers *self, PyObject *argument)
{
    PyObject *devices = PySequence_Fast(argument, "devices are a sequence");
    if (!devices)
        return NULL;
    self->device_count = 0;
    for (Py_ssize_t index = 0; index < PySequence_Fast_GET_SIZE(devices) && self->device_count < MAX_DEVICES; index++) {
        unsigned long long device, needed_open, needed_exec;
        int is_memory;
        PyObject *item = PySequence_Fast_GET_ITEM(devices, index);
        if (!PyTuple_Check(item) || !PyArg_ParseTuple(item, "KKKp:cover", &device, &needed_open, &needed_exec, &is_memory)) {
            self->device_count = 0;
            Py_DECREF(devices);
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_TypeError, "a device is a tuple");
            return NULL;
        }
        self->devices[self->device_count++] = (struct device){device, needed_open, needed_exec, is_memory};
    }
    Py_DECREF(devices);
    Py_RETURN_NONE;
}

static PyObject *answers_count(Answers *self, void *ignored)
{
    (void)ignored;
    return PyLong_FromUnsignedLongLong(self->answered);
}

static int answers_init(Answers *self, PyObject *arguments, PyObject *keywords)
{
    (void)keywords;
    if (self->entries) {
        PyErr_SetString(PyExc_RuntimeError, "made already");
        return -1;
    }
    if (!PyArg_ParseTuple(arguments, "ii:Answers", &self->group, &self->epoll))
        return -1;
    self->epoch = 1;
    self->entries = PyMem_Calloc(SETS * WAYS, sizeof(struct entry));
    if (!self->entries) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static void answers_dealloc(Answers *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyMem_Free(self->entries);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMethodDef answers_methods[] = {
    {"wait", (PyCFunction)answers_wait, METH_O, wait_doc},
    {"take", (PyCFunction)answers_take, METH_NOARGS, take_doc},
    {"put", (PyCFunction)answers_put, METH_VARARGS, put_doc},
    {"forget", (PyCFunction)answers_forget, METH_VARARGS, forget_doc},
    {"clear", (PyCFunction)answers_clear, METH_NOARGS, clear_doc},
    {"cover", (PyCFunction)answers_cover, METH_O, cover_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef answers_properties[] = {
    {"count", (getter)answers_count, NULL, PyDoc_STR("How many events were answered without Python."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot answers_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Answers(group, epoll, /)\n\nSee answers.Answers.")},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, answers_init},
    {Py_tp_dealloc, answers_dealloc},
    {Py_tp_methods, answers_methods},
    {Py_tp_getset, answers_properties},
    {0, NULL},
};

static PyType_Spec answers_spec = {
    .name = "keibi.agent.linux._answers.Answers",
    .basicsize = sizeof(Answers),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = answers_slots,
};

static int module_exec(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &answers_spec, NULL);
    return type ? PyModule_AddObjectRef(module, "Answers", type) + (Py_DECREF(type), 0) : -1;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_answers",
    .m_doc = "Answers the kernel's questions about files whose verdict is remembered.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__answers(void)
{
    return PyModuleDef_Init(&module_definition);
}
