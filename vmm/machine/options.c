/*
 * The command line of glint-vmm: a table of options, and the opening of what they name. This is the one place of the
 * program that opens files; it runs before anything of the guest is looked at. A caller that already holds the
 * descriptors (glintd) gives `fd=N` wherever a FILE is asked for.
 */
#include "vmm/machine/config.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "vmm/cpu/vcpu.h"
#include "vmm/memory/memory.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define CMDLINE_MAX 65536

static const char usage[] =
	"Usage: glint-vmm --kernel FILE | --firmware FILE [OPTION]...\n"
	"Runs one virtual machine of type " MACHINE_TYPE " on KVM, in a sandbox, until its guest powers off.\n"
	"\n"
	"  --name NAME            what messages call the machine (default: vm)\n"
	"  --memory SIZE          guest memory, whole MiB (default: 256M)\n"
	"  --cpus N               vCPUs, 1 to 256 (default: 1)\n"
	"  --kernel FILE          a Linux bzImage or a PVH kernel (ELF)\n"
	"  --initrd FILE          its initial RAM disk\n"
	"  --cmdline STRING       its command line\n"
	"  --firmware FILE        UEFI firmware (OVMF_CODE_4M.fd), which boots from a disk, or the kernel if given\n"
	"  --vars FILE            its variables: the machine's own copy of OVMF_VARS_4M.fd, written to (without it\n"
	"                         variables are lost when the machine ends)\n"
	"  --uuid UUID            what firmware says the machine's identity is\n"
	"  --disk path=FILE[,readonly=on][,queues=N][,id=NAME][,direct=on][,on-error=report|pause][,bootindex=N]\n"
	"                         a raw disk on virtio-blk; may be given up to 16 times. on-error says what an I/O\n"
	"                         error does: tell the guest, or pause the machine (default: pause when the\n"
	"                         file system below is full, else report). Firmware tries the disks that have a\n"
	"                         bootindex first, the lowest before the others\n"
	"  --rng                  a virtio entropy source\n"
	"  --serial stdio|none|fd=N  where the first serial port leads (default: stdio; on a terminal, Ctrl-A x\n"
	"                         ends the machine)\n"
	"  --control PATH|fd=N    control socket: made at PATH, or a connected one (JSON-RPC 2.0, SOCK_SEQPACKET)\n"
	"  --restore FILE         go on from a saved state; kernel and command line come with it\n"
	"  --paused               do not run until told to by the control socket\n"
	"  --io-threads N         threads that serve the disks' queues, 1 to 8 (default: 1)\n"
	"  --sandbox on|off       lock the process in before the guest runs (default: on)\n"
	"  --kvm fd=N             /dev/kvm, opened by the caller\n"
	"  --log-level error|warning|info|debug   (default: info)\n"
	"  --version, --help\n"
	"\n"
	"FILE is a path or fd=N, a descriptor the caller left open. Exit status: 0 the guest powered off or was told "
	"to\n"
	"quit, 1 it could not start or go on.\n";

/* "fd=N": the number of an open descriptor; -1 for other words. */
static int descriptor_named(const char *text)
{
	char *end;

	if (strncmp(text, "fd=", 3) != 0)
		return -1;
	long fd = strtol(text + 3, &end, 10);
	return *end == '\0' && end != text + 3 && fd >= 0 && fd <= 1 << 20 ? (int)fd : -2;
}

static struct error *take_descriptor(const char *text, const char *what, int *fd)
{
	int n = descriptor_named(text);

	if (n < 0)
		return error_hint(error_new(EINVAL, "%s: '%s' is not a descriptor", what, text), "write fd=N");
	if (fcntl(n, F_SETFD, FD_CLOEXEC) < 0)
		return error_hint(error_new(errno, "%s: descriptor %d", what, n),
				  "the caller must leave it open for this process");
	*fd = n;
	return NULL;
}

static struct error *open_file(const char *text, const char *what, int flags, struct config_file *file)
{
	struct stat st;

	if (file->fd >= 0)
		return error_new(EINVAL, "%s was given twice", what);
	file->name = text;
	if (descriptor_named(text) != -1)
		return take_descriptor(text, what, &file->fd);
	/* O_NONBLOCK: a FIFO must not make us wait; it has no effect on files and block devices. */
	cleanup_fd int fd = open(text, flags | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return error_new(errno, "%s: open %s", what, text);
	if (fstat(fd, &st) < 0)
		return error_new(errno, "%s: stat %s", what, text);
	if (S_ISDIR(st.st_mode))
		return error_new(EISDIR, "%s: open %s", what, text);
	file->fd = steal_fd(&fd);
	return NULL;
}

static struct error *parse_switch(const char *text, const char *what, bool *on)
{
	if (strcmp(text, "on") != 0 && strcmp(text, "off") != 0)
		return error_new(EINVAL, "%s: '%s' is neither 'on' nor 'off'", what, text);
	*on = strcmp(text, "on") == 0;
	return NULL;
}

/* --- --disk --- */

struct disk_words {
	const char *path;
	bool direct;
};

static struct error *disk_id(const char *value, struct disk_config *disk)
{
	size_t len = strlen(value);

	if (len == 0 || len > DISK_ID_BYTES ||
	    strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != len)
		return error_hint(error_new(EINVAL, "--disk: id '%s'", value),
				  "an id has 1 to %d letters, digits, dots, dashes and underscores", DISK_ID_BYTES);
	memcpy(disk->id, value, len + 1);
	return NULL;
}

static struct error *disk_on_error(const char *value, struct blk_config *blk)
{
	if (strcmp(value, "report") == 0)
		blk->on_full = blk->on_error = BLK_REPORT;
	else if (strcmp(value, "pause") == 0)
		blk->on_full = blk->on_error = BLK_PAUSE;
	else
		return error_new(EINVAL, "--disk: on-error '%s' is neither 'report' nor 'pause'", value);
	return NULL;
}

static struct error *disk_word(const char *key, const char *value, struct disk_config *disk, struct disk_words *words)
{
	uint64_t n;

	if (strcmp(key, "path") == 0) {
		words->path = value;
		return NULL;
	}
	if (strcmp(key, "readonly") == 0)
		return parse_switch(value, "--disk: readonly", &disk->blk.readonly);
	if (strcmp(key, "direct") == 0)
		return parse_switch(value, "--disk: direct", &words->direct);
	if (strcmp(key, "id") == 0)
		return disk_id(value, disk);
	if (strcmp(key, "on-error") == 0)
		return disk_on_error(value, &disk->blk);
	if (strcmp(key, "bootindex") == 0) {
		TRY(parse_number(value, "--disk: bootindex", 0, BOOT_INDEX_MAX, &n));
		disk->boot_index = (int)n;
		return NULL;
	}
	if (strcmp(key, "queues") == 0) {
		TRY(parse_number(value, "--disk: queues", 1, DISK_QUEUES_MAX, &n));
		disk->blk.queues = (unsigned)n;
		return NULL;
	}
	return error_hint(error_new(EINVAL, "--disk: '%s' is not known", key),
			  "known are path, readonly, queues, id, direct, on-error and bootindex");
}

static struct error *add_disk(char *text, struct vm_config *config)
{
	struct disk_words words = {0};
	struct config_file file = {.fd = -1};

	if (config->disks == MACHINE_DISKS_MAX)
		return error_new(EINVAL, "--disk: a machine has at most %d disks", MACHINE_DISKS_MAX);
	struct disk_config *disk = &config->disk[config->disks];
	*disk = (struct disk_config){
		.boot_index = -1,
		.blk = {.fd = -1, .queues = MIN(config->cpus, 4u), .on_full = BLK_PAUSE, .on_error = BLK_REPORT}};
	snprintf(disk->id, sizeof(disk->id), "disk%u", config->disks);
	for (char *save, *word = strtok_r(text, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
		char *equals = strchr(word, '=');
		/* The first word may be the path alone, or the descriptor. */
		if (word == text && (!equals || strncmp(word, "fd=", 3) == 0)) {
			words.path = word;
			continue;
		}
		if (!equals)
			return error_hint(error_new(EINVAL, "--disk: '%s' has no value", word), "write %s=VALUE", word);
		*equals = '\0';
		TRY(disk_word(word, equals + 1, disk, &words));
	}
	if (!words.path)
		return error_hint(error_new(EINVAL, "--disk names no file"), "write --disk path=FILE");
	TRY(open_file(words.path, "--disk", (disk->blk.readonly ? O_RDONLY : O_RDWR) | (words.direct ? O_DIRECT : 0),
		      &file));
	disk->blk.fd = file.fd;
	disk->blk.name = words.path;
	for (unsigned i = 0; i < config->disks; i++)
		if (strcmp(config->disk[i].id, disk->id) == 0)
			return error_hint(error_new(EEXIST, "--disk: two disks have the id '%s'", disk->id),
					  "give each an id=NAME of its own");
	for (unsigned i = 0; i < config->disks && disk->boot_index >= 0; i++)
		if (config->disk[i].boot_index == disk->boot_index)
			return error_new(EEXIST, "--disk: two disks have the bootindex %d", disk->boot_index);
	config->disks++;
	return NULL;
}

/* --- --serial, --control --- */

static struct error *set_serial(const char *text, struct vm_config *config)
{
	if (strcmp(text, "none") == 0) {
		config->serial_in = config->serial_out = -1;
	} else if (strcmp(text, "stdio") == 0) {
		config->serial_in = STDIN_FILENO;
		config->serial_out = STDOUT_FILENO;
	} else {
		TRY(take_descriptor(text, "--serial", &config->serial_in));
		config->serial_out = config->serial_in;
	}
	return NULL;
}

static int new_socket(void)
{
	return socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

/*
 * A monitor in its sandbox cannot remove the socket it made, so a machine that ended leaves one behind: a socket on
 * which nobody answers is taken away. Anything else that stands there is left alone.
 */
static struct error *remove_stale(const struct sockaddr_un *addr)
{
	struct stat st;

	if (lstat(addr->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
		return NULL;
	cleanup_fd int fd = new_socket();
	if (fd < 0)
		return error_new(errno, "--control: make a socket");
	if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0 || errno != ECONNREFUSED)
		return error_hint(error_new(EADDRINUSE, "--control: make %s", addr->sun_path),
				  "another process answers there: stop that machine, or name another path");
	if (unlink(addr->sun_path) < 0)
		return error_new(errno, "--control: remove the stale socket %s", addr->sun_path);
	return NULL;
}

static struct error *set_control(const char *text, struct vm_config *config)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	if (config->control_listen >= 0 || config->control_peer >= 0)
		return error_new(EINVAL, "--control was given twice");
	if (descriptor_named(text) != -1)
		return take_descriptor(text, "--control", &config->control_peer);
	if (strlen(text) >= sizeof(addr.sun_path))
		return error_new(ENAMETOOLONG, "--control: %s", text);
	strcpy(addr.sun_path, text); /* bounded above */
	TRY(remove_stale(&addr));
	cleanup_fd int fd = new_socket();
	if (fd < 0)
		return error_new(errno, "--control: make a socket");
	mode_t old = umask(0077);
	int rc = bind(fd, (struct sockaddr *)&addr, sizeof(addr));
	umask(old);
	if (rc < 0)
		return error_hint(error_new(errno, "--control: make %s", text),
				  "name a path in a folder that can be written and where nothing is");
	if (listen(fd, 8) < 0)
		return error_new(errno, "--control: listen on %s", text);
	config->control_listen = steal_fd(&fd);
	return NULL;
}

static struct error *set_log_level(const char *text, struct vm_config *config)
{
	static const struct {
		const char *name;
		enum log_level level;
	} levels[] = {{"error", LOG_LEVEL_ERROR},
		      {"warning", LOG_LEVEL_WARNING},
		      {"info", LOG_LEVEL_INFO},
		      {"debug", LOG_LEVEL_DEBUG}};

	for (size_t i = 0; i < ARRAY_SIZE(levels); i++) {
		if (strcmp(text, levels[i].name) != 0)
			continue;
		config->log_level = levels[i].level;
		return NULL;
	}
	return error_hint(error_new(EINVAL, "--log-level: '%s' is not a level", text),
			  "use error, warning, info or debug");
}

/* "01234567-89ab-cdef-0123-456789abcdef"; the dashes may be left out. */
static struct error *set_uuid(const char *text, struct vm_config *config)
{
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
		return error_hint(error_new(EINVAL, "--uuid: '%s' is not a UUID", text),
				  "a UUID has 32 hexadecimal digits (uuidgen makes one)");
	return NULL;
}

enum {
	OPT_NAME = 1,
	OPT_MEMORY,
	OPT_CPUS,
	OPT_KERNEL,
	OPT_INITRD,
	OPT_FIRMWARE,
	OPT_VARS,
	OPT_UUID,
	OPT_CMDLINE,
	OPT_DISK,
	OPT_RNG,
	OPT_SERIAL,
	OPT_CONTROL,
	OPT_RESTORE,
	OPT_PAUSED,
	OPT_IO_THREADS,
	OPT_SANDBOX,
	OPT_KVM,
	OPT_LOG_LEVEL,
	OPT_VERSION,
	OPT_HELP,
};

static const struct option options[] = {
	{"name", required_argument, NULL, OPT_NAME},
	{"memory", required_argument, NULL, OPT_MEMORY},
	{"cpus", required_argument, NULL, OPT_CPUS},
	{"kernel", required_argument, NULL, OPT_KERNEL},
	{"initrd", required_argument, NULL, OPT_INITRD},
	{"firmware", required_argument, NULL, OPT_FIRMWARE},
	{"vars", required_argument, NULL, OPT_VARS},
	{"uuid", required_argument, NULL, OPT_UUID},
	{"cmdline", required_argument, NULL, OPT_CMDLINE},
	{"disk", required_argument, NULL, OPT_DISK},
	{"rng", no_argument, NULL, OPT_RNG},
	{"serial", required_argument, NULL, OPT_SERIAL},
	{"control", required_argument, NULL, OPT_CONTROL},
	{"restore", required_argument, NULL, OPT_RESTORE},
	{"paused", no_argument, NULL, OPT_PAUSED},
	{"io-threads", required_argument, NULL, OPT_IO_THREADS},
	{"sandbox", required_argument, NULL, OPT_SANDBOX},
	{"kvm", required_argument, NULL, OPT_KVM},
	{"log-level", required_argument, NULL, OPT_LOG_LEVEL},
	{"version", no_argument, NULL, OPT_VERSION},
	{"help", no_argument, NULL, OPT_HELP},
	{NULL, 0, NULL, 0},
};

/* Options that name files or sockets wait for the second pass: nothing is opened for a command line that is wrong. */
static struct error *plain_option(int opt, const char *value, struct vm_config *config, int *exit_code)
{
	uint64_t n;

	switch (opt) {
	case OPT_NAME:
		if (value[0] == '\0' || strlen(value) > 255)
			return error_new(EINVAL, "--name: a name has 1 to 255 bytes");
		config->name = value;
		return NULL;
	case OPT_MEMORY:
		TRY(parse_size(value, "--memory", &n));
		if (n < MEMORY_MIN || n > MEMORY_MAX || !is_aligned(n, MIB))
			return error_hint(error_new(ERANGE, "--memory %s", value),
					  "a machine has 1M to 4T of memory, in whole MiB");
		config->memory = n;
		return NULL;
	case OPT_CPUS:
		TRY(parse_number(value, "--cpus", 1, VCPUS_MAX, &n));
		config->cpus = (unsigned)n;
		return NULL;
	case OPT_IO_THREADS:
		TRY(parse_number(value, "--io-threads", 1, MACHINE_IO_MAX, &n));
		config->io_threads = (unsigned)n;
		return NULL;
	case OPT_CMDLINE:
		if (strlen(value) > CMDLINE_MAX)
			return error_new(E2BIG, "--cmdline: more than %d bytes", CMDLINE_MAX);
		config->cmdline = value;
		return NULL;
	case OPT_UUID:
		return set_uuid(value, config);
	case OPT_RNG:
		config->rng = true;
		return NULL;
	case OPT_PAUSED:
		config->paused = true;
		return NULL;
	case OPT_SANDBOX:
		return parse_switch(value, "--sandbox", &config->sandbox);
	case OPT_LOG_LEVEL:
		return set_log_level(value, config);
	case OPT_VERSION:
		puts("glint-vmm " GLINT_VERSION);
		*exit_code = 1;
		return NULL;
	case OPT_HELP:
		fputs(usage, stdout);
		*exit_code = 1;
		return NULL;
	default:
		return NULL;
	}
}

static struct error *file_option(int opt, char *value, struct vm_config *config)
{
	switch (opt) {
	case OPT_KERNEL:
		return open_file(value, "--kernel", O_RDONLY, &config->kernel);
	case OPT_INITRD:
		return open_file(value, "--initrd", O_RDONLY, &config->initrd);
	case OPT_FIRMWARE:
		return open_file(value, "--firmware", O_RDONLY, &config->firmware);
	case OPT_VARS:
		return open_file(value, "--vars", O_RDWR, &config->vars);
	case OPT_RESTORE:
		return open_file(value, "--restore", O_RDONLY, &config->restore);
	case OPT_KVM:
		config->kvm.name = value;
		return take_descriptor(value, "--kvm", &config->kvm.fd);
	case OPT_DISK:
		return add_disk(value, config);
	case OPT_SERIAL:
		return set_serial(value, config);
	case OPT_CONTROL:
		return set_control(value, config);
	default:
		return NULL;
	}
}

static struct error *bad_word(char **argv)
{
	struct error *err =
		error_new(EINVAL, "command line: '%s' is not an option or lacks its value", argv[optind - 1]);

	return error_hint(err, "glint-vmm --help lists the options");
}

static struct error *parse_passes(int argc, char **argv, struct vm_config *config, int *exit_code)
{
	opterr = 0;
	for (int pass = 0; pass < 2; pass++) {
		optind = 1;
		for (int opt; (opt = getopt_long(argc, argv, "", options, NULL)) != -1;) {
			if (opt == '?')
				return bad_word(argv);
			TRY(pass == 0 ? plain_option(opt, optarg, config, exit_code)
				      : file_option(opt, optarg, config));
			if (*exit_code)
				return NULL;
		}
		if (optind < argc)
			return error_hint(error_new(EINVAL, "command line: '%s' is left over", argv[optind]),
					  "glint-vmm --help lists the options");
	}
	if (config->kernel.fd < 0 && config->restore.fd < 0 && config->firmware.fd < 0)
		return error_hint(error_new(EINVAL, "nothing to run"),
				  "give --kernel FILE, --firmware FILE or --restore FILE");
	if (config->kernel.fd >= 0 && config->restore.fd >= 0)
		return error_hint(error_new(EINVAL, "--kernel and --restore exclude each other"),
				  "a saved state brings its kernel along");
	if (config->initrd.fd >= 0 && config->kernel.fd < 0)
		return error_new(EINVAL, "--initrd without --kernel");
	if (config->vars.fd >= 0 && config->firmware.fd < 0)
		return error_new(EINVAL, "--vars without --firmware");
	return NULL;
}

static struct error *open_kvm(struct vm_config *config)
{
	if (config->kvm.fd >= 0)
		return NULL;
	config->kvm.name = "/dev/kvm";
	config->kvm.fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (config->kvm.fd >= 0)
		return NULL;
	return error_hint(error_new(errno, "open /dev/kvm"),
			  errno == EACCES
				  ? "this user may not use it: join the group kvm"
				  : "the processor's virtualisation must be on in the firmware, and kvm-intel or "
				    "kvm-amd loaded");
}

struct error *options_parse(int argc, char **argv, struct vm_config *config, int *exit_code)
{
	*exit_code = 0;
	*config = (struct vm_config){
		.name = "vm",
		.memory = 256 * MIB,
		.cpus = 1,
		.io_threads = 1,
		.kernel.fd = -1,
		.initrd.fd = -1,
		.firmware.fd = -1,
		.vars.fd = -1,
		.restore.fd = -1,
		.kvm.fd = -1,
		.cmdline = "",
		.serial_in = STDIN_FILENO,
		.serial_out = STDOUT_FILENO,
		.control_listen = -1,
		.control_peer = -1,
		.sandbox = true,
		.log_level = LOG_LEVEL_INFO,
	};
	TRY(parse_passes(argc, argv, config, exit_code));
	return *exit_code ? NULL : open_kvm(config);
}

void config_release(struct vm_config *config)
{
	close_fd(&config->kernel.fd);
	close_fd(&config->initrd.fd);
	close_fd(&config->firmware.fd);
	close_fd(&config->vars.fd);
	close_fd(&config->restore.fd);
	close_fd(&config->kvm.fd);
	for (unsigned i = 0; i < config->disks; i++)
		close_fd(&config->disk[i].blk.fd);
}
