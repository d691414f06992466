/*
 * A 16550A serial port between the guest and a pair of descriptors. Register names and bits are those of the National
 * Semiconductor PC16550D data sheet.
 *
 * Nothing is lost and no vCPU waits in either direction:
 *
 * - Out: a byte goes straight to the descriptor if it takes it, else into a buffer that the loop's thread empties. When
 *   that is nearly full, the port says "transmitter busy" until there is room: the guest sees a slow line. A reader who
 *   has gone is no reader: bytes are dropped until the end.
 * - In: no more is read than the receive FIFO has room for, so what the guest has not taken waits in the descriptor. A
 *   port with a filter reads on, into a buffer: the filter's keys must arrive even where the guest never reads. When
 *   that is full, keys are lost, as from any keyboard that nobody serves.
 */
#ifndef GLINT_VMM_DEVICES_SERIAL_H
#define GLINT_VMM_DEVICES_SERIAL_H

#include "base/loop.h"
#include "vmm/cpu/irq.h"
#include "vmm/devices/stream.h"
#include "vmm/machine/unit.h"
#include "vmm/memory/bus.h"

#define SERIAL_PORTS     8            /* I/O ports of one */
#define SERIAL_FIFO      16           /* bytes of the chip's FIFOs */
#define SERIAL_TYPED     256          /* bytes read ahead of the guest where there is a filter */
#define SERIAL_OUT_BYTES (64u * 1024) /* of the buffer for a slow reader; its pages are taken when it is used */

struct serial {
	pthread_mutex_t lock;
	struct irqs *irqs;
	struct loop *loop;
	unsigned gsi, source;
	struct stream in, out;                      /* descriptor -1: none, or gone */
	int own_fd;                                 /* that of out, when it had to be duplicated; else -1 */
	int peer_fd;                                /* a connection that came by serial_connect(); -1: none */
	struct loop_source *in_source, *out_source; /* the loop thread's: NULL while there is nothing to wait for */
	bool paused;
	bool (*filter)(void *arg, uint8_t byte); /* NULL: none */
	void *filter_arg;
	uint8_t typed[SERIAL_TYPED]; /* with a filter: what came in and is not yet in rx */
	size_t typed_count;

	uint8_t ier, lcr, mcr, scratch;
	uint8_t fcr;        /* as far as it holds: enable, DMA mode, trigger */
	uint8_t lsr_errors; /* OE: the only error this line has */
	uint8_t msr_deltas;
	uint16_t divisor;
	bool thr_empty_pending; /* the THRE interrupt */
	uint8_t rx[SERIAL_FIFO];
	size_t rx_count;
	size_t unsent_start, unsent_count;
	uint8_t *unsent; /* a ring */
};

/*
 * Puts a port at @base with its interrupt on @gsi. It takes no input before its first resume. @in_fd and @out_fd (-1:
 * none; the same one twice is fine) stay the caller's and must outlive the port; they may be blocking and shared. The
 * process must ignore SIGPIPE.
 */
[[nodiscard]] struct error *serial_init(struct serial *serial, struct bus *pio, struct irqs *irqs, uint16_t base,
					unsigned gsi, struct loop *loop, int in_fd, int out_fd);
void serial_destroy(struct serial *serial);

/*
 * On the loop's thread: the port leads to the connected socket @fd, which becomes its own. One at a time: EBUSY until
 * the one before has hung up; when it shuts down its sending half only, it still gets what the guest writes. For ports
 * made with descriptors -1.
 */
[[nodiscard]] struct error *serial_connect(struct serial *serial, int fd);

/* Before threads run: @filter looks at each byte that comes in before the guest does; true: it is not for the guest. */
void serial_filter(struct serial *serial, bool (*filter)(void *arg, uint8_t byte), void *arg);

extern const struct unit_ops serial_unit;

#endif
