/*
 * The machine: all rooms put together, its run state, and what may be asked of it.
 *
 * The main thread owns the machine: it builds it, runs its event loop, and is the only one that pauses, resets, saves
 * or ends it. vCPU and I/O threads ask by posting to the loop.
 *
 *     created --start--> running <--pause/resume--> paused --save--> saved --resume--> running
 *     running --power-off--> stopped           running --cannot go on--> failed
 */
#ifndef GLINT_VMM_MACHINE_MACHINE_H
#define GLINT_VMM_MACHINE_MACHINE_H

#include "base/error.h"
#include "base/loop.h"
#include "vmm/agent/agent.h"
#include "vmm/ahci/ahci.h"
#include "vmm/block/drive.h"
#include "vmm/control/control.h"
#include "vmm/cpu/irq.h"
#include "vmm/cpu/vcpu.h"
#include "vmm/devices/i8042.h"
#include "vmm/devices/pm.h"
#include "vmm/devices/pvpanic.h"
#include "vmm/devices/reset.h"
#include "vmm/devices/rtc.h"
#include "vmm/devices/serial.h"
#include "vmm/devices/watchdog.h"
#include "vmm/display/display.h"
#include "vmm/display/viewers.h"
#include "vmm/firmware/firmware.h"
#include "vmm/firmware/lpc.h"
#include "vmm/machine/config.h"
#include "vmm/machine/hotplug.h"
#include "vmm/machine/iothread.h"
#include "vmm/machine/terminal.h"
#include "vmm/machine/unit.h"
#include "vmm/memory/bus.h"
#include "vmm/memory/memory.h"
#include "vmm/net/net.h"
#include "vmm/nvme/nvme.h"
#include "vmm/pci/pci.h"
#include "vmm/virtio/balloon.h"
#include "vmm/virtio/blk.h"
#include "vmm/virtio/console.h"
#include "vmm/virtio/rng.h"
#include "vmm/virtio/virtio_pci.h"
#include "vmm/vsock/vsock.h"

#define MACHINE_UNITS_MAX (VCPUS_MAX + 64)

/* PCI slots of the contract: the host bridge is 0, the LPC bridge LPC_SLOT (31). */
enum {
	MACHINE_SLOT_DISPLAY = 1,
	MACHINE_SLOT_RNG = 2,
	MACHINE_SLOT_CONSOLE = 3,
	MACHINE_SLOT_VSOCK = 4,
	MACHINE_SLOT_BALLOON = 5,
	MACHINE_SLOT_INPUT = 6,
	MACHINE_SLOT_WATCHDOG = 7,
	MACHINE_SLOT_NET = 8,    /* and on, a slot a network interface */
	MACHINE_SLOT_DISK = 14,  /* and on, a slot a disk */
	MACHINE_SLOT_PORTS = 30, /* of hot-plug, a function each */
	MACHINE_CD_FUNCTION = 2  /* of the LPC bridge's slot: the CD drives' controller */
};

enum machine_state {
	MACHINE_CREATED,
	MACHINE_RUNNING,
	MACHINE_PAUSED,
	MACHINE_SAVED, /* paused, and its disks are released for whoever restores it */
	MACHINE_STOPPED,
	MACHINE_FAILED,
};

/* What a guest may get into; see run.c. */
enum machine_trouble { MACHINE_PANICKED, MACHINE_CRASHED, MACHINE_EXPIRED, MACHINE_TROUBLES };

struct machine {
	struct vm_config *config;
	enum machine_state state;
	char why[128]; /* why it is paused, stopped or failed */
	struct loop *loop;
	struct control *control;

	int vm_fd;
	int signal_fd;
	struct memory memory;
	struct bus pio;
	struct bus mmio[MEMORY_SPACES];
	struct irqs irqs;
	struct vcpus vcpus;
	struct pci_bus pci;
	struct iothread *io[MACHINE_IO_MAX];

	struct machine_events events;
	struct serial serial;
	struct terminal terminal;
	struct rtc rtc;
	struct pm pm;
	struct reset reset;
	struct i8042 i8042;
	struct display *display;
	struct tablet *tablet;
	struct input input;
	struct viewers *viewers;
	struct pvpanic pvpanic;
	struct watchdog watchdog;
	struct rng *rng;
	struct console *console;
	struct agent *agent;
	struct vsock *vsock;
	struct net *net[MACHINE_NETS_MAX];
	struct balloon *balloon;
	struct drive *drive[MACHINE_DISKS_MAX];
	struct blk *disk[MACHINE_DISKS_MAX]; /* one of these two */
	struct nvme *nvme[MACHINE_DISKS_MAX];
	struct drive *cd[MACHINE_CDS_MAX]; /* the media in the drives of: */
	struct ahci *ahci;
	struct lpc lpc;
	struct plug plug[PCI_PORTS];
	struct firmware firmware;
	struct virtio_pci *slot[PCI_SLOTS]; /* the virtio function in each PCI slot */

	struct boot_config boot;
	unsigned units;
	struct unit unit[MACHINE_UNITS_MAX];

	bool half_reset; /* a reset failed: the machine cannot run before another one went well */

	/* Set by vCPU and I/O threads before they post; see run.c. */
	atomic_bool wants_reset, wants_power_off, has_failed, has_balloon_stats;
	atomic_bool trouble[MACHINE_TROUBLES];
	atomic_int disk_error; /* errno of a request held by the pause policy, 0: none */
	char failure[96];
	bool reported[MACHINE_TROUBLES]; /* since the last reset */
};

/* Builds everything @config asks for, loads the kernel or the saved state, and locks the process in. */
[[nodiscard]] struct error *machine_create(struct machine *machine, struct vm_config *config);

/* --- devices.c --- */

/* Makes the devices, for machine_create(), and frees what was made of them. */
[[nodiscard]] struct error *machine_create_devices(struct machine *machine);
void machine_destroy_devices(struct machine *machine);

/* Makes a disk's or an interface's device, not yet its PCI function; takes the descriptors. What was made when an error
 * is returned is the caller's too. */
[[nodiscard]] struct error *machine_make_disk(struct machine *machine, struct disk_config *config, struct drive **drive,
					      struct blk **disk);
/* The same on NVMe, with its PCI function: in @slot, or behind @port. */
[[nodiscard]] struct error *machine_make_nvme(struct machine *machine, struct disk_config *config, struct drive **drive,
					      struct nvme **nvme, unsigned slot, struct pci_port *port);
[[nodiscard]] struct error *machine_make_net(struct machine *machine, struct net_options *options, struct net **net);
/* A disk's image, or a CD's, without a device. */
[[nodiscard]] struct error *machine_make_drive(struct machine *machine, struct disk_config *config,
					       struct drive **drive);

/* A part of the machine with state; @name is copied. */
void machine_add_unit(struct machine *machine, const char *name, const struct unit_ops *ops, void *self);

/* PCI's 64-bit window begins at the first GiB above RAM. */
uint64_t machine_mmio64_base(const struct machine *machine);

/* --- serial_line.c --- */

/* Takes the terminal, or lets clients come to the serial port's socket. */
[[nodiscard]] struct error *machine_open_line(struct machine *machine);

/* --- machine.c --- */

/*
 * Takes and gives up what other machines must not write meanwhile: the disks and the firmware's variables. Taking is
 * all or none; when giving up fails, everything is tried and the first error returned.
 */
[[nodiscard]] struct error *machine_activate(struct machine *machine);
[[nodiscard]] struct error *machine_deactivate(struct machine *machine);

/* Ends threads and releases everything; for a machine half made too. */
void machine_destroy(struct machine *machine);

/* Starts the guest unless it was asked to wait, and runs the event loop until the machine ends. */
[[nodiscard]] struct error *machine_run(struct machine *machine);

/* --- run.c: each is a no-op or an error in a state that does not allow it --- */

/* What vCPUs and devices call when something happened. */
void machine_post_reset(void *machine);
void machine_post_power_off(void *machine);
void machine_post_failed(void *machine, const char *what);
void machine_post_panicked(void *machine);
void machine_post_crash_loaded(void *machine);
void machine_post_watchdog(void *machine);
void machine_post_disk_error(void *machine, int errnum);
void machine_post_balloon_stats(void *machine);

[[nodiscard]] struct error *machine_pause(struct machine *machine, const char *why);
[[nodiscard]] struct error *machine_resume(struct machine *machine);
[[nodiscard]] struct error *machine_reset(struct machine *machine);
/*
 * Stops for good: makes what was written durable and gives the disks up (but after a save, when they are others').
 */
[[nodiscard]] struct error *machine_end(struct machine *machine);
/* Ends the event loop. */
void machine_quit(struct machine *machine);
/* Sets the state and tells the clients of the control socket. @why is copied. */
void machine_set_state(struct machine *machine, enum machine_state state, const char *why);
const char *machine_state_name(const struct machine *machine);

/* --- save.c --- */

/*
 * Writes the paused machine to @fd and releases its disks: from then on another process may restore it, or this one
 * go on by machine_resume(). After an error the machine is paused and unchanged.
 */
[[nodiscard]] struct error *machine_save(struct machine *machine, int fd);

/* Loads a freshly built machine from @fd. After an error it must be destroyed. */
[[nodiscard]] struct error *machine_load(struct machine *machine, int fd);

/* --- net_commands.c --- */

/* What the control socket is told of interfaces (the caller's), and its method `link`. */
json_t *machine_net_stats(const struct machine *machine);
[[nodiscard]] struct error *machine_link(struct machine *machine, struct control_call *call);

/* Something may have happened to a link by itself: tells the control socket's clients. Any thread. */
void machine_post_link(void *machine);

/* --- cd_commands.c --- */

/* What `status` says of the CD drives (the caller's), and the method `cd-change`. */
json_t *machine_cd_status(const struct machine *machine);
[[nodiscard]] struct error *machine_cd_change(void *machine, struct control_call *call, json_t **result);

/* A guest moved a tray or its lock: tells the control socket's clients. Any thread. */
void machine_post_cd(void *machine);

/* --- agent_commands.c --- */

/* The methods that ask the guest's agent, and what `status` says of it. Their answers come later. */
[[nodiscard]] struct error *machine_agent_ping(void *machine, struct control_call *call, json_t **result);
[[nodiscard]] struct error *machine_agent_info(void *machine, struct control_call *call, json_t **result);
[[nodiscard]] struct error *machine_agent_set_time(void *machine, struct control_call *call, json_t **result);
[[nodiscard]] struct error *machine_agent_freeze(void *machine, struct control_call *call, json_t **result);
[[nodiscard]] struct error *machine_agent_thaw(void *machine, struct control_call *call, json_t **result);
json_t *machine_agent_status(const struct machine *machine);

/* For the agent's client: whether somebody is there to talk to; that the guest was thawed because its time was over. */
bool machine_agent_reachable(void *machine);
void machine_agent_thawed(void *machine);

/* --- commands.c --- */

/* Tells the clients what the balloon's statistics are now. */
void machine_notify_balloon_stats(struct machine *machine);

/* Starts serving the control socket that @config names, if any. */
[[nodiscard]] struct error *machine_serve(struct machine *machine);

#endif
