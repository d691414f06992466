/*
 * Where the serial port leads when that is not just two descriptors: the terminal of the person who started the
 * monitor, with its way out, or whoever connects to a socket.
 */
#include "vmm/machine/machine.h"

#include "base/cleanup.h"
#include "base/log.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

static bool filter_key(void *arg, uint8_t byte)
{
	struct machine *m = arg;
	enum terminal_key key = terminal_key(&m->terminal, byte);

	if (key == TERMINAL_QUIT)
		machine_quit(m);
	return key != TERMINAL_FOR_GUEST;
}

static void accept_client(void *arg, int listen_fd, uint32_t events)
{
	struct machine *m = arg;
	cleanup_fd int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return; /* it has gone again */
	struct error *err = serial_connect(&m->serial, steal_fd(&fd));
	if (err)
		log_info("%s: a client of the serial port is turned away: %s", m->config->name, error_text(err));
	error_free(err);
}

struct error *machine_open_line(struct machine *m)
{
	int listen_fd = m->config->serial_listen;

	terminal_take(&m->terminal, m->config->serial_in);
	if (m->terminal.fd >= 0)
		serial_filter(&m->serial, filter_key, m);
	return listen_fd < 0 ? NULL : loop_add_fd(m->loop, listen_fd, EPOLLIN, accept_client, m, NULL);
}
