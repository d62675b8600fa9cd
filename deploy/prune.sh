#!/bin/sh
# What a served model never reads, out of a virtual environment: tests, pip, stubs, headers, and of SciPy all but
# scipy.fft and what that imports; of fastapi-offline all but Swagger UI; and the hub that tokenizers could fetch
# from, which nobody asks.
set -eu
environment=$1
cd "$environment"/lib/python3.*/site-packages
for part in scipy/*/; do
    case $(basename "$part") in
        fft | special | linalg | _lib | _external) ;;
        *) rm -rf "$part" ;;
    esac
done
find . -type d -name tests \( -path './scipy/*' -o -path './numpy/*' \) -prune -exec rm -rf {} +
find . \( -name '*.pyi' -o -name '*.pxd' -o -name '*.h' \) -type f -delete
rm -rf pip pip-*.dist-info setuptools setuptools-*.dist-info onnxruntime/transformers onnxruntime/tools \
    onnxruntime/quantization onnxruntime/datasets huggingface_hub hf_xet fastapi_offline/static/redoc*
rm -f "$environment"/bin/pip*
