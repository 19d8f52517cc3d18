#!/bin/sh
# Trains on /data; on the embedded sample when /data holds no image at all. Anything else that is wrong with /data
# (labels missing, not readable) is for the trainer to report.
set -eu
if [ "${TRAINER_DATA-}" = /data ] &&
  image=$(find -L /data -type f -regextype posix-extended -iregex '.*\.(png|jpe?g|tiff?|bmp|webp)' -print -quit) &&
  [ -z "$image" ]; then
  echo "no images in /data: the data set is the embedded sample, unless --data says otherwise"
  export TRAINER_DATA=sample
fi
exec python -m trainer "$@" # PID 1 from here on, so that signals arrive
