/*
 * The ESP of the stick that a host was booted from, as a medium of its own: a partition under /dev/glint/esp/UUID, of
 * which there is one for each disk that has it (90-glint.rules).
 */
#ifndef GLINT_STICK_ESP_H
#define GLINT_STICK_ESP_H

#include "stick/blocks.h"

#define ESP_FOLDER   "/dev/glint/esp"
#define ESP_PATH_MAX 256u

struct esp {
	struct blocks medium; /* first; bytes count from the partition's beginning */
	int fd;
	void *buffer;
	char path[ESP_PATH_MAX];
};

/*
 * Where it is: in @folder, of the partition @uuid. Waits @wait_s for it. ENODEV: it is not there. Several disks that
 * have it (copies of a stick) are an error, too.
 */
[[nodiscard]] struct error *esp_find(const char *folder, const char *uuid, unsigned wait_s, char path[ESP_PATH_MAX]);

/*
 * Opens it, past the page cache, for as long as nobody else has it so: who writes waits for others to end. It may be a
 * file in the place of a partition. EROFS, EACCES: it cannot be written to.
 */
[[nodiscard]] struct error *esp_open(struct esp *esp, const char *path, bool write);
void esp_close(struct esp *esp);
#define cleanup_esp __attribute__((cleanup(esp_close)))

#endif
