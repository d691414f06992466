/*
 * The options of glint-vmm: the table that the command line and the JSON file share, and what must hold between them.
 */
#include "vmm/machine/config.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "vmm/agent/agent.h"
#include "vmm/cpu/model.h"
#include "vmm/cpu/vcpu.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define CONFIG_FILE_MAX ((size_t)1 << 20)
#define NAME_MAX_BYTES  255

/* --- --disk --- */

struct error *config_set_id(const char *what, const char *text, char *id)
{
	size_t len = strlen(text);

	if (len == 0 || len > DISK_ID_BYTES ||
	    strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != len)
		return error_hint(error_new(EINVAL, "%s: '%s' is not an id", what, text),
				  "an id has 1 to %d letters, digits, dots, dashes and underscores", DISK_ID_BYTES);
	memcpy(id, text, len + 1);
	return NULL;
}

static struct error *set_disk_id(const char *what, const char *text, void *object)
{
	struct disk_config *disk = object;

	return config_set_id(what, text, disk->id);
}

static struct error *set_on_error(const char *what, const char *text, void *object)
{
	struct disk_config *disk = object;

	if (strcmp(text, "report") == 0)
		disk->drive.on_full = disk->drive.on_error = DRIVE_REPORT;
	else if (strcmp(text, "pause") == 0)
		disk->drive.on_full = disk->drive.on_error = DRIVE_PAUSE;
	else
		return error_new(EINVAL, "%s: '%s' is neither 'report' nor 'pause'", what, text);
	return NULL;
}

static struct error *set_format(const char *what, const char *text, void *object)
{
	static const char *const formats[] = {"raw", "vhd", "vhdx"};
	struct disk_config *disk = object;

	for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
		if (strcmp(text, formats[i]) == 0) {
			disk->drive.format = formats[i];
			return NULL;
		}
	}
	return error_hint(error_new(EINVAL, "%s: '%s' is not a disk format", what, text), "use raw, vhd or vhdx");
}

static const struct option_choice disk_buses[] = {{"virtio", DISK_VIRTIO}, {"nvme", DISK_NVME}, {NULL}};

static const struct option disk_fields[] = {
	{"path", OPTION_FILE, offsetof(struct disk_config, file), .aka = "file path_on_host",
	 .help = "the image; parents that it names are looked for from its own folder down"},
	{"format", OPTION_OWN, .own = set_format, .value = "raw|vhd|vhdx", .aka = "image_type",
	 .help = "what the file is (default: raw); it is not looked for, as a guest can write any header into a raw "
		 "disk"},
	{"parents", OPTION_TEXT, offsetof(struct disk_config, parents), .value = "fd=N[:fd=N]...",
	 .help = "descriptors of its parents, the nearest first, for a path that is fd=N"},
	{"bus", OPTION_CHOICE, offsetof(struct disk_config, bus), .aka = "if interface", .choices = disk_buses,
	 .help = "what the guest drives it by: virtio-blk, or an NVMe controller of its own (default: virtio)"},
	{"readonly", OPTION_SWITCH, offsetof(struct disk_config, drive.readonly), .aka = "is_read_only",
	 .help = "the guest may not write (default: off)"},
	{"queues", OPTION_NUMBER, offsetof(struct disk_config, queues), .aka = "num-queues", .min = 1,
	 .max = DISK_QUEUES_MAX, .help = "1 to 16 (default: one a vCPU, at most 4)"},
	{"id", OPTION_OWN, .own = set_disk_id, .value = "NAME", .aka = "serial drive_id",
	 .help = "its name, and the serial number that the guest sees (default: diskN)"},
	{"direct", OPTION_SWITCH, offsetof(struct disk_config, direct),
	 .help = "past the host's page cache (default: off)"},
	{"on-error", OPTION_OWN, .own = set_on_error, .value = "report|pause", .aka = "werror rerror",
	 .help = "what an I/O error does: tell the guest, or pause the machine (default: pause when the file system "
		 "below "
		 "is full, else report)"},
	{"bootindex", OPTION_NUMBER, offsetof(struct disk_config, boot_index), .max = BOOT_INDEX_MAX,
	 .help = "firmware tries the disks that have one first, the lowest before the others"},
	{"port", OPTION_NUMBER, offsetof(struct disk_config, port), .min = 1, .max = PCI_PORTS,
	 .help = "the hot-plug port that it is in (default: a slot of its own)"},
	{NULL},
};

static void begin_disk(const void *object, void *element, unsigned index)
{
	struct disk_config *disk = element;

	*disk = (struct disk_config){
		.file.fd = -1,
		.folder_fd = -1,
		.boot_index = BOOT_INDEX_NONE,
		.drive = {.format = "raw", .fd = -1, .on_full = DRIVE_PAUSE, .on_error = DRIVE_REPORT},
	};
	snprintf(disk->id, sizeof(disk->id), "disk%u", index);
}

static struct error *check_disk(const char *what, const void *object, const void *element, unsigned index)
{
	const struct vm_config *config = object;
	const struct disk_config *disk = element;

	if (!disk->file.name)
		return error_hint(error_new(EINVAL, "%s names no file", what), "write %s path=FILE", what);
	for (unsigned i = 0; i < index; i++) {
		if (strcmp(config->disk[i].id, disk->id) == 0)
			return error_hint(error_new(EEXIST, "%s: two disks have the id '%s'", what, disk->id),
					  "give each an id=NAME of its own");
		if (disk->boot_index != BOOT_INDEX_NONE && config->disk[i].boot_index == disk->boot_index)
			return error_new(EEXIST, "%s: two disks have the bootindex %u", what, disk->boot_index);
	}
	if (disk->parents && !option_is_descriptor(disk->file.name))
		return error_hint(error_new(EINVAL, "%s: parents are for a path that is fd=N", what),
				  "leave them out: those of a file are found from its folder down");
	if (disk->port && disk->boot_index != BOOT_INDEX_NONE)
		return error_new(EINVAL, "%s: a disk in a port has no bootindex", what);
	return NULL;
}

static const struct option_group disk_group = {
	.fields = disk_fields,
	.bytes = sizeof(struct disk_config),
	.count_offset = offsetof(struct vm_config, disks),
	.most = MACHINE_DISKS_MAX,
	.begin = begin_disk,
	.check = check_disk,
};

/* --- --cdrom: a disk that is only read, and may be missing --- */

static const struct option cd_fields[] = {
	{"path", OPTION_FILE, offsetof(struct disk_config, file), .aka = "file",
	 .help = "the image of the medium (ISO 9660, UDF); without one the drive is empty"},
	{"id", OPTION_OWN, .own = set_disk_id, .value = "NAME", .aka = "serial",
	 .help = "its name, and the serial number that the guest sees (default: cdN)"},
	{"direct", OPTION_SWITCH, offsetof(struct disk_config, direct),
	 .help = "past the host's page cache (default: off)"},
	{"on-error", OPTION_OWN, .own = set_on_error, .value = "report|pause", .aka = "rerror",
	 .help = "what an I/O error does: tell the guest, or pause the machine (default: report)"},
	{"bootindex", OPTION_NUMBER, offsetof(struct disk_config, boot_index), .max = BOOT_INDEX_MAX,
	 .help = "firmware tries what has one first, the lowest before the others"},
	{NULL},
};

static void begin_cd(const void *object, void *element, unsigned index)
{
	struct disk_config *cd = element;

	begin_disk(object, element, index);
	cd->drive.readonly = true;
	snprintf(cd->id, sizeof(cd->id), "cd%u", index);
}

static const struct option_group cd_group = {
	.fields = cd_fields,
	.bytes = sizeof(struct disk_config),
	.count_offset = offsetof(struct vm_config, cds),
	.most = MACHINE_CDS_MAX,
	.begin = begin_cd,
};

/* Beside each other, and beside the disks. */
static struct error *check_cds(const struct vm_config *config)
{
	for (unsigned i = 0; i < config->cds; i++) {
		const struct disk_config *cd = &config->cd[i];
		for (unsigned j = 0; j < i + config->disks; j++) {
			const struct disk_config *other = j < i ? &config->cd[j] : &config->disk[j - i];
			if (strcmp(other->id, cd->id) == 0)
				return error_hint(error_new(EEXIST, "--cdrom: two have the id '%s'", cd->id),
						  "give each an id=NAME of its own");
			if (cd->boot_index != BOOT_INDEX_NONE && other->boot_index == cd->boot_index)
				return error_new(EEXIST, "--cdrom: two have the bootindex %u", cd->boot_index);
		}
	}
	return NULL;
}

/* --- --console-port --- */

static const struct option console_fields[] = {
	{"name", OPTION_TEXT, offsetof(struct console_options, name), .min = 1, .max = CONSOLE_NAME_MAX,
	 .value = "NAME",
	 .help = "what the guest finds it by (/dev/virtio-ports/NAME); without a name it is the console, hvc0"},
	{"path", OPTION_TEXT, offsetof(struct console_options, path), .aka = "socket", .min = 1, .value = "PATH|fd=N",
	 .help = "the UNIX socket that is made for its client, or a listening one"},
	{NULL},
};

static void begin_console(const void *object, void *element, unsigned index)
{
	*(struct console_options *)element = (struct console_options){.listen_fd = -1};
}

static struct error *check_console(const char *what, const void *object, const void *element, unsigned index)
{
	const struct vm_config *config = object;
	const struct console_options *console = element;

	if (!console->path)
		return error_hint(error_new(EINVAL, "%s names no socket", what), "write %s name=NAME,path=PATH", what);
	for (const char *p = console->name; p && *p; p++)
		if (*p <= ' ' || *p > '~' || *p == '/')
			return error_hint(error_new(EINVAL, "%s: '%s' is not a name", what, console->name),
					  "names become file names in the guest: no spaces, no slashes");
	for (unsigned i = 0; i < index; i++) {
		const char *other = config->console[i].name;
		if (!console->name && !other)
			return error_hint(error_new(EEXIST, "%s: a machine has one console", what),
					  "give the other ports a name=NAME");
		if (console->name && other && strcmp(console->name, other) == 0)
			return error_new(EEXIST, "%s: two ports have the name '%s'", what, other);
	}
	if (index == CONSOLE_PORTS_MAX - 1 && console->name) {
		for (unsigned i = 0; i < index; i++)
			if (!config->console[i].name)
				return NULL;
		return error_new(E2BIG, "%s: a machine has at most %d ports with a name", what, CONSOLE_PORTS_MAX - 1);
	}
	return NULL;
}

static const struct option_group console_group = {
	.fields = console_fields,
	.bytes = sizeof(struct console_options),
	.count_offset = offsetof(struct vm_config, consoles),
	.most = CONSOLE_PORTS_MAX,
	.begin = begin_console,
	.check = check_console,
};

/* --- --agent: a console port, too --- */

static const struct option agent_fields[] = {
	{"use", OPTION_SWITCH, offsetof(struct agent_options, use), .help = "whether there is one (default: on)"},
	{"set-time", OPTION_SWITCH, offsetof(struct agent_options, set_time),
	 .help = "set the clock of a guest that was restored (default: on)"},
	{NULL},
};

static void begin_agent(const void *object, void *element, unsigned index)
{
	*(struct agent_options *)element = (struct agent_options){.use = true, .set_time = true};
}

static const struct option_group agent_group = {
	.fields = agent_fields, .bytes = sizeof(struct agent_options), .begin = begin_agent};

/* The agent's port is one of those with a name. */
static struct error *check_agent(const struct vm_config *config)
{
	unsigned named = 0;

	if (!config->agent.use)
		return NULL;
	for (unsigned i = 0; i < config->consoles; i++) {
		const char *name = config->console[i].name;
		named += name != NULL;
		if (name && strcmp(name, AGENT_PORT) == 0)
			return error_hint(error_new(EEXIST, "--agent: a console port has the name '%s'", name),
					  "leave out either: --agent has that port for itself");
	}
	if (named == CONSOLE_PORTS_MAX - 1)
		return error_new(E2BIG, "--agent: a machine has at most %d ports with a name, the agent's among them",
				 CONSOLE_PORTS_MAX - 1);
	return NULL;
}

/* --- --vsock --- */

static const struct option vsock_fields[] = {
	{"path", OPTION_TEXT, offsetof(struct vsock_options, path), .aka = "socket uds_path", .min = 1, .value = "PATH",
	 .help = "the UNIX socket that clients of the host connect to (\"CONNECT PORT\"); the guest's connections to "
		 "port "
		 "P of the host go to PATH_P"},
	{"cid", OPTION_NUMBER, offsetof(struct vsock_options, cid), .aka = "guest_cid", .min = VSOCK_CID_MIN,
	 .max = VSOCK_CID_MAX, .help = "what the guest calls itself (default: 3)"},
	{NULL},
};

static struct error *check_vsock(const char *what, const void *object, const void *element, unsigned index)
{
	const struct vsock_options *vsock = element;

	if (vsock->path)
		return NULL;
	return error_hint(error_new(EINVAL, "%s names no socket", what), "write %s path=PATH", what);
}

static const struct option_group vsock_group = {
	.fields = vsock_fields, .bytes = sizeof(struct vsock_options), .check = check_vsock};

/* --- what is in ports --- */

struct error *config_disk(const json_t *json, const struct vm_config *config, struct disk_config *disk)
{
	begin_disk(config, disk, 0);
	disk->id[0] = '\0';
	TRY(option_json(disk_fields, "disk", json, disk));
	if (disk->file.name || disk->direct || disk->parents || disk->boot_index != BOOT_INDEX_NONE)
		return error_hint(
			error_new(EINVAL, "path, parents, direct and bootindex are not for a disk that is added"),
			"open it as it is to be used, and pass its descriptor, then those of its parents");
	if (disk->id[0] == '\0')
		return error_new(EINVAL, "the disk needs an id");
	if (disk->queues == 0)
		disk->queues = MIN(config->cpus, 4u);
	return NULL;
}

static struct error *take_port(struct vm_config *config, unsigned port, enum card kind, struct card_config **out)
{
	*out = &config->plugged[port - 1];
	if ((*out)->kind)
		return error_new(EEXIST, "port %u: two devices are in it", port);
	(*out)->kind = kind;
	return NULL;
}

/* Takes the devices that are in ports out of the others. */
static struct error *sort_cards(struct vm_config *config)
{
	unsigned disks = 0, nets = 0;
	struct card_config *card;

	for (unsigned i = 0; i < config->disks; i++) {
		if (config->disk[i].port) {
			TRY(take_port(config, config->disk[i].port, CARD_DISK, &card));
			card->disk = config->disk[i];
		} else {
			config->disk[disks++] = config->disk[i];
		}
	}
	config->disks = disks;
	for (unsigned i = 0; i < config->nets; i++) {
		if (config->net[i].port) {
			TRY(take_port(config, config->net[i].port, CARD_NET, &card));
			card->net = config->net[i];
		} else {
			config->net[nets++] = config->net[i];
		}
	}
	config->nets = nets;
	return NULL;
}

/* --- --balloon --- */

#define BALLOON(member) offsetof(struct balloon_options, member)

static const struct option balloon_fields[] = {
	{"use", OPTION_SWITCH, BALLOON(use), .help = "whether there is one (default: on)"},
	{"deflate-on-oom", OPTION_SWITCH, BALLOON(device.deflate_on_oom),
	 .help = "a guest short of memory takes it back by itself (default: on)"},
	{"reporting", OPTION_SWITCH, BALLOON(device.reporting), .aka = "free-page-reporting",
	 .help = "memory that the guest does not use is the host's (default: on)"},
	{NULL},
};

static void begin_balloon(const void *object, void *element, unsigned index)
{
	struct balloon_options *balloon = element;

	*balloon = (struct balloon_options){.use = true, .device = {.deflate_on_oom = true, .reporting = true}};
}

static const struct option_group balloon_group = {
	.fields = balloon_fields, .bytes = sizeof(struct balloon_options), .begin = begin_balloon};

/* --- --on-panic, --watchdog --- */

static const struct option_choice guest_actions[] = {
	{"run", GUEST_RUN}, {"pause", GUEST_PAUSE}, {"reset", GUEST_RESET}, {"stop", GUEST_STOP}, {NULL}};

static const struct option watchdog_fields[] = {
	{"action", OPTION_CHOICE, offsetof(struct watchdog_options, action), .choices = guest_actions,
	 .help = "what is done when it expires (default: reset)"},
	{NULL},
};

static void begin_watchdog(const void *object, void *element, unsigned index)
{
	struct watchdog_options *watchdog = element;

	*watchdog = (struct watchdog_options){.use = true, .action = GUEST_RESET};
}

static const struct option_group watchdog_group = {
	.fields = watchdog_fields, .bytes = sizeof(struct watchdog_options), .begin = begin_watchdog};

/* --- --cpus, --cpu-model, --hyperv: groups whose places are in the machine's own structure --- */

static const struct option cpus_fields[] = {
	{"count", OPTION_NUMBER, offsetof(struct vm_config, cpus), .min = 1, .max = VCPUS_MAX, .help = "1 to 256"},
	{"sockets", OPTION_NUMBER, offsetof(struct vm_config, topology.sockets), .min = 1, .max = VCPUS_MAX,
	 .help = "of processors (default: 1)"},
	{"cores", OPTION_NUMBER, offsetof(struct vm_config, topology.cores), .min = 1, .max = VCPUS_MAX,
	 .help = "of each socket (default: what makes the count)"},
	{"threads", OPTION_NUMBER, offsetof(struct vm_config, topology.threads), .min = 1, .max = VCPUS_MAX,
	 .help = "of each core (default: 1)"},
	{NULL},
};

static void begin_cpus(const void *object, void *element, unsigned index)
{
	struct vm_config *config = element;

	config->topology = (struct cpu_topology){0};
}

static const struct option_group cpus_group = {.fields = cpus_fields, .begin = begin_cpus};

static struct error *set_cpu_model(const char *what, const char *text, void *object)
{
	struct vm_config *config = object;

	if (strcmp(text, "host") != 0 && !cpu_contract_find(text))
		return error_hint(error_new(EINVAL, "%s: there is no CPU model '%s'", what, text),
				  "choose host, x86-64-v1, x86-64-v2, x86-64-v3 or x86-64-v4");
	config->cpu_model = text;
	return NULL;
}

static const struct option cpu_model_fields[] = {
	{"model", OPTION_OWN, .own = set_cpu_model, .value = "host|x86-64-v1|x86-64-v2|x86-64-v3|x86-64-v4",
	 .help = "all that this host offers, or a fixed set that is the same on every host (default: host)"},
	{"phys-bits", OPTION_NUMBER, offsetof(struct vm_config, physical_bits), .min = CPU_BITS_MIN,
	 .max = CPU_BITS_MAX, .help = "width of physical addresses (default: the host's; 39 for a fixed set)"},
	{NULL},
};
static const struct option_group cpu_model_group = {.fields = cpu_model_fields};

static const struct option hyperv_fields[] = {
	{"show", OPTION_SWITCH, offsetof(struct vm_config, hyperv), .help = "show it (default: off)"},
	{"kvm", OPTION_SWITCH, offsetof(struct vm_config, hyperv_kvm),
	 .help = "and KVM's interface beside it, which Linux prefers (default: on)"},
	{NULL},
};
static const struct option_group hyperv_group = {.fields = hyperv_fields};

/* --- --numa --- */

/* "0-3+8-11" */
static struct error *set_node_cpus(const char *what, const char *text, void *object)
{
	struct numa_node *node = object;

	memset(node->cpus, 0, sizeof(node->cpus));
	for (const char *at = text;;) {
		char *end;
		unsigned long first = strtoul(at, &end, 10), last = first;
		if (!isdigit((unsigned char)*at))
			break;
		if (*end == '-' && isdigit((unsigned char)end[1]))
			last = strtoul(end + 1, &end, 10);
		if (last < first || last >= NUMA_CPUS_MAX)
			break;
		for (unsigned long cpu = first; cpu <= last; cpu++)
			node->cpus[cpu / 64] |= 1ull << cpu % 64;
		if (*end == '\0')
			return NULL;
		if (*end != '+')
			break;
		at = end + 1;
	}
	return error_hint(error_new(EINVAL, "%s: '%s' are no vCPUs", what, text), "write 0-3, or 0-1+4-5; from 0 to %d",
			  NUMA_CPUS_MAX - 1);
}

static const struct option numa_fields[] = {
	{"cpus", OPTION_OWN, .own = set_node_cpus, .value = "FIRST-LAST[+FIRST-LAST]...", .help = "its vCPUs"},
	{"memory", OPTION_SIZE, offsetof(struct numa_node, memory), .aka = "mem", .min = MIB, .max = MEMORY_MAX,
	 .help = "its part of --memory, whole MiB"},
	{"host-node", OPTION_NUMBER, offsetof(struct numa_node, host_node), .aka = "host_numa_node",
	 .max = NUMA_HOST_MAX, .help = "the host's node that this memory is to be on (default: any)"},
	{NULL},
};

static void begin_node(const void *object, void *element, unsigned index)
{
	*(struct numa_node *)element = (struct numa_node){.host_node = NUMA_HOST_ANY};
}

static const struct option_group numa_group = {
	.fields = numa_fields,
	.bytes = sizeof(struct numa_node),
	.count_offset = offsetof(struct vm_config, numa.nodes),
	.most = NUMA_NODES_MAX,
	.begin = begin_node,
};

static const struct option_choice page_kinds[] = {{"auto", MEMORY_PAGES_AUTO},
						  {"2M", MEMORY_PAGES_2M},
						  {"1G", MEMORY_PAGES_1G},
						  {"off", MEMORY_PAGES_SMALL},
						  {NULL}};

/* --- the others --- */

/* "01234567-89ab-cdef-0123-456789abcdef"; the dashes may be left out. */
static struct error *set_uuid(const char *what, const char *text, void *object)
{
	struct vm_config *config = object;
	unsigned digits = 0;

	memset(config->uuid, 0, sizeof(config->uuid));
	for (const char *p = text; *p; p++) {
		static const char hex[] = "0123456789abcdef";
		const char *digit = strchr(hex, tolower((unsigned char)*p));
		if (*p == '-')
			continue;
		if (!digit || digits == 2 * sizeof(config->uuid)) {
			digits = 0;
			break;
		}
		config->uuid[digits / 2] |= (uint8_t)((digit - hex) << (digits % 2 ? 0 : 4));
		digits++;
	}
	if (digits != 2 * sizeof(config->uuid))
		return error_hint(error_new(EINVAL, "%s: '%s' is not a UUID", what, text),
				  "a UUID has 32 hexadecimal digits (uuidgen makes one)");
	return NULL;
}

static struct error *set_display(const char *what, const char *text, void *object)
{
	struct vm_config *config = object;
	unsigned width = 0, height = 0;
	int end = 0;

	if (strcmp(text, "off") == 0) {
		config->display.width = 0;
		return NULL;
	}
	if (strcmp(text, "on") == 0) {
		width = DISPLAY_DEFAULT_WIDTH;
		height = DISPLAY_DEFAULT_HEIGHT;
	} else if (strlen(text) > 9 || sscanf(text, "%ux%u%n", &width, &height, &end) != 2 || text[end] != '\0') {
		width = 0;
	}
	if (!display_size_fits(width, height))
		return error_hint(error_new(EINVAL, "%s: '%s' is no display", what, text),
				  "on, off, or WxH: at least %ux%u, W a multiple of 8, neither more than %u, and not "
				  "more than 2560x1600 in all",
				  DISPLAY_WIDTH_MIN, DISPLAY_HEIGHT_MIN, DISPLAY_SIDE_MAX);
	config->display = (struct display_config){(uint16_t)width, (uint16_t)height};
	return NULL;
}

static const struct option_choice log_levels[] = {{"error", LOG_LEVEL_ERROR},
						  {"warning", LOG_LEVEL_WARNING},
						  {"info", LOG_LEVEL_INFO},
						  {"debug", LOG_LEVEL_DEBUG},
						  {NULL}};

#define AT(member) offsetof(struct vm_config, member)

const struct option config_options[] = {
	{"config", OPTION_FILE, AT(file), .aka = "config-file",
	 .help = "a JSON object with options under the same names; what the command line says goes before it"},
	{"name", OPTION_TEXT, AT(name), .aka = "id", .min = 1, .max = NAME_MAX_BYTES, .value = "NAME",
	 .help = "what messages call the machine (default: vm)"},
	{"memory", OPTION_SIZE, AT(memory), .aka = "m mem", .min = MEMORY_MIN, .max = MEMORY_MAX,
	 .help = "guest memory, whole MiB: 512M, 4G (default: 256M)"},
	{"huge-pages", OPTION_CHOICE, AT(pages), .aka = "hugepages", .choices = page_kinds,
	 .help = "large pages for guest memory: where the host can, none, or of the host's pool (default: auto)"},
	{"numa", OPTION_GROUP, AT(numa.node), .group = &numa_group, .value = "cpus=LIST,memory=SIZE[,host-node=N]",
	 .help = "a node of vCPUs and memory; may be given up to 16 times"},
	{"cpus", OPTION_GROUP, 0, .aka = "smp vcpus vcpu_count", .group = &cpus_group,
	 .value = "N[,sockets=S][,cores=C][,threads=T]", .help = "vCPUs (default: 1)"},
	{"cpu-model", OPTION_GROUP, 0, .aka = "cpu", .group = &cpu_model_group, .value = "MODEL[,phys-bits=N]",
	 .help = "the processor that the guest sees"},
	{"hyperv", OPTION_GROUP, 0, .group = &hyperv_group, .value = "on[,kvm=off]",
	 .help = "show the interface of Hyper-V, which Windows knows"},
	{"kernel", OPTION_FILE, AT(kernel), .aka = "kernel_image_path",
	 .help = "a Linux bzImage or a PVH kernel (ELF)"},
	{"initrd", OPTION_FILE, AT(initrd), .aka = "initrd_path", .help = "its initial RAM disk"},
	{"cmdline", OPTION_TEXT, AT(cmdline), .aka = "append boot_args", .help = "its command line"},
	{"firmware", OPTION_FILE, AT(firmware), .aka = "bios pflash",
	 .help = "UEFI firmware (OVMF_CODE_4M.fd), which boots from a disk, or the kernel if one is given"},
	{"vars", OPTION_FILE, AT(vars),
	 .help = "its variables: the machine's own copy of OVMF_VARS_4M.fd, written to (without it variables are lost "
		 "when the machine ends)"},
	{"uuid", OPTION_OWN, .own = set_uuid, .value = "UUID", .help = "what firmware says the machine's identity is"},
	{"disk", OPTION_GROUP, AT(disk), .aka = "drive drives", .group = &disk_group,
	 .value = "path=FILE[,FIELD=VALUE]...", .help = "a disk, on virtio-blk or NVMe; may be given up to 16 times"},
	{"cdrom", OPTION_GROUP, AT(cd), .aka = "iso", .group = &cd_group, .value = "FILE[,FIELD=VALUE]...",
	 .help = "a CD drive (SATA) with the medium FILE; up to 4 times"},
	{"net", OPTION_GROUP, AT(net), .aka = "netdev nic network", .group = &net_group,
	 .value = "tap=NAME|passt=PATH[,FIELD=VALUE]...",
	 .help = "a network interface on virtio-net; may be given up to 6 times"},
	{"rng", OPTION_FLAG, AT(rng), .help = "a virtio entropy source"},
	{"display", OPTION_OWN, .own = set_display, .aka = "vga", .value = "on|off|WxH",
	 .help = "a display that prefers pictures of W x H pixels (default: off; on is 1280x800)"},
	{"console-port", OPTION_GROUP, AT(console), .aka = "virtserialport console", .group = &console_group,
	 .value = "[name=NAME,]path=PATH",
	 .help = "a port of a virtio console that leads to one client at a time; 8 with a name and the console"},
	{"agent", OPTION_GROUP, AT(agent), .group = &agent_group, .value = "on[,set-time=off]",
	 .help = "a port for QEMU's guest agent, which the control socket's agent methods ask"},
	{"vsock", OPTION_GROUP, AT(vsock), .group = &vsock_group, .value = "path=PATH[,cid=N]",
	 .help = "virtio-vsock: streams between ports of the guest and UNIX sockets"},
	{"balloon", OPTION_GROUP, AT(balloon), .group = &balloon_group, .value = "on[,FIELD=VALUE]...",
	 .help = "a virtio balloon: the guest gives memory back to the host"},
	{"watchdog", OPTION_GROUP, AT(watchdog), .group = &watchdog_group, .value = "run|pause|reset|stop",
	 .help = "an i6300ESB watchdog, and what is done when it expires"},
	{"on-panic", OPTION_CHOICE, AT(on_panic), .choices = guest_actions,
	 .help = "what is done when the guest's kernel says that it panicked (default: run)"},
	{"serial", OPTION_TEXT, AT(serial), .value = "stdio|none|pty|file=PATH|socket=PATH|fd=N",
	 .help = "where the first serial port leads (default: stdio; on a terminal, Ctrl-A x ends the machine). A "
		 "pty's "
		 "name is in the log and in status; a socket is made at PATH and serves one client after another"},
	{"control", OPTION_TEXT, AT(control), .aka = "qmp api-sock", .value = "PATH|fd=N",
	 .help = "control socket: made at PATH, or a connected one (JSON-RPC 2.0, SOCK_SEQPACKET)"},
	{"restore", OPTION_FILE, AT(restore), .aka = "incoming",
	 .help = "go on from a saved state; kernel and command line come with it"},
	{"paused", OPTION_FLAG, AT(paused), .aka = "S", .help = "do not run until told to by the control socket"},
	{"io-threads", OPTION_NUMBER, AT(io_threads), .min = 1, .max = MACHINE_IO_MAX,
	 .help = "threads that serve the disks' queues, 1 to 8 (default: 1)"},
	{"sandbox", OPTION_SWITCH, AT(sandbox), .help = "lock the process in before the guest runs (default: on)"},
	{"kvm", OPTION_FILE, AT(kvm), .help = "KVM (default: /dev/kvm)"},
	{"log-level", OPTION_CHOICE, AT(log_level), .choices = log_levels,
	 .help = "what is worth a line (default: info)"},
	{"version", OPTION_FLAG, AT(version), .help = "print the version"},
	{"help", OPTION_FLAG, AT(help), .aka = "h", .help = "print this"},
	{NULL},
};

/* --- all together --- */

static struct error *check(struct vm_config *config)
{
	TRY(error_wrap(topology_complete(&config->topology, config->cpus), "--cpus"));
	TRY(error_wrap(numa_check(&config->numa, config->cpus, config->memory), "--numa"));
	if (!is_aligned(config->memory, MIB))
		return error_hint(error_new(ERANGE, "--memory: %llu bytes", (unsigned long long)config->memory),
				  "a machine's memory is whole MiB");
	if (!config->kernel.name && !config->restore.name && !config->firmware.name)
		return error_hint(error_new(EINVAL, "nothing to run"),
				  "give --kernel FILE, --firmware FILE or --restore FILE");
	if (config->kernel.name && config->restore.name)
		return error_hint(error_new(EINVAL, "--kernel and --restore exclude each other"),
				  "a saved state brings its kernel along");
	if (config->initrd.name && !config->kernel.name)
		return error_new(EINVAL, "--initrd without --kernel");
	if (config->vars.name && !config->firmware.name)
		return error_new(EINVAL, "--vars without --firmware");
	TRY(check_cds(config));
	return check_agent(config);
}

/* Reads the file whole first: jansson would read a FIFO or a device without end. */
static struct error *load_file(struct vm_config *config, const char *name)
{
	struct option_file file = {.name = name, .fd = -1};
	json_error_t why;
	struct stat st;

	TRY(option_open(&file, "--config", O_RDONLY));
	cleanup_fd int fd = file.fd;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return error_new(EINVAL, "--config: %s is not a file", name);
	if ((uint64_t)st.st_size > CONFIG_FILE_MAX)
		return error_new(EFBIG, "--config: %s is larger than %zu bytes", name, CONFIG_FILE_MAX);
	cleanup_free char *text = malloc((size_t)st.st_size + 1);
	if (!text)
		return error_new(ENOMEM, "--config: %s", name);
	TRY(pread_all(fd, text, (size_t)st.st_size, 0, name));
	config->json = json_loadb(text, (size_t)st.st_size, JSON_REJECT_DUPLICATES, &why);
	if (!config->json)
		return error_new(EINVAL, "--config: %s, line %d, column %d: %s", name, why.line, why.column, why.text);
	TRY(option_json(config_options, name, config->json, config));
	return config->file.name ? error_new(EINVAL, "%s names another file of options", name) : NULL;
}

struct error *config_parse(int argc, char **argv, struct vm_config *config)
{
	*config = (struct vm_config){
		.name = "vm",
		.memory = 256 * MIB,
		.cpus = 1,
		.hyperv_kvm = true,
		.io_threads = 1,
		.kernel.fd = -1,
		.initrd.fd = -1,
		.firmware.fd = -1,
		.vars.fd = -1,
		.restore.fd = -1,
		.kvm.fd = -1,
		.kvm.name = "/dev/kvm",
		.file.fd = -1,
		.cmdline = "",
		.serial = "stdio",
		.serial_in = -1,
		.serial_out = -1,
		.serial_listen = -1,
		.serial_other = -1,
		.control_listen = -1,
		.control_peer = -1,
		.vsock = {.cid = VSOCK_CID_MIN, .listen_fd = -1, .connector_fd = -1},
		.sandbox = true,
		.log_level = LOG_LEVEL_INFO,
	};
	const char *file = option_argument(config_options, argc, argv, "config");
	if (file)
		TRY(load_file(config, file));
	TRY(option_arguments(config_options, argc, argv, config));
	for (unsigned i = 0; i < config->disks; i++)
		if (config->disk[i].queues == 0)
			config->disk[i].queues = MIN(config->cpus, 4u);
	TRY(sort_cards(config));
	return config->help || config->version ? NULL : check(config);
}
