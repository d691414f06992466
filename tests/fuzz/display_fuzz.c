/*
 * Fuzzing of the display: a guest that writes the registers, moves both BARs and draws at will, while somebody looks,
 * takes pictures, and moves the machine.
 *
 * The input is a list of 12-byte operations. Whatever the registers say, a picture lies wholly inside the frame buffer
 * (the address sanitizer and the end of the mapping watch), and a machine that moved shows what it showed before.
 */
#include "base/cleanup.h"
#include "base/util.h"
#include "saved/saved.h"
#include "vmm/display/display.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SLOT      1u
#define OP_BYTES  12
#define OPS_MAX   256
#define SHOTS_MAX 2 /* they are slow */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct bus pio, mmio;
static struct irqs irqs;
static struct pci_bus pci;
static struct memory memory;
static struct display *display;
static unsigned shots;

static void need(bool what)
{
	if (!what)
		abort();
}

static void need_ok(struct error *err)
{
	need(err == NULL);
}

static void make(void)
{
	const struct display_config config = {.width = 800, .height = 600};

	bus_init(&pio, "port");
	bus_init(&mmio, "MMIO");
	need_ok(irqs_init(&irqs, -1));
	need_ok(pci_bus_init(&pci, &pio, &mmio, &irqs, 4 * GIB));
	need_ok(display_new(&display, &memory, -1, &pci, SLOT, &config));
}

static void unmake(void)
{
	display_free(display);
	pci_bus_destroy(&pci);
	irqs_destroy(&irqs);
}

static void set_config(unsigned reg, uint32_t value)
{
	bus_write(&pio, 0xcf8, 0x80000000u | SLOT << 11 | (reg & 0xfc), 4);
	bus_write(&pio, 0xcfc, value, 4);
}

static uint64_t bar(unsigned i)
{
	const struct pci_bar *b = &display->pci.bar[i];

	return b->mapped ? b->address : 0xfee00000;
}

static void move(void)
{
	cleanup_fd int fd = memfd_create("state", MFD_CLOEXEC);
	cleanup_saved struct saved *to = NULL, *from = NULL;
	struct display_mode was = display_mode(display);
	uint64_t frame = bar(DISPLAY_FRAME_BAR);

	need(fd >= 0);
	need_ok(saved_create(fd, "fuzz-1", &to));
	need_ok(saved_unit(to, "pci", 1, pci_bus_state, &pci));
	need_ok(saved_unit(to, "display", 1, display_unit.state, display));
	need_ok(saved_finish(to));
	unmake();
	make();
	need(lseek(fd, 0, SEEK_SET) == 0);
	need_ok(saved_open(fd, "fuzz-1", &from));
	need_ok(saved_unit(from, "pci", 1, pci_bus_state, &pci));
	need_ok(saved_unit(from, "display", 1, display_unit.state, display));
	need_ok(saved_finish(from));
	need_ok(pci_bus_restored(&pci));
	need_ok(display_unit.restored(display));
	struct display_mode is = display_mode(display);
	need(memcmp(&is, &was, sizeof(is)) == 0 && bar(DISPLAY_FRAME_BAR) == frame);
}

static void look(uint8_t how)
{
	uint64_t bitmap[MEMORY_WINDOW_WORDS] = {};

	memory_window_track(&display->window, how & 1);
	memory_window_collect(&display->window, bitmap);
	if (how < 0xc0 || shots++ >= SHOTS_MAX)
		return;
	cleanup_fd int fd = memfd_create("picture", MFD_CLOEXEC);
	need(fd >= 0);
	struct error *err = display_screenshot(display, fd);
	need((err != NULL) == (display_mode(display).width == 0));
	error_free(err);
}

static void check(void)
{
	struct display_mode m = display_mode(display);

	if (m.width)
		need(m.height && m.stride >= 4 * m.width &&
		     m.offset + (uint64_t)m.stride * (m.height - 1) + 4ull * m.width <= DISPLAY_BYTES);
}

static void step(const uint8_t *op)
{
	unsigned size = 1u << (op[1] & 3);
	uint32_t value, offset;

	memcpy(&value, op + 4, 4);
	memcpy(&offset, op + 8, 4);
	switch (op[0] % 8) {
	case 0:
	case 1:
	case 2: /* a register as it should be written */
		bus_write(&mmio, bar(DISPLAY_REGISTER_BAR) + DISPLAY_VBE + 2 * (op[1] / 4 % VBE_REGISTERS), value, 2);
		break;
	case 3:
		bus_write(&mmio, bar(DISPLAY_REGISTER_BAR) + offset % 4104, value | (uint64_t)value << 32, size);
		break;
	case 4:
		bus_read(&mmio, bar(DISPLAY_REGISTER_BAR) + offset % 4104, size);
		break;
	case 5:
		if (op[1] & 4)
			bus_write(&mmio, bar(DISPLAY_FRAME_BAR) + offset % (DISPLAY_BYTES + 8), value, size);
		else
			bus_read(&mmio, bar(DISPLAY_FRAME_BAR) + offset % (DISPLAY_BYTES + 8), size);
		break;
	case 6:
		set_config(op[1], value);
		break;
	default:
		if (op[1] == 0)
			move();
		else if (op[1] == 1)
			display_unit.reset(display);
		else
			look(op[1]);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	shots = 0;
	make();
	set_config(4, 2);
	for (size_t i = 0; i < size / OP_BYTES && i < OPS_MAX; i++) {
		step(data + i * OP_BYTES);
		check();
	}
	unmake();
	return 0;
}
