# Kotae in a container: nothing but a Python, the locked packages and the source, all of it read-only at run time.
# What is written goes to /data. KOTAE_SECRET has no default: without one the start ends and says so.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /opt/kotae
COPY requirements/setup.txt requirements/base.txt requirements/
# The tools that install stay in this stage; only the environment they make is taken along.
RUN pip install --no-cache-dir --require-hashes -r requirements/setup.txt \
 && python -m venv --without-pip .venv \
 && uv pip install --no-cache --python .venv/bin/python --require-hashes -r requirements/base.txt
COPY . .
# Editable, because the migrations live beside the package. The compiled files are trusted unchecked: nobody can write here.
RUN hatchling build -t wheel:editable -d /tmp/wheel \
 && uv pip install --no-cache --python .venv/bin/python --no-deps /tmp/wheel/*.whl \
 && .venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash .venv/lib service alembic \
 && chmod -R a+rX,go-w .

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin kotae \
 && install -d -o kotae -g kotae -m 0700 /data
COPY --from=build /opt/kotae /opt/kotae
ENV PATH=/opt/kotae/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    KOTAE_HOST=0.0.0.0 \
    KOTAE_PORT=8000 \
    KOTAE_AUTH=keys \
    KOTAE_DATA_DIR=/data
WORKDIR /opt/kotae
USER 10001:10001
VOLUME /data
EXPOSE 8000
# Whether it lives, not whether it is ready: a locked database is no reason to start a process again.
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(f'http://127.0.0.1:{os.environ[\"KOTAE_PORT\"]}/health/live', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["sh", "-c", ": \"${KOTAE_SECRET:?must be set to 32 characters or more; openssl rand -hex 32 makes one}\"; exec kotae serve --migrate"]
