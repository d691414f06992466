/*
 * What single values of host.toml must look like. Each returns NULL where @text is good, or what is wrong with it, in
 * words that follow the value. Inside lib/hostconfig only.
 */
#ifndef GLINT_HOSTCONFIG_CHECK_H
#define GLINT_HOSTCONFIG_CHECK_H

#include "hostconfig/hostconfig.h"

const char *check_host_name(const char *text);
/* Labels with dots between: of a search domain, a server. */
const char *check_domain(const char *text);
/* Of networks and pools: short enough for devices of the kernel that are named after it. */
const char *check_name(const char *text);
/* A person's: a few printable characters. */
const char *check_person(const char *text);
const char *check_device(const char *text);
const char *check_bond(const char *text);
const char *check_public_key(const char *text);
const char *check_pool_kind(const char *text);
const char *check_source(const char *text);

/* Parses "192.0.2.10/24" (@with_prefix) or "192.0.2.10", of either family. */
const char *check_address(const char *text, bool with_prefix, struct hostconfig_address *address);

/* Whether the two agree in the first so many bits. */
bool same_network(const struct hostconfig_address *a, const struct hostconfig_address *b, unsigned bits);

#endif
