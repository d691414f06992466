/*
 * glint-vmm: one virtual machine, one process. Parses the command line, builds the machine, runs it, ends it.
 */
#include "base/log.h"
#include "vmm/machine/machine.h"

#include <stdio.h>

/* Large (tables of units and bus regions) and one per process. */
static struct machine machine;

static void help(void)
{
	puts("Usage: glint-vmm --kernel FILE | --firmware FILE | --restore FILE [OPTION]...\n"
	     "Runs one virtual machine of type " MACHINE_TYPE " on KVM, in a sandbox, until its guest powers off.\n");
	option_help(config_options, stdout);
	puts("\nFILE is a path or fd=N, a descriptor the caller left open. A comma in a value is written twice. Exit "
	     "status: 0 the\nguest powered off or was told to quit, 1 it could not start or go on.");
}

static struct error *run(struct vm_config *config)
{
	log_init("glint-vmm", config->log_level);
	TRY(config_open(config));
	struct error *err = machine_create(&machine, config);
	if (!err)
		err = machine_run(&machine);
	machine_destroy(&machine);
	return err;
}

int main(int argc, char **argv)
{
	struct vm_config config;

	log_init("glint-vmm", LOG_LEVEL_INFO);
	struct error *err = config_parse(argc, argv, &config);
	if (!err && config.help)
		help();
	else if (!err && config.version)
		puts("glint-vmm " GLINT_VERSION);
	else if (!err)
		err = run(&config);
	config_release(&config);
	bool failed = err != NULL;
	log_error(err);
	return failed ? 1 : 0;
}
