/*
 * The LPC bridge; see lpc.h. Touches its configuration space only.
 */
#include "vmm/firmware/lpc.h"

#include "vmm/devices/pm.h"

#include <string.h>

/* Registers, ICH9 datasheet section 13.1. */
enum {
	HEADER_TYPE = 0x0e,
	PMBASE = 0x40,    /* bit 0: it is I/O space */
	ACPI_CNTL = 0x44, /* bit 7: the block decodes; bits 2:0: which line the SCI is, 0 for IRQ 9 */
	PIRQA_ROUT = 0x60,
	PIRQE_ROUT = 0x68,
	RCBA = 0xF0,
	PIRQ_OFF = 0x80,
};

struct error *lpc_init(struct lpc *lpc, struct pci_bus *bus, bool others)
{
	static const struct pci_id ich9 = {.vendor = 0x8086, .device = 0x2918, .class_code = 0x060100, .revision = 2};
	struct pci_device *pci = &lpc->pci;

	pci_device_init(pci, "LPC bridge", &ich9, NULL, NULL);
	pci->config[HEADER_TYPE] = others ? 0x80 : 0; /* there are more functions */
	pci->config[PMBASE] = (PM_BASE & 0xff) | 1;
	pci->config[PMBASE + 1] = PM_BASE >> 8;
	pci->config[ACPI_CNTL] = 0x80;
	for (unsigned i = 0; i < 4; i++) {
		pci->config[PIRQA_ROUT + i] = pci->config[PIRQE_ROUT + i] = PIRQ_OFF;
		pci->writable[PIRQA_ROUT + i] = pci->writable[PIRQE_ROUT + i] = 0x8f;
	}
	memcpy(pci->writable + RCBA, (const uint8_t[]){0x01, 0xc0, 0xff, 0xff}, 4);
	return pci_add(bus, LPC_SLOT, pci);
}

void lpc_destroy(struct lpc *lpc)
{
	if (lpc->pci.bus)
		pci_device_destroy(&lpc->pci);
}

static void state(void *self, struct saved *s)
{
	struct lpc *lpc = self;

	pci_device_state(&lpc->pci, s);
}

static struct error *restored(void *self)
{
	struct lpc *lpc = self;

	return pci_device_restored(&lpc->pci);
}

static void power_on(void *self)
{
	struct lpc *lpc = self;

	pci_device_reset(&lpc->pci);
}

const struct unit_ops lpc_unit = {.version = 1, .state = state, .restored = restored, .reset = power_on};
