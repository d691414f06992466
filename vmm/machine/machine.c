/*
 * Putting the machine together, in the order the contract glint-q35-1 fixes: memory, interrupt chips, vCPUs, legacy
 * devices, PCI and what is on it; then the sandbox and the threads; then the kernel or the saved state, for these too
 * may be hostile. Taking it apart is the reverse.
 *
 * Touches: KVM, the descriptors of the config, its threads.
 */
#include "vmm/machine/machine.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/sandbox/sandbox.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>

#define SERIAL_PORT 0x3f8
#define SERIAL_GSI  4

static void add_unit(struct machine *m, const char *name, const struct unit_ops *ops, void *self)
{
	struct unit unit = {.ops = ops, .self = self};

	snprintf(unit.name, sizeof(unit.name), "%s", name);
	m->unit[m->units++] = unit;
}

/* --- KVM --- */

static struct error *check_kvm(int kvm_fd)
{
	static const struct {
		int cap;
		const char *name;
	} needed[] = {{KVM_CAP_IRQCHIP, "interrupt controllers"}, {KVM_CAP_IRQFD, "irqfd"},
		      {KVM_CAP_IOEVENTFD, "ioeventfd"},           {KVM_CAP_IRQ_ROUTING, "interrupt routing"},
		      {KVM_CAP_IMMEDIATE_EXIT, "immediate exit"}, {KVM_CAP_PIT2, "the interval timer"},
		      {KVM_CAP_VCPU_EVENTS, "vCPU events"}};

	int version = ioctl(kvm_fd, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION)
		return error_new(version < 0 ? errno : 0, "this is not KVM (API version %d)", version);
	for (size_t i = 0; i < ARRAY_SIZE(needed); i++)
		if (ioctl(kvm_fd, KVM_CHECK_EXTENSION, needed[i].cap) <= 0)
			return error_new(ENOTSUP, "this machine's KVM lacks %s", needed[i].name);
	return NULL;
}

static struct error *create_vm(struct machine *m)
{
	TRY(error_wrap(check_kvm(m->config->kvm.fd), "use %s", m->config->kvm.name));
	m->vm_fd = ioctl(m->config->kvm.fd, KVM_CREATE_VM, 0);
	if (m->vm_fd < 0)
		return error_new(errno, "make a virtual machine (KVM_CREATE_VM)");
	int max = ioctl(m->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
	if (max > 0 && m->config->cpus > (unsigned)max)
		return error_new(ERANGE, "%u vCPUs: this machine's KVM allows %d", m->config->cpus, max);
	return NULL;
}

static const struct unit_ops irqs_unit = {.version = 1, .state = irqs_state};
static const struct unit_ops clock_unit = {.version = 1, .state = vcpus_clock_state};
static const struct unit_ops vcpu_unit = {.version = 1, .state = vcpu_state};

static struct error *create_processor(struct machine *m)
{
	struct vcpu_events events = {.reset = machine_post_reset, .failed = machine_post_failed, .arg = m};
	struct bus *mmio[MEMORY_SPACES] = {&m->mmio[MEMORY_SPACE_NORMAL]};
	struct cpu_model model;
	char name[16];

	TRY(cpu_model_host(m->config->kvm.fd, m->config->cpus, &model));
	if (MEMORY_HIGH_BASE + m->config->memory > 1ull << MIN(model.physical_bits, 52u))
		return error_new(ERANGE, "%llu GiB of memory: this machine's processor addresses only %u bits",
				 (unsigned long long)(m->config->memory / GIB), model.physical_bits);
	TRY(irqs_init(&m->irqs, m->vm_fd));
	add_unit(m, "irq-chips", &irqs_unit, &m->irqs);
	TRY(vcpus_create(&m->vcpus, m->config->kvm.fd, m->vm_fd, &m->pio, mmio, &events, &model));
	add_unit(m, "clock", &clock_unit, &m->vcpus);
	for (unsigned i = 0; i < m->vcpus.count; i++) {
		snprintf(name, sizeof(name), "vcpu%u", i);
		add_unit(m, name, &vcpu_unit, &m->vcpus.vcpu[i]);
	}
	return NULL;
}

/* --- devices --- */

static bool filter_key(void *arg, uint8_t byte)
{
	struct machine *m = arg;
	enum terminal_key key = terminal_key(&m->terminal, byte);

	if (key == TERMINAL_QUIT)
		machine_quit(m);
	return key != TERMINAL_FOR_GUEST;
}

static struct error *create_legacy(struct machine *m)
{
	uint64_t low = m->memory.region[0].size;

	TRY(serial_init(&m->serial, &m->pio, &m->irqs, SERIAL_PORT, SERIAL_GSI, m->loop, m->config->serial_in,
			m->config->serial_out));
	m->serial.filter = filter_key;
	m->serial.filter_arg = m;
	add_unit(m, "serial0", &serial_unit, &m->serial);
	TRY(rtc_init(&m->rtc, &m->pio, &m->irqs, m->loop, low, m->memory.size - low));
	add_unit(m, "rtc", &rtc_unit, &m->rtc);
	TRY(pm_init(&m->pm, &m->pio, &m->irqs, m->loop, &m->events));
	add_unit(m, "pm", &pm_unit, &m->pm);
	TRY(reset_init(&m->reset, &m->pio, &m->pci, &m->events));
	add_unit(m, "reset", &reset_unit, &m->reset);
	return NULL;
}

static const struct unit_ops pci_unit = {
	.version = 1, .state = pci_bus_state, .restored = pci_bus_restored, .reset = pci_bus_reset};

/* PCI's 64-bit window begins at the first GiB above RAM. */
static uint64_t mmio64_base(const struct machine *m)
{
	const struct memory_region *last = &m->memory.region[m->memory.regions - 1];

	return align_up(MAX(last->gpa + last->size, MEMORY_HIGH_BASE), GIB);
}

static struct error *add_virtio(struct machine *m, unsigned slot, const char *name, struct virtio_device *device)
{
	TRY(virtio_pci_new(&m->slot[slot], device, &m->pci, slot));
	m->unit[m->units++] = virtio_pci_unit(m->slot[slot], name);
	return NULL;
}

static struct error *create_disk(struct machine *m, unsigned index)
{
	struct disk_config *config = &m->config->disk[index];
	char name[SAVED_NAME_MAX + 1];

	config->blk.paused = machine_post_disk_error;
	config->blk.paused_arg = m;
	config->blk.threads = m->io;
	config->blk.thread_count = m->config->io_threads;
	static_assert(sizeof(config->blk.serial) == sizeof(config->id));
	memcpy(config->blk.serial, config->id, sizeof(config->id));
	TRY(blk_new(&m->disk[index], &m->memory, &config->blk));
	config->blk.fd = -1; /* the device's now */
	snprintf(name, sizeof(name), "disk:%s", config->id);
	return add_virtio(m, MACHINE_SLOT_DISK + index, name, blk_device(m->disk[index]));
}

static struct error *create_pci(struct machine *m)
{
	TRY(pci_bus_init(&m->pci, &m->pio, &m->mmio[MEMORY_SPACE_NORMAL], &m->irqs, mmio64_base(m)));
	add_unit(m, "pci", &pci_unit, &m->pci);
	for (unsigned i = 0; i < m->config->io_threads; i++)
		TRY(iothread_new(&m->io[i], i));
	if (m->config->rng) {
		TRY(rng_new(&m->rng, &m->memory, m->io[0]));
		TRY(add_virtio(m, MACHINE_SLOT_RNG, "rng", rng_device(m->rng)));
	}
	for (unsigned i = 0; i < m->config->disks; i++)
		TRY(error_wrap(create_disk(m, i), "disk %s", m->config->disk[i].id));
	TRY(lpc_init(&m->lpc, &m->pci));
	add_unit(m, "lpc", &lpc_unit, &m->lpc);
	return NULL;
}

/* PCI slots of the disks that have a boot index, the lowest first. */
static void order_boot(const struct machine *m, struct firmware_config *config)
{
	for (int index = 0; index <= BOOT_INDEX_MAX; index++)
		for (unsigned i = 0; i < m->config->disks; i++)
			if (m->config->disk[i].boot_index == index)
				config->boot_slot[config->boot_slots++] = MACHINE_SLOT_DISK + i;
}

static struct error *create_firmware(struct machine *m)
{
	struct vm_config *config = m->config;
	struct firmware_config firmware = {
		.code_fd = config->firmware.fd,
		.vars_fd = steal_fd(&config->vars.fd),
		.code_name = config->firmware.name,
		.vars_name = config->vars.name,
		.name = config->name,
		.vcpus = config->cpus,
		.mmio64_base = mmio64_base(m),
		.kernel_fd = config->kernel.fd,
		.initrd_fd = config->initrd.fd,
		.kernel_name = config->kernel.name,
		.initrd_name = config->initrd.name,
		.cmdline = config->cmdline,
		.failed = machine_post_disk_error,
		.failed_arg = m,
	};

	if (config->firmware.fd < 0)
		return NULL;
	static_assert(FIRMWARE_BOOT_MAX >= MACHINE_DISKS_MAX);
	memcpy(firmware.uuid, config->uuid, sizeof(firmware.uuid));
	order_boot(m, &firmware);
	TRY(firmware_init(&m->firmware, &m->memory, m->vm_fd, &m->pio, &m->mmio[MEMORY_SPACE_NORMAL], &m->pci,
			  &firmware));
	close_fd(&config->firmware.fd);
	add_unit(m, "firmware", &firmware_unit, &m->firmware);
	add_unit(m, "fw-cfg", &fw_cfg_unit, &m->firmware.fw_cfg);
	if (m->firmware.has_vars)
		add_unit(m, "vars", &pflash_unit, &m->firmware.vars);
	return NULL;
}

/* --- start --- */

static struct error *load_kernel(struct machine *m)
{
	struct vm_config *config = m->config;
	struct boot_entry entry;

	if (m->firmware.code) /* it begins where every reset does, and loads the kernel itself */
		return vcpus_reset(&m->vcpus);
	m->boot = (struct boot_config){.kernel_fd = config->kernel.fd,
				       .initrd_fd = config->initrd.fd,
				       .cmdline = config->cmdline,
				       .kernel_name = config->kernel.name,
				       .initrd_name = config->initrd.name,
				       .vcpus = config->cpus,
				       .mmio64_base = mmio64_base(m)};
	if (config->kernel.fd < 0)
		return NULL;
	TRY(boot_load(&m->memory, &m->boot, &entry));
	TRY(vcpus_reset(&m->vcpus));
	return vcpus_boot(&m->vcpus, &entry);
}

static struct error *enter_vcpu(void)
{
	return sandbox_thread(SANDBOX_VCPU);
}

static struct error *enter_io(void *arg)
{
	(void)arg;
	return sandbox_thread(SANDBOX_IO);
}

/* Locks the process, then each thread as it starts, and the main thread last, for it starts them. */
static struct error *start_threads(struct machine *m)
{
	bool sandbox = m->config->sandbox;

	if (sandbox)
		TRY(sandbox_process());
	for (unsigned i = 0; i < m->config->io_threads; i++)
		TRY(iothread_start(m->io[i], sandbox ? enter_io : NULL, NULL));
	TRY(vcpus_start(&m->vcpus, sandbox ? enter_vcpu : NULL));
	return sandbox ? sandbox_thread(SANDBOX_MAIN) : NULL;
}

static void on_signal(void *arg, int fd, uint32_t events)
{
	struct machine *m = arg;
	struct signalfd_siginfo info;

	(void)events;
	if (read(fd, &info, sizeof(info)) != sizeof(info))
		return;
	log_info("%s: told to end by signal %u", m->config->name, info.ssi_signo);
	machine_quit(m);
}

/* Ending by a signal is orderly: the guest stops, its disks are flushed. Threads started later inherit the mask. */
static struct error *watch_signals(struct machine *m)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	m->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (m->signal_fd < 0)
		return error_new(errno, "watch for signals");
	return loop_add_fd(m->loop, m->signal_fd, EPOLLIN, on_signal, m, NULL);
}

static struct error *load(struct machine *m)
{
	if (m->config->restore.fd >= 0)
		TRY(machine_load(m, m->config->restore.fd));
	else
		TRY(load_kernel(m));
	return machine_activate(m);
}

struct error *machine_activate(struct machine *m)
{
	for (unsigned i = 0; i < m->config->disks; i++)
		TRY(blk_activate(m->disk[i]));
	return firmware_activate(&m->firmware);
}

struct error *machine_deactivate(struct machine *m)
{
	struct error *first = firmware_deactivate(&m->firmware);

	for (unsigned i = 0; i < m->config->disks; i++) {
		struct error *err = blk_deactivate(m->disk[i]);
		if (first)
			log_error(err);
		else
			first = err;
	}
	return first;
}

struct error *machine_create(struct machine *m, struct vm_config *config)
{
	memset(m, 0, sizeof(*m));
	m->config = config;
	m->vm_fd = m->signal_fd = m->terminal.fd = -1;
	m->memory.fd = -1;
	m->boot.kernel_fd = -1;
	m->events = (struct machine_events){.reset = machine_post_reset, .power_off = machine_post_power_off, .arg = m};
	bus_init(&m->pio, "port");
	bus_init(&m->mmio[MEMORY_SPACE_NORMAL], "MMIO");
	TRY(loop_new(&m->loop));
	TRY(watch_signals(m));
	TRY(create_vm(m));
	TRY(memory_create(&m->memory, config->memory));
	TRY(memory_attach(&m->memory, m->vm_fd));
	TRY(create_processor(m));
	TRY(create_pci(m));
	TRY(create_legacy(m));
	TRY(create_firmware(m));
	TRY(machine_serve(m));
	terminal_take(&m->terminal, config->serial_in);
	TRY(start_threads(m));
	TRY(load(m));
	close_fd(&m->config->kvm.fd); /* nothing more is asked of it */
	return NULL;
}

struct error *machine_run(struct machine *m)
{
	if (!m->config->paused)
		TRY(machine_resume(m));
	TRY(loop_run(m->loop));
	TRY(machine_end(m));
	return m->state == MACHINE_FAILED ? error_new(0, "%s: %s", m->config->name, m->why) : NULL;
}

void machine_destroy(struct machine *m)
{
	terminal_give_back(&m->terminal);
	control_free(m->control);
	vcpus_destroy(&m->vcpus);
	for (unsigned i = 0; i < PCI_SLOTS; i++)
		virtio_pci_free(m->slot[i]);
	for (unsigned i = 0; i < MACHINE_DISKS_MAX; i++)
		blk_free(m->disk[i]);
	rng_free(m->rng);
	for (unsigned i = 0; i < MACHINE_IO_MAX; i++)
		iothread_free(m->io[i]);
	firmware_destroy(&m->firmware);
	lpc_destroy(&m->lpc);
	if (m->pci.pio)
		pci_bus_destroy(&m->pci);
	serial_destroy(&m->serial);
	rtc_destroy(&m->rtc);
	pm_destroy(&m->pm);
	memory_destroy(&m->memory);
	close_fd(&m->vm_fd);
	close_fd(&m->signal_fd);
	loop_free(m->loop);
}
