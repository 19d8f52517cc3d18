# Trains on the images and labels in /data and writes /model/best_model.pth
FROM python:3.11-slim-bookworm
# The same as service.Dockerfile down to the next rule, so that the layer with torch is built and stored once.
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

COPY docker/requirements-trainer.txt ./
RUN pip install -r requirements-trainer.txt
COPY unet ./unet
COPY trainer ./trainer
COPY docker/trainer-entrypoint.sh ./
# Bytecode is compiled now, as the root file system is read-only later. The import fails if a lock file lacks a package.
RUN python -m compileall -q . && python -c "import trainer.run" && install -d /data

LABEL org.opencontainers.image.title="unet-service trainer" \
      org.opencontainers.image.description="Trains a U-Net on a folder of images and labels" \
      org.opencontainers.image.licenses="MIT"
USER 10001:10001
ENV TRAINER_DATA=/data TRAINER_OUT=/model
ENTRYPOINT ["sh", "trainer-entrypoint.sh"]
