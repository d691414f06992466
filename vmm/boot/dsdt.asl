/*
 * The parts of the machine glint-q35-1 that never change from one VM to another. What does is in the SSDT that
 * acpi.c makes: base and length of PCI's windows (M64B and M64L, M32B and M32L), and where ECAM is.
 *
 * Addresses are those of vmm/pci/pci.h and of the devices; boot_test.c holds them against each other.
 */
DefinitionBlock ("", "DSDT", 2, "GLINT ", "GLINTQ35", 1)
{
	External (\M64B, IntObj)
	External (\M64L, IntObj)
	External (\M32B, IntObj)
	External (\M32L, IntObj)
	External (\ECAM, IntObj)
	External (\KBDC, IntObj) /* whether there is a keyboard controller */

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
				WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, 15, 0, 16) /* PCI_BUSES */
				IO (Decode16, 0x0CF8, 0x0CF8, 1, 8)
				WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
					0, 0x0000, 0x0CF7, 0, 0x0CF8)
				WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
					0, 0x0D00, 0xFFFF, 0, 0xF300)
				DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
					0, 0, 0, 0, 0, , , W32)
				QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
					0, 0, 0, 0, 0, , , W64)
			})

			Method (_CRS, 0, Serialized)
			{
				CreateDWordField (RSRC, \_SB.PCI0.W32._MIN, LMIN)
				CreateDWordField (RSRC, \_SB.PCI0.W32._MAX, LMAX)
				CreateDWordField (RSRC, \_SB.PCI0.W32._LEN, LLEN)
				LMIN = \M32B
				LLEN = \M32L
				LMAX = \M32B + \M32L - 1
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
			Name (RSRC, ResourceTemplate ()
			{
				Memory32Fixed (ReadWrite, 0, 0x10000000, MCFG)
				IO (Decode16, 0x0600, 0x0600, 1, 0x80)
			})

			Method (_CRS, 0, Serialized)
			{
				CreateDWordField (RSRC, \_SB.MBRD.MCFG._BAS, BASE)
				BASE = \ECAM
				Return (RSRC)
			}
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

		Device (KBD)
		{
			Name (_HID, EisaId ("PNP0303"))
			Method (_STA)
			{
				Return (\KBDC * 0x0F)
			}
			Name (_CRS, ResourceTemplate ()
			{
				IO (Decode16, 0x0060, 0x0060, 1, 1)
				IO (Decode16, 0x0064, 0x0064, 1, 1)
				IRQNoFlags () { 1 }
			})
		}

		Device (MOU)
		{
			Name (_HID, EisaId ("PNP0F13"))
			Method (_STA)
			{
				Return (\KBDC * 0x0F)
			}
			Name (_CRS, ResourceTemplate ()
			{
				IRQNoFlags () { 12 }
			})
		}

		Device (PEVT)
		{
			Name (_HID, "QEMU0001") /* pvpanic */
			Name (_STA, 0x0F)
			Name (_CRS, ResourceTemplate ()
			{
				IO (Decode16, 0x0505, 0x0505, 1, 1)
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
