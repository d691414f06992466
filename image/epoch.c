/*
 * What image/build puts before sbsign (LD_PRELOAD): the time is that of SOURCE_DATE_EPOCH.
 *
 * A signature of Authenticode tells when it was made, and sbsign has no way to be told: so the same inputs would not
 * give the same bytes. Nothing looks at that time; the firmware does not even know one for sure.
 */
#include <stdlib.h>
#include <time.h>

__attribute__((visibility("default"))) time_t time(time_t *out)
{
	const char *epoch = getenv("SOURCE_DATE_EPOCH");
	time_t now = epoch ? (time_t)strtoll(epoch, NULL, 10) : 0;

	if (out)
		*out = now;
	return now;
}
