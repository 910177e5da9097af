/*
 * The kernel's side of `doorbell check kvm --arch arm`: runs as /init of a kernel that QEMU boots with an emulated EL2,
 * takes batches of KVM calls from a virtio-serial port and sends back what each of them answered.
 *
 * All words are 64 bits, little-endian. A batch and its answer are framed alike: MAGIC, the number of words that follow,
 * their checksum, the words. A batch begins with the flags below; then come calls: `number of words << 32 | operation`
 * and the arguments. Each call is answered by `number of words << 32 | index`, its result (negative: an errno) and what it
 * read. The index is that of the call in its batch. After each call of a batch the watched calls are made as well; one
 * whose answer is another than the last time is sent, its index marked with WATCHED. The end is a word of all ones.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#define MAGIC 0x4c4c4542524f4f44ull /* "DOORBELL" */
#define END (~0ull)
#define WATCHED (1u << 31) /* of an index in an answer */
#define QUIET (1u << 31) /* of an operation: nothing is looked at after it */

/* Flags of a batch. */
enum {
	NEW_VM = 1, /* ends the VM before, if there is one; the watched calls are forgotten */
	CLEAR_RAM = 2, /* otherwise a new VM finds what the last one left */
};

enum operation {
	CREATE_VCPU,
	INIT_VCPU,
	CREATE_DEVICE,
	SET_ATTR,
	GET_ATTR,
	HAS_ATTR,
	CHECK_EXTENSION,
	IRQ_LINE,
	SIGNAL_MSI,
	SET_ROUTES,
	IRQFD,
	EVENT_WRITE,
	EVENT_READ,
	RAM_WRITE,
	RAM_READ,
	RUN,
	ACKNOWLEDGE,
	END_LAST,
	PENDING_LPIS,
	WATCH,
};

enum {
	MAX_WORDS = 1 << 20, /* of a batch, and of its answer */
	MAX_WATCHED = 256,
	MAX_WATCHED_WORDS = 64,
	VCPUS = 16,
	DEVICES = 8,
	EVENTS = 16,
	NOT_AN_EVENT = 100, /* instead of an eventfd: the descriptor of /dev/kvm */
	MAX_IN_SERVICE = 64,
	RAM_SIZE = 4 << 20,
	RUN_SECONDS = 2,
	SETTLE_US = 300,
};
#define RAM_BASE 0x40000000ull

#define X(n) (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(regs.regs[n]))
#define PC (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(regs.pc))

static int kvm, vm = -1, run_size;
static int vcpus[VCPUS], devices[DEVICES], events[EVENTS];
static struct kvm_run *runs[VCPUS];
static uint8_t *ram;

/* What each vCPU has acknowledged and not ended: the INTID, and above it the group. */
static uint64_t in_service[VCPUS][MAX_IN_SERVICE];
static size_t taken[VCPUS];

static uint64_t request[MAX_WORDS], reply[MAX_WORDS];
static size_t replied;

static struct watched {
	const uint64_t *call;
	size_t words;
	uint64_t last[MAX_WATCHED_WORDS];
} watches[MAX_WATCHED];
static uint64_t watch_list[MAX_WORDS / 16];
static size_t watching;

static void die(const char *what)
{
	fprintf(stderr, "agent: %s: %s\n", what, strerror(errno));
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

/* ---- the VM --------------------------------------------------------------- */

static void close_all(int *list, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (list[i] >= 0)
			close(list[i]);
		list[i] = -1;
	}
}

static void new_vm(int clear)
{
	struct kvm_userspace_memory_region region = {
		.guest_phys_addr = RAM_BASE, .memory_size = RAM_SIZE, .userspace_addr = (uintptr_t)ram,
	};

	for (size_t i = 0; i < VCPUS; i++)
		if (runs[i]) {
			munmap(runs[i], run_size);
			runs[i] = NULL;
		}
	close_all(vcpus, VCPUS);
	close_all(devices, DEVICES);
	close_all(events, EVENTS);
	if (vm >= 0)
		close(vm);
	memset(taken, 0, sizeof(taken));
	watching = 0;
	if (clear && madvise(ram, RAM_SIZE, MADV_DONTNEED))
		die("madvise");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
		die("KVM_CREATE_VM");
	for (size_t i = 0; i < EVENTS; i++)
		events[i] = eventfd(0, EFD_NONBLOCK);
}

/* ---- calls ---------------------------------------------------------------- */

/* What a call answers: a result, and words that it read. */
struct answer {
	int64_t result;
	uint64_t *data;
	size_t words;
};

static int64_t result(long ret)
{
	return ret < 0 ? -errno : ret;
}

static int in(const int *list, size_t count, uint64_t index)
{
	return index < count ? list[index] : -1;
}

static int event(uint64_t index)
{
	return index == NOT_AN_EVENT ? kvm : in(events, EVENTS, index);
}

static int64_t create_vcpu(uint64_t index)
{
	int fd = ioctl(vm, KVM_CREATE_VCPU, index);

	if (fd < 0)
		return -errno;
	if (index >= VCPUS) {
		close(fd);
		return 0;
	}
	vcpus[index] = fd;
	runs[index] = mmap(0, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (runs[index] == MAP_FAILED)
		die("mmap of a vCPU");
	return 0;
}

static int64_t init_vcpu(uint64_t index)
{
	struct kvm_vcpu_init init;

	if (ioctl(vm, KVM_ARM_PREFERRED_TARGET, &init))
		return -errno;
	return result(ioctl(in(vcpus, VCPUS, index), KVM_ARM_VCPU_INIT, &init));
}

static int64_t create_device(uint64_t slot, uint64_t type)
{
	struct kvm_create_device request = { .type = type };

	if (ioctl(vm, KVM_CREATE_DEVICE, &request))
		return -errno;
	if (slot < DEVICES && devices[slot] < 0)
		devices[slot] = request.fd;
	else
		close(request.fd);
	return 0;
}

static int64_t device_attr(unsigned long call, const uint64_t *args, uint64_t *value)
{
	struct kvm_device_attr attribute = { .group = args[1], .attr = args[2], .addr = (uintptr_t)value };

	return result(ioctl(in(devices, DEVICES, args[0]), call, &attribute));
}

static int64_t signal_msi(const uint64_t *args)
{
	struct kvm_msi message = {
		.address_lo = args[0], .address_hi = args[0] >> 32, .data = args[1], .flags = args[2], .devid = args[3],
	};

	return result(ioctl(vm, KVM_SIGNAL_MSI, &message));
}

/* A route is four words: GSI and type, flags, address or chip and pin, data and DeviceID. */
static int64_t set_routes(const uint64_t *args, size_t words)
{
	size_t count = (words - 2) / 4;
	struct kvm_irq_routing *table = calloc(1, sizeof(*table) + count * sizeof(table->entries[0]));
	int64_t ret;

	table->nr = args[0];
	table->flags = args[1];
	for (size_t i = 0; i < count; i++) {
		const uint64_t *word = args + 2 + 4 * i;
		struct kvm_irq_routing_entry *entry = &table->entries[i];

		entry->gsi = word[0];
		entry->type = word[0] >> 32;
		entry->flags = word[1];
		entry->u.msi.address_lo = word[2];
		entry->u.msi.address_hi = word[2] >> 32;
		entry->u.msi.data = word[3];
		entry->u.msi.devid = word[3] >> 32;
	}
	ret = result(ioctl(vm, KVM_SET_GSI_ROUTING, table));
	free(table);
	return ret;
}

/*
 * Lets the kernel's workers do what a call left to them. There is one CPU, on which whoever is not idle goes before us, so
 * that to give it away is enough; a pause besides is for a host that stands still for a while.
 */
static int64_t settled(int64_t ret)
{
	sched_yield();
	usleep(SETTLE_US);
	return ret;
}

static int64_t irqfd(const uint64_t *args)
{
	struct kvm_irqfd request = {
		.fd = event(args[0]), .gsi = args[1], .flags = args[2], .resamplefd = event(args[3]),
	};

	return result(ioctl(vm, KVM_IRQFD, &request));
}

static int in_ram(uint64_t offset, uint64_t bytes)
{
	return offset <= RAM_SIZE && bytes <= RAM_SIZE - offset;
}

/* ---- guests --------------------------------------------------------------- */

static void alarmed(int signal)
{
	(void)signal;
}

static void set_register(int fd, uint64_t id, uint64_t value)
{
	struct kvm_one_reg request = { .id = id, .addr = (uintptr_t)&value };

	if (ioctl(fd, KVM_SET_ONE_REG, &request))
		die("KVM_SET_ONE_REG");
}

/*
 * Runs a vCPU from an address, with its first registers set, up to its next access to memory that is not there. The
 * instruction there must be a NOP: after an exit for a store, the kernel skips one when the vCPU goes on.
 */
static int64_t run(const uint64_t *args, size_t words, struct answer *answer)
{
	struct itimerval limit = { .it_value.tv_sec = RUN_SECONDS };
	const struct itimerval none = { 0 };
	int fd = in(vcpus, VCPUS, args[0]);
	struct kvm_run *run;
	int64_t ret;

	if (fd < 0)
		return -EBADF;
	run = runs[args[0]];
	set_register(fd, PC, args[1]);
	for (size_t i = 2; i < words; i++)
		set_register(fd, X(i - 2), args[i]);
	setitimer(ITIMER_REAL, &limit, NULL);
	ret = result(ioctl(fd, KVM_RUN, 0));
	setitimer(ITIMER_REAL, &none, NULL);
	if (ret < 0)
		return ret;
	if (run->exit_reason != KVM_EXIT_MMIO)
		return run->exit_reason;
	answer->data[0] = run->mmio.phys_addr;
	answer->data[1] = (uint64_t)run->mmio.is_write << 32 | run->mmio.len;
	answer->data[2] = 0;
	memcpy(&answer->data[2], run->mmio.data, sizeof(run->mmio.data));
	answer->words = 3;
	return KVM_EXIT_MMIO;
}

/* The same for code that acknowledges; X0, its third argument, is the group. */
static int64_t acknowledge(const uint64_t *args, size_t words, struct answer *answer)
{
	int64_t ret = run(args, words, answer);
	uint64_t intid = answer->data[2];

	/* 1020 to 1023 say that there is nothing. */
	if (ret == KVM_EXIT_MMIO && (intid < 1020 || intid > 1023) && taken[args[0]] < MAX_IN_SERVICE)
		in_service[args[0]][taken[args[0]]++] = intid | args[2] << 32;
	return ret;
}

/* Ends what a vCPU acknowledged last, if anything, with the code for its group: a vCPU, two addresses, X2. */
static int64_t end_last(const uint64_t *args, struct answer *answer)
{
	uint64_t last;

	if (args[0] >= VCPUS)
		return -EBADF;
	if (!taken[args[0]])
		return 0;
	last = in_service[args[0]][--taken[args[0]]];
	return run((uint64_t[]){ args[0], args[1 + (last >> 32 & 1)], (uint32_t)last, 0, args[3] }, 5, answer);
}

/* ---- pending LPIs --------------------------------------------------------- */

/* Asks for the pending tables, shows parts of them and takes back what was written there. */
static int64_t pending_lpis(const uint64_t *args, size_t words, struct answer *answer)
{
	uint64_t saved[MAX_WATCHED_WORDS];
	int64_t ret;

	for (size_t i = 1; i < words; i++) {
		memcpy(&saved[i], ram + args[i], sizeof(saved[i]));
		memset(ram + args[i], 0, sizeof(saved[i]));
	}
	ret = device_attr(KVM_SET_DEVICE_ATTR,
			  (uint64_t[]){ args[0], KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES }, NULL);
	for (size_t i = 1; i < words; i++) {
		memcpy(&answer->data[answer->words++], ram + args[i], sizeof(saved[i]));
		memcpy(ram + args[i], &saved[i], sizeof(saved[i]));
	}
	return ret;
}

/* ---- batches -------------------------------------------------------------- */

static size_t arguments(enum operation operation)
{
	switch (operation) {
	case CREATE_VCPU:
	case INIT_VCPU:
	case CHECK_EXTENSION:
	case EVENT_READ:
	case PENDING_LPIS:
		return 1;
	case CREATE_DEVICE:
	case IRQ_LINE:
	case SET_ROUTES:
	case EVENT_WRITE:
	case RAM_WRITE:
	case RAM_READ:
	case RUN:
		return 2;
	case GET_ATTR:
	case HAS_ATTR:
	case ACKNOWLEDGE:
		return 3;
	case SET_ATTR:
	case SIGNAL_MSI:
	case IRQFD:
	case END_LAST:
		return 4;
	default:
		return 0;
	}
}

static struct answer call(enum operation operation, const uint64_t *args, size_t words, uint64_t *data)
{
	struct answer answer = { -ENOSYS, data, 0 };

	if (words < arguments(operation))
		return answer;
	switch (operation) {
	case CREATE_VCPU:
		answer.result = create_vcpu(args[0]);
		break;
	case INIT_VCPU:
		answer.result = init_vcpu(args[0]);
		break;
	case CREATE_DEVICE:
		answer.result = create_device(args[0], args[1]);
		break;
	case SET_ATTR: {
		uint64_t value = args[3];

		answer.result = device_attr(KVM_SET_DEVICE_ATTR, args, &value);
		break;
	}
	case GET_ATTR:
		data[0] = words > 3 ? args[3] : 0;
		answer.result = device_attr(KVM_GET_DEVICE_ATTR, args, data);
		answer.words = answer.result < 0 ? 0 : 1;
		break;
	case HAS_ATTR:
		answer.result = device_attr(KVM_HAS_DEVICE_ATTR, args, data);
		break;
	case CHECK_EXTENSION:
		answer.result = result(ioctl(vm, KVM_CHECK_EXTENSION, args[0]));
		break;
	case IRQ_LINE: {
		struct kvm_irq_level request = { .irq = args[0], .level = args[1] };

		answer.result = result(ioctl(vm, KVM_IRQ_LINE, &request));
		break;
	}
	case SIGNAL_MSI:
		answer.result = signal_msi(args);
		break;
	case SET_ROUTES:
		answer.result = set_routes(args, words);
		break;
	case IRQFD:
		answer.result = settled(irqfd(args));
		break;
	case EVENT_WRITE:
		answer.result = settled(result(eventfd_write(event(args[0]), args[1])));
		break;
	case EVENT_READ:
		answer.result = result(eventfd_read(event(args[0]), data));
		answer.words = answer.result < 0 ? 0 : 1;
		break;
	case RAM_WRITE:
		answer.result = -EFAULT;
		if (args[1] <= 8 * (words - 2) && in_ram(args[0], args[1])) {
			memcpy(ram + args[0], args + 2, args[1]);
			answer.result = 0;
		}
		break;
	case RAM_READ:
		answer.result = -EFAULT;
		if (in_ram(args[0], args[1]) && args[1] < 8 * (MAX_WORDS - replied)) {
			answer.words = (args[1] + 7) / 8;
			memset(data, 0, 8 * answer.words);
			memcpy(data, ram + args[0], args[1]);
			answer.result = 0;
		}
		break;
	case RUN:
		answer.result = run(args, words, &answer);
		break;
	case ACKNOWLEDGE:
		answer.result = acknowledge(args, words, &answer);
		break;
	case END_LAST:
		answer.result = end_last(args, &answer);
		break;
	case PENDING_LPIS:
		answer.result = -EFAULT;
		if (words < MAX_WATCHED_WORDS)
			answer.result = pending_lpis(args, words, &answer);
		break;
	default:
		break;
	}
	return answer;
}

static struct answer call_at(const uint64_t *head, uint64_t *data)
{
	return call((uint32_t)head[0] & ~QUIET, head + 1, head[0] >> 32, data);
}

/* Leaves room for the longest answer of a single call besides reading RAM. */
static void check_room(void)
{
	errno = ENOBUFS;
	if (replied + 4 * MAX_WATCHED_WORDS > MAX_WORDS)
		die("the answer is too long");
}

static void look(void)
{
	uint64_t now[MAX_WATCHED_WORDS];

	for (size_t i = 0; i < watching; i++) {
		struct watched *watched = &watches[i];
		struct answer answer = call_at(watched->call, now + 1);
		size_t words = answer.words + 1;

		now[0] = answer.result;
		if (words > MAX_WATCHED_WORDS)
			continue;
		if (words == watched->words && !memcmp(now, watched->last, 8 * words))
			continue;
		check_room();
		watched->words = words;
		memcpy(watched->last, now, 8 * words);
		reply[replied++] = (uint64_t)words << 32 | WATCHED | i;
		memcpy(&reply[replied], now, 8 * words);
		replied += words;
	}
}

/* From here on the calls in `list` are watched. */
static void watch(const uint64_t *list, size_t words)
{
	errno = E2BIG;
	if (words > sizeof(watch_list) / sizeof(watch_list[0]))
		die("too much to watch");
	memcpy(watch_list, list, 8 * words);
	watching = 0;
	for (size_t at = 0; at < words && watching < MAX_WATCHED; at += 1 + (watch_list[at] >> 32))
		watches[watching++] = (struct watched){ .call = &watch_list[at] };
}

static void answer_batch(size_t words)
{
	uint32_t index = 0;

	replied = 3;
	if (words && request[0] & NEW_VM)
		new_vm(request[0] & CLEAR_RAM);
	for (size_t at = 1; at < words; at += 1 + (request[at] >> 32), index++) {
		struct answer answer = { 0 };
		size_t head = replied;

		check_room();
		if (at + 1 + (request[at] >> 32) > words)
			die("a call is cut off");
		replied += 2;
		if (((uint32_t)request[at] & ~QUIET) == WATCH)
			watch(&request[at + 1], request[at] >> 32);
		else
			answer = call_at(&request[at], &reply[replied]);
		reply[head] = (uint64_t)(answer.words + 1) << 32 | index;
		reply[head + 1] = answer.result;
		replied += answer.words;
		if (!(request[at] & QUIET))
			look();
	}
	reply[replied++] = END;
}

/* ---- the port ------------------------------------------------------------- */

static uint64_t checksum(const uint64_t *words, size_t count)
{
	uint64_t sum = 0xcbf29ce484222325ull;

	for (size_t i = 0; i < count; i++)
		sum = (sum ^ words[i]) * 0x100000001b3ull;
	return sum;
}

/* Reads or writes all of it. */
static void transfer(int port, int out, void *data, size_t bytes)
{
	for (size_t done = 0; done < bytes;) {
		ssize_t n = out ? write(port, (char *)data + done, bytes - done) : read(port, (char *)data + done, bytes - done);

		if (n > 0)
			done += n;
		else if (n == 0)
			usleep(1000); /* nobody has opened the other end yet */
		else if (errno != EINTR)
			die("the port");
	}
}

static void serve(int port)
{
	uint64_t head[3];

	for (;;) {
		transfer(port, 0, head, sizeof(head));
		errno = EPROTO;
		if (head[0] != MAGIC || head[1] > MAX_WORDS)
			die("a batch");
		transfer(port, 0, request, 8 * head[1]);
		errno = EPROTO;
		if (checksum(request, head[1]) != head[2])
			die("the checksum of a batch");
		answer_batch(head[1]);
		reply[0] = MAGIC;
		reply[1] = replied - 3;
		reply[2] = checksum(reply + 3, replied - 3);
		transfer(port, 1, reply, 8 * replied);
	}
}

/* Whether it is loaded, or part of the kernel itself: then there is no such file. */
static int load_module(const char *name)
{
	char path[64];
	int fd, failed;

	snprintf(path, sizeof(path), "/modules/%s.ko", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 1;
	failed = syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST;
	close(fd);
	return !failed;
}

/* Which module needs which is not the same in all kernels: those that fail are tried again behind the others. */
static void load_modules(void)
{
	static const char *const names[] = { "virtio", "virtio_ring", "virtio_mmio", "virtio_console" };
	const size_t count = sizeof(names) / sizeof(names[0]);

	for (size_t round = 0; round < count; round++) {
		size_t loaded = 0;

		for (size_t i = 0; i < count; i++)
			loaded += load_module(names[i]);
		if (loaded == count)
			return;
	}
	die("the modules of virtio-serial");
}

static int open_port(void)
{
	int port = -1;

	load_modules();
	for (int tries = 0; tries < 500 && port < 0; tries++) {
		port = open("/dev/vport0p1", O_RDWR | O_CLOEXEC);
		if (port < 0)
			usleep(10000);
	}
	return port;
}

int main(void)
{
	struct sigaction action = { .sa_handler = alarmed };
	struct sched_param parameters = { 0 };
	int port;

	mkdir("/dev", 0755);
	mount("devtmpfs", "/dev", "devtmpfs", 0, 0);
	port = open_port();
	if (port < 0)
		die("/dev/vport0p1");
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		die("/dev/kvm");
	run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	ram = mmap(0, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ram == MAP_FAILED)
		die("mmap");
	sigaction(SIGALRM, &action, NULL);
	/* See settled(). */
	if (sched_setscheduler(0, SCHED_IDLE, &parameters))
		die("sched_setscheduler");
	serve(port);
}
