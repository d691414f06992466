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

/* The units of the contract by name, which tells the kind of a device, its id and its place. */
struct unit_names {
	size_t count;
	struct unit_name {
		char name[SAVED_NAME_MAX + 1];
	} unit[MACHINE_UNITS_MAX];
};

static void unit_name_state(void *self, struct saved *s)
{
	struct unit_name *unit = self;

	saved_require(s);
	saved_string(s, "name", unit->name, sizeof(unit->name));
}

static bool has_unit(const struct unit_names *names, const char *name)
{
	for (size_t i = 0; i < names->count; i++)
		if (strcmp(names->unit[i].name, name) == 0)
			return true;
	return false;
}

static void names_of(const struct machine *machine, struct unit_names *names)
{
	names->count = machine->units;
	for (unsigned i = 0; i < machine->units; i++)
		memcpy(names->unit[i].name, machine->unit[i].name, sizeof(names->unit[i].name));
}

/* What one has and the other lacks is named; with the same units the order can differ only when ids were swapped. */
static void compare_units(struct saved *s, const struct unit_names *saved, const struct unit_names *ours)
{
	for (size_t i = 0; i < saved->count; i++)
		if (!has_unit(ours, saved->unit[i].name))
			saved_fail(s, "the saved machine has '%s', this one has not", saved->unit[i].name);
	for (size_t i = 0; i < ours->count; i++)
		if (!has_unit(saved, ours->unit[i].name))
			saved_fail(s, "this machine has '%s', the saved one has not", ours->unit[i].name);
	for (size_t i = 0; i < ours->count && saved->count == ours->count; i++)
		if (strcmp(saved->unit[i].name, ours->unit[i].name) != 0)
			saved_fail(s, "the saved machine has '%s' where this one has '%s'", saved->unit[i].name,
				   ours->unit[i].name);
}

static void units_state(struct machine *machine, struct saved *s)
{
	static struct unit_names names, ours; /* large, and only the main thread comes here */

	names_of(machine, &names);
	names_of(machine, &ours);
	saved_require(s);
	saved_list(s, "units", names.unit, &names.count, MACHINE_UNITS_MAX, sizeof(names.unit[0]), unit_name_state);
	if (saved_loading(s))
		compare_units(s, &names, &ours);
}

static void contract_state(void *self, struct saved *s)
{
	struct machine *machine = self;
	uint64_t memory = machine->memory.size;
	uint32_t vcpus = machine->config->cpus;

	saved_require(s);
	saved_u64(s, "memory", &memory);
	saved_require(s);
	saved_u32(s, "vcpus", &vcpus);
	if (saved_loading(s)) {
		if (memory != machine->memory.size)
			saved_fail(s, "the saved machine has %llu MiB of memory, this one %llu (--memory)",
				   (unsigned long long)(memory / MIB),
				   (unsigned long long)(machine->memory.size / MIB));
		if (vcpus != machine->config->cpus)
			saved_fail(s, "the saved machine has %u vCPUs, this one %u (--cpus)", vcpus,
				   machine->config->cpus);
	}
	if (!saved_subsection(s, "numa", machine->config->numa.nodes > 0, numa_state, &machine->config->numa) &&
	    saved_loading(s) && machine->config->numa.nodes > 0)
		saved_fail(s, "the saved machine has no NUMA nodes, this one has (--numa)");
	units_state(machine, s);
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
	if (machine->state != MACHINE_PAUSED || machine->half_reset)
		return error_new(EBUSY, "save %s: it is %s, not paused", machine->config->name,
				 machine->half_reset ? "half reset" : machine_state_name(machine));
	TRY(error_wrap(write_stream(machine, fd), "save %s", machine->config->name));
	TRY(error_wrap(make_durable(fd), "save %s", machine->config->name));
	struct error *err = machine_deactivate(machine);
	if (err) { /* what was given up before is taken again */
		log_error(machine_activate(machine));
		return error_wrap(err, "save %s: release its disks", machine->config->name);
	}
	machine_set_state(machine, MACHINE_SAVED, "saved");
	return NULL;
}

/* The saved model replaces the one that was made here, if this machine can provide it and no other was asked for. */
static struct error *accept_model(struct machine *machine)
{
	const struct cpu_model *model = &machine->vcpus.model;
	const char *asked = machine->config->cpu_model;

	if (asked && strcmp(asked, model->name) != 0)
		return error_hint(error_new(EINVAL, "the saved machine has the CPU model %s, this one was given %s",
					    model->name, asked),
				  "leave out --cpu-model: a saved state brings its own");
	if (machine->config->physical_bits && machine->config->physical_bits != model->physical_bits)
		return error_hint(error_new(EINVAL,
					    "the saved machine has %u-bit physical addresses, this one was given %u",
					    model->physical_bits, machine->config->physical_bits),
				  "leave out phys-bits: a saved state brings its own");
	TRY(cpu_model_check(&machine->vcpus.offer, model));
	return vcpus_apply_model(&machine->vcpus);
}

static struct error *read_stream(struct machine *machine, int fd)
{
	cleanup_saved struct saved *s = NULL;

	TRY(saved_open(fd, MACHINE_TYPE, &s));
	TRY(saved_unit(s, "contract", 1, contract_state, machine));
	TRY(saved_unit(s, "cpu-model", 1, cpu_model_state, &machine->vcpus.model));
	TRY(accept_model(machine));
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
