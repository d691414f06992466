/*
 * Inside the AHCI controller: what its files share. controller.c has the controller's registers, the PCI function, life
 * and saved form; port.c a port's registers, its commands and the ATA ones among them; packet.c the ATAPI commands, and
 * answers.c those that only tell what the drive is.
 *
 * Who may touch what: everything under the lock, but what struct ahci_port says is its thread's.
 * Locks: PCI's > the controller's > those of the interrupt.
 */
#ifndef GLINT_VMM_AHCI_INTERNAL_H
#define GLINT_VMM_AHCI_INTERNAL_H

#include "base/util.h"
#include "vmm/ahci/ahci.h"

#include <pthread.h>

#define AHCI_BAR    5
#define AHCI_SLOTS  32u /* commands of a port */
#define AHCI_BLOCK  2048u
#define AHCI_BUFFER (128u << 10) /* what is read at once */

/* The controller's registers (AHCI 1.3, section 3.1). */
enum { AHCI_CAP = 0x00, AHCI_GHC = 0x04, AHCI_IS = 0x08, AHCI_PI = 0x0c, AHCI_VS = 0x10, AHCI_PORTS = 0x100 };
#define AHCI_PORT_BYTES 0x80u
#define AHCI_CAP_VALUE                                                                                                 \
	(0x80000000u /* 64 bits */ | 1u << 24 /* CLO */ | 1u << 20 /* 1.5 Gb/s */ | 1u << 18 /* AHCI only */)
#define AHCI_GHC_RESET      0x1u
#define AHCI_GHC_INTERRUPTS 0x2u
#define AHCI_GHC_ENABLE     0x80000000u

/* A port's (3.3). */
enum {
	AHCI_PX_CLB = 0x00,
	AHCI_PX_CLBU = 0x04,
	AHCI_PX_FB = 0x08,
	AHCI_PX_FBU = 0x0c,
	AHCI_PX_IS = 0x10,
	AHCI_PX_IE = 0x14,
	AHCI_PX_CMD = 0x18,
	AHCI_PX_TFD = 0x20,
	AHCI_PX_SIG = 0x24,
	AHCI_PX_SSTS = 0x28,
	AHCI_PX_SCTL = 0x2c,
	AHCI_PX_SERR = 0x30,
	AHCI_PX_CI = 0x38
};
#define AHCI_CMD_START    0x1u
#define AHCI_CMD_SPUN_UP  0x6u /* and powered on: always */
#define AHCI_CMD_CLO      0x8u
#define AHCI_CMD_RECEIVE  0x10u
#define AHCI_CMD_WRITABLE (0x07000000u | AHCI_CMD_START | AHCI_CMD_RECEIVE)
#define AHCI_IS_D2H       0x1u
#define AHCI_IS_PIO       0x2u
#define AHCI_IS_INTERFACE (1u << 27)
#define AHCI_IS_MEMORY    (1u << 29)
#define AHCI_IS_TASK_FILE (1u << 30)
#define AHCI_IS_ALL       0x7dc000ffu
#define AHCI_SIGNATURE    0xeb140101u /* of an ATAPI device */

/* A device's status and error (ATA8-ACS, chapter 6). */
#define AHCI_BUSY    0x80u
#define AHCI_READY   0x50u
#define AHCI_CHECK   0x01u
#define AHCI_DATA    0x08u
#define AHCI_ABORTED 0x04u
#define AHCI_NOTHING 0x7fu /* no status yet */

struct ahci_sense {
	uint8_t key, asc, ascq;
};

/* Media events (MMC-5, section 6.6.2.6). */
enum { AHCI_EVENT_NONE, AHCI_EVENT_EJECT, AHCI_EVENT_NEW, AHCI_EVENT_REMOVED };

/* The command at hand. */
struct ahci_command {
	unsigned slot;
	uint64_t header, table; /* in guest memory: of the command, and its list of buffers */
	uint32_t buffers, at;   /* how many there are, and which is next */
	uint32_t skip;          /* of that */
	uint32_t moved;         /* bytes */
	bool pio;
	uint32_t block, left; /* of the medium */
};

struct ahci_port {
	struct ahci *ahci;
	unsigned index;
	const char *id;
	struct drive *medium; /* NULL: none. Changes while the port's thread stands still */

	uint64_t clb, fb;
	uint32_t is, ie, cmd, tfd, sig, sctl, serr, ci;
	uint8_t current; /* slot that is at hand, or was last */
	bool halted;     /* by an error, until the guest stops and starts it */
	bool soft_reset; /* the first half of one was seen */
	bool greeting;   /* the device has not sent its signature yet */
	bool tray_open, locked;
	uint8_t event; /* to be told when asked */
	struct ahci_sense sense, attention;

	bool active; /* a command is being served */
	struct ahci_command command;
	bool reading;   /* the medium, into the buffer */
	bool abandoned; /* what is being read is for nobody any more */

	/* The thread's. */
	struct iothread *thread;
	unsigned thread_index;
	int doorbell; /* eventfd */
	struct io_watch watch;
	struct io_batch batch;
	bool running;
	unsigned busy;
	bool ended; /* the read, with @result */
	int result;
	struct drive_request request;
	struct iovec iov;
	uint8_t *buffer; /* AHCI_BUFFER bytes */
};

struct ahci {
	struct ahci_config config;
	const struct memory *memory;
	struct pci_device pci;
	pthread_mutex_t lock;
	bool paused;
	uint32_t ghc, is;
	bool high; /* the interrupt */
	struct ahci_port port[AHCI_PORTS_MAX];
};

/* --- controller.c --- */

/* The interrupt follows the registers; @event: something happened that a message is sent for. */
void ahci_interrupt(struct ahci *a, bool event);

/* --- port.c --- */

[[nodiscard]] struct error *ahci_port_init(struct ahci *a, unsigned index);
void ahci_port_destroy(struct ahci_port *p);
uint32_t ahci_port_read(const struct ahci_port *p, unsigned offset);
/* Returns whether the thread is to be woken. */
[[nodiscard]] bool ahci_port_write(struct ahci_port *p, unsigned offset, uint32_t value);
/* As at power-on, and by the controller's reset; what the person in front of the tray did stays. */
void ahci_port_reset(struct ahci_port *p);

/* Without the lock: the thread looks for commands, soon; it stops, when nothing is being read; it goes on. */
void ahci_port_wake(struct ahci_port *p);
void ahci_port_stop(struct ahci_port *p);
void ahci_port_start(struct ahci_port *p);

/* --- packet.c, answers.c --- */

/* The size of the medium in blocks; 0: there is none within reach. */
uint32_t ahci_blocks(const struct ahci_port *p);

/* A packet (cdb), and what comes of it: @len bytes in the port's buffer, or blocks to be read. */
struct ahci_packet {
	struct ahci_port *port;
	const uint8_t *cdb; /* 12 bytes */
	uint8_t *answer;    /* AHCI_ANSWER_MAX bytes, zeros */
	uint32_t len;
	uint32_t block, count;
};
#define AHCI_ANSWER_MAX 512u

/* False: the port's sense says why not. */
bool ahci_packet(struct ahci_packet *k);
/* Notes why not; returns false. */
bool ahci_refuse(struct ahci_packet *k, uint8_t key, uint8_t asc, uint8_t ascq);
bool ahci_bad_field(struct ahci_packet *k);

bool ahci_inquiry(struct ahci_packet *k);
bool ahci_mode_sense(struct ahci_packet *k);
bool ahci_read_toc(struct ahci_packet *k);
bool ahci_configuration(struct ahci_packet *k);
bool ahci_disc_information(struct ahci_packet *k);
/* IDENTIFY PACKET DEVICE's 512 bytes. */
void ahci_identify(const struct ahci_port *p, uint8_t *answer);

static inline void ahci_put_be(uint8_t *to, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		to[i] = (uint8_t)(value >> 8 * (bytes - 1 - i));
}

static inline uint32_t ahci_get_be(const uint8_t *from, unsigned bytes)
{
	uint32_t value = 0;

	for (unsigned i = 0; i < bytes; i++)
		value = value << 8 | from[i];
	return value;
}

#endif
