# Two targets from one file: `steps` runs the pipeline's components, `serving` answers requests (no kfp in it).
#
#   docker build --target steps   -t redoubt/steps:0.1.0-python3.11 .
#   docker build --target serving -t redoubt/serving:0.1.0 .
#
# Build arguments: BASE (any image with Python 3.11 or newer and glibc), VARIANT (gpu, or cpu: no CUDA), VERSION, REVISION.
# What is installed is pinned by hash in requirements/; where it comes from is the builder's choice, given as a secret that
# stays out of every layer:  --secret id=pip,src=$HOME/.config/pip/pip.conf
# VARIANT=cpu needs that, since PyPI has no CPU build of torch for x86-64: docs/install.md.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_REQUIRE_VIRTUALENV=1 PATH=/opt/redoubt/bin:$PATH
WORKDIR /src
COPY requirements/build.txt requirements/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/redoubt && /opt/redoubt/bin/python3 -m pip install --require-hashes --no-deps -r requirements/build.txt

# torch has a folder, and so a layer, of its own: it is nearly all of the size, both targets share it, and a new release of
# this project does not move it.
FROM build AS torch
ARG VARIANT=gpu
COPY requirements/torch-*.txt requirements/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip install --require-hashes --no-deps --only-binary :all: \
      --target /opt/torch -r "requirements/torch-${VARIANT}.txt" && \
    cd /opt/torch/torch && rm -rf test && find bin -type f ! -name torch_shm_manager ! -name '*.so*' -delete

# kfp-server-api is published as source only; the pinned setuptools builds it.
FROM build AS steps-packages
COPY requirements/steps.txt requirements/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip install --require-hashes --no-deps --no-build-isolation --only-binary :all: \
      --no-binary kfp-server-api -r requirements/steps.txt

FROM build AS serving-packages
COPY requirements/serving.txt requirements/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip install --require-hashes --no-deps --only-binary :all: -r requirements/serving.txt

FROM build AS source
COPY pyproject.toml README.md LICENSE ./
COPY redoubt redoubt
COPY serving serving

FROM source AS serving-project
RUN python3 -m pip install --no-deps --no-index --no-build-isolation --target /opt/project .

FROM source AS steps-project
COPY components components
COPY pipelines pipelines
RUN python3 -m pip install --no-deps --no-index --no-build-isolation --target /opt/project .

FROM ${BASE} AS base
# Whatever is written goes below /var/lib/redoubt, so that the root file system can be mounted read-only. Like /tmp the folder
# is open to every user, for platforms that choose one of their own.
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/redoubt --shell /usr/sbin/nologin redoubt && \
    install -d -o 10001 -g 10001 -m 1777 /var/lib/redoubt
ENV PATH=/opt/redoubt/bin:/opt/project/bin:$PATH USER=redoubt LOGNAME=redoubt \
    HOME=/var/lib/redoubt REDOUBT_HOME=/var/lib/redoubt TMPDIR=/var/lib/redoubt \
    XDG_CACHE_HOME=/var/lib/redoubt/.cache XDG_CONFIG_HOME=/var/lib/redoubt/.config \
    MPLCONFIGDIR=/var/lib/redoubt/.cache/matplotlib TORCH_HOME=/var/lib/redoubt/.cache/torch \
    TORCHINDUCTOR_CACHE_DIR=/var/lib/redoubt/.cache/inductor TRITON_CACHE_DIR=/var/lib/redoubt/.cache/triton \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    GIT_PYTHON_REFRESH=quiet MLFLOW_DISABLE_TELEMETRY=true MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# No NVIDIA_VISIBLE_DEVICES: by that a pod that asked for no GPU is given all that its node has, beside those who own them.
# Who asks, by nvidia.com/gpu or --gpus, gets the variable from there.
ARG BASE VARIANT=gpu VERSION=0.1.0 REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" org.opencontainers.image.vendor="Redoubt" \
      org.opencontainers.image.base.name="${BASE}" org.redoubt.variant="${VARIANT}"
COPY --from=torch /opt/torch /opt/torch
WORKDIR /var/lib/redoubt

FROM base AS steps
LABEL org.opencontainers.image.title="Redoubt pipeline steps" \
      org.opencontainers.image.description="Trains, evaluates and judges image classifiers as steps of Kubeflow Pipelines"
COPY --from=steps-packages /opt/redoubt /opt/redoubt
COPY --from=steps-project /opt/project /opt/project
RUN printf '/opt/project\n/opt/torch\n' > "$(python3 -c 'import site; print(site.getsitepackages()[0])')/redoubt.pth" && \
    python3 -c 'import torch, kfp, mlflow, components.image, pipelines.cli'
USER 10001
CMD ["redoubt", "--help"]

FROM base AS serving
LABEL org.opencontainers.image.title="Redoubt serving" \
      org.opencontainers.image.description="Serves an image classifier, notices attacks on it, and has it retrained"
COPY --from=serving-packages /opt/redoubt /opt/redoubt
COPY --from=serving-project /opt/project /opt/project
RUN printf '/opt/project\n/opt/torch\n' > "$(python3 -c 'import site; print(site.getsitepackages()[0])')/redoubt.pth" && \
    python3 -c 'import torch, mlflow, serving.app'
ENV REDOUBT_HOST=0.0.0.0 REDOUBT_PORT=8080
EXPOSE 8080
USER 10001
# uvicorn ends in order on SIGTERM, which it gets because nothing stands between it and the container's first process.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python3", "-c", "\
import os, ssl, urllib.request as r; scheme = 'https' if os.environ.get('REDOUBT_TLS_CERT') else 'http'; \
straight = r.build_opener(r.ProxyHandler({}), r.HTTPSHandler(context=ssl._create_unverified_context())); \
straight.open(f'{scheme}://127.0.0.1:{os.environ[\"REDOUBT_PORT\"]}/v2/health/live', timeout=2)"]
CMD ["python3", "-m", "serving"]
