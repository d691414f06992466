/* The tests of the guest program: each returns when it went well, and ends by fail() when not. */
#ifndef GUEST_TESTS_H
#define GUEST_TESTS_H

#include "virtio.h"

/* test_machine.c */
void test_unmapped(void);
void test_rtc(void);
void test_pm_timer(void);
void test_button(void);
void test_reset(void);
void test_poweroff(void);
void test_smp(void);
void test_idle(void);
void test_panic(void);
void test_watchdog(void);
/* test_cpu.c */
void test_cpuid(void);
void test_far_irq(void);
void test_kvmclock(void);
/* test_serial.c */
void test_serial_echo(void);
void test_serial_loopback(void);
void test_serial_irq(void);
/* test_pci.c */
void test_pci_scan(void);
void test_pci_garbage(void);
void test_pci_bars(void);
void test_pci_msix(void);
void test_pci_intx(void);
void test_rng(void);
/* test_blk.c */
void test_blk_id(void);
void test_blk_verify(void);
void test_blk_ranges(void);
void test_blk_limits(void);
void test_blk_malformed(void);
void test_blk_fuzz(void);
/* test_ahci.c */
void test_cd_verify(void);
void test_cd_load(void);
void test_cd_tray(void);

/* test_nvme.c */
void test_nvme_verify(void);
void test_nvme_load(void);
void test_nvme_small(void);
/* test_display.c */
void test_display(void);
/* test_input.c */
void test_keyboard(void);
/* test_console.c */
void test_console_echo(void);
void test_console_load(void);
/* test_agent.c */
void test_agent(void);
/* test_vsock.c */
void test_vsock_echo(void);
void test_vsock_refused(void);
void test_vsock_serve(void);
void test_vsock_load(void);
void test_vsock_garbage(void);
/* test_net.c */
void test_net_echo(void);
void test_net_malformed(void);
/* test_hotplug.c */
void test_hotplug(void);
/* test_balloon.c */
void test_balloon(void);
/* test_load.c */
void test_load(void);
void test_generations(void);
void test_dirty(void);

/* --- test_console.c's driver, for test_agent.c --- */

/* Finds the device, tells it of buffers, and opens port 1. */
void console_open(void);
/* Takes what the device says of port 1. */
void console_listen(void);
/* What came on port 1, or NULL; to be given back when it is read. */
uint8_t *console_get(uint32_t *len);
void console_give_back(uint8_t *buffer);
/* Sends on port 1 and waits until it is taken; false when a key comes in on the serial port before. */
bool console_send(const void *data, uint32_t len);
void console_close(void);

/* --- blk.c's driver, for test_load.c and test_pci.c --- */

#define SECTOR 512u
enum { BLK_IN = 0, BLK_OUT = 1, BLK_FLUSH = 4, BLK_GET_ID = 8, BLK_DISCARD = 11, BLK_ZEROES = 13 };
enum { BLK_OK = 0, BLK_IOERR = 1, BLK_UNSUPP = 2 };
enum {
	BLK_F_RO = 5,
	BLK_F_SIZE_MAX = 1,
	BLK_F_SEG_MAX = 2,
	BLK_F_FLUSH = 9,
	BLK_F_MQ = 12,
	BLK_F_DISCARD = 13,
	BLK_F_ZEROES = 14
};
#define BLK_WANTED                                                                                                     \
	(1ull << BLK_F_SEG_MAX | 1ull << BLK_F_FLUSH | 1ull << BLK_F_MQ | 1ull << BLK_F_DISCARD |                      \
	 1ull << BLK_F_ZEROES | 1ull << VIRTIO_F_INDIRECT | 1ull << VIRTIO_F_EVENT_IDX | 1ull << BLK_F_RO)

struct blk_request {
	struct {
		uint32_t type, priority;
		uint64_t sector;
	} header;
	volatile uint8_t status;
	bool done;
	uint32_t written;
	uint8_t *data;
	uint32_t len;
	uint64_t tag; /* the test's */
};

/* Finds disk @nth (option disk=N adds to it) and sets it up with all its queues. Returns its sectors. */
uint64_t blk_open(struct virtio *v, unsigned nth, bool use_msix);
/* Puts a request into queue @queue with its data in @segments pieces; false when the queue is full. No doorbell. */
bool blk_submit(struct virtio *v, unsigned queue, struct blk_request *r, unsigned segments, bool indirect);
/* One request from submission to completion; its status. */
uint8_t blk_do(struct virtio *v, unsigned queue, uint32_t type, uint64_t sector, void *data, uint32_t len);

/*
 * What a sector holds: its number, @version, and 62 words of a fixed random sequence from a place that both choose.
 * pattern.py makes the same.
 */
void pattern_fill(void *data, uint64_t sector, uint32_t sectors, uint64_t version);
/* Makes sure that what was not read is not taken for it. */
void pattern_spoil(void *data, uint32_t sectors);
/* The index of the first wrong sector, or @sectors. */
uint32_t pattern_check(const void *data, uint64_t sector, uint32_t sectors, uint64_t version);

#endif
