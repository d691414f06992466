/*
 * What glint-config is made of: taking host.toml from the stick, turning it into files that systemd's daemons read,
 * leaving the network alone that the host's disk is reached over, keeping the last good one in the host's database,
 * looking whether there is a network in the end.
 */
#ifndef GLINT_CONFIG_CONFIG_H
#define GLINT_CONFIG_CONFIG_H

#include "hostconfig/hostconfig.h"

/*
 * Copies glint/host.toml of the ESP that this host was started from into the directory @folder. *found tells whether
 * there was one: a host that was started otherwise (PXE) has none, and neither has a stick it was taken from. Waits for
 * the stick, @wait_s at most. Needs CAP_SYS_ADMIN: the ESP is mounted, read-only, in a mount namespace of its own.
 */
[[nodiscard]] struct error *esp_fetch(int folder, unsigned wait_s, bool *found);

/*
 * Writes what systemd-networkd reads (*.netdev, *.network; systemd.netdev(5), systemd.network(5)) into the directory
 * @folder, in place of what was written before.
 */
[[nodiscard]] struct error *networkd_write(const struct hostconfig *config, int folder);

/*
 * Where the host was booted over iSCSI: writes into @folder, for systemd-networkd, that the devices of the firmware's
 * table keep the addresses that they were booted with. @ibft: /sys/firmware/ibft; @count: how many they are.
 */
[[nodiscard]] struct error *ibft_write(const char *ibft, int folder, unsigned *count);

/* It need not be there. */
void remove_file(int folder, const char *name);

/*
 * The configuration that the database has for the host @id; "" where there was none. *text is malloc'ed. The server may
 * still be starting: waits @wait_s at most.
 */
[[nodiscard]] struct error *last_good(const char *socket, const char *id, unsigned wait_s, char **text);
/* Puts @text there, and the host's @name where it is not NULL. Nothing is written when they are there already. */
[[nodiscard]] struct error *keep_good(const char *socket, const char *id, unsigned wait_s, const char *text,
				      const char *name);

/* Calls @say for each device that @config names and this host has not. */
void look_for_devices(const struct hostconfig *config, void (*say)(const char *line));
/* Whether there is a network device that the kernel has not made itself. */
bool look_for_hardware(bool with_carrier);
/* Whether every network of @config has what it was given; @words: which, or what is missing. */
bool look_for_addresses(const struct hostconfig *config, char *words, size_t room);
/* @words: the name servers that systemd-resolved asks, "" for none. */
void look_for_names(char *words, size_t room);

#endif
