/* Test of the display: a mode, a picture, a frame buffer that moves; the Python side looks at what is to be seen. */
#include "tests.h"

#define WIDTH  640u
#define HEIGHT 480u

enum { VBE_ID, VBE_XRES, VBE_YRES, VBE_BPP, VBE_ENABLE, VBE_BANK, VBE_VIRT_WIDTH, VBE_VIRT_HEIGHT };

static uint64_t vbe;

static void set(unsigned reg, uint16_t value)
{
	mmio_write16(vbe + 2 * reg, value);
	CHECK(mmio_read16(vbe + 2 * reg) == value, "register %u reads %x, not %x", reg, mmio_read16(vbe + 2 * reg),
	      value);
}

static void fill_row(uint64_t frame, unsigned y, uint32_t colour)
{
	void *at = (void *)(frame + (uint64_t)y * WIDTH * 4);
	uint64_t n = WIDTH;

	__asm__ volatile("rep stosl" : "+D"(at), "+c"(n) : "a"(colour) : "memory");
}

/* Each row has a colour of its own; a white line goes down from the corner. */
static void draw(uint64_t frame)
{
	for (unsigned y = 0; y < HEIGHT; y++) {
		fill_row(frame, y, y * 0x010203 & 0xffffff);
		mmio_write32(frame + (y * WIDTH + y) * 4ull, 0xffffffff);
	}
}

static void next(const char *what)
{
	print("DISPLAY %s\n", what);
	while (serial_get() < 0)
		relax();
}

void test_display(void)
{
	int slot = pci_find(0x1234, 0x1111, 0);

	CHECK(slot == 1, "the display is in slot %d", slot);
	pci_enable((unsigned)slot);
	CHECK(pci_bar_size((unsigned)slot, 0) == 16 << 20, "the frame buffer has %lx bytes",
	      pci_bar_size((unsigned)slot, 0));
	uint64_t frame = pci_bar((unsigned)slot, 0), registers = pci_bar((unsigned)slot, 2);
	vbe = registers + 0x500;
	CHECK((mmio_read16(vbe) & 0xfff0) == 0xb0c0, "the id is %x", mmio_read16(vbe));
	CHECK(mmio_read64(registers) == 0x00ffffffffffff00, "EDID begins with %lx", mmio_read64(registers));
	next("dark");
	set(VBE_XRES, WIDTH);
	set(VBE_YRES, HEIGHT);
	set(VBE_BPP, 32);
	set(VBE_VIRT_WIDTH, WIDTH);
	set(VBE_ENABLE, 0x41);
	draw(frame);
	next("drawn");
	/* One row is drawn anew, then the picture moves away under the guest's hands and is drawn on there. */
	fill_row(frame, 100, 0xff0000);
	next("row");
	uint64_t other = frame + (32 << 20);
	pci_set_bar((unsigned)slot, 0, other);
	CHECK(mmio_read32(frame) == ALL_ONES32, "the old place still reads %x", mmio_read32(frame));
	CHECK(mmio_read32(other + 4) == 0 && mmio_read32(other + WIDTH * 4) == 0x010203, "the new place reads %x %x",
	      mmio_read32(other + 4), mmio_read32(other + WIDTH * 4));
	fill_row(other, 200, 0x00ff00);
	next("moved");
	/* Onto RAM: the RAM stays, and the picture comes back unharmed. */
	uint32_t *word = alloc(PAGE, 16 << 20);
	*word = 0x12345678;
	pci_set_bar((unsigned)slot, 0, (uint64_t)word);
	CHECK(*(volatile uint32_t *)word == 0x12345678, "RAM reads %x", *word);
	pci_set_bar((unsigned)slot, 0, frame);
	CHECK(mmio_read32(frame + 200 * WIDTH * 4) == 0x00ff00, "row 200 reads %x",
	      mmio_read32(frame + 200 * WIDTH * 4));
	fill_row(frame, 300, 0x0000ff);
	next("back");
	/* Nonsense shows nothing and hurts nobody. */
	for (unsigned i = 0; i < 300; i++)
		mmio_write16(vbe + 2 * (random_next() % 12), (uint16_t)random_next());
	set(VBE_ENABLE, 0);
	next("off");
}
