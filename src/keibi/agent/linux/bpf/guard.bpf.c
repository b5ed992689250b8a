// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// What fanotify cannot see: programs on file systems that the gate has not marked (memfd, a fresh tmpfs in a new namespace), libraries
// that are mapped rather than executed, and stores through a shared mapping after the approval. And it keeps the agent's processes
// from signals and tracing, and what it keeps on disk from being written by others.
//
// Two levels from one object. *A*: BPF LSM programs refuse before it happens. *B*: where only tracing programs load, a program that
// nobody approved is killed when its execution has begun and before its first instruction. The gate fills the maps; when it has
// not said for a while that it lives (`alive_until_ns`), everything is allowed: a dead agent must not stop a computer.
//
// Types are declared with only the fields that are used; the loader finds their real places (CO-RE).

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;

enum { BPF_MAP_TYPE_HASH = 1, BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_LRU_HASH = 9, BPF_MAP_TYPE_RINGBUF = 27 };
enum { BPF_ANY = 0, BPF_F_NO_PREALLOC = 1 };

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct qstr {
	const unsigned char *name;
};
struct inode;
struct dentry {
	struct qstr d_name;
	struct dentry *d_parent;
	struct inode *d_inode;
};
struct vfsmount {
	int mnt_flags;
};
struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};
struct super_block {
	__u32 s_dev;
};
struct inode {
	struct super_block *i_sb;
	unsigned long i_ino;
	__u16 i_mode;
};
struct file {
	struct inode *f_inode;
	struct path f_path;
	unsigned int f_mode;
};
struct linux_binprm {
	struct file *file;
};
struct vm_area_struct {
	struct file *vm_file;
};
struct task_struct {
	int pid;
	int tgid;
};
struct bpf_map {
	__u32 id;
};
struct kernel_siginfo;
struct cred;
struct rlimit;

#pragma clang attribute pop

#define ENFORCE 2
// A file's state. No state on a gated file system: fanotify has answered, or answers, for it.
#define APPROVED 1
#define TAINTED 2 // opened for writing since the approval, so that it may change without a further call
#define REFUSED 4 // may be read and copied, but neither run nor mapped as code
// A file system's state.
#define GATED 1
#define MEMORY 2 // of memfd_create: mapped as code by honest runtimes, as anonymous memory is, and so only its execution is judged
#define LEFT 3 // the gate knows it, and does not watch it: the policy leaves it out, or the kernel cannot
// An own process's state.
#define OWN 1
#define CORE 2 // may be asked to stop
#define PROT_EXEC 4
#define FMODE_WRITE 2
#define SIGINT 2
#define SIGKILL 9
#define SIGTERM 15
#define SIGCONT 18
#define EPERM 1
#define PTRACE_MODE_ATTACH 2
#define MNT_INTERNAL 0x4000 // the kernel's own mount, that no path leads to
#define S_IFMT 0170000
#define S_IFREG 0100000
// So long after somebody asked the core to stop may the agent's processes be ended by anybody who may signal them.
#define STOPPING_NS 10000000000ULL
#define MOST_STEPS 12 // from a file up to a guarded directory

#define KIND_EXEC 1
#define KIND_MAP 2
#define KIND_SIGNAL 3
#define KIND_PTRACE 4
#define KIND_WRITE 5 // of what the agent keeps
#define KIND_CONTROL 6 // of this guard's own maps

// Written by guard.py (_SETTINGS) in this order.
struct settings {
	__u64 alive_until_ns; // CLOCK_MONOTONIC
	__u64 scope_cgroup; // only tasks below this cgroup; 0: all
	__u32 scope_level;
	__u32 mode; // 0 off, 1 report, ENFORCE
	__u32 judges_maps; // whether executable mappings are judged (level A)
	__u32 protects; // whether the agent's processes and what it keeps are protected (level A)
};
// Written by guard_maps.py (_STATE) in this order.
struct file_state {
	__u64 epoch; // a state of another epoch than the one in force is none
	__u32 flags;
	__u32 unused;
};
struct file_key {
	__u64 inode;
	__u32 device; // the kernel's own encoding: major << 20 | minor
	__u32 unused;
};
// Read by guard.py (_HAPPENING) in this order.
struct happening {
	__u32 kind;
	__u32 pid;
	__u64 inode;
	__u32 device;
	__u16 was_refused;
	__u16 flags; // of the file
	__u8 name[64];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
} devices SEC(".maps");

struct {
	// The oldest go when it is full: a file without a state is fanotify's alone.
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct file_key);
	__type(value, struct file_state);
} files SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} epoch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, __u32);
} own SEC(".maps"); // the agent's processes; their children are its too

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct file_key);
	__type(value, __u32);
} guarded SEC(".maps"); // directories and files that only the agent's processes may change

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32);
	__type(key, __u32);
	__type(value, __u32);
} own_maps SEC(".maps"); // by id

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} stop_asked SEC(".maps"); // when, CLOCK_MONOTONIC

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} happenings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

static __always_inline struct settings *in_force(void)
{
	__u32 zero = 0;
	struct settings *now = bpf_map_lookup_elem(&settings, &zero);
	if (!now || !now->mode || bpf_ktime_get_ns() > now->alive_until_ns)
		return 0;
	if (now->scope_cgroup && bpf_get_current_ancestor_cgroup_id(now->scope_level) != now->scope_cgroup)
		return 0;
	return now;
}

static __always_inline void identify_inode(struct inode *inode, struct file_key *key)
{
	key->inode = BPF_CORE_READ(inode, i_ino);
	key->device = BPF_CORE_READ(inode, i_sb, s_dev);
	key->unused = 0;
}

static __always_inline void identify(struct file *file, struct file_key *key)
{
	identify_inode(BPF_CORE_READ(file, f_inode), key);
}

static __always_inline struct file_state *state_of(const struct file_key *key)
{
	__u32 zero = 0;
	__u64 *now = bpf_map_lookup_elem(&epoch, &zero);
	struct file_state *state = bpf_map_lookup_elem(&files, key);
	return state && now && state->epoch == *now ? state : 0;
}

static __always_inline void tell(__u32 kind, const struct file_key *key, struct dentry *dentry, bool was_refused, __u32 flags)
{
	struct happening *told = bpf_ringbuf_reserve(&happenings, sizeof(*told), 0);
	if (!told) {
		__u32 zero = 0;
		__u64 *count = bpf_map_lookup_elem(&lost, &zero);
		if (count)
			__sync_fetch_and_add(count, 1);
		return;
	}
	told->kind = kind;
	told->pid = bpf_get_current_pid_tgid() >> 32;
	told->inode = key ? key->inode : 0;
	told->device = key ? key->device : 0;
	told->was_refused = was_refused;
	told->flags = flags;
	told->name[0] = 0;
	if (dentry) {
		const unsigned char *name = BPF_CORE_READ(dentry, d_name.name);
		bpf_probe_read_kernel_str(told->name, sizeof(told->name), name);
	}
	bpf_ringbuf_submit(told, 0);
}

// As a branch: of a number worked out from the condition, newer kernels do not see that it is one that a hook may return.
static __always_inline int answer(bool refuses)
{
	int answer = 0;
	if (refuses) {
		answer = -EPERM;
		barrier_var(answer);
	}
	return answer;
}

// An exec on a marked file system was answered by fanotify before it came here; only what has changed since then is ours.
static __always_inline bool may_execute(const struct file_key *key, __u32 *flags)
{
	struct file_state *state = state_of(key);
	*flags = state ? state->flags : 0;
	if (state)
		return !(*flags & (TAINTED | REFUSED));
	__u32 device = key->device;
	__u32 *known = bpf_map_lookup_elem(&devices, &device);
	return known && *known != MEMORY;
}

static __always_inline int judge_execution(struct linux_binprm *bprm)
{
	struct settings *now = in_force();
	struct file_key key;
	__u32 flags;
	if (!now)
		return 0;
	struct file *file = BPF_CORE_READ(bprm, file);
	identify(file, &key);
	if (may_execute(&key, &flags))
		return 0;
	bool refuses = now->mode == ENFORCE;
	tell(KIND_EXEC, &key, BPF_CORE_READ(file, f_path.dentry), refuses, flags);
	return answer(refuses);
}

// ---- level B

SEC("tp_btf/sched_process_exec")
int BPF_PROG(kill_unapproved, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	if (judge_execution(bprm))
		bpf_send_signal(SIGKILL);
	return 0;
}

// ---- level A

SEC("lsm/bprm_check_security")
int BPF_PROG(refuse_exec, struct linux_binprm *bprm, int ret)
{
	return ret ? ret : judge_execution(bprm);
}

static __always_inline int judge_mapping(struct file *file)
{
	struct settings *now = in_force();
	struct file_key key;
	__u32 flags = 0;
	// Devices are no files; nor is what only the kernel has mounted: memory, however it is asked for.
	if (!now || !now->judges_maps || !file || (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFREG)
		return 0;
	identify(file, &key);
	struct file_state *state = state_of(&key);
	__u32 device = key.device;
	if (state) {
		flags = state->flags;
		if (!(flags & (TAINTED | REFUSED)))
			return 0;
	} else if (bpf_map_lookup_elem(&devices, &device) || BPF_CORE_READ(file, f_path.mnt, mnt_flags) & MNT_INTERNAL) {
		return 0;
	}
	bool refuses = now->mode == ENFORCE;
	tell(KIND_MAP, &key, BPF_CORE_READ(file, f_path.dentry), refuses, flags);
	return answer(refuses);
}

SEC("lsm/mmap_file")
int BPF_PROG(refuse_map, struct file *file, unsigned long reqprot, unsigned long prot, unsigned long flags, int ret)
{
	return ret || !(prot & PROT_EXEC) ? ret : judge_mapping(file);
}

SEC("lsm/file_mprotect")
int BPF_PROG(refuse_protect, struct vm_area_struct *area, unsigned long reqprot, unsigned long prot, int ret)
{
	if (ret || !(prot & PROT_EXEC))
		return ret;
	return judge_mapping(BPF_CORE_READ(area, vm_file));
}

static __always_inline __u32 own_state(__u32 pid)
{
	__u32 *state = bpf_map_lookup_elem(&own, &pid);
	return state ? *state : 0;
}

static __always_inline bool is_stopping(void)
{
	__u32 zero = 0;
	__u64 *asked = bpf_map_lookup_elem(&stop_asked, &zero);
	return asked && *asked && bpf_ktime_get_ns() > *asked + STOPPING_NS;
}

// The settings in force where others may not touch what is the agent's; 0 for the agent itself, and for PID 1, which stops services.
static __always_inline struct settings *protecting(void)
{
	__u32 me = bpf_get_current_pid_tgid() >> 32;
	struct settings *now = in_force();
	return now && now->protects && me > 1 && !own_state(me) ? now : 0;
}

static __always_inline int refuse_change(struct dentry *dentry)
{
	struct settings *now = protecting();
	struct file_key key, first = {};
	struct dentry *at = dentry;
	if (!now)
		return 0;
	for (int step = 0; step < MOST_STEPS; step++) {
		struct inode *inode = BPF_CORE_READ(at, d_inode);
		if (inode) {
			identify_inode(inode, &key);
			if (!step)
				first = key;
			if (bpf_map_lookup_elem(&guarded, &key)) {
				bool refuses = now->mode == ENFORCE && !is_stopping();
				tell(KIND_WRITE, &first, dentry, refuses, 0);
				return answer(refuses);
			}
		}
		struct dentry *parent = BPF_CORE_READ(at, d_parent);
		if (!parent || parent == at)
			return 0;
		at = parent;
	}
	return 0;
}

// Whoever opens an approved file for writing may store into it later without a further call: so the approval ends here.
SEC("lsm/file_open")
int BPF_PROG(taint_written, struct file *file, int ret)
{
	struct file_key key;
	if (ret || !(BPF_CORE_READ(file, f_mode) & FMODE_WRITE))
		return ret;
	identify(file, &key);
	struct file_state *state = state_of(&key);
	if (state)
		state->flags |= TAINTED;
	return refuse_change(BPF_CORE_READ(file, f_path.dentry));
}

SEC("lsm/inode_unlink")
int BPF_PROG(refuse_unlink, struct inode *directory, struct dentry *dentry, int ret)
{
	return ret ? ret : refuse_change(dentry);
}

SEC("lsm/inode_rmdir")
int BPF_PROG(refuse_rmdir, struct inode *directory, struct dentry *dentry, int ret)
{
	return ret ? ret : refuse_change(dentry);
}

SEC("lsm/inode_rename")
int BPF_PROG(refuse_rename, struct inode *from, struct dentry *old, struct inode *to, struct dentry *new, int ret)
{
	if (ret)
		return ret;
	int refused = refuse_change(old);
	return refused ? refused : refuse_change(BPF_CORE_READ(new, d_parent));
}

SEC("lsm/path_truncate")
int BPF_PROG(refuse_truncate, const struct path *path, int ret)
{
	return ret ? ret : refuse_change(BPF_CORE_READ(path, dentry));
}

static __always_inline int protect(struct task_struct *victim, __u32 kind, int signal)
{
	__u32 state = own_state(BPF_CORE_READ(victim, tgid)), zero = 0;
	struct settings *now = state ? protecting() : 0;
	if (!now)
		return 0;
	bool refuses = now->mode == ENFORCE && !is_stopping();
	if (state & CORE && (signal == SIGTERM || signal == SIGINT)) {
		__u64 *asked = bpf_map_lookup_elem(&stop_asked, &zero);
		if (asked && !*asked)
			*asked = bpf_ktime_get_ns();
		refuses = 0;
	}
	tell(kind, 0, 0, refuses, signal);
	return answer(refuses);
}

SEC("lsm/task_kill")
int BPF_PROG(refuse_signal, struct task_struct *victim, struct kernel_siginfo *info, int signal, const struct cred *cred, int ret)
{
	// 0 only asks whether the process is there.
	return ret || !signal || signal == SIGCONT ? ret : protect(victim, KIND_SIGNAL, signal);
}

// A limit of processor time ends a process as a signal does.
SEC("lsm/task_setrlimit")
int BPF_PROG(refuse_limit, struct task_struct *victim, unsigned int resource, struct rlimit *limit, int ret)
{
	return ret ? ret : protect(victim, KIND_SIGNAL, 0);
}

SEC("lsm/ptrace_access_check")
int BPF_PROG(refuse_trace, struct task_struct *child, unsigned int mode, int ret)
{
	return ret || !(mode & PTRACE_MODE_ATTACH) ? ret : protect(child, KIND_PTRACE, 0);
}

// Else whoever may load programs could switch this guard off by its own maps.
SEC("lsm/bpf_map")
int BPF_PROG(refuse_control, struct bpf_map *map, unsigned int mode, int ret)
{
	__u32 id = BPF_CORE_READ(map, id);
	if (ret || !bpf_map_lookup_elem(&own_maps, &id))
		return ret;
	struct settings *now = protecting();
	if (!now)
		return 0;
	bool refuses = now->mode == ENFORCE && !is_stopping();
	tell(KIND_CONTROL, 0, 0, refuses, 0);
	return answer(refuses);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(own_forked, struct task_struct *parent, struct task_struct *child)
{
	__u32 from = BPF_CORE_READ(parent, tgid), pid = BPF_CORE_READ(child, tgid), is_own = OWN;
	if (from != pid && own_state(from))
		bpf_map_update_elem(&own, &pid, &is_own, BPF_ANY);
	return 0;
}

// Not when it exits: its last act is to have its children ended, by a signal of its own.
SEC("tp_btf/sched_process_free")
int BPF_PROG(own_ended, struct task_struct *task)
{
	__u32 pid = BPF_CORE_READ(task, tgid);
	if (BPF_CORE_READ(task, pid) == pid)
		bpf_map_delete_elem(&own, &pid);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
