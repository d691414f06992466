/*
 * Reading the boot loader's variable; see loader.h. Touches that one file.
 */
#include "stick/loader.h"

#include "base/cleanup.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#define TEXT_MAX 1024u
#define LIST_MAX 8192u

bool loader_text(const char *variable, char *text, size_t room)
{
	/* Four bytes of attributes, then UCS-2, which may end with a NUL. */
	uint8_t data[4 + 2 * TEXT_MAX + 2];
	cleanup_fd int fd = open(variable, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, data, sizeof(data));
	size_t len = 0;

	if (n < 6 || n % 2 || (size_t)n == sizeof(data))
		return false;
	for (size_t at = 4; at < (size_t)n && (data[at] || data[at + 1]); at += 2) {
		if (len + 1 >= room)
			return false;
		text[len++] = data[at + 1] || data[at] < 0x20 || data[at] > 0x7e ? '?' : (char)data[at];
	}
	text[len] = '\0';
	return len > 0;
}

bool loader_partition(const char *variable, char uuid[LOADER_UUID + 1])
{
	char text[TEXT_MAX + 2] = "";

	if (!loader_text(variable, text, sizeof(text)))
		return false;
	for (unsigned i = 0; i < LOADER_UUID; i++) {
		uuid[i] = (char)tolower((unsigned char)text[i]);
		if (!(isxdigit((unsigned char)uuid[i]) || uuid[i] == '-'))
			return false;
	}
	uuid[LOADER_UUID] = '\0';
	return true;
}

unsigned loader_entries(const char *variable, const char *prefix)
{
	/* Four bytes of attributes, then texts in UCS-2, each with its NUL. */
	uint8_t data[4 + 2 * LIST_MAX];
	cleanup_fd int fd = open(variable, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, data, sizeof(data));
	size_t len = strlen(prefix),
	       same = 0; /* same: characters of the prefix so far; more than @len: no more of it */
	unsigned count = 0;

	for (ssize_t at = 4; at + 1 < n; at += 2) {
		bool end = !data[at] && !data[at + 1];
		bool next = same < len && !data[at + 1] && tolower(data[at]) == tolower((unsigned char)prefix[same]);
		same = end ? 0 : next ? same + 1 : len + 1;
		count += next && same == len;
	}
	return count;
}
