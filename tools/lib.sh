# What the shell scripts of this tree share. Sourced, never run.
# It may touch: the cache (GLINT_CACHE) and, as root, missing Debian packages of the building machine.

GLINT_CACHE=${GLINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/glint}
export GLINT_CACHE

# To standard error with the seconds since the script began: standard output is for results.
say() { printf '[%4ds] %s\n' "$SECONDS" "$*" >&2; }
die() { printf 'glint: %s\n' "$*" >&2; exit 1; }

need_root() { [ "$(id -u)" -eq 0 ] || die "cannot $1: this needs root (it makes a root file system); run it with sudo"; }

# install_missing COMMAND-OR-FILE:PACKAGE...: what is not there is installed by apt, all in one go.
install_missing() {
    local pair missing=()
    for pair; do
        local what=${pair%:*} pkg=${pair##*:}
        [ -e "$what" ] || command -v "$what" >/dev/null 2>&1 || missing+=("$pkg")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    command -v apt-get >/dev/null || die "missing on this machine: ${missing[*]}; install them (this is not a Debian system)"
    need_root "install ${missing[*]}"
    say "installing on this machine: ${missing[*]}"
    apt-get -q update >&2 || true
    DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}" >&2 ||
        die "could not install ${missing[*]}: apt's words are above"
}

# The mirror this machine's own apt uses for `main` or for `security`; empty when it has none.
debian_mirror() {
    local kind=$1 line site base
    if [ -n "${GLINT_MIRROR:-}" ] && [ "$kind" = main ]; then echo "$GLINT_MIRROR"; return; fi
    apt-get indextargets --format '$(CREATED_BY) $(ORIGIN) $(LABEL) $(REPO_URI) $(RELEASE)' 2>/dev/null |
        awk -v kind="$kind" '$1=="Packages" && $2=="Debian" {
            sec = ($3 ~ /Security/) || ($0 ~ /-security/);
            for (i = 3; i <= NF; i++) if ($i ~ /^(https?|file|mirror[^ ]*):/) { uri = $i; break }
            sub(/\/$/, "", uri);
            if ((kind == "security") == sec) { print uri; exit } }' | grep . ||
        { [ "$kind" = security ] || die "apt on this machine names no Debian mirror: run apt-get update, or set GLINT_MIRROR"; }
}

# Whether this machine's own apt has a component of Debian (non-free-firmware), besides main. The build root's apt is
# another: there the machine's answer is in GLINT_COMPONENTS.
apt_lists() {
    [ -n "${GLINT_COMPONENTS+set}" ] || GLINT_COMPONENTS=$(apt-get indextargets --format '$(CREATED_BY) $(ORIGIN) $(COMPONENT)' 2>/dev/null |
        awk '$1 == "Packages" && $2 == "Debian" { print $3 }' | sort -u | tr '\n' ' ')
    [[ " $GLINT_COMPONENTS " == *" $1 "* ]]
}

# in_root ROOT COMMAND...: runs a command inside a root, in a mount namespace of its own so that nothing stays
# mounted behind. The clone and the cache keep their paths; /dev (with /dev/kvm), /proc and /sys are the machine's.
in_root() {
    local root=$1; shift
    need_root "enter the build root"
    apt_lists main || true
    GLINT_ROOT=$root GLINT_COMPONENTS=$GLINT_COMPONENTS unshare --mount --propagation private -- sh -euc '
        mount --bind "$GLINT_ROOT" "$GLINT_ROOT"
        for d in dev proc sys; do mkdir -p "$GLINT_ROOT/$d"; mount --rbind /$d "$GLINT_ROOT/$d"; done
        mount -t tmpfs tmpfs "$GLINT_ROOT/tmp" -o mode=1777
        mount -t tmpfs tmpfs "$GLINT_ROOT/run" -o mode=755
        for d in "$GLINT_CLONE" "$GLINT_CACHE"; do mkdir -p "$GLINT_ROOT$d"; mount --rbind "$d" "$GLINT_ROOT$d"; done
        # A real root, not a chroot: in a chroot no user namespace can be made, and the sandbox makes one.
        cd "$GLINT_ROOT"
        pivot_root . .
        umount -l .
        exec /usr/bin/env -i HOME=/root TERM="${TERM:-dumb}" LANG=C.UTF-8 CI="${CI:-}" \
            PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
            GLINT_CACHE="$GLINT_CACHE" GLINT_CLONE="$GLINT_CLONE" GLINT_SEED="${GLINT_SEED:-}" \
            GLINT_COMPONENTS="$GLINT_COMPONENTS" LKVM="${LKVM:-}" \
            sh -c '\''cd "$1" && shift && exec "$@"'\'' sh "$GLINT_CLONE" "$@"' sh "$@"
}
