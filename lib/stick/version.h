/*
 * Comparing versions as boot loaders do (UAPI version format specification).
 */
#ifndef GLINT_STICK_VERSION_H
#define GLINT_STICK_VERSION_H

/* Less than, equal to, or greater than 0: @a is older, as old, or newer. */
int version_compare(const char *a, const char *b);

#endif
