/*
 * The display's registers, frame buffer and saved form; see display.h. Touches its memfd and the memory slot behind
 * BAR 0.
 *
 * A guest that moves BAR 0 onto its own RAM gets no memory slot there (KVM refuses): then the frame buffer is reached
 * through the BAR's handlers where RAM does not hide it, slowly and correctly.
 */
#include "vmm/display/display.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXTENSION         0x600u /* QEMU's: length of the block in bytes, then the byte order */
#define EXTENSION_BYTES   8u
#define BYTE_ORDER_LITTLE 0x1e1e1e1eu
#define PIXEL_BYTES       4u
#define BITS_PER_PIXEL    32u

/* --- the picture --- */

/* Registers are 16 bits wide, so nothing here can overflow 64. */
static struct display_mode mode_of(const uint16_t vbe[VBE_REGISTERS])
{
	uint64_t width = vbe[VBE_XRES], height = vbe[VBE_YRES];
	uint64_t stride = MAX(vbe[VBE_VIRT_WIDTH], vbe[VBE_XRES]) * (uint64_t)PIXEL_BYTES;
	uint64_t offset = vbe[VBE_Y_OFFSET] * stride + vbe[VBE_X_OFFSET] * (uint64_t)PIXEL_BYTES;

	if (!(vbe[VBE_ENABLE] & VBE_ENABLED) || vbe[VBE_BPP] != BITS_PER_PIXEL || !width || !height)
		return (struct display_mode){};
	if (!range_inside(offset, stride * (height - 1) + width * PIXEL_BYTES, DISPLAY_BYTES))
		return (struct display_mode){};
	return (struct display_mode){(uint32_t)width, (uint32_t)height, (uint32_t)stride, (uint32_t)offset};
}

struct display_mode display_mode(struct display *d)
{
	pthread_mutex_lock(&d->lock);
	struct display_mode mode = mode_of(d->vbe);
	pthread_mutex_unlock(&d->lock);
	return mode;
}

bool display_size_fits(uint64_t width, uint64_t height)
{
	return width >= DISPLAY_WIDTH_MIN && width <= DISPLAY_SIDE_MAX && height >= DISPLAY_HEIGHT_MIN &&
	       height <= DISPLAY_SIDE_MAX && width % 8 == 0 && width * height * PIXEL_BYTES <= DISPLAY_BYTES;
}

static void convert_row(uint8_t *to, const uint8_t *from, uint32_t pixels)
{
	for (uint32_t x = 0; x < pixels; x++) {
		to[3 * x + 0] = from[PIXEL_BYTES * x + 2];
		to[3 * x + 1] = from[PIXEL_BYTES * x + 1];
		to[3 * x + 2] = from[PIXEL_BYTES * x + 0];
	}
}

struct error *display_screenshot(struct display *d, int fd)
{
	struct display_mode mode = display_mode(d);
	struct stat st;
	char head[32];

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) /* a pipe could keep the main thread waiting */
		return error_hint(error_new(EINVAL, "the descriptor is not a regular file"),
				  "pass a file or a memfd that is open for writing");
	if (!mode.width)
		return error_new(EAGAIN, "the guest shows no picture");
	cleanup_free uint8_t *row = malloc(3 * (size_t)mode.width);
	if (!row)
		return error_new(ENOMEM, "make a picture");
	int len = snprintf(head, sizeof(head), "P6\n%u %u\n255\n", mode.width, mode.height);
	TRY(write_all(fd, head, (size_t)len, "the picture"));
	for (uint32_t y = 0; y < mode.height; y++) {
		convert_row(row, d->frame + mode.offset + (size_t)y * mode.stride, mode.width);
		TRY(write_all(fd, row, 3 * (size_t)mode.width, "the picture"));
	}
	return NULL;
}

/* --- registers --- */

static uint16_t get_register(const struct display *d, unsigned index)
{
	bool caps = d->vbe[VBE_ENABLE] & VBE_GET_CAPS;

	switch (index) {
	case VBE_XRES:
	case VBE_YRES:
		return caps ? DISPLAY_SIDE_MAX : d->vbe[index];
	case VBE_BPP:
		return caps ? BITS_PER_PIXEL : d->vbe[index];
	case VBE_MEMORY:
		return DISPLAY_BYTES / (64 * KIB);
	default:
		return d->vbe[index];
	}
}

static void clear_picture(struct display *d)
{
	struct display_mode mode = mode_of(d->vbe);
	uint64_t len = mode.height ? (uint64_t)mode.stride * (mode.height - 1) + mode.width * PIXEL_BYTES : 0;

	memset(d->frame + mode.offset, 0, len);
	memory_window_touched(&d->window, mode.offset, len);
}

static void set_register(struct display *d, unsigned index, uint16_t value)
{
	bool was_enabled = d->vbe[VBE_ENABLE] & VBE_ENABLED;

	if (index == VBE_MEMORY || (index == VBE_ID && (value < VBE_ID_FIRST || value > VBE_ID_LAST)))
		return;
	d->vbe[index] = value;
	if (index == VBE_ENABLE && (value & VBE_ENABLED) && !(value & VBE_NO_CLEAR_MEM) && !was_enabled)
		clear_picture(d);
}

/* One byte of BAR 2; what is nothing reads as all-ones, as elsewhere in the machine. */
static uint8_t register_byte(const struct display *d, unsigned at)
{
	if (at < DISPLAY_EDID_BYTES)
		return d->edid[at];
	if (at < 2 * DISPLAY_EDID_BYTES)
		return 0; /* no extension block */
	if (at >= DISPLAY_VBE && at < DISPLAY_VBE + 2 * VBE_REGISTERS)
		return (uint8_t)(get_register(d, (at - DISPLAY_VBE) / 2) >> 8 * (at & 1));
	if (at >= EXTENSION && at < EXTENSION + EXTENSION_BYTES)
		return (uint8_t)((at < EXTENSION + 4 ? EXTENSION_BYTES : BYTE_ORDER_LITTLE) >> 8 * (at & 3));
	return 0xff;
}

static uint64_t registers_read(void *self, uint64_t offset, unsigned size)
{
	struct display *d = self;
	uint64_t value = 0;

	pthread_mutex_lock(&d->lock);
	for (unsigned i = 0; i < size; i++)
		value |= (uint64_t)register_byte(d, (unsigned)offset + i) << 8 * i;
	pthread_mutex_unlock(&d->lock);
	return value;
}

/* Registers are written whole; a wider access is several of them. */
static void registers_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct display *d = self;

	if (offset % 2)
		return;
	pthread_mutex_lock(&d->lock);
	for (unsigned i = 0; i + 2 <= size; i += 2) {
		uint64_t at = offset + i;
		if (at >= DISPLAY_VBE && at < DISPLAY_VBE + 2 * VBE_REGISTERS)
			set_register(d, (unsigned)(at - DISPLAY_VBE) / 2, (uint16_t)(value >> 8 * i));
	}
	pthread_mutex_unlock(&d->lock);
}

static const struct bus_ops register_ops = {.read = registers_read, .write = registers_write};

/* --- the frame buffer where no memory slot shows it --- */

static uint64_t frame_read(void *self, uint64_t offset, unsigned size)
{
	const struct display *d = self;
	uint64_t value = 0;

	memcpy(&value, d->frame + offset, size);
	return value;
}

static void frame_write(void *self, uint64_t offset, uint64_t value, unsigned size)
{
	struct display *d = self;

	memcpy(d->frame + offset, &value, size);
	memory_window_touched(&d->window, offset, size);
}

static const struct bus_ops frame_ops = {.read = frame_read, .write = frame_write};

static void bar_mapped(void *self, unsigned bar, uint64_t address, bool mapped)
{
	struct display *d = self;

	if (bar != DISPLAY_FRAME_BAR)
		return;
	if (mapped)
		memory_window_show(&d->window, address);
	else
		memory_window_hide(&d->window);
}

static const struct pci_ops pci_ops = {.bar_mapped = bar_mapped};

/* --- making it --- */

/* This process writes through its mapping; nobody can make another one that can be written, nor change the size. */
static struct error *make_frame(struct display *d)
{
	d->fd = memfd_create("display", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	if (d->fd < 0 && errno == EINVAL) /* before Linux 6.3 */
		d->fd = memfd_create("display", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (d->fd < 0 || ftruncate(d->fd, (off_t)DISPLAY_BYTES) < 0)
		return error_new(errno, "make a frame buffer");
	void *frame = mmap(NULL, DISPLAY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, d->fd, 0);
	if (frame == MAP_FAILED)
		return error_new(errno, "map the frame buffer");
	d->frame = frame;
	madvise(frame, DISPLAY_BYTES, MADV_DONTDUMP);
	madvise(frame, DISPLAY_BYTES, MADV_DONTFORK);
	if (fcntl(d->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) < 0)
		return error_new(errno, "seal the frame buffer");
	return NULL;
}

static void power_on_registers(struct display *d)
{
	memset(d->vbe, 0, sizeof(d->vbe));
	d->vbe[VBE_ID] = VBE_ID_LAST;
}

static struct error *make(struct display *d, struct memory *mem, int vm_fd, struct pci_bus *bus, unsigned slot)
{
	static const struct pci_id id = {
		.vendor = 0x1234,
		.device = 0x1111,
		.subsystem_vendor = 0x1af4,
		.subsystem = 0x1100,
		.class_code = 0x038000,
		.revision = 2, /* QEMU's extension is there */
	};

	TRY(make_frame(d));
	memory_window_init(&d->window, mem, vm_fd, d->frame, DISPLAY_BYTES);
	pci_device_init(&d->pci, "display", &id, &pci_ops, d);
	TRY(pci_device_bar(&d->pci, DISPLAY_FRAME_BAR, PCI_BAR_MEM32, DISPLAY_BYTES, &frame_ops, d));
	TRY(pci_device_bar(&d->pci, DISPLAY_REGISTER_BAR, PCI_BAR_MEM32, DISPLAY_REGISTER_BYTES, &register_ops, d));
	return pci_add(bus, slot, &d->pci);
}

struct error *display_new(struct display **out, struct memory *mem, int vm_fd, struct pci_bus *bus, unsigned slot,
			  const struct display_config *config)
{
	struct display *d = calloc(1, sizeof(*d));

	if (!d)
		return error_new(ENOMEM, "make the display");
	d->fd = -1;
	pthread_mutex_init(&d->lock, NULL);
	power_on_registers(d);
	display_make_edid(d->edid, config->width, config->height);
	struct error *err = make(d, mem, vm_fd, bus, slot);
	if (err) {
		display_free(d);
		return error_wrap(err, "make the display");
	}
	*out = d;
	return NULL;
}

void display_free(struct display *d)
{
	if (!d)
		return;
	if (d->pci.bus)
		pci_device_destroy(&d->pci);
	if (d->frame) {
		memory_window_destroy(&d->window);
		munmap(d->frame, DISPLAY_BYTES);
	}
	close_fd(&d->fd);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

/* --- state --- */

static void state(void *self, struct saved *s)
{
	static const char *const names[VBE_REGISTERS] = {
		"id",   "x-resolution",  "y-resolution",   "bits-per-pixel", "enable",
		"bank", "virtual-width", "virtual-height", "x-offset",       "y-offset",
	};
	struct display *d = self;
	uint8_t edid[DISPLAY_EDID_BYTES];

	pci_device_state(&d->pci, s);
	for (unsigned i = 0; i < VBE_MEMORY; i++)
		saved_u16(s, names[i], &d->vbe[i]);
	if (saved_loading(s) && (d->vbe[VBE_ID] < VBE_ID_FIRST || d->vbe[VBE_ID] > VBE_ID_LAST))
		saved_fail(s, "the id 0x%04x is none of this interface", d->vbe[VBE_ID]);
	/* The guest has read it: it travels, whatever this machine would have preferred. */
	memcpy(edid, d->edid, sizeof(edid));
	saved_bytes(s, "edid", edid, sizeof(edid));
	memcpy(d->edid, edid, sizeof(edid));
}

static struct error *restored(void *self)
{
	struct display *d = self;

	return pci_device_restored(&d->pci);
}

/* The frame buffer keeps what is in it, as such memory does; nothing shows it until a mode is set. */
static void power_on(void *self)
{
	struct display *d = self;

	pthread_mutex_lock(&d->lock);
	power_on_registers(d);
	pthread_mutex_unlock(&d->lock);
	pci_device_reset(&d->pci);
}

const struct unit_ops display_unit = {.version = 1, .state = state, .restored = restored, .reset = power_on};

struct error *display_bulk(struct display *d, struct saved *s)
{
	return d ? saved_bulk_file(s, "frame-buffer", d->frame, DISPLAY_BYTES, d->fd, 0) : NULL;
}
