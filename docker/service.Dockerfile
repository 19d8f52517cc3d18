# The image that serves: /model/best_model.pth -> HTTP on port 8000
FROM python:3.11-slim-bookworm
# The same as trainer.Dockerfile down to the next rule: the layer of torch is stored and built once.
# PyTorch's index of CPU wheels goes here for images without CUDA; empty: pip's own default.
ARG PIP_EXTRA_INDEX_URL=""
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# A new volume takes the owner of the folder that it is mounted on, in whichever container starts first.
RUN groupadd --gid 10001 app && useradd --uid 10001 --gid app --home-dir /tmp --no-create-home app \
 && install -d -o app -g app /model
WORKDIR /app
COPY docker/requirements-base.txt docker/constraints-cuda.txt ./
# torch brings its own tests and what compilers need: a fifth of it, and nothing runs it here
RUN pip install -r requirements-base.txt -c constraints-cuda.txt \
 && torch="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch" \
 && rm -rf "$torch"/include "$torch"/test "$torch"/bin/*test* "$torch"/bin/*Test "$torch"/bin/protoc*
VOLUME /model
# ---------------------------------------------------------------------------------------------------

# The malloc that service/malloc.py looks for; of Debian's stable release, whose versions do not stay to be pinned.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libjemalloc2 \
 && apt-get clean && rm -rf /var/lib/apt/lists/*
COPY docker/requirements-service.txt ./
RUN pip install -r requirements-service.txt
COPY unet ./unet
COPY service ./service
# Bytecode is made now, as the root file system is read-only later; the import proves the lock files complete.
RUN python -m compileall -q . && python -c "import service.app"

LABEL org.opencontainers.image.title="unet-service" \
      org.opencontainers.image.description="Segments images with a trained U-Net over HTTP" \
      org.opencontainers.image.licenses="MIT"
USER 10001:10001
ENV SERVICE_MODEL=/model/best_model.pth SERVICE_HOST=0.0.0.0
EXPOSE 8000
# Healthy = a model is loaded. Until then it is "starting", not "unhealthy": the first training may take days. The first
# success ends the start period, from then on three failures in a row count. http.client, unlike urllib, knows no proxies.
HEALTHCHECK --interval=10s --timeout=5s --retries=3 --start-period=720h CMD ["python", "-c", "\
from http.client import HTTPConnection; from os import environ; \
connection = HTTPConnection('127.0.0.1', 8000, timeout=4); \
key = environ.get('SERVICE_API_KEYS', '').partition(',')[0].strip(); \
connection.request('GET', '/health', headers={'X-API-Key': key}); \
exit(connection.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "service"]
