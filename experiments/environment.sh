# To be sourced: makes the package importable, in .venv where no virtual environment is active.
# EXTRAS names the extras to install, e.g. EXTRAS=test.
if [ -z "${VIRTUAL_ENV:-}" ]; then
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    source .venv/bin/activate
fi
# what setup.cfg asks for decides whether anything has to be installed
wanted="$(cksum setup.cfg) ${EXTRAS:-}"
stamp="$VIRTUAL_ENV/.unet_repro-${EXTRAS:-base}"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    python -m pip install --quiet --disable-pip-version-check -e ".${EXTRAS:+[$EXTRAS]}"
    printf '%s' "$wanted" > "$stamp"
fi
