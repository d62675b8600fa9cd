#!/bin/sh
# Writes deploy/constraints.txt: the newest versions that pyproject.toml allows, for the images to be the same
# whenever they are built. Run the tests with them before they are committed.
set -eu
cd "$(dirname "$0")/.."
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
python3 -m venv "$environment"
"$environment/bin/pip" install --quiet '.[cpu,otel,text]'
{
    echo "# The versions in the images; deploy/lock.sh writes this file."
    "$environment/bin/pip" freeze | grep -v '^viola' | sed 's/^onnxruntime==\(.*\)/&\nonnxruntime-gpu==\1/'
} > deploy/constraints.txt
