/*
 * host.toml, any bytes: read, or refused with words that can be shown on a terminal.
 */
#include "hostconfig/hostconfig.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool good)
{
	if (!good)
		abort();
}

static void check_words(const char *text, size_t room)
{
	size_t len = strnlen(text, room);

	must(len < room);
	for (size_t i = 0; i < len; i++)
		must((unsigned char)text[i] >= 0x20 && text[i] != 0x7f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct hostconfig_problems problems;
	struct hostconfig *config;

	must(!hostconfig_read((const char *)data, size, &config, &problems));
	must(!config == (problems.count > 0));
	for (size_t i = 0; i < problems.count; i++) {
		check_words(problems.list[i].message, sizeof(problems.list[i].message));
		check_words(problems.list[i].hint, sizeof(problems.list[i].hint));
		must(problems.list[i].message[0]);
	}
	for (size_t i = 0; config && i < config->network_count; i++) {
		const struct hostconfig_network *n = &config->networks[i];
		must(n->name && strlen(n->name) <= 10 && (n->base || n->first || n->devices.count));
		must((n->ipv4.method == HOSTCONFIG_STATIC) == (n->ipv4.addresses.count > 0));
	}
	hostconfig_free(config);
	return 0;
}
