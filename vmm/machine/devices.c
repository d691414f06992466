/*
 * The devices of a machine, in the order the contract glint-q35-1 fixes: PCI and what is on it, legacy devices,
 * firmware. The order is part of the contract: addresses of BARs follow it, and so do units in a saved state.
 *
 * Touches: the descriptors of the config, which become the devices'.
 */
#include "vmm/machine/machine.h"

#include "base/cleanup.h"
#include "base/opener.h"
#include "base/util.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define SERIAL_PORT 0x3f8
#define SERIAL_GSI  4

void machine_add_unit(struct machine *m, const char *name, const struct unit_ops *ops, void *self)
{
	struct unit unit = {.ops = ops, .self = self};

	snprintf(unit.name, sizeof(unit.name), "%s", name);
	m->unit[m->units++] = unit;
}

static struct error *create_legacy(struct machine *m)
{
	uint64_t low = m->memory.region[0].size;

	TRY(serial_init(&m->serial, &m->pio, &m->irqs, SERIAL_PORT, SERIAL_GSI, m->loop, m->config->serial_in,
			m->config->serial_out));
	machine_add_unit(m, "serial0", &serial_unit, &m->serial);
	TRY(rtc_init(&m->rtc, &m->pio, &m->irqs, m->loop, low, m->memory.size - low));
	machine_add_unit(m, "rtc", &rtc_unit, &m->rtc);
	TRY(pm_init(&m->pm, &m->pio, &m->irqs, m->loop, &m->events));
	machine_add_unit(m, "pm", &pm_unit, &m->pm);
	TRY(reset_init(&m->reset, &m->pio, &m->pci, &m->events));
	machine_add_unit(m, "reset", &reset_unit, &m->reset);
	TRY(i8042_init(&m->i8042, &m->pio, &m->irqs, &m->events, m->display != NULL));
	if (m->i8042.present)
		machine_add_unit(m, "i8042", &i8042_unit, &m->i8042);
	return pvpanic_init(&m->pvpanic, &m->pio, &m->events);
}

static const struct unit_ops pci_unit = {
	.version = 1, .state = pci_bus_state, .restored = pci_bus_restored, .reset = pci_bus_reset};

uint64_t machine_mmio64_base(const struct machine *m)
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

struct error *machine_make_drive(struct machine *m, struct disk_config *config, struct drive **drive)
{
	struct opener_dir folder;

	config->drive.parents = config->parent_fd;
	config->drive.paused = machine_post_disk_error;
	config->drive.paused_arg = m;
	config->drive.threads = m->io;
	config->drive.thread_count = m->config->io_threads;
	if (config->folder_fd >= 0) {
		opener_dir_init(&folder, config->folder_fd);
		config->drive.opener = &folder.opener;
	}
	struct error *err = drive_new(drive, &config->drive);
	config->drive.opener = NULL;
	config->drive.fd = -1; /* the drive's now, whatever became of it */
	config->drive.parent_count = 0;
	close_fd(&config->folder_fd);
	return err;
}

struct error *machine_make_disk(struct machine *m, struct disk_config *config, struct drive **drive, struct blk **disk)
{
	TRY(machine_make_drive(m, config, drive));
	struct blk_config blk = {
		.drive = *drive, .queues = config->queues, .threads = m->io, .thread_count = m->config->io_threads};
	static_assert(sizeof(blk.serial) == sizeof(config->id));
	memcpy(blk.serial, config->id, sizeof(config->id));
	return blk_new(disk, &m->memory, &blk);
}

struct error *machine_make_nvme(struct machine *m, struct disk_config *config, struct drive **drive, struct nvme **nvme,
				unsigned slot, struct pci_port *port)
{
	TRY(machine_make_drive(m, config, drive));
	struct nvme_config device = {.name = config->id,
				     .drive = *drive,
				     .queues = config->queues,
				     .threads = m->io,
				     .thread_count = m->config->io_threads};
	static_assert(sizeof(device.serial) == sizeof(config->id));
	memcpy(device.serial, config->id, sizeof(config->id));
	static_assert(FIRMWARE_UUID_BYTES == sizeof(device.uuid));
	nvme_make_uuid(device.uuid, m->config->uuid, config->id);
	return nvme_new(nvme, &device, &m->memory, &m->pci, slot, port);
}

static struct error *create_disk(struct machine *m, unsigned index)
{
	struct disk_config *config = &m->config->disk[index];
	char name[SAVED_NAME_MAX + 1];

	if (config->bus == DISK_NVME) {
		TRY(machine_make_nvme(m, config, &m->drive[index], &m->nvme[index], MACHINE_SLOT_DISK + index, NULL));
		snprintf(name, sizeof(name), "nvme:%s", config->id);
		m->unit[m->units++] = nvme_unit(m->nvme[index], name);
		return NULL;
	}
	TRY(machine_make_disk(m, config, &m->drive[index], &m->disk[index]));
	snprintf(name, sizeof(name), "disk:%s", config->id);
	return add_virtio(m, MACHINE_SLOT_DISK + index, name, blk_device(m->disk[index]));
}

/* The CD drives, whose controller is beside the LPC bridge as on a Q35. */
static struct error *create_cds(struct machine *m)
{
	struct ahci_config config = {.ports = m->config->cds,
				     .threads = m->io,
				     .thread_count = m->config->io_threads,
				     .changed = machine_post_cd,
				     .arg = m};

	for (unsigned i = 0; i < m->config->cds; i++) {
		struct disk_config *cd = &m->config->cd[i];
		if (cd->file.name)
			TRY(error_wrap(machine_make_drive(m, cd, &m->cd[i]), "CD drive %s", cd->id));
		config.id[i] = cd->id;
		config.medium[i] = m->cd[i];
	}
	TRY(ahci_new(&m->ahci, &config, &m->memory, &m->pci, LPC_SLOT, MACHINE_CD_FUNCTION));
	m->unit[m->units++] = ahci_unit(m->ahci, "ahci");
	return NULL;
}

static bool feels(void *arg)
{
	const struct machine *m = arg;

	return m->state == MACHINE_RUNNING;
}

/* A display comes with what a person in front of it needs: keyboard and mouse are made with the legacy devices. */
static struct error *create_display(struct machine *m)
{
	TRY(display_new(&m->display, &m->memory, m->vm_fd, &m->pci, MACHINE_SLOT_DISPLAY, &m->config->display));
	machine_add_unit(m, "display", &display_unit, m->display);
	TRY(tablet_new(&m->tablet, &m->memory, m->io[0]));
	TRY(add_virtio(m, MACHINE_SLOT_INPUT, "tablet", tablet_device(m->tablet)));
	m->input = (struct input){
		.i8042 = &m->i8042, .tablet = m->tablet, .display = m->display, .running = feels, .arg = m};
	return viewers_new(&m->viewers, m->loop, m->display, &m->input);
}

/* The agent's client, and the console port that leads to it. */
static struct error *create_agent(struct machine *m, struct console_port_config *port)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		return error_new(errno, "make a socket for the guest's agent");
	*port = (struct console_port_config){.name = AGENT_PORT, .listen_fd = -1, .peer_fd = pair[0]};
	const struct agent_config config = {.loop = m->loop,
					    .fd = pair[1],
					    .set_time = m->config->agent.set_time,
					    .patience_s = AGENT_PATIENCE_S,
					    .reachable = machine_agent_reachable,
					    .thawed = machine_agent_thawed,
					    .arg = m};
	return agent_new(&m->agent, &config);
}

static struct error *create_console(struct machine *m)
{
	struct console_config config = {.ports = m->config->consoles, .thread = m->io[0]};

	for (unsigned i = 0; i < config.ports; i++) {
		struct console_options *options = &m->config->console[i];
		config.port[i] = (struct console_port_config){
			.name = options->name, .listen_fd = steal_fd(&options->listen_fd), .peer_fd = -1};
	}
	if (m->config->agent.use)
		TRY(create_agent(m, &config.port[config.ports++]));
	if (!config.ports)
		return NULL;
	TRY(console_new(&m->console, &m->memory, &config));
	TRY(add_virtio(m, MACHINE_SLOT_CONSOLE, "console", console_device(m->console)));
	if (m->agent)
		machine_add_unit(m, "agent", &agent_unit, m->agent);
	return NULL;
}

static struct error *create_vsock(struct machine *m)
{
	struct vsock_options *options = &m->config->vsock;
	const struct vsock_config config = {
		.cid = options->cid,
		.name = options->path,
		.listen_fd = steal_fd(&options->listen_fd),
		.connector_fd = steal_fd(&options->connector_fd),
		.thread = m->io[0],
	};

	if (!options->path)
		return NULL;
	TRY(vsock_new(&m->vsock, &m->memory, &config));
	return add_virtio(m, MACHINE_SLOT_VSOCK, "vsock", vsock_device(m->vsock));
}

struct error *machine_make_net(struct machine *m, struct net_options *options, struct net **net)
{
	struct net_config *config = &options->device;

	config->threads = m->io;
	config->thread_count = m->config->io_threads;
	config->lost = machine_post_link;
	config->lost_arg = m;
	TRY(net_new(net, &m->memory, config));
	memset(config->fd, 0xff, sizeof(config->fd)); /* the device's now */
	memset(config->vhost_fd, 0xff, sizeof(config->vhost_fd));
	return NULL;
}

static struct error *create_net(struct machine *m, unsigned index)
{
	struct net_options *options = &m->config->net[index];
	char name[SAVED_NAME_MAX + 1];

	TRY(machine_make_net(m, options, &m->net[index]));
	snprintf(name, sizeof(name), "net:%s", options->id);
	return add_virtio(m, MACHINE_SLOT_NET + index, name, net_device(m->net[index]));
}

static struct error *create_balloon(struct machine *m)
{
	m->config->balloon.device.stats_changed = machine_post_balloon_stats;
	m->config->balloon.device.arg = m;
	TRY(balloon_new(&m->balloon, &m->memory, m->io[0], &m->config->balloon.device));
	return add_virtio(m, MACHINE_SLOT_BALLOON, "balloon", balloon_device(m->balloon));
}

static struct error *create_watchdog(struct machine *m)
{
	TRY(watchdog_init(&m->watchdog, &m->pci, MACHINE_SLOT_WATCHDOG, m->loop, &m->events));
	machine_add_unit(m, "watchdog", &watchdog_unit, &m->watchdog);
	return NULL;
}

static struct error *create_pci(struct machine *m)
{
	TRY(pci_bus_init(&m->pci, &m->pio, &m->mmio[MEMORY_SPACE_NORMAL], &m->irqs, machine_mmio64_base(m)));
	machine_add_unit(m, "pci", &pci_unit, &m->pci);
	for (unsigned i = 0; i < m->config->io_threads; i++)
		TRY(iothread_new(&m->io[i], i));
	if (m->config->display.width)
		TRY(create_display(m));
	if (m->config->rng) {
		TRY(rng_new(&m->rng, &m->memory, m->io[0]));
		TRY(add_virtio(m, MACHINE_SLOT_RNG, "rng", rng_device(m->rng)));
	}
	TRY(create_console(m));
	TRY(create_vsock(m));
	for (unsigned i = 0; i < m->config->nets; i++)
		TRY(error_wrap(create_net(m, i), "network interface %s", m->config->net[i].id));
	if (m->config->balloon.use)
		TRY(create_balloon(m));
	if (m->config->watchdog.use)
		TRY(create_watchdog(m));
	for (unsigned i = 0; i < m->config->disks; i++)
		TRY(error_wrap(create_disk(m, i), "disk %s", m->config->disk[i].id));
	TRY(lpc_init(&m->lpc, &m->pci, m->config->cds > 0));
	machine_add_unit(m, "lpc", &lpc_unit, &m->lpc);
	if (m->config->cds)
		TRY(create_cds(m));
	return hotplug_create(m);
}

/* The disks and CDs that have a boot index, the lowest first. */
static void order_boot(const struct machine *m, struct firmware_config *config)
{
	for (unsigned index = 0; index <= BOOT_INDEX_MAX; index++) {
		for (unsigned i = 0; i < m->config->disks; i++)
			if (m->config->disk[i].boot_index == index)
				config->boot[config->boots++] = (struct firmware_boot){
					MACHINE_SLOT_DISK + i,
					m->config->disk[i].bus == DISK_NVME ? FIRMWARE_BOOT_NVME : FIRMWARE_BOOT_VIRTIO,
				};
		for (unsigned i = 0; i < m->config->cds; i++)
			if (m->config->cd[i].boot_index == index)
				config->boot[config->boots++] =
					(struct firmware_boot){LPC_SLOT, FIRMWARE_BOOT_AHCI, MACHINE_CD_FUNCTION, i};
	}
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
		.topology = config->topology,
		.numa = &config->numa,
		.mmio64_base = machine_mmio64_base(m),
		.keyboard = m->i8042.present,
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
	static_assert(FIRMWARE_BOOT_MAX >= MACHINE_DISKS_MAX + MACHINE_CDS_MAX);
	memcpy(firmware.uuid, config->uuid, sizeof(firmware.uuid));
	order_boot(m, &firmware);
	TRY(firmware_init(&m->firmware, &m->memory, m->vm_fd, &m->pio, &m->mmio[MEMORY_SPACE_NORMAL], &m->pci,
			  &firmware));
	close_fd(&config->firmware.fd);
	machine_add_unit(m, "firmware", &firmware_unit, &m->firmware);
	machine_add_unit(m, "fw-cfg", &fw_cfg_unit, &m->firmware.fw_cfg);
	if (m->firmware.has_vars)
		machine_add_unit(m, "vars", &pflash_unit, &m->firmware.vars);
	return NULL;
}

struct error *machine_create_devices(struct machine *m)
{
	TRY(create_pci(m));
	TRY(create_legacy(m));
	return create_firmware(m);
}

void machine_destroy_devices(struct machine *m)
{
	viewers_free(m->viewers);
	hotplug_destroy(m);
	for (unsigned i = 0; i < PCI_SLOTS; i++)
		virtio_pci_free(m->slot[i]);
	for (unsigned i = 0; i < MACHINE_DISKS_MAX; i++) {
		blk_free(m->disk[i]);
		nvme_free(m->nvme[i]);
		drive_free(m->drive[i]);
	}
	ahci_free(m->ahci);
	for (unsigned i = 0; i < MACHINE_CDS_MAX; i++)
		drive_free(m->cd[i]);
	tablet_free(m->tablet);
	display_free(m->display);
	for (unsigned i = 0; i < MACHINE_NETS_MAX; i++)
		net_free(m->net[i]);
	balloon_free(m->balloon);
	rng_free(m->rng);
	console_free(m->console);
	vsock_free(m->vsock);
	for (unsigned i = 0; i < MACHINE_IO_MAX; i++)
		iothread_free(m->io[i]);
	firmware_destroy(&m->firmware);
	watchdog_destroy(&m->watchdog);
	lpc_destroy(&m->lpc);
	if (m->pci.pio)
		pci_bus_destroy(&m->pci);
	serial_destroy(&m->serial);
	rtc_destroy(&m->rtc);
	pm_destroy(&m->pm);
	i8042_destroy(&m->i8042);
}
