/*
 * The ACPI tables of the machine glint-q35-1 (ACPI specification 6.5; section numbers are its). Touches guest memory.
 *
 * What is the same for every VM is ASL that iasl compiled (dsdt.asl). What depends on the VM is written here: the
 * processors (MADT) and nodes (SRAT, SLIT), where ECAM is (MCFG), and PCI's windows (a small SSDT). The same config
 * gives the same bytes.
 *
 * Tables stand one behind the other in a block that does not know its address: pointers in it are offsets, and lists
 * say where they are and which bytes a checksum covers. Direct boot links the block at LOW_ACPI, in memory that the map
 * calls ACPI data; firmware gets block and lists, and links it where it likes (vmm/firmware/loader.c).
 */
#include "vmm/boot/acpi.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "vmm/boot/boot.h"
#include "vmm/boot/dsdt.hex"
#include "vmm/boot/internal.h"
#include "vmm/devices/pm.h"
#include "vmm/pci/pci.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define OEM_ID       "GLINT "
#define OEM_TABLE_ID "GLINTQ35"
#define CREATOR_ID   "GLNT"

#define LAPIC_BASE  0xFEE00000
#define IOAPIC_BASE 0xFEC00000
#define RESET_PORT  0xCF9
#define RESET_VALUE 6
#define RTC_CENTURY 0x32

/* 5.2.6 */
struct [[gnu::packed]] header {
	char signature[4];
	uint32_t length;
	uint8_t revision, checksum;
	char oem_id[6], oem_table_id[8];
	uint32_t oem_revision;
	char creator_id[4];
	uint32_t creator_revision;
};

/* 5.2.5.3 */
struct [[gnu::packed]] rsdp {
	char signature[8];
	uint8_t checksum;
	char oem_id[6];
	uint8_t revision;
	uint32_t rsdt, length;
	uint64_t xsdt;
	uint8_t extended_checksum, reserved[3];
};

/* 5.2.3.2: a register; here always in port space. */
struct [[gnu::packed]] gas {
	uint8_t space, bits, offset, access;
	uint64_t address;
};
enum { GAS_PORT = 1, GAS_BYTE = 1, GAS_WORD = 2, GAS_DWORD = 3 };

/* 5.2.9 */
struct [[gnu::packed]] fadt {
	struct header header;
	uint32_t facs, dsdt;
	uint8_t reserved0, pm_profile;
	uint16_t sci;
	uint32_t smi_command;
	uint8_t acpi_enable, acpi_disable, s4bios, pstate;
	uint32_t pm1a_event, pm1b_event, pm1a_control, pm1b_control, pm2_control, pm_timer, gpe0, gpe1;
	uint8_t pm1_event_len, pm1_control_len, pm2_control_len, pm_timer_len, gpe0_len, gpe1_len, gpe1_base, cst;
	uint16_t c2_latency, c3_latency, flush_size, flush_stride;
	uint8_t duty_offset, duty_width, day_alarm, month_alarm, century;
	uint16_t iapc_boot_arch;
	uint8_t reserved1;
	uint32_t flags;
	struct gas reset;
	uint8_t reset_value;
	uint16_t arm_boot_arch;
	uint8_t minor;
	uint64_t x_facs, x_dsdt;
	struct gas x_pm1a_event, x_pm1b_event, x_pm1a_control, x_pm1b_control, x_pm2_control, x_pm_timer, x_gpe0,
		x_gpe1;
	struct gas sleep_control, sleep_status;
	uint64_t hypervisor;
};
static_assert(sizeof(struct fadt) == 276);
enum {
	PROFILE_ENTERPRISE_SERVER = 4,
	ARCH_LEGACY_DEVICES = 1 << 0, /* a serial port; an 8042 is bit 1; MSI works (bit 3); an RTC (bit 5) */
	ARCH_8042 = 1 << 1,
	ARCH_NO_VGA = 1 << 2,
	FADT_WBINVD = 1 << 0,
	FADT_PROC_C1 = 1 << 2,
	FADT_NO_SLEEP_BUTTON = 1 << 5, /* bit 4 clear: the power button is fixed hardware */
	FADT_RTC_NOT_FIXED = 1 << 6,
	FADT_RESET_REGISTER = 1 << 10,
	LATENCY_NO_C2 = 101, /* microseconds: more than 100 means the state is not there; 1000 for C3 */
	LATENCY_NO_C3 = 1001,
};

/* 5.2.10: the firmware control structure, the one table without a checksum. */
struct [[gnu::packed]] facs {
	char signature[4];
	uint32_t length, hardware_signature, waking_vector, global_lock, flags;
	uint64_t x_waking_vector;
	uint8_t version, reserved0[3];
	uint32_t ospm_flags;
	uint8_t reserved1[24];
};
static_assert(sizeof(struct facs) == 64);

/* 5.2.12 and its structures */
struct [[gnu::packed]] madt {
	struct header header;
	uint32_t lapic_base, flags;
};
struct [[gnu::packed]] madt_lapic {
	uint8_t type, length, uid, apic_id;
	uint32_t flags;
};
struct [[gnu::packed]] madt_x2apic {
	uint8_t type, length;
	uint16_t reserved;
	uint32_t apic_id, flags, uid;
};
struct [[gnu::packed]] madt_ioapic {
	uint8_t type, length, id, reserved;
	uint32_t base, gsi_base;
};
struct [[gnu::packed]] madt_override {
	uint8_t type, length, bus, irq;
	uint32_t gsi;
	uint16_t flags;
};
struct [[gnu::packed]] madt_lapic_nmi {
	uint8_t type, length, uid;
	uint16_t flags;
	uint8_t lint;
};
struct [[gnu::packed]] madt_x2apic_nmi {
	uint8_t type, length;
	uint16_t flags;
	uint32_t uid;
	uint8_t lint, reserved[3];
};
enum {
	MADT_LAPIC = 0,
	MADT_IOAPIC = 1,
	MADT_OVERRIDE = 2,
	MADT_LAPIC_NMI = 4,
	MADT_X2APIC = 9,
	MADT_X2APIC_NMI = 10,
	MADT_PCAT_COMPAT = 1, /* there are 8259s too */
	MADT_ENABLED = 1,
	MADT_AS_BUS = 0,
	MADT_LEVEL_HIGH = 0xD,
	XAPIC_BROADCAST = 255, /* the first id that an xAPIC entry cannot name */
};

/* PCI Firmware Specification 3.2, 4.1.2 */
struct [[gnu::packed]] mcfg {
	struct header header;
	uint8_t reserved[8];
	uint64_t base;
	uint16_t segment;
	uint8_t first_bus, last_bus;
	uint8_t reserved1[4];
};

/* Name (M64B, QWord) and the like, as 20.2.5.1 encodes them. */
struct [[gnu::packed]] name_qword {
	uint8_t name_op;
	char name[4];
	uint8_t qword_prefix;
	uint64_t value;
};
enum { AML_NAME_OP = 0x08, AML_QWORD_PREFIX = 0x0E };
struct [[gnu::packed]] ssdt {
	struct header header;
	struct name_qword m64b, m64l, m32b, m32l, ecam, kbdc;
};

/* 5.2.16 and its structures: who and what lies on which node */
struct [[gnu::packed]] srat {
	struct header header;
	uint32_t one;
	uint64_t reserved;
};
struct [[gnu::packed]] srat_lapic {
	uint8_t type, length, node, apic_id;
	uint32_t flags;
	uint8_t sapic_eid, node_high[3];
	uint32_t clock_domain;
};
struct [[gnu::packed]] srat_memory {
	uint8_t type, length;
	uint32_t node;
	uint16_t reserved0;
	uint64_t base, size;
	uint32_t reserved1, flags;
	uint64_t reserved2;
};
struct [[gnu::packed]] srat_x2apic {
	uint8_t type, length;
	uint16_t reserved0;
	uint32_t node, apic_id, flags, clock_domain, reserved1;
};
static_assert(sizeof(struct srat_lapic) == 16 && sizeof(struct srat_memory) == 40 && sizeof(struct srat_x2apic) == 24);
enum { SRAT_LAPIC = 0, SRAT_MEMORY = 1, SRAT_X2APIC = 2, SRAT_ENABLED = 1 };

/* 5.2.17: distances between nodes */
struct [[gnu::packed]] slit {
	struct header header;
	uint64_t nodes;
	uint8_t distance[NUMA_NODES_MAX * NUMA_NODES_MAX];
};

enum { XSDT_TABLES_MAX = 6 };
struct [[gnu::packed]] xsdt {
	struct header header;
	uint64_t table[XSDT_TABLES_MAX];
};

/* 256 vCPUs of the larger kind, and every other table rounded up generously, always fit. */
static_assert(ACPI_BYTES >
	      256 * (sizeof(struct madt_x2apic) + sizeof(struct srat_x2apic)) + sizeof(dsdt_aml_code) + 8192);
static_assert(ACPI_BYTES == LOW_END - LOW_ACPI);

static uint8_t checksum(const void *data, size_t len)
{
	const uint8_t *bytes = data;
	uint8_t sum = 0;

	for (size_t i = 0; i < len; i++)
		sum += bytes[i];
	return (uint8_t)-sum;
}

/* Puts @len bytes behind what is there, 64-byte aligned (the FACS must be). Returns the offset. */
static uint32_t put(struct acpi_block *b, const void *data, size_t len)
{
	uint32_t at = (uint32_t)align_up(b->used, 64);

	memset(b->bytes + b->used, 0, at - b->used);
	memcpy(b->bytes + at, data, len);
	b->used = at + (uint32_t)len;
	return at;
}

/* The @size bytes at @at are a pointer into the block: an offset until it is linked. */
static void is_pointer(struct acpi_block *b, size_t at, unsigned size)
{
	b->pointer[b->pointers++] = (struct acpi_pointer){.at = (uint32_t)at, .size = (uint8_t)size};
}

/* The byte at @at makes the sum of @len bytes from @start on zero, once those are linked. */
static void is_checksum(struct acpi_block *b, size_t at, size_t start, size_t len)
{
	b->checksum[b->checksums++] =
		(struct acpi_checksum){.at = (uint32_t)at, .start = (uint32_t)start, .len = (uint32_t)len};
}

/* Completes @table's header, whose revision the caller has set, and puts the table. */
static uint32_t put_table(struct acpi_block *b, struct header *table, const char *signature, size_t len)
{
	memcpy(table->signature, signature, sizeof(table->signature));
	memcpy(table->oem_id, OEM_ID, sizeof(table->oem_id));
	memcpy(table->oem_table_id, OEM_TABLE_ID, sizeof(table->oem_table_id));
	memcpy(table->creator_id, CREATOR_ID, sizeof(table->creator_id));
	table->length = (uint32_t)len;
	table->oem_revision = 1;
	table->creator_revision = 1;
	table->checksum = 0;
	uint32_t at = put(b, table, len);
	is_checksum(b, at + offsetof(struct header, checksum), at, len);
	return at;
}

static uint32_t put_facs(struct acpi_block *b)
{
	struct facs facs = {.signature = {'F', 'A', 'C', 'S'}, .length = sizeof(facs), .version = 2};

	return put(b, &facs, sizeof(facs));
}

static struct gas port(uint32_t address, uint8_t bits, uint8_t access)
{
	return (struct gas){.space = GAS_PORT, .bits = bits, .access = access, .address = address};
}

static uint32_t put_fadt(struct acpi_block *b, const struct acpi_config *config, uint32_t facs, uint32_t dsdt)
{
	struct fadt t = {
		.header.revision = 6,
		.minor = 5,
		.facs = facs,
		.dsdt = dsdt,
		.x_dsdt = dsdt,
		.pm_profile = PROFILE_ENTERPRISE_SERVER,
		.sci = PM_SCI_GSI,
		/* No SMI command port: the machine is in ACPI mode from power-on. */
		.pm1a_event = PM_BASE,
		.pm1_event_len = 4,
		.pm1a_control = PM_BASE + PM_CONTROL,
		.pm1_control_len = 2,
		.pm_timer = PM_BASE + PM_TIMER,
		.pm_timer_len = 4,
		.gpe0 = PM_BASE + PM_GPE0,
		.gpe0_len = PM_GPE0_BYTES,
		.x_pm1a_event = port(PM_BASE, 32, GAS_WORD),
		.x_pm1a_control = port(PM_BASE + PM_CONTROL, 16, GAS_WORD),
		.x_pm_timer = port(PM_BASE + PM_TIMER, 32, GAS_DWORD),
		.x_gpe0 = port(PM_BASE + PM_GPE0, PM_GPE0_BYTES * 8, GAS_BYTE),
		.c2_latency = LATENCY_NO_C2,
		.c3_latency = LATENCY_NO_C3,
		.century = RTC_CENTURY,
		.iapc_boot_arch = ARCH_LEGACY_DEVICES | ARCH_NO_VGA | (config->keyboard ? ARCH_8042 : 0),
		.flags = FADT_WBINVD | FADT_PROC_C1 | FADT_NO_SLEEP_BUTTON | FADT_RTC_NOT_FIXED | FADT_RESET_REGISTER,
		.reset = port(RESET_PORT, 8, GAS_BYTE),
		.reset_value = RESET_VALUE,
	};

	uint32_t at = put_table(b, &t.header, "FACP", sizeof(t));
	is_pointer(b, at + offsetof(struct fadt, facs), sizeof(t.facs));
	is_pointer(b, at + offsetof(struct fadt, dsdt), sizeof(t.dsdt));
	is_pointer(b, at + offsetof(struct fadt, x_dsdt), sizeof(t.x_dsdt));
	return at;
}

/* Appends one structure to the table that grows in @buf. */
static void append(uint8_t *buf, size_t *len, const void *data, size_t size)
{
	memcpy(buf + *len, data, size);
	*len += size;
}
#define APPEND(type, ...) append(buf, &len, &(struct type){__VA_ARGS__}, sizeof(struct type))

static uint32_t put_madt(struct acpi_block *b, const struct acpi_config *config)
{
	uint8_t buf[sizeof(struct madt) + 256 * sizeof(struct madt_x2apic) + 256];
	bool x2apic = false;
	size_t len = 0;

	APPEND(madt, .header.revision = 5, .lapic_base = LAPIC_BASE, .flags = MADT_PCAT_COMPAT);
	for (unsigned i = 0; i < config->vcpus; i++) {
		uint32_t id = topology_apic_id(&config->topology, i);
		if (id < XAPIC_BROADCAST) {
			APPEND(madt_lapic, MADT_LAPIC, sizeof(struct madt_lapic), (uint8_t)i, (uint8_t)id,
			       MADT_ENABLED);
		} else {
			APPEND(madt_x2apic, MADT_X2APIC, sizeof(struct madt_x2apic), 0, id, MADT_ENABLED, i);
			x2apic = true;
		}
	}
	APPEND(madt_ioapic, MADT_IOAPIC, sizeof(struct madt_ioapic), 0, 0, IOAPIC_BASE, 0);
	/* The timer's line is on pin 2; the SCI is a PCI interrupt in manners. */
	APPEND(madt_override, MADT_OVERRIDE, sizeof(struct madt_override), 0, 0, 2, MADT_AS_BUS);
	APPEND(madt_override, MADT_OVERRIDE, sizeof(struct madt_override), 0, PM_SCI_GSI, PM_SCI_GSI, MADT_LEVEL_HIGH);
	/* NMI is on LINT1 of every processor. */
	APPEND(madt_lapic_nmi, MADT_LAPIC_NMI, sizeof(struct madt_lapic_nmi), 0xFF, MADT_AS_BUS, 1);
	if (x2apic)
		APPEND(madt_x2apic_nmi, MADT_X2APIC_NMI, sizeof(struct madt_x2apic_nmi), MADT_AS_BUS, UINT32_MAX, 1,
		       {});
	return put_table(b, (struct header *)buf, "APIC", len);
}

static uint32_t put_srat(struct acpi_block *b, const struct acpi_config *config)
{
	uint8_t buf[sizeof(struct srat) + 256 * sizeof(struct srat_x2apic) +
		    NUMA_PIECES_MAX * sizeof(struct srat_memory)];
	struct numa_piece piece[NUMA_PIECES_MAX];
	size_t len = 0;

	APPEND(srat, .header.revision = 3, .one = 1);
	for (unsigned i = 0; i < config->vcpus; i++) {
		uint32_t id = topology_apic_id(&config->topology, i), node = numa_node_of(config->numa, i);
		if (id < XAPIC_BROADCAST)
			APPEND(srat_lapic, SRAT_LAPIC, sizeof(struct srat_lapic), (uint8_t)node, (uint8_t)id,
			       SRAT_ENABLED);
		else
			APPEND(srat_x2apic, SRAT_X2APIC, sizeof(struct srat_x2apic), 0, node, id, SRAT_ENABLED);
	}
	unsigned pieces = numa_pieces(config->numa, config->memory, piece);
	for (unsigned i = 0; i < pieces; i++)
		APPEND(srat_memory, .type = SRAT_MEMORY, .length = sizeof(struct srat_memory), .node = piece[i].node,
		       .base = piece[i].gpa, .size = piece[i].size, .flags = SRAT_ENABLED);
	return put_table(b, (struct header *)buf, "SRAT", len);
}

static uint32_t put_slit(struct acpi_block *b, unsigned nodes)
{
	struct slit t = {.header.revision = 1, .nodes = nodes};

	for (unsigned i = 0; i < nodes * nodes; i++)
		t.distance[i] = i / nodes == i % nodes ? NUMA_DISTANCE_OWN : NUMA_DISTANCE;
	return put_table(b, &t.header, "SLIT", offsetof(struct slit, distance) + nodes * nodes);
}

static uint32_t put_mcfg(struct acpi_block *b, uint64_t ecam)
{
	struct mcfg t = {
		.header.revision = 1,
		.base = ecam,
		.first_bus = 0,
		.last_bus = PCI_BUSES - 1,
	};

	return put_table(b, &t.header, "MCFG", sizeof(t));
}

static struct name_qword named(const char *name, uint64_t value)
{
	struct name_qword n = {.name_op = AML_NAME_OP, .qword_prefix = AML_QWORD_PREFIX, .value = value};

	memcpy(n.name, name, sizeof(n.name));
	return n;
}

static uint32_t put_ssdt(struct acpi_block *b, const struct acpi_config *config)
{
	struct ssdt t = {
		.header.revision = 2,
		.m64b = named("M64B", config->mmio64_base),
		.m64l = named("M64L", config->mmio64_bytes),
		.m32b = named("M32B", config->mmio32_base),
		.m32l = named("M32L", config->mmio32_bytes),
		.ecam = named("ECAM", config->ecam_base),
		.kbdc = named("KBDC", config->keyboard),
	};

	return put_table(b, &t.header, "SSDT", sizeof(t));
}

static uint32_t put_xsdt(struct acpi_block *b, const uint32_t *table, unsigned count)
{
	struct xsdt t = {.header.revision = 1};

	for (unsigned i = 0; i < count; i++)
		t.table[i] = table[i];
	uint32_t at = put_table(b, &t.header, "XSDT", offsetof(struct xsdt, table[count]));
	for (unsigned i = 0; i < count; i++)
		is_pointer(b, at + offsetof(struct xsdt, table[i]), sizeof(t.table[i]));
	return at;
}

static uint32_t put_rsdp(struct acpi_block *b, uint32_t xsdt)
{
	struct rsdp t = {
		.signature = {'R', 'S', 'D', ' ', 'P', 'T', 'R', ' '},
		.oem_id = {'G', 'L', 'I', 'N', 'T', ' '},
		.revision = 2,
		.length = sizeof(t),
		.xsdt = xsdt,
	};

	uint32_t at = put(b, &t, sizeof(t));
	is_pointer(b, at + offsetof(struct rsdp, xsdt), sizeof(t.xsdt));
	/* The part that ACPI 1.0 knew, then all of it. */
	is_checksum(b, at + offsetof(struct rsdp, checksum), at, offsetof(struct rsdp, length));
	is_checksum(b, at + offsetof(struct rsdp, extended_checksum), at, sizeof(t));
	return at;
}

struct error *acpi_make(const struct acpi_config *config, struct acpi_block *b)
{
	uint32_t table[XSDT_TABLES_MAX];
	unsigned tables = 0;

	if (config->vcpus < 1 || config->vcpus > 256)
		return error_new(EINVAL, "describe %u vCPUs in ACPI: 1 to 256 can be", config->vcpus);
	*b = (struct acpi_block){};
	uint32_t dsdt = put(b, dsdt_aml_code, sizeof(dsdt_aml_code));
	table[tables++] = put_fadt(b, config, put_facs(b), dsdt);
	table[tables++] = put_madt(b, config);
	table[tables++] = put_mcfg(b, config->ecam_base);
	table[tables++] = put_ssdt(b, config);
	if (config->numa && config->numa->nodes > 0) {
		table[tables++] = put_srat(b, config);
		table[tables++] = put_slit(b, config->numa->nodes);
	}
	b->rsdp = put_rsdp(b, put_xsdt(b, table, tables));
	return NULL;
}

/* Makes the block's offsets addresses, for a block that lies at @gpa, and its checksums right. */
static void link_at(struct acpi_block *b, uint64_t gpa)
{
	for (unsigned i = 0; i < b->pointers; i++) {
		uint64_t value = 0;
		memcpy(&value, b->bytes + b->pointer[i].at, b->pointer[i].size);
		value += gpa;
		memcpy(b->bytes + b->pointer[i].at, &value, b->pointer[i].size);
	}
	for (unsigned i = 0; i < b->checksums; i++) {
		const struct acpi_checksum *c = &b->checksum[i];
		b->bytes[c->at] = checksum(b->bytes + c->start, c->len);
	}
}

struct error *acpi_build(struct memory *mem, const struct boot_config *boot, uint64_t *rsdp)
{
	const struct acpi_config config = {
		.vcpus = boot->vcpus,
		.topology = boot->topology,
		.numa = boot->numa,
		.memory = mem,
		.ecam_base = PCI_ECAM_BASE,
		.mmio32_base = PCI_MMIO32_BASE,
		.mmio32_bytes = PCI_MMIO32_END - PCI_MMIO32_BASE,
		.mmio64_base = boot->mmio64_base,
		.mmio64_bytes = PCI_MMIO64_BYTES,
		.keyboard = boot->keyboard,
	};
	cleanup_free struct acpi_block *b = calloc(1, sizeof(*b));
	uint8_t *area = memory_at(mem, LOW_ACPI, ACPI_BYTES);

	if (!area)
		return error_new(ENOMEM, "put ACPI tables at %#llx: the machine's memory does not reach to 1 MiB",
				 LOW_ACPI);
	if (!b)
		return error_new(ENOMEM, "make ACPI tables");
	TRY(acpi_make(&config, b));
	link_at(b, LOW_ACPI);
	memcpy(area, b->bytes, b->used);
	*rsdp = LOW_ACPI + b->rsdp;
	return NULL;
}
