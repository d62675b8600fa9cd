#!/usr/bin/env bash
# Replays the Dockerfile's steps for the image `cpu` without an engine: a bare virtual environment with the locked
# versions, pruned, and the files that the image copies, nothing else. The server starts there, in an environment
# without variables and on files that it may not write; it must become ready, answer a clip, and drain on SIGTERM.
#
#   deploy/check-image.sh            about two minutes; needs Python 3.11 or newer, curl, and a package index
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$PWD
root=$(mktemp -d)
server=
clean_up() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    chmod -R u+w "$root"
    rm -rf "$root"
}
trap clean_up EXIT

echo "1. the environment, as in build-cpu"
mkdir -p "$root/build/deploy" "$root/app" "$root/tmp"
cp pyproject.toml README.md "$root/build"
cp deploy/prune.sh deploy/constraints.txt "$root/build/deploy"
python3 -m venv "$root/opt"
(cd "$root/build" && "$root/opt/bin/pip" install --quiet --constraint deploy/constraints.txt ".[cpu,otel,text]")
sh deploy/prune.sh "$root/opt"

echo "2. the files, as in base"
cp -r service models "$root/app"
find "$root/app" -name __pycache__ -prune -exec rm -rf {} +
chmod -R a-w "$root/app" "$root/opt"

echo "3. what it holds (without the base image's own 125 MB or so)"
du -sm "$root/opt" "$root/app" | sed "s|$root||"
if [ -e "$root"/opt/lib/python3.*/site-packages/torch ]; then
    echo "the image holds torch" >&2
    exit 1
fi
"$root/opt/bin/python" -c "import tokenizers" # without what was pruned

echo "4. the server"
cd "$root/app"
port=$((20000 + RANDOM % 20000))
start=$(date +%s%N)
env -i PATH="$root/opt/bin:/usr/bin:/bin" TMPDIR="$root/tmp" PYTHONDONTWRITEBYTECODE=1 \
    VIOLA_MODELS_DIR="$root/app/models" VIOLA_HOST=127.0.0.1 VIOLA_PORT=$port \
    "$root/opt/bin/python" -m service > "$root/tmp/log" 2>&1 &
server=$!
for _ in $(seq 600); do
    if VIOLA_PORT=$port "$root/opt/bin/python" -m service.healthcheck 2>/dev/null; then break; fi
    if ! kill -0 "$server" 2>/dev/null; then
        cat "$root/tmp/log" >&2
        exit 1
    fi
    sleep 0.1
done
echo "   ready after $((($(date +%s%N) - start) / 1000000)) ms, health checks included"
curl -sSf -F "file=@$repository/tests/fixtures/dog_bark_44k1_mono.ogg" "http://127.0.0.1:$port/classify?top_k=1"
echo
curl -sSf --data-binary "@$repository/tests/fixtures/containers/keyword_yes_16k_mono.m4a" \
    -H 'Content-Type: audio/mp4' "http://127.0.0.1:$port/embed?encoding=base64" | head -c 60
echo "…"
kill -TERM "$server"
code=0
wait "$server" || code=$?
server=
echo "5. exit code after SIGTERM: $code"
exit "$code"
