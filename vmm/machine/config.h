/*
 * What a machine is made of, as descriptors and numbers: the monitor opens nothing once it runs. Filled from the
 * command line and a JSON file by options.c; what these name is opened by open.c.
 */
#ifndef GLINT_VMM_MACHINE_CONFIG_H
#define GLINT_VMM_MACHINE_CONFIG_H

#include "base/error.h"
#include "base/log.h"
#include "option/option.h"
#include "vmm/ahci/ahci.h"
#include "vmm/block/drive.h"
#include "vmm/cpu/topology.h"
#include "vmm/display/display.h"
#include "vmm/firmware/firmware.h"
#include "vmm/memory/memory.h"
#include "vmm/memory/numa.h"
#include "vmm/net/net.h"
#include "vmm/pci/port.h"
#include "vmm/virtio/balloon.h"
#include "vmm/virtio/blk.h"
#include "vmm/virtio/console.h"
#include "vmm/vsock/vsock.h"

#include <stdint.h>

#define MACHINE_TYPE      "glint-q35-1"
#define MACHINE_DISKS_MAX 16
#define MACHINE_CDS_MAX   AHCI_PORTS_MAX
#define MACHINE_IO_MAX    8
#define DISK_ID_BYTES     BLK_SERIAL_BYTES
#define DISK_QUEUES_MAX   16
#define MACHINE_NETS_MAX  6
#define BOOT_INDEX_MAX    255
#define BOOT_INDEX_NONE   (BOOT_INDEX_MAX + 1)

/* What is done when the guest panicked or its watchdog was not fed, beside telling the clients. */
enum guest_action { GUEST_RUN, GUEST_PAUSE, GUEST_RESET, GUEST_STOP };

/* How the guest sees a disk. */
enum disk_bus { DISK_VIRTIO, DISK_NVME };

struct vm_config {
	const char *name;
	uint64_t memory; /* bytes */
	enum memory_pages pages;
	struct numa numa;
	unsigned cpus;
	struct cpu_topology topology;
	const char *cpu_model;   /* NULL: not said */
	unsigned physical_bits;  /* 0: the model's own */
	bool hyperv, hyperv_kvm; /* show Hyper-V's interface, and KVM's beside it */
	unsigned io_threads;
	struct option_file kernel, initrd, restore, kvm;
	struct option_file firmware, vars;
	uint8_t uuid[FIRMWARE_UUID_BYTES]; /* as people write it; zeros: none */
	const char *cmdline;
	struct disk_config {
		char id[DISK_ID_BYTES + 1]; /* its name for people, and the serial number the guest sees */
		struct option_file file;
		bool direct;
		const char *parents; /* fd=N:fd=N...; NULL: those that the images name are in its folder */
		int folder_fd;       /* that folder; -1: none */
		int parent_fd[DISK_CHAIN_MAX];
		enum disk_bus bus;
		unsigned queues;
		unsigned port;       /* of hot-plug, from 1; 0: a slot of its own */
		unsigned boot_index; /* firmware boots from the lowest first; BOOT_INDEX_NONE: not said */
		struct drive_config drive;
	} disk[MACHINE_DISKS_MAX];
	unsigned disks;
	struct disk_config cd[MACHINE_CDS_MAX]; /* CD drives; without a file: empty */
	unsigned cds;
	struct display_config display; /* width 0: none */
	struct net_options {
		char id[DISK_ID_BYTES + 1]; /* its name for people */
		const char *tap, *passt, *vhost;
		unsigned mtu;
		int down;
		unsigned port; /* of hot-plug, from 1; 0: a slot of its own */
		struct net_config device;
	} net[MACHINE_NETS_MAX];
	unsigned nets;
	struct card_config { /* what is in a hot-plug port: the disks and interfaces that name one are moved here */
		enum card { CARD_NONE, CARD_DISK, CARD_NET } kind;
		struct disk_config disk;
		struct net_options net;
	} plugged[PCI_PORTS];
	bool rng;
	struct console_options {
		const char *name; /* NULL: the console */
		const char *path; /* of a socket, or fd=N */
		int listen_fd;    /* what became of it; -1: none */
	} console[CONSOLE_PORTS_MAX];
	unsigned consoles;
	struct agent_options {
		bool use;
		bool set_time; /* of a restored guest */
	} agent;
	struct vsock_options {
		const char *path; /* NULL: none */
		unsigned cid;
		int listen_fd, connector_fd; /* what became of the path; -1: none */
	} vsock;
	struct balloon_options {
		bool use;
		struct balloon_config device;
	} balloon;
	enum guest_action on_panic;
	struct watchdog_options {
		bool use;
		enum guest_action action;
	} watchdog;
	const char *serial, *control; /* as they were asked for; what became of them: */
	int serial_in, serial_out;    /* -1: none */
	char serial_pty[32];          /* the pseudo-terminal's name */
	int serial_other;             /* its other end, kept open; -1: none */
	int serial_listen;            /* a listening stream socket, whose client the serial port leads to; -1: none */
	int control_listen, control_peer; /* -1: none */
	bool paused;
	bool sandbox;
	enum log_level log_level;

	bool help, version;
	struct option_file file; /* --config */
	json_t *json;            /* what it holds; strings above may be its */
};

/* Every option there is; for help, and for what makes the manual page. */
extern const struct option config_options[];

/*
 * Reads the command line and the file that --config names, and sees that it makes sense. Opens nothing else. Strings
 * in *config point into @argv, whose strings are changed.
 */
[[nodiscard]] struct error *config_parse(int argc, char **argv, struct vm_config *config);

/*
 * A disk by JSON, for one that is added to a running machine: its descriptor comes otherwise. Has no strings of
 * @json's.
 */
[[nodiscard]] struct error *config_disk(const json_t *json, const struct vm_config *config, struct disk_config *disk);

/*
 * The same for an interface. @fds, which are checked and not taken: a tap's queues, then /dev/vhost-net once for each
 * or not at all; or passt's socket.
 */
[[nodiscard]] struct error *config_net(const json_t *json, const int *fds, unsigned count, struct net_options *net);

/* Closes what a disk's device did not take. */
void config_close_disk(struct disk_config *disk);

/* Copies @text to @id (DISK_ID_BYTES + 1) if it may be the id of something. @what names the option in errors. */
[[nodiscard]] struct error *config_set_id(const char *what, const char *text, char *id);

/* --- net_options.c --- */

extern const struct option_group net_group;
[[nodiscard]] struct error *config_open_nets(struct vm_config *config);
void config_release_nets(struct vm_config *config);
void config_close_net(struct net_options *net);

/* --- open.c --- */

/* Opens what the config names: files, /dev/kvm, sockets. */
[[nodiscard]] struct error *config_open(struct vm_config *config);
void config_release(struct vm_config *config);

/*
 * Makes a listening UNIX socket of @type (SOCK_STREAM, SOCK_SEQPACKET) at @path, for its user alone; a stale one that
 * an ended machine left there is taken away. @what names the option in errors.
 */
[[nodiscard]] struct error *config_listen(const char *what, const char *path, int type, int *out);

#endif
