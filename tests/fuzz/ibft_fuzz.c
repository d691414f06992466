/*
 * Fuzzing of the firmware's iSCSI table: an input is one, its length and checksum made right. What is read of it must
 * be names, ended, of characters that a name may have.
 */
#include "node/iscsi/ibft.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void look(const char *name)
{
	if (strlen(name) < 4 || strlen(name) > ISCSI_NAME_MAX || strpbrk(name, " \n\"'\\/"))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint8_t signature[] = {'i', 'B', 'F', 'T'};
	struct ibft ibft;
	uint8_t *copy = malloc(size ? size : 1), sum = 0;

	if (!copy)
		abort();
	if (size)
		memcpy(copy, data, size);
	if (size >= 48) {
		memcpy(copy, signature, sizeof(signature));
		for (unsigned i = 0; i < 4; i++)
			copy[4 + i] = (uint8_t)(size >> 8 * i);
		for (size_t i = 0; i < size; i++)
			sum = (uint8_t)(sum + copy[i]);
		copy[9] = (uint8_t)(copy[9] - sum);
	}
	struct error *err = ibft_read(copy, size, &ibft);
	if (!err) {
		look(ibft.initiator);
		look(ibft.target);
	}
	error_free(err);
	free(copy);
	return 0;
}
