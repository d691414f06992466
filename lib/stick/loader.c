/*
 * Reading the boot loader's variable; see loader.h. Touches that one file.
 */
#include "stick/loader.h"

#include "base/cleanup.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdint.h>
#include <unistd.h>

bool loader_partition(const char *variable, char uuid[LOADER_UUID + 1])
{
	/* Four bytes of attributes, then UCS-2. */
	uint8_t data[4 + 2 * LOADER_UUID];
	cleanup_fd int fd = open(variable, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, data, sizeof(data)) != (ssize_t)sizeof(data))
		return false;
	for (unsigned i = 0; i < LOADER_UUID; i++) {
		int c = tolower(data[4 + 2 * i]);
		if (data[5 + 2 * i] || !(isxdigit(c) || c == '-'))
			return false;
		uuid[i] = (char)c;
	}
	uuid[LOADER_UUID] = '\0';
	return true;
}
