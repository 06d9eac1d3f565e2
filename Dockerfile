# Kotae in a container: Python, the locked dependencies and the wheel, read-only at run time.
# Data is written to /data only. KOTAE_SECRET has no default: without it, the start fails.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements/setup.txt requirements/base.txt requirements/postgres.txt requirements/redis.txt requirements/otel.txt requirements/stripe.txt requirements/
# pip, uv and hatchling stay in this stage.
RUN cat requirements/base.txt requirements/postgres.txt requirements/redis.txt requirements/otel.txt requirements/stripe.txt > requirements/image.txt \
 && pip install --no-cache-dir --require-hashes -r requirements/setup.txt \
 && python -m venv --without-pip /opt/kotae \
 && uv pip install --no-cache --python /opt/kotae/bin/python --require-hashes -r requirements/image.txt
# The SBOM in CycloneDX: name, version and hashes of every locked dependency.
COPY requirements/audit.txt requirements/
RUN python -m venv --without-pip /opt/audit \
 && uv pip install --no-cache --python /opt/audit/bin/python --require-hashes -r requirements/audit.txt \
 && /opt/audit/bin/cyclonedx-py requirements --output-reproducible --output-file /opt/kotae/sbom.cdx.json requirements/image.txt
COPY . .
# Bytecode is compiled without timestamps: nothing can change the sources at run time.
RUN hatchling build -t wheel -d dist \
 && uv pip install --no-cache --python /opt/kotae/bin/python --no-deps dist/*.whl \
 && /opt/kotae/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/kotae/lib \
 && chmod -R a+rX,go-w /opt/kotae

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin kotae \
 && install -d -o kotae -g kotae -m 0700 /data
COPY --from=build /opt/kotae /opt/kotae
ENV PATH=/opt/kotae/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    KOTAE_HOST=0.0.0.0 \
    KOTAE_PORT=8000 \
    KOTAE_AUTH=keys \
    KOTAE_DATA_DIR=/data
WORKDIR /data
USER 10001:10001
VOLUME /data
EXPOSE 8000
# Liveness, not readiness: a locked database is no reason to restart the process.
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(f'http://127.0.0.1:{os.environ[\"KOTAE_PORT\"]}/health/live', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["sh", "-c", ": \"${KOTAE_SECRET:?must have 32 characters or more; generate one with openssl rand -hex 32}\"; exec kotae serve --migrate"]
