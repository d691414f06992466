/*
 * What a machine is made of, as descriptors and numbers: the monitor opens nothing once it runs. Filled from the
 * command line by options.c.
 */
#ifndef GLINT_VMM_MACHINE_CONFIG_H
#define GLINT_VMM_MACHINE_CONFIG_H

#include "base/error.h"
#include "base/log.h"
#include "vmm/firmware/firmware.h"
#include "vmm/virtio/blk.h"

#include <stdint.h>

#define MACHINE_TYPE      "glint-q35-1"
#define MACHINE_DISKS_MAX 16
#define MACHINE_IO_MAX    8
#define DISK_ID_BYTES     BLK_SERIAL_BYTES
#define DISK_QUEUES_MAX   16
#define BOOT_INDEX_MAX    255

/* A file given by path or as fd=N, with the words it was given by for errors. fd -1: not given. */
struct config_file {
	const char *name;
	int fd;
};

struct vm_config {
	const char *name;
	uint64_t memory; /* bytes */
	unsigned cpus;
	unsigned io_threads;
	struct config_file kernel, initrd, restore, kvm;
	struct config_file firmware, vars;
	uint8_t uuid[FIRMWARE_UUID_BYTES]; /* as people write it; zeros: none */
	const char *cmdline;
	struct disk_config {
		char id[DISK_ID_BYTES + 1]; /* its name for people, and the serial number the guest sees */
		struct blk_config blk;
		int boot_index; /* firmware boots from the lowest first; -1: not said */
	} disk[MACHINE_DISKS_MAX];
	unsigned disks;
	bool rng;
	int serial_in, serial_out;        /* -1: none */
	int control_listen, control_peer; /* -1: none */
	bool paused;
	bool sandbox;
	enum log_level log_level;
};

/*
 * Reads the command line and opens what it names. *exit_code is 0 when the caller goes on, else the program ends with
 * *exit_code - 1 (--help, --version). Strings in *config point into @argv.
 */
[[nodiscard]] struct error *options_parse(int argc, char **argv, struct vm_config *config, int *exit_code);
void config_release(struct vm_config *config);

#endif
