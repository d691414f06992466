/*
 * The maker's signature of a UKI: Authenticode (Windows Authenticode Portable Executable Signature Format), the same
 * that UEFI Secure Boot looks at.
 *
 * It covers every byte of the file but the signature itself: what the format would let through without it (gaps between
 * sections, words behind the signature) is refused. The signer must be the maker, by the very certificate; no chains,
 * no dates: a host's clock may be wrong.
 */
#ifndef GLINT_UPDATE_SIGNATURE_H
#define GLINT_UPDATE_SIGNATURE_H

#include "base/error.h"

#include <stddef.h>

/* @data is hostile. @what names it in errors. @certificate: the maker's, PEM. */
[[nodiscard]] struct error *signature_check(const void *data, size_t len, const char *what, const char *certificate,
					    size_t certificate_len);

#endif
