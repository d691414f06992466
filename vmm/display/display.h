/*
 * The display: a linear frame buffer and the registers that say how it is laid out, known as bochs-display
 * (PCI 1234:1111, class 0380). Stock OVMF drives it (QemuVideoDxe, so GOP: firmware's own screens, GRUB, an operating
 * system's first pictures), and so does Linux (bochs-drm). No VGA: no text modes, no ports, no legacy memory.
 *
 *     BAR 0   16 MiB, the frame buffer: a KVM memory slot, so drawing never leaves the guest (vmm/memory/window.h)
 *     BAR 2   4 KiB: 0x000 EDID, which names the preferred mode; 0x500 the registers of the Bochs VBE extensions, 16
 *             bits each; 0x600 QEMU's extension (its length; byte order: little-endian)
 *
 * The frame buffer is a memfd sealed so that whoever else gets it can read it and nothing else (viewers.h). What the
 * registers say is checked anew whenever a picture is looked at: they are just numbers until then.
 *
 * The interface is that of Bochs' vbe_display_api.txt and QEMU's docs/specs/standard-vga.rst.
 */
#ifndef GLINT_VMM_DISPLAY_DISPLAY_H
#define GLINT_VMM_DISPLAY_DISPLAY_H

#include "vmm/machine/unit.h"
#include "vmm/memory/window.h"
#include "vmm/pci/pci.h"

#define DISPLAY_BYTES ((uint64_t)16 << 20) /* of the frame buffer */

/* What may be preferred: what EDID can say, and what fits. */
#define DISPLAY_WIDTH_MIN      640u
#define DISPLAY_HEIGHT_MIN     480u
#define DISPLAY_SIDE_MAX       4088u
#define DISPLAY_DEFAULT_WIDTH  1280u
#define DISPLAY_DEFAULT_HEIGHT 800u
#define DISPLAY_EDID_BYTES     128u

/* BARs, and places in the second one. */
#define DISPLAY_FRAME_BAR      0
#define DISPLAY_REGISTER_BAR   2
#define DISPLAY_REGISTER_BYTES 4096u
#define DISPLAY_VBE            0x500u

/* Registers at DISPLAY_VBE, 2 bytes each. */
enum display_register {
	VBE_ID,
	VBE_XRES,
	VBE_YRES,
	VBE_BPP,
	VBE_ENABLE,
	VBE_BANK,
	VBE_VIRT_WIDTH,
	VBE_VIRT_HEIGHT,
	VBE_X_OFFSET,
	VBE_Y_OFFSET,
	VBE_MEMORY, /* in units of 64 KiB; read only */
	VBE_REGISTERS
};
#define VBE_ID_FIRST     0xb0c0u
#define VBE_ID_LAST      0xb0c5u
#define VBE_ENABLED      0x01u
#define VBE_GET_CAPS     0x02u /* XRES, YRES and BPP read as the most there can be */
#define VBE_NO_CLEAR_MEM 0x80u

struct display_config {
	uint16_t width, height; /* the mode that EDID prefers */
};

/* A picture in the frame buffer: 32 bits a pixel, blue in the lowest byte; the highest is nothing. */
struct display_mode {
	uint32_t width, height; /* pixels; 0: there is no picture */
	uint32_t stride;        /* bytes from a row to the next */
	uint32_t offset;        /* of the first pixel; the picture lies wholly inside the frame buffer */
};

struct display {
	struct pci_device pci;
	int fd; /* the memfd */
	uint8_t *frame;
	struct memory_window window;
	uint8_t edid[DISPLAY_EDID_BYTES];
	pthread_mutex_t lock; /* of the registers */
	uint16_t vbe[VBE_REGISTERS];
};

/*
 * Makes the device and puts it into @slot of @bus. Takes a memory slot from @mem. @vm_fd -1 (unit tests, fuzzers): the
 * frame buffer is reached through the BAR's handlers.
 */
[[nodiscard]] struct error *display_new(struct display **out, struct memory *mem, int vm_fd, struct pci_bus *bus,
					unsigned slot, const struct display_config *config);
/* NULL is allowed. */
void display_free(struct display *display);

/* What is to be seen now; all zeros when the guest shows nothing, or something that does not fit. Any thread. */
struct display_mode display_mode(struct display *display);

/* Whether a mode of this size can be preferred. */
bool display_size_fits(uint64_t width, uint64_t height);

/*
 * Writes the picture as a portable pixmap (PPM, P6) to @fd, a regular file. The guest may be drawing meanwhile. EAGAIN
 * when there is no picture.
 */
[[nodiscard]] struct error *display_screenshot(struct display *display, int fd);

/* Unit of PCI function and registers, and the bulk section of the frame buffer. */
extern const struct unit_ops display_unit;
[[nodiscard]] struct error *display_bulk(struct display *display, struct saved *s);

/* edid.c: a block that describes a monitor of this size, preferred mode first (VESA E-EDID 1.4). */
void display_make_edid(uint8_t edid[DISPLAY_EDID_BYTES], unsigned width, unsigned height);

#endif
