/*
 * The parts of the machine glint-q35-1 that never change from one VM to another. What does is in the SSDT that
 * acpi.c makes: M64B and M64L, base and length of PCI's 64-bit window.
 *
 * Addresses are those of vmm/pci/pci.h and of the devices; boot_test.c holds them against each other.
 */
DefinitionBlock ("", "DSDT", 2, "GLINT ", "GLINTQ35", 1)
{
	External (\M64B, IntObj)
	External (\M64L, IntObj)

	/* Soft off: SLP_TYP 0, as stock OVMF writes it on a Q35. */
	Name (\_S5, Package (4) { 0, 0, 0, 0 })

	Scope (\_SB)
	{
		Device (PCI0)
		{
			Name (_HID, EisaId ("PNP0A08"))
			Name (_CID, EisaId ("PNP0A03"))
			Name (_UID, 0)
			Name (_SEG, 0)
			Name (_BBN, 0)

			Name (RSRC, ResourceTemplate ()
			{
				WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, 255, 0, 256)
				IO (Decode16, 0x0CF8, 0x0CF8, 1, 8)
				WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
					0, 0xC000, 0xFFFF, 0, 0x4000)
				DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
					0, 0xC0000000, 0xDFFFFFFF, 0, 0x20000000)
				QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
					0, 0, 0, 0, 0, , , W64)
			})

			Method (_CRS, 0, Serialized)
			{
				CreateQWordField (RSRC, \_SB.PCI0.W64._MIN, WMIN)
				CreateQWordField (RSRC, \_SB.PCI0.W64._MAX, WMAX)
				CreateQWordField (RSRC, \_SB.PCI0.W64._LEN, WLEN)
				WMIN = \M64B
				WLEN = \M64L
				WMAX = \M64B + \M64L - 1
				Return (RSRC)
			}

			/* Pin p (INTA is 0) of slot s is wired to GSI 16 + (s + p) % 8: pci_slot_gsi(). */
			Method (_PRT, 0, Serialized)
			{
				Local0 = Package (128) {}
				Local1 = 0
				While (Local1 < 128)
				{
					Local2 = Local1 >> 2
					Local3 = Local1 & 3
					Local4 = Package (4) { 0, 0, 0, 0 }
					Local4[0] = (Local2 << 16) | 0xFFFF
					Local4[1] = Local3
					Local4[3] = 16 + ((Local2 + Local3) & 7)
					Local0[Local1] = Local4
					Local1++
				}
				Return (Local0)
			}

			/* The guest may have what it asks for of PCI Express: hot-plug, PME, AER, capability structure. */
			Method (_OSC, 4, Serialized)
			{
				CreateDWordField (Arg3, 0, STS)
				If (Arg0 != ToUUID ("33DB4D5B-1FF7-401C-9657-7441C03DD766"))
				{
					STS |= 4
					Return (Arg3)
				}
				If (Arg1 != 1)
				{
					STS |= 8
				}
				CreateDWordField (Arg3, 8, CTRL)
				Local0 = CTRL & 0x1F
				If (CTRL != Local0)
				{
					STS |= 0x10
				}
				CTRL = Local0
				Return (Arg3)
			}
		}

		/* What no driver claims and nothing else may use: ECAM, and the power management block. */
		Device (MBRD)
		{
			Name (_HID, EisaId ("PNP0C02"))
			Name (_UID, 1)
			Name (_CRS, ResourceTemplate ()
			{
				Memory32Fixed (ReadWrite, 0xE0000000, 0x10000000)
				IO (Decode16, 0x0600, 0x0600, 1, 0x80)
			})
		}

		Device (COM1)
		{
			Name (_HID, EisaId ("PNP0501"))
			Name (_UID, 1)
			Name (_STA, 0x0F)
			Name (_CRS, ResourceTemplate ()
			{
				IO (Decode16, 0x03F8, 0x03F8, 1, 8)
				IRQNoFlags () { 4 }
			})
		}

		Device (RTC)
		{
			Name (_HID, EisaId ("PNP0B00"))
			Name (_CRS, ResourceTemplate ()
			{
				IO (Decode16, 0x0070, 0x0070, 1, 2)
				IRQNoFlags () { 8 }
			})
		}
	}
}
