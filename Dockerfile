# Two targets from one file: `steps` runs the pipeline's components, `serving` answers requests (no kfp in it).
#
#   docker build --target steps   -t redoubt/steps:0.1.0-python3.11 .
#   docker build --target serving -t redoubt/serving:0.1.0 .
ARG BASE=python:3.11-slim

FROM ${BASE} AS source
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY redoubt redoubt
COPY components components
COPY pipelines pipelines
COPY serving serving

FROM source AS steps-build
RUN python -m venv /opt/redoubt && /opt/redoubt/bin/pip install --no-cache-dir '.[pipelines]'

FROM source AS serving-build
RUN python -m venv /opt/redoubt && /opt/redoubt/bin/pip install --no-cache-dir '.[serving]'

FROM ${BASE} AS base
# Everything that is written goes under /var/lib/redoubt, so that the root file system can be mounted read-only.
RUN useradd --uid 10001 --create-home --home-dir /var/lib/redoubt redoubt
ENV PATH=/opt/redoubt/bin:$PATH HOME=/var/lib/redoubt REDOUBT_HOME=/var/lib/redoubt TMPDIR=/var/lib/redoubt \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/redoubt
USER 10001

FROM base AS steps
COPY --from=steps-build /opt/redoubt /opt/redoubt
LABEL org.opencontainers.image.title="Redoubt pipeline steps" org.opencontainers.image.licenses="Apache-2.0"

FROM base AS serving
COPY --from=serving-build /opt/redoubt /opt/redoubt
LABEL org.opencontainers.image.title="Redoubt serving" org.opencontainers.image.licenses="Apache-2.0"
ENV REDOUBT_HOST=0.0.0.0 REDOUBT_PORT=8080
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD \
  ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/v2/health/live', timeout=2)"]
CMD ["python", "-m", "serving"]
