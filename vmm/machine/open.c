/*
 * Opens what the config names. Once a machine runs this is over: the monitor opens nothing more.
 *
 * Touches: the files, devices and sockets that its user named.
 */
#include "vmm/machine/config.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

/* --- listening sockets --- */

/*
 * A monitor in its sandbox cannot remove the socket it made, so a machine that ended leaves one behind: a socket on
 * which nobody answers is taken away. Anything else that stands there is left alone.
 */
static struct error *remove_stale(const char *what, const struct sockaddr_un *addr, int type)
{
	struct stat st;

	if (lstat(addr->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
		return NULL;
	cleanup_fd int fd = socket(AF_UNIX, type, 0);
	if (fd < 0)
		return error_new(errno, "%s: make a socket", what);
	if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0 || errno != ECONNREFUSED)
		return error_hint(error_new(EADDRINUSE, "%s: make %s", what, addr->sun_path),
				  "another process answers there: stop that machine, or name another path");
	if (unlink(addr->sun_path) < 0)
		return error_new(errno, "%s: remove the stale socket %s", what, addr->sun_path);
	return NULL;
}

struct error *config_listen(const char *what, const char *path, int type, int *out)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	type |= SOCK_CLOEXEC | SOCK_NONBLOCK;
	if (strlen(path) >= sizeof(addr.sun_path))
		return error_new(ENAMETOOLONG, "%s: %s", what, path);
	strcpy(addr.sun_path, path); /* bounded above */
	TRY(remove_stale(what, &addr, type));
	cleanup_fd int fd = socket(AF_UNIX, type, 0);
	if (fd < 0)
		return error_new(errno, "%s: make a socket", what);
	mode_t old = umask(0077);
	int rc = bind(fd, (struct sockaddr *)&addr, sizeof(addr));
	umask(old);
	if (rc < 0)
		return error_hint(error_new(errno, "%s: make %s", what, path),
				  "name a path in a folder that can be written and where nothing is");
	if (listen(fd, 8) < 0)
		return error_new(errno, "%s: listen on %s", what, path);
	*out = steal_fd(&fd);
	return NULL;
}

/* --- --serial, --control --- */

/* The master is the port's; the other end stays open here, for without one a master reads errors. */
static struct error *open_pty(struct vm_config *config)
{
	struct termios raw;

	cleanup_fd int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0 ||
	    ptsname_r(master, config->serial_pty, sizeof(config->serial_pty)) != 0)
		return error_new(errno, "--serial: make a pseudo-terminal");
	cleanup_fd int other = open(config->serial_pty, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (other < 0 || tcgetattr(other, &raw) < 0)
		return error_new(errno, "--serial: open %s", config->serial_pty);
	cfmakeraw(&raw); /* its echo would be typed at the guest */
	if (tcsetattr(other, TCSANOW, &raw) < 0)
		return error_new(errno, "--serial: set up %s", config->serial_pty);
	config->serial_other = steal_fd(&other);
	config->serial_in = config->serial_out = steal_fd(&master);
	config->serial = config->serial_pty;
	log_info("%s: the serial port is %s", config->name, config->serial_pty);
	return NULL;
}

static struct error *open_serial(struct vm_config *config)
{
	const char *text = config->serial;

	if (strcmp(text, "none") == 0)
		return NULL;
	if (strcmp(text, "pty") == 0)
		return open_pty(config);
	if (strncmp(text, "socket=", 7) == 0)
		return config_listen("--serial", text + 7, SOCK_STREAM, &config->serial_listen);
	if (strncmp(text, "file=", 5) == 0) {
		config->serial_out = open(text + 5, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0600);
		if (config->serial_out < 0)
			return error_new(errno, "--serial: open %s", text + 5);
		return NULL;
	}
	if (strcmp(text, "stdio") == 0) {
		config->serial_in = STDIN_FILENO;
		config->serial_out = STDOUT_FILENO;
		return NULL;
	}
	if (!option_is_descriptor(text))
		return error_hint(error_new(EINVAL, "--serial: '%s'", text),
				  "write stdio, none, pty, file=PATH, socket=PATH or fd=N");
	TRY(option_descriptor(text, "--serial", &config->serial_in));
	config->serial_out = config->serial_in;
	return NULL;
}

static struct error *open_control(struct vm_config *config)
{
	if (!config->control)
		return NULL;
	if (option_is_descriptor(config->control))
		return option_descriptor(config->control, "--control", &config->control_peer);
	return config_listen("--control", config->control, SOCK_SEQPACKET, &config->control_listen);
}

/* --- --console-port --- */

static struct error *open_console(struct console_options *console)
{
	if (!option_is_descriptor(console->path))
		return config_listen("--console-port", console->path, SOCK_STREAM, &console->listen_fd);
	TRY(option_descriptor(console->path, "--console-port", &console->listen_fd));
	if (fcntl(console->listen_fd, F_SETFL, O_NONBLOCK) < 0)
		return error_new(errno, "--console-port: %s", console->path);
	return NULL;
}

/* --- --vsock --- */

/* The process that connects for the monitor is started here: nothing of the guest is there yet. */
static struct error *open_vsock(struct vm_config *config)
{
	struct vsock_options *vsock = &config->vsock;

	if (!vsock->path)
		return NULL;
	const char *slash = strrchr(vsock->path, '/');
	cleanup_free char *folder = slash ? strndup(vsock->path, (size_t)(slash - vsock->path) + 1) : strdup(".");
	if (!folder)
		return error_new(ENOMEM, "--vsock");
	cleanup_fd int dir_fd = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd < 0)
		return error_new(errno, "--vsock: open %s", folder);
	TRY(config_listen("--vsock", vsock->path, SOCK_STREAM, &vsock->listen_fd));
	return error_wrap(
		vsock_connector_start(dir_fd, slash ? slash + 1 : vsock->path, config->sandbox, &vsock->connector_fd),
		"--vsock");
}

/* --- files --- */

/* fd=N:fd=N... */
static struct error *open_parents(struct disk_config *disk)
{
	cleanup_free char *text = strdup(disk->parents);
	char *rest = text;

	if (!text)
		return error_new(ENOMEM, "--disk: %s", disk->parents);
	for (const char *one; (one = strsep(&rest, ":"));) {
		if (!option_is_descriptor(one))
			return error_hint(error_new(EINVAL, "--disk: parents=%s", disk->parents),
					  "write parents=fd=N:fd=N..., the nearest first");
		if (disk->drive.parent_count == ARRAY_SIZE(disk->parent_fd))
			return error_new(E2BIG, "--disk: parents=%s: a chain has at most %d images", disk->parents,
					 DISK_CHAIN_MAX);
		TRY(option_descriptor(one, "--disk", &disk->parent_fd[disk->drive.parent_count]));
		disk->drive.parent_count++;
	}
	return NULL;
}

/* The folder that a disk's file is in, where those of its parents are. */
static struct error *open_folder(struct disk_config *disk)
{
	const char *slash = strrchr(disk->file.name, '/');
	cleanup_free char *folder =
		slash ? strndup(disk->file.name, (size_t)(slash - disk->file.name) + 1) : strdup(".");

	if (!folder)
		return error_new(ENOMEM, "--disk: %s", disk->file.name);
	disk->folder_fd = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
	return disk->folder_fd < 0 ? error_new(errno, "--disk: open %s", folder) : NULL;
}

static struct error *open_disk(struct disk_config *disk)
{
	int flags = (disk->drive.readonly ? O_RDONLY : O_RDWR) | (disk->direct ? O_DIRECT : 0);

	TRY(option_open(&disk->file, "--disk", flags));
	disk->drive.fd = steal_fd(&disk->file.fd);
	disk->drive.name = disk->file.name;
	if (disk->parents)
		return open_parents(disk);
	if (strcmp(disk->drive.format, "raw") == 0 || option_is_descriptor(disk->file.name))
		return NULL;
	return open_folder(disk);
}

void config_close_disk(struct disk_config *disk)
{
	close_fd(&disk->drive.fd);
	close_fd(&disk->folder_fd);
	for (unsigned i = 0; i < disk->drive.parent_count; i++)
		close_fd(&disk->parent_fd[i]);
	disk->drive.parent_count = 0;
}

static struct error *open_kvm(struct vm_config *config)
{
	struct error *err = option_open(&config->kvm, "--kvm", O_RDWR);

	if (!err || option_is_descriptor(config->kvm.name))
		return err;
	return error_hint(err, error_errno(err) == EACCES
				       ? "this user may not use it: join the group kvm"
				       : "the processor's virtualisation must be on in the firmware, and kvm-intel or "
					 "kvm-amd loaded");
}

/* Sockets last: what can fail before them leaves none behind. */
struct error *config_open(struct vm_config *config)
{
	TRY(option_open(&config->kernel, "--kernel", O_RDONLY));
	TRY(option_open(&config->initrd, "--initrd", O_RDONLY));
	TRY(option_open(&config->firmware, "--firmware", O_RDONLY));
	TRY(option_open(&config->vars, "--vars", O_RDWR));
	TRY(option_open(&config->restore, "--restore", O_RDONLY));
	for (unsigned i = 0; i < config->disks; i++)
		TRY(open_disk(&config->disk[i]));
	for (unsigned i = 0; i < config->cds; i++)
		if (config->cd[i].file.name)
			TRY(open_disk(&config->cd[i]));
	for (unsigned i = 0; i < PCI_PORTS; i++)
		if (config->plugged[i].kind == CARD_DISK)
			TRY(open_disk(&config->plugged[i].disk));
	TRY(config_open_nets(config));
	TRY(open_kvm(config));
	TRY(open_serial(config));
	for (unsigned i = 0; i < config->consoles; i++)
		TRY(open_console(&config->console[i]));
	TRY(open_vsock(config));
	return open_control(config);
}

void config_release(struct vm_config *config)
{
	close_fd(&config->kernel.fd);
	close_fd(&config->initrd.fd);
	close_fd(&config->firmware.fd);
	close_fd(&config->vars.fd);
	close_fd(&config->restore.fd);
	close_fd(&config->kvm.fd);
	close_fd(&config->serial_other);
	close_fd(&config->serial_listen);
	for (unsigned i = 0; i < config->consoles; i++)
		close_fd(&config->console[i].listen_fd);
	close_fd(&config->vsock.listen_fd);
	close_fd(&config->vsock.connector_fd);
	for (unsigned i = 0; i < config->disks; i++)
		config_close_disk(&config->disk[i]);
	for (unsigned i = 0; i < config->cds; i++)
		config_close_disk(&config->cd[i]);
	config_release_nets(config);
	for (unsigned i = 0; i < PCI_PORTS; i++)
		if (config->plugged[i].kind == CARD_DISK)
			config_close_disk(&config->plugged[i].disk);
	json_decref(config->json);
}
