// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// What fanotify cannot see: programs on file systems that the gate has not marked (memfd, a fresh tmpfs in a new namespace), libraries
// that are mapped rather than executed, and stores through a shared mapping after the approval.
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

enum { BPF_MAP_TYPE_HASH = 1, BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_RINGBUF = 27 };
enum { BPF_ANY = 0, BPF_F_NO_PREALLOC = 1 };

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct qstr {
	const unsigned char *name;
};
struct dentry {
	struct qstr d_name;
};
struct path {
	struct dentry *dentry;
};
struct super_block {
	__u32 s_dev;
};
struct inode {
	struct super_block *i_sb;
	unsigned long i_ino;
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
	int tgid;
};
struct kernel_siginfo;
struct cred;

#pragma clang attribute pop

#define ENFORCE 2
// A file's state. No state on a gated file system: fanotify has answered, or answers, for it.
#define APPROVED 1
#define TAINTED 2 // opened for writing since the approval, so that it may change without a further call
#define REFUSED 4 // may be read and copied, but neither run nor mapped as code
// A file system's state.
#define GATED 1
#define MEMORY 2 // of memfd_create: mapped as code by honest runtimes, as anonymous memory is, and so only its execution is judged
#define PROT_EXEC 4
#define FMODE_WRITE 2
#define SIGKILL 9
#define EPERM 1
#define PTRACE_MODE_ATTACH 2

#define KIND_EXEC 1
#define KIND_MAP 2
#define KIND_SIGNAL 3
#define KIND_PTRACE 4

// Written by guard.py (_SETTINGS) in this order.
struct settings {
	__u64 alive_until_ns; // CLOCK_MONOTONIC
	__u64 scope_cgroup; // only tasks below this cgroup; 0: all
	__u32 scope_level;
	__u32 mode; // 0 off, 1 report, ENFORCE
	__u32 judges_maps; // whether executable mappings are judged (level A)
	__u32 protects; // whether signals and tracing of `own` processes are refused (level A)
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
	__u32 was_refused;
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
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1000000);
	__type(key, struct file_key);
	__type(value, __u32);
} files SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u32);
} own SEC(".maps"); // the agent's processes

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

static __always_inline void identify(struct file *file, struct file_key *key)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	key->inode = BPF_CORE_READ(inode, i_ino);
	key->device = BPF_CORE_READ(inode, i_sb, s_dev);
	key->unused = 0;
}

static __always_inline void tell(__u32 kind, const struct file_key *key, struct file *file, bool was_refused)
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
	told->name[0] = 0;
	if (file) {
		const unsigned char *name = BPF_CORE_READ(file, f_path.dentry, d_name.name);
		bpf_probe_read_kernel_str(told->name, sizeof(told->name), name);
	}
	bpf_ringbuf_submit(told, 0);
}

// An exec on a marked file system was answered by fanotify before it came here; only what has changed since then is ours.
static __always_inline bool may_execute(const struct file_key *key)
{
	__u32 *approval = bpf_map_lookup_elem(&files, key);
	if (approval)
		return !(*approval & (TAINTED | REFUSED));
	__u32 device = key->device;
	__u32 *state = bpf_map_lookup_elem(&devices, &device);
	return state && *state == GATED;
}

// ---- level B

SEC("tp_btf/sched_process_exec")
int BPF_PROG(kill_unapproved, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	struct settings *now = in_force();
	struct file_key key;
	if (!now)
		return 0;
	struct file *file = BPF_CORE_READ(bprm, file);
	identify(file, &key);
	if (may_execute(&key))
		return 0;
	bool kills = now->mode == ENFORCE;
	tell(KIND_EXEC, &key, file, kills);
	if (kills)
		bpf_send_signal(SIGKILL);
	return 0;
}

// ---- level A

SEC("lsm/bprm_check_security")
int BPF_PROG(refuse_exec, struct linux_binprm *bprm, int ret)
{
	struct settings *now = in_force();
	struct file_key key;
	if (ret || !now)
		return ret;
	struct file *file = BPF_CORE_READ(bprm, file);
	identify(file, &key);
	if (may_execute(&key))
		return 0;
	bool refuses = now->mode == ENFORCE;
	tell(KIND_EXEC, &key, file, refuses);
	return refuses ? -EPERM : 0;
}

static __always_inline int judge_mapping(struct file *file)
{
	struct settings *now = in_force();
	struct file_key key;
	if (!now || !now->judges_maps || !file)
		return 0;
	identify(file, &key);
	__u32 *approval = bpf_map_lookup_elem(&files, &key);
	__u32 device = key.device;
	if (approval ? !(*approval & (TAINTED | REFUSED)) : bpf_map_lookup_elem(&devices, &device) != 0)
		return 0;
	bool refuses = now->mode == ENFORCE;
	tell(KIND_MAP, &key, file, refuses);
	return refuses ? -EPERM : 0;
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

// Whoever opens an approved file for writing may store into it later without a further call: so the approval ends here.
SEC("lsm/file_open")
int BPF_PROG(taint_written, struct file *file, int ret)
{
	struct file_key key;
	if (ret || !(BPF_CORE_READ(file, f_mode) & FMODE_WRITE))
		return ret;
	identify(file, &key);
	__u32 *approval = bpf_map_lookup_elem(&files, &key);
	if (approval)
		*approval |= TAINTED;
	return 0;
}

static __always_inline bool is_own(__u32 pid)
{
	return bpf_map_lookup_elem(&own, &pid) != 0;
}

static __always_inline int protect(struct task_struct *victim, __u32 kind)
{
	struct settings *now = in_force();
	__u32 pid = BPF_CORE_READ(victim, tgid), me = bpf_get_current_pid_tgid() >> 32;
	if (!now || !now->protects || !is_own(pid) || is_own(me) || me <= 1)
		return 0;
	tell(kind, 0, 0, 1);
	return -EPERM;
}

SEC("lsm/task_kill")
int BPF_PROG(refuse_signal, struct task_struct *victim, struct kernel_siginfo *info, int signal, const struct cred *cred, int ret)
{
	// 0 only asks whether the process is there.
	return ret || !signal ? ret : protect(victim, KIND_SIGNAL);
}

SEC("lsm/ptrace_access_check")
int BPF_PROG(refuse_trace, struct task_struct *child, unsigned int mode, int ret)
{
	return ret || !(mode & PTRACE_MODE_ATTACH) ? ret : protect(child, KIND_PTRACE);
}

char LICENSE[] SEC("license") = "GPL";
