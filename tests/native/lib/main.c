/* From the loader's hands: command line, memory map, RSDP; then the program. Both boot protocols end up here. */
#include "guest.h"

#define HVM_START_MAGIC 0x336ec578

uint64_t ram_low_end, ram_high_end, rsdp;
const char *current_test = "boot";

static char cmdline[2048];

static void add_ram(uint64_t base, uint64_t size)
{
	if (base == 0x100000)
		ram_low_end = base + size;
	else if (base == 1ull << 32)
		ram_high_end = base + size;
}

static void copy_cmdline(const char *from)
{
	for (unsigned i = 0; i < sizeof(cmdline) - 2 && from[i]; i++)
		cmdline[i] = from[i];
}

static void from_boot_params(const uint8_t *p)
{
	uint64_t at = *(const uint32_t *)(p + 0x228);

	copy_cmdline((const char *)at);
	rsdp = *(const uint64_t *)(p + 0x70);
	for (unsigned i = 0; i < p[0x1e8]; i++) {
		const uint8_t *e = p + 0x2d0 + i * 20;
		if (*(const uint32_t *)(e + 16) == 1)
			add_ram(*(const uint64_t *)e, *(const uint64_t *)(e + 8));
	}
}

static void from_start_info(const uint8_t *p)
{
	const uint64_t *map = *(const uint64_t *const *)(p + 40);

	CHECK(*(const uint32_t *)p == HVM_START_MAGIC, "no PVH start info at %lx", (uint64_t)p);
	copy_cmdline(*(const char *const *)(p + 24));
	rsdp = *(const uint64_t *)(p + 32);
	for (unsigned i = 0; i < *(const uint32_t *)(p + 48); i++)
		if ((uint32_t)map[i * 3 + 2] == 1)
			add_ram(map[i * 3], map[i * 3 + 1]);
}

const char *option(const char *name, const char *otherwise)
{
	size_t len = strlen(name);

	for (char *word = cmdline; *word;) {
		if (memcmp(word, name, len) == 0 && word[len] == '=')
			return word + len + 1;
		word += strlen(word) + 1;
	}
	return otherwise;
}

uint64_t option_number(const char *name, uint64_t otherwise)
{
	const char *text = option(name, NULL);
	uint64_t value = 0;

	if (!text)
		return otherwise;
	for (; *text >= '0' && *text <= '9'; text++)
		value = value * 10 + (uint64_t)(*text - '0');
	return value;
}

void guest_start(const uint8_t *info, unsigned pvh);

void guest_start(const uint8_t *info, unsigned pvh)
{
	if (pvh)
		from_start_info(info);
	else
		from_boot_params(info);
	/* One string a word: the end is an empty one, for the buffer has zeros behind the text. */
	for (char *c = cmdline; *c; c++)
		if (*c == ' ')
			*c = '\0';
	irq_init();
	print("GUEST %s ram %lu MiB + %lu MiB\n", pvh ? "pvh" : "bzimage", ram_low_end >> 20,
	      ram_high_end ? (ram_high_end >> 20) - 4096 : 0);
	guest_main();
	power_off();
}
