# To be sourced with root, the project's folder. Sets PYTHON_BIN to an interpreter that has the
# package: that of the active virtual environment, or else of .venv, which is made where needed.
# EXTRAS names extras to install, e.g. EXTRAS=test. UNET_REPRO_PYTHON names an interpreter to use as
# it is: nothing is made or installed, and the package is the one here.
if [ -n "${UNET_REPRO_PYTHON:-}" ]; then
    PYTHON_BIN="$UNET_REPRO_PYTHON"
    export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
    return
fi
if [ -z "${VIRTUAL_ENV:-}" ] || ! "$VIRTUAL_ENV/bin/python" -c '' 2>/dev/null; then
    VIRTUAL_ENV="$root/.venv"
fi
PYTHON_BIN="$VIRTUAL_ENV/bin/python"
stamp="$VIRTUAL_ENV/.unet_repro" # what is installed, in lines: root, cksum of setup.cfg, extras
if [ "$VIRTUAL_ENV" = "$root/.venv" ]; then
    # without a working pip it is half made; with another root the clone was moved or copied
    if ! "$PYTHON_BIN" -m pip --version >/dev/null 2>&1 ||
        { [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" != "$root" ]; }; then
        "${PYTHON:-python3}" -m venv --clear "$VIRTUAL_ENV"
    fi
fi
export VIRTUAL_ENV PATH="$VIRTUAL_ENV/bin:$PATH"

wanted="$root
$(cksum <"$root/setup.cfg")"
extras=""
is_installed=no
if [ "$(head -n 2 "$stamp" 2>/dev/null)" = "$wanted" ]; then
    extras="$(tail -n +3 "$stamp")" # comma-separated, with a comma before and after
    is_installed=yes
    for extra in $(tr , " " <<<"${EXTRAS:-}"); do
        [[ $extras == *",$extra,"* ]] || is_installed=no
    done
fi
if [ $is_installed = no ]; then
    (cd "$root" && "$PYTHON_BIN" -m pip install --quiet --disable-pip-version-check \
        -e ".${EXTRAS:+[$EXTRAS]}")
    printf '%s\n' "$wanted" "${extras:-,}${EXTRAS:+$EXTRAS,}" >"$stamp"
fi
