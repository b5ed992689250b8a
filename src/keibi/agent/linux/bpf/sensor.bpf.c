// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Who runs: a map from process id to executable, kept since before a process can do anything, so that even one that lived for
// less than a millisecond has a name. On request also tells of programs that start or end, and of TCP ports that open or close.
//
// The kernel's types are declared here with only the fields that are used; the loader finds their real places (CO-RE). So this
// needs neither the headers nor the type information of the kernel it is built on.

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

enum { BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_PERCPU_ARRAY = 6, BPF_MAP_TYPE_LRU_HASH = 9, BPF_MAP_TYPE_RINGBUF = 27 };
enum { BPF_ANY = 0 };

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct qstr {
	const unsigned char *name;
};
struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
};
struct vfsmount {
	struct dentry *mnt_root;
};
struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};
struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};
struct file {
	struct path f_path;
};
struct mm_struct {
	struct file *exe_file;
};
typedef struct {
	__u32 val;
} kuid_t;
struct cred {
	kuid_t euid;
};
typedef struct {
	int counter;
} atomic_t;
struct signal_struct {
	atomic_t live;
};
struct task_struct {
	int pid;
	int tgid;
	struct task_struct *real_parent;
	struct mm_struct *mm;
	const struct cred *cred;
	kuid_t loginuid;
	struct signal_struct *signal;
};
struct linux_binprm;
struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};
struct ns_common {
	__u32 inum;
};
struct net {
	struct ns_common ns;
};
typedef struct {
	struct net *net;
} possible_net_t;
struct sock_common {
	__u32 skc_rcv_saddr;
	__u16 skc_num;
	__u16 skc_family;
	struct in6_addr skc_v6_rcv_saddr;
	possible_net_t skc_net;
};
struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};

#pragma clang attribute pop

#define PATH_BYTES 512 // a power of two: the verifier follows a mask, not a comparison
#define NAME_BYTES 256
#define MAX_COMPONENTS 40
#define PROCESS_STARTED 1
#define PROCESS_ENDED 2
#define PORT_OPENED 3
#define PORT_CLOSED 4
#define TCP_LISTEN 10
#define IPPROTO_TCP 6
#define AF_INET6 10

// Read by exec_map.py (_PROCESS) in this order.
struct process {
	__u32 kind;
	__u32 pid;
	__u32 parent;
	__u32 uid;
	__u32 login_uid;
	__u32 path_bytes; // components, innermost first, each ended by a NUL; PATH_BYTES or more: cut short
	__u64 since_ns;
	__u64 cgroup_id;
	char path[PATH_BYTES];
};

struct scratch {
	struct process process;
	char slack[NAME_BYTES]; // the last component may be written beyond `path`; it is not copied into the map
};

// Read by exec_map.py (_PORT) in this order.
struct port {
	__u32 kind;
	__u32 pid;
	__u32 net_namespace;
	__u16 family;
	__u16 number;
	__u8 address[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct process);
} processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} happenings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

static __always_inline void tell(void *record, __u64 size)
{
	if (bpf_ringbuf_output(&happenings, record, size, 0)) {
		__u32 zero = 0;
		__u64 *count = bpf_map_lookup_elem(&lost, &zero);
		if (count)
			__sync_fetch_and_add(count, 1);
	}
}

static __always_inline struct scratch *take_scratch(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&scratches, &zero);
}

static __always_inline void write_path(struct process *process, struct file *file)
{
	struct dentry *dentry = BPF_CORE_READ(file, f_path.dentry);
	struct vfsmount *shown = BPF_CORE_READ(file, f_path.mnt);
	__u64 inside = bpf_core_field_offset(struct mount, mnt);
	struct mount *mount = (void *)shown - inside;
	__u32 length = 0;

	for (int i = 0; i < MAX_COMPONENTS; i++) {
		struct dentry *parent = BPF_CORE_READ(dentry, d_parent);
		if (dentry == BPF_CORE_READ(shown, mnt_root) || dentry == parent) {
			struct mount *above = BPF_CORE_READ(mount, mnt_parent);
			if (above == mount || !above) {
				process->path_bytes = length;
				return;
			}
			dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			mount = above;
			shown = (void *)mount + inside;
			continue;
		}
		const unsigned char *name = BPF_CORE_READ(dentry, d_name.name);
		int written = bpf_probe_read_kernel_str(&process->path[length & (PATH_BYTES - 1)], NAME_BYTES, name);
		if (written <= 0)
			break;
		length += written;
		if (length >= PATH_BYTES)
			break;
		dentry = parent;
	}
	process->path_bytes = PATH_BYTES + length;
}

static __always_inline void write_process(struct process *process, struct task_struct *task, __u32 parent)
{
	process->kind = PROCESS_STARTED;
	process->pid = BPF_CORE_READ(task, tgid);
	process->parent = parent;
	process->uid = BPF_CORE_READ(task, cred, euid.val);
	process->login_uid = bpf_core_field_exists(task->loginuid) ? BPF_CORE_READ(task, loginuid.val) : -1;
	process->since_ns = bpf_ktime_get_ns();
	process->cgroup_id = bpf_get_current_cgroup_id();
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(note_exec, struct task_struct *task, int old_pid, struct linux_binprm *program)
{
	struct scratch *scratch = take_scratch();
	struct file *file = BPF_CORE_READ(task, mm, exe_file);
	if (!scratch || !file)
		return 0;
	write_process(&scratch->process, task, BPF_CORE_READ(task, real_parent, tgid));
	write_path(&scratch->process, file);
	__u32 pid = scratch->process.pid;
	bpf_map_update_elem(&processes, &pid, &scratch->process, BPF_ANY);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(note_fork, struct task_struct *parent, struct task_struct *child)
{
	__u32 pid = BPF_CORE_READ(child, tgid), parent_pid = BPF_CORE_READ(parent, tgid);
	if (pid != (__u32)BPF_CORE_READ(child, pid))
		return 0; // a thread
	struct scratch *scratch = take_scratch();
	if (!scratch)
		return 0;
	struct process *known = bpf_map_lookup_elem(&processes, &parent_pid);
	if (known) {
		bpf_probe_read_kernel(&scratch->process, sizeof(struct process), known);
	} else {
		struct file *file = BPF_CORE_READ(child, mm, exe_file);
		if (!file)
			return 0; // a kernel thread
		write_path(&scratch->process, file);
	}
	write_process(&scratch->process, child, parent_pid);
	bpf_map_update_elem(&processes, &pid, &scratch->process, BPF_ANY);
	return 0;
}

// Attached after note_exec, so that the map already knows the process.
SEC("tp_btf/sched_process_exec")
int BPF_PROG(tell_exec, struct task_struct *task, int old_pid, struct linux_binprm *program)
{
	__u32 pid = BPF_CORE_READ(task, tgid);
	struct process *known = bpf_map_lookup_elem(&processes, &pid);
	if (known)
		tell(known, sizeof(struct process));
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(tell_exit, struct task_struct *task)
{
	if (BPF_CORE_READ(task, signal, live.counter) > 0)
		return 0; // other threads live on
	__u32 pid = BPF_CORE_READ(task, tgid);
	struct process *known = bpf_map_lookup_elem(&processes, &pid);
	struct scratch *scratch = take_scratch();
	if (!known || !scratch)
		return 0;
	bpf_probe_read_kernel(&scratch->process, sizeof(struct process), known);
	scratch->process.kind = PROCESS_ENDED;
	tell(&scratch->process, sizeof(struct process));
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tell_port, const struct sock *socket, int before, int after)
{
	if ((before == TCP_LISTEN) == (after == TCP_LISTEN) || BPF_CORE_READ(socket, sk_protocol) != IPPROTO_TCP)
		return 0;
	struct port port = {};
	port.kind = after == TCP_LISTEN ? PORT_OPENED : PORT_CLOSED;
	port.pid = bpf_get_current_pid_tgid() >> 32;
	port.net_namespace = BPF_CORE_READ(socket, __sk_common.skc_net.net, ns.inum);
	port.family = BPF_CORE_READ(socket, __sk_common.skc_family);
	port.number = BPF_CORE_READ(socket, __sk_common.skc_num);
	if (port.family == AF_INET6)
		BPF_CORE_READ_INTO(&port.address, socket, __sk_common.skc_v6_rcv_saddr.in6_u.u6_addr8);
	else
		BPF_CORE_READ_INTO((__u32 *)&port.address, socket, __sk_common.skc_rcv_saddr);
	tell(&port, sizeof(port));
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
