# syntax=docker/dockerfile:1
# skyreward on CPUs: for trials, tests, and the small models. From the top of the checkout:
#   docker build -f deploy/docker/cpu.Dockerfile -t skyreward:0.1.0-cpu .
# torch's wheel of the default index brings CUDA's libraries, which nothing here uses. If you have
# an index with CPU wheels: --build-arg TORCH_INDEX=ADDRESS.
FROM python:3.12-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/skyreward
ENV PATH=/opt/skyreward/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
# Every version is pinned there, also what the build itself needs.
ENV PIP_CONSTRAINT=/src/constraints.txt
ARG TORCH_INDEX=
# hadolint ignore=DL3013
RUN pip install ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch
COPY LICENSE README.md pyproject.toml ./
COPY rm_core rm_core
COPY serve serve
COPY seeds seeds
RUN pip install .

FROM python:3.12-slim-bookworm
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget tini \
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
