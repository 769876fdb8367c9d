# syntax=docker/dockerfile:1
# skyreward on CPUs: for trials, tests, and the small models. From the top of the checkout:
#   docker build -f deploy/docker/cpu.Dockerfile -t skyreward:0.1.0-cpu .
# torch's wheel of the default index brings CUDA's libraries, which nothing here uses. If you have
# an index with CPU wheels: --build-arg TORCH_INDEX=ADDRESS --build-arg TORCH_SHA256=HASH, which that
# index shows beside the wheel for Python 3.12 of this machine's kind.
# BASE may be pinned further, by digest: --build-arg BASE=python@sha256:...
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/skyreward
ENV PATH=/opt/skyreward/bin:$PATH
WORKDIR /src
# Every version with the hashes of its files, also of what the build needs; made by `make lock`.
COPY deploy/docker/requirements.txt deploy/docker/torch.txt ./
ARG TORCH_INDEX=
ARG TORCH_SHA256=
RUN if [ -n "${TORCH_INDEX}" ]; then \
        torch="$(grep -o '^torch==[0-9.]*' torch.txt)" \
        && echo "${torch} --hash=sha256:${TORCH_SHA256:?of the wheel at TORCH_INDEX}" > torch.txt; \
    fi \
    && pip install --require-hashes --no-deps --only-binary :all: \
        ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} -r torch.txt \
    && pip install --require-hashes --no-deps --only-binary :all: -r requirements.txt
COPY LICENSE README.md pyproject.toml ./
COPY rm_core rm_core
COPY serve serve
COPY seeds seeds
RUN pip install --no-deps --no-build-isolation .

FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# g++ compiles the kernels for CPUs when a model is loaded.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ wget tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin skyreward \
    && install -d -o skyreward -g skyreward /models
COPY --from=build /opt/skyreward /opt/skyreward
ENV PATH=/opt/skyreward/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/models/hub \
    RAY_USAGE_STATS_ENABLED=0
USER 10001:10001
WORKDIR /home/skyreward
VOLUME /models
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=6 \
    CMD ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8000/ready"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/tini", "--", "skyreward"]
CMD ["serve", "--host", "0.0.0.0"]
