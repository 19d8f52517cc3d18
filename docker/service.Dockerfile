# Serves /model/best_model.pth over HTTP on port 8000
FROM python:3.11-slim-bookworm
# The same as trainer.Dockerfile down to the next rule, so that the layer with torch is built and stored once.
# For images without CUDA: the address of PyTorch's index of CPU wheels. Empty: pip's default.
ARG PIP_EXTRA_INDEX_URL=""
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# A new volume takes its owner from the folder that it is mounted on, in whichever container starts first.
RUN groupadd --gid 10001 app && useradd --uid 10001 --gid app --home-dir /tmp --no-create-home app \
 && install -d -o app -g app /model
WORKDIR /app
COPY docker/requirements-base.txt docker/constraints-cuda.txt ./
# torch's tests, headers and compilers are a fifth of its size and are not used here
RUN pip install -r requirements-base.txt -c constraints-cuda.txt \
 && torch="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch" \
 && rm -rf "$torch"/include "$torch"/test "$torch"/bin/*test* "$torch"/bin/*Test "$torch"/bin/protoc*
VOLUME /model
# ---------------------------------------------------------------------------------------------------

# Debian's stable release keeps one version of jemalloc, so there is none to pin.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libjemalloc2 \
 && apt-get clean && rm -rf /var/lib/apt/lists/*
# The loader finds the library by its name on every architecture. The settings keep freed memory for the next forward
# pass, whichever thread it is on, and let small blocks use the rest of large ones.
ENV LD_PRELOAD=libjemalloc.so.2 \
    MALLOC_CONF=dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0,narenas:2,lg_extent_max_active_fit:64
COPY docker/requirements-service.txt ./
RUN pip install -r requirements-service.txt
COPY unet ./unet
COPY service ./service
# Bytecode is compiled now, as the root file system is read-only later. The import fails if a lock file lacks a package.
RUN python -m compileall -q . && python -c "import service.server"

LABEL org.opencontainers.image.title="unet-service" \
      org.opencontainers.image.description="Segments images with a trained U-Net over HTTP" \
      org.opencontainers.image.licenses="MIT"
USER 10001:10001
ENV SERVICE_MODEL=/model/best_model.pth SERVICE_HOST=0.0.0.0
EXPOSE 8000
# Healthy: a model is loaded. Until the first one the container is "starting", not "unhealthy", as training may take
# days; after that, three failures in a row count. http.client ignores proxy variables, unlike urllib.
HEALTHCHECK --interval=10s --timeout=5s --retries=3 --start-period=720h CMD ["python", "-c", "\
from http.client import HTTPConnection; from os import environ; \
connection = HTTPConnection('127.0.0.1', 8000, timeout=4); \
key = environ.get('SERVICE_API_KEYS', '').partition(',')[0].strip(); \
connection.request('GET', '/health', headers={'X-API-Key': key}); \
exit(connection.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "service"]
