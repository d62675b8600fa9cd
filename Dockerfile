# The server alone: no torch, no build tools. `docker build --target cpu .` or `--target gpu .`
#
#   build-* ─► a virtual environment ─┐
#   base ─────────────────────────────┴─► cpu, gpu

ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /build
RUN python -m venv /opt/viola
ENV PATH=/opt/viola/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY pyproject.toml README.md ./
COPY deploy/prune.sh deploy/constraints.txt deploy/

FROM build AS build-cpu
RUN pip install --constraint deploy/constraints.txt ".[cpu,otel,text]" && sh deploy/prune.sh /opt/viola

# onnxruntime-gpu brings CUDA and cuDNN as wheels: the host needs the driver and the NVIDIA container toolkit.
FROM build AS build-gpu
RUN pip install --constraint deploy/constraints.txt ".[gpu,otel,text]" && sh deploy/prune.sh /opt/viola

FROM python:${PYTHON} AS base
LABEL org.opencontainers.image.title="viola" \
      org.opencontainers.image.description="Sound in, embeddings and tags out." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin viola
WORKDIR /app
ENV PATH=/opt/viola/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    VIOLA_MODELS_DIR=/app/models
COPY service service
COPY models models
# For VIOLA_DATA_DIR: a new volume there takes over whose it is.
RUN install --directory --owner 10001 --group 10001 /data
USER 10001:10001
EXPOSE 8000
# SIGTERM drains: readiness turns false, what was accepted is finished. Allow the deadline and five seconds.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-m", "service.healthcheck"]
CMD ["python", "-m", "service"]

FROM base AS gpu
COPY --from=build-gpu /opt/viola /opt/viola
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM base AS cpu
COPY --from=build-cpu /opt/viola /opt/viola
