/*
 * Fuzzes the options of glint-vmm. The first byte says which door: a JSON file, or command line words (a NUL byte ends
 * each). Nothing is opened. Whatever comes in, what is filled lies inside its bounds.
 */
#include "base/cleanup.h"
#include "vmm/cpu/vcpu.h"
#include "vmm/machine/config.h"
#include "vmm/memory/memory.h"

#include <stdlib.h>
#include <string.h>

#define WORDS_MAX 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct error *from_words(char *text, size_t len, struct vm_config *config)
{
	char *argv[WORDS_MAX + 1] = {(char[]){"glint-vmm"}};
	int argc = 1;

	for (char *word = text; word < text + len && argc < WORDS_MAX; word += strlen(word) + 1)
		argv[argc++] = word;
	/* What comes before --config in the table of a real run: it must not change the words. */
	option_argument(config_options, argc, argv, "config");
	return option_arguments(config_options, argc, argv, config);
}

static void check(const struct vm_config *config)
{
	if (config->disks > MACHINE_DISKS_MAX || config->cpus > VCPUS_MAX || config->memory > MEMORY_MAX)
		abort();
	for (unsigned i = 0; i < config->disks; i++) {
		const struct disk_config *disk = &config->disk[i];
		if (!disk->file.name || strlen(disk->id) > DISK_ID_BYTES || disk->queues > DISK_QUEUES_MAX ||
		    disk->boot_index > BOOT_INDEX_NONE)
			abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct vm_config config;

	if (size < 2)
		return 0;
	memset(&config, 0, sizeof(config));
	cleanup_free char *text = malloc(size);
	memcpy(text, data + 1, size - 1);
	text[size - 1] = '\0';
	cleanup_error struct error *err = NULL;
	if (data[0] & 1) {
		config.json = json_loadb(text, size - 1, JSON_REJECT_DUPLICATES, NULL);
		err = config.json ? option_json(config_options, "fuzz", config.json, &config) : NULL;
	} else {
		err = from_words(text, size, &config);
	}
	if (!err)
		check(&config);
	json_decref(config.json);
	return 0;
}
