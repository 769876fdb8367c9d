# syntax=docker/dockerfile:1
# skyreward on NVIDIA GPUs. From the top of the checkout:
#   docker build -f deploy/docker/gpu.Dockerfile -t skyreward:0.1.0-gpu .
# The machine needs NVIDIA's driver for CUDA 13 and its container toolkit. Weights are not inside:
# mount a folder, or let the start fetch a pinned revision into the volume /models.
# Bases may be pinned further, by digest: --build-arg BUILD_BASE=nvidia/cuda@sha256:..., and BASE.
ARG CUDA=13.0.1
ARG BUILD_BASE=nvidia/cuda:${CUDA}-devel-ubuntu24.04
ARG BASE=nvidia/cuda:${CUDA}-base-ubuntu24.04

# FlashAttention has wheels for few pairs of torch and CUDA; here it is built for the pinned one.
FROM ${BUILD_BASE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv python3-dev build-essential \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/skyreward
ENV PATH=/opt/skyreward/bin:$PATH
WORKDIR /src
# Every version with the hashes of its files, also of what the build needs; made by `make lock`.
COPY deploy/docker/requirements.txt deploy/docker/torch.txt deploy/docker/flash-attn.txt ./
RUN pip install --require-hashes --no-deps --only-binary :all: -r torch.txt -r requirements.txt
# Of the GPUs that are built for: A100 8.0, A10G 8.6, L4 and L40S 8.9, H100 and H200 9.0, B200 10.0.
ARG FLASH_ATTN_ARCHS="80;90;100"
ARG MAX_JOBS=4
RUN FLASH_ATTN_CUDA_ARCHS="${FLASH_ATTN_ARCHS}" FLASH_ATTENTION_FORCE_BUILD=TRUE \
    MAX_JOBS="${MAX_JOBS}" \
    pip install --require-hashes --no-deps --no-build-isolation -r flash-attn.txt
COPY LICENSE README.md pyproject.toml ./
COPY rm_core rm_core
COPY serve serve
COPY seeds seeds
RUN pip install --no-deps --no-build-isolation .

FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV DEBIAN_FRONTEND=noninteractive
# gcc and Python's headers: Triton compiles launchers for FlexAttention and `compile`. wget: KubeRay's
# probes. tini: reaps what Ray leaves behind, and hands SIGTERM on.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-dev gcc libc6-dev wget tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin skyreward \
    && install -d -o skyreward -g skyreward /models /home/skyreward/.cache
COPY --from=build /opt/skyreward /opt/skyreward
ENV PATH=/opt/skyreward/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/models/hub \
    PYTORCH_ALLOC_CONF=expandable_segments:True \
    TORCHINDUCTOR_CACHE_DIR=/home/skyreward/.cache/torchinductor \
    RAY_USAGE_STATS_ENABLED=0
USER 10001:10001
WORKDIR /home/skyreward
# Compiled kernels: a start finds those of the last one, if the volume is kept.
VOLUME ["/models", "/home/skyreward/.cache"]
EXPOSE 8000
# Ready once every model is loaded; the first start may fetch weights for a long time.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=6 \
    CMD ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8000/ready"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/tini", "--", "skyreward"]
CMD ["serve", "--host", "0.0.0.0"]
