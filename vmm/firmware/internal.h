/*
 * Inside vmm/firmware: what goes into fw_cfg, by subject.
 */
#ifndef GLINT_VMM_FIRMWARE_INTERNAL_H
#define GLINT_VMM_FIRMWARE_INTERNAL_H

#include "vmm/firmware/firmware.h"

/* loader.c: the ACPI tables and how to link them. */
[[nodiscard]] struct error *firmware_add_acpi(struct firmware *fw);

/* smbios.c: the tables that dmidecode prints. */
[[nodiscard]] struct error *firmware_add_smbios(struct firmware *fw, const struct memory *mem,
						const struct firmware_config *config);

#endif
