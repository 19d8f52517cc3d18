#!/bin/sh
# Trains on /data, or on the embedded sample when /data holds no image at all. The trainer reports any other problem
# with /data, such as missing labels.
set -eu
if [ "${TRAINER_DATA-}" = /data ] &&
  image=$(find -L /data -type f -regextype posix-extended -iregex '.*\.(png|jpe?g|tiff?|bmp|webp|gif)' -print -quit) &&
  [ -z "$image" ]; then
  echo "no images in /data: training on the embedded sample, unless --data is given"
  export TRAINER_DATA=sample
fi
exec python -m trainer "$@" # as process 1, which receives the signals
