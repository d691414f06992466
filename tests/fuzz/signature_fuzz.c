/*
 * Fuzzing of what an update is checked by: the PE file, its signature, its release, all hostile. Nothing that is not
 * the seed itself (lib/update/signed) may be found good.
 */
#include "update/update.h"

#include "base/util.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *seed, *maker;
static size_t seed_len, maker_len;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct error *err = read_file(SIGNED "/signed.efi", MIB, &seed, &seed_len);

	if (!err)
		err = read_file(SIGNED "/maker.crt", MIB, &maker, &maker_len);
	if (err) {
		fprintf(stderr, "%s\n", error_text(err));
		abort();
	}
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct update u = {.data = data, .len = size, .what = "it"};
	struct error *err = update_check(&u, maker, maker_len);

	if (!err && (size != seed_len || memcmp(data, seed, size) != 0))
		abort();
	error_free(err);
	return 0;
}
