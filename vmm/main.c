/*
 * glint-vmm: one virtual machine, one process. Parses the command line, builds the machine, runs it, ends it.
 */
#include "base/log.h"
#include "vmm/machine/machine.h"

/* Large (tables of units and bus regions) and one per process. */
static struct machine machine;

int main(int argc, char **argv)
{
	struct vm_config config;
	int exit_code = 0;

	log_init("glint-vmm", LOG_LEVEL_INFO);
	struct error *err = options_parse(argc, argv, &config, &exit_code);
	if (!err && exit_code == 0) {
		log_init("glint-vmm", config.log_level);
		err = machine_create(&machine, &config);
		if (!err)
			err = machine_run(&machine);
		machine_destroy(&machine);
	}
	config_release(&config);
	bool failed = err != NULL;
	log_error(err);
	return failed ? 1 : 0;
}
