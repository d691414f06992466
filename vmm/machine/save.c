/*
 * Saving and loading the whole machine. The stream is: the contract (what the machine is made of), the CPU model, every
 * unit in the order the machine was built, guest memory, and the end mark. lib/saved has the format.
 *
 * Order on load: the contract is compared, not obeyed: the caller built the machine and a difference is refused by
 * name. Devices re-establish their host side (restored) after memory is there.
 */
#include "vmm/machine/machine.h"

#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* One device of the contract: the unit's name, which tells its kind, id and place. */
static void unit_name_state(void *self, struct saved *s)
{
	struct unit *unit = self;
	char name[SAVED_NAME_MAX + 1];

	snprintf(name, sizeof(name), "%s", unit->name);
	saved_require(s);
	saved_string(s, "name", name, sizeof(name));
	if (saved_loading(s) && strcmp(name, unit->name) != 0)
		saved_fail(s, "the saved machine has '%s' where this one has '%s'", name, unit->name);
}

static void contract_state(void *self, struct saved *s)
{
	struct machine *machine = self;
	uint64_t memory = machine->memory.size;
	uint32_t vcpus = machine->config->cpus;
	uint32_t disks = machine->config->disks;

	saved_require(s);
	saved_u64(s, "memory", &memory);
	saved_require(s);
	saved_u32(s, "vcpus", &vcpus);
	saved_require(s);
	saved_u32(s, "disks", &disks);
	if (saved_loading(s)) {
		if (memory != machine->memory.size)
			saved_fail(s, "the saved machine has %llu MiB of memory, this one %llu (--memory)",
				   (unsigned long long)(memory / MIB),
				   (unsigned long long)(machine->memory.size / MIB));
		if (vcpus != machine->config->cpus)
			saved_fail(s, "the saved machine has %u vCPUs, this one %u (--cpus)", vcpus,
				   machine->config->cpus);
		if (disks != machine->config->disks)
			saved_fail(s, "the saved machine has %u disks, this one %u (--disk)", disks,
				   machine->config->disks);
	}
	saved_require(s);
	saved_array(s, "units", machine->unit, machine->units, sizeof(machine->unit[0]), unit_name_state);
}

static struct error *each_unit(struct machine *machine, struct saved *s)
{
	for (unsigned i = 0; i < machine->units; i++) {
		const struct unit *unit = &machine->unit[i];
		TRY(saved_unit(s, unit->name, unit->ops->version, unit->ops->state, unit->self));
	}
	return NULL;
}

static struct error *all_memory(struct machine *machine, struct saved *s)
{
	char name[32];

	for (unsigned i = 0; i < machine->memory.regions; i++) {
		const struct memory_region *ram = &machine->memory.region[i];
		uint64_t offset = (uint64_t)(ram->host - machine->memory.host);
		snprintf(name, sizeof(name), "ram%u", i);
		TRY(saved_bulk_file(s, name, ram->host, ram->size, machine->memory.fd, offset));
	}
	return NULL;
}

static struct error *write_stream(struct machine *machine, int fd)
{
	cleanup_saved struct saved *s = NULL;

	TRY(saved_create(fd, MACHINE_TYPE, &s));
	TRY(saved_unit(s, "contract", 1, contract_state, machine));
	TRY(saved_unit(s, "cpu-model", 1, cpu_model_state, &machine->vcpus.model));
	TRY(each_unit(machine, s));
	TRY(all_memory(machine, s));
	TRY(display_bulk(machine->display, s));
	TRY(firmware_bulk(&machine->firmware, s, false));
	return saved_finish(s);
}

/* The disks are given up next: from then on the file is the machine, so it must be durable. Pipes cannot be. */
static struct error *make_durable(int fd)
{
	if (fsync(fd) < 0 && errno != EINVAL && errno != EROFS)
		return error_new(errno, "make the saved state durable");
	return NULL;
}

struct error *machine_save(struct machine *machine, int fd)
{
	if (machine->state != MACHINE_PAUSED)
		return error_new(EBUSY, "save %s: it is %s, not paused", machine->config->name,
				 machine_state_name(machine));
	TRY(error_wrap(write_stream(machine, fd), "save %s", machine->config->name));
	TRY(error_wrap(make_durable(fd), "save %s", machine->config->name));
	struct error *err = machine_deactivate(machine);
	if (err) { /* what was given up before is taken again */
		log_error(machine_activate(machine));
		return error_wrap(err, "save %s: release its disks", machine->config->name);
	}
	machine->state = MACHINE_SAVED;
	return NULL;
}

static struct error *read_stream(struct machine *machine, int fd)
{
	cleanup_saved struct saved *s = NULL;

	TRY(saved_open(fd, MACHINE_TYPE, &s));
	TRY(saved_unit(s, "contract", 1, contract_state, machine));
	TRY(saved_unit(s, "cpu-model", 1, cpu_model_state, &machine->vcpus.model));
	TRY(vcpus_apply_model(&machine->vcpus));
	TRY(each_unit(machine, s));
	TRY(all_memory(machine, s));
	TRY(display_bulk(machine->display, s));
	TRY(firmware_bulk(&machine->firmware, s, true));
	TRY(saved_finish(s));
	for (unsigned i = 0; i < machine->units; i++) {
		const struct unit *unit = &machine->unit[i];
		if (unit->ops->restored)
			TRY(error_wrap(unit->ops->restored(unit->self), "%s", unit->name));
	}
	return NULL;
}

struct error *machine_load(struct machine *machine, int fd)
{
	return error_wrap(read_stream(machine, fd), "restore %s from %s", machine->config->name,
			  machine->config->restore.name);
}
