/* Lists directories and hashes files with the interpreter lock released.
 *
 * `file_queue.py` holds the same in Python and says what everything means; the tests hold the two against each other.
 * Nothing here decides anything: it reads, and reports what it could not read.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define DIGEST_BYTES 32
#define BUFFER_BYTES (128 * 1024)         /* stays in the second-level cache between the kernel's copy and the hash */
#define FOREIGN_BUFFER_BYTES (1024 * 1024) /* for a hash in Python: each bufferful costs the interpreter lock once */
#define PACE_BYTES (1024 * 1024)
#define WISH_CONTENT 2

enum outcome { NOT_ASKED, HASHED, UNSTABLE, UNREADABLE, VANISHED, TOO_LARGE };

/* The layout of files.PACKED_STATE. */
struct packed_state {
    uint32_t mode, uid, gid, link_count;
    uint64_t size;
    int64_t modified_ns, changed_ns;
    uint64_t inode, device, device_number;
};
_Static_assert(sizeof(struct packed_state) == 64, "files.PACKED_STATE has 64 bytes");

static void pack_state(struct packed_state *to, const struct stat *from)
{
    to->mode = from->st_mode;
    to->uid = from->st_uid;
    to->gid = from->st_gid;
    to->link_count = (uint32_t)from->st_nlink;
    to->size = (uint64_t)from->st_size;
    to->modified_ns = (int64_t)from->st_mtim.tv_sec * 1000000000 + from->st_mtim.tv_nsec;
    to->changed_ns = (int64_t)from->st_ctim.tv_sec * 1000000000 + from->st_ctim.tv_nsec;
    to->inode = from->st_ino;
    to->device = from->st_dev;
    to->device_number = from->st_rdev;
}

/* Opens a directory below `root`. Unless `is_loose`, no part of `path` may be a symlink: somebody who can rename a
 * directory that is being walked could otherwise lead the walk elsewhere. Kernels before 5.6 cannot promise that. */
static int open_directory(int root, const char *path, int is_loose)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    if (*path == 0)
        path = ".";
    if (is_loose)
        return openat(root, path, flags & ~O_NOFOLLOW);
    struct open_how how = {.flags = (uint64_t)flags, .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    int descriptor = (int)syscall(SYS_openat2, root, path, &how, sizeof how);
    if (descriptor < 0 && (errno == ENOSYS || errno == EPERM))
        descriptor = openat(root, path, flags);
    return descriptor;
}

/* --- listing */

struct kernel_entry {
    uint64_t inode;
    int64_t offset;
    uint16_t length;
    uint8_t type;
    char name[];
};

struct listing {
    char *names; /* NUL after each */
    size_t names_used, names_room;
    size_t *starts; /* into names */
    size_t count, room;
    struct packed_state *states;
    int *errors; /* by entry: what lstat answered */
    uint64_t device;
};

static void listing_free(struct listing *listing)
{
    free(listing->names);
    free(listing->starts);
    free(listing->states);
    free(listing->errors);
}

static int by_name(const void *left, const void *right, void *names)
{
    return strcmp((char *)names + *(const size_t *)left, (char *)names + *(const size_t *)right);
}

/* Returns 0, or an errno. The lock is not held. */
static int listing_read(struct listing *listing, int root, const char *path, int is_loose)
{
    char buffer[32 * 1024] __attribute__((aligned(8)));
    struct stat found;
    int problem = 0;
    int descriptor = open_directory(root, path, is_loose);
    if (descriptor < 0)
        return errno;
    if (fstat(descriptor, &found) < 0) {
        problem = errno;
        goto out;
    }
    listing->device = found.st_dev;
    for (;;) {
        long got = syscall(SYS_getdents64, descriptor, buffer, sizeof buffer);
        if (got < 0) {
            problem = errno;
            goto out;
        }
        if (got == 0)
            break;
        for (long at = 0; at < got;) {
            struct kernel_entry *entry = (struct kernel_entry *)(buffer + at);
            size_t length = strlen(entry->name) + 1;
            at += entry->length;
            if (entry->name[0] == '.' && (entry->name[1] == 0 || (entry->name[1] == '.' && entry->name[2] == 0)))
                continue;
            if (listing->names_used + length > listing->names_room) {
                size_t room = listing->names_room * 2 + 4096;
                char *grown = realloc(listing->names, room);
                if (!grown) {
                    problem = ENOMEM;
                    goto out;
                }
                listing->names = grown;
                listing->names_room = room;
            }
            if (listing->count == listing->room) {
                size_t room = listing->room * 2 + 64;
                size_t *grown = realloc(listing->starts, room * sizeof *grown);
                if (!grown) {
                    problem = ENOMEM;
                    goto out;
                }
                listing->starts = grown;
                listing->room = room;
            }
            listing->starts[listing->count++] = listing->names_used;
            memcpy(listing->names + listing->names_used, entry->name, length);
            listing->names_used += length;
        }
    }
    if (listing->count == 0)
        goto out;
    qsort_r(listing->starts, listing->count, sizeof *listing->starts, by_name, listing->names);
    listing->states = malloc(listing->count * sizeof *listing->states);
    listing->errors = calloc(listing->count, sizeof *listing->errors);
    if (!listing->states || !listing->errors) {
        problem = ENOMEM;
        goto out;
    }
    size_t kept = 0;
    for (size_t index = 0; index < listing->count; index++) {
        const char *name = listing->names + listing->starts[index];
        /* A directory that changes while it is read may show an entry twice. */
        if (kept && strcmp(name, listing->names + listing->starts[kept - 1]) == 0)
            continue;
        if (fstatat(descriptor, name, &found, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0) {
            if (errno == ENOENT)
                continue;
            listing->errors[kept] = errno;
            memset(&listing->states[kept], 0, sizeof listing->states[kept]);
        } else {
            listing->errors[kept] = 0;
            pack_state(&listing->states[kept], &found);
        }
        listing->starts[kept++] = listing->starts[index];
    }
    listing->count = kept;
out:
    close(descriptor);
    return problem;
}

static int append_new(PyObject *list, PyObject *item)
{
    if (!item)
        return -1;
    int failed = PyList_Append(list, item);
    Py_DECREF(item);
    return failed;
}

PyDoc_STRVAR(list_directory_doc,
             "list_directory(root_descriptor, path, is_loose) -> (names, states, directories, mounts, problems)\n\n"
             "Return the entries of a directory; see file_queue.list_directory.");

static PyObject *list_directory(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    int root, is_loose;
    const char *path;
    if (!PyArg_ParseTuple(arguments, "iyp", &root, &path, &is_loose))
        return NULL;
    struct listing listing = {0};
    int problem;
    Py_BEGIN_ALLOW_THREADS
    problem = listing_read(&listing, root, path, is_loose);
    Py_END_ALLOW_THREADS
    PyObject *result = NULL, *names = NULL, *states = NULL;
    PyObject *directories = PyList_New(0), *mounts = PyList_New(0), *problems = PyList_New(0);
    if (!directories || !mounts || !problems)
        goto out;
    if (problem) {
        errno = problem;
        PyErr_SetFromErrno(PyExc_OSError);
        goto out;
    }
    size_t good = 0, length = 0;
    for (size_t index = 0; index < listing.count; index++) {
        const char *name = listing.names + listing.starts[index];
        if (listing.errors[index]) {
            if (append_new(problems, Py_BuildValue("yi", name, listing.errors[index])) < 0)
                goto out;
            continue;
        }
        if (S_ISDIR(listing.states[index].mode)) {
            if (append_new(directories, PyBytes_FromString(name)) < 0)
                goto out;
            if (listing.states[index].device != listing.device && append_new(mounts, PyBytes_FromString(name)) < 0)
                goto out;
        }
        listing.starts[good] = listing.starts[index];
        if (good != index)
            listing.states[good] = listing.states[index];
        good++;
        length += strlen(name) + 1;
    }
    names = PyBytes_FromStringAndSize(NULL, length ? (Py_ssize_t)length - 1 : 0);
    states = PyBytes_FromStringAndSize((char *)listing.states, (Py_ssize_t)(good * sizeof *listing.states));
    if (!names || !states)
        goto out;
    char *to = PyBytes_AS_STRING(names);
    for (size_t index = 0; index < good; index++) {
        if (index)
            *to++ = 0;
        const char *name = listing.names + listing.starts[index];
        size_t size = strlen(name);
        memcpy(to, name, size);
        to += size;
    }
    result = PyTuple_Pack(5, names, states, directories, mounts, problems);
out:
    listing_free(&listing);
    Py_XDECREF(names);
    Py_XDECREF(states);
    Py_XDECREF(directories);
    Py_XDECREF(mounts);
    Py_XDECREF(problems);
    return result;
}

PyDoc_STRVAR(mark_xattrs_doc, "mark_xattrs(root_descriptor, path, names, is_loose) -> bytes\n\n"
                              "Return one byte for each name; see file_queue.mark_xattrs.");

static PyObject *mark_xattrs(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    int root, is_loose, problem = 0;
    const char *path;
    PyObject *names;
    if (!PyArg_ParseTuple(arguments, "iySp", &root, &path, &names, &is_loose))
        return NULL;
    Py_ssize_t length = PyBytes_GET_SIZE(names), count = 1;
    const char *text = PyBytes_AS_STRING(names);
    for (Py_ssize_t at = 0; at < length; at++)
        count += text[at] == 0;
    PyObject *marks = PyBytes_FromStringAndSize(NULL, count);
    if (!marks)
        return NULL;
    char *to = PyBytes_AS_STRING(marks);
    Py_BEGIN_ALLOW_THREADS
    int descriptor = open_directory(root, path, is_loose);
    if (descriptor < 0)
        problem = errno;
    else {
        /* There is no llistxattr relative to a directory before Linux 6.13. */
        char place[64 + NAME_MAX * 4];
        const char *name = text;
        for (Py_ssize_t index = 0; index < count; index++, name += strlen(name) + 1) {
            int needed = snprintf(place, sizeof place, "/proc/self/fd/%d/%s", descriptor, name);
            ssize_t size = needed < (int)sizeof place ? llistxattr(place, NULL, 0) : 1;
            to[index] = size > 0 || (size < 0 && errno != ENOENT && errno != ENOTSUP);
        }
        close(descriptor);
    }
    Py_END_ALLOW_THREADS
    if (problem) {
        Py_DECREF(marks);
        errno = problem;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return marks;
}

/* --- hashing
 *
 * Theory of operation. `add` puts a directory on the `waiting` list. Any number of threads are in `run`; each takes the next
 * wanted file of the first waiting directory, hashes it with no lock held, and writes the answer into the directory's
 * arrays. Whoever finishes a directory's last file moves it to the `finished` list, from which `take` gives it back.
 * A directory's descriptor is open from its first file to its last. Everything but the arrays is guarded by `lock`. */

struct directory {
    struct directory *next;
    long long ticket;
    PyObject *path, *names, *states, *wishes; /* read without the interpreter lock: bytes do not change */
    const char *next_name;
    Py_ssize_t next_index, count;
    Py_ssize_t left; /* wanted files that are not answered yet */
    int root, is_loose, descriptor, open_problem;
    uint8_t *outcomes;
    int32_t *problems;
    uint8_t (*digests)[DIGEST_BYTES];
};

struct list {
    struct directory *first, *last;
};

typedef struct {
    PyObject_HEAD
    pthread_mutex_t lock;
    pthread_cond_t more_work, more_answers;
    struct list waiting, finished;
    Py_ssize_t outstanding; /* directories added and not finished */
    int is_closed, is_cancelled, is_ready;
    int may_not_keep_access_time; /* O_NOATIME was refused once: asking each time would double the opens */
    double share;                 /* processor seconds a second; 0 = no bound */
    double window_cpu, window_wall;
    unsigned long long max_content_bytes;
    unsigned long long hashed_count, hashed_bytes, waiting_bytes;
    EVP_MD *algorithm;
    PyObject *new_hasher; /* NULL for SHA-256, which is OpenSSL's; else called in Python */
} HashQueue;

/* One thread's way to hash. For a hash in Python, `thread` is its saved state and `hasher` the running hash. */
struct worker {
    unsigned char *buffer;
    size_t buffer_bytes;
    EVP_MD_CTX *context;
    PyThreadState *thread;
    PyObject *new_hasher, *hasher;
};

static void list_push(struct list *list, struct directory *directory)
{
    directory->next = NULL;
    if (list->last)
        list->last->next = directory;
    else
        list->first = directory;
    list->last = directory;
}

static struct directory *list_pop(struct list *list)
{
    struct directory *directory = list->first;
    if (directory) {
        list->first = directory->next;
        if (!list->first)
            list->last = NULL;
    }
    return directory;
}

static void directory_free(struct directory *directory)
{
    if (!directory)
        return;
    if (directory->descriptor >= 0)
        close(directory->descriptor);
    Py_XDECREF(directory->path);
    Py_XDECREF(directory->names);
    Py_XDECREF(directory->states);
    Py_XDECREF(directory->wishes);
    free(directory->outcomes);
    free(directory->problems);
    free(directory->digests);
    free(directory);
}

static const struct packed_state *state_at(const struct directory *directory, Py_ssize_t index)
{
    return (const struct packed_state *)PyBytes_AS_STRING(directory->states) + index;
}

static int is_wanted(const struct directory *directory, Py_ssize_t index)
{
    return (PyBytes_AS_STRING(directory->wishes)[index] & WISH_CONTENT) && S_ISREG(state_at(directory, index)->mode);
}

static double seconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Sleeps while this process has used more than its share of processor time. Idle time is not saved up for long. */
static void pace(HashQueue *queue)
{
    while (queue->share > 0 && !__atomic_load_n(&queue->is_cancelled, __ATOMIC_RELAXED)) {
        pthread_mutex_lock(&queue->lock);
        double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID), wall = seconds(CLOCK_MONOTONIC);
        double debt = (cpu - queue->window_cpu) - queue->share * (wall - queue->window_wall);
        if (debt < -0.2 * queue->share) {
            queue->window_cpu = cpu;
            queue->window_wall = wall;
        }
        double share = queue->share;
        pthread_mutex_unlock(&queue->lock);
        if (debt <= 0.002)
            return;
        double nap = debt / share < 0.05 ? debt / share : 0.05;
        struct timespec time = {.tv_sec = 0, .tv_nsec = (long)(nap * 1e9)};
        nanosleep(&time, NULL);
    }
}

/* Feeds a running hash in Python, after making it if there is none yet. Returns 0 when Python raised. */
static int foreign_update(struct worker *worker, size_t size)
{
    PyEval_RestoreThread(worker->thread);
    PyObject *view = PyMemoryView_FromMemory((char *)worker->buffer, (Py_ssize_t)size, PyBUF_READ);
    PyObject *result = NULL;
    if (view && !worker->hasher)
        result = worker->hasher = PyObject_CallOneArg(worker->new_hasher, view);
    else if (view && (result = PyObject_CallMethod(worker->hasher, "update", "O", view)))
        Py_DECREF(result);
    Py_XDECREF(view);
    if (!result)
        PyErr_WriteUnraisable(worker->new_hasher);
    worker->thread = PyEval_SaveThread();
    return result != NULL;
}

/* Ends a running hash in Python; `digest` may be NULL when it is not wanted. Returns 0 when Python raised. */
static int foreign_end(struct worker *worker, uint8_t *digest)
{
    int is_good = 1;
    PyEval_RestoreThread(worker->thread);
    if (digest) {
        PyObject *result = PyObject_CallMethod(worker->hasher, "digest", NULL);
        is_good = result && PyBytes_Check(result) && PyBytes_GET_SIZE(result) == DIGEST_BYTES;
        if (is_good)
            memcpy(digest, PyBytes_AS_STRING(result), DIGEST_BYTES);
        else if (!result)
            PyErr_WriteUnraisable(worker->new_hasher);
        Py_XDECREF(result);
    }
    Py_CLEAR(worker->hasher);
    worker->thread = PyEval_SaveThread();
    return is_good;
}

static int hash_begin(HashQueue *queue, struct worker *worker)
{
    return worker->new_hasher || EVP_DigestInit_ex2(worker->context, queue->algorithm, NULL);
}

static int hash_update(struct worker *worker, size_t size)
{
    return worker->new_hasher ? foreign_update(worker, size) : EVP_DigestUpdate(worker->context, worker->buffer, size);
}

static int hash_end(struct worker *worker, uint8_t *digest)
{
    if (!worker->new_hasher)
        return EVP_DigestFinal_ex(worker->context, digest, NULL);
    return (worker->hasher || foreign_update(worker, 0)) && foreign_end(worker, digest);
}

static int answer_of_open(int problem)
{
    return problem == ENOENT || problem == ENOTDIR || problem == ELOOP ? VANISHED : UNREADABLE;
}

static int is_same(int descriptor, const struct packed_state *expected, int *is_regular)
{
    struct stat found;
    struct packed_state now;
    if (fstat(descriptor, &found) < 0)
        return 0;
    *is_regular = S_ISREG(found.st_mode);
    pack_state(&now, &found);
    return memcmp(&now, expected, sizeof now) == 0;
}

static enum outcome hash_file(HashQueue *queue, struct worker *worker, int directory, const char *name,
                              const struct packed_state *expected, uint8_t *digest, int32_t *problem)
{
    const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY;
    enum outcome outcome = UNREADABLE;
    int is_regular = 0, descriptor = -1;
    if (queue->max_content_bytes && expected->size > queue->max_content_bytes)
        return TOO_LARGE;
    if (!__atomic_load_n(&queue->may_not_keep_access_time, __ATOMIC_RELAXED)) {
        descriptor = openat(directory, name, flags | O_NOATIME);
        if (descriptor < 0 && errno == EPERM)
            __atomic_store_n(&queue->may_not_keep_access_time, 1, __ATOMIC_RELAXED);
    } else
        errno = EPERM;
    if (descriptor < 0 && errno == EPERM)
        descriptor = openat(directory, name, flags);
    if (descriptor < 0) {
        *problem = errno;
        return answer_of_open(errno);
    }
    if (!is_same(descriptor, expected, &is_regular)) {
        outcome = is_regular ? UNSTABLE : VANISHED;
        goto out;
    }
    if (!hash_begin(queue, worker)) {
        *problem = EIO;
        goto out;
    }
    uint64_t total = 0, paced = 0;
    /* Not one byte more than lstat said is read: a file that grows without end is caught by the second fstat. */
    while (total < expected->size) {
        uint64_t left = expected->size - total;
        ssize_t got = read(descriptor, worker->buffer, left < worker->buffer_bytes ? left : worker->buffer_bytes);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            *problem = errno;
            goto out;
        }
        if (got == 0) {
            outcome = UNSTABLE;
            goto out;
        }
        if (!hash_update(worker, (size_t)got)) {
            *problem = EIO;
            goto out;
        }
        total += (uint64_t)got;
        if (total - paced >= PACE_BYTES) {
            paced = total;
            pace(queue);
            if (__atomic_load_n(&queue->is_cancelled, __ATOMIC_RELAXED))
                goto out;
        }
    }
    if (!hash_end(worker, digest)) {
        *problem = EIO;
        goto out;
    }
    outcome = is_same(descriptor, expected, &is_regular) ? HASHED : UNSTABLE;
out:
    if (worker->hasher)
        foreign_end(worker, NULL);
    close(descriptor);
    return outcome;
}

/* Waits for the next wanted file; returns its directory, or NULL when there will be none. Called with the lock held. */
static struct directory *next_file(HashQueue *queue, Py_ssize_t *index, const char **name)
{
    while (!queue->is_cancelled) {
        struct directory *directory = queue->waiting.first;
        if (!directory) {
            if (queue->is_closed)
                return NULL;
            pthread_cond_wait(&queue->more_work, &queue->lock);
            continue;
        }
        while (!is_wanted(directory, directory->next_index)) {
            directory->next_name += strlen(directory->next_name) + 1;
            directory->next_index++;
        }
        *index = directory->next_index++;
        *name = directory->next_name;
        directory->next_name += strlen(directory->next_name) + 1;
        Py_ssize_t ahead = directory->next_index;
        while (ahead < directory->count && !is_wanted(directory, ahead))
            ahead++;
        if (ahead == directory->count)
            list_pop(&queue->waiting);
        if (directory->descriptor == -1) {
            directory->descriptor = open_directory(directory->root, PyBytes_AS_STRING(directory->path), directory->is_loose);
            directory->open_problem = directory->descriptor < 0 ? errno : 0;
            if (directory->descriptor < 0)
                directory->descriptor = -2;
        }
        return directory;
    }
    return NULL;
}

static void work(HashQueue *queue, struct worker *worker)
{
    Py_ssize_t index;
    const char *name;
    struct directory *directory;
    uint64_t unpaced = 0;
    pthread_mutex_lock(&queue->lock);
    while ((directory = next_file(queue, &index, &name))) {
        pthread_mutex_unlock(&queue->lock);
        const struct packed_state *expected = state_at(directory, index);
        enum outcome outcome;
        if (directory->descriptor < 0) {
            outcome = answer_of_open(directory->open_problem);
            directory->problems[index] = directory->open_problem;
        } else
            outcome = hash_file(queue, worker, directory->descriptor, name, expected, directory->digests[index],
                                &directory->problems[index]);
        directory->outcomes[index] = (uint8_t)outcome;
        unpaced += expected->size + 16 * 1024; /* opening and closing costs about what so many bytes do */
        if (unpaced >= PACE_BYTES) {
            unpaced = 0;
            pace(queue);
        }
        pthread_mutex_lock(&queue->lock);
        if (outcome == HASHED) {
            queue->hashed_count++;
            queue->hashed_bytes += expected->size;
        }
        queue->waiting_bytes -= expected->size;
        if (--directory->left == 0) {
            if (directory->descriptor >= 0)
                close(directory->descriptor);
            directory->descriptor = -2;
            queue->outstanding--;
            list_push(&queue->finished, directory);
            pthread_cond_broadcast(&queue->more_answers);
        }
    }
    pthread_cond_broadcast(&queue->more_answers);
    pthread_mutex_unlock(&queue->lock);
}

static int queue_init(PyObject *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"share", "max_content_bytes", "new_hasher", NULL};
    PyObject *new_hasher = Py_None;
    HashQueue *queue = (HashQueue *)self;
    double share = 0;
    unsigned long long max_content_bytes = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "|dKO", names, &share, &max_content_bytes, &new_hasher))
        return -1;
    if (queue->is_ready) {
        PyErr_SetString(PyExc_RuntimeError, "the queue is set up already");
        return -1;
    }
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->more_work, NULL);
    pthread_cond_init(&queue->more_answers, NULL);
    queue->algorithm = EVP_MD_fetch(NULL, "SHA256", NULL);
    if (!queue->algorithm) {
        PyErr_SetString(PyExc_RuntimeError, "OpenSSL has no SHA-256");
        return -1;
    }
    queue->new_hasher = new_hasher == Py_None ? NULL : Py_NewRef(new_hasher);
    queue->share = share;
    queue->max_content_bytes = max_content_bytes;
    queue->window_cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    queue->window_wall = seconds(CLOCK_MONOTONIC);
    queue->is_ready = 1;
    return 0;
}

static void queue_dealloc(PyObject *self)
{
    HashQueue *queue = (HashQueue *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (queue->is_ready) {
        struct directory *directory;
        while ((directory = list_pop(&queue->waiting)))
            directory_free(directory);
        while ((directory = list_pop(&queue->finished)))
            directory_free(directory);
        pthread_mutex_destroy(&queue->lock);
        pthread_cond_destroy(&queue->more_work);
        pthread_cond_destroy(&queue->more_answers);
        EVP_MD_free(queue->algorithm);
        Py_XDECREF(queue->new_hasher);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(add_doc, "add(ticket, root_descriptor, path, names, states, wishes, is_loose)\n\n"
                      "Ask for the hashes of a directory's files; see file_queue.HashQueue.");

static PyObject *queue_add(PyObject *self, PyObject *arguments)
{
    HashQueue *queue = (HashQueue *)self;
    long long ticket;
    int root, is_loose;
    PyObject *path, *names, *states, *wishes;
    if (!PyArg_ParseTuple(arguments, "LiSSSSp", &ticket, &root, &path, &names, &states, &wishes, &is_loose))
        return NULL;
    Py_ssize_t count = PyBytes_GET_SIZE(wishes), separators = 0;
    const char *text = PyBytes_AS_STRING(names);
    for (Py_ssize_t at = 0; at < PyBytes_GET_SIZE(names); at++)
        separators += text[at] == 0;
    if (PyBytes_GET_SIZE(states) != count * (Py_ssize_t)sizeof(struct packed_state) || (count && separators != count - 1)) {
        PyErr_Format(PyExc_ValueError, "%zd wishes, %zd names and %zd bytes of states do not fit together", count,
                     separators + 1, PyBytes_GET_SIZE(states));
        return NULL;
    }
    struct directory *directory = calloc(1, sizeof *directory);
    if (!directory)
        return PyErr_NoMemory();
    directory->descriptor = -1;
    directory->path = Py_NewRef(path);
    directory->names = Py_NewRef(names);
    directory->states = Py_NewRef(states);
    directory->wishes = Py_NewRef(wishes);
    directory->outcomes = calloc((size_t)count + 1, 1);
    directory->problems = calloc((size_t)count + 1, sizeof *directory->problems);
    directory->digests = malloc(((size_t)count + 1) * DIGEST_BYTES);
    if (!directory->outcomes || !directory->problems || !directory->digests) {
        directory_free(directory);
        return PyErr_NoMemory();
    }
    directory->ticket = ticket;
    directory->next_name = text;
    directory->count = count;
    directory->root = root;
    directory->is_loose = is_loose;
    unsigned long long bytes = 0;
    for (Py_ssize_t index = 0; index < count; index++)
        if (is_wanted(directory, index)) {
            directory->left++;
            bytes += state_at(directory, index)->size;
        }
    pthread_mutex_lock(&queue->lock);
    if (directory->left) {
        queue->outstanding++;
        queue->waiting_bytes += bytes;
        list_push(&queue->waiting, directory);
        if (directory->left > 1)
            pthread_cond_broadcast(&queue->more_work);
        else
            pthread_cond_signal(&queue->more_work);
    } else {
        list_push(&queue->finished, directory);
        pthread_cond_broadcast(&queue->more_answers);
    }
    pthread_mutex_unlock(&queue->lock);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(run_doc, "run()\n\nHash until the queue is closed and empty, or cancelled. For any number of threads at once.");

static PyObject *queue_run(PyObject *self, PyObject *Py_UNUSED(arguments))
{
    HashQueue *queue = (HashQueue *)self;
    struct worker worker = {.new_hasher = queue->new_hasher};
    worker.buffer_bytes = queue->new_hasher ? FOREIGN_BUFFER_BYTES : BUFFER_BYTES;
    worker.buffer = aligned_alloc(4096, worker.buffer_bytes);
    worker.context = EVP_MD_CTX_new();
    if (!worker.buffer || !worker.context) {
        free(worker.buffer);
        EVP_MD_CTX_free(worker.context);
        return PyErr_NoMemory();
    }
    worker.thread = PyEval_SaveThread();
    work(queue, &worker);
    PyEval_RestoreThread(worker.thread);
    free(worker.buffer);
    EVP_MD_CTX_free(worker.context);
    Py_RETURN_NONE;
}

static PyObject *answer_of(struct directory *directory)
{
    Py_ssize_t hashed = 0;
    int has_problem = 0;
    for (Py_ssize_t index = 0; index < directory->count; index++) {
        hashed += directory->outcomes[index] == HASHED;
        has_problem |= directory->problems[index];
    }
    PyObject *digests = PyBytes_FromStringAndSize(NULL, hashed * DIGEST_BYTES);
    if (!digests)
        return NULL;
    char *to = PyBytes_AS_STRING(digests);
    for (Py_ssize_t index = 0; index < directory->count; index++)
        if (directory->outcomes[index] == HASHED) {
            memcpy(to, directory->digests[index], DIGEST_BYTES);
            to += DIGEST_BYTES;
        }
    Py_ssize_t problem_bytes = has_problem ? directory->count * (Py_ssize_t)sizeof *directory->problems : 0;
    return Py_BuildValue("Ly#Ny#", directory->ticket, directory->outcomes, directory->count, digests, directory->problems,
                         problem_bytes);
}

PyDoc_STRVAR(take_doc, "take(wait_seconds) -> list of (ticket, outcomes, digests, problems)\n\n"
                       "Return what is finished; waits so long for the first when there is work outstanding.");

static PyObject *queue_take(PyObject *self, PyObject *arguments)
{
    HashQueue *queue = (HashQueue *)self;
    double wait_seconds;
    if (!PyArg_ParseTuple(arguments, "d", &wait_seconds))
        return NULL;
    struct list finished;
    double until = seconds(CLOCK_REALTIME) + wait_seconds;
    struct timespec deadline = {.tv_sec = (time_t)until, .tv_nsec = (long)((until - (double)(time_t)until) * 1e9)};
    int is_late = wait_seconds <= 0;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&queue->lock);
    while (!is_late && !queue->finished.first && queue->outstanding && !queue->is_cancelled)
        is_late = pthread_cond_timedwait(&queue->more_answers, &queue->lock, &deadline) != 0;
    finished = queue->finished;
    queue->finished.first = queue->finished.last = NULL;
    pthread_mutex_unlock(&queue->lock);
    Py_END_ALLOW_THREADS
    PyObject *result = PyList_New(0);
    struct directory *directory;
    while ((directory = list_pop(&finished))) {
        if (result && append_new(result, answer_of(directory)) < 0)
            Py_CLEAR(result);
        directory_free(directory);
    }
    return result;
}

PyDoc_STRVAR(pace_doc, "pace()\n\nSleep while this process has used more processor time than its share.");

static PyObject *queue_pace(PyObject *self, PyObject *Py_UNUSED(arguments))
{
    Py_BEGIN_ALLOW_THREADS
    pace((HashQueue *)self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *queue_end(HashQueue *queue, int is_cancelled)
{
    pthread_mutex_lock(&queue->lock);
    queue->is_closed = 1;
    if (is_cancelled)
        __atomic_store_n(&queue->is_cancelled, 1, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&queue->more_work);
    pthread_cond_broadcast(&queue->more_answers);
    pthread_mutex_unlock(&queue->lock);
    Py_RETURN_NONE;
}

static PyObject *queue_close(PyObject *self, PyObject *Py_UNUSED(arguments))
{
    return queue_end((HashQueue *)self, 0);
}

static PyObject *queue_cancel(PyObject *self, PyObject *Py_UNUSED(arguments))
{
    return queue_end((HashQueue *)self, 1);
}

PyDoc_STRVAR(counts_doc, "counts() -> (hashed files, hashed bytes, outstanding directories, bytes waiting)");

static PyObject *queue_counts(PyObject *self, PyObject *Py_UNUSED(arguments))
{
    HashQueue *queue = (HashQueue *)self;
    pthread_mutex_lock(&queue->lock);
    unsigned long long count = queue->hashed_count, bytes = queue->hashed_bytes, waiting = queue->waiting_bytes;
    Py_ssize_t outstanding = queue->outstanding;
    pthread_mutex_unlock(&queue->lock);
    return Py_BuildValue("KKnK", count, bytes, outstanding, waiting);
}

static PyMethodDef queue_methods[] = {
    {"add", queue_add, METH_VARARGS, add_doc},
    {"run", queue_run, METH_NOARGS, run_doc},
    {"take", queue_take, METH_VARARGS, take_doc},
    {"pace", queue_pace, METH_NOARGS, pace_doc},
    {"close", queue_close, METH_NOARGS, PyDoc_STR("close()\n\nNothing more will be added.")},
    {"cancel", queue_cancel, METH_NOARGS, PyDoc_STR("cancel()\n\nStop soon; what is not answered yet never will be.")},
    {"counts", queue_counts, METH_NOARGS, counts_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot queue_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("HashQueue(share=0.0, max_content_bytes=0, new_hasher=None)\n\nSee file_queue.HashQueue.")},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, queue_init},
    {Py_tp_dealloc, queue_dealloc},
    {Py_tp_methods, queue_methods},
    {0, NULL},
};

static PyType_Spec queue_spec = {
    .name = "keibi.agent.linux._files.HashQueue",
    .basicsize = sizeof(HashQueue),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = queue_slots,
};

static int module_exec(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &queue_spec, NULL);
    return type ? PyModule_AddObjectRef(module, "HashQueue", type) + (Py_DECREF(type), 0) : -1;
}

static PyMethodDef module_methods[] = {
    {"list_directory", list_directory, METH_VARARGS, list_directory_doc},
    {"mark_xattrs", mark_xattrs, METH_VARARGS, mark_xattrs_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_files",
    .m_doc = "Lists directories and hashes files with the interpreter lock released.",
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__files(void)
{
    return PyModuleDef_Init(&module_definition);
}
