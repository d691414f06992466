/*
 * PCI Express root ports with native hot-plug: bridges to a bus of one device each, which may come and go while the
 * guest runs (PCI Express 3.0, section 6.7). Ids are those of QEMU's generic root port (1b36:000c), which every guest
 * and OVMF know.
 *
 * A port has an attention button, indicators, a power controller, no latch, and does what it is told at once (no
 * command completed). A device behind it answers while the link is up and the bus numbers lead to it; its memory BARs
 * decode while they lie in one of the bridge's two windows. There are no I/O ports behind it. Its pin is the port's.
 *
 *     add      insert: presence changed, button pressed     the guest turns the power on: the link comes up
 *     remove   press: the guest stops using the device      and turns the power off: it may be taken out
 *
 * Whoever owns the port settles it on the main thread after each change of power: links come up there, and devices are
 * reset there. What interrupts the guest is INTA by level.
 */
#ifndef GLINT_VMM_PCI_PORT_H
#define GLINT_VMM_PCI_PORT_H

#include "vmm/pci/pci.h"

/* Functions 0 to 3 of a slot. Not more: the sources of an interrupt line are counted, see pci_update_intx(). */
#define PCI_PORTS 4

struct pci_port {
	struct pci_device pci;
	unsigned capability; /* of PCI Express */
	struct pci_device *card;
	/* Guarded by the bus's lock. */
	uint16_t control, status; /* slot registers, less what is derived */
	bool link;
	bool removing; /* asked to let the card go */
	bool stale;    /* the card lost its power and was not reset yet */
	void (*changed)(void *arg);
	void *arg;
};

enum pci_port_next { PCI_PORT_SETTLED, PCI_PORT_RESET_CARD, PCI_PORT_EJECT };

/*
 * Puts port @number (from 0) into function @number of @slot. @changed: the power changed; pci_port_settle() is due. On
 * a vCPU thread with the bus's lock held.
 */
[[nodiscard]] struct error *pci_port_init(struct pci_port *port, struct pci_bus *bus, unsigned slot, unsigned number,
					  void (*changed)(void *arg), void *arg);
/* The card is out. For a port of zeros, too. */
void pci_port_destroy(struct pci_port *port);

/* Puts @dev behind the port, with no addresses yet. At power-on it is just there; later pci_port_insert() follows. */
[[nodiscard]] struct error *pci_add_behind(struct pci_port *port, struct pci_device *dev);

/* Tells the guest of the card that was added. */
void pci_port_insert(struct pci_port *port);
/* Asks the guest to let the card go, and takes that back. */
void pci_port_press(struct pci_port *port);
void pci_port_give_up(struct pci_port *port);
/* The card is out: pci_device_destroy() took it off. */
void pci_port_emptied(struct pci_port *port);

/* What is to be done by the owner; after PCI_PORT_RESET_CARD, pci_port_card_reset() and once more. */
enum pci_port_next pci_port_settle(struct pci_port *port);
void pci_port_card_reset(struct pci_port *port);

/* The port's part of its unit, without the card. */
void pci_port_state(void *self, struct saved *s);
[[nodiscard]] struct error *pci_port_restored(struct pci_port *port);
void pci_port_reset(struct pci_port *port);

#endif
