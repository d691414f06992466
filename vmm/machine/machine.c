/*
 * Putting the machine together: memory, interrupt chips, vCPUs, devices (devices.c); then the sandbox and the threads;
 * then the kernel or the saved state, for these too may be hostile. Taking it apart is the reverse.
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

/* RAM, and the window for devices above it, must lie where the processor reaches. */
static struct error *check_addresses(const struct machine *m)
{
	unsigned bits = m->vcpus.model.physical_bits;

	if (machine_mmio64_base(m) + PCI_MMIO64_BYTES <= 1ull << bits)
		return NULL;
	return error_hint(error_new(ERANGE, "%llu MiB of memory: the machine's processor addresses only %u bits",
				    (unsigned long long)(m->config->memory / MIB), bits),
			  "give the machine less memory, or more bits (--cpu-model ...,phys-bits=N)");
}

static struct error *create_processor(struct machine *m)
{
	struct vcpu_events events = {.reset = machine_post_reset, .failed = machine_post_failed, .arg = m};
	struct bus *mmio[MEMORY_SPACES] = {&m->mmio[MEMORY_SPACE_NORMAL]};
	const struct cpu_config config = {
		.model = m->config->cpu_model ? m->config->cpu_model : "host",
		.physical_bits = m->config->physical_bits,
		.vcpus = m->config->cpus,
		.topology = m->config->topology,
		.hyperv = m->config->hyperv,
		.hide_kvm = !m->config->hyperv_kvm,
	};
	char name[16];

	TRY(irqs_init(&m->irqs, m->vm_fd));
	machine_add_unit(m, "irq-chips", &irqs_unit, &m->irqs);
	TRY(vcpus_create(&m->vcpus, m->config->kvm.fd, m->vm_fd, &m->pio, mmio, &events, &config));
	TRY(check_addresses(m));
	machine_add_unit(m, "clock", &clock_unit, &m->vcpus);
	for (unsigned i = 0; i < m->vcpus.count; i++) {
		snprintf(name, sizeof(name), "vcpu%u", i);
		machine_add_unit(m, name, &vcpu_unit, &m->vcpus.vcpu[i]);
	}
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
				       .topology = config->topology,
				       .numa = &config->numa,
				       .mmio64_base = machine_mmio64_base(m),
				       .keyboard = m->i8042.present};
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

static struct error *activate_each(struct machine *m)
{
	for (unsigned i = 0; i < m->config->disks; i++)
		TRY(drive_activate(m->drive[i]));
	for (unsigned i = 0; i < m->config->cds; i++)
		if (m->cd[i])
			TRY(drive_activate(m->cd[i]));
	TRY(hotplug_activate(m));
	return firmware_activate(&m->firmware);
}

struct error *machine_activate(struct machine *m)
{
	struct error *err = activate_each(m);

	/* All or none: a disk that is held without being used keeps it from the one who has the others. */
	if (err)
		log_error(machine_deactivate(m));
	return err;
}

struct error *machine_deactivate(struct machine *m)
{
	struct error *first = firmware_deactivate(&m->firmware);

	for (unsigned i = 0; i < m->config->disks; i++)
		first = error_first(first, drive_deactivate(m->drive[i]));
	for (unsigned i = 0; i < m->config->cds; i++)
		if (m->cd[i])
			first = error_first(first, drive_deactivate(m->cd[i]));
	return error_first(first, hotplug_deactivate(m));
}

struct error *machine_create(struct machine *m, struct vm_config *config)
{
	memset(m, 0, sizeof(*m));
	m->config = config;
	m->vm_fd = m->signal_fd = m->terminal.fd = -1;
	m->memory.fd = -1;
	m->boot.kernel_fd = -1;
	m->events = (struct machine_events){.reset = machine_post_reset,
					    .power_off = machine_post_power_off,
					    .panicked = machine_post_panicked,
					    .crash_loaded = machine_post_crash_loaded,
					    .watchdog = machine_post_watchdog,
					    .arg = m};
	bus_init(&m->pio, "port");
	bus_init(&m->mmio[MEMORY_SPACE_NORMAL], "MMIO");
	TRY(loop_new(&m->loop));
	TRY(watch_signals(m));
	TRY(create_vm(m));
	TRY(memory_create_of(&m->memory, config->memory, config->pages));
	TRY(numa_bind(&config->numa, &m->memory));
	TRY(memory_attach(&m->memory, m->vm_fd));
	TRY(create_processor(m));
	TRY(machine_create_devices(m));
	TRY(machine_serve(m));
	TRY(machine_open_line(m));
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
	agent_free(m->agent); /* it still answers calls */
	control_free(m->control);
	vcpus_destroy(&m->vcpus);
	machine_destroy_devices(m);
	memory_destroy(&m->memory);
	close_fd(&m->vm_fd);
	close_fd(&m->signal_fd);
	loop_free(m->loop);
}
