# What image/build signs with. Sourced, never run. docs/update.md and docs/stick.md (Secure Boot) have the why.
#
# The maker's key signs the UKI and the boot loader; hosts take updates that it signed, and firmware that has its
# certificate starts nothing else. One key is PK, KEK and db: whoever makes the images is who owns the firmware's keys.
#
# It may touch: $GLINT_CACHE/maker (the key, made once), what it is told to make.

# maker: finds the maker's key and certificate, or makes them; sets maker_key and maker_certificate.
maker() {
    maker_key=${GLINT_MAKER_KEY:-$GLINT_CACHE/maker/maker.key} maker_certificate=${GLINT_MAKER_CERT:-$GLINT_CACHE/maker/maker.crt}
    [ "${GLINT_MAKER_KEY:+key}" = "${GLINT_MAKER_CERT:+key}" ] || die "GLINT_MAKER_KEY and GLINT_MAKER_CERT belong together: give both or neither"
    if [ -z "${GLINT_MAKER_KEY:-}" ]; then
        (umask 077 && mkdir -p "$GLINT_CACHE/maker" && exec 9>"$GLINT_CACHE/maker/lock" && flock 9 && make_maker)
    fi
    [ -r "$maker_key" ] && [ -r "$maker_certificate" ] || die "the maker's key $maker_key or certificate $maker_certificate cannot be read"
    [ "$(openssl pkey -in "$maker_key" -pubout 2>&1)" = "$(openssl x509 -in "$maker_certificate" -noout -pubkey 2>&1)" ] ||
        die "the maker's certificate $maker_certificate (PEM) is not that of the key $maker_key"
}

# Firmware knows no time and does not look at the days; RSA of 2048 bits is what all of it knows.
make_maker() {
    [ ! -e "$maker_certificate" ] || return 0
    openssl req -x509 -newkey rsa:2048 -sha256 -noenc -days 10950 -subj "/CN=Glint maker $(od -An -N4 -tx4 /dev/urandom | tr -d ' ')" \
        -keyout "$maker_key" -out "$maker_certificate.new" 2>/dev/null || die "openssl could not make the maker's key in $GLINT_CACHE/maker"
    mv "$maker_certificate.new" "$maker_certificate"
    say "made the maker's key, $maker_key: keep it, and keep it to yourself; hosts take updates only from who has it"
}

# at_epoch COMMAND...: with the time of SOURCE_DATE_EPOCH, see image/epoch.c.
at_epoch() { LD_PRELOAD=$GLINT_CLONE/build/release/image/libepoch.so "$@"; }

# sign FROM TO: an UEFI program, the same bytes for the same inputs.
sign() {
    local words
    words=$(at_epoch sbsign --key "$maker_key" --cert "$maker_certificate" --output "$2" "$1" 2>&1) || die "sbsign $1: $words"
}

# enrolment_kit PREFIX: PREFIX.{PK,KEK,db}.auth for systemd-boot, PREFIX.maker.cer for the firmware's own menu.
enrolment_kit() {
    local owner name
    owner=$(openssl x509 -in "$maker_certificate" -outform DER | sha256sum | sed -E 's/^(.{8})(.{4})(.{4})(.{4})(.{12}).*/\1-\2-\3-\4-\5/')
    cert-to-efi-sig-list -g "$owner" "$maker_certificate" "$1.esl" >/dev/null
    for name in PK KEK db; do
        at_epoch sign-efi-sig-list -g "$owner" -t "$(date -u -d "@$SOURCE_DATE_EPOCH" '+%Y-%m-%d %H:%M:%S')" \
            -k "$maker_key" -c "$maker_certificate" "$name" "$1.esl" "$1.$name.auth" >/dev/null || die "sign-efi-sig-list $name failed"
    done
    openssl x509 -in "$maker_certificate" -outform DER -out "$1.maker.cer"
    rm "$1.esl"
}
